"""Progress: called from the loop's body, once a step for a whole batch; off, nothing is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsolve.core.loop import Lockstep, Program, Refill, run
from jaxsolve.core.progress import Bar, Table, as_progress
from tests.core.counted import batch_of, count_of, counted, recorder

LANES = [Refill(width=2), Refill(), Lockstep()]


def _left(count, lanes=Refill(), progress=None):
    """A run of `count` steps whose measure is the number of steps left."""
    program = Program(
        init=lambda n: (n, n <= 0),
        step=lambda n, left: (left - 1, left <= 1),
        finish=lambda n, left: left,
        measure=lambda left: left.astype(jnp.float32),
    )
    return run(program, count, lanes=lanes, progress=progress)


def test_one_lane():
    calls = []
    jax.block_until_ready(jax.jit(lambda n: _left(n, progress=recorder(calls)))(3))
    jax.effects_barrier()
    assert calls == [(1, 2.0, 1, 1), (2, 1.0, 1, 1), (3, 0.0, 0, 1)]


@pytest.mark.parametrize("jit", [True, False])
def test_lanes_together(jit):
    """One report a step: the worst of the lanes that were stepped, and the lanes left."""
    calls = []
    fn = jax.vmap(lambda n: _left(n, Refill(width=8), recorder(calls)))
    fn = jax.jit(fn) if jit else fn
    jax.block_until_ready(fn(jnp.asarray([2, 0, 4, 1])))
    jax.effects_barrier()
    assert calls == [(1, 3.0, 2, 4), (2, 2.0, 1, 4), (3, 1.0, 1, 4), (4, 0.0, 0, 4)]


@pytest.mark.parametrize("lanes", LANES, ids=str)
def test_queue_counts_waiting_lanes(lanes):
    calls = []
    counts = np.random.default_rng(0).integers(0, 9, 40)
    fn = jax.vmap(jax.vmap(lambda n: _left(n, lanes, recorder(calls))))
    jax.block_until_ready(jax.jit(fn)(jnp.asarray(counts.reshape(4, 10))))
    jax.effects_barrier()
    steps, worst, left, size = zip(*calls, strict=True)
    assert list(steps) == list(range(1, len(steps) + 1))
    assert set(size) == {40} and left[-1] == 0 and list(left) == sorted(left, reverse=True)
    assert 0 <= min(worst) and max(worst) == counts.max() - 1
    assert len(steps) >= counts.max()


def test_skipped_lanes_are_not_left():
    calls = []
    counts, skip = jnp.full(12, 3), jnp.arange(12) < 10

    def one(n, skip):
        program = Program(
            init=lambda n: (n, n <= 0),
            step=lambda n, left: (left - 1, left <= 1),
            finish=lambda n, left: left,
            measure=lambda left: left.astype(jnp.float32),
        )
        unless = (skip, jnp.asarray(-1))
        return run(program, n, lanes=Refill(width=4), unless=unless, progress=recorder(calls))

    jax.block_until_ready(jax.jit(jax.vmap(one))(counts, skip))
    jax.effects_barrier()
    assert [call[2] for call in calls] == [2, 2, 0]


@pytest.mark.parametrize("lanes", LANES, ids=str)
def test_off_leaves_no_callback(lanes):
    data = batch_of(20)
    calls = []
    for name in ("debug_callback", "pure_callback", "io_callback"):
        assert count_of(jax.vmap(counted(lanes)), name, data) == 0
    shown = jax.vmap(counted(lanes, progress=recorder(calls)))
    assert count_of(shown, "debug_callback", data) == 1
    jaxpr = jax.make_jaxpr(jax.vmap(counted(lanes)))(data)
    assert not jaxpr.effects


def test_survives_derivatives_and_shard_map(auto_mesh):
    calls = []

    @jax.custom_jvp
    def root(a):
        program = Program(
            init=lambda a: ((jnp.maximum(a, 1.0), jnp.inf), jnp.asarray(False)),
            step=lambda a, c: (((c[0] + a / c[0]) / 2, jnp.abs(c[0] - a / c[0])), c[1] < 1e-5),
            finish=lambda a, c: c[0],
            measure=lambda c: c[1],
        )
        return run(program, a, progress=recorder(calls))

    @root.defjvp
    def _(primals, tangents):
        y = root(*primals)
        return y, tangents[0] / (2 * y)

    a = jnp.linspace(0.5, 9, 16)
    gradient = jax.jit(jax.vmap(jax.grad(root)))(a)
    np.testing.assert_allclose(gradient, 0.5 / np.sqrt(a), rtol=1e-5)
    jax.effects_barrier()
    assert calls[0][0] == 1 and calls[-1][2] == 0 and calls[0][3] == 16
    calls.clear()
    spec = jax.sharding.PartitionSpec("lanes")
    for check in (True, False):
        fn = jax.shard_map(
            jax.vmap(root), mesh=auto_mesh, in_specs=spec, out_specs=spec, check_vma=check
        )
        np.testing.assert_allclose(jax.jit(fn)(a), np.sqrt(a), rtol=1e-5)
        jax.effects_barrier()
    # A loop, and its reports, on each device.
    assert sum(call[0] == 1 for call in calls) == 16 and {call[3] for call in calls} == {2}


def test_what_a_callback_raises_ends_the_run():
    """The way to stop a long run: a run that would never end on its own."""
    seen = []

    def stop(step, worst, left, lanes):
        seen.append(step)
        if step == 5:
            raise KeyboardInterrupt("enough")

    program = Program(
        init=lambda x: (x, jnp.asarray(False)),
        step=lambda x, y: (jnp.cos(y), jnp.isnan(y)),
        finish=lambda x, y: y,
        measure=lambda y: y,
    )
    fn = jax.jit(jax.vmap(lambda x: run(program, x, progress=as_progress(stop))))
    with pytest.raises(jax.errors.JaxRuntimeError, match="enough"):
        jax.block_until_ready(fn(jnp.ones(3)))
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("progress", [Bar(), Table()])
def test_printed(progress, capsys):
    jax.block_until_ready(
        jax.jit(jax.vmap(lambda n: _left(n, progress=progress)))(jnp.asarray([2, 3]))
    )
    jax.effects_barrier()
    out, err = capsys.readouterr()
    assert not out
    if isinstance(progress, Bar):
        assert err.startswith(
            "\r[....................] step 1, 2 of 2 left, worst residual 2.0e+00"
        )
        assert err.endswith(
            "\r[####################] step 3, 0 of 2 left, worst residual 0.0e+00 \n"
        )
    else:
        rows = [line.split() for line in err.splitlines()]
        assert rows[0] == ["step", "left", "worst", "residual"]
        assert [row[:2] for row in rows[1:]] == [["1", "2"], ["2", "1"], ["3", "0"]]


def test_the_setting():
    assert as_progress(False) is None and as_progress(None) is None
    assert as_progress(True) is as_progress(True)
    assert isinstance(as_progress(True), Bar) and isinstance(as_progress("table"), Table)
    assert as_progress(print) == as_progress(print)
    with pytest.raises(TypeError, match="verbose"):
        as_progress("bar")
    with pytest.raises(TypeError, match="measure"):
        program = Program(lambda x: (x, x > 0), lambda x, y: (y, y > 0), lambda x, y: y)
        run(program, jnp.ones(()), progress=as_progress(True))
