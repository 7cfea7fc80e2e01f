"""Sorting as transport: values are moved to fixed targets in increasing order.

    s_i = 1 / (1 + exp(-(x_i - mean) / deviation)),   y_j = b_1 + ... + b_{j-1} + b_j / 2
    p = the plan of least cost (s_i - y_j)^2 between the weights of the values and those, b, of y

Without entropy p is monotone: of n values and n targets it is the permutation that sorts. With
entropy it is smooth, and still takes larger values to larger targets, since exp(2 s y / epsilon) is
totally positive. The squashing makes p the same for x and for any t x + c, t > 0, and the size of
epsilon a matter of the ranks alone.

Cuturi, Teboul and Vert, Differentiable ranking and sorting using optimal transport, NeurIPS 2019.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ..core.vectors import dot, largest, positive, root
from .entropic_transport import EntropicTransport
from .geometry import Scalar


def squash(values: Float[Array, " n"], weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """Between 0 and 1, whatever the values' place and scale; 1/2 where all are the same."""
    total, live = positive(jnp.sum(weights)), weights > 0
    centred = values - dot(weights, jnp.where(live, values, 0)) / total
    # The unit does not change the result, but without it squares overflow and underflow.
    centred = centred / positive(lax.stop_gradient(largest(jnp.where(live, centred, 0))))
    deviation = root(dot(weights, jnp.where(live, centred, 0) ** 2) / total)
    return jax.nn.sigmoid(centred / positive(deviation))


def places(weights: Float[Array, " m"]) -> Float[Array, " m"]:
    """Of the targets that have these weights, between 0 and 1: the middles of their parts."""
    return (jnp.cumsum(weights) - 0.5 * weights) / positive(jnp.sum(weights))


def sorting_problem(
    values: Float[Array, " n"],
    weights: Float[Array, " n"],
    targets: Float[Array, " m"],
    *,
    epsilon: Scalar | float,
) -> EntropicTransport:
    """The transport of values to targets, in increasing order.

    Args:
        values: to be sorted.
        weights: of the values, at least 0.
        targets: the weights of the targets, of the same total.
        epsilon: in units of the squared distance of places between 0 and 1.
    """
    x, y = squash(values, weights), places(targets)
    return EntropicTransport.from_points(x[:, None], y[:, None], weights, targets, epsilon=epsilon)
