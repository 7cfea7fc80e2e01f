"""What a cone is to a solver: its projection, and the derivative of that as a spectral operator.

For a closed convex cone K, with Pi the projection on it and K* = {z : z's >= 0 for all s in K},

    s in K, z in K*, s'z = 0   <=>   s = Pi(s - z),        v = Pi(v) - Pi*(-v)   (Moreau).

Pi is the gradient of a convex function, so where it has a derivative, D(v) is symmetric with
0 <= D <= I: a `Slope`, of which functions f(D) are as cheap as D itself.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

Spectral = Callable[[Float[Array, "..."]], Float[Array, "..."]]
"""A function of eigenvalues, elementwise."""


class AbstractSlope(eqx.Module):
    """The derivative of a projection at a point."""

    @abc.abstractmethod
    def apply(self, fn: Spectral, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """fn(D) v; at ties the eigenvalue of D is between its two limits."""


class AbstractCone(eqx.Module):
    """A closed convex cone in `rows` dimensions; it holds no arrays."""

    @property
    @abc.abstractmethod
    def rows(self) -> int:
        """Entries of a vector of the cone."""

    @abc.abstractmethod
    def project(self, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """The nearest point of the cone; twice differentiable at regular points."""

    @abc.abstractmethod
    def slope(self, v: Float[Array, " rows"]) -> AbstractSlope:
        """The derivative of `project` at v."""

    def project_dual(self, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """The nearest point of the dual cone."""
        return v + self.project(-v)


class AbstractVectors(AbstractCone):
    """A cone of plain vectors: `n` rows."""

    n: int = eqx.field(static=True)

    @property
    def rows(self) -> int:
        return self.n


def heaviside(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative of max(x, 0): 1/2 at 0."""
    return jnp.where(x == 0, 0.5, jnp.where(x > 0, jnp.ones_like(x), 0))


def divided_difference(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """(max(a, 0) - max(b, 0)) / (a - b) without cancellation; its limit, or 1/2, where a = b."""
    size = jnp.abs(a) + jnp.abs(b)
    none = size == 0
    return jnp.where(none, 0.5, (1 + (a + b) / jnp.where(none, 1, size)) / 2)
