"""Vectors with few entries."""

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core.vectors import largest
from .base import AbstractClosedForm


class KSparse(AbstractClosedForm):
    """{x : at most k entries are not 0}, of any array or pytree: the k largest are kept.

    The set is not convex: the projection jumps where the k-th and the next largest sizes change
    places, and of equal sizes the first is kept. The derivative is that of the kept entries; of one
    that is kept with the value 0, it is 0.

    Args:
        k: a static count, from 0 to the number of entries.
    """

    k: int = eqx.field(static=True)

    def __check_init__(self):
        # Before a static field meets `jit`, which would refuse a tracer in other words.
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 0:
            raise TypeError(f"KSparse: `k` must be an int, at least 0; got {self.k!r}.")

    def fit(self, point: Array) -> Self:
        if self.k > point.size:
            raise ValueError(
                f"KSparse: `k` is {self.k}, but `point` has only {point.size} entries."
            )
        return self

    def find(self, point: Array) -> Array:
        size = jnp.abs(point).ravel()
        kept = jax.lax.top_k(size, self.k)[1]
        mask = jnp.zeros_like(size, dtype=bool).at[kept].set(True)
        return jnp.where(mask.reshape(point.shape), point, 0)

    def face(self, point: Array, at: Array) -> Array:
        return jnp.where(at == 0, 0 * at, point)

    def violation(self, at: Array) -> Float[Array, ""]:
        # The largest entry beyond the k that are allowed.
        if self.k >= at.size:
            return 0 * largest(at)
        return jax.lax.top_k(jnp.abs(at).ravel(), self.k + 1)[0][-1]

    def normality(self, point: Array, at: Array) -> Float[Array, ""]:
        kept = at != 0
        changed = largest(jnp.where(kept, point - at, 0))
        lost = largest(jnp.where(kept, 0, point))
        least = jnp.min(jnp.where(kept, jnp.abs(point), jnp.inf), initial=jnp.inf)
        # Fewer than k non-zeros: nothing but zeros may have been lost.
        least = jnp.where(jnp.sum(kept) < self.k, 0, least)
        return jnp.maximum(changed, jnp.maximum(lost - least, 0))
