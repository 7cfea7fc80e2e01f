"""The indicator function of a set: constraints as a penalty."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ...core.vectors import largest
from ..sets import (
    Affine,
    Birkhoff,
    Box,
    CappedSimplex,
    Halfspace,
    Isotonic,
    L1Ball,
    LinfBall,
    Polyhedron,
    Simplex,
    TransportPolytope,
)
from ..sets.base import AbstractSet, check_set, emptiness
from .base import AbstractPenalty

_POLYHEDRAL = (
    Affine, Birkhoff, Box, CappedSimplex, Halfspace, Isotonic, L1Ball, LinfBall, Polyhedron,
    Simplex, TransportPolytope,
)  # fmt: skip


class Indicator(AbstractPenalty):
    """0 on a set, infinite outside of it: `Composite(fn, Indicator(set))` minimises fn on the set.

    prox(z, s) is the projection of z, whatever s is; its derivatives are those of `project`.

    Args:
        set: one of `jaxsolve.sets`, convex for the guarantees of `Composite`.
    """

    set: AbstractSet

    def value(self, y: PyTree[Array]) -> Float[Array, ""]:
        """0 where y is its own projection, up to the root of the rounding."""
        leaves = jax.tree.leaves(y)
        outside = jnp.array(False)
        for x, p in zip(leaves, jax.tree.leaves(self.set.project(y)), strict=True):
            near = jnp.finfo(x.dtype).eps ** 0.5 * jnp.maximum(largest(x), 1)
            outside = outside | ~(largest(x - p) <= near)
        zero = jnp.zeros_like(leaves[0], shape=())
        return jnp.where(outside, jnp.inf * jnp.ones_like(zero), zero)

    def inside(self, y: PyTree[Array]) -> Float[Array, ""]:
        return jnp.zeros_like(jax.tree.leaves(y)[0], shape=())

    def prox(self, point: PyTree[Array], step_size: Float[Array, ""]) -> PyTree[Array]:
        return self.set.project(point)

    def check(self, y: PyTree[Array], name: str) -> None:
        check_set("Indicator", "set", self.set)
        self.set.problem(y)

    def nowhere(self, y: PyTree[Array]) -> Bool[Array, ""]:
        return self.set.proved_empty(y)

    def describe(self) -> list[str]:
        return emptiness("penalty.set", self.set)

    def projects(self, y: PyTree[Array]) -> bool:
        return isinstance(self.set, _POLYHEDRAL)
