"""The two cones without curvature."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .cone import (
    AbstractSpectrum,
    AbstractSymmetricCone,
    AbstractVectors,
    Spectral,
    first_zero,
    heaviside,
)


class Diagonal(AbstractSpectrum):
    """Eigenvalues, one an entry."""

    values: Float[Array, " rows"]

    def apply(self, fn: Spectral, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return fn(self.values) * v

    def root(self, fn: Spectral, matrix: Float[Array, "rows n"]) -> Float[Array, "rows n"]:
        return jnp.sqrt(fn(self.values))[:, None] * matrix


class Zero(AbstractVectors, AbstractSymmetricCone):
    """{0}: equalities among the rows of G. Its dual cone is everything, the multiplier free.

    Args:
        n: rows.
    """

    def project(self, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return jnp.zeros_like(v)

    def slope(self, v: Float[Array, " rows"]) -> Diagonal:
        return Diagonal(jnp.zeros_like(v))

    @property
    def degree(self) -> int:
        return 0

    def identity(self, like: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return jnp.zeros_like(like)

    def depth(self, v: Float[Array, " rows"]) -> Float[Array, ""]:
        return jnp.min(jnp.full_like(v, jnp.inf))

    def scaling(self, s: Float[Array, " rows"], z: Float[Array, " rows"]) -> Diagonal:
        return Diagonal(jnp.full_like(s, jnp.inf))

    def product(self, u: Float[Array, " rows"], v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return jnp.zeros_like(u)

    def quotient(self, u: Float[Array, " rows"], d: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return jnp.zeros_like(u)

    def along(self, v: Float[Array, " rows"], d: Float[Array, " rows"]) -> Float[Array, ""]:
        return jnp.min(jnp.full_like(v, 2))


class Nonnegative(AbstractVectors, AbstractSymmetricCone):
    """{s : s >= 0}, its own dual. At 0 the derivative of the projection counts half.

    Args:
        n: rows.
    """

    def project(self, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return jnp.maximum(v, 0)

    def level(self, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return -v

    def slope(self, v: Float[Array, " rows"]) -> Diagonal:
        return Diagonal(heaviside(v))

    @property
    def degree(self) -> int:
        return self.n

    def identity(self, like: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return jnp.ones_like(like)

    def depth(self, v: Float[Array, " rows"]) -> Float[Array, ""]:
        return jnp.min(v)

    def scaling(self, s: Float[Array, " rows"], z: Float[Array, " rows"]) -> Diagonal:
        return Diagonal(z / s)

    def product(self, u: Float[Array, " rows"], v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return u * v

    def quotient(self, u: Float[Array, " rows"], d: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return d / u

    def along(self, v: Float[Array, " rows"], d: Float[Array, " rows"]) -> Float[Array, ""]:
        return jnp.min(first_zero(v, d))
