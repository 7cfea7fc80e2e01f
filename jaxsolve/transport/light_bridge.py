"""The light Schroedinger bridge: a bridge whose potential is a Gaussian mixture.

    v(y)    = sum_k a_k N(y | r_k, eps S_k)                            the potential
    c(x)    = sum_k a_k exp((x'S_k x + 2 r_k'x) / (2 eps))             its normaliser
    pi(y|x) = exp(x'y / eps) v(y) / c(x)                               a mixture again:
            = sum_k w_k(x) N(y | r_k + S_k x, eps S_k),   w = softmax of the terms of c

It joins any law of x to the law of y that this gives, by the diffusion

    dX = g(X, t) dt + sqrt(eps) dW,    g(x, t) = (E[y | X_t = x] - x) / (1 - t).

With B_k = t S_k + (1 - t) I the expectation has a closed form in which 1 - t cancels:

    g(x, t)  = sum_k w_k(x, t) B_k^{-1} ((S_k - I) x + r_k)
    w_k(x,t) ~ a_k det(B_k)^{-1/2} exp(x'B_k^{-1}((S_k - I) x + 2 r_k) / (2 eps)
                                       - t r_k'B_k^{-1} r_k / (2 eps))

so that it is evaluated at t = 0 and t = 1 like anywhere between. Korotin, Gushchin and Burnaev
(2024), Light Schroedinger Bridge, eqs. 8 to 12; the form without 1 - t is ours.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn import logsumexp, softmax
from jaxtyping import Array, Float

from ..core.checks import check_count, check_point
from .covariances import AbstractCovariance, Shape
from .mixture import GaussianMixture, log_densities

Vector = Float[Array, " d"]
Scalar = Float[Array, ""]


class LightBridge(eqx.Module):
    """A Schroedinger bridge in closed form: the value of `SchrodingerBridge`.

    All methods take one point; `jax.vmap` adds batch axes.

    Example:
        ```python
        keys = jax.random.split(jax.random.key(0))
        x0, x1 = (jax.random.normal(k, (100, 2)) for k in keys)
        bridge = solve(SchrodingerBridge(x0, x1 + 3, epsilon=0.1), LightSB(1)).value
        moved = jax.vmap(lambda x: bridge.conditional(x).mean)(x0)
        ```

    Attributes:
        log_weights: log a_k; a fit's sum to 1 (any multiple is the same bridge).
        centres: r_k.
        shape: of the S_k, in the family.
        epsilon: the variance of the diffusion in unit time.
        family: `Diagonal()` or `Full()`.
    """

    log_weights: Float[Array, " k"]
    centres: Float[Array, "k d"]
    shape: Shape
    epsilon: Scalar
    family: AbstractCovariance

    def log_potential(self, y: Vector) -> Scalar:
        """log v(y)."""
        y = check_point("LightBridge.log_potential", "y", y, self.centres)
        parts = log_densities(self.family, self.shape, self.centres, self.epsilon, y[None])[0]
        return logsumexp(self.log_weights + parts)

    def log_normaliser(self, x: Vector) -> Scalar:
        """log c(x)."""
        x = check_point("LightBridge.log_normaliser", "x", x, self.centres)
        return logsumexp(self._terms(x))

    def log_likelihood(self, x: Vector, y: Vector) -> Scalar:
        """log pi(y|x)."""
        x = check_point("LightBridge.log_likelihood", "x", x, self.centres)
        y = check_point("LightBridge.log_likelihood", "y", y, self.centres)
        along = jnp.sum(x * y) / self.epsilon
        return along + self.log_potential(y) - self.log_normaliser(x)

    def conditional(self, x: Vector) -> GaussianMixture:
        """pi(.|x), from which y is drawn without simulating the diffusion."""
        x = check_point("LightBridge.conditional", "x", x, self.centres)
        return GaussianMixture(
            log_weights=jax.nn.log_softmax(self._terms(x)),
            means=self.centres + self.family.times(self.shape, x),
            shape=self.shape,
            scale=self.epsilon,
            family=self.family,
        )

    def drift(self, x: Vector, time: Any) -> Vector:
        """g(x, t), for t from 0 to 1, both ends included."""
        x = check_point("LightBridge.drift", "x", x, self.centres)
        time = jnp.asarray(time, x.dtype)
        stretch = self.family.times(self.shape, x) - x
        log_det, (stretch, pull) = self.family.between(self.shape, time, stretch, self.centres)
        exponent = jnp.sum(x * (stretch + 2 * pull), axis=1)
        exponent = exponent - time * jnp.sum(self.centres * pull, axis=1)
        logits = self.log_weights - 0.5 * log_det + 0.5 * exponent / self.epsilon
        return jnp.sum(softmax(logits)[:, None] * (stretch + pull), axis=0)

    def sample_path(self, key: Array, x: Vector, times: Float[Array, " t"]) -> Float[Array, "t d"]:
        """A path of the diffusion from x, exact at any times: an end from `conditional(x)`, and a
        Brownian bridge to it.

        Args:
            key: for the end and the bridge.
            x: where it starts.
            times: ascending, from 0 to 1.
        """
        x = check_point("LightBridge.sample_path", "x", x, self.centres)
        first, second = jax.random.split(key)
        end = self.conditional(x).sample(first)
        times = jnp.asarray(times, x.dtype)
        waits = jnp.diff(times, prepend=0.0, append=1.0)
        noise = jax.random.normal(second, (waits.size, x.size), x.dtype)
        walk = jnp.cumsum(jnp.sqrt(jnp.maximum(waits, 0))[:, None] * noise, axis=0)
        along = times[:, None]
        tied = walk[:-1] - along * walk[-1]
        return (1 - along) * x + along * end + jnp.sqrt(self.epsilon) * tied

    def simulate_path(
        self,
        key: Array,
        x: Vector,
        times: Float[Array, " t"],
        *,
        steps: int = 100,
        solver: Any = None,
    ) -> Float[Array, "t d"]:
        """A path of the diffusion from x by its equation, through diffrax: what `sample_path` draws
        exactly, with the error of the steps.

        Args:
            key: for the Brownian motion.
            x: where it starts.
            times: ascending, from 0 to 1.
            steps: of equal length, from 0 to 1.
            solver: a diffrax SDE solver; `None`: Euler-Maruyama.
        """
        import diffrax

        x = check_point("LightBridge.simulate_path", "x", x, self.centres)
        check_count("LightBridge.simulate_path", steps=steps)
        root = jnp.sqrt(self.epsilon)
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        motion = diffrax.VirtualBrownianTree(0.0, 1.0, tol=0.5 / steps, shape=shape, key=key)
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda time, at, _: self.drift(at, time)),
            diffrax.ControlTerm(lambda time, at, _: root * jnp.eye(x.size, dtype=x.dtype), motion),
        )
        found: Any = diffrax.diffeqsolve(
            terms,
            diffrax.Euler() if solver is None else solver,
            t0=0.0,
            t1=1.0,
            dt0=1.0 / steps,
            y0=x,
            saveat=diffrax.SaveAt(ts=times),
            max_steps=steps + 8,
        )
        return found.ys

    def _terms(self, x: Vector) -> Float[Array, " k"]:
        """The logarithms of the terms of c."""
        tilt = self.family.tilt(self.shape, self.centres, x[None])[0]
        return self.log_weights + tilt / self.epsilon
