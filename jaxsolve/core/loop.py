"""The only convergence loop of the library, and what it does with a batch.

Under plain `vmap` a while loop steps every lane until the slowest is done. `run` is a
`custom_vmap` instead, whose rule adds the new axis to one queue of lanes (`queue.py`): vmap of vmap
of vmap is one queue with one copy of each function in it. Nothing here is differentiated: the
adjoints attach derivatives to the result.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, PyTree

from .batch import AbstractLanes, Batch, Lockstep, Refill
from .mesh import vary, varying
from .program import Program, Traced, has_loop, retrace, trace
from .progress import AbstractProgress
from .queue import queue, together

__all__ = ["AbstractLanes", "Lockstep", "Program", "Refill", "has_loop", "run"]


def run(
    program: Program,
    data: PyTree[Array],
    *,
    lanes: AbstractLanes = Refill(),
    unless: tuple[Bool[Array, ""], PyTree[Array]] | None = None,
    progress: AbstractProgress | None = None,
) -> PyTree[Array]:
    """Run a program to its end; under vmap, lane by lane through a queue.

    Args:
        program: functions of one lane; they may close over arrays, traced ones included.
        data: what the lane works on. Leaves without a batch axis are shared, never broadcast.
        lanes: what happens to a batch.
        unless: `(skip, result)`: a lane whose `skip` holds returns `result` and is never started.
        progress: called from the loop's body, once for the whole batch; needs `program.measure`.

    Returns:
        What `finish` returns. Its derivative is zero: data and captured arrays are stopped.

    Raises:
        TypeError: the carry changes its structure, shapes or dtypes; a collective over a vmapped
            axis; `unless` has another structure than the result.
    """
    data = jax.tree.map(lambda x: lax.stop_gradient(jnp.asarray(x)), data)
    traced, data, consts = trace(program, data)
    if progress is not None and traced.measure is None:
        raise TypeError("`progress` needs a program with a `measure`.")
    if unless is not None:
        _check_unless(unless[1], traced.result)
    operands, tree = jax.tree.flatten((data, consts, unless))
    operands = [lax.stop_gradient(jnp.asarray(x)) for x in operands]
    call = _Call(traced, tree, lanes, progress, lambda: retrace(program, data, consts))
    return _lanes(call, (), ((),) * len(operands))(*operands)


class _Call(NamedTuple):
    program: Traced
    tree: Any
    lanes: AbstractLanes
    progress: AbstractProgress | None
    retrace: Callable[[], Traced]


def _check_unless(given: PyTree, result: PyTree) -> None:
    types = [jax.tree.map(lambda x: (jnp.shape(x), x.dtype), tree) for tree in (given, result)]
    if types[0] != types[1]:
        raise TypeError(f"`unless` gives {types[0]} where the program returns {types[1]}.")


def _lanes(call: _Call, sizes: tuple[int, ...], axes: tuple[tuple[bool, ...], ...]):
    """`call` over the batch axes `sizes`; `axes[i]` says which of them operand i has."""

    @custom_vmap
    def over(*operands):
        if not sizes:
            return _alone(call, operands)
        batch = Batch(call, sizes, axes, operands)
        fits = batch.width >= batch.size
        flat = together(batch) if fits or isinstance(call.lanes, Lockstep) else queue(batch)
        return jax.tree.map(lambda x: x.reshape(*sizes, *x.shape[1:]), flat)

    @over.def_vmap
    def rule(axis_size, in_batched, *operands):
        out = _map(call, axis_size, sizes, axes, in_batched, operands)
        return out, jax.tree.map(lambda _: True, out)

    return over


def _alone(call: _Call, operands):
    """One lane: a plain loop."""
    program, progress = call.program, call.progress
    data, consts, unless = jax.tree.unflatten(call.tree, operands)

    def solve(data, consts):
        def body(loop):
            carry, _, count = loop
            carry, done = program.step(consts, data, carry)
            if progress is not None and program.measure is not None:
                count = count + 1
                left = jnp.where(done, 0, 1)
                progress.report(count, program.measure(consts, carry), left, 1)
            return carry, done, count

        carry, done = program.init(consts, data)
        count = None if progress is None else vary(jnp.zeros((), jnp.int32), varying(done))
        carry, _, _ = lax.while_loop(lambda loop: ~loop[1], body, (carry, done, count))
        return program.finish(consts, data, carry)

    if unless is None:
        return solve(data, consts)
    skip, result = unless
    axes = varying(operands) | program.axes
    return lax.cond(vary(skip, axes), lambda *_: vary(result, axes), solve, data, consts)


def _map(call: _Call, size: int, sizes: tuple[int, ...], axes, in_batched, operands):
    """One more batch axis. A batch sharded by explicit mesh axes keeps each lane on its device."""
    inner = tuple((new, *old) for new, old in zip(in_batched, axes, strict=True))
    split = _sharding(in_batched, operands)
    if split is None:
        return _lanes(call, (size, *sizes), inner)(*operands)
    mesh, names = split
    specs = [PartitionSpec(names) if b else PartitionSpec() for b in in_batched]
    operands = [
        jax.sharding.reshard(x, NamedSharding(mesh, spec))
        for x, spec in zip(operands, specs, strict=True)
    ]
    each = size // math.prod(mesh.shape[name] for name in names)
    local = _lanes(call._replace(program=call.retrace()), (each, *sizes), inner)
    out = PartitionSpec(names)
    fn = jax.shard_map(local, mesh=mesh, in_specs=tuple(specs), out_specs=out, check_vma=False)
    return fn(*operands)


def _sharding(in_batched, operands) -> tuple[Any, tuple[str, ...]] | None:
    """The mesh, and its axes over which the batch is sharded, as the types of the operands say."""
    for x, batched in zip(operands, in_batched, strict=True):
        sharding = jax.typeof(x).sharding
        # `vmap` has seen to it that all batched operands are sharded the same.
        if batched and len(sharding.spec) > 0 and sharding.spec[0] is not None:
            names = sharding.spec[0]
            return sharding.mesh, names if isinstance(names, tuple) else (names,)
    return None
