"""Light bridges by matching drifts.

    minimise  E |g(x_t, t) - (x1 - x_t) / (1 - t)|^2 / (2 eps),   t uniform,
    x_t = (1 - t) x0 + t x1 + sqrt(eps t (1 - t)) z

over bridges g. Gushchin, Kholkin, Burnaev and Korotin (2024), Light and Optimal Schroedinger Bridge
Matching: whatever the coupling of x0 and x1, the minimiser is the Schroedinger bridge between their
laws, and this loss is L up to a constant. Its gradients are noisier than those of L.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ..core.checks import check_instance
from .bridge import LightParameters, LightProblem
from .coupling import Coupling, independent
from .covariances import AbstractCovariance, Diagonal
from .light_bridge import Scalar
from .minibatch import AbstractMinibatch, draw

_LAST = 0.99
"""The latest t: the variance of the target grows like 1 / (1 - t)."""


class LightSBM(AbstractMinibatch):
    """Bridge matching in the family of light bridges: `approximate`, like `MinibatchLightSB`.

    Worth its noise where pairs of points carry something that L does not see (a coupling that is
    already near the plan); for the bridge alone `LightSB` is faster and exact.

    Args:
        components: K.
        covariance: `Diagonal()` or `Full()`.
        coupling: `(key, x0, x1) -> (x0, x1)`, pairs made of a batch of each sample (less their
            means). `independent` pairs them as they come, `MinibatchTransport(epsilon)` by the plan
            of the batch.
        optimiser: an optax transformation; make it once.
        batch_size: pairs in a batch.
        steps: after which the fit ends.
        starts: as in `LightSB`.
    """

    components: int = 10
    covariance: AbstractCovariance = Diagonal()
    coupling: Coupling = independent
    optimiser: optax.GradientTransformation = optax.adam(1e-2)
    batch_size: int = 512
    steps: int = 10_000
    starts: int = 8

    def __check_init__(self):
        wanted = "a function (key, x0, x1) -> (x0, x1)"
        check_instance("LightSBM", "coupling", self.coupling, Callable, wanted)

    def loss(self, problem: LightProblem, value: LightParameters, key: Array) -> Scalar:
        """The mean squared error of the drift, at one time for each pair."""
        keys = jax.random.split(key, 4)
        batch = draw(problem, self.batch_size, keys[1])
        pairs = self.coupling(keys[0], *batch)
        if jax.tree.map(jnp.shape, pairs) != jax.tree.map(jnp.shape, batch):
            raise ValueError(
                f"LightSBM: `coupling` must return (x0, x1) of the shapes that it was given, "
                f"{list(map(jnp.shape, batch))}; it returns {jax.tree.map(jnp.shape, pairs)}."
            )
        x0, x1 = pairs
        # Strata of equal length: one t in each.
        where = jnp.arange(self.batch_size, dtype=x0.dtype)
        shift = jax.random.uniform(keys[2], (self.batch_size,), x0.dtype)
        times = (_LAST * (where + shift) / self.batch_size)[:, None]
        noise = jax.random.normal(keys[3], x0.shape, x0.dtype)
        spread = jnp.sqrt(problem.epsilon * times * (1 - times))
        at = (1 - times) * x0 + times * x1 + spread * noise
        drifts = jax.vmap(problem.centred(value).drift)(at, times[:, 0])
        away = drifts - (x1 - at) / (1 - times)
        gauge = 0.5 * jax.nn.logsumexp(value.logits) ** 2
        return jnp.mean(jnp.sum(away * away, axis=1)) / (2 * problem.epsilon) + gauge
