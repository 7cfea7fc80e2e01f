"""The total variation of a signal or an image.

In one dimension the proximal operator is exact. With differences D and u in [-s w, s w] the dual
variable, y = z - D'u; where u is strictly inside, neighbours are equal, and where it is at a bound
there is a jump of that sign. Given the jumps, y on each piece is the mean of z plus what the bounds
put on its ends, and u the running sum of y - z. The jumps are found by the primal-dual active set
method (Hintermueller, Ito and Kunisch 2003; D D' is an M-matrix): those of the wrong sign are taken
away, and new ones are put where u has left its bounds, until nothing changes. A step is a few sums
over the signal.

In two dimensions the dual problem, min |z - D'u|^2 / 2 with |u_ij| <= s w, is solved to tolerance,
and differentiated, as the composite problem that it is (Chambolle 2004).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ...core.loop import Program, run
from ...core.solve import solve
from .base import AbstractPenalty, AbstractWeighted, weights

_STEPS = 2000


class TotalVariation(AbstractWeighted):
    """sum_i w_i |y_{i+1} - y_i| of a signal, sum_ij w_ij |(grad y)_ij| of an image.

    Solutions are constant in pieces. Of an image it is the isotropic one (Rudin, Osher and Fatemi
    1992), with forward differences that are 0 across the border; its prox is good to 1e-10 in
    float64, 1e-5 in float32, relative to the image, and NaN where that was not reached.

    The derivative is that of the pieces as they are found: where a jump is about to appear (u at
    its bound, no jump), that of the side without it.

    Args:
        weight: w, a scalar, or one for each pair of neighbours of a signal, for each pixel of an
            image; or a pytree of such.
    """

    weight: PyTree[Array] = eqx.field(converter=weights)

    def leaf_value(self, weight: Array, y: Array) -> Float[Array, ""]:
        if y.ndim == 2:
            squares = jnp.sum(_gradient(y) ** 2, axis=0)
            steep = squares > 0
            return jnp.sum(jnp.where(steep, weight * jnp.sqrt(jnp.where(steep, squares, 1)), 0))
        return jnp.sum(weight * jnp.abs(jnp.diff(y)))

    def leaf_prox(self, weight: Array, point: Array, step_size: Array) -> Array:
        if point.size == 1:
            return point
        if point.ndim == 2:
            return _image(point, jnp.broadcast_to(step_size * weight, point.shape))
        level = jnp.broadcast_to(step_size * weight, (point.size - 1,))
        jumps = run(Program(_begin, _advance, lambda data, carry: carry[0]), (point, level))
        return _pieces(point, level, jumps)[0]

    def weight_shape(self, y: Any) -> tuple[int, ...]:
        if len(y.shape) == 2:
            return y.shape
        if len(y.shape) != 1 or y.shape[0] == 0:
            raise ValueError("a signal has one axis and an entry, an image two axes")
        return (y.shape[0] - 1,)

    def projects(self, y: PyTree[Array]) -> bool:
        return all(leaf.ndim == 1 for leaf in jax.tree.leaves(y))


class _Discs(AbstractPenalty):
    """The indicator function of |u_ij| <= radius_ij."""

    radius: Float[Array, "h w"]

    def value(self, y: PyTree[Array]) -> Float[Array, ""]:
        return jnp.zeros_like(self.radius, shape=())

    def prox(self, point: PyTree[Array], step_size: Float[Array, ""]) -> PyTree[Array]:
        squares = jnp.sum(point**2, axis=0)
        beyond = squares > self.radius**2
        size = jnp.sqrt(jnp.where(beyond, squares, 1))
        return point * jnp.where(beyond, self.radius / size, 1)

    def check(self, y: PyTree[Array], name: str) -> None:
        pass


def _gradient(y: Float[Array, "h w"]) -> Float[Array, "2 h w"]:
    down = jnp.pad(jnp.diff(y, axis=0), ((0, 1), (0, 0)))
    across = jnp.pad(jnp.diff(y, axis=1), ((0, 0), (0, 1)))
    return jnp.stack([down, across])


def _image(point: Float[Array, "h w"], radius: Float[Array, "h w"]) -> Float[Array, "h w"]:
    from ..composite import Composite

    def misfit(u: Array, z: Array) -> Array:
        return 0.5 * jnp.sum(_remaining(u, z) ** 2)

    size = jax.lax.stop_gradient(jnp.max(jnp.abs(point - jnp.mean(point))))
    size = jnp.where(size > 0, size, 1)
    z = point / size
    tolerance = 1e-10 if point.dtype == jnp.float64 else 1e-5
    start = jnp.zeros_like(z, shape=(2, *z.shape))
    found = solve(
        Composite(misfit, _Discs(radius / size), z), init=start, tolerance=tolerance, throw=False
    )
    y = size * _remaining(found.value, z)
    return jnp.where(found.success, y, jnp.nan)


def _remaining(u: Float[Array, "2 h w"], z: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """z - D'u, D the `_gradient`."""
    transposed = jax.linear_transpose(_gradient, z)
    return z - transposed(u)[0]


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
