"""Linear least squares, ||A x - b||^2 / 2, that are given by their residuals: what the sketching
solvers share. A is the Jacobian of the residuals, known by its products and, once, as a matrix."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jaxtyping import Array, Float, PyTree

from ..core.checks import check_kind
from ..core.problem import AbstractProblem
from ..core.solution import Point
from ..core.solver import AbstractPreconditioner
from ..core.vectors import identity, matmul, positive, ravel, root
from .forms import Vector, shaper
from .problems import LeastSquares
from .sketches import AbstractDrawn, AbstractSketch

Residuals = Float[Array, " m"]


class Affine(NamedTuple):
    """The residuals r(x) = A x - b of a linear problem, of vectors."""

    problem: LeastSquares
    primal: PyTree[Array]

    def __call__(self, vector: Vector) -> Residuals:
        return ravel(self.problem(shaper(self.primal)(vector)))

    def product(self, vector: Vector) -> Residuals:
        """A times a vector."""
        return jax.jvp(self, (jnp.zeros_like(vector),), (vector,))[1]

    def transpose(self, residuals: Residuals) -> Vector:
        """A' times residuals."""
        at = jnp.zeros_like(ravel(self.primal))
        return jax.vjp(self, at)[1](residuals)[0]

    def matrix(self) -> Float[Array, "m n"]:
        return jax.vmap(self.product, out_axes=1)(identity(ravel(self.primal)))


class Inverse(AbstractPreconditioner):
    """N N', about (A'A)^{-1}."""

    factor: Float[Array, "n n"]

    def half(self, vector: Vector) -> Vector:
        """N' times a vector."""
        return matmul(vector, self.factor)

    def solve(self, residual: Point) -> Point:
        vector = matmul(self.factor, self.half(ravel(residual.primal)))
        return Point(shaper(residual.primal)(vector), residual.dual)

    def transpose_solve(self, residual: Point) -> Point:
        return self.solve(residual)


def sketched(
    drawn: AbstractDrawn, affine: Affine, residuals: Residuals
) -> tuple[Inverse, Float[Array, " n"]]:
    """N with S A N orthonormal, and d, the argmin of ||S (A d + residuals)||.

    QR of S A in units of its columns, and the singular values of that R. Directions that S A does
    not see are left alone by the move; they stay in N as they are, for A may see them.
    """
    both = drawn(jnp.concatenate([affine.matrix(), residuals[:, None]], axis=1))
    matrix, right = both[:, :-1], both[:, -1]
    units = positive(root(jnp.sum(matrix * matrix, axis=0)))
    q, r = jnp.linalg.qr(matrix / units)
    left, values, rows = jnp.linalg.svd(r)
    cut = units.size * jnp.finfo(values.dtype).eps * jnp.max(values)
    keep = values > cut
    factor = rows.T / jnp.where(keep, values, 1.0) / units[:, None]
    move = -matmul(factor, jnp.where(keep, matmul(matmul(right, q), left), 0.0))
    return Inverse(factor), move


def linear_problem(
    solver: Any, problem: AbstractProblem, init: PyTree | None
) -> tuple[LeastSquares, PyTree[Array]]:
    """The prepared problem and the first guess of a solver with a `sketch`.

    Raises:
        TypeError: another problem, or one that is not linear.
        ValueError: the sketch has fewer rows than there are variables.
    """
    check_kind(solver, problem, LeastSquares)
    found, value = problem.prepare(init)
    assert isinstance(found, LeastSquares)
    name = type(solver).__name__
    check_linear(name, found, value)
    check_rows(name, solver.sketch, value)
    return found, value


def check_linear(name: str, problem: LeastSquares, value: PyTree[Array]) -> None:
    """Raise where the Jacobian of the residuals depends on the point.

    Raises:
        TypeError: as far as the program of `fn` tells. Residuals whose Jacobian is constant but
            which are not linear (they round) are left to the verdict.
    """
    if not is_affine(problem, value):
        raise TypeError(
            f"{name} solves linear least squares, fn(y, args) = A(args) y - b(args), but the "
            "derivative of this `fn` depends on `y`. Use LevenbergMarquardt()."
        )


def is_affine(fn: Callable[[PyTree[Array]], PyTree[Array]], value: PyTree[Array]) -> bool:
    """Whether the program of a function tells that its derivative is the same at all points."""

    def tangent(value: PyTree[Array], moved: PyTree[Array]) -> PyTree[Array]:
        return jax.jvp(fn, (value,), (moved,))[1]

    jaxpr = jax.make_jaxpr(tangent)(value, value).jaxpr
    used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
    return not any(used[: len(jax.tree.leaves(value))])


def check_rows(name: str, sketch: AbstractSketch, value: PyTree[Array]) -> None:
    """Raise where a sketch has too few rows to determine the variables.

    Raises:
        ValueError: fewer than there are variables.
    """
    size = sum(x.size for x in jax.tree.leaves(value))
    if sketch.rows < size:
        raise ValueError(
            f"{name}: the sketch has `rows` = {sketch.rows}, but there are {size} variables: give "
            f"it at least as many, better {4 * size} or more."
        )


def count(problem: LeastSquares, value: PyTree[Array]) -> int:
    """How many residuals there are."""
    return eqx.filter_eval_shape(lambda v: ravel(problem(v)), value).size
