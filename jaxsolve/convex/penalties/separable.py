"""Penalties of each coordinate: the l1 norm, alone and with a ridge."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from .base import (
    AbstractPenalty,
    AbstractWeighted,
    Blocks,
    check_weights,
    nonnegative,
    spread,
    weights,
)


class L1(AbstractWeighted):
    """sum_i w_i |y_i|: many coordinates of a solution are exactly 0.

    prox(z, s) = sign(z) max(|z| - s w, 0). A weight of 0 leaves a coordinate free, an infinite one
    holds it at 0.

    At the kink |z| = s w > 0 the derivative is that of the side on which the coordinate is 0.

    Args:
        weight: w, a scalar, or of the shape of y, or a pytree of such.
    """

    weight: PyTree[Array] = eqx.field(converter=weights)

    def leaf_value(self, weight: Array, y: Array) -> Float[Array, ""]:
        size = jnp.abs(y)
        # An infinite weight times 0 is 0 here.
        return jnp.sum(jnp.where(size > 0, weight * jnp.where(size > 0, size, 1), 0))

    def leaf_prox(self, weight: Array, point: Array, step_size: Array) -> Array:
        level, held = _held(weight, point, step_size)
        shrunk = point - jnp.where(held, 0, level) * jnp.sign(point)
        return jnp.where(held, 0, shrunk)

    def leaf_remainder(self, weight: Array, point: Array, step_size: Array) -> Array:
        level, held = _held(weight, point, step_size)
        return jnp.where(held, point, jnp.where(held, 0, level) * jnp.sign(point))

    def weight_shape(self, y: Any) -> tuple[int, ...]:
        return y.shape

    def projects(self, y: PyTree[Array]) -> bool:
        return True

    def blocks(self, y: PyTree[Array]) -> Blocks:
        leaves = jax.tree.leaves(y)
        pairs = zip(spread(self.weight, y), leaves, strict=True)
        each = jnp.concatenate([jnp.broadcast_to(w, x.shape).ravel() for w, x in pairs])
        return Blocks(np.arange(each.size)[:, None], each, self.leaf_prox)


def _held(weight: Array, point: Array, step_size: Array) -> tuple[Array, Bool[Array, "..."]]:
    """What is taken off, and where that leaves 0: not of a coordinate without a weight, which is
    free also at 0, nor of NaN."""
    level = jnp.broadcast_to(step_size * weight, point.shape)
    return level, (jnp.abs(point) <= level) & (level > 0)


class ElasticNet(AbstractPenalty):
    """sum_i w_i |y_i| + r_i y_i^2 / 2: sparse, and strictly convex.

    prox(z, s) = sign(z) max(|z| - s w, 0) / (1 + s r).

    scikit-learn's `ElasticNet(alpha, l1_ratio)` divides the squares of the residuals by 2 m: it is
    ||Xy - b||^2 / (2 m) with weight = alpha l1_ratio and ridge = alpha (1 - l1_ratio).

    Args:
        weight: w, a scalar, or of the shape of y, or a pytree of such.
        ridge: r, likewise.
    """

    weight: PyTree[Array] = eqx.field(converter=weights)
    ridge: PyTree[Array] = eqx.field(converter=weights)

    def value(self, y: PyTree[Array]) -> Float[Array, ""]:
        return L1(self.weight).value(y) + self._squares(y)

    def prox(self, point: PyTree[Array], step_size: Float[Array, ""]) -> PyTree[Array]:
        leaves, tree = jax.tree.flatten(L1(self.weight).prox(point, step_size))
        step = jnp.asarray(step_size)
        ridges = [r.astype(x.dtype) for r, x in zip(spread(self.ridge, point), leaves, strict=True)]
        shrunk = [x / (1 + step.astype(x.dtype) * r) for r, x in zip(ridges, leaves, strict=True)]
        return jax.tree.unflatten(tree, shrunk)

    def check(self, y: PyTree[Array], name: str) -> None:
        check_weights(self, "weight", self.weight, y, name, lambda x: x.shape)
        check_weights(self, "ridge", self.ridge, y, name, lambda x: x.shape)

    def valid(self) -> Bool[Array, ""]:
        return nonnegative(self.weight, self.ridge)

    def split(self) -> tuple[Callable[[PyTree[Array]], Float[Array, ""]], AbstractPenalty]:
        return self._squares, L1(self.weight)

    def _squares(self, y: PyTree[Array]) -> Float[Array, ""]:
        leaves = jax.tree.leaves(y)
        parts = [
            jnp.sum(r.astype(x.dtype) * x * x) / 2
            for r, x in zip(spread(self.ridge, y), leaves, strict=True)
        ]
        return sum(parts[1:], parts[0])
