"""The norm of each group of coordinates."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ...core.vectors import root
from .base import AbstractWeighted, Blocks, spread, weights as as_weights


class _Labels:
    """A static array of labels, compared by its content."""

    def __init__(self, labels: Any):
        found = np.asarray(labels)
        if not np.issubdtype(found.dtype, np.integer) or found.size == 0 or found.min() < 0:
            raise ValueError(
                f"Group: `labels` must be integers from 0 on; got {found.dtype}{list(found.shape)}."
            )
        self.array, self.count = found.astype(np.int32), int(found.max()) + 1

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Labels) and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        return hash((self.array.shape, self.array.tobytes()))


def _labels(labels: Any) -> _Labels | None:
    return labels if labels is None or isinstance(labels, _Labels) else _Labels(labels)


class Group(AbstractWeighted):
    """sum_g w_g ||y_g||: whole groups of coordinates of a solution are exactly 0.

    prox(z, s)_g = max(1 - s w_g / ||z_g||, 0) z_g. Yuan and Lin (2006).

    At the kink ||z_g|| = s w_g > 0 the derivative is that of the side on which the group is 0.

    Args:
        weight: w, a scalar, or one for each group, or a pytree of such.
        labels: to which group each coordinate belongs, integers of the shape of y (a concrete
            array: it is part of the program). `None`: the last axis of each array is a group.
    """

    weight: PyTree[Array] = eqx.field(converter=as_weights)
    labels: _Labels | Int[Array, "..."] | None = eqx.field(
        default=None, static=True, converter=_labels
    )

    def leaf_value(self, weight: Array, y: Array) -> Float[Array, ""]:
        size = root(self._squares(y))
        return jnp.sum(jnp.where(size > 0, weight * jnp.where(size > 0, size, 1), 0))

    def leaf_prox(self, weight: Array, point: Array, step_size: Array) -> Array:
        size = root(self._squares(point))
        level = jnp.broadcast_to(step_size * weight, size.shape)
        free = (size > level) | (level <= 0)
        share = jnp.where(free, level, 0) / jnp.where(size > 0, size, 1)
        shares = jnp.where(free & (size > 0), share, 0)
        kept = self._back(jnp.where(free, 1 - jnp.where(free, shares, 0), 0), point)
        return jnp.where(kept > 0, kept * point, jnp.where(jnp.isnan(point), point, 0))

    def leaf_remainder(self, weight: Array, point: Array, step_size: Array) -> Array:
        size = root(self._squares(point))
        level = jnp.broadcast_to(step_size * weight, size.shape)
        beyond = size > level
        share = jnp.where(beyond, level / jnp.where(beyond, size, 1), 1)
        return self._back(share, point) * point

    def weight_shape(self, y: Any) -> tuple[int, ...]:
        if isinstance(self.labels, _Labels):
            if self.labels.array.shape != y.shape:
                raise ValueError(f"`labels` has shape {list(self.labels.array.shape)}")
            return (self.labels.count,)
        if len(y.shape) == 0:
            raise ValueError("the last axis is the group: it must have one")
        return y.shape[:-1]

    def blocks(self, y: PyTree[Array]) -> Blocks:
        leaves, weights, rows, at = jax.tree.leaves(y), [], [], 0
        for weight, x in zip(spread(self.weight, y), leaves, strict=True):
            shape = self.weight_shape(x)
            weights.append(jnp.broadcast_to(weight, shape).ravel())
            if isinstance(self.labels, _Labels):
                labels = self.labels.array.ravel()
                rows += [at + np.flatnonzero(labels == k) for k in range(self.labels.count)]
            else:
                rows += list(at + np.arange(x.size).reshape(-1, x.shape[-1]))
            at += x.size
        order = np.full((len(rows), max(map(len, rows))), at)
        for place, row in zip(order, rows, strict=True):
            place[: len(row)] = row
        return Blocks(order, jnp.concatenate(weights), Group(0.0).leaf_prox)

    def _squares(self, y: Array) -> Array:
        if isinstance(self.labels, _Labels):
            ids = jnp.asarray(self.labels.array.ravel())
            return jax.ops.segment_sum((y * y).ravel(), ids, self.labels.count)
        return jnp.sum(y * y, axis=-1)

    def _back(self, groups: Array, like: Array) -> Array:
        if isinstance(self.labels, _Labels):
            return groups[self.labels.array]
        return jnp.broadcast_to(groups[..., None], like.shape)
