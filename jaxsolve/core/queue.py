"""A batch of lanes: stepped together where all fit, else through a serving queue.

A buffer of W slots is stepped. A lane that is done waits in its slot until a quarter of the slots
is free; then those lanes are finished and written back, and waiting lanes take their place:

    while lanes are left:                     one pass of the outer loop
        init waiting lanes in empty slots
        while fewer than R are done:          the inner loop; R = W / 4
            step the W slots
        finish lanes that are done and write them back

A service inits and finishes R lanes, wherever their slots are; or as many lanes as there are slots,
those in vain that are not free, where that costs less than to pick them. `init`, `step` and
`finish` stand in the program once each, whatever the batch, and the working set is W lanes wide. A
slot without a live lane steps on its own last state, and that step is dropped. Where the step holds
a loop, which would go on for it, it steps on a live lane's state and data.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from .batch import Batch, where_rows
from .mesh import vary
from .packing import packed
from .vectors import matmul


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
            return batch.step(program, rows, *loop, left=lambda done: jnp.sum(~done))

        start = (carry, done, batch.counter())
        carry, _, _ = lax.while_loop(lambda loop: ~jnp.all(loop[1]), body, start)
        return batch.vmap(program.finish, 0)(consts, data, carry)

    if unless is None:
        return solve(rows)
    skip, result = vary(unless, batch.varying)

    def some(rows):
        return where_rows(skip, result, solve(rows))

    return lax.cond(jnp.all(skip), lambda _: result, some, rows)


class _Slots(NamedTuple):
    """The queue's state.

    Attributes:
        place: whose the slot is, by place in the queue; from `waiting` on nobody's.
        rank: how many slots up to this one were free at the last service, where lanes are picked.
        admitted, left: how many lanes had a slot, and how many have no result.
    """

    carry: PyTree[Array]
    done: Bool[Array, " slots"]
    place: Int[Array, " slots"]
    rank: Int[Array, " slots"]
    admitted: Int[Array, ""]
    left: Int[Array, ""]
    results: PyTree[Array]
    count: Any


class _Queue:
    """Lanes that wait, and the services of the slots."""

    def __init__(self, batch: Batch):
        self.batch, self.size, self.width = batch, batch.size, batch.width
        self.program, self.unpack = packed(batch.call.program)
        self.refill = max(1, self.width // 4)
        unless = batch.unless()
        if unless is None:
            self.order, waiting = None, jnp.full((), self.size, jnp.int32)
            self.results = batch.zeros(self.program.result, self.size)
        else:
            # Lanes to solve come first; the skipped ones are never admitted.
            self.order = jnp.argsort(unless[0]).astype(jnp.int32)
            waiting = jnp.sum(~unless[0], dtype=jnp.int32)
            self.results = jax.vmap(self.program.pack_result)(unless[1])
        self.waiting = vary(waiting, batch.varying)

    def lane(self, place):
        return place if self.order is None else self.order[place]

    def rows(self, place):
        return self.batch.rows(self.lane(jnp.minimum(place, self.waiting - 1)))

    def init(self, rows):
        data, consts, _ = self.batch.unflatten(rows)
        return vary(self.batch.vmap(self.program.init)(consts, data), self.batch.varying)

    def write(self, results, rows, carry, place, held):
        """The results with those of the lanes at `place` that are `held`."""
        data, consts, _ = self.batch.unflatten(rows)
        finish = self.batch.vmap(self.program.finish, 0)
        written = vary(finish(consts, data, carry), self.batch.varying)
        target = jnp.where(held, self.lane(place), self.size)
        return jax.tree.map(lambda x, row: x.at[target].set(row, mode="drop"), results, written)

    def advance(self, rows, behind, slots: _Slots) -> _Slots:
        """Steps, until enough slots are free for lanes that wait, or all are."""

        def stepping(loop):
            _, done, _ = loop
            free = _total(done)
            return (free < self.width) & ~((free >= self.refill) & (behind > 0))

        def step(loop):
            left = lambda done: behind + jnp.sum(~done)
            return self.batch.step(self.program, rows, *loop, left=left)

        start = (slots.carry, slots.done, slots.count)
        carry, done, count = lax.while_loop(stepping, step, start)
        return slots._replace(carry=carry, done=done, count=count)

    def serve_all(self, slots: _Slots) -> _Slots:
        """One pass: every free slot takes the next lane."""
        rank = _running_count(slots.done)
        place = jnp.where(slots.done, slots.admitted + rank - 1, slots.place)
        rows = self.rows(place)
        fresh, stops = self.init(rows)
        admitted = jnp.minimum(slots.admitted + rank[-1], self.waiting)
        behind = self.waiting - admitted
        slots = slots._replace(
            carry=where_rows(slots.done, fresh, slots.carry),
            done=(slots.done & stops) | (place >= self.waiting),
            place=place,
            admitted=admitted,
            left=behind,
        )
        slots = self.advance(rows, behind, slots)
        held = slots.done & (place < self.waiting)
        return slots._replace(results=self.write(slots.results, rows, slots.carry, place, held))

    def serve_picked(self, slots: _Slots) -> _Slots:
        """One pass: of the free slots, R at most take the next lanes, and R at most are emptied."""
        slots = self._admit(slots)
        behind, rows = self.waiting - slots.admitted, self.rows(slots.place)
        return self._retire(self.advance(rows, behind, slots))

    def _admit(self, slots: _Slots) -> _Slots:
        queued = slots.admitted + jnp.arange(self.refill, dtype=jnp.int32)
        fresh = self.init(self.rows(queued))
        fits = jnp.minimum(self.refill, self.waiting - slots.admitted)
        enters = (slots.place == self.size) & (slots.rank > 0) & (slots.rank <= fits)
        rank = jnp.clip(slots.rank - 1, 0, self.refill - 1)
        carry, done = where_rows(enters, _take(fresh, rank), (slots.carry, slots.done))
        return slots._replace(
            carry=carry,
            done=done,
            place=jnp.where(enters, slots.admitted + rank, slots.place),
            admitted=slots.admitted + jnp.minimum(fits, slots.rank[-1]),
        )

    def _retire(self, slots: _Slots) -> _Slots:
        taken = slots.place < self.size
        free = slots.done & (taken | (slots.admitted < self.waiting))
        rank = _running_count(free)
        slot = _count(rank <= jnp.arange(self.refill, dtype=jnp.int32)[:, None])
        place = _take(slots.place, jnp.minimum(slot, self.width - 1))
        held = (slot < self.width) & (place < self.size)
        # Somebody's slot stands in where fewer are done.
        slot = jnp.where(held, slot, jnp.argmax(taken).astype(jnp.int32))
        place, carry = _take((slots.place, slots.carry), slot)
        return slots._replace(
            place=jnp.where(free & (rank <= self.refill), self.size, slots.place),
            rank=rank,
            left=slots.left - jnp.sum(held, dtype=jnp.int32),
            results=self.write(slots.results, self.rows(place), carry, place, held),
        )


def queue(batch: Batch):
    """W slots served from a queue of lanes.

    XLA's time to compile goes with the number of kernels, some 15 ms each on a CPU: hence the
    packed state, no conditionals around `init` and `finish` (at the ends of a run they work on some
    lane again, and that is dropped), and data that are gathered anew for all slots at each service.
    """
    line = _Queue(batch)
    serve = line.serve_all if batch.call.program.brisk() else line.serve_picked
    start = _Slots(
        carry=batch.zeros(line.program.carry, line.width),
        done=jnp.ones(line.width, bool),
        place=jnp.full(line.width, line.size, jnp.int32),
        rank=jnp.arange(1, line.width + 1, dtype=jnp.int32),
        admitted=jnp.zeros((), jnp.int32),
        left=line.waiting,
        results=line.results,
        count=batch.counter(),
    )
    start = vary(start, batch.varying)
    end = lax.while_loop(lambda slots: slots.left > 0, serve, start)
    return jax.vmap(line.unpack)(end.results)


def _running_count(mask: Bool[Array, " k"]) -> Int[Array, " k"]:
    """How many are set up to each, itself included."""
    if mask.size > 512:
        return jnp.cumsum(mask, dtype=jnp.int32)
    number = jnp.arange(mask.size, dtype=jnp.int32)
    upto = (number <= number[:, None]).astype(jnp.float32)
    return matmul(upto, mask.astype(jnp.float32)).astype(jnp.int32)


def _count(mask: Bool[Array, "k n"]) -> Int[Array, " k"]:
    """How many of each row are set. A product: XLA makes three kernels of a sum on a CPU."""
    ones = jnp.ones(mask.shape[1], jnp.float32)
    return matmul(mask.astype(jnp.float32), ones).astype(jnp.int32)


def _total(mask: Bool[Array, " k"]) -> Int[Array, ""]:
    """How many are set. Of two sums behind each other XLA makes one kernel on a CPU."""
    parts = jnp.sum(jnp.pad(mask, (0, -mask.size % 8)).reshape(8, -1), axis=0, dtype=jnp.int32)
    return jnp.sum(lax.optimization_barrier(parts), dtype=jnp.int32)


def _take(tree: PyTree[Array], index: Int[Array, " k"]) -> PyTree[Array]:
    return jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), tree)
