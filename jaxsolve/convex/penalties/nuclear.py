"""The sum of the singular values of a matrix."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...core.vectors import matmul
from .base import AbstractWeighted, weights


class Nuclear(AbstractWeighted):
    """w sum_i sigma_i(Y): solutions are matrices of low rank.

    prox(Z, s) takes s w off each singular value of Z, down to 0. Cai, Candes and Shen (2010).

    Its first derivative exists, and is found without cancellation, also where singular values are
    equal (a spectral function, Lewis and Sendov 2005); at sigma_i = s w it is that of the side on
    which the value is 0. Second derivatives are NaN where singular values are equal.

    Args:
        weight: w, a scalar, or one for each matrix of a stack; or a pytree of such.
    """

    weight: PyTree[Array] = eqx.field(converter=weights)

    def leaf_value(self, weight: Array, y: Array) -> Float[Array, ""]:
        return jnp.sum(weight[..., None] * jnp.linalg.svd(y, compute_uv=False))

    def leaf_prox(self, weight: Array, point: Array, step_size: Array) -> Array:
        return _shrink(point, jnp.broadcast_to(step_size * weight, point.shape[:-2]))

    def weight_shape(self, y: Any) -> tuple[int, ...]:
        if len(y.shape) < 2:
            raise ValueError("the last two axes are the matrix: it must have them")
        return y.shape[:-2]


@jax.custom_jvp
def _shrink(point: Array, level: Array) -> Array:
    left, values, right = jnp.linalg.svd(point, full_matrices=False)
    kept = jnp.where(values > level[..., None], values - level[..., None], 0)
    return matmul(left * kept[..., None, :], right)


@_shrink.defjvp
def _rule(primals, tangents):
    point, level = primals
    change, rise = tangents
    left, values, right = jnp.linalg.svd(point, full_matrices=False)
    free = values > level[..., None]
    kept = jnp.where(free, values - level[..., None], 0)
    inner = matmul(jnp.swapaxes(left, -1, -2), matmul(change, jnp.swapaxes(right, -1, -2)))
    even = (inner + jnp.swapaxes(inner, -1, -2)) / 2
    odd = (inner - jnp.swapaxes(inner, -1, -2)) / 2
    # f(sigma) = max(sigma - level, 0): its divided differences, and its sums over those of sigma.
    both = free[..., :, None] & free[..., None, :]
    one = free[..., :, None] ^ free[..., None, :]
    gap = jnp.abs(values[..., :, None] - values[..., None, :])
    total = values[..., :, None] + values[..., None, :]
    sums = kept[..., :, None] + kept[..., None, :]
    differences = jnp.abs(kept[..., :, None] - kept[..., None, :])
    slopes = jnp.where(one, differences / jnp.where(one, gap, 1), both.astype(gap.dtype))
    turns = jnp.where(total > 0, sums / jnp.where(total > 0, total, 1), 0)
    falls = jnp.where(free, rise[..., None], 0)
    core = (
        slopes * even
        + turns * odd
        - falls[..., None, :] * jnp.eye(falls.shape[-1], dtype=falls.dtype)
    )
    out = matmul(left, matmul(core, right))
    # What leaves the span of the singular vectors turns them: by f(sigma) / sigma.
    ratio = jnp.where(free, kept / jnp.where(free, values, 1), 0)
    across = matmul(change, jnp.swapaxes(right, -1, -2)) - matmul(left, inner)
    out = out + matmul(across * ratio[..., None, :], right)
    along = matmul(jnp.swapaxes(left, -1, -2), change) - matmul(inner, right)
    out = out + matmul(left * ratio[..., None, :], along)
    return matmul(left * kept[..., None, :], right), out
