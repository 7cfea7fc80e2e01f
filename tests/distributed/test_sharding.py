"""`sharded_vmap` on eight devices: equal to `vmap`, and nothing is exchanged."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsolve as js
from jaxsolve.core.loop import Lockstep, Refill
from jaxsolve.distributed import sharded_vmap
from tests.core.counted import assert_equal, batch_of, by_hand, counted

LANES = [Refill(width=3), Refill(), Lockstep()]


@pytest.fixture(params=["explicit", "automatic"])
def any_mesh(request, mesh, auto_mesh):
    return mesh if request.param == "explicit" else auto_mesh


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 61, 64])
def test_any_size(size, jit, any_mesh):
    data = batch_of(size)
    fn = sharded_vmap(counted(Refill(width=3)), any_mesh)
    found = (jax.jit(fn) if jit else fn)(data)
    assert found["y"].shape == (size,)
    assert_equal(found, by_hand(data))


@pytest.mark.parametrize("lanes", LANES, ids=str)
def test_no_communication(lanes, auto_mesh):
    data = batch_of(64)
    fn = jax.jit(sharded_vmap(counted(lanes), auto_mesh))
    sharding = jax.sharding.NamedSharding(auto_mesh, jax.sharding.PartitionSpec("lanes"))
    placed = jax.device_put(data, sharding)
    text = fn.lower(placed).compile().as_text()
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", text)
    found = fn(placed)
    assert_equal(found, by_hand(data))
    assert len({shard.device for shard in found["y"].addressable_shards}) == 8
    assert {shard.data.shape for shard in found["y"].addressable_shards} == {(8,)}


def test_axes(any_mesh):
    """Other axes than the first, shared arguments, trees of axes, captured arrays."""
    data = batch_of(21)
    table = jnp.stack([data["start"], jnp.zeros(21)])
    half = jnp.asarray(0.5)

    def one(pair, rest):
        return counted(Refill(width=2))(
            {"count": rest["count"], "start": pair[0], "slope": 2 * half * rest["slope"]}
        )

    rest = {"count": data["count"], "slope": jnp.asarray(0.25)}
    axes = (1, {"count": 0, "slope": None})
    found = jax.jit(sharded_vmap(one, any_mesh, in_axes=axes))(table, rest)
    assert_equal(found, by_hand(data | {"slope": rest["slope"]}))


def test_mesh_axes(devices):
    mesh = jax.make_mesh((4, 2), ("a", "b"), devices=devices)
    data = batch_of(30)
    for axis in (None, "a", "b", ("b", "a")):
        assert_equal(sharded_vmap(counted(), mesh, axis)(data), by_hand(data))
    with pytest.raises(ValueError, match="no axis"):
        sharded_vmap(counted(), mesh, "lanes")


def test_an_outer_vmap(auto_mesh):
    data = {n: x.reshape(3, 10) for n, x in batch_of(30).items()}
    fn = jax.jit(jax.vmap(sharded_vmap(counted(Refill(width=2)), auto_mesh)))
    assert_equal(fn(data), by_hand(data))


def test_bad_calls(mesh):
    fn = sharded_vmap(lambda x, y: x + y, mesh, in_axes=(0, 0))
    with pytest.raises(ValueError, match="sizes differ"):
        fn(jnp.ones(3), jnp.ones(4))
    with pytest.raises(ValueError, match="batch axis"):
        sharded_vmap(lambda x: x, mesh, in_axes=None)(jnp.ones(3))
    with pytest.raises(ValueError, match="2 entries for 1"):
        fn(jnp.ones(3))


def test_solve_and_its_derivative(any_mesh):
    """min |y - a|^2 + |y|^4 a lane: values and gradients as under `vmap`."""

    def one(a):
        problem = js.Minimise(lambda y, a: jnp.sum((y - a) ** 2) + jnp.sum(y**2) ** 2, a)
        return js.solve(problem, js.LBFGS(), jnp.zeros(2)).value

    a = jnp.asarray(np.random.default_rng(0).normal(size=(11, 2)), jnp.float32)
    sharded = sharded_vmap(one, any_mesh)
    np.testing.assert_allclose(jax.jit(sharded)(a), jax.vmap(one)(a), rtol=1e-4, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda a: jnp.sum(sharded(a) ** 2)))(a)
    wanted = jax.grad(lambda a: jnp.sum(jax.vmap(one)(a) ** 2))(a)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-3, atol=1e-4)
