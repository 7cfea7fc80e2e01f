"""Sketch and solve: linear least squares of a random few combinations of the residuals.

    x' = argmin ||S (A x - b)||,    S in R^{m x n} random, m far below n

With probability 1 - delta, for a dense sketch (`SRHT`, `GaussianSketch`) of
m = eps^-2 d log^3(n / delta) rows,

    ||x' - x*||_inf <= (eps / sqrt(d)) ||A x* - b|| ||A^+||,                        (1)

sqrt(d) times better than what a bound of ||A x' - b|| gives: the error is spread evenly over the
coordinates. Song, Ye, Yin and Zhang (2023). Without the logarithms of the bound, about
sqrt(2 log d) / sqrt(m - d) stands for eps / sqrt(d).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from ..core.checks import check_kind, check_real
from ..core.problem import AbstractProblem
from ..core.solution import RESULTS, Guess, Point
from ..core.solver import AbstractSolver
from ..core.vectors import norm, ravel
from .affine import Affine, Inverse, count, linear_problem, sketched
from .forms import Scalar, gradient_measure, shaper
from .problems import LeastSquares
from .sketches import AbstractDrawn, AbstractSketch


class _Sketched(LeastSquares):
    """Linear least squares of which a solver minimises the sketch.

    Its optimality, and so its derivative, are the sketch's; its residual is that of the whole.
    """

    drawn: Any = eqx.field(kw_only=True)

    def optimality(self, point: Point) -> Point:
        def fn(value: PyTree[Array]) -> Array:
            return self.drawn(ravel(self(value))[:, None])[:, 0]

        residuals, pullback = jax.vjp(fn, point.primal)
        return Point(pullback(residuals)[0])


class SketchedState(eqx.Module):
    """A point, and what is known there.

    Attributes:
        measured: the relative gradient of the whole problem.
        inverse: of the sketch's normal equations.
        linear: whether the residuals at the point are those that linearity foretold.
        done: whether the point is the sketch's solution.
    """

    primal: PyTree[Array]
    measured: Scalar
    inverse: Inverse
    linear: Bool[Array, ""]
    done: Bool[Array, ""]


class SketchedLeastSquares(AbstractSolver[LeastSquares]):
    """Sketch and solve, for linear least squares with many more residuals than variables.

    One step: an estimate with the error of (1), in the time of one pass over A and a QR of m rows.
    The result is `approximate`; `stats.residual` is that of the whole problem. For the exact
    solution see `SketchPreconditionedCG`, which goes on from here.

    The estimate is a smooth function of A and b while S stays, and that is what is differentiated.
    `solve(..., key=key)` draws S; without a key it is always the same one.

    Song, Ye, Yin and Zhang (2023), "A nearly-optimal bound for fast regression with l_inf
    guarantee".

    Args:
        sketch: `SRHT(rows)`, `GaussianSketch(rows)` or `CountSketch(rows)`; only the dense ones
            have the guarantee (1).

    Raises:
        TypeError: the problem is not linear.
        ValueError: the sketch has fewer rows than there are variables.
    """

    sketch: AbstractSketch

    step_limit: ClassVar[int] = 1

    def refuse(self, problem: LeastSquares) -> None:
        check_kind(self, problem, LeastSquares)

    def prepare(
        self, problem: AbstractProblem, init: PyTree | None, key: Array | None = None
    ) -> tuple[AbstractProblem, PyTree[Array]]:
        whole, value = linear_problem(self, problem, init)
        drawn = draw(self.sketch, key, whole, value)
        return _Sketched(whole.fn, whole.args, size=whole.size, drawn=drawn), value

    def init(self, problem: LeastSquares, guess: Guess) -> SketchedState:
        affine, vector = Affine(problem, guess.primal), ravel(guess.primal)
        check_real("SketchedLeastSquares", "init", vector.dtype)
        residuals = affine(vector)
        measured = _measure(affine, residuals)
        no = jnp.zeros_like(measured, bool)
        factor = vector[:, None] * jnp.zeros_like(vector)
        return SketchedState(guess.primal, measured, Inverse(factor), ~no, no)

    def step(self, problem: LeastSquares, state: SketchedState) -> SketchedState:
        assert isinstance(problem, _Sketched)
        affine, vector = Affine(problem, state.primal), ravel(state.primal)
        residuals = affine(vector)
        inverse, move = sketched(problem.drawn, affine, residuals)
        moved = affine(vector + move)
        foretold = residuals + affine.product(move)
        # Half of the digits: what is not linear is off by more.
        blur = jnp.finfo(moved.dtype).eps ** 0.5 * (norm(residuals) + norm(moved))
        return SketchedState(
            primal=shaper(state.primal)(vector + move),
            measured=_measure(affine, moved),
            inverse=inverse,
            linear=norm(moved - foretold) <= blur,
            done=jnp.ones_like(state.done),
        )

    def measure(self, problem: LeastSquares, state: SketchedState) -> Scalar:
        return state.measured

    def status(
        self, problem: LeastSquares, state: SketchedState, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        return state.done, RESULTS.where(state.linear, RESULTS.approximate, RESULTS.stalled)

    def point(self, problem: LeastSquares, state: SketchedState) -> Point:
        return Point(state.primal)

    def preconditioner(self, problem: LeastSquares, state: SketchedState) -> Inverse:
        return state.inverse


def draw(
    sketch: AbstractSketch, key: Array | None, problem: LeastSquares, value: PyTree[Array]
) -> AbstractDrawn:
    """The sketch that belongs to a key."""
    key = jax.random.key(0) if key is None else key
    return sketch.draw(key, count(problem, value), ravel(value).dtype)


def _measure(affine: Affine, residuals: Array) -> Scalar:
    value = 0.5 * jnp.sum(residuals * residuals)
    return gradient_measure(affine.problem, value, affine.transpose(residuals))
