"""A batch of lanes: which operands it shares, how wide its queue is, one step of its live lanes."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from .checks import check_count
from .mesh import vary, varying


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
        # Less wide where few lanes wait: 1.5 times faster at 512 lanes, the same at 4096.
        widest = min(widest, max(budget.slots // 2, self.size // 5))
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
            return [o if constant else where_rows(done, n, o) for n, o, constant in triples]

        old, tree = jax.tree.flatten(carry)
        inputs, used = old, rows
        if program.nested:
            live = jnp.argmin(done)
            inputs = where_done([x[live] for x in old], old)
            used = where_rows(done, [x[live] for x in rows], rows)
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


def where_rows(mask: Bool[Array, " k"], new: PyTree[Array], old: PyTree[Array]) -> PyTree[Array]:
    """`new` where `mask` (a row each), leaf by leaf."""

    def choose(x, y):
        return jnp.where(mask.reshape(-1, *(1,) * (jnp.ndim(y) - 1)), x, y)

    return jax.tree.map(choose, new, old)
