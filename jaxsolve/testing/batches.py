"""Checks of point 6, and of the bad lanes of point 7: a lane alone, in a batch, on a device."""

import jax
import jax.numpy as jnp
import numpy as np

from .case import LANES, Case
from .compare import precision, same, stacked


def transforms(case: Case, dtype: str) -> None:
    """6. vmap, vmap of vmap, scan, eval_shape: as each lane alone, with bad lanes among them."""
    with precision(dtype):
        batch = case.batch(dtype)
        alone = stacked(case.lane, batch)
        folded = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batch)
        twice = jax.jit(jax.vmap(jax.vmap(case.outcome)))(folded)
        twice = jax.tree.map(lambda x: x.reshape(LANES, *x.shape[2:]), twice)
        same(case, dtype, twice, alone, "vmap of vmap")
        scanned = jax.jit(lambda b: jax.lax.scan(lambda c, x: (c, case.outcome(x)), 0, b)[1])(batch)
        same(case, dtype, scanned, alone, "scan")
        shapes = jax.eval_shape(jax.vmap(case.outcome), batch)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
            lambda x: (x.shape, x.dtype), scanned
        )


def devices(case: Case, dtype: str) -> None:
    """6. pmap, and shard_map with and without check_vma, values and derivatives, over the devices
    there are (at most eight)."""
    with precision(dtype):
        batch = case.batch(dtype)
        alone = stacked(case.gradient, batch)
        count = max(n for n in (1, 2, 4, 8) if n <= jax.device_count())
        folded = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
        mapped = jax.pmap(jax.vmap(case.outcome), devices=jax.devices()[:count])(folded)
        mapped = jax.tree.map(lambda x: np.asarray(x).reshape(LANES, *x.shape[2:]), mapped)
        same(case, dtype, mapped, alone, "pmap")
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((count,), ("lane",), axis_types=auto, devices=jax.devices()[:count])
        spec = jax.sharding.PartitionSpec("lane")
        each = jax.vmap(case.differentiated)
        for check in (True, False):
            sharded = jax.shard_map(each, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check)
            same(case, dtype, jax.jit(sharded)(batch), alone, f"shard_map(check_vma={check})")


def bad_lanes(case: Case, dtype: str) -> None:
    """6, 7. Values, results and derivatives of a lane in a mixed batch are those of the lane alone;
    a failed lane's derivative is NaN, and raises nothing; masked lanes leave the gradient of what
    the lanes share finite."""
    with precision(dtype):
        batch = case.batch(dtype)
        alone = stacked(case.gradient, batch)
        same(case, dtype, case.gradients(batch), alone, "vmap of grad")

        def masked(shift):
            def one(data):
                out = case.solution(jax.tree.map(lambda x: x + shift, data))
                total = sum(jnp.sum(x) for x in jax.tree.leaves(out.value))
                return jnp.where(out.success, total, jnp.zeros_like(total))

            return jnp.sum(jax.vmap(one)(batch))

        assert np.isfinite(jax.jit(jax.grad(masked))(jnp.zeros((), dtype)))
