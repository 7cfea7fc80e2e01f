"""A benchmark of entropic transport with everything in closed form, and the scores of a bridge.

    x ~ N(0, I),   y ~ pi*(.|x),   pi* the light bridge of K = 5 components below

so that pi* is the entropic plan between N(0, I) and the law of y. After Gushchin, Kolesov, Mokrov,
Karpikova, Spiridonov, Burnaev and Korotin (2023), Building the Bridge of Schroedinger, whose
parameters are not published with a rule; this is a construction of our own, "eot-gmm-regen v1".
With C the covariance of a component of the potential and S = C (C + eps I)^{-1},

    mu_k   uniform on the sphere of radius R = 5 sqrt(d / 2)
    C_k    = max(eps, 1) Q_k diag(exp(u)) Q_k',  u an even grid from log 0.1 to 0 (the same for all
             k, so that none is larger than another in all directions), Q_k uniform: a rotation for
             `Full()`, a permutation for `Diagonal()`
    r_k    = (I - S_k) mu_k,   a_k = 1 / K

For the paper's d and eps the variance of y is 1.5 to 11 a coordinate. The numbers follow
from the key, d and eps in float64; in float32 other numbers are drawn.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.checks import check_count, check_instance, check_number, check_positive
from ..core.vectors import matmul
from .covariances import AbstractCovariance, Full, check_family
from .light_bridge import LightBridge, Scalar, Vector

_COMPONENTS = 5
_INPUTS = 1000
_DRAWS = 100_000


class GaussianMixtureBenchmark(eqx.Module):
    """A pair of laws whose Schroedinger bridge is known.

    Attributes:
        bridge: the true one.
        inputs: the x at which conditional plans are compared.
        variance: the total variance of y, from the exact conditional moments at 10^5 draws of x.
        key: for draws of the scores.
    """

    bridge: LightBridge
    inputs: Float[Array, "n d"]
    variance: Scalar
    key: Array

    def sample_source(self, key: Array, count: int) -> Float[Array, "n d"]:
        """Draws of x."""
        return jax.random.normal(key, (count, self.inputs.shape[1]), self.inputs.dtype)

    @eqx.filter_jit
    def sample_pairs(
        self, key: Array, count: int
    ) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
        """Draws of (x, y) from the true plan."""
        first, second = jax.random.split(key)
        x = self.sample_source(first, count)
        return x, _images(self.bridge, second, x)

    def sample_target(self, key: Array, count: int) -> Float[Array, "n d"]:
        """Draws of y."""
        return self.sample_pairs(key, count)[1]

    @eqx.filter_jit
    def kl(self, bridge: LightBridge, count: int = _DRAWS) -> Scalar:
        """KL(pi* || pi) between plans with the same law of x, by exact densities at draws of pi*.

        The mean of ratio - 1 - log ratio: its terms are not negative, and its error vanishes with
        the divergence itself.
        """
        x, y = self.sample_pairs(jax.random.fold_in(self.key, 1), count)

        def term(pair: tuple[Vector, Vector]) -> Scalar:
            ratio = bridge.log_likelihood(*pair) - self.bridge.log_likelihood(*pair)
            return jnp.expm1(ratio) - ratio

        return jnp.mean(jax.lax.map(term, (x, y), batch_size=_batch(x)))

    @eqx.filter_jit
    def path_kl(self, bridge: LightBridge, count: int = _DRAWS) -> Scalar:
        """The same divergence by Girsanov, mean |g* - g|^2 / (2 eps) along the true diffusion: what
        a wrong drift costs."""
        errors = self.drift_errors(bridge, None, count)
        return jnp.mean(errors) / (2 * self.bridge.epsilon)

    @eqx.filter_jit
    def drift_errors(
        self, bridge: LightBridge, time: Scalar | float | None, count: int = _DRAWS
    ) -> Float[Array, " n"]:
        """|g*(x_t, t) - g(x_t, t)|^2 at draws of the true diffusion, for one t or uniform ones."""
        keys = jax.random.split(jax.random.fold_in(self.key, 2), 3)
        x, y = self.sample_pairs(keys[0], count)
        times = jax.random.uniform(keys[1], (count, 1), x.dtype)
        times = times if time is None else jnp.full_like(times, time)
        noise = jax.random.normal(keys[2], x.shape, x.dtype)
        spread = jnp.sqrt(self.bridge.epsilon * times * (1 - times))
        at = (1 - times) * x + times * y + spread * noise

        def error(place: tuple[Vector, Scalar]) -> Scalar:
            away = self.bridge.drift(*place) - bridge.drift(*place)
            return jnp.sum(away * away)

        return jax.lax.map(error, (at, times[:, 0]), batch_size=_batch(x))

    @eqx.filter_jit
    def conditional_uvp(self, bridge: LightBridge) -> Scalar:
        """cBW2-UVP in per cent, 0 for the true plan and about 100 for a constant map: the
        Bures-Wasserstein distance of conditional plans, over half the variance of y."""

        def distance(x: Vector) -> Scalar:
            true, found = self.bridge.conditional(x), bridge.conditional(x)
            return bures_wasserstein(found.mean, found.covariance, true.mean, true.covariance)

        distances = jax.lax.map(distance, self.inputs, batch_size=50)
        return 100 * jnp.mean(distances) / (0.5 * self.variance)

    @eqx.filter_jit
    def uvp(self, bridge: LightBridge, count: int = _DRAWS) -> Scalar:
        """BW2-UVP in per cent: the same of the laws of y, by exact conditional moments at the same
        draws of x for both."""
        x = self.sample_source(jax.random.fold_in(self.key, 3), count)
        true, found = (_moments(b, x) for b in (self.bridge, bridge))
        return 100 * bures_wasserstein(*found, *true) / (0.5 * self.variance)


def gaussian_mixture_benchmark(
    dim: int,
    epsilon: float,
    key: Array,
    *,
    covariance: AbstractCovariance = Full(),
) -> GaussianMixtureBenchmark:
    """The benchmark pair of a dimension, an epsilon and a key.

    Example:
        ```python
        benchmark = gaussian_mixture_benchmark(2, 1.0, jax.random.key(0))
        x, y = benchmark.sample_pairs(jax.random.key(1), 100)
        benchmark.conditional_uvp(benchmark.bridge)
        ```

    Args:
        dim: d; the paper's are 2, 16, 64, 128.
        epsilon: a number; the paper's are 0.1, 1, 10.
        key: of the construction; our tables take `jax.random.key(0)`, 1 and 2.
        covariance: `Full()`, or `Diagonal()` for covariances along the axes.
    """
    name = "gaussian_mixture_benchmark"
    check_instance(name, "dim", dim, int, "a whole number")
    check_count(name, dim=dim)
    check_number(name, epsilon=epsilon)
    check_positive(name, epsilon=epsilon)
    if not math.isfinite(epsilon):
        raise ValueError(f"{name}: `epsilon` must be finite; got {epsilon}.")
    check_instance(name, "key", key, jax.Array, "a key of jax.random (jax.random.key(0))")
    check_family(name, covariance)
    dtype = jnp.result_type(float)
    key = jax.random.fold_in(jax.random.fold_in(key, dim), round(1000 * epsilon))
    keys = jax.random.split(key, 4)
    ways = jax.random.normal(keys[0], (_COMPONENTS, dim), dtype)
    radius = 5 * (dim / 2) ** 0.5
    mu = radius * ways / jnp.linalg.norm(ways, axis=1, keepdims=True)
    spectrum = max(epsilon, 1.0) * jnp.exp(jnp.linspace(jnp.log(0.1), 0.0, dim, dtype=dtype))
    shrunk = spectrum / (spectrum + epsilon)
    turns = jax.random.split(keys[1], _COMPONENTS)
    if isinstance(covariance, Full):
        turn = jax.random.orthogonal(keys[1], dim, (_COMPONENTS,), dtype)
        matrices = matmul(turn * shrunk, turn.mT)
        shape = covariance.from_dense(matrices)
        centres = mu - jax.vmap(matmul)(matrices, mu)
    else:
        diagonals = jax.vmap(lambda k: jax.random.permutation(k, shrunk))(turns)
        shape = covariance.from_diagonal(diagonals)
        centres = (1 - diagonals) * mu
    bridge = LightBridge(
        log_weights=jnp.full(_COMPONENTS, -jnp.log(_COMPONENTS), dtype),
        centres=centres,
        shape=shape,
        epsilon=jnp.asarray(epsilon, dtype),
        family=covariance,
    )
    inputs = jax.random.normal(keys[2], (_INPUTS, dim), dtype)
    many = jax.random.normal(keys[3], (_DRAWS, dim), dtype)
    variance = eqx.filter_jit(_variance)(bridge, many)
    return GaussianMixtureBenchmark(bridge, inputs, variance, keys[3])


def bures_wasserstein(
    mean: Vector, covariance: Float[Array, "d d"], other: Vector, other_covariance: Array
) -> Scalar:
    """Half the squared distance of Wasserstein between Gaussians of these moments:
    |m - m'|^2 / 2 + tr C / 2 + tr C' / 2 - tr (C^{1/2} C' C^{1/2})^{1/2}."""
    # The eigenvalues of C C' without a root of either.
    factor = jnp.linalg.cholesky(other_covariance)
    values = jnp.linalg.eigvalsh(matmul(factor.T, matmul(covariance, factor)))
    traces = 0.5 * (jnp.trace(covariance) + jnp.trace(other_covariance))
    away = mean - other
    return 0.5 * jnp.sum(away * away) + traces - jnp.sum(jnp.sqrt(jnp.maximum(values, 0)))


def _batch(x: Float[Array, "n d"]) -> int:
    """Points at once, so that n x k x d arrays stay in the cache."""
    return max(1, min(1000, 40_000 // x.shape[1]))


def _images(bridge: LightBridge, key: Array, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """A draw of y for each x."""
    keys = jax.random.split(key, x.shape[0])

    def draw(pair: tuple[Array, Vector]) -> Vector:
        return bridge.conditional(pair[1]).sample(pair[0])

    return jax.lax.map(draw, (keys, x), batch_size=_batch(x))


def _variance(bridge: LightBridge, x: Float[Array, "n d"]) -> Scalar:
    """E tr C(x) + tr Cov m(x), without a d x d matrix for each x."""
    traces = bridge.family.trace(bridge.shape, jnp.eye(x.shape[1], dtype=x.dtype))

    def parts(x: Vector) -> tuple[Vector, Scalar]:
        found = bridge.conditional(x)
        weights, mean = jnp.exp(found.log_weights), found.mean
        away = found.means - mean
        spread = jnp.sum(weights * jnp.sum(away * away, axis=1))
        return mean, bridge.epsilon * jnp.sum(weights * traces) + spread

    means, spreads = jax.lax.map(parts, x, batch_size=_batch(x))
    return jnp.mean(spreads) + jnp.sum(jnp.var(means, axis=0))


def _moments(bridge: LightBridge, x: Float[Array, "n d"]) -> tuple[Vector, Float[Array, "d d"]]:
    """Mean and covariance of y, given draws of x."""
    dense = bridge.epsilon * bridge.family.dense(bridge.shape)

    def parts(x: Vector) -> tuple[Array, Array]:
        found = bridge.conditional(x)
        return jnp.exp(found.log_weights), found.means

    def some(x: Float[Array, "b d"]) -> tuple[Array, Array, Array]:
        weights, means = jax.vmap(parts)(x)
        scaled = jnp.sqrt(weights)[..., None] * means
        rows = scaled.reshape(-1, x.shape[1])
        first = jnp.sum(weights[..., None] * means, axis=(0, 1))
        return jnp.sum(weights, axis=0), first, matmul(rows.T, rows)

    size = _batch(x)
    count = x.shape[0] // size
    weights, first, second = jax.lax.map(some, x[: count * size].reshape(count, size, -1))
    total = count * size
    mean = jnp.sum(first, axis=0) / total
    within = jnp.tensordot(jnp.sum(weights, axis=0) / total, dense, 1, precision="highest")
    return mean, within + jnp.sum(second, axis=0) / total - mean[:, None] * mean
