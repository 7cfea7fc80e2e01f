"""Primal-dual interior point for cone programs.

With all rows in one, Kx + s = e, s in a product of cones (s = 0 on equalities), the homogeneous
embedding asks for x, z, s in the cone and tau, kappa >= 0 with

    Px + K'z + q tau = 0,   Kx + s - e tau = 0,   x'Px/tau + q'x + e'z + kappa = 0.

It always has a solution with s'z + tau kappa = 0. Where tau > 0, x/tau solves the program; where
kappa > 0, z proves it infeasible or x unbounded. Complementarity is linearised in the scaling W of
Nesterov and Todd, in which s and z are the same vector l = Wz = W^-1 s:

    l o (W^-1 ds + W dz) = r   <=>   D dz = (I - D) (-ds) + D W^-1 (l \\ r),   D = (I + W^-2)^-1,

D being for the iterate what the derivative of the projection on the cone is for a solution. So the
predictor, the corrector and a Newton step on the natural residual s - Pi(s - z) are solves with one
system that differ in D alone, and the last ones of a solve are Newton's. The exponential cone has
no product: there W takes z to s and their shadows to each other, and the corrector is by the
barrier's third derivative.

Nesterov and Todd (1997); Andersen, Roos and Terlaky (2003); Dahl and Andersen (2022); Goulart and
Chen (2024).
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..core.checks import check_kind
from ..core.solution import RESULTS, Guess, Point
from ..core.solver import AbstractSolver
from ..core.vectors import dot, largest, positive
from .certificates import scaled
from .cone_program import ConeProgram
from .cone_system import ConeSystem
from .cones import AbstractBarrierCone, Nonnegative, Product, Zero
from .cones.cone import first_zero
from .curvature import is_convex
from .embedding import INFEASIBLE, OPEN, UNBOUNDED, Ray, proof
from .fields import check_multipliers
from .interior_point import UNKNOWN, less
from .reduced import require_arrays
from .splitting_form import Form, RowSlope, first_level, form_of, row_weights
from .splitting_systems import Factored, NewtonSystem

START, INTERIOR, POLISH = 0, 1, 2
GAIN, PATIENCE = 4, 25
"""The fall of the residual for which Newton's steps go on; steps without its falling to a half."""
DECIDED, EARLY = 0.1, 3e-2
"""The gap, beside s + z, at which a row's side is decided; Newton's method is tried from this
residual on where all are."""


class State(eqx.Module):
    """What a lane carries.

    Attributes:
        ray: the iterate.
        trial_x, trial_z: the best point so far; where Newton's method is.
        rows, gradients: Kx and Px + q + K'z at x/tau of the iterate, and at the best point.
        levels: the natural residuals of the two, the accuracy at which Newton's method is tried,
            the residual to be halved, that which Newton's method last ended with.
        counts: mode, steps without progress, what is proved.
        convex: whether P has a factor.
        point: after `finish`, the answer by field, or what proves that there is none.
    """

    ray: Ray
    trial_x: Float[Array, " n"]
    trial_z: Float[Array, " m"]
    rows: Float[Array, "2 m"]
    gradients: Float[Array, "2 n"]
    levels: Float[Array, "5"]
    counts: Int[Array, "3"]
    convex: Bool[Array, ""]
    point: Point


class ConeInteriorPoint(AbstractSolver[ConeProgram]):
    """Predictor-corrector on the homogeneous embedding, ended by Newton's method.

    What `InteriorPoint` is for a `ConeProgram`: dense, with or without a solution.
    """

    step_limit: ClassVar[int] = 100
    proves: ClassVar[bool] = True

    def refuse(self, problem: ConeProgram) -> None:
        check_kind(self, problem, ConeProgram)
        for i, cone in enumerate(problem.cones):
            if not isinstance(cone, AbstractBarrierCone):
                raise TypeError(
                    f"InteriorPoint takes cones with a barrier, but `cones[{i}]` is "
                    f"{type(cone).__name__}: use OperatorSplitting."
                )
        require_arrays("InteriorPoint", problem)

    def init(self, problem: ConeProgram, guess: Guess) -> State:
        check_multipliers(problem, guess)
        form, cone, h = _form(problem)
        x, one = guess.primal, jnp.ones_like(form.q[0])
        dual = problem.zero_dual() if guess.dual is None else guess.dual
        z, none = form.gather(dual), cone.identity(h)
        row = form.apply(x)
        error, gradient = form.error(x, row, form.bend(x), z)
        # From a guess with multipliers Newton's method starts at once.
        mode = START if guess.dual is None else POLISH
        count = jnp.zeros_like(one, dtype=jnp.int32)
        return State(
            ray=Ray(0 * x, none, none, one, one),
            trial_x=x,
            trial_z=z,
            rows=jnp.stack([0 * row, row]),
            gradients=jnp.stack([0 * x, gradient]),
            levels=jnp.stack([one * UNKNOWN, error, one * _aim(one.dtype), *[one * UNKNOWN] * 2]),
            counts=jnp.stack([count + mode, count, count]),
            convex=is_convex(problem.P, problem.A),
            point=Point(x, dual),
        )

    def step(self, problem: ConeProgram, state: State) -> State:
        form, cone, h = _form(problem)
        q, weight = form.q, _weight(form)
        mode, slow, proved = state.counts
        ray_error, trial_error, aim, mark, ended = state.levels
        start, old = mode == START, state.ray
        root, free = jnp.sqrt(weight), ~form.fixed()

        # D of the iterate, of Newton's point, or (I + I)^-1.
        scaling = cone.scaling(root * old.s, old.z / root)
        slack, push = h - state.rows[1], state.trial_z / weight
        inner = scaling.map(lambda w: 1 / (1 + jnp.where(start & jnp.isfinite(w), 1, w)))
        touching = cone.slope(slack - push)
        # A projection on a cone is its own derivative, applied to the point.
        gap = touching.apply(_itself, slack - push) - slack
        # Where it is small beside s + z, the side of each row or cone is decided.
        both = slack + push
        sizes = jnp.where(cone.consists(Nonnegative), jnp.abs(both), cone.sizes(both))
        apart = jnp.max(jnp.where(free, jnp.abs(gap) / positive(sizes), 0), initial=0)
        early = (apart <= DECIDED) & (trial_error <= EARLY) & (trial_error < ended / 2)
        polish = (mode == POLISH) | (mode == INTERIOR) & early
        slope = jax.tree.map(lambda a, b: jnp.where(polish, a, b), touching, inner)
        system = Factored.of(form)
        newton = NewtonSystem.of(system, RowSlope(weight[:0], slope), weight, 0 * old.tau)

        def solve(*sides):
            """Px + K'z = -gradient, D z/w = (I - D) (Kx + gap) + other."""
            bent = [(g, slope.apply(lambda d: 1 - d, gap) + other) for g, gap, other in sides]
            # In float32 more is put on the diagonals, and left to take away.
            return newton.refined(bent, 1 if q.dtype == jnp.float64 else 2)

        # The response to tau, and the predictor or Newton's step.
        bent = form.bend(old.x)
        curved = dot(old.x, bent) / old.tau**2
        r_x, r_z = old.tau * state.gradients[0], old.tau * (state.rows[0] - h) + old.s
        r_t = old.kappa + dot(q, old.x) + dot(h, old.z) + curved * old.tau
        other = jnp.where(polish, gap, -slope.apply(_itself, old.z) / weight)
        predictor = (jnp.where(polish, state.gradients[1], r_x), jnp.where(polish, 0, r_z), other)
        (w_x, w_z, w_row), (p_x, p_z, p_row) = solve((q, -h, 0 * h), predictor)
        along = q + 2 * bent / old.tau
        bottom = dot(along, w_x) + dot(h, w_z) - curved - old.kappa / old.tau
        bottom = jnp.where(bottom < 0, bottom, -1)

        def step(u_x, u_z, u_row, own, r_k) -> Ray:
            top = -own * r_t - r_k / old.tau - dot(along, u_x) - dot(h, u_z)
            tau = top / bottom
            x, z = u_x + tau * w_x, u_z + tau * w_z
            s = jnp.where(free, h * tau - own * r_z - u_row - tau * w_row, 0)
            return Ray(x, z, s, tau, (r_k - old.kappa * tau) / old.tau)

        def reach(d: Ray) -> Float[Array, ""]:
            ends = first_zero(jnp.stack([old.tau, old.kappa]), jnp.stack([d.tau, d.kappa]))
            return jnp.minimum(cone.reach(old.s, old.z, d.s, d.z), jnp.min(ends))

        # The corrector.
        ahead = step(p_x, p_z, p_row, 1, -old.tau * old.kappa)
        mu = (dot(old.s, old.z) + old.tau * old.kappa) / (cone.degree + 1)
        centring = (1 - jnp.minimum(reach(ahead), 1)) ** 3
        scaled = (root * old.s, old.z / root, root * ahead.s, ahead.z / root)
        centre = cone.centre(scaling, *scaled, centring * mu)
        own = 1 - centring
        [(c_x, c_z, c_row)] = solve((own * r_x, own * r_z, slope.apply(_itself, centre) / root))
        ends = centring * mu - ahead.tau * ahead.kappa - old.tau * old.kappa
        d = step(c_x, c_z, c_row, own, ends)
        length = jnp.minimum(0.99 * reach(d), 1)
        moved = jax.tree.map(lambda a, b: a + length * b, old, d)
        first = _first(cone, root, w_x, w_z, free)
        moved = jax.tree.map(lambda a, b: jnp.where(start, a, b), first, moved)
        size = jnp.maximum(moved.tau, moved.kappa)
        moved = jax.tree.map(lambda a: a / size, moved)

        # The point x/tau, or Newton's, and what to do next.
        x = jnp.where(polish, state.trial_x + p_x, moved.x / moved.tau)
        z = jnp.where(polish, state.trial_z + p_z, moved.z / moved.tau)
        row = system.form.apply(x)
        error, gradient = form.error(x, row, form.bend(x), z)
        lost = ~(jnp.isfinite(error) & (moved.tau > 0) | polish & jnp.isfinite(error))
        gained = polish & (error < trial_error / GAIN)
        # Where the iterate has come to rest, from half of the residual that was not enough.
        rests = (error <= _aim(aim.dtype)) & (error > 0.8 * ray_error) & (error < ended / 2)
        near = ~polish & ((error <= aim) | rests)
        goes = jnp.where(gained | near, POLISH, INTERIOR)
        ray_error = jnp.where(polish | lost, ray_error, error)
        closer = near | ~lost & (error < trial_error)
        trial_error = jnp.where(closer, error, trial_error)
        best = jnp.minimum(ray_error, trial_error)
        fell = (best <= mark / 2) | (moved.tau < 1e-3)
        failed = polish & (goes == INTERIOR)
        ended = jnp.where(failed, trial_error, ended)
        aim = jnp.where(failed & (trial_error <= aim), less(aim), aim)
        takes = ~polish & ~lost
        ray = jax.tree.map(lambda a, b: jnp.where(takes, a, b), moved, old)
        new = jnp.stack([takes, closer])[:, None]
        proved = jnp.where(takes, _proof(form, h, x, z, moved.s / moved.tau), proved)
        slow = jnp.where(fell, 0, slow + 1) + jnp.where(lost & ~polish, PATIENCE, 0)
        counts = [goes, slow, proved]
        return State(
            ray=ray,
            trial_x=jnp.where(closer, x, state.trial_x),
            trial_z=jnp.where(closer, z, state.trial_z),
            rows=jnp.where(new, row, state.rows),
            gradients=jnp.where(new, gradient, state.gradients),
            levels=jnp.stack([ray_error, trial_error, aim, jnp.where(fell, best, mark), ended]),
            counts=jnp.stack([c.astype(jnp.int32) for c in counts]),
            convex=state.convex,
            point=state.point,
        )

    def measure(self, problem: ConeProgram, state: State) -> Float[Array, ""]:
        return jnp.minimum(state.levels[0], state.levels[1])

    def status(self, problem, state, tolerance):
        _, slow, proved = state.counts
        # The distance of s from the cone may be larger than the largest entry of s - Pi(s - z).
        solved = self.measure(problem, state) <= tolerance / 2
        stalled = slow >= PATIENCE
        result = RESULTS.where(proved == INFEASIBLE, RESULTS.infeasible, RESULTS.stalled)
        result = RESULTS.where(proved == UNBOUNDED, RESULTS.unbounded, result)
        result = RESULTS.where(solved, RESULTS.successful, result)
        result = RESULTS.where(state.convex, result, RESULTS.nonconvex)
        return solved | stalled | (proved != OPEN) | ~state.convex, result

    def finish(self, problem: ConeProgram, state: State) -> State:
        (form, cone, _), ray = _form(problem), state.ray
        newton = state.levels[1] <= state.levels[0]
        x = jnp.where(newton, state.trial_x, ray.x / positive(ray.tau))
        z = jnp.where(newton, state.trial_z, ray.z / positive(ray.tau))
        z = form.complementary(x, z, _weight(form), self.measure(problem, state))
        proved, far = state.counts[2] != OPEN, cone.project_dual(ray.z)
        x = jnp.where(proved, ray.x / positive(largest(ray.x)), x)
        z = jnp.where(proved, far / positive(largest(far)), z)
        return eqx.tree_at(lambda s: s.point, state, Point(x, form.split(z)))

    def point(self, problem: ConeProgram, state: State) -> Point:
        return state.point

    def preconditioner(self, problem: ConeProgram, state: State) -> ConeSystem:
        return ConeSystem.of(problem, state.point)


def _form(problem: ConeProgram) -> tuple[Form, Product, Float[Array, " m"]]:
    """The program with all rows in one product of cones: the form, the product and the side."""
    form = form_of(problem)
    cones = problem.cones if form.low.size == 0 else (Zero(form.low.size), *problem.cones)
    h = form.low if form.h is None else jnp.concatenate([form.low, form.h])
    none = form.low[:0]
    cone = Product(cones)
    shifted = cone if cones else None
    return Form(form.P, form.q, form.matrices, none, none, h, shifted, False, form.kind), cone, h


def _weight(form: Form) -> Float[Array, " m"]:
    """What a slack is multiplied with to be comparable with a multiplier."""
    unit = row_weights(form)
    return first_level(form, unit) * unit


def _aim(dtype: jnp.dtype) -> float:
    """The residual at which Newton's method is first tried."""
    return 3e-4 if dtype == jnp.float64 else 1e-2


def _first(cone: Product, root, x, z, free) -> Ray:
    """The least-squares start, with s and z shifted into the cone."""
    z = z / root
    own = jnp.where(free, z, 0)

    def shifted(v):
        depth = cone.depth(v)
        return v + jnp.where(depth < 1, 1 - depth, 0) * cone.identity(v)

    s, own = shifted(-own) / root, jnp.where(free, shifted(own), z) * root
    one = jnp.ones_like(x[0])
    return Ray(x, own, jnp.where(free, s, 0), one, one)


def _proof(form: Form, h, x, z, s) -> Int[Array, ""]:
    """What an iterate proves, without a projection: z is in the dual cone, and Kx no farther from
    -K than from -s."""
    squares = form.squares(1)
    # The root of a mean square, times that of n, is no less than the largest entry.
    count = x.size**0.5
    distance = h * count / jnp.sqrt(positive(squares))
    off = jnp.where(form.fixed(), 0, s) + form.apply(x)
    parts = [off * jnp.sqrt(row_weights(form)) * count]
    if form.P is not None:
        parts.append(scaled(form.P, form.bend(x)))
    return proof(form.q, h, distance, x, z, form.transposed(z), jnp.concatenate(parts))


def _itself(d: Array) -> Array:
    return d
