"""Levenberg-Marquardt for nonlinear least squares.

    minimise ||r(y)||^2 / 2:   (J'J + l D^2) d = -J'r,   y <- y + d

D holds the largest norms so far of the columns of J (More 1978), so that the method does not
depend on the units of y. The damping l follows the ratio of the achieved decrease to the predicted
one (Nielsen 1999). A step is one evaluation of r and J.
"""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core.checks import check_instance, check_kind, check_real, check_settings
from ..core.solution import Guess, Point
from ..core.solver import AbstractPreconditioner, AbstractSolver, ended
from ..core.triangular import cholesky, solve_definite
from ..core.vectors import basis, dot, finite, matmul, positive, ravel, regular
from .forms import Scalar, Vector, blur, gradient_measure, is_lower, shaper
from .problems import LeastSquares

_PATIENCE = 20
_REJECTIONS = 26
"""In a row: the damping then has grown by 2^351, from its floor to where no step is left."""


class Reduced(NamedTuple):
    """All that a step needs of J and r.

    `matrix` is J'J, or the triangular factor R of J; `vector` is J'r, or Q'r.
    """

    matrix: Float[Array, "k n"]
    vector: Float[Array, " k"]


class AbstractFactorisation(eqx.Module):
    """How the damped linear least squares of a step is solved."""

    @abc.abstractmethod
    def reduce(self, jacobian: Float[Array, "m n"], residuals: Float[Array, " m"]) -> Reduced: ...

    @abc.abstractmethod
    def solve(self, reduced: Reduced, weights: Vector) -> Vector:
        """argmin_d ||J d + r||^2 + ||weights d||^2; not finite where that fails."""

    @abc.abstractmethod
    def invert(self, reduced: Reduced, weights: Vector, vector: Vector) -> Vector:
        """(J'J + diag(weights)^2)^{-1} vector."""

    @abc.abstractmethod
    def pivots(self, reduced: Reduced, weights: Vector) -> Vector:
        """Of J'J + diag(weights)^2 in units of its columns, their squares."""

    @abc.abstractmethod
    def columns(self, reduced: Reduced) -> Vector:
        """The norms of the columns of J."""


class Gram(AbstractFactorisation):
    """Cholesky of J'J: the fastest; squares the condition number of J."""

    def reduce(self, jacobian: Float[Array, "m n"], residuals: Float[Array, " m"]) -> Reduced:
        return Reduced(matmul(jacobian.T, jacobian), matmul(residuals, jacobian))

    def solve(self, reduced: Reduced, weights: Vector) -> Vector:
        return -self.invert(reduced, weights, reduced.vector)

    def invert(self, reduced: Reduced, weights: Vector, vector: Vector) -> Vector:
        factor, size = self._factor(reduced, weights)
        return solve_definite(factor, vector / size) / size

    def pivots(self, reduced: Reduced, weights: Vector) -> Vector:
        return jnp.diagonal(self._factor(reduced, weights)[0]) ** 2

    def _factor(self, reduced: Reduced, weights: Vector) -> tuple[Float[Array, "n n"], Vector]:
        matrix = reduced.matrix + jnp.diag(weights * weights)
        # Unit diagonal: no overflow, and the pivots say how near to singular it is.
        size = jnp.sqrt(jnp.diagonal(matrix))
        size = jnp.where(size > 0, size, jnp.ones_like(size))
        return cholesky(matrix / (size[:, None] * size[None, :])), size

    def columns(self, reduced: Reduced) -> Vector:
        return jnp.sqrt(jnp.maximum(jnp.diagonal(reduced.matrix), 0.0))


class QR(AbstractFactorisation):
    """QR of J, and of R over the weights: for J of large condition number, or float32."""

    def reduce(self, jacobian: Float[Array, "m n"], residuals: Float[Array, " m"]) -> Reduced:
        q, r = jnp.linalg.qr(jacobian)
        return Reduced(r, matmul(residuals, q))

    def solve(self, reduced: Reduced, weights: Vector) -> Vector:
        q, r = jnp.linalg.qr(jnp.concatenate([reduced.matrix, jnp.diag(weights)]))
        right = matmul(reduced.vector, q[: reduced.vector.size])
        return -jax.scipy.linalg.solve_triangular(r, right)

    def invert(self, reduced: Reduced, weights: Vector, vector: Vector) -> Vector:
        r = self._triangle(reduced, weights)
        half = jax.scipy.linalg.solve_triangular(r, vector, trans=1)
        return jax.scipy.linalg.solve_triangular(r, half)

    def pivots(self, reduced: Reduced, weights: Vector) -> Vector:
        r = self._triangle(reduced, weights)
        return jnp.diagonal(r) ** 2 / positive(jnp.sum(r * r, axis=0))

    def columns(self, reduced: Reduced) -> Vector:
        return jnp.sqrt(jnp.sum(reduced.matrix**2, axis=0))

    def _triangle(self, reduced: Reduced, weights: Vector) -> Float[Array, "n n"]:
        return jnp.linalg.qr(jnp.concatenate([reduced.matrix, jnp.diag(weights)]), mode="r")


class LevenbergMarquardtState(eqx.Module):
    """A point with its linearisation, and the damping of the step that leaves it.

    Attributes:
        primal: the last accepted point.
        value: ||r||^2 / 2 there.
        gradient: J'r there.
        reduced: J and r there, as the factorisation keeps them.
        weights: D.
        damping: l.
        growth: by which the damping is multiplied at the next rejection.
        rejections: since the last accepted step.
        lowest, best: the smallest value and relative gradient so far.
        idle: accepted steps since one of them last fell.
    """

    primal: PyTree[Array]
    value: Scalar
    gradient: Vector
    reduced: Reduced
    weights: Vector
    damping: Scalar
    growth: Scalar
    rejections: Int[Array, ""]
    lowest: Scalar
    best: Scalar
    idle: Int[Array, ""]


class GaussNewtonInverse(AbstractPreconditioner):
    """(J'J)^{-1}, slightly regularised: exact where the residuals vanish or are linear."""

    factorisation: AbstractFactorisation
    reduced: Reduced
    weights: Vector

    def solve(self, residual: Point) -> Point:
        vector = ravel(residual.primal)
        out = self.factorisation.invert(self.reduced, self.weights, vector)
        return Point(shaper(residual.primal)(out), residual.dual)

    def transpose_solve(self, residual: Point) -> Point:
        return self.solve(residual)


class LevenbergMarquardt(AbstractSolver[LeastSquares]):
    """Levenberg-Marquardt for least squares of up to some thousand variables, a Jacobian a step.

    The default of `LeastSquares`. Stops on the gradient J'r relative to ||r||, never on the step.

    More (1978); damping of Nielsen (1999).

    Args:
        factorisation: `Gram()` or `QR()`.
        damping: the first l, relative to the squared norms of the columns of J.
    """

    factorisation: AbstractFactorisation = Gram()
    damping: float = 1e-3

    step_limit: ClassVar[int] = 1000

    def __check_init__(self) -> None:
        check_settings(self, may_be_zero=("damping",))
        wanted = "Gram() or QR()"
        check_instance(
            "LevenbergMarquardt", "factorisation", self.factorisation, AbstractFactorisation, wanted
        )

    def refuse(self, problem: LeastSquares) -> None:
        check_kind(self, problem, LeastSquares)

    def init(self, problem: LeastSquares, guess: Guess) -> LevenbergMarquardtState:
        vector = ravel(guess.primal)
        check_real("LevenbergMarquardt", "init", vector.dtype)
        value, gradient, reduced = self._evaluate(problem, guess.primal, vector)
        weights = self.factorisation.columns(reduced)
        damping = jnp.full_like(value, self.damping)
        if isinstance(guess.state, LevenbergMarquardtState):
            damping = guess.state.damping.astype(damping.dtype)
        return LevenbergMarquardtState(
            primal=guess.primal,
            value=value,
            gradient=gradient,
            reduced=reduced,
            weights=weights,
            damping=damping,
            growth=jnp.full_like(value, 2.0),
            rejections=jnp.zeros_like(value, jnp.int32),
            lowest=value,
            best=gradient_measure(problem, value, gradient),
            idle=jnp.zeros_like(value, jnp.int32),
        )

    def step(
        self, problem: LeastSquares, state: LevenbergMarquardtState
    ) -> LevenbergMarquardtState:
        vector = ravel(state.primal)
        # A column that is almost 0 so far still needs a weight.
        limits = jnp.finfo(state.weights.dtype)
        least = limits.eps * jnp.max(state.weights, initial=0)
        weights = jnp.maximum(state.weights, jnp.where(least > 0, least, 1))
        damped = jnp.sqrt(state.damping) * weights
        move = self.factorisation.solve(state.reduced, damped)
        solved = finite(move)
        move = jnp.where(solved, move, jnp.zeros_like(move))
        trial = vector + move
        value, gradient, reduced = self._evaluate(problem, state.primal, trial)
        usable = solved & finite(value, gradient, *reduced)

        square = dot(damped * move, damped * move)
        predicted = 0.5 * (square - dot(state.gradient, move))
        resolution = blur(state.value)
        # Where the values no longer resolve the decrease, the slopes at both ends do.
        blurred = (predicted <= resolution) & (value <= state.value + resolution)
        slopes = -0.5 * dot(state.gradient + gradient, move)
        decrease = jnp.where(blurred, slopes, state.value - value)
        ratio = decrease / jnp.where(predicted > 0, predicted, 1.0)
        measure = gradient_measure(problem, value, gradient)
        accepted = usable & (ratio > 1e-4)

        shrink = jnp.clip(1 - (2 * ratio - 1) ** 3, 0.1, 2.0)
        damping = state.damping * jnp.where(accepted, shrink, state.growth)
        # So low because D may remember columns that were larger by orders of magnitude.
        floor = max(float(limits.eps) ** 4, float(limits.tiny))
        lower = is_lower(value, state.lowest)
        progress = accepted & (lower | (measure < 0.99 * state.best))

        def choose(new, old):
            return jnp.where(accepted, new, old)

        reduced = Reduced(*map(choose, reduced, state.reduced))
        return LevenbergMarquardtState(
            primal=shaper(state.primal)(choose(trial, vector)),
            value=choose(value, state.value),
            gradient=choose(gradient, state.gradient),
            reduced=reduced,
            weights=jnp.maximum(state.weights, self.factorisation.columns(reduced)),
            damping=jnp.clip(damping, floor, 1 / floor),
            growth=choose(jnp.full_like(value, 2.0), 2 * state.growth),
            rejections=jnp.where(accepted, 0, state.rejections + 1),
            lowest=jnp.where(progress, jnp.minimum(value, state.lowest), state.lowest),
            best=jnp.where(progress, jnp.minimum(measure, state.best), state.best),
            idle=jnp.where(progress, 0, state.idle + accepted.astype(jnp.int32)),
        )

    def measure(self, problem: LeastSquares, state: LevenbergMarquardtState) -> Scalar:
        return gradient_measure(problem, state.value, state.gradient)

    def status(
        self, problem: LeastSquares, state: LevenbergMarquardtState, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        solved = self.measure(problem, state) <= tolerance
        stalled = (state.rejections >= _REJECTIONS) | (state.idle >= _PATIENCE)
        return ended(solved, stalled)

    def point(self, problem: LeastSquares, state: LevenbergMarquardtState) -> Point:
        return Point(state.primal)

    def full_step(self, problem: LeastSquares, point: Point) -> Point:
        vector = ravel(point.primal)
        _, _, reduced = self._evaluate(problem, point.primal, vector)
        move = self.factorisation.solve(reduced, jnp.zeros_like(vector))
        return Point(shaper(point.primal)(vector + move))

    def preconditioner(
        self, problem: LeastSquares, state: LevenbergMarquardtState
    ) -> GaussNewtonInverse:
        eps = jnp.finfo(state.value.dtype).eps
        size = self.factorisation.columns(state.reduced)
        weights = jnp.sqrt(eps) * jnp.where(size > 0, size, jnp.ones_like(size))
        # At a singular J'J it would lead to one solution of many, and no residual would tell.
        usable = regular(self.factorisation.pivots(state.reduced, weights))
        weights = jnp.where(usable, weights, jnp.nan)
        return GaussNewtonInverse(self.factorisation, state.reduced, weights)

    def _evaluate(
        self, problem: LeastSquares, primal: PyTree[Array], vector: Vector
    ) -> tuple[Scalar, Vector, Reduced]:
        """||r||^2 / 2, J'r, and the reduced pair."""
        restore = shaper(primal)

        def fn(vector: Vector) -> Float[Array, " m"]:
            return ravel(problem(restore(vector)))

        count = jax.eval_shape(fn, vector).size
        if count >= vector.size:
            residuals, tangent = jax.linearize(fn, vector)
            jacobian = jax.vmap(tangent, out_axes=1)(basis(vector))
        else:
            residuals, pullback = jax.vjp(fn, vector)
            (jacobian,) = jax.vmap(pullback)(basis(residuals))
        gradient = matmul(residuals, jacobian)
        value = 0.5 * dot(residuals, residuals)
        return value, gradient, self.factorisation.reduce(jacobian, residuals)
