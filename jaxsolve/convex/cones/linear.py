"""The two cones without curvature."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .cone import AbstractSlope, AbstractVectors, Spectral, heaviside


class Diagonal(AbstractSlope):
    """Eigenvalues, one an entry."""

    values: Float[Array, " rows"]

    def apply(self, fn: Spectral, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return fn(self.values) * v


class Zero(AbstractVectors):
    """{0}: equalities among the rows of G. Its dual cone is everything, the multiplier free.

    Args:
        n: rows.
    """

    def project(self, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return jnp.zeros_like(v)

    def slope(self, v: Float[Array, " rows"]) -> Diagonal:
        return Diagonal(jnp.zeros_like(v))


class Nonnegative(AbstractVectors):
    """{s : s >= 0}, its own dual. At 0 the derivative of the projection counts half.

    Args:
        n: rows.
    """

    def project(self, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return jnp.maximum(v, 0)

    def slope(self, v: Float[Array, " rows"]) -> Diagonal:
        return Diagonal(heaviside(v))
