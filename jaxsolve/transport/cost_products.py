"""Products with a matrix of costs, without the matrix where it has a form that allows that."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.vectors import matmul
from .geometry import AbstractGeometry
from .grid import Grid
from .points import Points, over_blocks


def cost_product(geometry: AbstractGeometry, columns: Float[Array, "m r"]) -> Float[Array, "n r"]:
    """c v, for some vectors: O((n + m) d) each between points with squared distances, O(n + m) on a
    grid but for its axes' matrices, n m for any other costs (between points a block at a time)."""
    if isinstance(geometry, Points):
        return _between_points(geometry, columns)
    if isinstance(geometry, Grid):
        return _on_grid(geometry, columns)
    return matmul(geometry.matrix(), columns)


def _between_points(geometry: Points, columns: Float[Array, "m r"]) -> Float[Array, "n r"]:
    if geometry.cost_fn is not None:
        block = geometry.block or geometry.shape[0]
        return over_blocks(lambda x: matmul(geometry.costs(x), columns), block, geometry.x)
    # About the mean of the points, so that far from the origin fewer digits cancel.
    middle = 0.5 * (jnp.mean(geometry.x, axis=0) + jnp.mean(geometry.y, axis=0))
    x, y = geometry.x - middle, geometry.y - middle
    total = jnp.sum(columns, axis=0)
    own = jnp.sum(x * x, axis=1, keepdims=True) * total
    other = matmul(jnp.sum(y * y, axis=1), columns)
    return own + other - 2 * matmul(x, matmul(y.T, columns))


def _on_grid(geometry: Grid, columns: Float[Array, "m r"]) -> Float[Array, "n r"]:
    shape = [c.shape[1] for c in geometry.costs]
    spread = columns.reshape(*shape, -1)
    rows = [c.shape[0] for c in geometry.costs]
    total = jnp.zeros((*rows, columns.shape[1]), columns.dtype)
    for axis, cost in enumerate(geometry.costs):
        others = tuple(t for t in range(len(shape)) if t != axis)
        part = matmul(cost, jnp.sum(spread, axis=others))
        total = total + jnp.expand_dims(part, others)
    return total.reshape(-1, columns.shape[1])
