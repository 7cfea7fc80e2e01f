"""A batch of lanes: stepped together where all fit, else through a serving queue.

A buffer of W slots is stepped. A lane that is done waits in its slot until a quarter of the slots
is free; then those lanes are finished and written back, and waiting lanes take their place:

    while lanes are left:                     one pass of the outer loop
        init R waiting lanes in empty slots   R = W / 4
        while fewer than R are done:          the inner loop
            step the W slots
        finish R lanes and write them back

`init`, `step` and `finish` stand in the program once each, whatever the batch, and the working set
is W lanes wide. A slot without a live lane steps on its own last state, and that step is dropped.
Where the step holds a loop, which would go on for it, it steps on a live lane's state and data.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from .checks import check_count
from .mesh import vary, varying
from .packing import packed
from .vectors import matmul


class AbstractLanes(eqx.Module):
    """What happens to a batch."""


class Refill(AbstractLanes):
    """A serving queue of `width` slots; `None` chooses it from a lane's bytes and the platform."""

    width: int | None = None

    def __check_init__(self) -> None:
        check_count("Refill", ("width",), width=self.width)


class Lockstep(AbstractLanes):
    """Every lane is stepped until the last is done, as plain `vmap` does.

    For batches sharded over devices by automatic axes, where a queue would gather across devices.
    """


class _Budget(NamedTuple):
    """How wide a queue is on a platform.

    Attributes:
        slots: at most.
        size: bytes to aim at.
        few, large: slots for which more bytes pay, and how many.
        least: the fewest slots that are faster than a single one, whose axis XLA takes away.
    """

    slots: int
    size: int
    few: int
    large: int
    least: int


_BUDGETS = {
    "cpu": _Budget(slots=128, size=2**18, few=16, large=2**20, least=8),
    "gpu": _Budget(slots=8192, size=2**28, few=256, large=2**31, least=2),
    "tpu": _Budget(slots=8192, size=2**26, few=256, large=2**29, least=2),
}
_LIGHT, _LIGHT_LANES, _LIGHT_SIZE = 4, 1024, 2**24
"""Where steps are light a service of the queue costs more than the steps that it saves: so many
times the bytes pay, and batches up to these lanes and bytes are stepped together."""


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
        if not isinstance(self.size, int):
            # A symbolic batch (`jax.export`) compares with no number: all are stepped together.
            return self.size
        if isinstance(self.call.lanes, Refill) and self.call.lanes.width is not None:
            return self.call.lanes.width
        budget = _BUDGETS.get(jax.default_backend(), _BUDGETS["gpu"])
        own = shared = 0
        for x, has in zip(self.operands, self.axes, strict=True):
            size = math.prod(x.shape[sum(has) :]) * x.dtype.itemsize
            own, shared = (own + size, shared) if any(has) else (own, shared + size)
        carried = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(self.carry))
        lane = max(own + carried, 1)
        light = self.call.program.light
        fitting = max((_LIGHT if light else 1) * budget.size // lane, 1)
        if not self.call.program.nested:
            # Where the step holds a loop all wait for the longest: many pay only if they are small.
            # Shared data are read once a step for all slots: these may be as large.
            fitting = max(fitting, min(budget.few, max(budget.large, shared) // lane))
        widest = 2 ** int(math.log2(fitting)) if fitting >= budget.least else 1
        widest = min(widest, budget.slots)
        together = min(_LIGHT_LANES, _LIGHT_SIZE // lane) if light else 0
        if self.size <= max(widest, together):
            return self.size
        # Half as wide where lanes wait: 1.5 times faster at 512 lanes, the same at 4096.
        widest = min(widest, budget.slots // 2)
        rounds = -(-self.size // widest)
        return -(-self.size // rounds)

    @property
    def carry(self):
        return self.call.program.carry

    def rows(self, lane: Int[Array, " k"]) -> list[Array]:
        """The rows of the batched operands for lanes numbered `lane`."""
        index = (lane,) if len(self.sizes) == 1 else jnp.unravel_index(lane, self.sizes)
        return [
            x.at[tuple(i for i, present in zip(index, has, strict=True) if present)].get(
                mode="promise_in_bounds"
            )
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

    def step(self, program, rows: list[Array], carry, done, count, left):
        """One step of the live lanes; the others keep their state. `left(done)`: lanes to go."""
        progress = self.call.progress
        # A copy of large constants or data in each step costs more than NaN in a dead lane's.
        constants = [kept and not program.nested for kept in program.constant]

        def where_done(new: list[Array], old: list[Array]) -> list[Array]:
            triples = zip(new, old, constants, strict=True)
            return [o if constant else _where(done, n, o) for n, o, constant in triples]

        old, tree = jax.tree.flatten(carry)
        inputs, used = old, rows
        if program.nested:
            live = jnp.argmin(done)
            inputs = where_done([x[live] for x in old], old)
            used = _where(done, [x[live] for x in rows], rows)
        data, consts, _ = self.unflatten(used)
        stepped, stops = self.vmap(program.step, 0)(consts, data, jax.tree.unflatten(tree, inputs))
        stepped = jax.tree.unflatten(tree, where_done(old, jax.tree.leaves(stepped)))
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
            return batch.step(program, rows, *loop, left=lambda done: jnp.sum(~done))

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
    """The queue's state.

    Attributes:
        place: whose the slot is, by place in the queue; `size` for nobody's.
        rank: how many slots up to this one were free at the last service.
    """

    carry: PyTree[Array]
    done: Bool[Array, " slots"]
    place: Int[Array, " slots"]
    rank: Int[Array, " slots"]
    admitted: Int[Array, ""]
    left: Int[Array, ""]
    results: PyTree[Array]
    count: Any


def queue(batch: Batch):
    """W slots served from a queue of lanes.

    XLA's time to compile goes with the number of kernels, some 15 ms each on a CPU: hence the
    packed state, no conditionals around `init` and `finish` (at the ends of a run they work on some
    lane again, and that is dropped), and data that are gathered anew for all slots at each service.
    """
    program, unpack = packed(batch.call.program)
    size, width = batch.size, batch.width
    refill = max(1, width // 4)
    unless = batch.unless()
    if unless is None:
        order, waiting = None, jnp.full((), size, jnp.int32)
        results = batch.zeros(program.result, size)
    else:
        # Lanes to solve come first; the skipped ones are never admitted.
        order = jnp.argsort(unless[0]).astype(jnp.int32)
        waiting = jnp.sum(~unless[0], dtype=jnp.int32)
        results = jax.vmap(program.pack_result)(unless[1])

    def lane(place):
        return place if order is None else order[place]

    def rows_at(place):
        return batch.rows(lane(jnp.minimum(place, waiting - 1)))

    def admit(slots):
        """Init R waiting lanes, for as many of the picked slots; these are empty."""
        queued = slots.admitted + jnp.arange(refill, dtype=jnp.int32)
        data, consts, _ = batch.unflatten(rows_at(queued))
        fresh = vary(batch.vmap(program.init)(consts, data), batch.varying)
        fits = jnp.minimum(refill, waiting - slots.admitted)
        enters = (slots.place == size) & (slots.rank > 0) & (slots.rank <= fits)
        rank = jnp.clip(slots.rank - 1, 0, refill - 1)
        carry, done = _where(enters, _take(fresh, rank), (slots.carry, slots.done))
        return slots._replace(
            carry=carry,
            done=done,
            place=jnp.where(enters, slots.admitted + rank, slots.place),
            admitted=slots.admitted + jnp.minimum(fits, slots.rank[-1]),
        )

    def retire(slots):
        """Pick R slots, of lanes that are done or empty; finish the lanes and write them back."""
        taken = slots.place < size
        free = slots.done & (taken | (slots.admitted < waiting))
        rank = _running_count(free)
        slot = _count(rank <= jnp.arange(refill, dtype=jnp.int32)[:, None])
        place = _take(slots.place, jnp.minimum(slot, width - 1))
        held = (slot < width) & (place < size)
        # Somebody's slot stands in where fewer are done.
        slot = jnp.where(held, slot, jnp.argmax(taken).astype(jnp.int32))
        place, carry = _take((slots.place, slots.carry), slot)
        data, consts, _ = batch.unflatten(rows_at(place))
        written = vary(batch.vmap(program.finish, 0)(consts, data, carry), batch.varying)
        target = jnp.where(held, lane(place), size)
        return slots._replace(
            place=jnp.where(free & (rank <= refill), size, slots.place),
            rank=rank,
            left=slots.left - jnp.sum(held, dtype=jnp.int32),
            results=jax.tree.map(
                lambda x, row: x.at[target].set(row, mode="drop"), slots.results, written
            ),
        )

    def serve(slots):
        slots = admit(slots)
        behind, rows = waiting - slots.admitted, rows_at(slots.place)

        def stepping(loop):
            _, done, _ = loop
            free = jnp.sum(done, dtype=jnp.int32)
            return (free < width) & ~((free >= refill) & (behind > 0))

        def step(loop):
            return batch.step(program, rows, *loop, left=lambda done: behind + jnp.sum(~done))

        start = (slots.carry, slots.done, slots.count)
        carry, done, count = lax.while_loop(stepping, step, start)
        return retire(slots._replace(carry=carry, done=done, count=count))

    waiting = vary(waiting, batch.varying)
    start = _Slots(
        carry=batch.zeros(program.carry, width),
        done=jnp.ones(width, bool),
        place=jnp.full(width, size, jnp.int32),
        rank=jnp.arange(1, width + 1, dtype=jnp.int32),
        admitted=jnp.zeros((), jnp.int32),
        left=waiting,
        results=results,
        count=batch.counter(),
    )
    start = vary(start, batch.varying)
    end = lax.while_loop(lambda slots: slots.left > 0, serve, start)
    return jax.vmap(unpack)(end.results)


def _running_count(mask: Bool[Array, " k"]) -> Int[Array, " k"]:
    """How many are set up to each, itself included."""
    if mask.size > 512:
        return jnp.cumsum(mask, dtype=jnp.int32)
    number = jnp.arange(mask.size, dtype=jnp.int32)
    return _count(mask & (number <= number[:, None]))


def _count(mask: Bool[Array, "k n"]) -> Int[Array, " k"]:
    """How many of each row are set. A product: XLA makes three kernels of a sum on a CPU."""
    ones = jnp.ones(mask.shape[1], jnp.float32)
    return matmul(mask.astype(jnp.float32), ones).astype(jnp.int32)


def _take(tree: PyTree[Array], index: Int[Array, " k"]) -> PyTree[Array]:
    return jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), tree)
