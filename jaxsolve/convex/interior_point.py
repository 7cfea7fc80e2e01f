"""Primal-dual interior point for dense convex quadratic programs.

On the null space of A (`reduced.py`) the program is: minimise v'Hv/2 + g'v with Kv + s = e, s >= 0.
One step is one factorisation of H + K' diag(w) K and two solves, in one of three modes:

    start      w = 1: the least-squares start of Mehrotra, shifted into the interior
    interior   w = z/s: Mehrotra's predictor and corrector
    polish     w large on the rows with z > s: the solution on that active set, refined once

Once the interior iterate is accurate to about 1e-5, a polish is tried. Its point is exact to rounding
when the active set is right, and then its factor serves the derivative as well; if it is not, the next
step goes on from the interior iterate. Mehrotra (1992); polish as in Stellato et al. (2020).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..core.solution import RESULTS, Dual, Guess, Point
from ..core.solver import AbstractSolver
from .polish import ActiveSystem
from .quadratic_program import QuadraticProgram
from .reduced import Reduced, reduce
from .small import (
    add_diagonal,
    cholesky,
    diagonal,
    dot,
    is_small,
    lanes_last,
    largest,
    solve_factored,
    times,
    transpose_times,
)

START, INTERIOR, POLISH = 0, 1, 2


class Iterate(eqx.Module):
    """v, s and z of the reduced program."""

    v: Float[Array, " k"]
    s: Float[Array, " m"]
    z: Float[Array, " m"]


class State(eqx.Module):
    """What a lane carries.

    Attributes:
        iterate: the interior iterate.
        best: the point with the least natural residual so far, and `error`, that residual.
        factor, weight: of the last step.
        polished: whether `best` is a polished point, of `factor` and `weight`.
        aim: the accuracy at which the next polish is tried.
        steps, slow: steps taken; those since the residual last fell to a half.
        nonconvex: H has a negative direction.
    """

    reduced: Reduced
    iterate: Iterate
    best: Iterate
    error: Float[Array, ""]
    factor: Float[Array, "k k"]
    weight: Float[Array, " m"]
    mode: Int[Array, ""]
    polished: Bool[Array, ""]
    aim: Float[Array, ""]
    mark: Float[Array, ""]
    steps: Int[Array, ""]
    slow: Int[Array, ""]
    nonconvex: Bool[Array, ""]
    point: Point


class InteriorPoint(AbstractSolver[QuadraticProgram]):
    """Predictor-corrector on the null space of A, with an active-set polish.

    Use it for dense problems up to a few thousand variables, and for many small ones under vmap: up
    to about ten variables a batch is stepped elementwise, lanes last. Lanes that it cannot solve
    (dependent equalities, infeasible or unbounded problems) go to `HomogeneousEmbedding`.
    """

    step_limit: ClassVar[int] = 200

    def init(self, problem: QuadraticProgram, guess: Guess) -> State:
        return _placed(problem, _init, problem, guess.primal, guess.dual)

    def step(self, problem: QuadraticProgram, state: State) -> State:
        return _placed(problem, _step, state)

    def measure(self, problem: QuadraticProgram, state: State) -> Float[Array, ""]:
        return state.error

    def status(self, problem, state, tolerance):
        stalled = state.reduced.dependent | (state.slow >= 15) | (state.steps >= 60)
        done = (state.error <= tolerance) | stalled | state.nonconvex
        result = RESULTS.where(stalled, RESULTS.stalled, RESULTS.successful)
        return done, RESULTS.where(state.nonconvex, RESULTS.nonconvex, result)

    def finish(self, problem: QuadraticProgram, state: State) -> State:
        return _placed(problem, _finish, problem, state)

    def point(self, problem: QuadraticProgram, state: State) -> Point:
        return state.point

    def preconditioner(self, problem: QuadraticProgram, state: State) -> ActiveSystem:
        return _system(problem, state)


def _placed(problem: QuadraticProgram, fn, *args):
    """`fn(*args)`, lanes last where the problem is small."""
    return lanes_last(fn, *args) if _small(problem) else fn(*args)


def _small(problem: QuadraticProgram) -> bool:
    n = problem.q.shape[0]
    p = 0 if problem.A is None else problem.A.shape[0]
    m = 0 if problem.G is None else problem.G.shape[0]
    m += sum(n for x in (problem.lower, problem.upper) if x is not None)
    return is_small(n, p, m)


def _init(problem: QuadraticProgram, primal: Float[Array, " n"], dual: Dual | None) -> State:
    reduced = reduce(problem)
    zero = jnp.zeros_like(reduced.gradient[0])
    count = jnp.zeros_like(zero, dtype=jnp.int32)
    nothing = jnp.zeros_like(reduced.limit)
    blank = Iterate(jnp.zeros_like(reduced.gradient), jnp.ones_like(nothing), nothing)
    shift = jnp.finfo(zero.dtype).eps ** 0.65 * reduced.curvature
    pivots = diagonal(cholesky(add_diagonal(reduced.hessian, shift + blank.v)))
    state = State(
        reduced=reduced,
        iterate=blank,
        best=blank,
        error=zero + jnp.inf,
        factor=jnp.zeros_like(reduced.hessian),
        weight=nothing,
        mode=count + START,
        polished=jnp.zeros_like(reduced.dependent),
        aim=zero + _first_aim(zero),
        mark=zero + jnp.inf,
        steps=count,
        slow=count,
        nonconvex=~jnp.all(pivots > 0, axis=0),
        point=Point(primal, problem.zero_dual() if dual is None else dual),
    )
    return state if dual is None else _resume(state)


def _resume(state: State) -> State:
    """From a guess with multipliers: its active set is tried first."""
    reduced, x = state.reduced, state.point.primal
    v = x if reduced.rotation is None else reduced.restrict(x - reduced.start)
    z = reduced.gather(state.point.dual)
    slack = reduced.limit - reduced.constraints(v)
    guess = Iterate(v, slack, z)
    weight = _active_weight(reduced, guess)
    factor = cholesky(reduced.normal(weight, _shift(reduced)))
    good = jnp.all(jnp.isfinite(factor), axis=(0, 1))
    state = eqx.tree_at(
        lambda s: (s.iterate, s.best, s.error, s.factor, s.weight, s.mode, s.polished),
        state,
        (
            guess,
            guess,
            _error(reduced, guess)[0],
            jnp.where(good, factor, 1),
            weight,
            jnp.full_like(state.mode, POLISH),
            good,
        ),
    )
    return state


def _step(state: State) -> State:
    reduced, old = state.reduced, state.iterate
    start, polish = state.mode == START, state.mode == POLISH
    interior = ~start & ~polish
    present, fixed = reduced.present, reduced.fixed
    free = present & ~fixed
    weight = jnp.where(
        polish,
        _active_weight(reduced, old),
        jnp.where(free & interior, old.z / old.s, jnp.where(free, 1, 0)),
    )
    weight = jnp.where(fixed, reduced.penalty, weight)
    factor = cholesky(reduced.normal(weight, _shift(reduced)))
    curved = weight > 0

    v = jnp.where(start, 0, old.v)
    z = jnp.where(start & free, 0, jnp.where(curved, old.z, 0))
    s = jnp.where(interior & free, old.s, 0)

    def gradient(v, z):
        return times(reduced.hessian, v) + reduced.gradient + reduced.transposed(z)

    def direction(r_v, r_s, centre):
        dv = solve_factored(factor, -(r_v + reduced.transposed(centre + weight * r_s)))
        return dv, centre + weight * (r_s + reduced.constraints(dv))

    r_v = gradient(v, z)
    r_s = jnp.where(curved, reduced.constraints(v) + s - reduced.limit, 0)
    inside = interior & free
    centre = jnp.where(inside, -z, 0)
    dv, dz = direction(r_v, r_s, centre)
    ds = -(r_s + reduced.constraints(dv))

    # Predictor -> target of the corrector; for a polish, the residual after the first solve.
    rows = jnp.maximum(jnp.sum(free, axis=0), 1).astype(v.dtype)
    safe_s = jnp.where(inside, s, 1)
    mu = jnp.sum(jnp.where(inside, s * z, 0), axis=0) / rows
    reach = jnp.minimum(_reach(s, ds, inside), _reach(z, dz, inside))
    ahead = jnp.sum(jnp.where(inside, (s + reach * ds) * (z + reach * dz), 0), axis=0) / rows
    ratio = jnp.clip(ahead / jnp.where(mu > 0, mu, 1), 0, 1)
    target = jnp.maximum(ratio**3 * mu, _floor(reduced))
    corrected = jnp.where(inside, (target - ds * dz) / safe_s - z, 0)
    v1, z1 = v + dv, jnp.where(curved, z + dz, 0)
    r_v2 = jnp.where(polish, gradient(v1, z1), r_v)
    r_s2 = jnp.where(polish & curved, reduced.constraints(v1) - reduced.limit, r_s)
    dv2, dz2 = direction(r_v2, r_s2, corrected)

    # Interior: one length for all, short of the boundary.
    ds2 = -(r_s + reduced.constraints(dv2))
    reach = jnp.minimum(_reach(s, ds2, inside), _reach(z, dz2, inside))
    length = jnp.minimum(reach * jnp.clip(1 - mu, 0.99, 1 - 1e-5), 1)
    moved = Iterate(
        v + length * dv2,
        jnp.where(inside, s + length * ds2, 1),
        jnp.where(inside | fixed, z + length * dz2, 0),
    )
    # Start: z and -z, each shifted to be positive.
    lowest = jnp.min(jnp.where(free, dz, jnp.inf), axis=0, initial=jnp.inf)
    highest = jnp.max(jnp.where(free, dz, -jnp.inf), axis=0, initial=-jnp.inf)
    up = jnp.where(lowest > 0, 0, 1 - lowest)
    down = jnp.where(highest < 0, 0, 1 + highest)
    begun = Iterate(
        dv,
        jnp.where(free, down - dz, 1),
        jnp.where(free, dz + up, jnp.where(fixed, dz, 0)),
    )
    iterate = _select(start, begun, moved)
    refined = Iterate(v1 + dv2, jnp.where(present, 0, 1), jnp.where(curved, z1 + dz2, 0))
    candidate = _select(polish, refined, iterate)
    error, residual = _error(reduced, candidate)

    finite = jnp.isfinite(error)
    better = finite & (error < state.error)
    best = _select(better, candidate, state.best)
    kept = polish | ~finite
    iterate = _select(kept, old, iterate)
    aim = jnp.where(polish, state.aim * 1e-2, state.aim)
    gap = jnp.sum(jnp.where(free, iterate.s * iterate.z, 0), axis=0) / rows
    near = finite & (jnp.maximum(gap / reduced.dual_scale, residual) <= aim)
    mode = jnp.where(~polish & near, POLISH, INTERIOR)
    fresh = polish & (state.steps == 0)
    mode = jnp.where(fresh, START, mode)
    best_error = jnp.where(better, error, state.error)
    fell = best_error <= state.mark / 2
    return State(
        reduced=reduced,
        iterate=iterate,
        best=best,
        error=best_error,
        factor=factor,
        weight=weight,
        mode=mode.astype(state.mode.dtype),
        polished=polish & better,
        aim=aim,
        mark=jnp.where(fell, best_error, state.mark),
        steps=state.steps + 1,
        slow=jnp.where(fell, 0, state.slow + 1) + jnp.where(finite, 0, 100),
        nonconvex=state.nonconvex,
        point=state.point,
    )


def _finish(problem: QuadraticProgram, state: State) -> State:
    """The point in the problem's own variables, refined there on the polish's active set."""
    reduced, best = state.reduced, state.best
    system = _bare_system(problem, state)
    x, z = best.v, best.z
    if reduced.rotation is not None:
        x = reduced.start + reduced.lift(best.v)
    n_equal = system.equalities
    limit = _limits(problem)
    active = state.weight > 0

    def conditions(x, y, z):
        gradient = times(problem.P, x) + problem.q + system.columns(z)
        equality = None
        if problem.A is not None:
            equality = times(problem.A, x) - problem.b
            gradient = gradient + (0 if y is None else transpose_times(problem.A, y))
        row = system.rows(x) - jnp.where(reduced.present, limit, 0)
        return gradient, equality, row

    y = None
    if problem.A is not None:
        y = jnp.zeros_like(problem.b)
        if reduced.rotation is not None:
            found = reduced.equality_dual(conditions(x, y, z)[0])
            y = jnp.concatenate([found, y[: n_equal - found.shape[0]]])

    def error(x, y, z):
        gradient, equality, row = conditions(x, y, z)
        pair = jnp.where(reduced.fixed, row, jnp.minimum(z, -row))
        parts = [gradient, equality, jnp.where(reduced.present, pair, 0)]
        return largest(*parts)

    point = (x, y, z)
    for _ in range(2):
        gradient, equality, row = conditions(*point)
        dx, dy, dz = system.back(
            -gradient, None if equality is None else -equality, jnp.where(active, -row, 0)
        )
        point = (point[0] + dx, None if dy is None else point[1] + dy, point[2] + dz)
    better = state.polished & (error(*point) <= error(x, y, z))
    x, y, z = _select(better, point, (x, y, z))
    if problem.lower is not None and problem.upper is not None:
        x = jnp.where(problem.lower == problem.upper, problem.lower, x)
    dual = reduced.dual(y, z)
    return eqx.tree_at(lambda s: (s.point, s.best.z), state, (Point(x, dual), z))


def _bare_system(problem: QuadraticProgram, state: State) -> ActiveSystem:
    return ActiveSystem(
        reduced=state.reduced,
        factor=state.factor,
        weight=state.weight,
        tied=jnp.zeros_like(state.reduced.fixed),
        P=problem.P,
        G=problem.G,
        equalities=0 if problem.b is None else problem.b.shape[0],
        small=_small(problem),
    )


def _system(problem: QuadraticProgram, state: State) -> ActiveSystem:
    """The system of the finished state; of a fixed variable's two bounds one is active, one tied."""
    system = _bare_system(problem, state)
    if problem.lower is None or problem.upper is None:
        return system
    n = problem.q.shape[0]
    head = state.weight.shape[0] - 2 * n
    weight, fixed, z = state.weight, state.reduced.fixed[head : head + n], state.best.z[head:]
    high = z[:n] < 0
    large = weight[head : head + n]
    lower = jnp.where(fixed & high, 1, large)
    upper = jnp.where(fixed, jnp.where(high, large, 1), weight[head + n :])
    weight = jnp.concatenate([weight[:head], lower, upper])
    tied = jnp.concatenate([jnp.zeros_like(weight[:head], dtype=bool), fixed & high, fixed & ~high])
    return eqx.tree_at(lambda s: (s.weight, s.tied), system, (weight, tied))


def _limits(problem: QuadraticProgram) -> Float[Array, " m"]:
    """d of Cx <= d."""
    parts = [] if problem.h is None else [problem.h]
    parts += [] if problem.lower is None else [-problem.lower]
    parts += [] if problem.upper is None else [problem.upper]
    return jnp.concatenate(parts) if parts else problem.q[:0]


def _error(reduced: Reduced, at: Iterate) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The natural residual of the reduced program, and that of the equations in s alone; each part
    over its scale."""
    bent, pushed = times(reduced.hessian, at.v), reduced.transposed(at.z)
    row = reduced.constraints(at.v)
    dual_scale = jnp.maximum(reduced.dual_scale, largest(bent, pushed))
    primal_scale = jnp.maximum(reduced.primal_scale, largest(row, at.v))
    slack = (reduced.limit - row) / primal_scale
    pair = jnp.where(reduced.fixed, slack, jnp.minimum(at.z / dual_scale, slack))
    gradient = (bent + reduced.gradient + pushed) / dual_scale
    gap = jnp.where(reduced.present, jnp.where(reduced.fixed, slack, slack - at.s / primal_scale), 0)
    return largest(gradient, jnp.where(reduced.present, pair, 0)), largest(gradient, gap)


def _active_weight(reduced: Reduced, at: Iterate) -> Float[Array, " m"]:
    active = reduced.present & ((at.z > at.s) | reduced.fixed)
    return jnp.where(active, reduced.penalty, 0)


def _shift(reduced: Reduced) -> Float[Array, ""]:
    """What is added to H, so that a linear program's factor exists."""
    return jnp.finfo(reduced.gradient.dtype).eps ** 0.5 * reduced.curvature


def _first_aim(like: Float[Array, ""]) -> float:
    return 1e-5 if like.dtype == jnp.float64 else 1e-3


def _floor(reduced: Reduced) -> Float[Array, ""]:
    return jnp.finfo(reduced.gradient.dtype).eps * reduced.dual_scale


def _reach(x: Float[Array, " m"], d: Float[Array, " m"], counts: Bool[Array, " m"]) -> Array:
    """The largest t <= 2 with x + t d >= 0."""
    falling = counts & (d < 0)
    return jnp.min(jnp.where(falling, -x / jnp.where(falling, d, -1), 2), axis=0, initial=2)


def _select(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
