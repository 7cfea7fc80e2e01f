"""Primal-dual interior point for dense convex quadratic programs.

On the null space of A (`reduced.py`) the program is: minimise v'Hv/2 + g'v with Kv + s = e, s >= 0.
One step is one factorisation of H + K' diag(w) K and two solves, in one of three modes:

    start      w = 1: the least-squares start of Mehrotra, shifted into the interior
    interior   w = z/s: Mehrotra's predictor and corrector
    polish     w large on the active rows: the solution on that active set, refined once

Once the interior iterate is accurate to about 1e-4, a polish is tried with the rows where z > s.
Its point is exact to rounding when the active set is right, and its factor then serves the
derivative as well. If it is not, the rows where the polished z exceeds the polished slack are
tried, and then the next step goes on from the interior iterate. An interior iterate that is within
the tolerance is polished as well: the factor that is left is of an active set. Mehrotra (1992);
polish as in Stellato et al. (2020).
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..core.solution import RESULTS, Guess, Point
from ..core.solver import AbstractSolver
from ..core.triangular import cholesky
from ..core.vectors import largest
from .active_system import ActiveSystem, active_system, answer
from .cone_program import ConeProgram
from .fields import check_multipliers
from .iterate import Iterate, active_weight, direction, iterate_at, natural_error, unpack
from .quadratic_program import QuadraticProgram
from .reduced import Reduced, reduce, require_dense

START, INTERIOR, POLISH = 0, 1, 2
TRIES = 2
"""Polishes in a row."""
UNKNOWN = 1e30
"""A residual before it was measured (infinity would say that the iterate is lost)."""
STEPS, PATIENCE = 60, 15
"""Steps before the rescue is asked, and steps without the residual falling to a half."""


class State(eqx.Module):
    """What a lane carries.

    Attributes:
        interior, trial: packed, the interior iterate and the last polished point (s: its slack).
        factor, weight: of the last step.
        levels: the natural residuals of the two, relative to the data's size; the accuracy at which
            the next polish is tried; the residual to be halved; the tolerance.
        counts: mode, polishes in a row, steps, steps without progress.
        convex: whether H has a Cholesky factor.
        point: the answer in the problem's own variables, after `finish`.
    """

    reduced: Reduced
    interior: Float[Array, " 2k+3m"]
    trial: Float[Array, " 2k+3m"]
    factor: Float[Array, "k k"]
    weight: Float[Array, " m"]
    levels: Float[Array, " 5"]
    counts: Int[Array, " 4"]
    convex: Bool[Array, ""]
    point: Point


class InteriorPoint(AbstractSolver[QuadraticProgram]):
    """Predictor-corrector on the null space of A, with an active-set polish.

    Use it for dense problems up to a few thousand variables, and for many small ones under vmap.
    Lanes that it cannot solve (dependent equalities, infeasible or unbounded problems) go to
    `HomogeneousEmbedding`. A `ConeProgram` is solved by `ConeInteriorPoint`, on
    the homogeneous embedding from the start.
    """

    step_limit: ClassVar[int] = 300

    def for_problem(self, problem: QuadraticProgram | ConeProgram) -> AbstractSolver:
        if not isinstance(problem, ConeProgram):
            return self
        from .cone_interior_point import ConeInteriorPoint

        return ConeInteriorPoint()

    def refuse(self, problem: QuadraticProgram) -> None:
        require_dense(self, problem)

    def init(self, problem: QuadraticProgram, guess: Guess) -> State:
        check_multipliers(problem, guess)
        reduced = reduce(problem)
        zero = jnp.zeros_like(reduced.dual_scale)
        none, nothing = jnp.zeros_like(reduced.gradient), jnp.zeros_like(reduced.limit)
        blank = Iterate(none, reduced.gradient, nothing, nothing, nothing).pack()
        aim = zero + (1e-4 if zero.dtype == jnp.float64 else 1e-3)
        lift = jnp.finfo(zero.dtype).eps ** 0.65 * reduced.curvature
        tested = cholesky(reduced.hessian + jnp.diag(lift + none))
        unknown, goal = zero + UNKNOWN, zero if guess.tolerance is None else guess.tolerance
        state = State(
            reduced=reduced,
            interior=blank,
            trial=blank,
            factor=jnp.zeros_like(reduced.hessian),
            weight=nothing,
            levels=jnp.stack([unknown, unknown, aim, unknown, goal]),
            counts=jnp.stack([jnp.zeros_like(zero, dtype=jnp.int32)] * 4),
            convex=jnp.isfinite(tested[-1, -1]),
            point=Point(guess.primal, problem.zero_dual()),
        )
        return state if guess.dual is None else _resume(state, Point(guess.primal, guess.dual))

    def step(self, problem: QuadraticProgram, state: State) -> State:
        return _step(state)

    def measure(self, problem: QuadraticProgram, state: State) -> Float[Array, ""]:
        return jnp.minimum(state.levels[0], state.levels[1])

    def status(self, problem, state, tolerance):
        _, tries, steps, slow = state.counts
        stalled = state.reduced.dependent | (slow >= PATIENCE) | (steps >= STEPS)
        # The last step is a polish: the derivative asks for the factor of an active set.
        solved = (self.measure(problem, state) <= tolerance) & (tries > 0)
        done = solved | stalled | ~state.convex
        result = RESULTS.where(stalled, RESULTS.stalled, RESULTS.successful)
        return done, RESULTS.where(state.convex, result, RESULTS.nonconvex)

    def finish(self, problem: QuadraticProgram, state: State) -> State:
        polished = state.levels[1] <= state.levels[0]
        packed = jnp.where(polished, state.trial, state.interior)
        best = unpack(packed, state.reduced.size)
        point = answer(problem, state.reduced, best.v, best.z)
        return eqx.tree_at(lambda s: (s.point, s.trial), state, (point, packed))

    def point(self, problem: QuadraticProgram, state: State) -> Point:
        return state.point

    def rescue(self) -> AbstractSolver:
        from .embedding import HomogeneousEmbedding

        return HomogeneousEmbedding()

    def preconditioner(self, problem: QuadraticProgram, state: State) -> ActiveSystem:
        z = unpack(state.trial, state.reduced.size).z
        return active_system(problem, state.reduced, state.factor, state.weight, z)


def _resume(state: State, guess: Point) -> State:
    """From a guess with multipliers: its active set is tried first."""
    reduced = state.reduced
    v, z = reduced.drop(guess.primal), reduced.gather(guess.dual)
    trial = iterate_at(reduced, v, z)
    return eqx.tree_at(
        lambda s: (s.trial, s.levels, s.counts, s.point),
        state,
        (
            trial.pack(),
            state.levels.at[1].set(natural_error(reduced, trial)),
            state.counts.at[0].set(POLISH),
            guess,
        ),
    )


def _step(state: State) -> State:
    reduced, size = state.reduced, state.reduced.size
    mode, tries, steps, slow = state.counts
    interior_error, trial_error, aim, mark, goal = state.levels
    start, polish, interior = mode == START, mode == POLISH, mode == INTERIOR
    fixed, free = reduced.fixed, reduced.free
    inside = interior & free
    packed = jnp.where(polish, state.trial, state.interior)
    old = unpack(packed, size)

    safe_s = jnp.where(inside, old.s, 1)
    usual = jnp.where(fixed, reduced.penalty, jnp.where(free, 1, 0))
    true = jnp.where(inside, old.z / safe_s, 0)
    full = 1 + true / reduced.ceiling
    weight = jnp.where(inside, true / full, usual)
    weight = jnp.where(polish, active_weight(reduced, old), weight)
    factor = cholesky(reduced.normal(weight))

    # First solve: the predictor; for a polish, active slacks and inactive multipliers go to zero.
    gap = old.row + old.s - reduced.limit
    active = polish & (weight > 0)
    centre = jnp.where(active, -weight * old.s, jnp.where(inside | polish, -old.z / full, 0))
    first = direction(reduced, factor, weight, old.gradient, gap, centre)

    # Second solve: the corrector; for a polish, what the first one left.
    rows = jnp.maximum(reduced.degree, 1)
    mu = jnp.sum(jnp.where(inside, old.s * old.z, 0)) / rows
    reach = _reach(old, first, inside)
    ahead = (old.s + reach * first.s) * (old.z + reach * first.z)
    ratio = jnp.sum(jnp.where(inside, ahead, 0)) / rows / jnp.where(mu > 0, mu, 1)
    target = jnp.maximum(jnp.clip(ratio, 0, 1) ** 3 * mu, _floor(reduced))
    centre = jnp.where(inside, ((target - first.s * first.z) / safe_s - old.z) / full, 0)
    centre = jnp.where(active, -weight * (old.s + first.s), centre)
    gap = jnp.where(polish, 0, gap)
    gradient = old.gradient + jnp.where(polish, first.gradient, 0)
    second = direction(reduced, factor, weight, gradient, gap, centre)

    # Interior: one length for all, short of the boundary. Start: z and -z, shifted to be positive.
    length = jnp.minimum(_reach(old, second, inside) * jnp.clip(1 - mu, 0.99, 1 - 1e-5), 1)
    least = jnp.minimum(reduced.dual_scale, 1)
    ends = jnp.where(free, jnp.stack([least - first.z, 1 + first.z]), 0)
    # Without entries a maximum has no derivative: there is one more.
    up, down = jnp.max(jnp.pad(ends, ((0, 0), (0, 1))), axis=1)
    once, twice = start | polish, jnp.where(start, 0, jnp.where(polish, 1, length))

    def total(a: Array, b: Array) -> Array:
        return jnp.where(once, a, 0) + twice * b

    slack = jnp.where(start, down - first.z, total(first.s, second.s))
    chosen = Iterate(
        total(first.v, second.v),
        total(first.gradient, second.gradient) + jnp.where(start, up, 0) * reduced.push,
        total(first.z, second.z) + jnp.where(start & free, up, 0),
        total(first.row, second.row),
        jnp.where(fixed, 0, slack),
    )
    moved = packed + chosen.pack()
    new = unpack(moved, size)

    # Where to go from here.
    error = natural_error(reduced, new)
    finite = jnp.isfinite(error)
    gap = jnp.where(reduced.penalty > 0, new.row + new.s - reduced.limit, 0)
    gap = jnp.concatenate([new.gradient / reduced.dual_scale, gap / reduced.primal_scale])
    mean = jnp.sum(jnp.where(free, new.s * new.z, 0)) / rows / reduced.dual_scale
    near = (jnp.maximum(largest(gap), mean) <= aim) | (error <= goal)
    stays = finite & (tries < TRIES - 1) & (steps > 0)
    # An interior iterate that is lost was as near as it gets: its rows are polished as a last try.
    goes = jnp.where(jnp.where(polish, stays, near | ~finite), POLISH, INTERIOR)
    goes = jnp.where(polish & (steps == 0), START, goes)
    interior_error = jnp.where(polish, interior_error, error)
    interior_error = jnp.where(finite, interior_error, state.levels[0])
    trial_error = jnp.where(polish & finite, error, trial_error)
    best = jnp.minimum(interior_error, trial_error)
    fell = best <= mark / 2
    aim = jnp.where(polish & (goes == INTERIOR), less(aim), aim)
    slow = jnp.where(fell, 0, slow + 1) + jnp.where(finite, 0, PATIENCE // 2 + 1)
    counts = [goes, jnp.where(polish, tries + 1, 0), steps + 1, slow]
    return State(
        reduced=reduced,
        interior=jnp.where(finite & ~polish, moved, state.interior),
        trial=jnp.where(
            finite & (polish | (goes == POLISH)),
            moved,
            jnp.where(finite | polish, state.trial, state.interior),
        ),
        factor=factor,
        weight=weight,
        levels=jnp.stack([interior_error, trial_error, aim, jnp.where(fell, best, mark), goal]),
        counts=jnp.stack([x.astype(jnp.int32) for x in counts]),
        convex=state.convex,
        point=state.point,
    )


def less(aim: Float[Array, ""]) -> Float[Array, ""]:
    """The accuracy to wait for after a polish that failed."""
    return aim * (1e-2 if aim.dtype == jnp.float64 else 1e-1)


def _floor(reduced: Reduced) -> Float[Array, ""]:
    return jnp.finfo(reduced.gradient.dtype).eps * reduced.dual_scale


def _reach(at: Iterate, step: Iterate, counts: Bool[Array, " m"]) -> Float[Array, ""]:
    """The largest t <= 2 for which s + t ds and z + t dz are not negative."""
    x, d = jnp.concatenate([at.s, at.z]), jnp.concatenate([step.s, step.z])
    falling = jnp.concatenate([counts, counts]) & (d < 0)
    return jnp.min(jnp.append(jnp.where(falling, -x / jnp.where(falling, d, -1), 2), 2))
