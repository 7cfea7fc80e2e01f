"""Sketch and precondition: linear least squares to full accuracy, in few products whatever A.

    minimise ||A x - b||^2 / 2,    x = N y,    S A N orthonormal

A N is nearly orthonormal then: with m = 4 d, 8 d, 16 d rows of S the singular values of A N lie
within 1 +- sqrt(d/m), and conjugate gradients on N'A'A N y = N'A'b gain a factor of about
sqrt(m/d) a step, whatever the condition number of A. Rokhlin and Tygert (2008); Avron, Maymounkov
and Toledo (2010); by the singular values of S A, as here, Meng, Saunders and Mahoney (2014).

The start is the sketched solution, without which the method is not stable (Meier, Nakatsukasa,
Townsend and Webb 2024), and the residuals of the recurrence are replaced by true ones before they
are believed.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from ..core.checks import check_kind, check_real
from ..core.problem import AbstractProblem
from ..core.solution import Guess, Point
from ..core.solver import AbstractSolver, ended
from ..core.vectors import dot, matmul, norm, positive, ravel
from .affine import Affine, Inverse, Residuals, linear_problem, sketched
from .forms import Scalar, Vector, gradient_measure, shaper
from .problems import LeastSquares
from .sketched_least_squares import draw
from .sketches import AbstractSketch

_PATIENCE = 8


class SketchPreconditionedCGState(eqx.Module):
    """An iterate of conjugate gradients, and when its residuals were last true.

    Attributes:
        residuals: A x - b by the recurrence.
        offset: the residuals at 0.
        direction: of the next step.
        square: of the preconditioned gradient N'A'r.
        measured: the relative gradient, or the relative preconditioned one where that is larger.
        goal: the tolerance; below it the next step computes the residuals anew.
        fresh: whether they are A x - b to rounding.
        last: `measured` when they last were.
        stuck: whether it has not halved since.
        best, lowest: where `measured` was least since the start, and what it was.
        idle: steps since it last fell.
    """

    primal: PyTree[Array]
    inverse: Inverse
    residuals: Residuals
    offset: Residuals
    direction: Vector
    square: Scalar
    measured: Scalar
    goal: Scalar
    fresh: Bool[Array, ""]
    last: Scalar
    stuck: Bool[Array, ""]
    best: Vector
    lowest: Scalar
    idle: Int[Array, ""]


class SketchPreconditionedCG(AbstractSolver[LeastSquares]):
    """Conjugate gradients on linear least squares, preconditioned by a sketch of A.

    For many more residuals than variables and A of any condition number: the number of steps, each
    a product with A and one with A', depends on the sketch alone. Stops where the preconditioned
    gradient, relative to b, is within the tolerance too: ||A (x - x*)|| <= tolerance ||b||, about.
    Where the columns of A depend on each other it ends at one of the solutions.

    `solve(..., key=key)` draws the sketch; without a key it is always the same one. A is formed
    once, in `init`, and not kept.

    Meng, Saunders and Mahoney (2014), with the transform of Avron, Maymounkov and Toledo (2010).

    Args:
        sketch: `SRHT(rows)`, `CountSketch(rows)` or `GaussianSketch(rows)`, of 4 to 16 rows a
            variable.

    Raises:
        TypeError: the problem is not linear.
        ValueError: the sketch has fewer rows than there are variables.
    """

    sketch: AbstractSketch

    step_limit: ClassVar[int] = 1000

    def refuse(self, problem: LeastSquares) -> None:
        check_kind(self, problem, LeastSquares)

    def prepare(
        self, problem: AbstractProblem, init: PyTree | None, key: Any = None
    ) -> tuple[AbstractProblem, PyTree[Array]]:
        return linear_problem(self, problem, init)

    def init(self, problem: LeastSquares, guess: Guess) -> SketchPreconditionedCGState:
        affine, vector = Affine(problem, guess.primal), ravel(guess.primal)
        check_real("SketchPreconditionedCG", "init", vector.dtype)
        residuals = affine(vector)
        drawn = draw(self.sketch, guess.key, problem, guess.primal)
        inverse, move = sketched(drawn, affine, residuals)
        moved = affine(vector + move)
        # At a warm start the sketch's own error would be a step back.
        better = norm(moved) < norm(residuals)
        vector = jnp.where(better, vector + move, vector)
        residuals = jnp.where(better, moved, residuals)
        offset = affine(jnp.zeros_like(vector))
        gradient = affine.transpose(residuals)
        half = inverse.half(gradient)
        measured = _measure(problem, residuals, offset, gradient, half)
        goal = jnp.zeros_like(measured) if guess.tolerance is None else guess.tolerance
        return SketchPreconditionedCGState(
            primal=shaper(guess.primal)(vector),
            inverse=inverse,
            residuals=residuals,
            offset=offset,
            direction=-matmul(inverse.factor, half),
            square=dot(half, half),
            measured=measured,
            goal=goal.astype(measured.dtype),
            fresh=jnp.ones_like(measured, bool),
            last=measured,
            stuck=jnp.zeros_like(measured, bool),
            best=vector,
            lowest=measured,
            idle=jnp.zeros_like(measured, jnp.int32),
        )

    def step(
        self, problem: LeastSquares, state: SketchPreconditionedCGState
    ) -> SketchPreconditionedCGState:
        affine, vector = Affine(problem, state.primal), ravel(state.primal)
        # At the limit of rounding the recurrence first idles, and then grows.
        lost = state.idle >= _PATIENCE
        renew = ((state.measured <= state.goal) & ~state.fresh) | lost
        vector = jnp.where(lost, state.best, vector)
        # One product a step: along the direction, or of the point itself.
        image = affine.product(jnp.where(renew, vector, state.direction))
        length = jnp.where(renew, 0.0, state.square / positive(dot(image, image)))
        vector = vector + length * state.direction
        residuals = jnp.where(renew, state.offset + image, state.residuals + length * image)
        gradient = affine.transpose(residuals)
        half = state.inverse.half(gradient)
        square = dot(half, half)
        momentum = jnp.where(renew, 0.0, square / positive(state.square))
        measured = _measure(problem, residuals, state.offset, gradient, half)
        fell = renew | (measured < 0.9 * state.lowest)
        return SketchPreconditionedCGState(
            primal=shaper(state.primal)(vector),
            inverse=state.inverse,
            residuals=residuals,
            offset=state.offset,
            direction=momentum * state.direction - matmul(state.inverse.factor, half),
            square=square,
            measured=measured,
            goal=state.goal,
            fresh=renew,
            last=jnp.where(renew, measured, state.last),
            stuck=renew & (measured > 0.5 * state.last),
            best=jnp.where(fell, vector, state.best),
            lowest=jnp.where(fell, measured, state.lowest),
            idle=jnp.where(fell, 0, state.idle + 1),
        )

    def measure(self, problem: LeastSquares, state: SketchPreconditionedCGState) -> Scalar:
        return state.measured

    def status(
        self, problem: LeastSquares, state: SketchPreconditionedCGState, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        solved = state.fresh & (state.measured <= tolerance)
        return ended(solved, state.stuck)

    def point(self, problem: LeastSquares, state: SketchPreconditionedCGState) -> Point:
        return Point(state.primal)

    def preconditioner(self, problem: LeastSquares, state: SketchPreconditionedCGState) -> Inverse:
        return state.inverse


def _measure(
    problem: LeastSquares,
    residuals: Residuals,
    offset: Residuals,
    gradient: Vector,
    half: Vector,
) -> Scalar:
    """The problem's own residual sees little of the directions in which A is small: N'A'r, which
    is about the projection of r on the range of A, sees all of them alike."""
    own = gradient_measure(problem, 0.5 * dot(residuals, residuals), gradient)
    return jnp.maximum(own, norm(half) / positive(norm(offset)))
