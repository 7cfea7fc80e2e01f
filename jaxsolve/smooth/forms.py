"""What a solver asks of a smooth problem: an objective with its gradient, or equations.

A `LeastSquares` is also a minimisation, a `FixedPoint` also a root. The relative residuals here
are those of `problem.residual`, from quantities that a step has formed anyway.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..core.vectors import largest, ravel
from .problems import AbstractSmooth, FixedPoint, LeastSquares

Vector = Float[Array, " n"]
Scalar = Float[Array, ""]


def objective(problem: AbstractSmooth, primal: PyTree[Array]) -> Callable[[Vector], Scalar]:
    """The function to minimise, of a vector; `primal` gives the variable's structure."""
    restore = shaper(primal)

    def fn(vector: Vector) -> Scalar:
        out = problem(restore(vector))
        if isinstance(problem, LeastSquares):
            squares = [jnp.sum(x * x) for x in jax.tree.leaves(out)]
            return 0.5 * sum(squares[1:], squares[0])
        return out

    return fn


def gradient_measure(problem: AbstractSmooth, value: Scalar, gradient: Vector) -> Scalar:
    """`problem.residual(point).relative` of an objective's value and gradient."""
    if isinstance(problem, LeastSquares):
        relative = largest(gradient) / jnp.sqrt(jnp.maximum(2 * value, 1.0))
        return jnp.where(jnp.isfinite(value), relative, jnp.inf)
    return largest(gradient)


def blur(value: Scalar) -> Scalar:
    """The differences of an objective that may be rounding: sums of large terms that cancel lose
    more than the last bits of their value. What is below it is judged by gradients."""
    return jnp.finfo(value.dtype).eps ** (2 / 3) * jnp.abs(value)


def is_lower(value: Scalar, lowest: Scalar) -> Bool[Array, ""]:
    """Whether `value` is below `lowest` by more than its last bits."""
    return value < lowest - 10 * jnp.finfo(value.dtype).eps * jnp.abs(lowest)


def equations(problem: AbstractSmooth, primal: PyTree[Array]) -> Callable[[Vector], Vector]:
    """The equations F(x) = 0, of a vector; `primal` gives the variable's structure."""
    restore = shaper(primal)

    def fn(vector: Vector) -> Vector:
        out = ravel(problem(restore(vector)))
        return vector - out if isinstance(problem, FixedPoint) else out

    return fn


def equations_measure(problem: AbstractSmooth, vector: Vector, values: Vector) -> Scalar:
    """`problem.residual(point).relative` of a vector and its F."""
    if isinstance(problem, FixedPoint):
        return largest(values) / jnp.maximum(largest(vector), 1.0)
    return largest(values)


def shaper(primal: PyTree[Array]) -> Callable[[Vector], PyTree[Array]]:
    """The function that takes a vector to the structure of `primal`, each leaf in its own dtype."""
    leaves, tree = jax.tree.flatten(primal)
    shapes = [(leaf.shape, leaf.dtype, leaf.size) for leaf in leaves]

    def restore(vector: Vector) -> PyTree[Array]:
        out, start = [], 0
        for shape, dtype, size in shapes:
            out.append(vector[start : start + size].reshape(shape).astype(dtype))
            start += size
        return jax.tree.unflatten(tree, out)

    return restore
