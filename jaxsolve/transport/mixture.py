"""A Gaussian mixture with what is known of it in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, Float

from ..core.checks import check_point
from ..core.vectors import matmul
from .covariances import AbstractCovariance, Shape

LOG_TWO_PI = 1.8378770664093453


class GaussianMixture(eqx.Module):
    """The law sum_k w_k N(m_k, s S_k).

    Attributes:
        log_weights: log w_k, normalised.
        means: m_k.
        shape: of the S_k, in the `covariance` family.
        scale: s.
        family: `Diagonal()` or `Full()`.
    """

    log_weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    shape: Shape
    scale: Float[Array, ""]
    family: AbstractCovariance

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Float[Array, "... d"]:
        """Independent draws."""

        def draw(key: Array) -> Float[Array, " d"]:
            first, second = jax.random.split(key)
            k = jax.random.categorical(first, self.log_weights)
            noise = jax.random.normal(second, self.means.shape[1:], self.means.dtype)
            coloured = self.family.colour(self.shape[k], noise)
            return self.means[k] + jnp.sqrt(self.scale) * coloured

        size = 1
        for length in shape:
            size *= length
        drawn = jax.vmap(draw)(jax.random.split(key, size))
        return drawn.reshape(*shape, self.means.shape[1])

    @property
    def mean(self) -> Float[Array, " d"]:
        """sum_k w_k m_k."""
        return matmul(jnp.exp(self.log_weights), self.means)

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """sum_k w_k (s S_k + (m_k - m)(m_k - m)')."""
        weights = jnp.exp(self.log_weights)
        away = self.means - self.mean
        within = jnp.tensordot(weights, self.family.dense(self.shape), 1, precision="highest")
        return self.scale * within + matmul((weights[:, None] * away).T, away)

    def log_prob(self, y: Float[Array, " d"]) -> Float[Array, ""]:
        """The logarithm of the density."""
        y = check_point("GaussianMixture.log_prob", "y", y, self.means)
        logits = log_densities(self.family, self.shape, self.means, self.scale, y[None])[0]
        return logsumexp(self.log_weights + logits)


def log_densities(
    family: AbstractCovariance,
    shape: Shape,
    means: Float[Array, "k d"],
    scale: Float[Array, ""],
    y: Float[Array, "n d"],
) -> Float[Array, "n k"]:
    """log N(y | m_k, s S_k)."""
    constant = y.shape[1] * (LOG_TWO_PI + jnp.log(scale)) + family.log_det(shape)
    return -family.distance(shape, means, y) / scale - 0.5 * constant
