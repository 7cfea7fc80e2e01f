"""A primal-dual point of the reduced program, and what its solvers ask of it."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.triangular import solve_definite
from ..core.vectors import largest, maxima
from .reduced import Reduced


class Iterate(eqx.Module):
    """v, z and s of the reduced program, with Hv + g + K'z and Kv."""

    v: Float[Array, " k"]
    gradient: Float[Array, " k"]
    z: Float[Array, " m"]
    row: Float[Array, " m"]
    s: Float[Array, " m"]

    def pack(self) -> Float[Array, " 2k+3m"]:
        """All in one array: one kernel moves them."""
        return jnp.concatenate([self.v, self.gradient, self.z, self.row, self.s])


def unpack(packed: Float[Array, " 2k+3m"], k: int) -> Iterate:
    """The inverse of `Iterate.pack`."""
    m = (packed.shape[0] - 2 * k) // 3
    at = [0, k, 2 * k, 2 * k + m, 2 * k + 2 * m, 2 * k + 3 * m]
    return Iterate(*(packed[i:j] for i, j in zip(at[:-1], at[1:], strict=True)))


def iterate_at(reduced: Reduced, v: Float[Array, " k"], z: Float[Array, " m"]) -> Iterate:
    """The iterate of v and z, s the slack."""
    bent, row = reduced.apply(v)
    gradient = bent + reduced.gradient + reduced.transposed(z)
    return Iterate(v, gradient, z, row, reduced.limit - row)


def direction(
    reduced: Reduced,
    factor: Float[Array, "k k"],
    weight: Float[Array, " m"],
    gradient: Float[Array, " k"],
    gap: Float[Array, " m"],
    centre: Float[Array, " m"],
) -> Iterate:
    """H dv + K'dz = -gradient, K dv + ds = -gap, dz = centre - weight ds; `factor` is of
    H + K' diag(weight) K."""
    right = -(gradient + reduced.transposed(centre + weight * gap))
    dv = solve_definite(factor, right)
    bent, row = reduced.apply(dv)
    dz = centre + weight * (gap + row)
    return Iterate(dv, bent + reduced.transposed(dz), dz, row, -gap - row)


def pushes(reduced: Reduced, at: Iterate) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The largest push of a row, and the largest entry of the gradient."""
    push, gradient = maxima([at.z * reduced.sizes, at.gradient])
    return push, gradient


def natural_error(reduced: Reduced, at: Iterate) -> Float[Array, ""]:
    """The natural residual of the reduced program, each part over its scale."""
    push, gradient = pushes(reduced, at)
    slack = (reduced.limit - at.row) / reduced.primal_scale
    scale = jnp.maximum(reduced.dual_scale, push / reduced.size**0.5)
    pair = jnp.where(reduced.fixed, slack, jnp.minimum(at.z / scale, slack))
    pair = jnp.where(reduced.penalty > 0, pair, 0)
    return jnp.maximum(gradient / scale, largest(pair))


def active_weight(reduced: Reduced, at: Any) -> Float[Array, " m"]:
    """The penalty on rows that are active, 0 on the others."""
    return jnp.where((at.z > at.s) | reduced.fixed, reduced.penalty, 0)
