"""The Sinkhorn divergence: entropic transport without its bias.

    S = OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2 + epsilon (sum a - sum b)^2 / 2

with OT the optimal value of `EntropicTransport`, entropy included. S is 0 at equal measures, above
0 at all others (where exp(-c / epsilon) is a positive kernel, as for the distance and its square),
and convex in each measure; OT is least at a measure y that is shrunk. The last term is 0 where sums
are held. As epsilon grows S goes to the squared distance of the means (for the squared distance),
or to half the energy distance (for the distance): as it falls, to the cost of transport.

Feydy, Sejourne, Vialard, Amari, Trouve and Peyre (2019); Sejourne, Feydy, Vialard, Trouve and Peyre
(2019), definition 3, for `tau`.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.solve import solve
from .entropic_transport import EntropicTransport
from .geometry import Scalar


def sinkhorn_divergence(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    epsilon: Float[Array, ""] | float,
    tau: Float[Array, ""] | float | None = None,
    cost_fn: Callable[[Array, Array], Array] | None = None,
    block: int | None = None,
    solver: Any = None,
    tolerance: Float[Array, ""] | float | None = None,
) -> Scalar:
    """How far two sets of weighted points are apart, never raised for.

    A loss between samples: smooth, with a gradient in points and weights that costs no linear
    solve, and derivatives of any order. Three solves, each as large as its two sets.

    Example:
        ```python
        x, y = jnp.zeros((5, 2)), jnp.ones((4, 2))
        sinkhorn_divergence(x, y, epsilon=0.1)
        ```

    Args:
        x, y: the points, one a row.
        a, b: their weights, at least 0; `None`: equal ones, of sum 1. Without `tau` both must have
            the same total.
        epsilon: in units of the cost, above 0.
        tau: what it costs to miss the weights, in units of the cost, one number for all; `None`:
            they are met.
        cost_fn: (x_i, y_j) -> cost, symmetric; `None`: the squared Euclidean distance. It is
            differentiated at x_i = x_i, where the plain distance has no derivative.
        block: rows of a matrix of costs that are in memory at once, as in
            `EntropicTransport.from_points`.
        solver, tolerance: as in `solve`.

    Returns:
        S, in units of the cost: NaN where one of the solves fails, as are its derivatives.

    Raises:
        TypeError, ValueError: at trace time, where shapes, dtypes or settings do not fit.
    """
    if isinstance(tau, tuple):
        raise TypeError("sinkhorn_divergence: `tau` must be one number, the same for both sides.")

    def value(left: tuple, right: tuple) -> Scalar:
        problem = EntropicTransport.from_points(
            left[0], right[0], left[1], right[1],
            epsilon=epsilon, tau=tau, cost_fn=cost_fn, block=block,
        )  # fmt: skip
        found = solve(problem, solver, tolerance=tolerance, throw=False)
        cost = found.value.cost
        return cost * jnp.where(found.success, 1.0, jnp.nan).astype(cost.dtype)

    first, second = (x, a), (y, b)
    both = value(first, second) - 0.5 * value(first, first) - 0.5 * value(second, second)
    if tau is None:
        return both
    masses = [1.0 if weights is None else jnp.sum(weights) for weights in (a, b)]
    return both + 0.5 * epsilon * (masses[0] - masses[1]) ** 2
