"""Dual active-set method for small strictly convex quadratic programs.

On the null space of A (`reduced.py`) the program is: minimise v'Hv/2 + g'v subject to Kv <= e. With
v = -H^{-1}(g + K'z) its conditions are a linear complementarity problem in the rows alone,

    s = r + Mz,   s >= 0,  z >= 0,  s'z = 0,      M = K H^{-1} K',   r = e + K H^{-1} g.

Rows of the working set have s = 0, the others z = 0. `tableau` is M with the rows of the working
set solved for their z (a principal pivot of M): the basic variables, z of the working rows and s of
the others, change by its column i for each unit of the multiplier of a row i outside. A step drives
the multiplier of a violated row until its slack is 0 (the row enters the working set) or the
multiplier of a working row is 0 (that row leaves, and the drive goes on). Both are one pivot, a
rank-one change of m^2 numbers: no factorisation. The dual value rises at every entry, so that no
working set comes back. Goldfarb and Idnani (1983), in the principal pivots of Cottle, Pang and
Stone (1992), chapter 4.

A step of Newton's method on the last working set takes away what the pivots have left of rounding.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..core.solution import RESULTS, Guess, Point
from ..core.solver import AbstractSolver
from ..core.triangular import cholesky, solve_lower
from ..core.vectors import diagonal, identity, largest, matmul
from .active_system import ActiveSystem, active_system, answer
from .fields import check_multipliers
from .iterate import iterate_at
from .quadratic_program import QuadraticProgram
from .reduced import Reduced, reduce, require_dense

NONE, LOST = -1, -2
"""No row is driven; none can be."""
FIRST = 1e30
"""The worth of a row that has to enter before all others."""


class State(eqx.Module):
    """What a lane carries.

    Attributes:
        tableau: the principal pivot of M on the working set.
        basic: z of the working rows, s of the others.
        working: rows of the working set; after `finish`, rows that the point has active.
        counts: the row that is driven (or `NONE`, `LOST`), and the pivots so far.
        levels: the multiplier of the driven row so far, and the largest violation of a row,
            relative to the data's size.
        convex: whether H has a Cholesky factor.
        factor, half: L, of H = LL', and L^{-1} [K', g].
        sizes: the norms of the rows of K in the inverse of H.
        point: after `finish`, the answer.
    """

    tableau: Float[Array, "m m"]
    basic: Float[Array, " m"]
    working: Bool[Array, " m"]
    counts: Int[Array, " 2"]
    levels: Float[Array, " 2"]
    convex: Bool[Array, ""]
    reduced: Reduced
    factor: Float[Array, "k k"]
    half: Float[Array, "k m+1"]
    sizes: Float[Array, " m"]
    point: Point


class ActiveSet(AbstractSolver[QuadraticProgram]):
    """Dual active-set method in principal pivots.

    Use it for strictly convex programs of up to about twenty variables, above all for many under
    vmap: a step is a few hundred multiplications. It is warm-started by the active set of a
    `Solution`. Lanes that it cannot solve (P singular on the null space of A, infeasible or
    unbounded programs) go to `HomogeneousEmbedding`.
    """

    step_limit: ClassVar[int] = 1000
    light_steps: ClassVar[bool] = True

    def refuse(self, problem: QuadraticProgram) -> None:
        require_dense(self, problem)

    def init(self, problem: QuadraticProgram, guess: Guess) -> State:
        check_multipliers(problem, guess)
        reduced = reduce(problem)
        zero = jnp.zeros_like(reduced.dual_scale)
        none = jnp.zeros_like(reduced.gradient)
        lift = jnp.finfo(zero.dtype).eps ** 0.65 * reduced.curvature
        factor = cholesky(reduced.hessian + jnp.diag(lift + none))
        half = solve_lower(factor, jnp.column_stack([reduced.matrix().T, reduced.gradient]))
        # Without the barrier XLA takes ten times as long for this product on CPUs.
        whole = matmul(lax.optimization_barrier(half.T), half)
        tableau, basic = whole[:-1, :-1], reduced.limit + whole[-1, :-1]
        working = jnp.zeros_like(reduced.fixed)
        sizes = jnp.sqrt(diagonal(tableau))
        if guess.dual is not None:
            old = iterate_at(reduced, reduced.drop(guess.primal), reduced.gather(guess.dual))
            wanted = (old.z > old.s) & (reduced.penalty > 0) | reduced.fixed
            tableau, basic, working = _from_working_set(reduced, tableau, basic, wanted)
        count = jnp.zeros_like(zero, dtype=jnp.int32)
        return State(
            tableau=tableau,
            basic=basic,
            working=working,
            counts=jnp.stack([count + NONE, count]),
            levels=jnp.stack([zero, _violation(reduced, working, basic)]),
            convex=jnp.isfinite(factor[-1, -1]),
            reduced=reduced,
            factor=factor,
            half=half,
            sizes=jnp.where(sizes > 0, sizes, 1),
            point=Point(guess.primal, problem.zero_dual()),
        )

    def step(self, problem: QuadraticProgram, state: State) -> State:
        reduced, tableau, basic, working = state.reduced, state.tableau, state.basic, state.working
        (driven, steps), multiplier = state.counts, state.levels[0]
        if basic.size == 0:
            return state
        rows = jnp.arange(basic.size, dtype=jnp.int32)

        # Fixed rows enter first; then the row whose entry raises the dual value most, per unit.
        worth = jnp.where(reduced.fixed, -FIRST, basic / state.sizes)
        worth = jnp.where(working | (reduced.penalty == 0), 0, worth)
        driven = jnp.where(driven == NONE, _smallest(worth)[0], driven)
        here = rows == driven
        change = _column(tableau, here)
        at_row = jnp.where(here, jnp.stack([change, basic, state.sizes]), 0)
        slope, slack, size = jnp.sum(at_row, axis=1)

        # How far: to a slack of 0, unless a multiplier of the working set is 0 before.
        moves = slope > jnp.finfo(basic.dtype).eps ** 0.75 * size**2
        whole = jnp.where(moves, -slack / jnp.where(moves, slope, 1), jnp.inf)
        falls = working & ~reduced.fixed & (change < 0)
        ratios = jnp.where(falls, -basic / jnp.where(falls, change, -1), jnp.inf)
        blocking, least = _smallest(ratios)
        block = jnp.maximum(least, 0)
        enters = whole <= block
        length = jnp.where(enters, whole, block)
        lost = ~jnp.isfinite(length)
        length = jnp.where(lost, 0, length)

        leaves = rows == blocking
        at = jnp.where(enters, here, leaves)
        multiplier = multiplier + length
        basic = basic + length * change
        basic = jnp.where(at, jnp.where(enters, multiplier, 0), basic)
        tableau = _pivot(tableau, working, at, ~enters)
        working = working ^ at
        violation = _violation(reduced, working, basic)
        driven = jnp.where(lost, LOST, jnp.where(enters, NONE, driven))
        return State(
            tableau=tableau,
            basic=basic,
            working=working,
            counts=jnp.stack([driven, steps + 1]),
            levels=jnp.stack([jnp.where(enters, 0, multiplier), violation]),
            convex=state.convex,
            reduced=reduced,
            factor=state.factor,
            half=state.half,
            sizes=state.sizes,
            point=state.point,
        )

    def measure(self, problem: QuadraticProgram, state: State) -> Float[Array, ""]:
        return state.levels[1]

    def status(self, problem, state, tolerance):
        # Far below the tolerance, so that the working set is right and its polish exact; but rows
        # that rounding alone violates stay out.
        noise = 10 * jnp.finfo(tolerance.dtype).eps
        solved = state.levels[1] <= jnp.maximum(tolerance / 100, noise)
        driven, steps = state.counts
        slow = steps >= 4 * state.basic.size + 20
        stalled = (driven == LOST) | state.reduced.dependent | slow
        result = RESULTS.where(solved, RESULTS.successful, RESULTS.stalled)
        result = RESULTS.where(state.convex, result, RESULTS.nonconvex)
        return solved | stalled | ~state.convex, result

    def finish(self, problem: QuadraticProgram, state: State) -> State:
        reduced = state.reduced
        z = jnp.where(state.working, state.basic, 0)
        half = matmul(state.half, jnp.append(z, 1))
        at = iterate_at(reduced, -solve_lower(state.factor, half, transposed=True), z)
        # One step of Newton's method, with the tableau's inverse of M on the working rows: H had a
        # little on its diagonal, and the pivots have left their rounding.
        half, rows = solve_lower(state.factor, at.gradient), state.half[:, :-1]
        short = jnp.where(state.working, -at.s - matmul(half, rows), 0)
        dz = jnp.where(state.working, matmul(state.tableau, short), 0)
        dv = -solve_lower(state.factor, half + matmul(rows, dz), transposed=True)
        v, z = at.v + dv, z + dz
        return eqx.tree_at(
            lambda s: (s.working, s.basic, s.point),
            state,
            (state.working | reduced.fixed, z, answer(problem, reduced, v, z)),
        )

    def point(self, problem: QuadraticProgram, state: State) -> Point:
        return state.point

    def rescue(self) -> AbstractSolver:
        from .embedding import HomogeneousEmbedding

        return HomogeneousEmbedding()

    def preconditioner(self, problem: QuadraticProgram, state: State) -> ActiveSystem:
        weight = jnp.where(state.working, state.reduced.penalty, 0)
        factor = cholesky(state.reduced.normal(weight))
        return active_system(problem, state.reduced, factor, weight, state.basic)


def _smallest(values: Float[Array, " m"]) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """The first place of the minimum, and the minimum. An `argmin` goes number by number on CPUs:
    two reductions take a third of it."""
    rows = jnp.arange(values.size, dtype=jnp.int32)
    least = lax.optimization_barrier(jnp.min(values))
    return jnp.min(jnp.where(values == least, rows, values.size)), least


def _column(matrix: Float[Array, "m m"], at: Bool[Array, " m"]) -> Float[Array, " m"]:
    """The column at the one place where `at` holds. A product: on a batch a gather is slower."""
    return matmul(matrix, at.astype(matrix.dtype))


def _entry(vector: Float[Array, " m"], at: Bool[Array, " m"]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(at, vector, 0))


def _pivot(
    tableau: Float[Array, "m m"],
    working: Bool[Array, " m"],
    at: Bool[Array, " m"],
    leaves: Bool[Array, ""],
) -> Float[Array, "m m"]:
    """The principal pivot on the one entry where `at` holds: its row enters the working set, or
    leaves it. The tableau is symmetric but for signs: minus between working rows and others."""
    column = _column(tableau, at)
    pivot = _entry(column, at)
    row = jnp.where(working == leaves, column, -column)
    scaled = jnp.where(at, -1, row) / jnp.where(pivot == 0, 1, pivot)
    rest = jnp.where(at[:, None] | at[None, :], 0, tableau)
    return rest - jnp.where(at, 1, column)[:, None] * scaled[None, :]


def _from_working_set(
    reduced: Reduced,
    tableau: Float[Array, "m m"],
    basic: Float[Array, " m"],
    wanted: Bool[Array, " m"],
) -> tuple[Float[Array, "m m"], Float[Array, " m"], Bool[Array, " m"]]:
    """Tableau, basic variables and working set of the rows `wanted` whose multipliers come out
    positive; those of the empty set where that cannot be had."""
    one, signed = identity(basic), ~reduced.fixed

    def solved(rows: Bool[Array, " m"]) -> tuple[Array, Array]:
        """The inverse of the tableau on these rows, and their multipliers."""
        inside = rows[:, None] & rows[None, :]
        inverse = jnp.where(inside, jnp.linalg.inv(jnp.where(inside, tableau, one)), 0)
        return inverse, -matmul(inverse, basic)

    for _ in range(2):
        _, z = solved(wanted)
        wanted = wanted & (~signed | (z > 0))
    inverse, z = solved(wanted)
    across = matmul(tableau, inverse)
    outside = ~wanted[:, None] & ~wanted[None, :]
    pivoted = jnp.where(outside, tableau - matmul(across, tableau), across + inverse)
    pivoted = jnp.where(wanted[:, None] & ~wanted[None, :], -across.T, pivoted)
    moved = jnp.where(wanted, z, basic + matmul(tableau, z))
    usable = jnp.all(jnp.where(wanted & signed, z >= 0, True)) & jnp.all(jnp.isfinite(pivoted))
    return (
        jnp.where(usable, pivoted, tableau),
        jnp.where(usable, moved, basic),
        wanted & usable,
    )


def _violation(
    reduced: Reduced, working: Bool[Array, " m"], basic: Float[Array, " m"]
) -> Float[Array, ""]:
    """The largest violation of a row outside the working set, relative to the data's size."""
    over = jnp.where(reduced.fixed, jnp.abs(basic), -basic)
    over = jnp.where(working | (reduced.penalty == 0), 0, over)
    return largest(jnp.maximum(over, 0) / reduced.primal_scale)
