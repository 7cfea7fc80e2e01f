"""Transport polytopes: nonnegative matrices with given sums of rows and columns.

    minimise |x - p|^2 / 2   subject to   x >= 0,  x 1 = r,  x' 1 = c                     (n x m)

The stationary x for multipliers u, v of the sums is max(p - u 1' - 1 v', 0), so that what is left
is to minimise, over n + m numbers, the convex and once differentiable

    psi(u, v) = |max(p - u 1' - 1 v', 0)|^2 / 2 + r'u + c'v.

Its gradient is r - x1, c - x'1; its generalised Hessian, for the 0-1 matrix M of the x > 0,

    [diag(M 1)   M        ]
    [M'          diag(M'1)].

Newton's method on it, with a line search, ends at the solution once M is right (Li, Sun and Toh,
2020, for the Birkhoff polytope). u + t, v - t give the same x: the mean of v is held at 0 by a term
in the system. A pattern M of several components leaves more directions in which x does not
change; a small multiple of the identity holds those.
"""

from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from ...core.checks import check_kind, show
from ...core.problem import AbstractProblem, Structure
from ...core.solution import RESULTS, Dual, Guess, Point, Residual, Scale
from ...core.solver import AbstractPreconditioner, AbstractSolver, ended
from ...core.vectors import dot, finite, largest, matmul
from .base import AbstractSet, check_init, shaped

Scalar = Float[Array, ""]
Matrix = Float[Array, "n m"]


class TransportPolytope(AbstractSet):
    """{x : x >= 0, x 1 = rows, x' 1 = columns}.

    The solution's `dual.equality` is (u, v), the multipliers of the two sums, with mean(v) = 0, and
    `dual.lower` that of x >= 0.
    Where the pattern of the positive entries falls into several components the projection is not
    differentiable in the sums: the derivative in them is the least-squares one.

    Example:
        ```python
        polytope = sets.TransportPolytope(jnp.array([0.5, 0.5]), jnp.array([0.3, 0.7]))
        polytope.project(jnp.array([[0.4, 0.3], [0.0, 0.6]]))
        ```

    Args:
        rows: the sums of the rows, at least 0.
        columns: the sums of the columns, at least 0; both add up to the same, or the set is empty.
    """

    rows: Float[Array, " n"]
    columns: Float[Array, " m"]

    def empty(self) -> Bool[Array, ""]:
        """Whether a sum is negative or the two totals differ."""
        return _contradict(self.rows, self.columns)

    def problem(self, point: Array) -> "TransportProjection":
        matrix = as_matrix("TransportPolytope", point)
        n, m = matrix.shape
        rows = shaped("TransportPolytope", "rows", self.rows, (n,), matrix)
        return TransportProjection(
            matrix, rows, shaped("TransportPolytope", "columns", self.columns, (m,), matrix)
        )


class Birkhoff(AbstractSet):
    """Doubly stochastic matrices, the convex hull of the permutations: x >= 0, all sums 1."""

    def problem(self, point: Array) -> "TransportProjection":
        matrix = as_matrix("Birkhoff", point)
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"Birkhoff: `point` must be a square matrix; it is {show(matrix)}.")
        ones = jnp.ones_like(matrix[0])
        return TransportProjection(matrix, ones, ones)


class Potentials(NamedTuple):
    """The multipliers u of the rows and v of the columns."""

    rows: Float[Array, " n"]
    columns: Float[Array, " m"]


class TransportProjection(AbstractProblem):
    """The projection in its multipliers: the variable is (u, v), the value x(u, v)."""

    point: Matrix
    rows: Float[Array, " n"]
    columns: Float[Array, " m"]

    @property
    def structure(self) -> Structure:
        return Structure(symmetric=True)

    def plan(self, at: Potentials) -> Matrix:
        """x = max(p - u 1' - 1 v', 0)."""
        excess = self.point - at.rows[:, None] - at.columns[None, :]
        # Not the maximum: of two zeros it takes half a derivative.
        return jnp.where(excess <= 0, 0 * excess, excess)

    def gradient(self, at: Potentials) -> Potentials:
        """Of psi."""
        x = self.plan(at)
        return Potentials(self.rows - jnp.sum(x, axis=1), self.columns - jnp.sum(x, axis=0))

    def optimality(self, point: Point) -> Point:
        at: Any = point.primal
        found = self.gradient(at)
        return Point(Potentials(found.rows, found.columns + jnp.mean(at.columns)))

    def residual(self, point: Point) -> Residual:
        """The sums; x is stationary and complementary to p - u - v < 0 by how it is formed."""
        at: Any = point.primal
        found = self.gradient(at)
        one = jnp.ones_like(found.rows[0])
        gap = largest(found)
        return Residual(gap, 0 * gap, 0 * gap, Scale(self.scale(at), one, one))

    def scale(self, at: Potentials) -> Scalar:
        """What the sums are judged by: x is a difference of numbers of this size."""
        data = jnp.maximum(largest((self.point, self.rows, self.columns)), 1)
        return jnp.maximum(data, largest(at.rows) + largest(at.columns))

    def default_solver(self) -> AbstractSolver:
        return DualNewton()

    def prepare(self, init: PyTree | None) -> tuple[Self, Potentials]:
        check_init(init, self.point)
        # The projection on the sums alone.
        n, m = self.point.shape
        row = (jnp.sum(self.point, axis=1) - self.rows) / m
        column = (jnp.sum(self.point, axis=0) - self.columns) / n
        middle = jnp.mean(column)
        return self, Potentials(row, column - middle)

    def restore(self, value: Any) -> Matrix:
        return self.plan(value)

    def restore_dual(self, point: Point) -> Dual:
        at: Any = point.primal
        return Dual(equality=at, lower=jnp.maximum(at.rows[:, None] + at.columns - self.point, 0))

    def screen(self, guess: Guess) -> tuple[Any, Point]:
        at: Any = guess.primal
        clean = finite(self.point.ravel(), self.rows, self.columns)
        result = RESULTS.where(
            clean,
            RESULTS.where(
                _contradict(self.rows, self.columns), RESULTS.infeasible, RESULTS.successful
            ),
            RESULTS.nonfinite_input,
        )
        return result, Point(jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), at))


class Factor(AbstractPreconditioner):
    """The Newton matrix with the larger of its two diagonal blocks eliminated.

    Attributes:
        mask: M, or its transpose where there are more columns than rows.
        diagonal: the block that is eliminated.
        schur: Cholesky's factor of what is left.
        flipped: whether the columns are eliminated.
    """

    mask: Float[Array, "a b"]
    diagonal: Float[Array, " a"]
    schur: Float[Array, "b b"]
    flipped: bool = eqx.field(static=True)

    def apply(self, right: Potentials) -> Potentials:
        """The Newton matrix's inverse times a vector."""
        first, second = right[::-1] if self.flipped else right
        scaled = first / self.diagonal
        second = jax.scipy.linalg.cho_solve((self.schur, True), second - matmul(scaled, self.mask))
        first = scaled - matmul(self.mask, second) / self.diagonal
        return Potentials(second, first) if self.flipped else Potentials(first, second)

    def solve(self, residual: Point) -> Point:
        return Point(self.apply(residual.primal))

    def transpose_solve(self, residual: Point) -> Point:
        return self.solve(residual)


class State(eqx.Module):
    """The potentials, psi's gradient there, and the last factor."""

    at: Potentials
    gradient: Potentials
    factor: Factor
    slow: Float[Array, ""]


class DualNewton(AbstractSolver[TransportProjection]):
    """Semismooth Newton on the potentials of a transport polytope.

    One step is one Cholesky factor of size min(n, m), and one pass over the matrix for each of the
    step lengths tried.
    """

    step_limit: ClassVar[int] = 500

    def refuse(self, problem: TransportProjection) -> None:
        check_kind(self, problem, TransportProjection)

    def init(self, problem: TransportProjection, guess: Guess) -> State:
        at: Any = guess.primal
        if isinstance(guess.state, State):
            at = guess.state.at
        blank = factorise(jnp.zeros_like(problem.point), jnp.ones_like(problem.point[0, 0]))
        return State(at, problem.gradient(at), blank, jnp.zeros_like(problem.point[0, 0]))

    def step(self, problem: TransportProjection, state: State) -> State:
        at, gradient = state.at, state.gradient
        size = largest(gradient)
        excess = problem.point - at.rows[:, None] - at.columns[None, :]
        factor = factorise((excess > 0).astype(excess.dtype), little(size, problem))
        direction = jax.tree.map(jnp.negative, factor.apply(gradient))

        # psi along the direction, all lengths at once: the first that falls enough.
        slope = jnp.minimum(
            dot(gradient.rows, direction.rows) + dot(gradient.columns, direction.columns), 0
        )
        change = direction.rows[:, None] + direction.columns[None, :]
        linear = dot(problem.rows, direction.rows) + dot(problem.columns, direction.columns)
        before = jnp.maximum(excess, 0)

        def fall(length):
            after = jnp.maximum(excess - length * change, 0)
            # The difference of squares as a product: no digits cancel.
            return jnp.sum((after - before) * (after + before)) / 2 + length * linear

        lengths = 0.5 ** jnp.arange(12, dtype=excess.dtype)
        falls = jax.vmap(fall)(lengths)
        pick = jnp.argmax(falls <= 1e-4 * lengths * slope)
        accepted = jnp.any(falls <= 1e-4 * lengths * slope)
        # Near the solution psi's changes are rounding: the full step is judged by its gradient.
        full = Potentials(at.rows + direction.rows, at.columns + direction.columns)
        found = problem.gradient(full)
        whole = largest(found) <= 0.5 * size
        length = jnp.where(whole, 1, jnp.where(accepted, lengths[pick], lengths[-1]))
        moved = Potentials(
            at.rows + length * direction.rows, at.columns + length * direction.columns
        )
        moved = centred(moved)
        found = problem.gradient(moved)
        slow = jnp.where(whole | (largest(found) < 0.9 * size), 0, state.slow + 1)
        return State(moved, found, factor, slow)

    def measure(self, problem: TransportProjection, state: State) -> Scalar:
        return largest(state.gradient) / problem.scale(state.at)

    def status(
        self, problem: TransportProjection, state: State, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        solved = self.measure(problem, state) <= tolerance
        return ended(solved, state.slow > 60)

    def finish(self, problem: TransportProjection, state: State) -> State:
        # Of the solution's own pattern, for the derivative; and one more step is exact on it.
        mask = (problem.plan(state.at) > 0).astype(problem.point.dtype)
        factor = factorise(mask, little(jnp.zeros_like(mask[0, 0]), problem))
        step = factor.apply(state.gradient)
        better = Potentials(state.at.rows - step.rows, state.at.columns - step.columns)
        found = problem.gradient(better)
        falls = largest(found) < largest(state.gradient)
        same = jnp.all((problem.plan(better) > 0) == (mask > 0))
        at, gradient = jax.tree.map(
            lambda new, kept: jnp.where(falls & same, new, kept),
            (centred(better), found),
            (state.at, state.gradient),
        )
        return State(at, gradient, factor, state.slow)

    def point(self, problem: TransportProjection, state: State) -> Point:
        return Point(state.at)

    def preconditioner(self, problem: TransportProjection, state: State) -> Factor:
        return state.factor


def centred(at: Potentials) -> Potentials:
    """The potentials of the same matrix with mean(v) = 0."""
    middle = jnp.mean(at.columns)
    return Potentials(at.rows + middle, at.columns - middle)


def little(size: Scalar, problem: TransportProjection) -> Scalar:
    """The multiple of the identity that is added: it vanishes with the gradient."""
    eps = jnp.finfo(size.dtype).eps
    scale = largest((problem.rows, problem.columns))
    relative = size / jnp.where(scale > 0, scale, 1)
    return jnp.clip(0.1 * relative, eps**0.6, 0.1)


def factorise(mask: Matrix, extra: Scalar) -> Factor:
    """The factor of the Newton matrix for a pattern, with `extra` times the identity added."""
    n, m = mask.shape
    flipped = m > n
    mask = mask.T if flipped else mask
    diagonal = jnp.sum(mask, axis=1) + extra
    other = jnp.sum(mask, axis=0) + extra
    # The term that holds the mean of v (of u, which is the same to the sums, where flipped).
    schur = jnp.diag(other) - matmul(mask.T, mask / diagonal[:, None]) + 1 / other.size
    return Factor(mask, diagonal, lax.linalg.cholesky(schur, symmetrize_input=False), flipped)


def as_matrix(name: str, point: Array) -> Matrix:
    """The point, if it is a matrix of floating-point numbers."""
    from .closed_form import opened

    matrix, unravel = opened(point, name)
    if unravel is not None or matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"{name}: `point` must be one matrix; it is {show(point)}.")
    return matrix


def _contradict(rows: Float[Array, " n"], columns: Float[Array, " m"]) -> Bool[Array, ""]:
    """Whether no matrix without negative entries has these sums."""
    negative = (jnp.min(rows) < 0) | (jnp.min(columns) < 0)
    size = jnp.sum(jnp.abs(rows)) + jnp.sum(jnp.abs(columns))
    unequal = jnp.abs(jnp.sum(rows) - jnp.sum(columns)) > jnp.finfo(size.dtype).eps ** 0.7 * size
    return negative | unequal
