"""The only convergence loop of the library, and what it does with a batch.

Under plain `vmap` a while loop steps every lane until the slowest is done. `run` is a
`custom_vmap` instead: a batch becomes a serving queue. A buffer of W slots is stepped; a lane that
finishes waits in its slot until a quarter of the slots is free, then those lanes are finished and
written back and waiting lanes take their place. `init`, `step` and `finish` are compiled once each,
whatever the batch, and the working set is W lanes wide.

    while lanes are left:                     one pass of the outer loop
        finish and write back R slots         R = W / 4
        init R waiting lanes in their place
        while fewer than R slots are free:    the inner loop
            step the W slots

Each further vmap adds its axis to the same queue. Nothing here is differentiated: the adjoints
attach derivatives to the result.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.extend.core as jec
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, PyTree

from .mesh import vary, varying
from .progress import AbstractProgress


class AbstractLanes(eqx.Module):
    """What happens to a batch."""


class Refill(AbstractLanes):
    """A serving queue of `width` slots; `None` chooses it from a lane's bytes and the platform."""

    width: int | None = None


class Lockstep(AbstractLanes):
    """Every lane is stepped until the last is done, as plain `vmap` does.

    For batches sharded over devices by automatic axes, where a queue would gather across devices.
    """


class Program(NamedTuple):
    """One lane's work, from its data to its result.

    Attributes:
        init: data -> (carry, done)
        step: data, carry -> (carry, done)
        finish: data, carry -> result
        measure: carry -> the number that progress shows, `None` for none
    """

    init: Callable[[PyTree], tuple[PyTree, Bool[Array, ""]]]
    step: Callable[[PyTree, PyTree], tuple[PyTree, Bool[Array, ""]]]
    finish: Callable[[PyTree, PyTree], PyTree]
    measure: Callable[[PyTree], Float[Array, ""]] | None = None


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
        progress: called from the loop's body, once for the whole batch.
    """
    data = jax.tree.map(lambda x: lax.stop_gradient(jnp.asarray(x)), data)
    traced, consts = _trace(program, data)
    operands, tree = jax.tree.flatten((data, consts, unless))
    operands = [lax.stop_gradient(jnp.asarray(x)) for x in operands]
    call = _lanes(_Call(traced, tree, lanes, progress), (), ((),) * len(operands))
    return call(*operands)


class _Call(NamedTuple):
    program: "_Traced"
    tree: Any
    lanes: AbstractLanes
    progress: AbstractProgress | None


class _Traced(NamedTuple):
    """A program as jaxprs, each called with the arrays it captured: functions of (consts, ...)."""

    init: Callable
    step: Callable
    finish: Callable
    measure: Callable | None
    nested: bool


def _trace(program: Program, data: PyTree) -> tuple[_Traced, PyTree]:
    axes = varying((data,))

    def captured(fn, *args):
        jaxpr, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
        return jaxpr, jax.tree.structure(shape), shape

    def closed(fn, *args):
        """`fn` with what it captured as its first argument; varying over the mesh like the data."""
        jaxpr, tree, shape = captured(fn, *args)
        _refuse_collectives(jaxpr)

        def call(consts, *args):
            out = jax.core.eval_jaxpr(jaxpr.jaxpr, consts, *jax.tree.leaves(args))
            return jax.tree.unflatten(tree, out)

        return call, jaxpr, shape

    init, init_jaxpr, _ = closed(program.init, data)
    axes = axes | varying((init_jaxpr.consts,))
    # The step may capture arrays that vary over more mesh axes than the data: take the union.
    carry = vary(init(init_jaxpr.consts, data), axes)[0]
    step_jaxpr = jax.make_jaxpr(program.step)(data, carry)
    wider = axes | varying((step_jaxpr.consts,))
    if wider != axes:
        axes, carry = wider, vary(carry, wider)
    step, step_jaxpr, _ = closed(program.step, data, carry)
    finish, finish_jaxpr, _ = closed(program.finish, data, carry)
    measure, measure_consts = None, ()
    if program.measure is not None:
        measure, measure_jaxpr, _ = closed(program.measure, carry)
        measure_consts = measure_jaxpr.consts

    traced = _Traced(
        init=lambda c, data: vary(init(c[0], data), axes),
        step=lambda c, data, carry: vary(step(c[1], data, carry), axes),
        finish=lambda c, data, carry: vary(finish(c[2], data, carry), axes),
        measure=None if measure is None else lambda c, carry: measure(c[3], carry),
        nested=_has_loop(step_jaxpr.jaxpr),
    )
    consts = (init_jaxpr.consts, step_jaxpr.consts, finish_jaxpr.consts, measure_consts)
    return traced, consts


def _lanes(call: _Call, sizes: tuple[int, ...], axes: tuple[tuple[bool, ...], ...]):
    """`call` over the batch axes `sizes`; `axes[i]` says which of them operand i has."""

    @custom_vmap
    def over(*operands):
        if not sizes:
            return _alone(call, operands)
        batch = _Batch(call, sizes, axes, operands)
        if isinstance(call.lanes, Lockstep) or batch.width >= batch.size:
            flat = _together(call, batch)
        else:
            flat = _queue(call, batch)
        return jax.tree.map(lambda x: x.reshape(*sizes, *x.shape[1:]), flat)

    @over.def_vmap
    def rule(axis_size, in_batched, *operands):
        inner = tuple((new, *old) for new, old in zip(in_batched, axes, strict=True))
        out = _sharded(_lanes(call, (axis_size, *sizes), inner), in_batched, operands)
        return out, jax.tree.map(lambda _: True, out)

    return over


def _alone(call: _Call, operands):
    program = call.program
    data, consts, unless = jax.tree.unflatten(call.tree, operands)

    def solve(data, consts):
        def body(loop):
            carry, _ = loop
            carry, done = program.step(consts, data, carry)
            if call.progress is not None:
                left = jnp.where(done, 0, 1)
                call.progress.update(program.measure(consts, carry), left, 1)
            return carry, done

        start = program.init(consts, data)
        if call.progress is not None:
            call.progress.start(1)
        carry, _ = lax.while_loop(lambda loop: ~loop[1], body, start)
        if call.progress is not None:
            call.progress.stop(program.measure(consts, carry))
        return program.finish(consts, data, carry)

    if unless is None:
        return solve(data, consts)
    skip, result = unless
    axes = varying(operands)
    return lax.cond(vary(skip, axes), lambda *_: vary(result, axes), solve, data, consts)


class _Batch:
    """The operands of a batch: which are shared, and the rows of the others by lane number."""

    def __init__(self, call: _Call, sizes, axes, operands):
        self.call, self.sizes, self.axes, self.operands = call, sizes, axes, operands
        self.size = math.prod(sizes)
        self.batched = [any(a) for a in axes]
        self.varying = varying(operands)

    @property
    def width(self) -> int:
        """Slots: as many lanes as stay near the cache, or fill the accelerator."""
        lanes = self.call.lanes
        if isinstance(lanes, Refill) and lanes.width is not None:
            return lanes.width
        rows = jax.eval_shape(lambda: self.rows(jnp.zeros(1, jnp.int32)))
        data, consts, _ = jax.tree.unflatten(self.call.tree, self.merge(rows))
        carry = jax.eval_shape(jax.vmap(self.call.program.init, self.in_axes[1::-1]), consts, data)
        moving = [x for x, b in zip(self.merge(rows), self.batched, strict=True) if b]
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((moving, carry)))
        low, high, budget = _BUDGETS.get(jax.default_backend(), _BUDGETS["gpu"])
        return min(high, max(low, 2 ** int(math.log2(max(budget // max(size, 1), 1)))))

    @property
    def in_axes(self):
        """vmap axes of (data, consts, unless)."""
        return jax.tree.unflatten(self.call.tree, [0 if b else None for b in self.batched])

    def rows(self, lane):
        """The rows of the batched operands for lanes numbered `lane`."""
        index = jnp.unravel_index(lane, self.sizes)
        return [
            x[tuple(i for i, present in zip(index, has, strict=True) if present)]
            for x, has in zip(self.operands, self.axes, strict=True)
            if any(has)
        ]

    def merge(self, rows):
        """All operands, the batched ones replaced by `rows`."""
        rows = iter(rows)
        return [next(rows) if b else x for x, b in zip(self.operands, self.batched, strict=True)]

    def unflatten(self, rows):
        return jax.tree.unflatten(self.call.tree, self.merge(rows))

    def vmap(self, fn, *more):
        """`fn(consts, data, *more)` over lanes."""
        data, consts, _ = self.in_axes
        return jax.vmap(fn, (consts, data, *more))

    def all_rows(self):
        whole = [all(has) for has in self.axes if any(has)]
        full = [x for x, b in zip(self.operands, self.batched, strict=True) if b]
        if all(whole):
            return [x.reshape(self.size, *x.shape[len(self.sizes) :]) for x in full]
        return self.rows(jnp.arange(self.size, dtype=jnp.int32))

    def skip(self):
        """Whether each lane is to be skipped, or None."""
        _, _, unless = self.unflatten(self.all_rows())
        return None if unless is None else jnp.broadcast_to(unless[0], (self.size,))


# Slots at least, at most, and bytes to aim at.
_BUDGETS = {"cpu": (8, 128, 2**20), "gpu": (256, 8192, 2**28), "tpu": (256, 8192, 2**26)}


def _masked_step(batch: _Batch, consts, data, carry, done, lane_data=None):
    """One step of the live lanes; the others keep their state.

    A step with a loop of its own would go on for the dead lanes as well: those are stepped on a
    live lane's inputs instead.
    """
    program = batch.call.program
    inputs = carry
    if program.nested:
        live = jnp.argmin(done)
        inputs = _where(done, jax.tree.map(lambda x: x[live], carry), carry)
        in_data, in_consts, _ = batch.in_axes
        data = _where(done, _pick(data, in_data, live), data, in_data)
        consts = _where(done, _pick(consts, in_consts, live), consts, in_consts)
    stepped, stops = batch.vmap(program.step, 0)(consts, data, inputs)
    return _where(done, carry, stepped), done | stops


def _pick(tree, in_axes, index):
    return jax.tree.map(
        lambda x, a: x if a is None else x[index], tree, in_axes, is_leaf=lambda x: x is None
    )


def _where(mask, new, old, in_axes=None):
    """`new` where `mask` (a row each), leaf by leaf; shared leaves (axis None) stay as they are."""

    def choose(x, y):
        return jnp.where(mask.reshape(-1, *(1,) * (jnp.ndim(y) - 1)), x, y)

    if in_axes is None:
        return jax.tree.map(choose, new, old)
    return jax.tree.map(
        lambda x, y, a: y if a is None else choose(x, y),
        new,
        old,
        in_axes,
        is_leaf=lambda x: x is None,
    )


def _together(call: _Call, batch: _Batch):
    """All lanes step until the last is done."""
    program = call.program
    rows = batch.all_rows()
    data, consts, unless = batch.unflatten(rows)
    skip = batch.skip()

    def solve(data, consts):
        carry, done = batch.vmap(program.init)(consts, data)
        done = done if skip is None else done | skip

        def body(loop):
            carry, done = loop
            carry, done = _masked_step(batch, consts, data, carry, done)
            if call.progress is not None:
                _report(call, batch, consts, carry, done, jnp.sum(~done))
            return carry, done

        if call.progress is not None:
            call.progress.start(batch.size)
        carry, done = lax.while_loop(lambda loop: ~jnp.all(loop[1]), body, (carry, done))
        if call.progress is not None:
            call.progress.stop(_worst(call, batch, consts, carry, jnp.zeros_like(done)))
        return batch.vmap(program.finish, 0)(consts, data, carry)

    if unless is None:
        return solve(data, consts)
    result = jax.tree.map(
        lambda x, a: x if a is not None else jnp.broadcast_to(x, (batch.size, *x.shape)),
        unless[1],
        batch.in_axes[2][1],
        is_leaf=lambda x: x is None,
    )
    result = vary(result, batch.varying)

    def some(data, consts):
        return _where(skip, result, solve(data, consts))

    return lax.cond(vary(jnp.all(skip), batch.varying), lambda *_: result, some, data, consts)


def _queue(call: _Call, batch: _Batch):
    """W slots served from a queue of lanes."""
    program, size, width = call.program, batch.size, batch.width
    refill = max(1, width // 4)
    skip = batch.skip()
    in_data, in_consts, in_unless = batch.in_axes

    def finish(rows, carry):
        data, consts, _ = batch.unflatten(rows)
        return batch.vmap(program.finish, 0)(consts, data, carry)

    def init(rows):
        data, consts, _ = batch.unflatten(rows)
        return batch.vmap(program.init)(consts, data)

    # Lanes to solve first; the skipped ones are never admitted.
    if skip is None:
        order, waiting = None, jnp.full((), size, jnp.int32)
    else:
        order = jnp.argsort(skip).astype(jnp.int32)
        waiting = jnp.sum(~skip, dtype=jnp.int32)

    def lanes_from(position):
        position = jnp.minimum(position, size - 1)
        return position if order is None else order[position]

    slots = jnp.zeros(width, jnp.int32)
    rows = batch.rows(slots)
    carry_shape, _ = jax.eval_shape(init, rows)
    result_shape = jax.eval_shape(lambda: finish(batch.rows(slots), _zeros(carry_shape)))
    if skip is None:
        results = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), result_shape)
    else:
        _, _, unless = batch.unflatten(batch.all_rows())
        results = jax.tree.map(
            lambda x, a: x if a is not None else jnp.broadcast_to(x, (size, *x.shape)),
            unless[1],
            in_unless[1],
            is_leaf=lambda x: x is None,
        )

    def serve(loop):
        rows, carry, done, lane, admitted, retired, results = loop
        slot = jnp.argsort(~done)[:refill]
        free, held = done[slot], lane[slot] < size
        picked = [x[slot] for x in rows]
        picked_carry = jax.tree.map(lambda x: x[slot], carry)

        # Finish the lanes that are done and write them back. A slot that is not done yet, or that
        # holds no lane, stands in with the first picked one's inputs.
        stands = (free & held).reshape(-1)
        safe = [_where(~stands, x[:1], x) for x in picked]
        safe_carry = jax.tree.map(lambda x: _where(~stands, x[:1], x), picked_carry)
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(finish, safe, safe_carry))
        blank = jax.tree.map(
            lambda s: jnp.zeros(*s), shapes, is_leaf=lambda s: isinstance(s, tuple) and len(s) == 2
        )
        written = lax.cond(
            jnp.any(stands), finish, lambda *_: vary(blank, batch.varying), safe, safe_carry
        )
        target = jnp.where(stands, lane[slot], size)
        results = jax.tree.map(lambda r, x: r.at[target].set(x, mode="drop"), results, written)
        retired = retired + jnp.sum(stands, dtype=jnp.int32)

        # Admit waiting lanes to the free slots.
        position = admitted + jnp.arange(refill, dtype=jnp.int32)
        enters = free & (position < waiting)
        number = lanes_from(position)
        new_rows = batch.rows(jnp.where(enters, number, number[0]))
        old = (picked_carry, jnp.ones(refill, bool))
        new_carry, new_done = lax.cond(
            jnp.any(enters), init, lambda _: vary(old, batch.varying), new_rows
        )
        place = jnp.where(enters, slot, width)
        rows = [x.at[place].set(n, mode="drop") for x, n in zip(rows, new_rows, strict=True)]
        carry = jax.tree.map(lambda x, n: x.at[place].set(n, mode="drop"), carry, new_carry)
        done = done.at[place].set(new_done, mode="drop")
        lane = lane.at[slot].set(jnp.where(enters, number, jnp.where(free, size, lane[slot])))
        admitted = admitted + jnp.sum(enters, dtype=jnp.int32)

        data, consts, _ = batch.unflatten(rows)

        def stepping(inner):
            _, done = inner
            enough = (jnp.sum(done) >= refill) & (admitted < waiting)
            return jnp.any(~done) & ~enough

        def step(inner):
            carry, done = _masked_step(batch, consts, data, *inner)
            if call.progress is not None:
                left = waiting - admitted + jnp.sum(~done)
                _report(call, batch, consts, carry, done, left)
            return carry, done

        carry, done = lax.while_loop(stepping, step, (carry, done))
        return rows, carry, done, lane, admitted, retired, results

    start = (
        rows,
        _zeros(carry_shape),
        jnp.ones(width, bool),
        jnp.full(width, size, jnp.int32),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
        results,
    )
    if call.progress is not None:
        call.progress.start(size)
    waiting = vary(waiting, batch.varying)
    end = lax.while_loop(lambda loop: loop[5] < waiting, serve, vary(start, batch.varying))
    if call.progress is not None:
        _, consts, _ = batch.unflatten(end[0])
        call.progress.stop(_worst(call, batch, consts, end[1], jnp.zeros(width, bool)))
    return end[-1]


def _zeros(shapes):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _report(call, batch, consts, carry, done, left):
    call.progress.update(_worst(call, batch, consts, carry, done), left, batch.size)


def _worst(call, batch, consts, carry, done):
    measures = jax.vmap(call.program.measure, (batch.in_axes[1], 0))(consts, carry)
    return jnp.max(jnp.where(done, 0, measures))


def _has_loop(jaxpr) -> bool:
    """Whether a jaxpr holds a loop whose trip count depends on values."""
    return any(
        eqn.primitive.name in ("while", "custom_vmap_call")
        or any(_has_loop(sub) for sub in jec.jaxprs_in_params(eqn.params))
        for eqn in jaxpr.eqns
    )


def _refuse_collectives(jaxpr) -> None:
    manual = set(jax.sharding.get_abstract_mesh().manual_axes)
    names = {e.name for e in jaxpr.effects if type(e).__name__ == "NamedAxisEffect"} - manual
    if names:
        raise TypeError(
            f"A collective over the vmapped axis {sorted(map(str, names))} stands inside a function "
            "given to `solve`. Lanes of a batch stop at different steps and cannot wait for each "
            "other: reduce before or after the solve, or write the sum over lanes in one problem."
        )


def _sharded(call, in_batched, operands):
    """A batch sharded by explicit mesh axes keeps each lane on its device: a queue a device."""
    spec = {
        jax.typeof(x).sharding.spec[0]
        for x, b in zip(operands, in_batched, strict=True)
        if b and len(jax.typeof(x).sharding.spec) > 0
    } - {None}
    if not spec:
        return call(*operands)
    (axis,) = spec
    P = jax.sharding.PartitionSpec
    in_specs = tuple(P(axis) if b else P() for b in in_batched)
    return jax.shard_map(call, in_specs=in_specs, out_specs=P(axis))(*operands)
