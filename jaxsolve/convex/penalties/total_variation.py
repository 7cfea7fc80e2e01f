"""The total variation of a signal or an image.

In one dimension the proximal operator is exact. With differences D and u in [-s w, s w] the dual
variable, y = z - D'u; where u is strictly inside, neighbours are equal, and where it is at a bound
there is a jump of that sign. Given the jumps, y on each piece is the mean of z plus what the bounds
put on its ends, and u the running sum of y - z. The jumps are found by the primal-dual active set
method (Hintermueller, Ito and Kunisch 2003; D D' is an M-matrix): those of the wrong sign are taken
away, and new ones are put where u has left its bounds, until nothing changes. A step is a few sums
over the signal.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ...core.loop import Program, run
from .base import AbstractWeighted, weights

_STEPS = 2000


class TotalVariation(AbstractWeighted):
    """sum_i w_i |y_{i+1} - y_i| of a signal: solutions are constant in pieces.

    The derivative is that of the pieces as they are found: where a jump is about to appear (u at
    its bound, no jump), that of the side without it.

    Args:
        weight: w, a scalar, or one for each pair of neighbours; or a pytree of such.
    """

    weight: PyTree[Array] = eqx.field(converter=weights)

    def leaf_value(self, weight: Array, y: Array) -> Float[Array, ""]:
        return jnp.sum(weight * jnp.abs(jnp.diff(y)))

    def leaf_prox(self, weight: Array, point: Array, step_size: Array) -> Array:
        if point.size == 1:
            return point
        level = jnp.broadcast_to(step_size * weight, (point.size - 1,))
        jumps = run(Program(_begin, _advance, lambda data, carry: carry[0]), (point, level))
        return _pieces(point, level, jumps)[0]

    def weight_shape(self, y: Any) -> tuple[int, ...]:
        if len(y.shape) != 1:
            raise ValueError("a signal has one axis")
        return (y.shape[0] - 1,)

    def projects(self, y: PyTree[Array]) -> bool:
        return True


def _begin(data):
    point, level = data
    jumps = jnp.zeros_like(level, jnp.int32)
    return (jumps, jnp.zeros_like(jumps[0])), jumps[0] > 0


def _advance(data, carry):
    point, level = data
    jumps, steps = carry
    y, dual = _pieces(point, level, jumps)
    rise = jnp.diff(y)
    # Rounding must not let a jump come and go.
    size = jnp.finfo(y.dtype).eps * (jnp.max(jnp.abs(point)) + jnp.max(level))
    wrong = jumps * rise < -4 * size
    beyond = jnp.where(dual > level + 4 * size, 1, jnp.where(dual < -level - 4 * size, -1, 0))
    new = jnp.where(jumps != 0, jnp.where(wrong, 0, jumps), beyond).astype(jumps.dtype)
    steps = steps + 1
    return (new, steps), jnp.all(new == jumps) | (steps >= _STEPS)


def _pieces(
    point: Float[Array, " n"], level: Float[Array, " n-1"], jumps: Int[Array, " n-1"]
) -> tuple[Float[Array, " n"], Float[Array, " n-1"]]:
    """The signal with such jumps, and its dual variable."""
    n = point.size
    bound = jumps.astype(point.dtype) * level
    edge = jnp.zeros_like(bound[:1])
    right, left = jnp.concatenate([bound, edge]), jnp.concatenate([edge, bound])
    # A weight of 0 is no bond between neighbours.
    parted = ((jumps != 0) | (level <= 0)).astype(jumps.dtype)
    piece = jnp.cumsum(jnp.concatenate([jnp.zeros_like(jumps[:1]), parted]))
    # Relative to its own mean: sums of a long signal far from 0 would lose digits.
    middle = jax.lax.stop_gradient(jnp.mean(point))
    sums = jax.ops.segment_sum(point - middle + right - left, piece, n, indices_are_sorted=True)
    counts = jax.ops.segment_sum(jnp.ones_like(point), piece, n, indices_are_sorted=True)
    y = middle + (sums / jnp.maximum(counts, 1))[piece]
    dual = jnp.cumsum(y - point)[:-1]
    return y, dual
