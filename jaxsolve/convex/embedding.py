"""The regularised homogeneous embedding of a convex quadratic program.

With all rows in one: minimise x'Px/2 + q'x, Kx + s = e, s >= 0 (s = 0 on the equalities, whose rows
stay), the embedding asks for x, z, s >= 0 and tau, kappa >= 0 with

    Px + K'z + q tau = 0,   Kx + s - e tau = 0,   x'Px/tau + q'x + e'z + kappa = 0.

It always has a solution with s'z + tau kappa = 0. Where tau > 0, x/tau solves the program; where
kappa > 0, z proves it infeasible or x unbounded. Nothing has to be known of rank, interior or
feasibility: it is the rescue of `InteriorPoint`, and slower. Ye, Todd and Mizuno (1994); for
quadratic objectives Goulart and Chen (2024).

A step factors P + K' diag(w) K with large weights w on equalities (and a little on the diagonal),
and refines its solves on the true system. It is one phase of: predictor, corrector, polish.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..core.solution import RESULTS, Dual, Guess, Point
from ..core.solver import AbstractSolver
from ..core.triangular import cholesky, solve_definite
from ..core.vectors import dot, maxima, positive
from .certificates import separation
from .curvature import is_convex
from .interior_point import UNKNOWN, less
from .iterate import Iterate, active_weight, natural_error, pushes
from .quadratic_program import QuadraticProgram
from .reduced import Reduced, reduce, require_dense

PREDICT, CORRECT, POLISH = 0, 1, 2
TRIES, STEPS, PATIENCE = 3, 250, 60
"""Polishes in a row; steps in all, and steps without the residual falling to a half."""
OPEN, INFEASIBLE, UNBOUNDED = 0, 1, 2


class Ray(eqx.Module):
    """A point of the embedding."""

    x: Float[Array, " n"]
    z: Float[Array, " m"]
    s: Float[Array, " m"]
    tau: Float[Array, ""]
    kappa: Float[Array, ""]

    def pack(self) -> Float[Array, " n+2m+2"]:
        """All in one array: one kernel moves them."""
        ends = jnp.stack([self.tau, self.kappa])
        return jnp.concatenate([self.x, self.z, self.s, ends])


def unpack(packed: Float[Array, " n+2m+2"], n: int) -> Ray:
    """The inverse of `Ray.pack`."""
    m = (packed.shape[0] - n - 2) // 2
    return Ray(packed[:n], packed[n : n + m], packed[n + m : n + 2 * m], packed[-2], packed[-1])


class State(eqx.Module):
    """What a lane carries.

    Attributes:
        ray, trial: packed, the iterate and the last polished point (tau = 1, s its slack).
        second: of the predictor: ds dz, dtau dkappa, and how much to centre.
        levels: the natural residuals of the two, the accuracy at which a polish is tried, the
            residual to be halved, and how much more than the least is put on the diagonal.
        counts: phase, polishes in a row, steps, steps without progress, what is proved.
    """

    reduced: Reduced
    ray: Float[Array, " n+2m+2"]
    trial: Float[Array, " n+2m+2"]
    second: Float[Array, " m+2"]
    levels: Float[Array, " 5"]
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
    proves: ClassVar[bool] = True

    def refuse(self, problem: QuadraticProgram) -> None:
        require_dense(self, problem)

    def init(self, problem: QuadraticProgram, guess: Guess) -> State:
        reduced = reduce(problem, keep=True)
        zero = jnp.zeros_like(reduced.dual_scale)
        none, free = jnp.zeros_like(reduced.gradient), reduced.free
        # Slacks as far away as the limits are on average, multipliers of the gradient's size, if it
        # is not mere rounding of 0: from there they would take a hundred steps to a certificate.
        size = reduced.sizes
        push = jnp.maximum(reduced.dual_scale, jnp.finfo(zero.dtype).eps ** 0.5)
        marks = jnp.where(reduced.limit != 0, 1 + zero, 0)
        count, total = jnp.sum(jnp.stack([marks, jnp.abs(reduced.limit) / size]), axis=1)
        far = jnp.maximum(total / jnp.maximum(count, 1), 1)
        s, z = jnp.where(free, far * size, 0), jnp.where(free, push / size, 0)
        ray = Ray(none, z, s, zero + 1, far * push).pack()
        unknown = zero + UNKNOWN
        aim = zero + (1e-6 if zero.dtype == jnp.float64 else 1e-3)
        return State(
            reduced=reduced,
            ray=ray,
            trial=ray,
            second=jnp.concatenate([0 * s, jnp.stack([zero, zero])]),
            levels=jnp.stack([unknown, unknown, aim, unknown, zero + 1]),
            counts=jnp.stack([jnp.zeros_like(zero, dtype=jnp.int32)] * 5),
            convex=is_convex(problem.P, problem.A),
            point=Point(guess.primal, problem.zero_dual()),
        )

    def step(self, problem: QuadraticProgram, state: State) -> State:
        return _step(state)

    def measure(self, problem: QuadraticProgram, state: State) -> Float[Array, ""]:
        return jnp.minimum(state.levels[0], state.levels[1])

    def status(self, problem, state, tolerance):
        _, _, steps, slow, proved = state.counts
        # The residual of the verdict has other scales than the rows of the reduced program: 1 to 5
        # times as large where there is no interior. No polish makes up for that.
        noise = 100 * jnp.finfo(tolerance.dtype).eps
        solved = self.measure(problem, state) <= jnp.maximum(tolerance / 10, noise)
        stalled = (slow >= PATIENCE) | (steps >= STEPS)
        result = RESULTS.where(proved == INFEASIBLE, RESULTS.infeasible, RESULTS.stalled)
        result = RESULTS.where(proved == UNBOUNDED, RESULTS.unbounded, result)
        result = RESULTS.where(solved, RESULTS.successful, result)
        result = RESULTS.where(state.convex, result, RESULTS.nonconvex)
        return solved | stalled | (proved != OPEN) | ~state.convex, result

    def finish(self, problem: QuadraticProgram, state: State) -> State:
        proved = state.counts[4]
        polished = (state.levels[1] <= state.levels[0]) & (proved == OPEN)
        best = unpack(jnp.where(polished, state.trial, state.ray), problem.q.shape[0])
        # A ray is scaled to size 1, a point to tau = 1.
        sizes = jnp.concatenate([best.tau[None], maxima([best.z, best.x])])
        x, z = best.x / positive(sizes[proved]), best.z / positive(sizes[proved])
        if problem.lower is not None and problem.upper is not None:
            fixed = (problem.lower == problem.upper) & (proved == OPEN)
            x = jnp.where(fixed, problem.lower, x)
        return eqx.tree_at(lambda s: s.point, state, Point(x, _by_field(problem, state.reduced, z)))

    def point(self, problem: QuadraticProgram, state: State) -> Point:
        return state.point


def _step(state: State) -> State:
    reduced, n = state.reduced, state.reduced.size
    phase, tries, steps, slow, proved = state.counts
    ray_error, trial_error, aim, mark, more = state.levels
    predict, correct, polish = phase == PREDICT, phase == CORRECT, phase == POLISH
    free, fixed = reduced.free, reduced.fixed
    present = reduced.penalty > 0
    packed = jnp.where(polish, state.trial, state.ray)
    old = unpack(packed, n)

    # Rows have weight z/s (equalities: infinite), no more than the penalty.
    safe_s = jnp.where(free & ~polish, old.s, 1)
    active = active_weight(reduced, old)
    true = jnp.where(free, old.z / safe_s, 0)
    exact = jnp.where(polish, active > 0, fixed)
    full = jnp.where(exact, 1, 1 + true / reduced.ceiling)
    weight = jnp.where(exact, reduced.penalty, jnp.where(polish, 0, true / full))
    factor = cholesky(reduced.normal(weight, more))
    inverse = jnp.where(exact | (true <= 0), 0, 1 / jnp.where(true > 0, true, 1))

    def solve(gradient, gap, centre):
        """Px + K'z = -gradient and z = centre + w (Kx + gap), refined with the true weights."""
        x, z = jnp.zeros_like(gradient), jnp.zeros_like(gap)
        for _ in range(3):
            base = centre / full
            right = -(gradient + reduced.transposed(base + weight * gap))
            dx = solve_definite(factor, right)
            bent, row = reduced.apply(dx)
            dz = base + weight * (gap + row)
            x, z, gradient = x + dx, z + dz, gradient + bent + reduced.transposed(dz)
            left = gap + row - (dz - centre) * inverse
            gap, centre = jnp.where(weight > 0, left, 0), jnp.zeros_like(gap)
        return x, z

    # The embedding's residuals, and the complementarity to aim for.
    own = jnp.where(correct, 1 - state.second[-1], 1)
    bent, row = reduced.apply(old.x)
    curved, linear = jnp.sum(jnp.stack([bent, reduced.gradient]) * old.x, axis=1)
    curved = curved / old.tau**2
    r_x = own * (bent + reduced.transposed(old.z) + reduced.gradient * old.tau)
    r_z = own * jnp.where(present, row + old.s - reduced.limit * old.tau, 0)
    r_t = own * (old.kappa + linear + dot(reduced.limit, old.z) + curved * old.tau)
    rows = reduced.degree + 1
    mu = (jnp.sum(jnp.where(free, old.s * old.z, 0)) + old.tau * old.kappa) / rows
    products = jnp.where(correct, state.second[-1] * mu - state.second[:-1], 0)
    centre = jnp.where(free, products[:-1] / safe_s - old.z, 0)
    centre = jnp.where(polish, jnp.where(weight > 0, -weight * old.s, -old.z), centre)
    r_k = products[-1] - old.tau * old.kappa

    # The step is u + tau w, with w the response to tau.
    xs, zs = jax.vmap(solve)(
        jnp.stack([r_x, reduced.gradient]),
        jnp.stack([r_z, -reduced.limit]),
        jnp.stack([centre, jnp.zeros_like(centre)]),
    )
    slope = reduced.gradient + 2 * bent / old.tau
    constant, response = jnp.sum(xs * slope, axis=1) + jnp.sum(zs * reduced.limit, axis=1)
    top = -r_t - r_k / old.tau - constant
    bottom = response - curved - old.kappa / old.tau
    tau = jnp.where(polish, 0, top / jnp.where(bottom < 0, bottom, -1))
    x, z = xs[0] + tau * xs[1], zs[0] + tau * zs[1]
    s = jnp.where(free, -r_z - reduced.apply(x)[1] + reduced.limit * tau, 0)
    # A slack far below its multiplier is smaller than the rounding of Kx: from complementarity.
    s = jnp.where(free & (true > reduced.penalty), (centre - z) * inverse, s)
    step = Ray(x, z, s, tau, jnp.where(polish, 0, (r_k - old.kappa * tau) / old.tau))
    counts = jnp.concatenate([0 * x > 1, free, free, jnp.stack([free[:0].size == 0] * 2)])
    d = step.pack()
    falling = counts & (d < 0)
    reach = jnp.min(jnp.where(falling, -packed / jnp.where(falling, d, -1), 2))
    moved = packed + jnp.where(polish, 1, jnp.minimum(0.99 * reach, 1)) * d
    moved = moved / jnp.maximum(moved[-2], moved[-1])
    new = unpack(moved, n)

    # The point x/tau, or the polished one, and what to do next.
    bent, row = reduced.apply(new.x)
    pushed = reduced.transposed(new.z)
    gradient = (bent + pushed) / new.tau + reduced.gradient
    at = Iterate(new.x / new.tau, gradient, new.z / new.tau, row / new.tau, new.s / new.tau)
    error = natural_error(reduced, at)
    lost = ~jnp.isfinite(error)
    mean = mu / old.tau**2
    near = jnp.maximum(pushes(reduced, at)[1], mean) / reduced.dual_scale <= aim
    repeats = jnp.where(polish, tries + 1 < TRIES, near)
    goes = jnp.where(predict, CORRECT, jnp.where(repeats, POLISH, PREDICT))
    goes = jnp.where(lost, PREDICT, goes)
    takes = correct & ~lost
    ray_error = jnp.where(takes, error, ray_error)
    trial_error = jnp.where(polish & ~lost, error, trial_error)
    best = jnp.minimum(ray_error, trial_error)
    fell = (best <= mark / 2) | (new.tau < 1e-3)
    proved = jnp.where(takes, _proof(reduced, new, bent, row, pushed), proved)
    aim = jnp.where(polish & (goes == PREDICT), less(aim), aim)
    levels = [ray_error, trial_error, aim, jnp.where(fell, jnp.minimum(best, mark), mark)]
    levels += [jnp.where(lost & ~polish, more * 100, more)]
    counts = [
        goes,
        jnp.where(polish, tries + 1, 0),
        steps + 1,
        jnp.where(fell, 0, slow + 1),
        proved,
    ]
    ends = jnp.stack([step.tau * step.kappa, jnp.clip(1 - reach, 0, 1) ** 3])
    second = jnp.concatenate([step.s * step.z, ends])
    return State(
        reduced=reduced,
        ray=jnp.where(takes, moved, state.ray),
        trial=jnp.where(~lost & (polish | (goes == POLISH)), _as_ray(at), state.trial),
        second=jnp.where(predict & ~lost, second, state.second),
        levels=jnp.stack(levels),
        counts=jnp.stack([x.astype(jnp.int32) for x in counts]),
        convex=state.convex,
        point=state.point,
    )


def _as_ray(at: Iterate) -> Float[Array, " n+2m+2"]:
    """The point as a ray with tau = 1 and kappa = 0."""
    one = jnp.ones_like(at.v[0])
    return Ray(at.v, at.z, at.s, one, 0 * one).pack()


def proof(
    q: Float[Array, " n"],
    limit: Float[Array, " m"],
    distance: Float[Array, " m"],
    x: Float[Array, " n"],
    z: Float[Array, " m"],
    push: Float[Array, " n"],
    miss: Float[Array, " k"],
) -> Int[Array, ""]:
    """What an iterate proves: as in `certificates.py`, where the problem itself is asked.

    Args:
        limit, distance: e, and e over the sizes of K's rows.
        x, z: of any length, z in the dual cone.
        push: K'z.
        miss: how far Px is from 0 and Kx from -K, in rows of size 1.
    """
    far, rest, slope, amiss = maxima([distance, push, q, miss])
    infeasible = separation(limit * z, far * rest)
    unbounded = separation(q * x, slope * amiss)
    return jnp.where(infeasible, INFEASIBLE, jnp.where(unbounded, UNBOUNDED, OPEN))


def _proof(reduced: Reduced, ray: Ray, bent, row, push) -> Int[Array, ""]:
    # The reduced program is scaled: ten times what is asked of the problem itself.
    size = 10 / reduced.sizes
    curved = jnp.max(jnp.abs(reduced.hessian), axis=1) / 10
    over = jnp.where(reduced.free, jnp.maximum(row, 0), 0)
    over = jnp.where(reduced.fixed, jnp.abs(row), over) * size
    miss = jnp.concatenate([bent / positive(curved), over])
    return proof(reduced.gradient, reduced.limit, reduced.limit * size, ray.x, ray.z, push, miss)


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
