"""The loop under transformations, and what a dead lane may not do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from jaxsolve.core.loop import Lockstep, Program, Refill, run
from tests.core.counted import (
    WIDTHS,
    assert_equal,
    batch_of,
    by_hand,
    counted,
    equations,
    recorder,
)

# Transformations.


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _root(a, lanes):
    """sqrt(a) by Newton's method; the number of steps depends on a."""
    program = Program(
        init=lambda a: (jnp.maximum(a, jnp.ones_like(a)), jnp.asarray(False)),
        step=lambda a, y: ((y + a / y) / 2, jnp.abs(y - a / y) <= 1e-6 * y),
        finish=lambda a, y: y,
    )
    return run(program, a, lanes=lanes)


@_root.defjvp
def _(lanes, primals, tangents):
    y = _root(primals[0], lanes)
    return y, tangents[0] / (2 * y)


@pytest.mark.parametrize("lanes", [Refill(width=2), Refill(), Lockstep()], ids=str)
def test_derivatives_around_a_run(lanes, x64):
    root = partial(_root, lanes=lanes)
    a = jnp.asarray([0.3, 2.0, 5.0, 40.0, 1e4])

    def total(a):
        return jnp.sum(jnp.sin(jax.vmap(root)(a)))

    y = np.sqrt(np.asarray(a))
    first, second = 0.5 / y, -0.25 / y**3
    np.testing.assert_allclose(jax.vmap(root)(a), y, rtol=1e-11)
    np.testing.assert_allclose(jax.grad(total)(a), np.cos(y) * first, rtol=1e-10)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(root)))(a), first, rtol=1e-10)
    np.testing.assert_allclose(jax.jvp(jax.vmap(root), (a,), (a,))[1], a * first, rtol=1e-10)
    np.testing.assert_allclose(jax.jacfwd(jax.vmap(root))(a), np.diag(first), rtol=1e-10)
    np.testing.assert_allclose(jax.jacrev(jax.vmap(root))(a), np.diag(first), rtol=1e-10)
    hessian = np.diag(np.cos(y) * second - np.sin(y) * first**2)
    np.testing.assert_allclose(jax.hessian(total)(a), hessian, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(jax.vmap(jax.hessian(root))(a), second, rtol=1e-9)
    check_grads(jax.jit(jax.vmap(root)), (a[:4],), order=2, modes=("fwd", "rev"))


def test_the_run_itself_has_derivative_zero():
    """Captured arrays are stopped as the data are: nothing unrolls, nothing raises."""

    def loss(x, weight):
        program = Program(
            init=lambda d: (d, jnp.asarray(False)),
            step=lambda d, y: (weight * jnp.cos(y), jnp.abs(y) < 2.0),
            finish=lambda d, y: weight * y,
        )
        return run(program, x)

    for args in [(jnp.asarray(0.3), jnp.asarray(0.5))]:
        assert jax.grad(loss)(*args) == 0
        assert jax.grad(loss, 1)(*args) == 0
        assert jax.jvp(loss, args, args)[1] == 0
    many = jnp.linspace(0.0, 1.0, 12)
    mapped = jax.vmap(loss, (0, None))
    assert jnp.all(jax.jacrev(mapped, 1)(many, jnp.asarray(0.5)) == 0)
    assert jnp.all(jax.jacfwd(mapped)(many, jnp.asarray(0.5)) == 0)
    _, pullback = jax.vjp(lambda x: mapped(x, jnp.asarray(0.5)), many)
    assert jnp.all(pullback(jnp.ones(12))[0] == 0)


@pytest.mark.parametrize("lanes", [Refill(width=4), Refill(), Lockstep()], ids=str)
def test_scan(lanes):
    """A batch inside a scan, and a scan inside a batch."""
    data = {n: x.reshape(6, 10) for n, x in batch_of(60).items()}
    wanted = by_hand(data)
    batch = jax.vmap(counted(lanes))
    found = jax.jit(lambda data: lax.scan(lambda c, row: (c, batch(row)), 0, data)[1])(data)
    assert_equal(found, wanted)
    transposed = {n: x.T for n, x in data.items()}
    one = counted(lanes)
    scanned = jax.vmap(lambda data: lax.scan(lambda c, x: (c, one(x)), 0, data)[1])
    found = jax.jit(scanned)(transposed)
    assert_equal(found, {n: x.T for n, x in wanted.items()})


def test_lax_map_cond_checkpoint_and_eval_shape():
    data = batch_of(12)
    wanted = by_hand(data)
    call = counted(Refill(width=4))
    assert_equal(jax.jit(partial(lax.map, call))(data), wanted)
    assert_equal(lax.map(call, data, batch_size=5), wanted)
    assert_equal(jax.checkpoint(jax.vmap(call))(data), wanted)

    def either(flag, data):
        return lax.cond(flag, call, lambda d: {"steps": d["count"], "y": d["start"]}, data)

    flags = data["count"] > 2
    found = jax.jit(jax.vmap(either))(flags, data)
    np.testing.assert_array_equal(found["y"][~flags], data["start"][~flags])
    assert_equal({n: x[flags] for n, x in found.items()}, {n: x[flags] for n, x in wanted.items()})
    shape = jax.eval_shape(jax.vmap(call), data)
    assert shape["y"].shape == (12,) and shape["y"].dtype == jnp.float32


def test_new_data_does_not_retrace():
    traces = []
    call = counted(Refill(width=4), wrap=lambda data: traces.append(1) or data)
    fn = jax.jit(jax.vmap(call))
    fn(batch_of(30, seed=1))
    fn(batch_of(30, seed=2))
    assert len(traces) == 1


def test_same_bits_twice():
    data = batch_of(200)
    fn = jax.jit(jax.vmap(counted(Refill(width=16))))
    np.testing.assert_array_equal(fn(data)["y"], fn(data)["y"])


# Shared data, dead slots, nested loops.


@pytest.mark.parametrize("lanes", WIDTHS, ids=str)
def test_shared_data_is_never_broadcast(lanes):
    """Neither data nor captured arrays without a batch axis get one."""
    matrix, captured = jnp.eye(61) * 0.5, jnp.linspace(-1, 1, 59)

    def one(x, matrix, captured):
        program = Program(
            init=lambda d: (d[0], jnp.sum(captured) > 1e3),
            step=lambda d, y: (d[1] @ y + jnp.sum(captured), jnp.sum(jnp.abs(y)) < 1e-2),
            finish=lambda d, y: (d[1] @ y) * captured[0],
        )
        return run(program, (x, matrix), lanes=lanes)

    fn = jax.vmap(one, (0, None, None))
    data = jnp.linspace(0, 1, 23 * 61).reshape(23, 61)
    jaxpr = jax.make_jaxpr(fn)(data, matrix, captured).jaxpr
    shapes = {v.aval.shape for e in equations(jaxpr) for v in e.outvars if hasattr(v.aval, "shape")}
    assert not [s for s in shapes if len(s) > 1 and s[-1] == 59]
    assert not [s for s in shapes if len(s) > 2 and s[-2:] == (61, 61)]
    text = jax.jit(fn).lower(data, matrix, captured).compile().as_text()
    for slots in (1, 3, 8, 23):
        assert f"[{slots},61,61]" not in text and f"[{slots},59]" not in text


@pytest.mark.parametrize("lanes", [Refill(width=23), Lockstep()], ids=str)
def test_what_a_step_hands_on_is_never_copied(lanes):
    """A matrix of each lane's own that stays in the carry takes no part in a select."""

    def one(x, scale):
        program = Program(
            init=lambda d: ((d[0], d[1] * jnp.eye(61)), jnp.array(False)),
            step=lambda d, c: ((c[1] @ c[0], c[1]), jnp.sum(jnp.abs(c[0])) < 1e-2),
            finish=lambda d, c: c[0],
        )
        return run(program, (x, scale), lanes=lanes)

    fn = jax.vmap(one)
    data, scale = jnp.linspace(0, 1, 23 * 61).reshape(23, 61), jnp.linspace(0.1, 0.5, 23)
    found = equations(jax.make_jaxpr(fn)(data, scale).jaxpr)
    shapes = [e.outvars[0].aval.shape for e in found if e.primitive.name == "select_n"]
    assert (23, 61) in shapes
    assert (23, 61, 61) not in shapes
    alone = [one(x, a) for x, a in zip(data, scale, strict=True)]
    np.testing.assert_allclose(fn(data, scale), alone, rtol=1e-5)


@pytest.mark.parametrize("lanes", WIDTHS, ids=str)
@pytest.mark.parametrize("nested", [False, True])
def test_a_bad_lane_reaches_no_other(lanes, nested):
    """A lane that ends at NaN or Inf keeps its result, and the others have theirs. Where a step
    holds a loop, neither its state nor its data reach a step again (where it holds none, to take
    other ones would copy them at each step)."""
    seen = []

    def step(data, y):
        jax.debug.callback(lambda *x: seen.append([float(v) for v in x]), y, data["scale"])
        y = y * data["scale"]
        if nested:
            y = lax.while_loop(lambda y: jnp.abs(y) > 1e30, lambda y: y * jnp.inf - jnp.inf, y)
        return y, ~(jnp.abs(y) < 1e4)

    program = Program(
        init=lambda d: (d["start"], ~jnp.isfinite(d["start"]) | ~jnp.isfinite(d["scale"])),
        step=step,
        finish=lambda d, y: y,
    )
    start = jnp.asarray([1.0, jnp.nan, 2.0, jnp.inf, 3.0, 1.0, 5.0, 1.0, 1.0, 4.0, 7.0, 9.0])
    scale = jnp.asarray([2.0, 2.0, 1e38, 2.0, 1.5, jnp.nan, 4.0, 1e37, jnp.inf, 1.1, 1e38, 2.0])
    fn = jax.vmap(lambda start, scale: run(program, {"start": start, "scale": scale}, lanes=lanes))
    found = jax.jit(fn)(start, scale)
    jax.effects_barrier()
    wanted = []
    with np.errstate(all="ignore"):
        for y, a in zip(np.asarray(start), np.asarray(scale), strict=True):
            done = not (np.isfinite(y) and np.isfinite(a))
            while not done:
                y = y * a
                if nested and abs(y) > 1e30:
                    y = np.float32(np.nan)
                done = not abs(y) < 1e4
            wanted.append(y)
    np.testing.assert_allclose(found, np.asarray(wanted, np.float32), rtol=1e-5)
    assert seen
    states, data = np.isfinite(seen).T
    assert (np.all(states) and np.all(data)) or not nested


@pytest.mark.parametrize("lanes", [Refill(width=4), Refill(), Lockstep()], ids=str)
def test_loops_inside_a_step_do_not_go_on_for_dead_lanes(lanes):
    """A dead lane's inner loop would take 1000 passes; no live lane takes more than 2."""
    passes = []

    def step(data, carry):
        steps, y = carry
        inner = Program(
            init=lambda _: ((0, y), jnp.asarray(False)),
            step=lambda _, c: ((c[0] + 1, c[1] + 1), c[0] + 1 >= jnp.where(y > 10, 1000, 2)),
            finish=lambda _, c: c,
            measure=lambda c: c[1],
        )
        _, y = run(inner, (), progress=recorder(passes))
        y = jnp.where(steps + 1 >= data, 100.0, y)
        return (steps + 1, y), steps + 1 >= data

    program = Program(
        init=lambda d: ((0, 0.0), d <= 0),
        step=step,
        finish=lambda d, c: c[0],
        measure=lambda c: c[1],
    )
    counts = jnp.asarray([1, 2, 3, 1, 4, 1, 2, 3])
    outer = []
    fn = jax.vmap(lambda d: run(program, d, lanes=lanes, progress=recorder(outer)))
    np.testing.assert_array_equal(jax.jit(fn)(counts), counts)
    jax.effects_barrier()
    assert outer and len(passes) <= 2 * len(outer)


@pytest.mark.parametrize("outer", [Refill(width=4), Refill(), Lockstep()], ids=str)
@pytest.mark.parametrize("inner", [Refill(width=2), Refill(), Lockstep()], ids=str)
def test_a_run_inside_a_run(outer, inner):
    """x <- x / 2 + root(x), both by runs, batched twice."""

    def step(data, carry):
        steps, x = carry
        return (steps + 1, x / 2 + _root(x, inner)), steps + 1 >= data[0]

    program = Program(
        init=lambda d: ((0, d[1]), d[0] <= 0), step=step, finish=lambda d, c: _root(c[1], inner)
    )
    rng = np.random.default_rng(5)
    counts = rng.integers(0, 5, (3, 6))
    start = rng.uniform(0.1, 50, (3, 6)).astype(np.float32)
    fn = jax.vmap(jax.vmap(lambda c, x: run(program, (c, x), lanes=outer)))
    found = jax.jit(fn)(jnp.asarray(counts), jnp.asarray(start))
    wanted = np.float64(start)
    for k in range(5):
        wanted = np.where(k < counts, wanted / 2 + np.sqrt(wanted), wanted)
    np.testing.assert_allclose(found, np.sqrt(wanted), rtol=1e-5)
