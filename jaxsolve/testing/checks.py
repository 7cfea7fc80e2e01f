"""The checks of the contract: functions of a case and a dtype name that raise on failure."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jec
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from .case import Case, cast, flat, name_of


def optimality(case: Case, dtype: str) -> None:
    """1. The conditions hold, recomputed outside the library from the unscaled data."""
    with _precision(dtype):
        for seed in range(3):
            data = case.draw(np.random.default_rng(seed))
            value, dual, code = case.lane(cast(data, dtype))
            assert name_of(code) == "successful", name_of(code)
            violation = case.optimality(_rounded(data, dtype), *_numpy((value, dual)))
            assert violation <= 4 * case.tolerance[dtype], violation


def oracle(case: Case, dtype: str) -> None:
    """2. The value is that of an independent solver."""
    with _precision(dtype):
        for seed in range(3):
            data = case.draw(np.random.default_rng(seed))
            value, _, _ = case.lane(cast(data, dtype))
            _close(value, case.oracle(_rounded(data, dtype)), _bound(case, dtype))


def results(case: Case, dtype: str) -> None:
    """3. Every named outcome is what it must be; one step is not enough and says so."""
    with _precision(dtype):
        for name, expected in case.outcomes.items():
            *_, code = case.lane(cast(expected.data, dtype))
            assert name_of(code) == expected.result, (name, name_of(code))
        data = cast(case.draw(np.random.default_rng(0)), dtype)
        none = case.solution(data, max_steps=0)
        assert name_of(none.result._value) in ("max_steps_reached", "successful")
        assert int(none.stats.steps) == 0


def certificates(case: Case, dtype: str) -> None:
    """4. Infeasible and unbounded are proved by what is returned, verified in NumPy."""
    proved = [e for e in case.outcomes.values() if e.result in ("infeasible", "unbounded")]
    assert not proved or case.certificate is not None, "a case with such outcomes verifies them"
    with _precision(dtype):
        for expected in proved:
            value, dual, _ = case.lane(cast(expected.data, dtype))
            data = _rounded(expected.data, dtype)
            assert case.certificate is not None
            assert case.certificate(data, *_numpy((value, dual)), expected.result)


def precision(case: Case, dtype: str) -> None:
    """5. Strict promotion passes, float32 stays float32 under x64, products at full precision."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        data = cast(case.draw(np.random.default_rng(0)), dtype)

        def value(data):
            return jnp.sum(
                jnp.stack([jnp.sum(x) for x in jax.tree.leaves(case.solution(data).value)])
            )

        found = []
        for jaxpr in (jax.make_jaxpr(case.outcome)(data), jax.make_jaxpr(jax.grad(value))(data)):
            _walk(jaxpr.jaxpr, found.append)
    if dtype == "float32":
        wide = {e.primitive.name for e in found for v in e.outvars if _dtype(v) == "float64"}
        assert not wide, f"float64 in a float32 solve: {sorted(wide)}"
    for eqn in found:
        if eqn.primitive.name == "dot_general" and _dtype(eqn.outvars[0]).startswith("float"):
            wanted = eqn.params["precision"]
            assert wanted is not None and jax.lax.Precision.HIGHEST in wanted, eqn


def transforms(case: Case, dtype: str) -> None:
    """6. vmap, vmap of vmap, scan, eval_shape: as each lane alone, with bad lanes among them."""
    with _precision(dtype):
        batch = case.batch(dtype)
        alone = _alone(case, batch)
        _same(case, dtype, jax.jit(jax.vmap(case.outcome))(batch), alone)
        folded = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), batch)
        twice = jax.jit(jax.vmap(jax.vmap(case.outcome)))(folded)
        twice = jax.tree.map(lambda x: x.reshape(6, *x.shape[2:]), twice)
        _same(case, dtype, twice, alone)
        scanned = jax.jit(lambda b: jax.lax.scan(lambda c, x: (c, case.outcome(x)), 0, b)[1])(batch)
        _same(case, dtype, scanned, alone)
        shapes = jax.eval_shape(jax.vmap(case.outcome), batch)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
            lambda x: (x.shape, x.dtype), scanned
        )


def devices(case: Case, dtype: str) -> None:
    """6. pmap, and shard_map with and without check_vma, over the devices there are (at most 6)."""
    with _precision(dtype):
        count = max(n for n in (1, 2, 3, 6) if n <= jax.device_count())
        batch = case.batch(dtype)
        alone = _alone(case, batch)
        folded = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
        mapped = jax.pmap(jax.vmap(case.outcome), devices=jax.devices()[:count])(folded)
        mapped = jax.tree.map(lambda x: np.asarray(x).reshape(6, *x.shape[2:]), mapped)
        _same(case, dtype, mapped, alone)
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((count,), ("lane",), axis_types=auto, devices=jax.devices()[:count])
        spec = jax.sharding.PartitionSpec("lane")
        for check in (True, False):
            sharded = jax.shard_map(
                jax.vmap(case.outcome), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check
            )
            _same(case, dtype, jax.jit(sharded)(batch), alone)


def derivatives(case: Case, dtype: str) -> None:
    """7. Both modes to the second order against differences; J' is the transpose of J."""
    value = _value_of(case)
    with _precision(dtype):
        data = cast(case.draw(np.random.default_rng(0)), dtype)
        if dtype == "float64":
            check_grads(jax.jit(value), (data,), order=2, modes=("fwd", "rev"), eps=1e-5, rtol=1e-3)
        rng = np.random.default_rng(1)
        tangent = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), data)

        @jax.jit
        def products(data, tangent):
            out, pushed = jax.jvp(value, (data,), (tangent,))
            pulled = jax.vjp(value, data)[1](jnp.cos(jnp.arange(out.size, dtype=out.dtype)))[0]
            return pushed, pulled

        pushed, pulled = products(data, tangent)
        left = float(np.cos(np.arange(pushed.size)) @ np.asarray(pushed, np.float64))
        pairs = zip(jax.tree.leaves(pulled), jax.tree.leaves(tangent), strict=True)
        right = float(sum(np.sum(np.float64(p) * np.float64(t)) for p, t in pairs))
        size = np.linalg.norm(flat(pushed)) + 1e-30
        assert abs(left - right) <= np.finfo(dtype).eps ** 0.5 * size * 10, (left, right)


def bad_lanes(case: Case, dtype: str) -> None:
    """7. A failed lane's derivative is NaN, raises nothing, and changes no other lane's; masked
    lanes leave the gradient of what lanes share finite."""
    value = _value_of(case)
    with _precision(dtype):
        batch = case.batch(dtype)
        codes = np.asarray(_alone(case, batch)[2])
        good = codes == 0
        gradient = jax.jit(jax.vmap(jax.grad(lambda d: jnp.sum(value(d)))))
        mixed = np.stack(
            [flat(jax.tree.map(lambda x, i=i: x[i], gradient(batch))) for i in range(6)]
        )
        regular = np.flatnonzero(good)
        filled = jax.tree.map(lambda x: x[np.where(good, np.arange(6), regular[0])], batch)
        clean = gradient(filled)
        for lane in range(6):
            if good[lane]:
                own = flat(jax.tree.map(lambda x, i=lane: x[i], clean))
                _close(mixed[lane], own, _bound(case, dtype) * (1 + np.abs(own).max()))
            else:
                assert np.isnan(mixed[lane]).any()

        def masked(shift):
            def one(data):
                out = case.solution(jax.tree.map(lambda x: x + shift, data))
                total = sum(jnp.sum(x) for x in jax.tree.leaves(out.value))
                return jnp.where(out.success, total, jnp.zeros_like(total))

            return jnp.sum(jax.vmap(one)(batch))

        assert np.isfinite(jax.jit(jax.grad(masked))(jnp.zeros((), dtype)))


def invariance(case: Case, dtype: str, seed: int = 0) -> None:
    """8. The same problem, otherwise written, has the same solution."""
    with _precision(dtype):
        for change in case.invariances.values():
            rng = np.random.default_rng(seed)
            data = case.draw(rng)
            other, back = change(data, rng)
            value, _, code = case.lane(cast(data, dtype))
            changed, _, other_code = case.lane(cast(other, dtype))
            assert name_of(code) == name_of(other_code) == "successful"
            _close(back(flat(changed)), value, _bound(case, dtype))


def warm_start(case: Case, dtype: str) -> None:
    """9. From its own solution a solve ends within a few steps at the same answer."""
    with _precision(dtype):
        data = cast(case.draw(np.random.default_rng(0)), dtype)
        first = case.solution(data)
        again = case.solution(data, start=first)
        assert bool(again.success)
        assert int(again.stats.steps) <= case.warm_steps, int(again.stats.steps)
        _close(again.value, first.value, _bound(case, dtype))


def retracing(case: Case, dtype: str) -> None:
    """10. New data of the same shapes compile nothing; memory does not grow with the step limit."""
    value = _value_of(case)
    with _precision(dtype):
        traces = []

        def counted(data, steps):
            traces.append(steps)
            total = lambda d: jnp.sum(flatten(case.solution(d, max_steps=steps).value))
            return jax.grad(total)(data)

        flatten = lambda tree: jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])
        first, second = (cast(case.draw(np.random.default_rng(s)), dtype) for s in (0, 1))
        compiled = jax.jit(counted, static_argnums=1)
        compiled(first, 50)
        compiled(second, 50)
        assert len(traces) == 1
        memory = [
            compiled.lower(first, steps).compile().memory_analysis().temp_size_in_bytes
            for steps in (50, 5000)
        ]
        assert memory[0] == memory[1], memory
        # Eagerly the inner compiled program is found again.
        before = value(first)
        assert np.array_equal(value(first), before)


def silence(case: Case, dtype: str) -> None:
    """11. With progress off nothing calls back to the host; with it on, the answer is the same."""
    with _precision(dtype):
        data = cast(case.draw(np.random.default_rng(0)), dtype)
        found: list[Any] = []
        _walk(jax.make_jaxpr(jax.vmap(case.outcome))(case.batch(dtype)).jaxpr, found.append)
        calls = {e.primitive.name for e in found if "callback" in e.primitive.name}
        assert not calls, calls
        seen = []
        loud = case.solution(data, verbose=lambda *told: seen.append(told), record=4)
        jax.effects_barrier()
        assert len(seen) == int(loud.stats.steps)
        assert loud.history is not None and loud.history.shape == (4,)
        _close(loud.value, case.lane(data)[0], _bound(case, dtype))


def same_bits(case: Case, dtype: str) -> None:
    """The same data and key twice give the same bits."""
    with _precision(dtype):
        data = cast(case.draw(np.random.default_rng(0)), dtype)
        key = jax.random.key(3)
        first, second = (case.solution(data, key=key) for _ in range(2))
        np.testing.assert_array_equal(flat(first.value), flat(second.value))


CHECKS: list[Callable[[Case, str], None]] = [
    optimality,
    oracle,
    results,
    certificates,
    precision,
    transforms,
    devices,
    derivatives,
    bad_lanes,
    invariance,
    warm_start,
    retracing,
    silence,
    same_bits,
]


def check_solver(case: Case, dtypes: tuple[str, ...] = ("float32", "float64")) -> None:
    """Every check that the case is not exempt from, in each precision."""
    for dtype in dtypes:
        for check in CHECKS:
            if check.__name__ not in case.exempt:
                check(case, dtype)


def _precision(dtype: str):
    return jax.enable_x64(dtype == "float64")


def _rounded(data: Any, dtype: str) -> Any:
    """The data that the solver saw, in float64."""
    return jax.tree.map(lambda x: np.asarray(np.asarray(x, dtype), np.float64), data)


def _numpy(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def _bound(case: Case, dtype: str) -> float:
    return case.condition * max(case.tolerance[dtype], 100 * float(np.finfo(dtype).eps))


def _close(found: Any, expected: Any, bound: float) -> None:
    found, expected = flat(found), flat(expected)
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * scale)


def _alone(case: Case, batch: Any) -> tuple:
    lanes = [case.lane(jax.tree.map(lambda x, i=i: x[i], batch)) for i in range(6)]
    return jax.tree.map(lambda *x: np.stack(x), *lanes)


def _same(case: Case, dtype: str, found: tuple, alone: tuple) -> None:
    """Values of solved lanes and all result codes."""
    np.testing.assert_array_equal(found[2], alone[2])
    for lane in np.flatnonzero(np.asarray(alone[2]) == 0):
        pick = lambda tree, lane=lane: jax.tree.map(lambda x: np.asarray(x)[lane], tree)
        _close(pick(found[0]), pick(alone[0]), _bound(case, dtype))


def _value_of(case: Case) -> Callable[[Any], Any]:
    def value(data):
        leaves = jax.tree.leaves(case.solution(data).value)
        return jnp.concatenate([jnp.ravel(x) for x in leaves])

    return value


def _walk(jaxpr: Any, visit: Callable[[Any], None]) -> None:
    for eqn in jaxpr.eqns:
        visit(eqn)
        for inner in jec.jaxprs_in_params(eqn.params):
            _walk(inner, visit)


def _dtype(var: Any) -> str:
    return str(getattr(var.aval, "dtype", ""))
