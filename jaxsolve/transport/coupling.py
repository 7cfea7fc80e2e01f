"""Couplings of two batches of points: which point of the one goes with which of the other.

A coupling is `(key, x0, x1) -> (x0, x1)`, a pure function that keeps the laws of both: what is
matched to its pairs (`LightSBM`) is the bridge between these laws, whatever the pairs.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.checks import check_positive
from ..core.solve import solve
from ..core.vectors import matmul
from .entropic_transport import EntropicTransport
from .plan import logarithm

Batch = tuple[Float[Array, "b d"], Float[Array, "b d"]]
Coupling = Callable[[Array, Float[Array, "b d"], Float[Array, "b d"]], Batch]


def independent(key: Array, x0: Float[Array, "b d"], x1: Float[Array, "b d"]) -> Batch:
    """The points as they were drawn: each sample alone."""
    return x0, x1


class MinibatchTransport(eqx.Module):
    """Pairs drawn from the entropic plan between the two batches, of the cost |x - y|^2 / 2.

    Each x0 stays and is given one x1, drawn from its row of the plan. With the bridge's epsilon the
    pairs are, for batches that grow, those of the bridge itself; the gradients of `LightSBM` are
    then less noisy than with `independent` pairs. Tong et al. (2024), Improving and generalizing
    flow-based generative models with minibatch optimal transport.

    A batch whose plan is not found stays as it was drawn.

    Args:
        epsilon: of the plan, in units of the cost; small: near the cheapest pairs.
        tolerance: the part of the weight of x1 that may be out of place.
    """

    epsilon: float
    tolerance: float = 1e-3

    def __check_init__(self):
        check_positive("MinibatchTransport", epsilon=self.epsilon, tolerance=self.tolerance)

    def __call__(self, key: Array, x0: Float[Array, "b d"], x1: Float[Array, "b d"]) -> Batch:
        # |x|^2 / 2 + |y|^2 / 2, which the potentials take up, is left out.
        problem = EntropicTransport(-matmul(x0, x1.T), epsilon=self.epsilon)
        found = solve(problem, tolerance=self.tolerance, throw=False)
        drawn = jax.random.categorical(key, logarithm(found.value.matrix), axis=1)
        return x0, x1[jnp.where(found.success, drawn, jnp.arange(x0.shape[0]))]
