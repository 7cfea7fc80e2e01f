"""Alternating directions for convex programs with cones, ended by Newton's method.

With w = Mx in C (`splitting_form.py`) and weights r of the rows, one iteration of the splitting is

    z = Pi(v),   (P + s I + M'rM) dx = -(Px + q + M'r(v - 2z + Mx)),
    x <- x + a dx,   v <- v + a (M(x + dx) - z),   a = 1.6,

of which y = r (v - z) are the multipliers. A step is a number of these with one r, and one Newton
step on the natural residual w - Pi(w + y/r) from the best point: for polyhedra a solve on the
active set. The splitting finds the face from afar, Newton's method ends at rounding; where its
point is twice as good as all before, the splitting goes on from there.

If there is no solution, the changes of y or of x over a step tend to a certificate. Stellato et al.
(2020); Garstka, Cannon and Goulart (2021); Banjac, Goulart, Stellato and Boyd (2019).
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..core.checks import check_count, check_kind
from ..core.solution import RESULTS, Guess, Point
from ..core.solver import AbstractSolver
from ..core.vectors import largest
from .cone_program import ConeProgram
from .cone_system import ConeSystem
from .curvature import is_convex
from .fields import check_multipliers
from .quadratic_program import QuadraticProgram
from .splitting_form import Form, first_level, form_of, row_weights
from .splitting_systems import AbstractSystem, system_of

RELAXATION = 1.6
STIFF = 1e3
"""The weight of equalities over that of inequalities."""
SOFT = (1e-8, 1.0)
UNKNOWN = 1e30
PATIENCE = 60
"""Steps without the residual falling to a half."""
OPEN, INFEASIBLE, UNBOUNDED = 0, 1, 2


class State(eqx.Module):
    """What a lane carries.

    Attributes:
        x, v: of the splitting.
        best_x, best_y: the point of the smallest residual.
        level: the factor of the weights.
        errors: the residual of the best point, the one to be halved, the one at which Newton's
            method is next tried.
        counts: steps without progress, what is proved, whether Newton's last step gained.
        convex: whether P has a factor.
        point: the answer by field, the certificate where there is one.
    """

    x: Float[Array, " n"]
    v: Float[Array, " rows"]
    best_x: Float[Array, " n"]
    best_y: Float[Array, " rows"]
    level: Float[Array, ""]
    errors: Float[Array, "3"]
    counts: Int[Array, "3"]
    convex: Bool[Array, ""]
    point: Point


class OperatorSplitting(AbstractSolver[QuadraticProgram | ConeProgram]):
    """Alternating directions (ADMM) with Newton's method at the end; for all cones, warm-started.

    Use it for cone programs, for problems with sparse matrices or operators (no factor is made of
    them), and where a good guess is at hand. Dense quadratic programs are for `InteriorPoint`.

    Args:
        iterations: of the splitting in a step, each step making two factors of size n (or none:
            with sparse matrices and operators an iteration is up to 20 products).
    """

    iterations: int = 20

    step_limit: ClassVar[int] = 1000
    proves: ClassVar[bool] = True

    def refuse(self, problem: QuadraticProgram | ConeProgram) -> None:
        check_kind(self, problem, QuadraticProgram, ConeProgram)
        check_count("OperatorSplitting", iterations=self.iterations)

    def init(self, problem: QuadraticProgram | ConeProgram, guess: Guess) -> State:
        check_multipliers(problem, guess)
        form = form_of(problem)
        x = guess.primal
        zero = jnp.zeros_like(x[0])
        dual = problem.zero_dual() if guess.dual is None else guess.dual
        y = form.gather(dual)
        unit = row_weights(form)
        found = guess.state
        level = found.level if isinstance(found, State) else first_level(form, unit)
        w = form.apply(x)
        v = w + y / (level * unit)
        error, _ = form.error(x, w, form.bend(x), y)
        slow = jnp.zeros_like(zero, dtype=jnp.int32)
        return State(
            x=x,
            v=v,
            best_x=x,
            best_y=y,
            level=level,
            errors=jnp.stack([error, zero + UNKNOWN, zero + SOFT[0]]),
            # From a guess with multipliers Newton's method starts at once.
            counts=jnp.stack([slow, slow, jnp.full_like(slow, guess.dual is not None)]),
            convex=is_convex(problem.P, problem.A),
            point=Point(x, dual),
        )

    def step(self, problem: QuadraticProgram | ConeProgram, state: State) -> State:
        form = form_of(problem)
        system, unit, fixed = system_of(form), row_weights(form), form.fixed()
        weight = state.level * jnp.where(fixed, STIFF * unit, unit)
        x, v = _iterate(system, weight, state.x, state.v, self.iterations)
        z = form.project(v)
        y = weight * (v - z)
        old_y = weight * (state.v - form.project(state.v))
        w, bent = form.apply(x), form.bend(x)
        error, gradient = form.error(x, w, bent, y)
        level = state.level * _change(form, w, z, bent, y, gradient)

        # Newton's step, from the best point; where it gained nothing there, from the splitting's.
        best, mark, soft = state.errors
        ahead = (best < error) & (state.counts[2] == 1)
        start_x, start_y = jnp.where(ahead, state.best_x, x), jnp.where(ahead, state.best_y, y)
        even = level * unit
        near = jnp.minimum(best, error)
        trial_x, trial_y = _newton(system, even, start_x, start_y, soft)
        trial_w = form.apply(trial_x)
        trial, _ = form.error(trial_x, trial_w, form.bend(trial_x), trial_y)
        trial = jnp.where(jnp.isfinite(trial), trial, UNKNOWN)

        gained = trial < 0.9 * near
        soft = jnp.where(trial < 0.5 * near, soft / 100, jnp.where(gained, soft / 4, 10 * soft))
        soft = jnp.clip(soft, SOFT[0], SOFT[1])
        kept = best < error
        best_x, best_y = jnp.where(kept, state.best_x, x), jnp.where(kept, state.best_y, y)
        better = trial < near
        best_x, best_y = jnp.where(better, trial_x, best_x), jnp.where(better, trial_y, best_y)
        x = jnp.where(gained, trial_x, x)
        weight = jnp.where(fixed, STIFF * even, even)
        v = jnp.where(gained, trial_w + trial_y / weight, z + y / weight)

        proved, point = _certificates(problem, form, x - state.x, y - old_y)
        now = jnp.minimum(near, trial)
        fell = now <= mark / 2
        slow = jnp.where(fell, 0, state.counts[0] + 1)
        return State(
            x=x,
            v=v,
            best_x=best_x,
            best_y=best_y,
            level=level,
            errors=jnp.stack([now, jnp.where(fell, now, mark), soft]),
            counts=jnp.stack([x.astype(jnp.int32) for x in (slow, proved, gained)]),
            convex=state.convex,
            point=point,
        )

    def measure(self, problem: QuadraticProgram | ConeProgram, state: State) -> Float[Array, ""]:
        return state.errors[0]

    def status(self, problem, state, tolerance):
        slow, proved, _ = state.counts
        solved = state.errors[0] <= tolerance
        result = RESULTS.where(proved == INFEASIBLE, RESULTS.infeasible, RESULTS.stalled)
        result = RESULTS.where(proved == UNBOUNDED, RESULTS.unbounded, result)
        result = RESULTS.where(solved, RESULTS.successful, result)
        result = RESULTS.where(state.convex, result, RESULTS.nonconvex)
        stops = (slow >= PATIENCE) | (proved != OPEN) | ~state.convex
        return solved | stops, result

    def finish(self, problem: QuadraticProgram | ConeProgram, state: State) -> State:
        form = form_of(problem)
        x, y = state.best_x, state.best_y
        y = form.complementary(x, y, state.level * row_weights(form), state.errors[0])
        if not isinstance(problem, ConeProgram) and form.box:
            count = form.low.shape[0] - x.shape[0]
            low, high = form.low[count:], form.high[count:]
            x = jnp.where(low == high, low, x)
        proved = state.counts[1] != OPEN
        found = Point(x, form.split(y))
        point = jax.tree.map(lambda p, f: jnp.where(proved, p, f), state.point, found)
        return eqx.tree_at(lambda s: s.point, state, point)

    def point(self, problem: QuadraticProgram | ConeProgram, state: State) -> Point:
        return state.point

    def preconditioner(self, problem: QuadraticProgram | ConeProgram, state: State) -> ConeSystem:
        return ConeSystem.of(problem, state.point)


def _iterate(
    system: AbstractSystem,
    weight: Float[Array, " rows"],
    x: Float[Array, " n"],
    v: Float[Array, " rows"],
    count: int,
) -> tuple[Float[Array, " n"], Float[Array, " rows"]]:
    form, solve = system.form, system.splitting(weight)

    def iterate(carry, _):
        x, w, v = carry
        z = form.project(v)
        dx = solve(form.bend(x) + form.q + form.transposed(weight * (v - 2 * z + w)))
        dw = form.apply(dx)
        new = x + RELAXATION * dx, w + RELAXATION * dw, v + RELAXATION * (w + dw - z)
        return new, None

    (x, _, v), _ = lax.scan(iterate, (x, form.apply(x), v), length=count)
    return x, v


def _newton(system: AbstractSystem, weight, x, y, soft):
    form = system.form
    w = form.apply(x)
    v = w + y / weight
    gap = w - form.project(v)
    gradient = form.bend(x) + form.q + form.transposed(y)
    dx, dy = system.newton(form.slope(v), weight, gradient, gap, soft)
    return x + dx, y + dy


def _change(form: Form, w, z, bent, y, gradient) -> Float[Array, ""]:
    """The factor for the weights that balances the two residuals."""
    if form.count == 0:
        return jnp.ones_like(form.q[0])
    tiny = jnp.finfo(w.dtype).tiny
    push = form.transposed(y)
    primal = largest(w - z) / jnp.maximum(jnp.maximum(largest(w), largest(z)), tiny)
    sizes = jnp.maximum(jnp.maximum(largest(bent), largest(form.q)), largest(push))
    dual = largest(gradient) / jnp.maximum(sizes, tiny)
    known = (primal > 0) & (dual > 0)
    ratio = jnp.sqrt(jnp.where(known, primal, 1) / jnp.where(known, dual, 1))
    ratio = jnp.clip(ratio, 0.1, 10)
    return jnp.where((ratio > 2) | (ratio < 0.5), ratio, 1)


def _certificates(problem, form: Form, dx, dy) -> tuple[Int[Array, ""], Point]:
    """Whether the changes of the multipliers or of x prove something, and what."""
    ray = dx / jnp.maximum(largest(dx), jnp.finfo(dx.dtype).tiny)
    weights = form.recede(dy)
    size = largest(jnp.append(weights, 0))
    dual = form.split(weights / jnp.maximum(size, jnp.finfo(dx.dtype).tiny))
    infeasible = problem.certificate(Point(ray, dual), RESULTS.infeasible)
    unbounded = problem.certificate(Point(ray, dual), RESULTS.unbounded)
    none = jnp.zeros_like(infeasible, dtype=jnp.int32)
    proved = jnp.where(infeasible, INFEASIBLE, jnp.where(unbounded, UNBOUNDED, none))
    return proved, Point(ray, dual)
