"""Isotonic regression: the projection on vectors that do not fall.

    minimise |x - p|^2 / 2   subject to   x_1 <= x_2 <= ... <= x_n

The solution is constant on blocks, each at the mean of its points. Pool adjacent violators (Ayer et
al. 1955) keeps a stack of blocks whose means rise: an entry is pushed, and the two on top are
pooled as long as their means fall. At most 2 n operations of one step each.
"""

from typing import Self

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ...core.vectors import identity, largest
from .base import AbstractClosedForm, vector


class Isotonic(AbstractClosedForm):
    """{x : x_1 <= x_2 <= ... <= x_n}.

    The derivative is the mean over the block in which an entry lies; equal neighbours are one. The
    work is sequential, 2 n small steps: fast on a CPU, slow for one long vector on a GPU.
    """

    def fit(self, point: Array) -> Self:
        vector("Isotonic", point)
        return self

    def find(self, point: Float[Array, " n"]) -> Float[Array, " n"]:
        block, mean = pool(point)
        return mean[block]

    def face(self, point: Float[Array, " n"], at: Float[Array, " n"]) -> Float[Array, " n"]:
        rises = at[1:] > at[:-1]
        block = jnp.concatenate([jnp.zeros_like(at[:1], bool), rises])
        block = jnp.cumsum(block, dtype=jnp.int32)
        # Around the mean that was found: sums of small numbers.
        total = jnp.zeros_like(point).at[block].add(point - at)
        count = jnp.zeros_like(point).at[block].add(jnp.ones_like(point))
        return at + (total / jnp.maximum(count, 1))[block]

    def violation(self, at: Float[Array, " n"]) -> Float[Array, ""]:
        return largest(jnp.maximum(at[:-1] - at[1:], 0))

    def normality(self, point: Float[Array, " n"], at: Float[Array, " n"]) -> Float[Array, ""]:
        # Multipliers of the differences: z_i = sum_{j <= i} (p_j - x_j) >= 0, and 0 at the end.
        force = jnp.cumsum(point - at)
        inner = jnp.minimum(force[:-1], jnp.maximum(at[1:] - at[:-1], 0))
        return jnp.maximum(largest(inner), jnp.abs(force[-1]))

    def constraints(self, point: Array) -> dict[str, Array]:
        eye = identity(point)
        return {"G": eye[:-1] - eye[1:], "h": jnp.zeros_like(point[1:])}


def pool(point: Float[Array, " n"]) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """The block of each entry, and the mean of each block."""
    n = point.size

    def put(stack, top, block):
        """The block on top, written to its place."""
        return jax.tree.map(
            lambda row, value: lax.dynamic_update_index_in_dim(row, value, top, 0), stack, block
        )

    def step(carry, _):
        """Pool the two blocks on top where they fall, push the next entry else."""
        stack, (mean, first), top, entry = carry
        # Written before it is read: the other way round the loop copies the stack in each step.
        stack = put(stack, top, (mean, first))
        lower, start = (row[jnp.maximum(top - 1, 0)] for row in stack)
        falls = (top > 0) & (lower >= mean)
        # A block holds the entries from its first to the next block's first.
        above = (entry - first).astype(point.dtype)
        below = (first - start).astype(point.dtype)
        pooled = lower + (mean - lower) * (above / jnp.maximum(above + below, 1))
        pushes = ~falls & (entry < n)
        fresh = point[jnp.minimum(entry, n - 1)]
        mean = jnp.where(falls, pooled, jnp.where(pushes, fresh, mean))
        first = jnp.where(falls, start, jnp.where(pushes, entry, first))
        pushed = pushes.astype(jnp.int32)
        top = top + pushed - falls.astype(jnp.int32)
        return (stack, (mean, first), top, entry + pushed), None

    none = jnp.zeros_like(point, jnp.int32)
    zero = none[0]
    begin = ((jnp.zeros_like(point), none), (point[0], zero), zero, zero + 1)
    (stack, block, top, _), _ = lax.scan(step, begin, length=2 * n - 1)
    mean, first = put(stack, top, block)
    used = jnp.arange(n, dtype=jnp.int32) <= top
    begins = none.at[jnp.where(used, first, n)].set(1, mode="drop")
    return jnp.cumsum(begins, dtype=jnp.int32) - 1, mean
