"""The loop on eight devices: pmap, shard_map with and without the check of varying axes, meshes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxsolve.core.loop import Lockstep, Program, Refill, run
from tests.core.counted import SERVICES, assert_equal, batch_of, by_hand, counted

LANES = [Refill(width=2), Refill(), Lockstep()]
EXCHANGES = r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def _placed(data, mesh, spec):
    return jax.device_put(data, NamedSharding(mesh, spec))


def _split(fn, mesh, check_vma, in_specs=P("lanes")):
    return jax.shard_map(
        fn, mesh=mesh, in_specs=in_specs, out_specs=P("lanes"), check_vma=check_vma
    )


def _exchanges(fn, *args):
    """The kinds of communication in the compiled program."""
    return set(re.findall(EXCHANGES, jax.jit(fn).lower(*args).compile().as_text()))


@pytest.mark.parametrize("lanes", LANES, ids=str)
def test_pmap(lanes, devices):
    data = {n: x.reshape(8, 6) for n, x in batch_of(48).items()}
    found = jax.pmap(jax.vmap(counted(lanes)))(data)
    assert_equal(found, by_hand(data))
    one = {n: x[:, 0] for n, x in data.items()}
    assert_equal(jax.pmap(counted(lanes))(one), by_hand(one))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("lanes", LANES, ids=str)
@SERVICES
def test_shard_map(heavy, lanes, check_vma, auto_mesh):
    """Counters made from literals, shared data, and skipped lanes."""
    data = batch_of(48)
    shared = data | {"slope": jnp.asarray(0.3)}
    specs = {"count": P("lanes"), "start": P("lanes"), "slope": P("lanes")}
    for given, spec in [(data, specs), (shared, specs | {"slope": P()})]:
        axes = ({n: 0 if s else None for n, s in spec.items()},)
        inner = jax.vmap(counted(lanes, heavy=heavy), axes)
        fn = _split(inner, auto_mesh, check_vma, (spec,))
        assert_equal(jax.jit(fn)(given), by_hand(given))
    skip = jnp.arange(48) % 3 == 0
    fallback = {"steps": jnp.asarray(-1), "y": jnp.asarray(9.0)}

    def some(data, skip):
        return counted(lanes, heavy=heavy, unless=(skip, fallback))(data)

    fn = _split(jax.vmap(some), auto_mesh, check_vma)
    wanted = by_hand(data)
    wanted = {n: np.where(skip, x, wanted[n]) for n, x in [("steps", -1), ("y", 9.0)]}
    assert_equal(jax.jit(fn)(data, skip), wanted)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_of_one_lane_a_device(check_vma, auto_mesh):
    data = batch_of(8)

    def one(data):
        out = counted()({n: x[0] for n, x in data.items()})
        return {n: x[None] for n, x in out.items()}

    fn = _split(one, auto_mesh, check_vma)
    assert_equal(jax.jit(fn)(data), by_hand(data))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("lanes", LANES, ids=str)
@pytest.mark.parametrize("where", ["init", "step", "finish"])
def test_what_a_function_captures_may_vary_over_more_axes(where, lanes, check_vma, auto_mesh):
    """The data are the same on all devices; one captured array is not."""
    extra = jnp.arange(8.0) / 10

    def all_lanes(start, extra):
        extra = extra[0]
        add = {name: extra if name == where else 0.0 for name in ("init", "step", "finish")}
        program = Program(
            init=lambda x: ((0, x + add["init"]), jnp.asarray(False)),
            step=lambda x, c: ((c[0] + 1, jnp.cos(c[1]) + add["step"]), c[0] >= 4),
            finish=lambda x, c: c[1] + add["finish"],
        )
        return jax.vmap(lambda x: run(program, x, lanes=lanes))(start)[None]

    start = jnp.linspace(0, 1, 9)
    fn = _split(all_lanes, auto_mesh, check_vma, (P(), P("lanes")))
    found = jax.jit(fn)(start, extra)
    y, extra = np.float64(start)[None], np.float64(extra)[:, None]
    y = y + extra * (where == "init")
    for _ in range(5):
        y = np.cos(y) + extra * (where == "step")
    wanted = np.broadcast_to(y + extra * (where == "finish"), (8, 9))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@jax.custom_jvp
def _root(a):
    program = Program(
        init=lambda a: (jnp.maximum(a, jnp.ones_like(a)), jnp.asarray(False)),
        step=lambda a, y: ((y + a / y) / 2, jnp.abs(y - a / y) <= 1e-6 * y),
        finish=lambda a, y: y,
    )
    return run(program, a)


@_root.defjvp
def _(primals, tangents):
    y = _root(*primals)
    return y, tangents[0] / (2 * y)


@pytest.mark.parametrize("check_vma", [True, False])
def test_derivatives_in_shard_map(check_vma, auto_mesh):
    a = jnp.linspace(0.5, 90, 40)
    for fn, power, scale in [(jax.grad(_root), -0.5, 0.5), (jax.hessian(_root), -1.5, -0.25)]:
        sharded = _split(jax.vmap(fn), auto_mesh, check_vma)
        np.testing.assert_allclose(jax.jit(sharded)(a), scale * a**power, rtol=1e-5)
    whole = _split(jax.vmap(_root), auto_mesh, check_vma)
    gradient = jax.jit(jax.grad(lambda a: jnp.sum(whole(a))))(a)
    np.testing.assert_allclose(gradient, 0.5 * a**-0.5, rtol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_sum_over_devices_inside_a_step(check_vma, auto_mesh):
    """Collectives over a mesh axis are allowed where all devices take the same steps."""

    def mean(x):
        program = Program(
            init=lambda x: (jnp.zeros(()), jnp.asarray(False)),
            step=lambda x, m: (
                m + 0.5 * lax.pmean(jnp.mean(x) - m, "lanes"),
                jnp.abs(lax.pmean(jnp.mean(x) - m, "lanes")) < 1e-6,
            ),
            finish=lambda x, m: m,
        )
        return run(program, x)[None]

    x = jnp.arange(16.0)
    fn = _split(mean, auto_mesh, check_vma)
    np.testing.assert_allclose(jax.jit(fn)(x), np.full(8, 7.5), rtol=1e-5)


@pytest.mark.parametrize("in_context", [True, False])
@pytest.mark.parametrize("lanes", LANES, ids=str)
def test_explicit_mesh(lanes, in_context, mesh):
    """Each device serves its own lanes: no communication, and the result stays where it was."""
    data = batch_of(64)
    placed = _placed(data, mesh, P("lanes"))
    fn = jax.vmap(counted(lanes))
    if in_context:
        with jax.set_mesh(mesh):
            found, exchanges = jax.jit(fn)(placed), _exchanges(fn, placed)
    else:
        found, exchanges = jax.jit(fn)(placed), _exchanges(fn, placed)
    assert_equal(found, by_hand(data))
    assert found["y"].sharding.spec == P("lanes")
    assert not exchanges


@pytest.mark.parametrize("lanes", LANES, ids=str)
def test_explicit_mesh_shared_operands_and_two_vmaps(lanes, mesh):
    data = batch_of(64)
    data["slope"] = data["slope"][0]
    placed = _placed({n: data[n] for n in ("count", "start")}, mesh, P("lanes"))
    placed["slope"] = _placed(data["slope"], mesh, P())
    axes = {"count": 0, "start": 0, "slope": None}
    with jax.set_mesh(mesh):
        assert_equal(jax.jit(jax.vmap(counted(lanes), (axes,)))(placed), by_hand(data))
    grid = {n: x.reshape(8, 3) for n, x in batch_of(24).items()}
    placed = _placed(grid, mesh, P("lanes"))
    with jax.set_mesh(mesh):
        fn = jax.vmap(jax.vmap(counted(lanes)))
        assert_equal(jax.jit(fn)(placed), by_hand(grid))
        assert not _exchanges(fn, placed)


def test_explicit_mesh_of_two_axes(devices):
    mesh = jax.make_mesh((4, 2), ("a", "b"), devices=devices)
    data = batch_of(64)
    with jax.set_mesh(mesh):
        for spec in (P("a"), P(("a", "b"))):
            placed = _placed(data, mesh, spec)
            assert_equal(jax.jit(jax.vmap(counted(Refill(width=3))))(placed), by_hand(data))
        placed = _placed(data, mesh, P("a")) | {"slope": _placed(data["slope"], mesh, P("b"))}
        with pytest.raises(ValueError, match="sharded the same"):
            jax.jit(jax.vmap(counted()))(placed)


@pytest.mark.parametrize("lanes", LANES, ids=str)
def test_automatic_mesh(lanes, auto_mesh):
    """Right for all; in lockstep the stop test alone crosses devices."""
    data = batch_of(64)
    placed = _placed(data, auto_mesh, P("lanes"))
    fn = jax.vmap(counted(lanes))
    assert_equal(jax.jit(fn)(placed), by_hand(data))
    if isinstance(lanes, Lockstep):
        assert _exchanges(fn, placed) <= {"all-reduce"}


@pytest.mark.parametrize("where", ["init", "step", "finish"])
def test_collectives_over_the_batch_are_refused(where):
    def one(x):
        total = {
            name: (lambda y: lax.psum(y, "batch")) if name == where else (lambda y: y)
            for name in ("init", "step", "finish")
        }
        program = Program(
            init=lambda x: (total["init"](x), jnp.asarray(False)),
            step=lambda x, y: (total["step"](y), jnp.asarray(True)),
            finish=lambda x, y: total["finish"](y),
        )
        return run(program, x)

    with pytest.raises(TypeError, match=rf"`{where}` holds a collective over the vmapped axis"):
        jax.vmap(one, axis_name="batch")(jnp.arange(4.0))


def test_collectives_around_a_run():
    call = counted(Refill(width=2))

    def one(data):
        mean = lax.pmean(data["start"], "batch")
        out = call(data | {"start": data["start"] - mean})
        return out, lax.pmean(out["y"], "batch")

    data = batch_of(12)
    found, mean = jax.jit(jax.vmap(one, axis_name="batch"))(data)
    wanted = by_hand(data | {"start": data["start"] - jnp.mean(data["start"])})
    assert_equal(found, wanted)
    np.testing.assert_allclose(mean, np.full(12, wanted["y"].mean()), rtol=1e-5)


def test_new_data_on_a_mesh_does_not_retrace(mesh):
    traces = []
    fn = jax.jit(jax.vmap(counted(wrap=lambda data: traces.append(1) or data)))
    for seed in (1, 2):
        fn(_placed(batch_of(64, seed=seed), mesh, P("lanes")))
    assert len(traces) == 1


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_run_inside_a_run_in_shard_map(check_vma, auto_mesh):
    def one(x):
        program = Program(
            init=lambda x: ((0, x), jnp.asarray(False)),
            step=lambda x, c: ((c[0] + 1, _root(c[1] + 1)), c[0] >= x),
            finish=lambda x, c: c[1],
        )
        return run(program, x, lanes=Refill(width=3))

    x = jnp.asarray(np.random.default_rng(0).integers(0, 6, 64), jnp.float32)
    fn = _split(jax.vmap(one), auto_mesh, check_vma)
    wanted = np.float64(x)
    for k in range(7):
        wanted = np.where(k <= np.asarray(x), np.sqrt(wanted + 1), wanted)
    np.testing.assert_allclose(jax.jit(fn)(x), wanted, rtol=1e-5)
