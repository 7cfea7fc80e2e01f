"""Primal-dual interior point for dense convex quadratic programs.

On the null space of A (`reduced.py`) the program is: minimise v'Hv/2 + g'v with Kv + s = e, s >= 0.
One step is one factorisation of H + K' diag(w) K and two solves, in one of three modes:

    start      w = 1: the least-squares start of Mehrotra, shifted into the interior
    interior   w = z/s: Mehrotra's predictor and corrector
    polish     w large on the active rows: the solution on that active set, refined once

Once the interior iterate is accurate to about 1e-5, a polish is tried with the rows where z > s. Its
point is exact to rounding when the active set is right, and its factor then serves the derivative as
well. If it is not, the rows where the polished z exceeds the polished slack are tried, and then the
next step goes on from the interior iterate. Mehrotra (1992); polish as in Stellato et al. (2020).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..core.solution import RESULTS, Guess, Point
from ..core.solver import AbstractSolver
from ..core.vectors import largest
from .polish import ActiveSystem
from .quadratic_program import QuadraticProgram
from .reduced import Reduced, fields_of, join, reduce, solve_lower

START, INTERIOR, POLISH = 0, 1, 2
TRIES = 2
"""Polishes in a row."""
STEPS, PATIENCE = 60, 15
"""Steps before the rescue is asked, and steps without the residual falling to a half."""


class Iterate(eqx.Module):
    """v, z and s of the reduced program, with Hv + g + K'z and Kv."""

    v: Float[Array, " k"]
    gradient: Float[Array, " k"]
    z: Float[Array, " m"]
    row: Float[Array, " m"]
    s: Float[Array, " m"]

    def __add__(self, step: "Iterate") -> "Iterate":
        return jax.tree.map(jnp.add, self, step)


class State(eqx.Module):
    """What a lane carries.

    Attributes:
        interior: the interior iterate, `trial` the last polished point (s: its slack).
        factor, weight: of the last step.
        error, trial_error: the natural residuals of the two, relative to the data's size.
        aim: the accuracy at which the next polish is tried; `mark`, the residual to be halved.
        counts: mode, polishes in a row, steps, steps without progress.
        convex: whether H has a Cholesky factor.
        point: the answer in the problem's own variables, after `finish`.
    """

    reduced: Reduced
    interior: Iterate
    trial: Iterate
    factor: Float[Array, "k k"]
    weight: Float[Array, " m"]
    error: Float[Array, ""]
    trial_error: Float[Array, ""]
    aim: Float[Array, ""]
    mark: Float[Array, ""]
    counts: Int[Array, " 4"]
    convex: Bool[Array, ""]
    point: Point


class InteriorPoint(AbstractSolver[QuadraticProgram]):
    """Predictor-corrector on the null space of A, with an active-set polish.

    Use it for dense problems up to a few thousand variables, and for many small ones under vmap.
    Lanes that it cannot solve (dependent equalities, infeasible or unbounded problems) go to
    `HomogeneousEmbedding`.
    """

    step_limit: ClassVar[int] = 300

    def init(self, problem: QuadraticProgram, guess: Guess) -> State:
        reduced = reduce(problem)
        zero = jnp.zeros_like(reduced.dual_scale)
        none, nothing = jnp.zeros_like(reduced.gradient), jnp.zeros_like(reduced.limit)
        blank = Iterate(none, reduced.gradient, nothing, nothing, nothing)
        lift = jnp.finfo(zero.dtype).eps ** 0.65 * reduced.curvature
        tested = lax.linalg.cholesky(reduced.hessian + jnp.diag(lift + none))
        state = State(
            reduced=reduced,
            interior=blank,
            trial=blank,
            factor=jnp.zeros_like(reduced.hessian),
            weight=nothing,
            error=zero + jnp.inf,
            trial_error=zero + jnp.inf,
            aim=zero + (1e-5 if zero.dtype == jnp.float64 else 1e-3),
            mark=zero + jnp.inf,
            counts=jnp.stack([jnp.zeros_like(zero, dtype=jnp.int32)] * 4),
            convex=jnp.isfinite(tested[-1, -1]),
            point=Point(guess.primal, problem.zero_dual()),
        )
        return state if guess.dual is None else _resume(state, Point(guess.primal, guess.dual))

    def step(self, problem: QuadraticProgram, state: State) -> State:
        return _step(state)

    def measure(self, problem: QuadraticProgram, state: State) -> Float[Array, ""]:
        return jnp.minimum(state.error, state.trial_error)

    def status(self, problem, state, tolerance):
        _, _, steps, slow = state.counts
        stalled = state.reduced.dependent | (slow >= PATIENCE) | (steps >= STEPS)
        done = (self.measure(problem, state) <= tolerance) | stalled | ~state.convex
        result = RESULTS.where(stalled, RESULTS.stalled, RESULTS.successful)
        return done, RESULTS.where(state.convex, result, RESULTS.nonconvex)

    def finish(self, problem: QuadraticProgram, state: State) -> State:
        polished = state.trial_error <= state.error
        best = select(polished, state.trial, state.interior)
        x = state.reduced.lift(best.v)
        if problem.lower is not None and problem.upper is not None:
            x = jnp.where(problem.lower == problem.upper, problem.lower, x)
        dual = state.reduced.dual(None, best.z)
        if problem.A is not None:
            y = jnp.zeros_like(problem.b)
            gradient = problem.conditions(Point(x, eqx.tree_at(_equality, dual, y, is_leaf=_none)))
            if state.reduced.triangle is not None:
                y = join(state.reduced.equality_dual(gradient.gradient), y, None, y)[: y.size]
            dual = eqx.tree_at(_equality, dual, y, is_leaf=_none)
        return eqx.tree_at(lambda s: (s.point, s.trial), state, (Point(x, dual), best))

    def point(self, problem: QuadraticProgram, state: State) -> Point:
        return state.point

    def rescue(self) -> AbstractSolver:
        from .embedding import HomogeneousEmbedding

        return HomogeneousEmbedding()

    def preconditioner(self, problem: QuadraticProgram, state: State) -> ActiveSystem:
        reduced, weight = state.reduced, state.weight
        tied = jnp.zeros_like(reduced.fixed)
        if all(reduced.bounds):
            # Of a fixed variable's two bounds one is active and one tied.
            count, bounds = reduced.inequalities, reduced.bounds
            rows, large, upper = fields_of(weight, count, bounds)
            fixed = fields_of(reduced.fixed, count, bounds)[1]
            high = fixed & (fields_of(state.trial.z, count, bounds)[1] < 0)
            weight = join(
                rows,
                jnp.where(high, 1, large),
                jnp.where(fixed, jnp.where(high, large, 1), upper),
                weight,
            )
            tied = join(None if rows is None else rows != rows, high, fixed & ~high, weight)
        return ActiveSystem(
            reduced, state.factor, weight, tied, problem.P, problem.G, _equalities(problem)
        )


def _resume(state: State, guess: Point) -> State:
    """From a guess with multipliers: its active set is tried first."""
    reduced, x = state.reduced, guess.primal
    v = reduced.restrict(x if reduced.start is None else x - reduced.start)
    bent, row = reduced.apply(v)
    z = reduced.gather(guess.dual)
    gradient = bent + reduced.gradient + reduced.transposed(z)
    trial = Iterate(v, gradient, z, row, reduced.limit - row)
    weight = active_weight(reduced, trial)
    factor = lax.linalg.cholesky(reduced.normal(weight), symmetrize_input=False)
    return eqx.tree_at(
        lambda s: (s.trial, s.trial_error, s.factor, s.weight, s.counts, s.point),
        state,
        (
            trial,
            natural_error(reduced, trial),
            factor,
            weight,
            state.counts.at[0].set(POLISH),
            Point(guess.primal, guess.dual),
        ),
    )


def _step(state: State) -> State:
    reduced = state.reduced
    mode, tries, steps, slow = state.counts
    polish, interior = mode == POLISH, mode == INTERIOR
    fixed, free = reduced.fixed, reduced.free
    inside = interior & free
    old = select(polish, state.trial, state.interior)

    safe_s = jnp.where(inside, old.s, 1)
    weight = jnp.where(inside, old.z / safe_s, jnp.where(free, 1, 0))
    weight = jnp.where(fixed, reduced.penalty, weight)
    weight = jnp.where(polish, active_weight(reduced, old), weight)
    factor = lax.linalg.cholesky(reduced.normal(weight), symmetrize_input=False)

    def direction(gradient, gap, centre) -> Iterate:
        """v and z with H dv + K'dz = -gradient and dz = centre + weight (K dv + gap)."""
        right = -(gradient + reduced.transposed(centre + weight * gap))
        dv = solve_lower(factor, solve_lower(factor, right), transposed=True)
        bent, row = reduced.apply(dv)
        dz = centre + weight * (gap + row)
        return Iterate(dv, bent + reduced.transposed(dz), dz, row, -gap - row)

    # First solve: the predictor; for a polish, the multipliers of inactive rows go to zero.
    gap = old.row - reduced.limit + jnp.where(inside, old.s, 0)
    first = direction(old.gradient, gap, jnp.where(inside | (polish & (weight == 0)), -old.z, 0))

    # Second solve: the corrector; for a polish, what the first one left.
    rows = jnp.maximum(jnp.sum(free), 1).astype(gap.dtype)
    mu = jnp.sum(jnp.where(inside, old.s * old.z, 0)) / rows
    reach = _reach(old, first, inside)
    ahead = (old.s + reach * first.s) * (old.z + reach * first.z)
    ratio = jnp.sum(jnp.where(inside, ahead, 0)) / rows / jnp.where(mu > 0, mu, 1)
    target = jnp.maximum(jnp.clip(ratio, 0, 1) ** 3 * mu, _floor(reduced))
    centre = jnp.where(inside, (target - first.s * first.z) / safe_s - old.z, 0)
    again = polish.astype(gap.dtype)
    second = direction(
        old.gradient + again * first.gradient, gap + again * first.row, centre
    )

    # One length for all, short of the boundary.
    length = jnp.minimum(_reach(old, second, inside) * jnp.clip(1 - mu, 0.99, 1 - 1e-5), 1)
    moved = jax.tree.map(lambda x, d: x + length * d, old, second)
    refined = old + first + second
    refined = eqx.tree_at(lambda t: t.s, refined, reduced.limit - refined.row)
    # Start: z and -z, each shifted to be positive.
    lowest = jnp.min(jnp.where(free, first.z, jnp.inf), initial=jnp.inf)
    highest = jnp.max(jnp.where(free, first.z, -jnp.inf), initial=-jnp.inf)
    up = jnp.where(free, jnp.where(lowest > 0, 0, 1 - lowest), 0)
    begun = Iterate(
        first.v,
        old.gradient + first.gradient + reduced.transposed(up),
        first.z + up,
        first.row,
        jnp.where(free, jnp.where(highest < 0, 0, 1 + highest) - first.z, 0),
    )
    new = select(mode == START, begun, moved)

    # Where to go from here.
    candidate = select(polish, refined, new)
    error = natural_error(reduced, candidate)
    finite = jnp.isfinite(error)
    gap = jnp.where(reduced.penalty > 0, candidate.row + candidate.s - reduced.limit, 0)
    mean = jnp.sum(jnp.where(free, candidate.s * candidate.z, 0)) / rows
    worst = jnp.maximum(largest(candidate.gradient), mean) / reduced.dual_scale
    near = jnp.maximum(worst, largest(jnp.append(gap, 0))/ reduced.primal_scale) <= state.aim
    again = finite & (tries < TRIES) & (state.counts[2] > 0)
    mode = jnp.where(polish, jnp.where(again, POLISH, INTERIOR), jnp.where(near, POLISH, INTERIOR))
    mode = jnp.where(polish & (steps == 0), START, mode)
    leaves = polish & (mode == INTERIOR)
    enters = ~polish & (mode == POLISH)
    interior_error = jnp.where(polish, state.error, error)
    trial_error = jnp.where(polish & finite, error, state.trial_error)
    best = jnp.minimum(interior_error, trial_error)
    fell = best <= state.mark / 2
    return State(
        reduced=reduced,
        interior=select(polish | ~finite, state.interior, new),
        trial=select(polish & finite, refined, select(enters, new, state.trial)),
        factor=factor,
        weight=weight,
        error=interior_error,
        trial_error=trial_error,
        aim=jnp.where(leaves, state.aim * 1e-2, state.aim),
        mark=jnp.where(fell, best, state.mark),
        counts=jnp.stack(
            [
                mode,
                jnp.where(polish, tries + 1, 0),
                steps + 1,
                jnp.where(fell, 0, slow + 1) + jnp.where(finite, 0, PATIENCE),
            ]
        ).astype(jnp.int32),
        convex=state.convex,
        point=state.point,
    )


def natural_error(reduced: Reduced, at: Iterate) -> Float[Array, ""]:
    """The natural residual of the reduced program, each part over its scale."""
    slack = (reduced.limit - at.row) / reduced.primal_scale
    pair = jnp.where(reduced.fixed, slack, jnp.minimum(at.z / reduced.dual_scale, slack))
    pair = jnp.where(reduced.penalty > 0, pair, 0)
    return largest(jnp.concatenate([at.gradient / reduced.dual_scale, pair]))


def active_weight(reduced: Reduced, at: Iterate) -> Float[Array, " m"]:
    """The penalty on rows that are active, 0 on the others."""
    return jnp.where((at.z > at.s) | reduced.fixed, reduced.penalty, 0)


def _floor(reduced: Reduced) -> Float[Array, ""]:
    return jnp.finfo(reduced.gradient.dtype).eps * reduced.dual_scale


def _reach(at: Iterate, step: Iterate, counts: Bool[Array, " m"]) -> Float[Array, ""]:
    """The largest t <= 2 for which s + t ds and z + t dz are not negative."""
    x, d = jnp.concatenate([at.s, at.z]), jnp.concatenate([step.s, step.z])
    falling = jnp.concatenate([counts, counts]) & (d < 0)
    return jnp.min(jnp.where(falling, -x / jnp.where(falling, d, -1), 2), initial=2.0)


def _equalities(problem: QuadraticProgram) -> int:
    return 0 if problem.b is None else problem.b.shape[0]


def _equality(dual):
    return dual.equality


def _none(x: Any) -> bool:
    return x is None


def select(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
