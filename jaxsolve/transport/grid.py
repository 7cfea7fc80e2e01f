"""Costs on a grid that are sums over its axes.

    c(i, j) = c_1(i_1, j_1) + ... + c_d(i_d, j_d)

A product with K goes axis by axis: of N points and axes of length k, d N k operations in place of
N^2. Each axis has a kernel of its own at every point, scaled by the least cost that is left:

    h_0 = -g,   h_t = min over j_t of (c_t + h_{t-1})
    K_t = exp(-((c_t + h_{t-1}) - h_t) / epsilon)

so that nothing over- or underflows, and h_d is the base.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from ..core.checks import check_array, check_instance, check_real, check_shape, show
from .geometry import AbstractGeometry, AbstractKernel, Columns, Scalar


class Grid(AbstractGeometry):
    """Points of a grid to points of a grid, with a matrix of costs for each axis."""

    costs: tuple[Float[Array, "k l"], ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], costs: Any, like: Any) -> "Grid":
        """The grid, with squared distances on [0, 1] where no costs are given."""
        check_instance("EntropicTransport", "shape", shape, tuple | list, "a tuple of lengths")
        shape = tuple(shape)
        if len(shape) == 0 or not all(isinstance(k, int | np.integer) and k > 0 for k in shape):
            raise ValueError(f"EntropicTransport: `shape` must hold lengths of axes; got {shape}.")
        if costs is None:
            dtype = jnp.zeros(()).dtype
            if like is not None and jnp.issubdtype(like.dtype, jnp.floating):
                dtype = like.dtype
            places = [jnp.linspace(0, 1, k, dtype=dtype) for k in shape]
            return cls(tuple((x[:, None] - x) ** 2 for x in places))
        check_instance(
            "EntropicTransport", "costs", costs, tuple | list, "a tuple of a matrix for each axis"
        )
        costs = tuple(check_array("EntropicTransport", "costs", c) for c in costs)
        found = tuple(c.shape[:1] for c in costs)
        if found != tuple((k,) for k in shape) or any(c.ndim != 2 for c in costs):
            raise ValueError(
                f"EntropicTransport: `costs` are {[show(c) for c in costs]}, but `shape` is "
                f"{shape}: one matrix for each axis, its rows those of the grid."
            )
        return cls(costs)

    @property
    def axes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of the rows' grid and of the columns'."""
        rows, columns = zip(*(c.shape for c in self.costs), strict=True)
        return rows, columns

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.axes
        return math.prod(rows), math.prod(columns)

    @property
    def dtype(self) -> Any:
        return self.costs[0].dtype

    def transposed(self) -> "Grid":
        return Grid(tuple(c.T for c in self.costs))

    def checked(self) -> "Grid":
        for c in self.costs:
            check_real("EntropicTransport", "costs", c.dtype)
            if c.dtype != self.dtype:
                raise TypeError(
                    f"EntropicTransport: `costs` are {[show(c) for c in self.costs]}: give them in "
                    "one precision."
                )
        return self

    def kernel(self, g: Columns, live: Bool[Array, " m"], epsilon: Scalar) -> "GridKernel":
        height = -g.reshape([c.shape[1] for c in self.costs])
        axes = []
        for axis, cost in enumerate(self.costs):
            height, kernel = _axis(height, cost, axis, epsilon)
            axes.append(kernel)
        return GridKernel(lax.stop_gradient(height).ravel(), tuple(axes))

    def expected(self, kernel, g, rows, columns, epsilon) -> Scalar:
        assert isinstance(kernel, GridKernel)
        total = jnp.zeros((), self.dtype)
        for axis, cost in enumerate(self.costs):
            weighted = [
                k * jnp.expand_dims(cost, _others(axis, len(self.costs))) if t == axis else k
                for t, k in enumerate(kernel.axes)
            ]
            total = total + jnp.sum(rows * GridKernel(kernel.base, tuple(weighted)).rows(columns))
        return total

    def spread(self) -> Scalar:
        parts = [jnp.mean(c) - jnp.min(c) for c in self.costs]
        return sum(parts[1:], parts[0])

    def some(self, index: Array) -> Float[Array, "k m"]:
        shape = [c.shape[0] for c in self.costs]
        places = jnp.unravel_index(index, shape)
        total = self.costs[0][places[0]]
        for cost, place in zip(self.costs[1:], places[1:], strict=True):
            total = total[:, :, None] + cost[place][:, None, :]
            total = total.reshape(total.shape[0], -1)
        return total


def on_grid(name: str, field: str, weights: Array | None, axes: tuple[int, ...]) -> Array | None:
    """Weights of a grid in one row; raises where they have a shape that is not the grid's."""
    if weights is None:
        return None
    if weights.ndim != 1:
        check_shape(name, field, (show(weights), weights.shape), axes, "shape", str(axes))
    return weights.ravel()


class GridKernel(AbstractKernel):
    """K as a product of kernels: that of axis t has the rows' places on axes up to t, the columns'
    on the later ones, and the column's place on axis t last."""

    axes: tuple[Float[Array, "..."], ...]

    def rows(self, columns):
        return self._each(columns, self._rows)

    def columns(self, rows):
        return self._each(rows, self._columns)

    def _each(self, vectors, fn):
        if vectors.ndim == 1:
            return fn(vectors)
        return lax.map(fn, vectors.T).T

    def _rows(self, vector):
        x = vector.reshape([k.shape[-1] for k in self.axes])
        for axis, kernel in enumerate(self.axes):
            x = jnp.sum(kernel * jnp.moveaxis(x, axis, -1)[_inserted(axis)], axis=-1)
        return x.ravel()

    def _columns(self, vector):
        x = vector.reshape([k.shape[t] for t, k in enumerate(self.axes)])
        for axis, kernel in reversed(list(enumerate(self.axes))):
            x = jnp.moveaxis(jnp.sum(kernel * x[..., None], axis=axis), -1, axis)
        return x.ravel()


def _inserted(axis: int) -> Any:
    """The index that adds an axis before the given one."""
    return (slice(None),) * axis + (None,)


def _others(axis: int, count: int) -> tuple[int, ...]:
    """Where a matrix of one axis needs axes of length 1 to stand beside that axis' kernel."""
    return tuple(t for t in range(count) if t != axis)


def _axis(
    height: Float[Array, "..."], cost: Float[Array, "k l"], axis: int, epsilon: Scalar
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The least of cost + height over an axis, which then is the rows', and that axis' kernel."""
    count = height.ndim
    moved = jnp.moveaxis(height, axis, -1)[_inserted(axis)]
    total = jnp.expand_dims(cost, _others(axis, count)) + moved
    least = lax.stop_gradient(jnp.min(total, axis=-1))
    safe = jnp.where(jnp.isfinite(least), least, 0)
    allowed = jnp.isfinite(total)
    exponent = jnp.where(allowed, total - safe[..., None], 0) / epsilon
    return safe, jnp.where(allowed, jnp.exp(-exponent), 0)
