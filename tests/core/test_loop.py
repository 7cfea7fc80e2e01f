"""The loop: a lane in a batch ends where it ends alone, and several vmaps are one queue."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsolve.core.loop import Lockstep, Program, Refill, run
from tests.core.counted import (
    SERVICES,
    WIDTHS,
    assert_equal,
    batch_of,
    by_hand,
    count_of,
    counted,
    equations_of,
    recorder,
)

# A lane in a batch ends where it ends alone.


@pytest.mark.parametrize("jit", [False, True])
def test_one_lane(jit, dtype, strict):
    run_one = jax.jit(counted()) if jit else counted()
    for count in (0, 1, 17):
        data = {
            "count": jnp.asarray(count),
            "start": jnp.asarray(0.3, dtype),
            "slope": jnp.asarray(0.5, dtype),
        }
        found = run_one(data)
        assert found["y"].dtype == dtype
        assert_equal(found, by_hand(data))


@pytest.mark.parametrize("lanes", WIDTHS, ids=str)
@pytest.mark.parametrize("size", [0, 1, 2, 7, 130, 300])
@SERVICES
def test_batch(heavy, size, lanes, dtype, strict):
    data = batch_of(size, dtype=dtype)
    found = jax.jit(jax.vmap(counted(lanes, heavy=heavy)))(data)
    assert found["y"].dtype == dtype and found["y"].shape == (size,)
    assert_equal(found, by_hand(data))


def test_batch_without_jit():
    data = batch_of(20)
    assert_equal(jax.vmap(counted(Refill(width=4)))(data), by_hand(data))


@pytest.mark.parametrize("lanes", WIDTHS, ids=str)
@SERVICES
def test_all_lanes_done_at_init(heavy, lanes):
    data = batch_of(50) | {"count": jnp.zeros(50, jnp.int32)}
    assert_equal(jax.jit(jax.vmap(counted(lanes, heavy=heavy)))(data), by_hand(data))


@pytest.mark.parametrize("lanes", WIDTHS, ids=str)
def test_batch_axes_other_than_the_first(lanes):
    data = batch_of(30)
    table = jnp.stack([data["start"], data["slope"]])

    def both(count, pair):
        return counted(lanes)({"count": count, "start": pair[0], "slope": pair[1]})

    found = jax.jit(jax.vmap(both, (0, 1), 0))(data["count"], table)
    assert_equal(found, by_hand(data))


@pytest.mark.parametrize("lanes", WIDTHS, ids=str)
def test_state_of_any_dtype(lanes, dtype, strict):
    """Keys, integers, booleans and half floats travel through the slots."""

    def init(data):
        key, count = data
        return (key, jnp.asarray(0, jnp.int8), jnp.asarray(True), jnp.asarray(0, jnp.bfloat16)), (
            count <= 0
        )

    def step(data, carry):
        key, steps, flag, half = carry
        key, _ = jax.random.split(key)
        steps = steps + jnp.int8(1)
        return (key, steps, ~flag, half + jnp.bfloat16(1)), steps >= data[1]

    def finish(data, carry):
        key, steps, flag, half = carry
        return key, jax.random.normal(key, dtype=dtype), steps, flag, half

    def one(data):
        return run(Program(init, step, finish), data, lanes=lanes)

    counts = jnp.asarray(np.random.default_rng(1).integers(0, 9, 25), jnp.int8)
    keys = jax.random.split(jax.random.key(3), 25)
    batched = jax.jit(jax.vmap(one))((keys, counts))
    single = jax.jit(one)
    alone = [single((keys[i], counts[i])) for i in range(25)]
    for position, leaf in enumerate(batched):
        wanted = jnp.stack([lane[position] for lane in alone])
        assert leaf.dtype == wanted.dtype
        if position == 0:
            leaf, wanted = jax.random.key_data(leaf), jax.random.key_data(wanted)
        np.testing.assert_array_equal(leaf, wanted)


@pytest.mark.parametrize("lanes", WIDTHS, ids=str)
def test_captured_tracers(lanes):
    """Functions may close over traced arrays, batched or shared, under each vmap."""
    data = batch_of(40)
    shared = jnp.asarray(0.7)

    def one(start, slope, count, shared):
        program = Program(
            init=lambda _: ((jnp.zeros_like(count), jnp.sin(start)), count <= 0),
            step=lambda _, c: (
                (c[0] + 1, jnp.cos(c[1]) + shared * slope * c[1] / 4),
                c[0] + 1 >= count,
            ),
            finish=lambda _, c: {"steps": c[0], "y": jnp.arctan(c[1]) * shared / shared},
        )
        return run(program, (), lanes=lanes)

    call = jax.jit(jax.vmap(one, (0, 0, 0, None)))
    found = call(data["start"], data["slope"], data["count"], shared)
    assert_equal(found, by_hand(data | {"slope": shared * data["slope"]}))


# Lanes that are never started.


@pytest.mark.parametrize("lanes", WIDTHS, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@SERVICES
def test_skipped_lanes(heavy, lanes, share):
    data = batch_of(60)
    skip = jnp.asarray(np.random.default_rng(2).random(60) < share)
    started = []

    def one(data, skip, number):
        fallback = {"steps": -number, "y": jnp.asarray(9.0)}

        def start(x):
            return jnp.sin(x) + (0 * jnp.sum(jnp.full(100, x)) if heavy else 0)

        def record(data):
            jax.debug.callback(lambda n: started.append(int(n)), number)
            return data["start"]

        program = Program(
            init=lambda data: ((0, start(record(data))), data["count"] <= 0),
            step=lambda data, c: (
                (c[0] + 1, jnp.cos(c[1]) + data["slope"] * c[1] / 4),
                c[0] + 1 >= data["count"],
            ),
            finish=lambda data, c: {"steps": c[0], "y": jnp.arctan(c[1])},
        )
        return run(program, data, lanes=lanes, unless=(skip, fallback))

    found = jax.jit(jax.vmap(one))(data, skip, jnp.arange(60))
    jax.effects_barrier()
    wanted = by_hand(data)
    wanted["steps"] = np.where(skip, -np.arange(60), wanted["steps"])
    wanted["y"] = np.where(skip, 9.0, wanted["y"])
    assert_equal(found, wanted)
    if isinstance(lanes, Refill) and lanes.width is not None:
        assert set(started) == set(np.flatnonzero(~np.asarray(skip)).tolist())
    if share == 1.0:
        assert not started


def test_skip_one_lane_and_a_whole_batch_at_once():
    fallback = {"steps": jnp.asarray(-1), "y": jnp.asarray(9.0)}
    one = {"count": jnp.asarray(3), "start": jnp.asarray(0.1), "slope": jnp.asarray(0.2)}
    for skip in (False, True):
        call = counted(Refill(width=4), unless=(jnp.asarray(skip), fallback))
        wanted = {"steps": np.asarray(-1), "y": np.asarray(9.0)}
        assert_equal(jax.jit(call)(one), wanted if skip else by_hand(one))
        batch = batch_of(9)
        full = {n: np.full(9, x) for n, x in wanted.items()}
        found = jax.jit(jax.vmap(call))(batch)
        assert_equal(found, full if skip else by_hand(batch))


# Several vmaps are one queue.


def _nested_data():
    rng = np.random.default_rng(4)
    return {
        "count": jnp.asarray(rng.integers(0, 12, (5, 1, 7)), jnp.int32),
        "start": jnp.asarray(rng.normal(size=(1, 4, 7)), jnp.float32),
        "slope": jnp.asarray(rng.uniform(-1, 1, (5, 1, 1)), jnp.float32),
    }


@pytest.mark.parametrize("lanes", WIDTHS, ids=str)
@pytest.mark.parametrize("jit", [False, True])
@SERVICES
def test_two_and_three_axes(heavy, lanes, jit):
    """Each operand has its own subset of the batch axes."""
    data = _nested_data()
    wanted = by_hand(data)

    def split(count, start, slope):
        data = {"count": count, "start": start, "slope": slope}
        return counted(lanes, heavy=heavy)(data)

    outer = jax.vmap(split, (0, 0, None))  # the last axis: count, start
    middle = jax.vmap(outer, (None, 0, None))  # start alone
    whole = jax.vmap(middle, (0, None, 0))  # count and slope
    whole = jax.jit(whole) if jit else whole
    found = whole(data["count"][:, 0], data["start"][0], data["slope"][:, 0, 0])
    assert_equal(found, wanted)
    two = middle(data["count"][2, 0], data["start"][0], data["slope"][2, 0, 0])
    assert_equal(two, {n: x[2] for n, x in wanted.items()})


def test_axes_join_in_one_queue():
    """The program does not grow with the number of vmaps, nor with the batch."""
    one = batch_of(64)
    call = counted(Refill(width=4))
    flat = jax.vmap(call)
    grid = jax.vmap(flat)
    cube = jax.vmap(grid)
    shapes = [(flat, (64,)), (grid, (8, 8)), (cube, (4, 4, 4))]
    for name in ("while", "sin", "cos", "atan", "ge"):
        counts = {
            count_of(fn, name, {n: x.reshape(shape) for n, x in one.items()})
            for fn, shape in shapes
        }
        assert len(counts) == 1, (name, counts)
    assert count_of(cube, "while", {n: x.reshape(4, 4, 4) for n, x in one.items()}) == 2


@pytest.mark.parametrize("lanes", [Refill(width=8), Refill(), Lockstep()], ids=str)
@pytest.mark.parametrize("size", [1, 5, 4096])
def test_one_copy_of_each_function(lanes, size):
    """init (sin), step (cos), its stop test (tan) and finish (atan) are compiled once."""
    program = Program(
        init=lambda x: (jnp.sin(x), jnp.isnan(x)),
        step=lambda x, y: (jnp.cos(y), jnp.tan(y) <= x),
        finish=lambda x, y: jnp.arctan(y),
    )
    fn = jax.vmap(lambda x: run(program, x, lanes=lanes))
    data = jnp.linspace(0.5, 0.7, size)
    for name in ("sin", "cos", "atan", "tan"):
        assert count_of(fn, name, data) == 1, name
    text = jax.jit(fn).lower(data).as_text()
    for name in ("sine", "cosine"):
        assert text.count(f"stablehlo.{name} ") == 1, name


def test_a_batch_that_fits_has_no_queue():
    data = batch_of(16)
    assert count_of(jax.vmap(counted(Refill(width=16))), "while", data) == 1
    assert count_of(jax.vmap(counted(Refill(width=15))), "while", data) == 2


def test_services_by_the_work_of_a_start():
    """Where `init` is light, each service starts as many lanes as there are slots."""
    data = batch_of(64)
    for heavy, rows in ((False, 16), (True, 4)):
        fn = jax.vmap(counted(Refill(width=16), heavy=heavy))
        assert {e.outvars[0].aval.shape for e in equations_of(fn, "sin", data)} == {(rows,)}


def test_light_steps_need_no_queue():
    """Up to 1024 lanes are stepped together."""
    data = batch_of(1024)
    light = jax.vmap(counted(light=True))
    assert count_of(light, "while", data) == 1
    assert_equal(light(data), by_hand(data))
    if jax.default_backend() == "cpu":
        assert count_of(jax.vmap(counted()), "while", data) == 2
        assert count_of(light, "while", batch_of(1025)) == 2


def test_equal_slots():
    """130 lanes are not served as 128 and then 2: rounds are of equal size."""
    data = {"count": jnp.full(130, 9), "start": jnp.ones(130), "slope": jnp.ones(130)}
    counter = _steps_of(Refill(width=128), data)
    assert counter == 2 * 9


def _steps_of(lanes, data):
    """How often the loop steps its slots."""
    calls = []
    run_all = jax.vmap(counted(lanes, progress=recorder(calls)))
    jax.block_until_ready(jax.jit(run_all)(data))
    jax.effects_barrier()
    return len(calls)
