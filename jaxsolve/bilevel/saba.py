"""SABA: the directions of SOBA with the noise of their batches taken away, as SAGA does.

The data of either level are cut into blocks once, in their order. For every block the pieces of
(1) in `soba` are kept as they were when it was last looked at; with p the piece of block i, m_i
what was kept of it, w_i its share of the samples and m = sum w_i m_i, a step goes along

    p - m_i + m,   then   m <- m + w_i (p - m_i),   m_i <- p                                   (1)

and i is drawn with probability w_i, so that (1) is unbiased. Its noise vanishes at the solution:
steps are constant and the rate is linear where deterministic descent's is.

Dagreou, Ablin, Vaiter and Moreau (2022), after Defazio, Bach and Lacoste-Julien (2014).
"""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..core.solution import RESULTS, Point
from ..core.vectors import largest
from .bilevel import Bilevel, BilevelDual, LowerPoint, Pair
from .loops import (
    AbstractBilevelLoop,
    LoopState,
    LowerPieces,
    Move,
    Rates,
    UpperPieces,
    descend,
    lower_pieces,
    minus,
    plus,
    upper_pieces,
)
from .stochastic import SampledBilevel

Pieces = TypeVar("Pieces", UpperPieces, LowerPieces)

_MARGIN = 0.1


class Table(eqx.Module):
    """What was kept of the pieces of one level.

    Attributes:
        rows: the pieces of each block, along a leading axis.
        mean: of the rows, each with its block's share of the samples.
    """

    rows: PyTree[Float[Array, "k ..."]]
    mean: PyTree[Array]


class Memory(eqx.Module):
    """v, and the tables of the two levels; `None` where each step looks at all data."""

    adjoint: PyTree[Array]
    upper: Table | None
    lower: Table | None


class SABA(AbstractBilevelLoop):
    """Variance-reduced bilevel descent with constant steps: the default for batches.

    One gradient of F, one of f and its pullback a step, as `SOBA`; the start looks at all data
    once. Keeps K (dim x + dim y) numbers of the upper level and K (dim x + 2 dim y) of the lower
    one, for K blocks; larger batches make fewer blocks.

    Samples are cut into blocks in the order in which they are given, a last smaller block holding
    what is left over. Shuffle data that are sorted.

    Args:
        upper_step_size, lower_step_size: a and b, constant. b below 1 / (3 L) for the largest
            curvature L of a block of f; a as large as it goes.
        steps: after which the solve ends as `approximate`, if the mean pieces do not meet the
            tolerance before.
    """

    upper_step_size: float | Float[Array, ""] = 0.1
    lower_step_size: float | Float[Array, ""] = 0.1
    steps: int = 10_000

    def start(self, problem: Bilevel, primal: Pair, adjoint: PyTree[Array]) -> Memory:
        (x, y), v = primal, adjoint
        if not isinstance(problem, SampledBilevel):
            return Memory(v, None, None)
        upper = lambda i: problem.on_block(0, i, lambda p: upper_pieces(p, x, y))
        lower = lambda i: problem.on_block(1, i, lambda p: lower_pieces(p, x, y, v))
        rows = (
            jax.lax.map(of, jnp.arange(blocks))
            for of, blocks in zip((upper, lower), problem.blocks, strict=True)
        )
        return Memory(v, *(_table(problem, level, r) for level, r in enumerate(rows)))

    def move(self, problem: Bilevel, state: LoopState, rates: Rates, key: Array) -> Move:
        (x, y), memory = state.primal, state.memory
        v = memory.adjoint
        of_upper, of_lower = (
            lambda p: upper_pieces(p, x, y),
            lambda p: lower_pieces(p, x, y, v),
        )
        first, second = memory.upper, memory.lower
        if isinstance(problem, SampledBilevel) and first is not None and second is not None:
            keys = jax.random.split(key)
            upper, first = _corrected(problem, 0, first, of_upper, keys[0])
            lower, second = _corrected(problem, 1, second, of_lower, keys[1])
            measure = _residual(problem, x, first.mean, second.mean)
            # The means are of old pieces: they count for as many steps as there are blocks.
            held = (1 - 1 / max(problem.blocks)) * state.measure
            measure = jnp.where(state.count > 0, jnp.maximum(measure, held), measure)
        else:
            upper, lower = of_upper(problem), of_lower(problem)
            measure = _residual(problem, x, upper, lower)
        adjoint = descend(v, rates.lower, plus(lower.product, upper.lower))
        return Move(
            direction=plus(upper.upper, lower.cross),
            lower=descend(y, rates.lower, lower.gradient),
            memory=Memory(adjoint, first, second),
            measure=measure,
        )

    def status(self, problem: Bilevel, state: LoopState, tolerance: Array) -> Any:
        solved = (state.count > 0) & (state.measure <= _MARGIN * tolerance)
        claim = RESULTS.where(solved, RESULTS.successful, RESULTS.approximate)
        return solved | (state.count >= self.steps), claim

    def point(self, problem: Bilevel, state: LoopState) -> Point:
        return Point(state.primal, BilevelDual(None, None, LowerPoint(state.memory.adjoint)))


def _residual(
    problem: Bilevel, x: PyTree[Array], upper: UpperPieces, lower: LowerPieces
) -> Float[Array, ""]:
    """Of the three systems, relative as `Bilevel.residual` is."""
    first = problem.stationarity(x, plus(upper.upper, lower.cross))
    size = jnp.maximum(largest(upper), 1)
    dual = largest((first, plus(lower.product, upper.lower))) / size
    return jnp.maximum(largest(lower.gradient), dual)


def _shares(problem: SampledBilevel, level: int) -> tuple[int, int, int]:
    return problem.sizes[level], problem.batch_sizes[level], problem.blocks[level]


def _table(problem: SampledBilevel, level: int, rows: PyTree[Array]) -> Table:
    """The table of pieces of all blocks."""
    size, batch, blocks = _shares(problem, level)
    last = size - (blocks - 1) * batch

    def mean(row: Float[Array, "k ..."]) -> Array:
        shares = jnp.full(blocks, batch / size, row.dtype).at[-1].set(last / size)
        return jnp.sum(row * shares.reshape(-1, *[1] * (row.ndim - 1)), axis=0)

    return Table(rows, jax.tree.map(mean, rows))


def _corrected(
    problem: SampledBilevel,
    level: int,
    table: Table,
    pieces: Callable[[Bilevel], Pieces],
    key: Array,
) -> tuple[Pieces, Table]:
    """(1) for a random block: the pieces along which to go, and the table after them."""
    size, batch, blocks = _shares(problem, level)
    block: Int[Array, ""] = jax.random.randint(key, (), 0, size) // batch
    new = problem.on_block(level, block, pieces)
    change = minus(new, jax.tree.map(lambda row: row[block], table.rows))
    last = size - (blocks - 1) * batch

    def moved(mean: Array, step: Array) -> Array:
        share = jnp.where(block == blocks - 1, last / size, batch / size).astype(mean.dtype)
        return mean + share * step

    rows = jax.tree.map(lambda row, piece: row.at[block].set(piece), table.rows, new)
    return plus(change, table.mean), Table(rows, jax.tree.map(moved, table.mean, change))
