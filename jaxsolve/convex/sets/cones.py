"""Euclidean balls and cones: second-order, positive semidefinite."""

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...core.checks import show
from ...core.vectors import dot, largest, matmul, root
from .base import AbstractClosedForm, number, scalar, vector

Scalar = Float[Array, ""]


class L2Ball(AbstractClosedForm):
    """{x : |x| <= radius}, of any array or pytree; the boundary counts as inside.

    Args:
        radius: at least 0; the set is empty below.
    """

    radius: Scalar = eqx.field(default=1.0, converter=number)

    def fit(self, point: Array) -> Self:
        return type(self)(scalar("L2Ball", "radius", self.radius, point))

    def find(self, point: Array) -> Array:
        return self.face(point, point)

    def face(self, point: Array, at: Array) -> Array:
        # NaN for an empty ball.
        radius = jnp.where(self.radius >= 0, self.radius, jnp.nan)
        length = length_of(point)
        outside = ~(length <= radius)
        return jnp.where(outside, radius / jnp.where(outside, length, 1), 1) * point

    def violation(self, at: Array) -> Scalar:
        return jnp.maximum(length_of(at) - self.radius, 0)

    def normality(self, point: Array, at: Array) -> Scalar:
        pull, length = point - at, length_of(at)
        unit = at / jnp.where(length > 0, length, 1)
        multiplier = jnp.where(length > 0, dot(unit.ravel(), pull.ravel()), length_of(pull))
        bent = jnp.where(length > 0, largest(pull - multiplier * unit), 0)
        slack = jnp.maximum(self.radius - length, 0)
        return jnp.maximum(bent, jnp.abs(jnp.minimum(multiplier, slack)))

    def empty(self) -> Bool[Array, ""]:
        return self.radius < 0

    def size(self) -> Scalar:
        return jnp.abs(self.radius)


class SecondOrderCone(AbstractClosedForm):
    """{(t, z) : |z| <= t}, with t the first entry of the vector.

    The boundary counts as inside, the boundary of the polar cone as the polar cone's.
    """

    def fit(self, point: Array) -> Self:
        vector("SecondOrderCone", point)
        return self

    def find(self, point: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.face(point, point)

    def face(self, point: Float[Array, " n"], at: Float[Array, " n"]) -> Float[Array, " n"]:
        height, rest = point[0], point[1:]
        length = length_of(rest)
        inside, polar = length <= height, length <= -height
        outside = ~(inside | polar)
        middle = (height + length) / 2
        unit = rest / jnp.where(outside, length, 1)
        bent = jnp.concatenate([middle[None], middle * unit])
        return jnp.where(inside, point, jnp.where(polar, 0 * point, bent))

    def violation(self, at: Float[Array, " n"]) -> Scalar:
        return jnp.maximum(length_of(at[1:]) - at[0], 0)

    def normality(self, point: Float[Array, " n"], at: Float[Array, " n"]) -> Scalar:
        # The cone is self-dual: x and s = x - p lie in it, and their Jordan product is 0.
        slack = at - point
        across = dot(at, slack)
        along = at[0] * slack[1:] + slack[0] * at[1:]
        size = jnp.maximum(largest(point), jnp.finfo(point.dtype).tiny)
        product = jnp.maximum(jnp.abs(across), largest(along)) / size
        return jnp.maximum(self.violation(slack), product)


class PSDCone(AbstractClosedForm):
    """Symmetric positive semidefinite matrices; the point P is read as (P + P')/2.

    The derivative is that of a matrix function (Daleckii and Krein): exact also where eigenvalues
    repeat. Those that are 0 count as held there. Second derivatives exist where no eigenvalue is
    repeated or 0.
    """

    def fit(self, point: Array) -> Self:
        if point.ndim != 2 or point.shape[0] != point.shape[1] or point.size == 0:
            raise ValueError(f"PSDCone: `point` must be a square matrix; it is {show(point)}.")
        return self

    def find(self, point: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return positive_part((point + point.T) / 2)

    def face(self, point: Float[Array, "n n"], at: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return positive_part((point + point.T) / 2)

    def violation(self, at: Float[Array, "n n"]) -> Scalar:
        lowest = jnp.linalg.eigvalsh(at, symmetrize_input=False)[0]
        return jnp.maximum(largest(at - at.T), jnp.maximum(-lowest, 0))

    def normality(self, point: Float[Array, "n n"], at: Float[Array, "n n"]) -> Scalar:
        # Self-dual: x and s = x - p are semidefinite, and their product is 0.
        slack = at - (point + point.T) / 2
        size = jnp.maximum(largest(point), jnp.finfo(point.dtype).tiny)
        return jnp.maximum(self.violation(slack), largest(matmul(at, slack)) / size)


@jax.custom_jvp
def positive_part(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Q max(w, 0) Q' of a symmetric matrix Q w Q'."""
    return _split(matrix)[0]


@positive_part.defjvp
def _positive_part_jvp(primals, tangents):
    (matrix,), (tangent,) = primals, tangents
    value, vectors, values = _split(matrix)
    positive = values > 0
    both = positive[:, None] & positive[None, :]
    mixed = positive[:, None] & ~positive[None, :]
    # (max(a, 0) - max(b, 0)) / (a - b): 1, 0, and a / (a - b) where a > 0 >= b, without quotients
    # of small differences.
    gap = jnp.where(mixed, values[:, None] - values[None, :], 1)
    mixed = jnp.where(mixed, jnp.maximum(values, 0)[:, None] / gap, 0)
    quotient = both.astype(matrix.dtype) + mixed + mixed.T
    inner = matmul(vectors.T, matmul((tangent + tangent.T) / 2, vectors))
    return value, matmul(vectors, matmul(quotient * inner, vectors.T))


def _split(matrix: Float[Array, "n n"]):
    values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    positive = matmul(vectors * jnp.maximum(values, 0), vectors.T)
    # Adding the transpose of a product with itself costs little, and makes it symmetric.
    return (positive + positive.T) / 2, vectors, values


def length_of(values: Array) -> Scalar:
    """The Euclidean norm of all entries, without over- or underflow; derivative 0 at 0."""
    top = jax.lax.stop_gradient(largest(values))
    scale = jnp.where((top > 0) & jnp.isfinite(top), top, 1)
    return scale * root(jnp.sum((values / scale) ** 2))
