"""Newton's method in a trust region, without a matrix: Steihaug's conjugate gradients.

    s ~ argmin g's + s'Hs / 2  subject to  ||s|| <= radius,   y <- y + s where that lowers f

Both levels are flattened into one state machine: a step evaluates f, its gradient and one Hessian
product at once, and is either one conjugate gradient iteration or one trial of s. In a batch no
lane waits for another's inner loop; alone it costs what a Hessian product costs.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from ..core.checks import check_kind
from ..core.solution import Guess, Point
from ..core.solver import AbstractSolver, ended
from ..core.vectors import dot, finite, largest, norm, ravel
from .forms import (
    Scalar,
    Vector,
    blur,
    gradient_measure,
    is_lower,
    objective,
    shaper,
)
from .problems import LeastSquares, Minimise

_REJECTIONS = 40
_PATIENCE = 20


class Subproblem(eqx.Module):
    """The conjugate gradient iteration, and the step s once it has ended.

    In units of the largest entry of the gradient: squares of a large one overflow in float32.

    Attributes:
        move: s.
        residual: -(g + H s).
        search: the conjugate direction.
        iterations: made so far.
        ready: whether s is final and is tried next.
        bounded: whether s ended on the boundary.
        slope, curvature: g's and s'Hs of the final s.
    """

    move: Vector
    residual: Vector
    search: Vector
    iterations: Int[Array, ""]
    ready: Bool[Array, ""]
    bounded: Bool[Array, ""]
    slope: Scalar
    curvature: Scalar


class TrustRegionNewtonState(eqx.Module):
    """A point with its value and gradient, the radius, and the step in the making.

    Attributes:
        rejections: since the last accepted step.
        lowest, best: the smallest value and relative gradient so far.
        idle: accepted steps since one of them last fell.
    """

    primal: PyTree[Array]
    value: Scalar
    gradient: Vector
    radius: Scalar
    subproblem: Subproblem
    rejections: Int[Array, ""]
    lowest: Scalar
    best: Scalar
    idle: Int[Array, ""]


class TrustRegionNewton(AbstractSolver[Minimise | LeastSquares]):
    """Matrix-free Newton-CG in a trust region: for ill-conditioned or non-convex objectives.

    Takes few, expensive steps where L-BFGS takes many; no matrix is formed. A step of the loop is
    one Hessian product, so `max_steps` counts those.

    Steihaug (1983); after a rejection the step is shortened by interpolation, as in Nocedal and
    Yuan (1998), so that no conjugate gradient iteration is repeated.
    """

    step_limit: ClassVar[int] = 10_000

    def refuse(self, problem: Minimise | LeastSquares) -> None:
        check_kind(self, problem, Minimise, LeastSquares)

    def init(self, problem: Minimise | LeastSquares, guess: Guess) -> TrustRegionNewtonState:
        vector = ravel(guess.primal)
        value, gradient = jax.value_and_grad(objective(problem, guess.primal))(vector)
        radius = jnp.maximum(norm(vector), 1.0)
        if isinstance(guess.state, TrustRegionNewtonState):
            radius = jnp.maximum(guess.state.radius.astype(radius.dtype), 1e-3 * radius)
        count = jnp.zeros_like(value, jnp.int32)
        return TrustRegionNewtonState(
            primal=guess.primal,
            value=value,
            gradient=gradient,
            radius=radius,
            subproblem=_start(gradient),
            rejections=count,
            lowest=value,
            best=gradient_measure(problem, value, gradient),
            idle=count,
        )

    def step(
        self, problem: Minimise | LeastSquares, state: TrustRegionNewtonState
    ) -> TrustRegionNewtonState:
        vector, inner = ravel(state.primal), state.subproblem
        trial = jnp.where(inner.ready, vector + inner.move, vector)
        fn = jax.value_and_grad(objective(problem, state.primal))
        (value, gradient), (_, product) = jax.jvp(fn, (trial,), (inner.search,))

        current = gradient_measure(problem, state.value, state.gradient)
        size = _size(state.gradient)
        advanced = _iterate(inner, state.gradient / size, product / size, state.radius, current)

        # The trial, where the subproblem had ended.
        measure = gradient_measure(problem, value, gradient)
        usable = jnp.isfinite(value) & finite(gradient)
        predicted = -(inner.slope + 0.5 * inner.curvature) * size
        resolution = blur(state.value)
        ratio = (state.value - value) / jnp.where(predicted > 0, predicted, 1.0)
        # Where the values no longer resolve the decrease, the gradients do.
        blurred = (predicted <= resolution) & (value <= state.value + resolution)
        blurred = blurred & (measure < current)
        accepted = inner.ready & usable & ((ratio > 1e-4) | blurred)
        rejected = inner.ready & ~accepted

        # The parabola through the value, the slope, and the trial's value.
        bend = 2 * ((value - state.value) / size - inner.slope)
        factor = jnp.where(bend > 0, -inner.slope / jnp.where(bend > 0, bend, 1.0), 0.5)
        factor = jnp.where(usable, jnp.clip(factor, 0.1, 0.5), 0.1).astype(state.radius.dtype)
        length = norm(inner.move)
        grown = jnp.where((ratio > 0.75) & inner.bounded, 2.5 * state.radius, state.radius)
        grown = jnp.where((ratio < 0.25) & ~blurred, jnp.minimum(grown, 0.5 * length), grown)
        radius = jnp.where(accepted, grown, jnp.where(rejected, factor * length, state.radius))

        shorter = eqx.tree_at(
            lambda s: (s.move, s.slope, s.curvature),
            inner,
            (factor * inner.move, factor * inner.slope, factor**2 * inner.curvature),
        )
        anew = _start(gradient)
        subproblem = _select(accepted, anew, _select(rejected, shorter, advanced))
        lower = is_lower(value, state.lowest)
        progress = accepted & (lower | (measure < 0.99 * state.best))
        return TrustRegionNewtonState(
            primal=shaper(state.primal)(jnp.where(accepted, trial, vector)),
            value=jnp.where(accepted, value, state.value),
            gradient=jnp.where(accepted, gradient, state.gradient),
            radius=radius,
            subproblem=subproblem,
            rejections=jnp.where(accepted, 0, state.rejections + rejected.astype(jnp.int32)),
            lowest=jnp.where(progress, jnp.minimum(value, state.lowest), state.lowest),
            best=jnp.where(progress, jnp.minimum(measure, state.best), state.best),
            idle=jnp.where(progress, 0, state.idle + accepted.astype(jnp.int32)),
        )

    def measure(self, problem: Minimise | LeastSquares, state: TrustRegionNewtonState) -> Scalar:
        return gradient_measure(problem, state.value, state.gradient)

    def status(
        self, problem: Minimise | LeastSquares, state: TrustRegionNewtonState, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        solved = self.measure(problem, state) <= tolerance
        stalled = (state.rejections >= _REJECTIONS) | (state.idle >= _PATIENCE)
        return ended(solved, stalled)

    def point(self, problem: Minimise | LeastSquares, state: TrustRegionNewtonState) -> Point:
        return Point(state.primal)


def _size(gradient: Vector) -> Scalar:
    size = largest(gradient)
    return jnp.where((size > 0) & jnp.isfinite(size), size, jnp.ones_like(size))


def _start(gradient: Vector) -> Subproblem:
    zero = jnp.zeros_like(gradient[0])
    gradient = gradient / _size(gradient)
    return Subproblem(
        move=jnp.zeros_like(gradient),
        residual=-gradient,
        search=-gradient,
        iterations=jnp.zeros_like(zero, jnp.int32),
        ready=zero > 1,
        bounded=zero > 1,
        slope=zero,
        curvature=zero,
    )


def _iterate(
    inner: Subproblem, gradient: Vector, product: Vector, radius: Scalar, measure: Scalar
) -> Subproblem:
    """One conjugate gradient iteration, with H times the search direction."""
    product = jnp.where(finite(product), product, jnp.zeros_like(product))
    curvature = dot(inner.search, product)
    size = jnp.maximum(norm(inner.search), jnp.finfo(curvature.dtype).tiny)
    square = dot(inner.residual, inner.residual)
    flat = ~(curvature > jnp.finfo(curvature.dtype).eps * size * size * 1e-3)
    length = square / jnp.where(flat, jnp.ones_like(curvature), curvature)
    beyond = flat | ~(norm(inner.move + length * inner.search) < radius)
    length = jnp.where(beyond, _to_boundary(inner.move, inner.search / size, radius) / size, length)

    move = inner.move + length * inner.search
    residual = inner.residual - length * product
    new_square = dot(residual, residual)
    iterations = inner.iterations + 1
    # Superlinear convergence without solving far-off models to the end (Dembo and Steihaug 1983).
    forcing = jnp.minimum(0.1, jnp.sqrt(measure)) * norm(gradient)
    close = jnp.sqrt(new_square) <= forcing
    spent = iterations >= 2 * gradient.size
    slope = dot(gradient, move)
    return Subproblem(
        move=move,
        residual=residual,
        search=residual + new_square / jnp.where(square > 0, square, 1.0) * inner.search,
        iterations=iterations,
        ready=beyond | close | spent,
        bounded=beyond,
        slope=slope,
        curvature=-dot(move, residual) - slope,
    )


def _to_boundary(move: Vector, unit: Vector, radius: Scalar) -> Scalar:
    """The t >= 0 with ||move + t unit|| = radius, in the form that does not cancel."""
    along, gap = dot(move, unit), jnp.maximum(radius**2 - dot(move, move), 0.0)
    root = jnp.sqrt(along**2 + gap)
    return jnp.where(along > 0, gap / jnp.where(along > 0, along + root, 1.0), root - along)


def _select(where: Bool[Array, ""], new: Subproblem, old: Subproblem) -> Subproblem:
    return jax.tree.map(lambda x, y: jnp.where(where, x, y), new, old)
