"""A batch of lanes: stepped together where all fit, else through a serving queue.

A buffer of W slots is stepped. A lane that is done waits in its slot until a quarter of the slots
is free; then those lanes are finished and written back, and waiting lanes take their place:

    while lanes are left:                     one pass of the outer loop
        finish and write back R slots         R = W / 4
        init R waiting lanes in their place
        while fewer than R slots are free:    the inner loop
            step the W slots

`init`, `step` and `finish` stand in the program once each, whatever the batch, and the working set
is W lanes wide. A slot without a live lane steps on a live one's inputs: a dead lane's NaN reaches
no step, and a loop inside the step does not go on for it.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from .mesh import vary, varying


class AbstractLanes(eqx.Module):
    """What happens to a batch."""


class Refill(AbstractLanes):
    """A serving queue of `width` slots; `None` chooses it from a lane's bytes and the platform."""

    width: int | None = None


class Lockstep(AbstractLanes):
    """Every lane is stepped until the last is done, as plain `vmap` does.

    For batches sharded over devices by automatic axes, where a queue would gather across devices.
    Dead lanes are stepped on their own last state, unless the step holds a loop.
    """


# Slots at least, at most, and bytes to aim at.
_BUDGETS = {"cpu": (8, 128, 2**20), "gpu": (256, 8192, 2**28), "tpu": (256, 8192, 2**26)}


class Batch:
    """The operands of a batch: which are shared, and the rows of the others by lane number."""

    def __init__(self, call, sizes: tuple[int, ...], axes, operands):
        self.call, self.sizes, self.axes, self.operands = call, sizes, axes, operands
        self.size = math.prod(sizes)
        self.batched = [any(has) for has in axes]
        self.varying = varying(operands) | call.program.axes
        self.in_axes = jax.tree.unflatten(call.tree, [0 if b else None for b in self.batched])

    @property
    def width(self) -> int:
        """Slots: as many lanes as stay near the cache, or fill the accelerator."""
        if isinstance(self.call.lanes, Refill) and self.call.lanes.width is not None:
            return self.call.lanes.width
        low, high, budget = _BUDGETS.get(jax.default_backend(), _BUDGETS["gpu"])
        own = [
            math.prod(x.shape[sum(has) :]) * x.dtype.itemsize
            for x, has in zip(self.operands, self.axes, strict=True)
            if any(has)
        ]
        carried = [math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(self.carry)]
        fitting = max(budget // max(sum(own) + sum(carried), 1), 1)
        widest = min(high, max(low, 2 ** int(math.log2(fitting))))
        rounds = -(-self.size // widest)
        return max(1, -(-self.size // rounds) if rounds else 1)

    @property
    def carry(self):
        return self.call.program.carry

    def rows(self, lane: Int[Array, " k"]) -> list[Array]:
        """The rows of the batched operands for lanes numbered `lane`."""
        index = jnp.unravel_index(lane, self.sizes)
        return [
            x[tuple(i for i, present in zip(index, has, strict=True) if present)]
            for x, has in zip(self.operands, self.axes, strict=True)
            if any(has)
        ]

    def all_rows(self) -> list[Array]:
        if all(all(has) for has in self.axes if any(has)):
            full = [x for x, b in zip(self.operands, self.batched, strict=True) if b]
            return [x.reshape(self.size, *x.shape[len(self.sizes) :]) for x in full]
        return self.rows(jnp.arange(self.size, dtype=jnp.int32))

    def unflatten(self, rows: list[Array]):
        """(data, consts, unless), the batched leaves replaced by `rows`."""
        left = iter(rows)
        merged = [next(left) if b else x for x, b in zip(self.operands, self.batched, strict=True)]
        return jax.tree.unflatten(self.call.tree, merged)

    def vmap(self, fn, *more: int):
        """`fn(consts, data, *more)` over lanes."""
        data, consts, _ = self.in_axes
        return jax.vmap(fn, (consts, data, *more))

    def unless(self):
        """(skip, result) of every lane, or None."""
        _, _, unless = self.unflatten(self.all_rows())
        if unless is None:
            return None
        return jax.tree.map(
            lambda x, a: x if a == 0 else jnp.broadcast_to(x, (self.size, *x.shape)),
            unless,
            self.in_axes[2],
        )

    def step(self, rows: list[Array], carry, done, count, left):
        """One step of the live lanes; the others keep their state. `left(done)`: lanes to go."""
        program, progress = self.call.program, self.call.progress
        inputs, used = carry, rows
        if program.nested or not isinstance(self.call.lanes, Lockstep):
            live = jnp.argmin(done)
            inputs, used = _where(
                done, jax.tree.map(lambda x: x[live], (carry, rows)), (carry, rows)
            )
        data, consts, _ = self.unflatten(used)
        stepped, stops = self.vmap(program.step, 0)(consts, data, inputs)
        stepped = _where(done, carry, stepped)
        if progress is not None and program.measure is not None:
            count = count + 1
            _, consts, _ = self.unflatten(rows)
            measures = jax.vmap(program.measure, (self.in_axes[1], 0))(consts, stepped)
            worst = jnp.max(jnp.where(done, -jnp.inf, measures))
            progress.report(count, worst, left(done | stops), self.size)
        return stepped, done | stops, count

    def counter(self):
        """Steps taken, where progress shows them."""
        if self.call.progress is None:
            return None
        return vary(jnp.zeros((), jnp.int32), self.varying)

    def zeros(self, shapes, *leading: int):
        """Zeros with leading axes for `shapes` of one lane."""
        blank = jax.tree.map(lambda x: _zeros((*leading, *x.shape), x.dtype), shapes)
        return vary(blank, self.varying)


def _zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    # Random keys have no zero; nobody reads a blank slot.
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        return lax.empty(shape, dtype)
    return jnp.zeros(shape, dtype)


def _where(mask: Bool[Array, " k"], new: PyTree[Array], old: PyTree[Array]) -> PyTree[Array]:
    """`new` where `mask` (a row each), leaf by leaf."""

    def choose(x, y):
        return jnp.where(mask.reshape(-1, *(1,) * (jnp.ndim(y) - 1)), x, y)

    return jax.tree.map(choose, new, old)


def together(batch: Batch):
    """All lanes step until the last is done."""
    program = batch.call.program
    if batch.size == 0:
        return batch.zeros(program.result, 0)
    rows, unless = batch.all_rows(), batch.unless()

    def solve(rows):
        data, consts, _ = batch.unflatten(rows)
        carry, done = batch.vmap(program.init)(consts, data)
        done = done if unless is None else done | unless[0]

        def body(loop):
            return batch.step(rows, *loop, left=lambda done: jnp.sum(~done))

        start = (carry, done, batch.counter())
        carry, _, _ = lax.while_loop(lambda loop: ~jnp.all(loop[1]), body, start)
        return batch.vmap(program.finish, 0)(consts, data, carry)

    if unless is None:
        return solve(rows)
    skip, result = vary(unless, batch.varying)

    def some(rows):
        return _where(skip, result, solve(rows))

    return lax.cond(jnp.all(skip), lambda _: result, some, rows)


class _Slots(NamedTuple):
    """The queue's state. `lane`: whose the slot is, `size` for nobody's."""

    rows: list[Array]
    carry: PyTree[Array]
    done: Bool[Array, " slots"]
    lane: Int[Array, " slots"]
    admitted: Int[Array, ""]
    retired: Int[Array, ""]
    results: PyTree[Array]
    count: Any


def queue(batch: Batch):
    """W slots served from a queue of lanes."""
    program, size, width = batch.call.program, batch.size, batch.width
    refill = max(1, width // 4)
    unless = batch.unless()
    if unless is None:
        order, waiting = None, jnp.full((), size, jnp.int32)
        results = batch.zeros(program.result, size)
    else:
        # Lanes to solve come first; the skipped ones are never admitted.
        order = jnp.argsort(unless[0]).astype(jnp.int32)
        waiting = jnp.sum(~unless[0], dtype=jnp.int32)
        results = unless[1]
    waiting = vary(waiting, batch.varying)

    def init(rows):
        data, consts, _ = batch.unflatten(rows)
        return vary(batch.vmap(program.init)(consts, data), batch.varying)

    def finish(rows, carry):
        data, consts, _ = batch.unflatten(rows)
        return vary(batch.vmap(program.finish, 0)(consts, data, carry), batch.varying)

    def blank(*_):
        return batch.zeros(program.result, refill)

    def unused(_):
        return batch.zeros(program.carry, refill), vary(jnp.ones(refill, bool), batch.varying)

    def retire(slots, slot):
        """Finish the lanes that are done and write them back."""
        held = slots.done[slot] & (slots.lane[slot] < size)
        source = jnp.where(held, slot, slot[jnp.argmax(held)])
        rows, carry = jax.tree.map(lambda x: x[source], (slots.rows, slots.carry))
        written = lax.cond(jnp.any(held), finish, blank, rows, carry)
        target = jnp.where(held, slots.lane[slot], size)
        return slots._replace(
            results=_put(slots.results, target, written),
            lane=slots.lane.at[slot].set(jnp.where(held, size, slots.lane[slot])),
            retired=slots.retired + jnp.sum(held, dtype=jnp.int32),
        )

    def admit(slots, slot):
        """Init waiting lanes in the free slots."""
        position = slots.admitted + jnp.arange(refill, dtype=jnp.int32)
        enters = slots.done[slot] & (position < waiting)
        # Nobody's place in the batch is the first entering lane's: its data are good.
        position = jnp.where(enters, position, jnp.minimum(position[0], size - 1))
        number = position if order is None else order[position]
        rows = batch.rows(number)
        carry, done = lax.cond(jnp.any(enters), init, unused, rows)
        place = jnp.where(enters, slot, width)
        return slots._replace(
            rows=_put(slots.rows, place, rows),
            carry=_put(slots.carry, place, carry),
            done=_put(slots.done, place, done),
            lane=_put(slots.lane, place, number),
            admitted=slots.admitted + jnp.sum(enters, dtype=jnp.int32),
        )

    def serve(slots):
        # Lanes to write back first, then free slots: a slot stays free once its lane has left.
        held = slots.done & (slots.lane < size)
        _, slot = lax.top_k(slots.done.astype(jnp.float32) + held.astype(jnp.float32), refill)
        slots = admit(retire(slots, slot), slot)
        more = slots.admitted < waiting
        behind = waiting - slots.admitted

        def stepping(loop):
            _, done, _ = loop
            free = jnp.sum(done, dtype=jnp.int32)
            return (free < width) & ~((free >= refill) & more)

        def step(loop):
            return batch.step(slots.rows, *loop, left=lambda done: behind + jnp.sum(~done))

        start = (slots.carry, slots.done, slots.count)
        carry, done, count = lax.while_loop(stepping, step, start)
        return slots._replace(carry=carry, done=done, count=count)

    start = _Slots(
        rows=batch.rows(jnp.zeros(width, jnp.int32)),
        carry=batch.zeros(program.carry, width),
        done=jnp.ones(width, bool),
        lane=jnp.full(width, size, jnp.int32),
        admitted=jnp.zeros((), jnp.int32),
        retired=jnp.zeros((), jnp.int32),
        results=results,
        count=batch.counter(),
    )
    start = vary(start, batch.varying)
    return lax.while_loop(lambda slots: slots.retired < waiting, serve, start).results


def _put(tree: PyTree[Array], place: Int[Array, " k"], rows: PyTree[Array]) -> PyTree[Array]:
    """Write rows at `place`; those placed past the end are dropped."""
    return jax.tree.map(lambda x, row: x.at[place].set(row, mode="drop"), tree, rows)
