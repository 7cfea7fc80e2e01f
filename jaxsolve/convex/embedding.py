"""The regularised homogeneous embedding of a convex quadratic program.

With all rows in one: minimise x'Px/2 + q'x, Kx + s = e, s >= 0 (s = 0 on the equalities, whose rows
stay), the embedding asks for x, z, s >= 0 and tau, kappa >= 0 with

    Px + K'z + q tau = 0,   Kx + s - e tau = 0,   x'Px/tau + q'x + e'z + kappa = 0.

It always has a solution with s'z + tau kappa = 0. Where tau > 0, x/tau solves the program; where
kappa > 0, z proves it infeasible or x unbounded. Nothing has to be known of rank, interior or
feasibility: it is the rescue of `InteriorPoint`, and slower. Ye, Todd and Mizuno (1994); for quadratic
objectives Goulart and Chen (2024).

A step factors P + K' diag(w) K with large weights w on equalities (and a little on the diagonal), and
refines its solves on the true system. It is one phase of: predictor, corrector, polish.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..core.solution import RESULTS, Dual, Guess, Point
from ..core.solver import AbstractSolver
from ..core.vectors import dot, largest, matmul
from .interior_point import Iterate, active_weight, natural_error
from .quadratic_program import QuadraticProgram
from .reduced import Reduced, reduce, solve_lower

PREDICT, CORRECT, POLISH = 0, 1, 2
TRIES, STEPS, PATIENCE = 3, 250, 60
_SOLVED, _INFEASIBLE, _UNBOUNDED = 0, 1, 2


class Ray(eqx.Module):
    """A point of the embedding, or a step of it."""

    x: Float[Array, " n"]
    z: Float[Array, " m"]
    s: Float[Array, " m"]
    tau: Float[Array, ""]
    kappa: Float[Array, ""]


class State(eqx.Module):
    """What a lane carries.

    Attributes:
        ray: the iterate; `affine`, the predictor's step.
        trial: the last polished point.
        error, trial_error: natural residuals of x/tau and of `trial`.
        more: how much more than the least is put on the diagonal.
        counts: phase, polishes in a row, steps, steps without progress, what is proved.
    """

    reduced: Reduced
    ray: Ray
    affine: Ray
    trial: Iterate
    error: Float[Array, ""]
    trial_error: Float[Array, ""]
    aim: Float[Array, ""]
    mark: Float[Array, ""]
    more: Float[Array, ""]
    centring: Float[Array, ""]
    counts: Int[Array, " 5"]
    convex: Bool[Array, ""]
    point: Point


class HomogeneousEmbedding(AbstractSolver[QuadraticProgram]):
    """Predictor-corrector on the regularised homogeneous embedding.

    Use it for problems that are hard (dependent rows, no interior) or may have no solution: it ends
    with a solution or with a certificate. `InteriorPoint` is several times faster and asks it where
    it fails.
    """

    step_limit: ClassVar[int] = 300

    def init(self, problem: QuadraticProgram, guess: Guess) -> State:
        reduced = reduce(problem, keep=True)
        zero = jnp.zeros_like(reduced.dual_scale)
        nothing = jnp.zeros_like(reduced.limit)
        one = jnp.where(reduced.free, jnp.ones_like(nothing), 0)
        none = jnp.zeros_like(reduced.gradient)
        ray = Ray(none, one, one, zero + 1, zero + 1)
        return State(
            reduced=reduced,
            ray=ray,
            affine=jax.tree.map(jnp.zeros_like, ray),
            trial=Iterate(none, reduced.gradient, nothing, nothing, nothing),
            error=zero + jnp.inf,
            trial_error=zero + jnp.inf,
            aim=zero + (1e-6 if zero.dtype == jnp.float64 else 1e-3),
            mark=zero + jnp.inf,
            more=zero + 1,
            centring=zero,
            counts=jnp.stack([jnp.zeros_like(zero, dtype=jnp.int32)] * 5),
            convex=_is_convex(problem, reduced),
            point=Point(guess.primal, problem.zero_dual()),
        )

    def step(self, problem: QuadraticProgram, state: State) -> State:
        return _step(state)

    def measure(self, problem: QuadraticProgram, state: State) -> Float[Array, ""]:
        # Before the first corrector there is no residual; infinity would say that the iterate is lost.
        return jnp.minimum(jnp.minimum(state.error, state.trial_error), 1e30)

    def status(self, problem, state, tolerance):
        _, _, steps, slow, proved = state.counts
        solved = self.measure(problem, state) <= tolerance
        stalled = (slow >= PATIENCE) | (steps >= STEPS)
        result = RESULTS.where(proved == _INFEASIBLE, RESULTS.infeasible, RESULTS.stalled)
        result = RESULTS.where(proved == _UNBOUNDED, RESULTS.unbounded, result)
        result = RESULTS.where(solved, RESULTS.successful, result)
        result = RESULTS.where(state.convex, result, RESULTS.nonconvex)
        return solved | stalled | (proved != _SOLVED) | ~state.convex, result

    def finish(self, problem: QuadraticProgram, state: State) -> State:
        proved = state.counts[4]
        tau = jnp.where(state.ray.tau > 0, state.ray.tau, 1)
        polished = state.trial_error <= state.error
        x = jnp.where(polished, state.trial.v, state.ray.x / tau)
        z = jnp.where(polished, state.trial.z, state.ray.z / tau)
        if problem.lower is not None and problem.upper is not None:
            x = jnp.where(problem.lower == problem.upper, problem.lower, x)
        x = jnp.where(proved == _UNBOUNDED, state.ray.x / _positive(largest(state.ray.x)), x)
        z = jnp.where(proved == _INFEASIBLE, state.ray.z / _positive(_largest(state.ray.z)), z)
        return eqx.tree_at(lambda s: s.point, state, Point(x, _by_field(problem, state.reduced, z)))

    def point(self, problem: QuadraticProgram, state: State) -> Point:
        return state.point


def _step(state: State) -> State:
    reduced, ray = state.reduced, state.ray
    phase, tries, steps, slow, proved = state.counts
    polish, predict = phase == POLISH, phase == PREDICT
    free, fixed = reduced.free, reduced.fixed
    safe_s = jnp.where(free, ray.s, 1)
    weight = jnp.where(free, ray.z / safe_s, 0)
    weight = jnp.where(fixed, reduced.penalty, weight)
    weight = jnp.where(polish, active_weight(reduced, state.trial), weight)
    factor = lax.linalg.cholesky(reduced.normal(weight, state.more), symmetrize_input=False)
    exact = fixed | (polish & (weight > 0))

    def solve(gradient, gap, centre):
        """v and z with Pv + K'z = -gradient and z = centre + w (Kv + gap); Kv = -gap if `exact`."""
        right = -(gradient + reduced.transposed(centre + weight * gap))
        dv = solve_lower(factor, solve_lower(factor, right), transposed=True)
        bent, row = reduced.apply(dv)
        dz = centre + weight * (gap + row)
        return dv, dz, gradient + bent + reduced.transposed(dz), gap + row

    def refined(gradient, gap, centre):
        v, z, left, miss = solve(gradient, gap, centre)
        for _ in range(2):
            more_v, more_z, left, miss = solve(left, jnp.where(exact, miss, 0), 0 * z)
            v, z = v + more_v, z + more_z
        return v, z

    # Residuals of the embedding.
    bent, row = reduced.apply(ray.x)
    own = 1 - jnp.where(predict, 0, state.centring)
    ratio = ray.x / ray.tau
    curved = dot(ratio, bent) / ray.tau
    r_x = bent + reduced.transposed(ray.z) + reduced.gradient * ray.tau
    r_z = jnp.where(reduced.penalty > 0, row + ray.s - reduced.limit * ray.tau, 0)
    r_t = ray.kappa + dot(reduced.gradient, ray.x) + dot(reduced.limit, ray.z) + curved * ray.tau
    rows = jnp.sum(free).astype(r_x.dtype) + 1
    mu = (dot(ray.s, jnp.where(free, ray.z, 0)) + ray.tau * ray.kappa) / rows
    target = jnp.where(predict, 0, state.centring * mu)
    second = jnp.where(predict, 0, state.affine.s * state.affine.z)
    centre = jnp.where(free, (target - second) / safe_s - ray.z, 0)
    r_k = target - ray.tau * ray.kappa
    r_k = r_k - jnp.where(predict, 0, state.affine.tau * state.affine.kappa)

    # The step is u + dtau w, w the response to tau.
    trial = state.trial
    inactive = polish & (weight == 0)
    gradient = jnp.where(polish, trial.gradient, own * r_x)
    gap = jnp.where(polish, trial.row - reduced.limit, own * r_z)
    centre = jnp.where(polish, jnp.where(inactive, -trial.z, 0), centre)
    (u_x, w_x), (u_z, w_z) = jax.vmap(refined)(
        jnp.stack([gradient, reduced.gradient]),
        jnp.stack([gap, jnp.where(reduced.penalty > 0, -reduced.limit, 0)]),
        jnp.stack([centre, jnp.zeros_like(centre)]),
    )
    slope = reduced.gradient + 2 * bent / ray.tau
    top = -own * r_t - r_k / ray.tau - dot(slope, u_x) - dot(reduced.limit, u_z)
    bottom = dot(slope, w_x) + dot(reduced.limit, w_z) - curved / ray.tau * 1 - ray.kappa / ray.tau
    tau = top / jnp.where(bottom < 0, bottom, -1)
    x, z = u_x + tau * w_x, u_z + tau * w_z
    s = jnp.where(free, -own * r_z - matmul_rows(reduced, x) + reduced.limit * tau, 0)
    step = Ray(x, z, s, tau, (r_k - ray.kappa * tau) / ray.tau)
    reach = _reach(ray, step, free)
    length = jnp.minimum(0.99 * reach, 1)
    moved = jax.tree.map(lambda a, d: a + length * d, ray, step)
    size = 1 / jnp.maximum(moved.tau, moved.kappa)
    moved = jax.tree.map(lambda a: a * size, moved)
    moved = eqx.tree_at(lambda r: r.s, moved, jnp.where(free, moved.s, 0))

    # The points of the two: of the iterate, and polished.
    refined_v, refined_z = trial.v + u_x, trial.z + u_z
    candidate_v = jnp.where(polish, refined_v, moved.x / moved.tau)
    candidate_z = jnp.where(polish, refined_z, moved.z / moved.tau)
    bent, row = reduced.apply(candidate_v)
    pushed = reduced.transposed(candidate_z)
    candidate = Iterate(
        candidate_v,
        bent + reduced.gradient + pushed,
        candidate_z,
        row,
        jnp.where(polish, reduced.limit - row, moved.s / moved.tau),
    )
    error = natural_error(reduced, candidate)
    correct = ~polish & ~predict
    lost = ~jnp.isfinite(jnp.where(polish, error, length)) | ~jnp.isfinite(
        jnp.where(correct, moved.tau, 0)
    )
    near = jnp.maximum(
        largest(candidate.gradient) / reduced.dual_scale, mu / ray.tau**2 / reduced.dual_scale
    ) <= state.aim
    again = tries + 1 < TRIES
    next_phase = jnp.where(
        predict,
        CORRECT,
        jnp.where(
            polish, jnp.where(again & ~lost, POLISH, PREDICT), jnp.where(near, POLISH, PREDICT)
        ),
    )
    next_phase = jnp.where(lost, PREDICT, next_phase)
    takes = correct & ~lost
    iterate_error = jnp.where(takes & jnp.isfinite(error), error, state.error)
    trial_error = jnp.where(polish & ~lost, error, state.trial_error)
    best = jnp.minimum(iterate_error, trial_error)
    proved = jnp.where(takes, _proof(reduced, moved, row, pushed, bent), proved)
    fell = (best <= state.mark / 2) | (moved.tau < 1e-3)
    return State(
        reduced=reduced,
        ray=select(takes, moved, ray),
        affine=select(predict & ~lost, step, state.affine),
        trial=select(
            (polish & ~lost) | (takes & (next_phase == POLISH)), candidate, state.trial
        ),
        error=iterate_error,
        trial_error=trial_error,
        aim=jnp.where(polish & (next_phase == PREDICT), state.aim * 1e-1, state.aim),
        mark=jnp.where(fell, jnp.minimum(best, state.mark), state.mark),
        more=jnp.where(lost & ~polish, state.more * 100, state.more),
        centring=jnp.where(predict, jnp.clip(1 - reach, 0, 1) ** 3, state.centring),
        counts=jnp.stack(
            [
                next_phase,
                jnp.where(polish, tries + 1, 0),
                steps + 1,
                jnp.where(fell, 0, slow + 1),
                proved,
            ]
        ).astype(jnp.int32),
        convex=state.convex,
        point=state.point,
    )


def matmul_rows(reduced: Reduced, x: Float[Array, " n"]) -> Float[Array, " m"]:
    """Kx."""
    return reduced.apply(x)[1]


def _proof(reduced: Reduced, ray: Ray, row, pushed, bent) -> Int[Array, ""]:
    """What the iterate proves: see `certificates.py`, where the problem itself is asked."""
    wide = 1e7 if ray.x.dtype == jnp.float64 else 2e3
    rows = jnp.abs(reduced.operator[reduced.size :])
    z = jnp.abs(ray.z)
    products = reduced.limit * ray.z
    size = largest(Reduced.transposed(eqx.tree_at(lambda r: r.operator, reduced, jnp.concatenate([reduced.hessian, rows])), z))
    gap = -jnp.sum(products) / _positive(jnp.sum(jnp.abs(products)))
    infeasible = (gap > 0) & (gap >= wide * largest(pushed * ray.tau) / _positive(size))
    products = reduced.gradient * ray.x
    gap = -jnp.sum(products) / _positive(jnp.sum(jnp.abs(products)))
    over = jnp.where(reduced.fixed, jnp.abs(row), row) * ray.tau
    over = jnp.where(reduced.penalty > 0, over, 0)
    miss = jnp.maximum(largest(bent * ray.tau), jnp.max(over, initial=0.0))
    weight = largest(ray.x) * jnp.maximum(1e-3, jnp.minimum(1, largest(reduced.operator)))
    unbounded = (gap > 0) & (gap >= wide * miss / _positive(weight))
    return jnp.where(infeasible, _INFEASIBLE, jnp.where(unbounded, _UNBOUNDED, _SOLVED))


def _reach(ray: Ray, step: Ray, free: Bool[Array, " m"]) -> Float[Array, ""]:
    """The largest t <= 2 that keeps s, z, tau and kappa from being negative."""
    x = jnp.concatenate([ray.s, ray.z, jnp.stack([ray.tau, ray.kappa])])
    d = jnp.concatenate([step.s, step.z, jnp.stack([step.tau, step.kappa])])
    counts = jnp.concatenate([free, free, jnp.ones_like(d[:2], dtype=bool)])
    falling = counts & (d < 0)
    return jnp.min(jnp.where(falling, -x / jnp.where(falling, d, -1), 2))


def _is_convex(problem: QuadraticProgram, reduced: Reduced) -> Bool[Array, ""]:
    """Whether P is positive semidefinite, or is on the null space of A (a weight on A's rows)."""
    eps = jnp.finfo(problem.P.dtype).eps
    size = _positive(largest(problem.P))
    little = jnp.diag(eps**0.6 * size + jnp.zeros_like(problem.q))
    forms = problem.P[None]
    if problem.A is not None:
        square = matmul(problem.A.T, problem.A)
        weight = eps**-0.25 * size / _positive(largest(square))
        forms = jnp.stack([problem.P, problem.P + weight * square])
    factors = lax.linalg.cholesky(forms + little, symmetrize_input=False)
    return jnp.any(jnp.isfinite(factors[:, -1, -1]))


def _by_field(problem: QuadraticProgram, reduced: Reduced, z: Float[Array, " m"]) -> Dual:
    dual = reduced.dual(None, z)
    count = 0 if problem.b is None else problem.b.shape[0]
    rows = dual.inequality
    return Dual(
        None if problem.b is None else rows[:count],
        None if problem.h is None else rows[count:],
        dual.lower,
        dual.upper,
    )


def _largest(z: Float[Array, " m"]) -> Float[Array, ""]:
    return jnp.max(jnp.abs(z), initial=0.0)


def _positive(x: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(x > 0, x, jnp.ones_like(x))


def select(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    """Leaf by leaf."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
