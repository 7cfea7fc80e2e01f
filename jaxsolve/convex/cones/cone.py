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

    def root(self, fn: Spectral, matrix: Float[Array, "rows n"]) -> Float[Array, "rows n"]:
        """An R with R'R = M' fn(D) M, fn >= 0."""
        return jax.vmap(lambda v: self.apply(lambda d: jnp.sqrt(fn(d)), v), 1, 1)(matrix)


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


class AbstractBarrierCone(AbstractCone):
    """A cone with a barrier, on whose central path an interior-point method goes.

    With F the logarithmically homogeneous barrier of the dual cone, (s, z) is on the path at
    complementarity mu where s = -mu F'(z).
    """

    @property
    @abc.abstractmethod
    def degree(self) -> int:
        """Of F: complementarity on the path is s'z over it."""

    @abc.abstractmethod
    def identity(self, like: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """The e for which (e, e) is on the path at complementarity 1."""

    @abc.abstractmethod
    def depth(self, v: Float[Array, " rows"]) -> Float[Array, ""]:
        """A t for which v - te is in the cone and its dual: the largest, or near it."""

    @abc.abstractmethod
    def scaling(self, s: Float[Array, " rows"], z: Float[Array, " rows"]) -> AbstractSlope:
        """A symmetric W^-2 with W^-2 s = z, near that of the path."""

    @abc.abstractmethod
    def centre(
        self,
        scaling: AbstractSlope,
        s: Float[Array, " rows"],
        z: Float[Array, " rows"],
        ds: Float[Array, " rows"],
        dz: Float[Array, " rows"],
        level: Float[Array, ""],
    ) -> Float[Array, " rows"]:
        """The r of the steps with r = W^-2 ds + dz that lead to the path at complementarity
        `level`, to second order by the predictor (ds, dz)."""

    @abc.abstractmethod
    def reach(
        self,
        s: Float[Array, " rows"],
        z: Float[Array, " rows"],
        ds: Float[Array, " rows"],
        dz: Float[Array, " rows"],
    ) -> Float[Array, ""]:
        """The largest t <= 2, or nearly, for which s + t ds is in the cone and z + t dz in its
        dual, s and z inside."""


class AbstractSymmetricCone(AbstractBarrierCone):
    """A cone that is its own dual and has a Jordan product, whose squares it consists of; or {0},
    without eigenvalues, whose W is 0.

    The identity is that of the product, the depth the smallest eigenvalue, and `scaling` that of
    Nesterov and Todd (1997): the one symmetric W of the cone's automorphisms with Wz = W^-1 s. Like
    the slopes of projections it is a spectral operator.
    """

    @abc.abstractmethod
    def product(self, u: Float[Array, " rows"], v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """The Jordan product u o v."""

    @abc.abstractmethod
    def quotient(self, u: Float[Array, " rows"], d: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """The v with u o v = d, u inside."""

    @abc.abstractmethod
    def along(self, v: Float[Array, " rows"], d: Float[Array, " rows"]) -> Float[Array, ""]:
        """The largest t <= 2 for which v + t d is in the cone, v inside."""

    def centre(self, scaling, s, z, ds, dz, level):
        # In l = Wz = W^-1 s the path is l o l = level e.
        second = self.product(scaling.apply(_root, ds), scaling.apply(_inverse_root, dz))
        length = self.quotient(scaling.apply(_root, s), level * self.identity(s) - second)
        return scaling.apply(_root, length) - z

    def reach(self, s, z, ds, dz):
        return jnp.min(jax.vmap(self.along)(jnp.stack([s, z]), jnp.stack([ds, dz])))


def _root(w: Array) -> Array:
    """Of W^-2 to W^-1; 0 on equalities."""
    return jnp.where(jnp.isfinite(w), jnp.sqrt(w), 0)


def _inverse_root(w: Array) -> Array:
    return 1 / jnp.sqrt(w)


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
