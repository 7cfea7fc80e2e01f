"""The checks of the contract: functions of a case and a dtype name that raise on failure."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from .batches import bad_lanes, devices, transforms
from .case import Case, cast, flat, name_of
from .compare import as_numpy, bound, close, counted, dtype_of, equations, precision, rounded
from .derivatives import degenerate, derivatives

SECOND_CALL = 0.010
"""Seconds a second eager call may take (the best of several)."""


def optimality(case: Case, dtype: str) -> None:
    """1. The conditions hold, recomputed outside the library from the unscaled data."""
    with precision(dtype):
        for seed in range(3):
            data = case.draw(np.random.default_rng(seed))
            value, dual, code = case.lane(cast(data, dtype))
            assert name_of(code) == "successful", name_of(code)
            violation = case.optimality(rounded(data, dtype), *as_numpy((value, dual)))
            assert violation <= 4 * case.tolerance[dtype], violation


def oracle(case: Case, dtype: str) -> None:
    """2. The value is that of an independent solver."""
    with precision(dtype):
        for seed in range(3):
            data = case.draw(np.random.default_rng(seed))
            value, _, _ = case.lane(cast(data, dtype))
            close(value, case.oracle(rounded(data, dtype)), bound(case, dtype))


def results(case: Case, dtype: str) -> None:
    """3. Every named outcome is what it must be; no step, or one, is not enough and says so."""
    with precision(dtype):
        for name, expected in case.outcomes.items():
            value, _, code = case.lane(cast(expected.data, dtype))
            assert name_of(code) == expected.result, (name, name_of(code))
            if expected.result == "successful":
                assert np.isfinite(flat(value)).all(), name
        data = case.draw(np.random.default_rng(0))
        for limit in (0, 1):
            found = case.solution(cast(data, dtype), max_steps=limit)
            assert int(found.stats.steps) <= limit
            result = name_of(found.result._value)
            if result == "successful":
                point = as_numpy((found.value, found.dual))
                assert case.optimality(rounded(data, dtype), *point) <= 4 * case.tolerance[dtype]
            else:
                assert result == "max_steps_reached", (limit, result)


def certificates(case: Case, dtype: str) -> None:
    """4. Infeasible and unbounded are proved by what is returned, verified in NumPy."""
    proved = [e for e in case.outcomes.values() if e.result in ("infeasible", "unbounded")]
    assert not proved or case.certificate is not None, "a case with such outcomes verifies them"
    with precision(dtype):
        for expected in proved:
            value, dual, _ = case.lane(cast(expected.data, dtype))
            data = rounded(expected.data, dtype)
            assert case.certificate is not None
            value, dual = as_numpy((value, dual))
            assert case.certificate(data, value, dual, expected.result)


def programs(case: Case, dtype: str) -> None:
    """5, 11. What the programs hold: strict promotion passes, float32 stays float32 under x64,
    every product asks for full precision, and with progress off nothing calls back to the host.

    Read in the solve of a batch and in the gradient of a lane.
    """
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        found = []
        for fn, data in (
            (jax.vmap(case.outcome), case.batch(dtype)),
            (case.differentiated, case.regular(dtype)),
        ):
            found += equations(jax.make_jaxpr(fn)(data).jaxpr)
    calls = {e.primitive.name for e in found if "callback" in e.primitive.name}
    assert not calls, calls
    if dtype == "float32":
        wide = {e.primitive.name for e in found for v in e.outvars if dtype_of(v) == "float64"}
        assert not wide, f"float64 in a float32 solve: {sorted(wide)}"
    for eqn in found:
        if eqn.primitive.name == "dot_general" and dtype_of(eqn.outvars[0]).startswith("float"):
            wanted = eqn.params["precision"]
            highest = jax.lax.Precision.HIGHEST
            assert wanted is not None and set(wanted) == {highest}, eqn


def invariance(case: Case, dtype: str, seed: int = 0) -> None:
    """8. The same problem, otherwise written, has the same solution."""
    with precision(dtype):
        for name, change in case.invariances.items():
            rng = np.random.default_rng(seed)
            data = case.draw(rng)
            other, back = change(data, rng)
            value, _, code = case.lane(cast(data, dtype))
            changed, _, other_code = case.lane(cast(other, dtype))
            assert name_of(code) == name_of(other_code) == "successful", name
            close(back(flat(changed)), value, bound(case, dtype), name)


def warm_start(case: Case, dtype: str) -> None:
    """9. From its own solution a solve ends within a few steps at the same answer."""
    with precision(dtype):
        data = case.regular(dtype)
        first = case.solution(data)
        again = case.solution(data, start=first)
        assert bool(again.success)
        assert int(again.stats.steps) <= case.warm_steps, int(again.stats.steps)
        close(again.value, first.value, bound(case, dtype))


def retracing(case: Case, dtype: str) -> None:
    """10. An eager solve of new data of the same shapes traces and compiles nothing, and takes
    under 10 ms; the same data and key twice give the same bits."""
    with precision(dtype):
        first, second = (case.regular(dtype, seed) for seed in (0, 1))
        jax.block_until_ready(case.solution(first).value)
        with counted() as counts:
            case.solution(second)
        assert counts == {"traces": 0, "compiles": 0}, counts

        def seconds() -> float:
            # CPU time: what else the machine does is not the solve's.
            start = time.process_time()
            jax.block_until_ready(case.solution(second).value)
            return time.process_time() - start

        best = min(seconds() for _ in range(30))
        assert best < SECOND_CALL, f"a second call took {best * 1e3:.1f} ms"
        key = jax.random.key(3)
        one, two = (case.solution(first, key=key) for _ in range(2))
        np.testing.assert_array_equal(flat(one.value), flat(two.value))


def memory(case: Case, dtype: str) -> None:
    """10. Peak memory of the backward pass does not grow with the step limit."""
    with precision(dtype):
        data = case.regular(dtype)

        def bytes_of(steps: int) -> int:
            fn = lambda d: jnp.sum(jnp.concatenate(_leaves(case.solution(d, max_steps=steps))))
            compiled = jax.jit(jax.grad(fn)).lower(data).compile()
            memory = compiled.memory_analysis()
            assert memory is not None
            return memory.temp_size_in_bytes

        few, many = bytes_of(50), bytes_of(5000)
        assert few == many, (few, many)


def progress(case: Case, dtype: str) -> None:
    """11. With progress and history on the answer is the same, and each step is told of."""
    with precision(dtype):
        data = case.regular(dtype)
        seen = []
        loud = case.solution(data, verbose=lambda *told: seen.append(told), record=4)
        jax.effects_barrier()
        steps = int(loud.stats.steps)
        assert [told[0] for told in seen] == list(range(1, steps + 1))
        assert loud.history is not None and loud.history.shape == (4,)
        told = [worst for _, worst, *_ in seen][-4:]
        close(np.asarray(loud.history)[4 - len(told) :], told, 1e-6)
        close(loud.value, case.lane(data)[0], bound(case, dtype))


def exported(case: Case, dtype: str) -> None:
    """A solve and its gradient, exported, serialised and loaded again, give the same answer."""
    with precision(dtype):
        data = case.regular(dtype)
        fn = jax.jit(lambda data: tuple(jax.tree.leaves(case.differentiated(data))))
        blob = jax.export.export(fn)(data).serialize()
        found = jax.export.deserialize(blob).call(data)
        close(found, jax.tree.leaves(case.gradient(data)), bound(case, dtype))


CHECKS: list[Callable[[Case, str], None]] = [
    optimality,
    oracle,
    results,
    certificates,
    programs,
    transforms,
    bad_lanes,
    devices,
    derivatives,
    degenerate,
    invariance,
    warm_start,
    retracing,
    memory,
    progress,
    exported,
]


def check_solver(case: Case, dtypes: Iterable[str] = ("float32", "float64")) -> None:
    """Every check that the case is not exempt from, in each precision."""
    for dtype in dtypes:
        for check in CHECKS:
            if check.__name__ not in case.exempt:
                check(case, dtype)


def _leaves(solution: Any) -> list[Any]:
    return [jnp.ravel(x) for x in jax.tree.leaves(solution.value)]
