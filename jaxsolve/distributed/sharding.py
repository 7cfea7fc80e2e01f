"""Lanes over devices: `sharded_vmap`, a `vmap` with a queue of lanes on each device.

A batch that is sharded by automatic axes outside of `shard_map` hides its sharding from the loop,
and one queue over all devices would exchange lanes between them at each service. Inside a
`shard_map` each device serves its own lanes, and nothing is exchanged.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


def sharded_vmap(
    fn: Callable,
    mesh: Mesh,
    axis: str | tuple[str, ...] | None = None,
    in_axes: int | None | tuple[Any, ...] = 0,
) -> Callable:
    """`jax.vmap(fn, in_axes)` with its lanes spread over the devices of `mesh`.

    A batch that the devices do not divide is padded with its last lane, and the results of the
    padding are dropped. Results have their batch axis first and are sharded over `axis` where the
    devices divide the batch. May be jitted, differentiated, and mapped again by an outer `vmap`.

    >>> import jax, jax.numpy as jnp
    >>> from jaxsolve.distributed import sharded_vmap
    >>> mesh = jax.make_mesh((jax.device_count(),), ("lanes",))
    >>> sharded_vmap(lambda x, a: a * x, mesh, in_axes=(0, None))(jnp.arange(3.0), 2.0)
    Array([0., 2., 4.], dtype=float32)

    Args:
        fn: a function of one lane; it may close over arrays, the same for all lanes.
        mesh: the devices.
        axis: the mesh axes over which the lanes are spread; `None`: all of the mesh.
        in_axes: as in `jax.vmap`: an integer, or `None` for what all lanes share; one for all
            arguments or one each, trees of them included.

    Raises:
        ValueError: `axis` is not in the mesh, no argument has a batch axis, or their sizes differ.
    """
    names = tuple(mesh.axis_names) if axis is None else axis
    names = (names,) if isinstance(names, str) else tuple(names)
    unknown = [name for name in names if name not in mesh.axis_names]
    if unknown:
        raise ValueError(f"The mesh has no axis {unknown}; it has {list(mesh.axis_names)}.")
    devices = math.prod(mesh.shape[name] for name in names)
    lanes, shared = PartitionSpec(names), PartitionSpec()

    def mapped(*args: PyTree[Array]) -> PyTree[Array]:
        leaves, tree = jax.tree.flatten(args)
        axes = _flat_axes(in_axes, args)
        leaves = [_leading(x, a) for x, a in zip(leaves, axes, strict=True)]
        batched = [a is not None for a in axes]
        size = _size(leaves, batched, args)
        extra = -size % devices if size else 0
        if extra:
            leaves = [
                jnp.concatenate([x, jnp.repeat(x[-1:], extra, axis=0)]) if b else x
                for x, b in zip(leaves, batched, strict=True)
            ]
        specs = tuple(lanes if b else shared for b in batched)

        def local(*leaves: Array) -> PyTree[Array]:
            inner = tuple(0 if b else None for b in batched)
            one = lambda *row: fn(*jax.tree.unflatten(tree, row))
            return jax.vmap(one, inner)(*leaves)

        if size == 0:
            return local(*leaves)
        where = _in_context(mesh, leaves)
        leaves = [_placed(x, where, spec) for x, spec in zip(leaves, specs, strict=True)]
        out = jax.shard_map(local, mesh=where, in_specs=specs, out_specs=lanes)(*leaves)
        return _first(out, size, where) if extra else out

    return mapped


def _flat_axes(in_axes: Any, args: tuple) -> list[int | None]:
    """An axis, or `None`, for each leaf of the arguments; `in_axes` is a prefix of their tree."""
    if isinstance(in_axes, list):
        in_axes = tuple(in_axes)
    if not isinstance(in_axes, tuple):
        in_axes = (in_axes,) * len(args)
    if len(in_axes) != len(args):
        raise ValueError(f"`in_axes` has {len(in_axes)} entries for {len(args)} arguments.")
    flat: list[int | None] = []

    def spread(axis: int | None, part: PyTree) -> None:
        flat.extend([axis] * len(jax.tree.leaves(part)))

    for axis, arg in zip(in_axes, args, strict=True):
        if axis is None or isinstance(axis, int):
            spread(axis, arg)
        else:
            jax.tree.map(spread, axis, arg, is_leaf=lambda x: x is None)
    return flat


def _leading(x: Any, axis: int | None) -> Array:
    x = jnp.asarray(x)
    return x if axis is None or axis == 0 else jnp.moveaxis(x, axis, 0)


def _size(leaves: list[Array], batched: list[bool], args: tuple) -> int:
    sizes = [x.shape[0] for x, b in zip(leaves, batched, strict=True) if b]
    if not sizes:
        raise ValueError("`sharded_vmap` needs at least one argument with a batch axis.")
    if len(set(sizes)) > 1:
        shapes = jax.tree.map(jnp.shape, args)
        raise ValueError(f"Batch sizes differ: {sizes}, in arguments of shapes {shapes}.")
    return sizes[0]


def _in_context(mesh: Mesh, leaves: list[Array]) -> Mesh:
    """The mesh, its axes automatic unless explicit ones are in use: in a mesh context or a type."""
    used = not jax.sharding.get_abstract_mesh().empty
    used = used or any(not jax.typeof(x).sharding.mesh.empty for x in leaves)
    if used or AxisType.Explicit not in mesh.axis_types:
        return mesh
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def _placed(x: Array, mesh: Mesh, spec: PartitionSpec) -> Array:
    """The array where its lanes are solved: eagerly by a transfer, in traced code by its type."""
    if not isinstance(x, jax.core.Tracer):
        return jax.device_put(x, NamedSharding(mesh, spec))
    if AxisType.Explicit in mesh.axis_types:
        return jax.sharding.reshard(x, NamedSharding(mesh, spec))
    return x


def _first(tree: PyTree[Array], size: int, mesh: Mesh) -> PyTree[Array]:
    """The first `size` rows; no longer sharded, since the devices do not divide them."""
    if AxisType.Explicit in mesh.axis_types:
        everywhere = NamedSharding(mesh, PartitionSpec())
        tree = jax.tree.map(lambda x: jax.sharding.reshard(x, everywhere), tree)
    return jax.tree.map(lambda x: x[:size], tree)
