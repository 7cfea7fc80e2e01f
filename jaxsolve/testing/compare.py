"""How the checks compare, count and look into programs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.extend.core as jec
import jax.monitoring
import numpy as np

from .case import Case, flat

_COMPILES = "/jax/core/compile/backend_compile_duration"
_TRACES = "/jax/core/compile/jaxpr_trace_duration"


def precision(dtype: str) -> Any:
    """A context in which `dtype` is the widest."""
    return jax.enable_x64(dtype == "float64")


def rounded(data: Any, dtype: str) -> Any:
    """The data that the solver saw, in float64."""
    return jax.tree.map(lambda x: np.asarray(np.asarray(x, dtype), np.float64), data)


def as_numpy(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def pick(tree: Any, lane: int) -> Any:
    """One lane of a batch."""
    return jax.tree.map(lambda x: np.asarray(x)[lane], tree)


def bound(case: Case, dtype: str) -> float:
    """Error allowed of a value that was found within the tolerance."""
    return case.condition * max(case.tolerance[dtype], 100 * float(np.finfo(dtype).eps))


def rounding(case: Case, dtype: str) -> float:
    """Difference allowed between two programs for the same numbers."""
    return case.condition * 100 * float(np.finfo(dtype).eps)


def close(found: Any, expected: Any, within: float, of: str = "") -> None:
    """Raise unless the difference is at most `within` times max(1, the largest entry)."""
    found, expected = flat(found), flat(expected)
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=within * scale, err_msg=of)


def same(case: Case, dtype: str, found: tuple, alone: tuple, of: str) -> None:
    """(value, dual, code, gradient or nothing) of a batch against those of each lane alone: codes
    are equal, values and gradients of solved lanes agree, gradients of others are NaN."""
    codes = np.asarray(alone[2])
    np.testing.assert_array_equal(found[2], codes, err_msg=of)
    for lane, code in enumerate(codes):
        here = f"{of}, lane {lane}"
        if code == 0:
            close(pick(found[0], lane), pick(alone[0], lane), rounding(case, dtype), here)
        for gradient in found[3:]:
            own = flat(pick(gradient, lane))
            if code == 0:
                # The adjoint's condition on top of the value's.
                within = rounding(case, dtype) * case.condition
                close(own, pick(alone[3], lane), within, f"{here}, gradient")
            else:
                assert np.isnan(own).any(), f"{here}: the gradient of a failed lane is not NaN"


def stacked(fn: Callable, batch: Any) -> tuple:
    """`fn` of each lane alone."""
    size = len(jax.tree.leaves(batch)[0])
    lanes = [fn(jax.tree.map(lambda x, i=i: x[i], batch)) for i in range(size)]
    return jax.tree.map(lambda *x: np.stack(x), *lanes)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a program, those inside loops, branches and calls included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jec.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def dtype_of(var: Any) -> str:
    return str(getattr(var.aval, "dtype", ""))


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts what JAX traces and compiles within the context."""
    counts = {"traces": 0, "compiles": 0}
    names = {_TRACES: "traces", _COMPILES: "compiles"}

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event in names:
            counts[names[event]] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
