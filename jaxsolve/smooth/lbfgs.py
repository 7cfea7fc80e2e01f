"""Limited-memory BFGS.

    minimise f(y):   d = -H grad f(y),   y <- y + a d

H is the inverse Hessian of the last pairs s = change of y, y = change of gradient, in the compact
form of Byrd, Nocedal and Schnabel (1994), eq. 3.1: two products with the pairs a direction, no
recursion. The line search is a state machine (`line_search.py`): a step is one evaluation of f and
its gradient, whatever it turns out to be for.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core.checks import check_kind, check_settings
from ..core.solution import Guess, Point
from ..core.solver import AbstractPreconditioner, AbstractSolver, ended
from ..core.vectors import dot, finite, largest, matmul, norm, ravel
from . import line_search
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

_PATIENCE = 150
"""Steps without a lower value or a smaller gradient after which no progress is possible."""


class Pairs(eqx.Module):
    """The last `memory` pairs, each in the row that was the oldest's; empty rows are zero.

    With R the part of S'Y on and above the diagonal (in order of age), its inverse is kept: the
    oldest pair leaves by zeroing its row and column, a new one enters as a column.

    Attributes:
        steps: S', one change of the variable a row.
        changes: Y', the changes of the gradient.
        inverse: R^{-1}.
        gram: Y'Y.
        curvature: s'y of each pair.
        scale: s'y / y'y of the last pair; H is this multiple of the identity when empty.
        count: pairs accepted so far.
    """

    steps: Float[Array, "memory n"]
    changes: Float[Array, "memory n"]
    inverse: Float[Array, "memory memory"]
    gram: Float[Array, "memory memory"]
    curvature: Float[Array, " memory"]
    scale: Scalar
    count: Int[Array, ""]

    @classmethod
    def empty(cls, like: Vector, memory: int) -> "Pairs":
        """No pairs: H = 1."""
        rows = jnp.zeros((memory, like.size), like.dtype)
        square = jnp.zeros((memory, memory), like.dtype)
        one = jnp.ones((), like.dtype)
        return cls(rows, rows, square, square, square[0], one, jnp.zeros((), jnp.int32))

    def times(self, vector: Vector) -> Vector:
        """H vector."""
        return self._times(vector, matmul(self.steps, vector), matmul(self.changes, vector))

    def _times(self, vector, along_steps, along_changes) -> Vector:
        u = matmul(self.inverse, along_steps)
        v = self.curvature * u + self.scale * (matmul(self.gram, u) - along_changes)
        w = matmul(v, self.inverse)
        return self.scale * (vector - matmul(u, self.changes)) + matmul(w, self.steps)

    def cleared(self, where: Bool[Array, ""]) -> "Pairs":
        """Without its pairs `where` it holds."""
        keep = (~where).astype(self.scale.dtype)

        def clear(x):
            return jnp.where(where, jnp.zeros_like(x), x)

        return Pairs(
            self.steps * keep,
            self.changes * keep,
            clear(self.inverse),
            clear(self.gram),
            clear(self.curvature),
            jnp.where(where, jnp.ones_like(self.scale), self.scale),
            clear(self.count),
        )

    def with_pair(self, step: Vector, change: Vector, where: Bool[Array, ""]) -> "Pairs":
        """With one more pair, `where` it holds and the pair's curvature is positive."""
        curvature, square = dot(step, change), dot(change, change)
        small = jnp.finfo(step.dtype).eps * jnp.sqrt(square * dot(step, step))
        enters = where & (curvature > small) & jnp.isfinite(square) & (square > 0)
        memory = self.curvature.size
        row = self.count % memory
        own = jnp.arange(memory, dtype=row.dtype) == row
        zero = jnp.zeros_like(curvature)
        step = jnp.where(enters, step, self.steps[row])
        change = jnp.where(enters, change, self.changes[row])
        steps = self.steps.at[row].set(step)
        changes = self.changes.at[row].set(change)

        products = matmul(steps, change)
        safe = jnp.where(enters, curvature, jnp.ones_like(curvature))
        inverse = jnp.where(own[:, None] | own[None, :], zero, self.inverse)
        column = jnp.where(own, 1 / safe, -matmul(inverse, products) / safe)
        inverse = jnp.where(own[None, :], column[:, None], inverse)
        products = matmul(changes, change)
        gram = jnp.where(own[None, :], products[:, None], self.gram)
        gram = jnp.where(own[:, None], products[None, :], gram)

        def choose(new, old):
            return jnp.where(enters, new, old)

        return Pairs(
            steps,
            changes,
            choose(inverse, self.inverse),
            choose(gram, self.gram),
            choose(jnp.where(own, curvature, self.curvature), self.curvature),
            choose(curvature / jnp.where(enters, square, 1.0), self.scale),
            self.count + enters.astype(jnp.int32),
        )


class LBFGSState(eqx.Module):
    """A point with its value and gradient, and the line search that leaves it.

    Attributes:
        primal: the last accepted point.
        value, gradient: there.
        direction: of the search, of negative slope.
        slope: along the direction, at the point.
        search: step sizes tried and to be tried.
        pairs: of the inverse Hessian.
        lowest, best: the smallest value and relative gradient so far.
        idle: steps since one of them last fell.
        stuck: no step along the steepest descent lowers the value.
    """

    primal: PyTree[Array]
    value: Scalar
    gradient: Vector
    direction: Vector
    slope: Scalar
    search: line_search.Search
    pairs: Pairs
    lowest: Scalar
    best: Scalar
    idle: Int[Array, ""]
    stuck: Bool[Array, ""]

    @property
    def trial(self) -> PyTree[Array]:
        """Where the next step evaluates."""
        vector = ravel(self.primal) + self.search.step_size * self.direction
        return shaper(self.primal)(vector)


class InverseHessian(AbstractPreconditioner):
    """The quasi-Newton inverse as a preconditioner: symmetric and positive definite."""

    pairs: Pairs

    def solve(self, residual: Point) -> Point:
        primal = self.pairs.times(ravel(residual.primal))
        return Point(shaper(residual.primal)(primal), residual.dual)

    def transpose_solve(self, residual: Point) -> Point:
        return self.solve(residual)


class LBFGS(AbstractSolver[Minimise | LeastSquares]):
    """Limited-memory BFGS for smooth objectives, from two variables to millions.

    The default of `Minimise`. Each step is one evaluation of the function and its gradient. It
    stops on the gradient, and gets there in float32 too, where the value no longer changes.

    Liu and Nocedal (1989); approximate Wolfe conditions of Hager and Zhang (2005).

    Args:
        memory: pairs kept; each costs two vectors.
    """

    memory: int = 20

    step_limit: ClassVar[int] = 2000

    def __check_init__(self) -> None:
        check_settings(self)

    def refuse(self, problem: Minimise | LeastSquares) -> None:
        check_kind(self, problem, Minimise, LeastSquares)

    def init(self, problem: Minimise | LeastSquares, guess: Guess) -> LBFGSState:
        vector = ravel(guess.primal)
        value, gradient = jax.value_and_grad(objective(problem, guess.primal))(vector)
        pairs = Pairs.empty(vector, self.memory)
        if isinstance(guess.state, LBFGSState) and _fits(guess.state.pairs, pairs):
            pairs = guess.state.pairs
        direction, slope, fell_back = _direction(pairs, gradient)
        pairs = pairs.cleared(fell_back)
        measure = gradient_measure(problem, value, gradient)
        step_size = _first_step_size(pairs, vector, value, gradient)
        return LBFGSState(
            primal=guess.primal,
            value=value,
            gradient=gradient,
            direction=direction,
            slope=slope,
            search=line_search.start(step_size, value, slope),
            pairs=pairs,
            lowest=value,
            best=measure,
            idle=jnp.zeros_like(value, jnp.int32),
            stuck=value != value,
        )

    def step(self, problem: Minimise | LeastSquares, state: LBFGSState) -> LBFGSState:
        vector = ravel(state.primal)
        trial = ravel(state.trial)
        value, gradient = jax.value_and_grad(objective(problem, state.primal))(trial)
        usable = jnp.isfinite(value) & finite(gradient)
        slope = jnp.where(usable, dot(gradient, state.direction), jnp.nan)
        accepted, failed, search = line_search.advance(
            state.search, state.value, state.slope, value, slope, blur(state.value)
        )

        # A failed search forgets the pairs and starts again downhill; that failing too is the end.
        stuck = failed & (state.pairs.count == 0)
        pairs = state.pairs.with_pair(trial - vector, gradient - state.gradient, accepted)
        vector = jnp.where(accepted, trial, vector)
        gradient = jnp.where(accepted, gradient, state.gradient)
        value = jnp.where(accepted, value, state.value)
        direction, slope, fell_back = _direction(pairs, gradient)
        anew = failed | fell_back
        pairs = jax.lax.cond(anew, lambda p: p.cleared(anew), lambda p: p, pairs)
        steepest = _steepest(gradient)
        direction = jnp.where(anew, steepest, direction)
        slope = jnp.where(anew, dot(gradient, steepest), slope)

        leaves = accepted | failed
        fresh = line_search.start(_first_step_size(pairs, vector, value, gradient), value, slope)
        search = jax.tree.map(lambda new, old: jnp.where(leaves, new, old), fresh, search)
        measure = gradient_measure(problem, value, gradient)
        progress = is_lower(value, state.lowest) | (measure < 0.9 * state.best)
        return LBFGSState(
            primal=shaper(state.primal)(vector),
            value=value,
            gradient=gradient,
            direction=jnp.where(leaves, direction, state.direction),
            slope=jnp.where(leaves, slope, state.slope),
            search=search,
            pairs=pairs,
            lowest=jnp.where(progress, jnp.minimum(state.lowest, value), state.lowest),
            best=jnp.where(progress, jnp.minimum(state.best, measure), state.best),
            idle=jnp.where(progress, 0, state.idle + 1),
            stuck=stuck,
        )

    def measure(self, problem: Minimise | LeastSquares, state: LBFGSState) -> Scalar:
        return gradient_measure(problem, state.value, state.gradient)

    def status(
        self, problem: Minimise | LeastSquares, state: LBFGSState, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        solved = self.measure(problem, state) <= tolerance
        stalled = state.stuck | (state.idle >= _PATIENCE)
        return ended(solved, stalled)

    def point(self, problem: Minimise | LeastSquares, state: LBFGSState) -> Point:
        return Point(state.primal)

    def preconditioner(self, problem: Minimise | LeastSquares, state: LBFGSState) -> InverseHessian:
        return InverseHessian(state.pairs)


def _fits(found: Pairs, expected: Pairs) -> bool:
    def shape(x):
        return x.shape, x.dtype

    return jax.tree.map(shape, found) == jax.tree.map(shape, expected)


def _direction(pairs: Pairs, gradient: Vector) -> tuple[Vector, Scalar, Bool[Array, ""]]:
    """-H gradient with its slope, or the steepest descent where rounding left no descent."""
    direction = -pairs.times(gradient)
    slope = dot(direction, gradient)
    sizes = norm(direction) * norm(gradient)
    bad = ~(slope < -jnp.finfo(slope.dtype).eps * sizes) | ~jnp.isfinite(sizes)
    steepest = _steepest(gradient)
    bad = bad | (pairs.count == 0)
    direction = jnp.where(bad, steepest, direction)
    return direction, jnp.where(bad, dot(gradient, steepest), slope), bad


def _steepest(gradient: Vector) -> Vector:
    """Down the gradient, of maximum norm 1: the square of a large one would overflow in float32."""
    size = largest(gradient)
    return -gradient / jnp.where((size > 0) & jnp.isfinite(size), size, jnp.ones_like(size))


def _first_step_size(pairs: Pairs, vector: Vector, value: Scalar, gradient: Vector) -> Scalar:
    """1 along a quasi-Newton direction. Along the steepest descent: to the size of the variable,
    but no further than where a parabola with minimum 0 would have its own."""
    steepest = _steepest(gradient)
    slope = -dot(gradient, steepest)
    length = jnp.maximum(norm(vector), 1.0) / jnp.maximum(norm(steepest), 1.0)
    parabola = 2 * jnp.abs(value) / jnp.where(slope > 0, slope, jnp.ones_like(slope))
    downhill = jnp.where(parabola > 0, jnp.minimum(length, parabola), length)
    return jnp.where(pairs.count > 0, jnp.ones_like(downhill), downhill)
