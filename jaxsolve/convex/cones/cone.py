"""What a cone is to a solver: its projection, and the derivative of that as a spectral operator.

For a closed convex cone K, with Pi the projection on it and K* = {z : z's >= 0 for all s in K},

    s in K, z in K*, s'z = 0   <=>   s = Pi(s - z),        v = Pi(v) - Pi*(-v)   (Moreau).

Pi is the gradient of a convex function, so where it has a derivative, D(v) is symmetric with
0 <= D <= I: a `Slope`, of which functions f(D) are as cheap as D itself.
"""

import abc
from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...core.checks import kind

Spectral = Callable[[Float[Array, "..."]], Float[Array, "..."]]
"""A function of eigenvalues, elementwise."""


class AbstractSlope(eqx.Module):
    """The derivative of a projection at a point."""

    @abc.abstractmethod
    def apply(self, fn: Spectral, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """fn(D) v; at ties the eigenvalue of D is between its two limits."""

    @abc.abstractmethod
    def map(self, fn: Spectral) -> Self:
        """fn(D)."""

    def gram(
        self, fn: Spectral, weight: Float[Array, " rows"], matrix: Float[Array, "rows n"]
    ) -> tuple[Float[Array, "r n"], Float[Array, " r"]]:
        """R and w with R' diag(w) R = M' diag(weight) fn(D) M; one weight a cone, fn >= 0."""
        half = jax.vmap(lambda v: self.apply(lambda d: jnp.sqrt(fn(d)), v), 1, 1)(matrix)
        return half, weight


class AbstractSpectrum(AbstractSlope):
    """A slope with its eigenvalues in one array."""

    values: eqx.AbstractVar[Array]

    def map(self, fn: Spectral) -> Self:
        return eqx.tree_at(lambda s: s.values, self, fn(self.values))


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

    def level(self, v: Float[Array, " rows"]) -> Float[Array, " levels"] | None:
        """Functions that are at most 0 in the cone and nowhere else, differentiable but at the tip;
        `None` for a cone that has none here."""
        return None

    def project_dual(self, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """The nearest point of the dual cone."""
        return v + self.project(-v)


class AbstractSymmetricCone(AbstractCone):
    """A cone that is its own dual and has a Jordan product, whose squares it consists of; or {0},
    without eigenvalues, whose W is 0.

    For s and z inside, the scaling of Nesterov and Todd (1997) is the one symmetric W of the cone's
    automorphisms with Wz = W^-1 s. Like the slopes of projections it is a spectral operator.
    """

    @property
    @abc.abstractmethod
    def degree(self) -> int:
        """e'e of the identity e: complementarity on the central path is s'z over it."""

    @abc.abstractmethod
    def identity(self, like: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """The vector whose eigenvalues are all 1."""

    @abc.abstractmethod
    def depth(self, v: Float[Array, " rows"]) -> Float[Array, ""]:
        """The smallest eigenvalue of v: how far inside it is."""

    @abc.abstractmethod
    def scaling(self, s: Float[Array, " rows"], z: Float[Array, " rows"]) -> AbstractSlope:
        """W^-2."""

    @abc.abstractmethod
    def product(self, u: Float[Array, " rows"], v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """The Jordan product u o v."""

    @abc.abstractmethod
    def quotient(self, u: Float[Array, " rows"], d: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """The v with u o v = d, u inside."""

    @abc.abstractmethod
    def reach(self, v: Float[Array, " rows"], d: Float[Array, " rows"]) -> Float[Array, ""]:
        """The largest t <= 2 for which v + t d is in the cone, v inside."""


class AbstractVectors(AbstractCone):
    """A cone of plain vectors: `n` rows."""

    n: int = eqx.field(static=True)

    def __check_init__(self):
        check_order(self, self.n)

    @property
    def rows(self) -> int:
        return self.n


def check_order(cone: AbstractCone, n: Any) -> None:
    """Raise unless `n` is a whole number (`TypeError`) that is not negative (`ValueError`)."""
    name = type(cone).__name__
    if not isinstance(n, int | np.integer) or isinstance(n, bool):
        raise TypeError(f"{name}: `n` must be a whole number; got {kind(n)}.")
    if n < 0:
        raise ValueError(f"{name}: `n` must not be negative; got {n}.")


def heaviside(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative of max(x, 0): 1/2 at 0."""
    return jnp.where(x == 0, 0.5, jnp.where(x > 0, jnp.ones_like(x), 0))


def divided_difference(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """(max(a, 0) - max(b, 0)) / (a - b) without cancellation; its limit, or 1/2, where a = b."""
    size = jnp.abs(a) + jnp.abs(b)
    none = size == 0
    return jnp.where(none, 0.5, (1 + (a + b) / jnp.where(none, 1, size)) / 2)


def first_zero(v: Float[Array, "..."], d: Float[Array, "..."]) -> Float[Array, "..."]:
    """The t at which v + t d falls to 0, at most 2; v > 0."""
    falling = d < 0
    return jnp.minimum(jnp.where(falling, -v / jnp.where(falling, d, -1), 2), 2)
