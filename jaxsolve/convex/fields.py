"""The fields of a quadratic program: what they must look like, and the door they come in by."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..core.checks import check_array, check_real, check_shape
from ..core.solution import Dual, Guess, is_traced
from . import sparse


def prepare(
    problem: Any, init: PyTree | None, linear: str = "q"
) -> tuple[dict[str, Any], Float[Array, " n"]]:
    """The checked fields of a problem by name, P symmetric and bounds of full shape, and the
    initial value. The field `linear` says how many variables there are, and of what precision.

    Raises:
        TypeError, ValueError: the message names the field and both shapes.
    """
    name = type(problem).__name__
    found: dict[str, Any] = {}
    for field in (linear, "P", "A", "b", "G", "h", "lower", "upper"):
        value = getattr(problem, field, None)
        if isinstance(value, int):
            value = float(value)
        found[field] = None if value is None else _floating(name, field, value)
    q = found[linear]
    if q is None or len(_shape(q)) != 1 or _shape(q)[0] == 0:
        raise ValueError(
            f"{name}: `{linear}` is {'None' if q is None else _show(q)}: it must have shape [any], "
            "with one entry or more."
        )
    n = q.shape[0]

    def fits(field: str, shape: tuple, other: str = linear) -> None:
        _fits(name, field, found[field], shape, other, found[other])

    if found["P"] is not None:
        fits("P", (n, n))
    for matrix, side in (("A", "b"), ("G", "h")):
        if (found[matrix] is None) != (found[side] is None):
            given, absent = (matrix, side) if found[side] is None else (side, matrix)
            raise TypeError(f"{name}: `{given}` is given, but `{absent}` is None.")
        if found[matrix] is None:
            continue
        fits(matrix, (None, n))
        rows = _shape(found[matrix])[0]
        fits(side, (rows,), matrix)
        if rows == 0:
            found[matrix] = found[side] = None
    for field in ("lower", "upper"):
        if found[field] is not None:
            if found[field].ndim == 0:
                found[field] = jnp.broadcast_to(found[field].astype(q.dtype), (n,))
            fits(field, (n,))
    value = jnp.zeros_like(q)
    if init is not None:
        if jax.tree.structure(init) != jax.tree.structure(0):
            raise TypeError(
                f"{name}: `init` must be one array of shape {[n]}; "
                f"it has the structure {jax.tree.structure(init)}."
            )
        value = _floating(name, "init", init)
        _fits(name, "init", value, (n,), linear, q)
    for field, array in {**found, "init": value}.items():
        if array is not None and _dtype(array) != q.dtype:
            raise TypeError(
                f"{name}: `{field}` is {_show(array)}, but `{linear}` is {_show(q)}. "
                "Cast them to one precision."
            )
    P = found["P"]
    if P is not None and not sparse.is_matrix_free(P):
        found["P"] = (P + P.T) / 2
    return found, value


def check_multipliers(problem: Any, guess: Guess) -> None:
    """Raise `TypeError` where a `Solution` to start from has multipliers of other fields."""
    if guess.dual is None:
        return
    found, own = (jax.tree.map(_show, dual) for dual in (guess.dual, problem.zero_dual()))
    if jax.tree.flatten(found) != jax.tree.flatten(own):
        raise TypeError(
            f"{type(problem).__name__}: `init` is a solution with multipliers {_listed(found)}, "
            f"but those of this problem are {_listed(own)}. Start from its value alone: "
            "init=solution.value."
        )


def _listed(shapes: Any) -> str:
    if not isinstance(shapes, Dual):
        return str(shapes)
    named = {name: getattr(shapes, name) for name in ("equality", "inequality", "lower", "upper")}
    return ", ".join(f"{name} {x}" for name, x in named.items() if x is not None) or "none"


def two_sided(A: Array, l: Array, u: Array) -> dict[str, Any]:
    """Fields A, b, G, h for l <= Ax <= u."""
    if jnp.ndim(A) != 2 or jnp.shape(l) != (jnp.shape(A)[0],) or jnp.shape(u) != jnp.shape(l):
        raise ValueError(
            f"from_two_sided: `l` and `u` must have an entry for each row of `A`; `A` has shape "
            f"{list(jnp.shape(A))}, `l` {list(jnp.shape(l))}, `u` {list(jnp.shape(u))}."
        )
    if is_traced((l, u)):
        return {"G": jnp.concatenate([A, -A]), "h": jnp.concatenate([u, -l])}
    low, high = np.asarray(l), np.asarray(u)
    equal = np.flatnonzero((low == high) & np.isfinite(low))
    # NaN is kept, for `solve` to find.
    above = np.flatnonzero((low != high) & ~np.isposinf(high))
    below = np.flatnonzero((low != high) & ~np.isneginf(low))
    out = {}
    if equal.size:
        out |= {"A": A[equal], "b": u[equal]}
    if above.size + below.size:
        out |= {
            "G": jnp.concatenate([A[above], -A[below]]),
            "h": jnp.concatenate([u[above], -l[below]]),
        }
    return out


def pairs(*parts: Dual) -> Iterator[tuple[Array, ...]]:
    """What `parts` (dual and slack, and more of their structure) have of each inequality field."""
    for name in ("inequality", "lower", "upper"):
        if getattr(parts[0], name) is not None:
            yield tuple(getattr(part, name) for part in parts)


def _floating(name: str, field: str, value: Any) -> Any:
    if field in _MATRICES and sparse.is_matrix_free(value):
        return sparse.checked(name, field, value)
    if not hasattr(value, "dtype") and not isinstance(value, float):
        # A list of numbers is one of tracers by now.
        value = check_array(name, field, value)
    dtype = getattr(value, "dtype", jnp.result_type(float))
    check_real(name, field, dtype)
    return jnp.asarray(value)


def _fits(name: str, field: str, value: Any, shape: tuple, other: str, against: Any) -> None:
    check_shape(name, field, (_show(value), _shape(value)), shape, other, _show(against))


_MATRICES = ("P", "A", "G")
_shape, _dtype = sparse.shape_of, sparse.dtype_of


def _show(value: Any) -> str:
    return f"{_dtype(value)}{list(_shape(value))}"
