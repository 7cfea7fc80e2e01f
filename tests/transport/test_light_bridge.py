"""Light bridges and their benchmark, against formulas in NumPy, quadrature and simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.special import logsumexp

from jaxsolve.transport import Diagonal, Full, LightBridge, gaussian_mixture_benchmark
from jaxsolve.transport.gaussian_mixture import bures_wasserstein

FAMILIES = [Diagonal(), Full()]


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def made(family, dim=3, components=4, epsilon=0.4, seed=0):
    rng = np.random.default_rng(seed)
    shape = 0.3 * rng.normal(size=(components, family.parameters(dim)))
    return LightBridge(
        log_weights=jnp.asarray(rng.normal(size=components)),
        centres=jnp.asarray(rng.normal(size=(components, dim))),
        shape=jnp.asarray(shape),
        epsilon=jnp.asarray(epsilon),
        family=family,
    )


def arrays(bridge):
    return (
        np.asarray(bridge.log_weights),
        np.asarray(bridge.centres),
        np.asarray(bridge.family.dense(bridge.shape)),
        float(bridge.epsilon),
    )


def paper_drift(bridge, x, t, h=1e-5):
    """-x / (1 - t) + eps grad log of the convolved potential, by central differences (Korotin et
    al. 2024, eq. 12): with 1 - t in the denominators, and a derivative."""
    log_a, r, S, eps = arrays(bridge)

    def log_sum(x):
        terms = []
        for a, centre, matrix in zip(log_a, r, S, strict=True):
            inverse = np.linalg.inv(matrix)
            A = t / (eps * (1 - t)) * np.eye(x.size) + inverse / eps
            b = x / (eps * (1 - t)) + inverse @ centre / eps
            terms.append(
                a
                - 0.5 * np.linalg.slogdet(matrix)[1]
                - 0.5 * np.linalg.slogdet(A)[1]
                - 0.5 * centre @ inverse @ centre / eps
                + 0.5 * b @ np.linalg.solve(A, b)
            )
        return logsumexp(terms)

    slopes = [(log_sum(x + h * e) - log_sum(x - h * e)) / (2 * h) for e in np.eye(x.size)]
    return -x / (1 - t) + eps * np.array(slopes)


@pytest.mark.parametrize("family", FAMILIES)
def test_drift_is_the_papers(family):
    bridge = made(family)
    for t in (0.05, 0.5, 0.97):
        x = np.random.default_rng(1).normal(size=3)
        found = bridge.drift(jnp.asarray(x), t)
        np.testing.assert_allclose(found, paper_drift(bridge, x, t), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_drift_at_both_ends(family):
    """At 0 it points to the conditional mean; at 1 it is eps grad log (v(y) exp(|y|^2 / 2 eps))."""
    bridge = made(family)
    x = jnp.array([0.4, -1.0, 0.3])
    np.testing.assert_allclose(bridge.drift(x, 0.0), bridge.conditional(x).mean - x, rtol=1e-12)
    score = bridge.epsilon * jax.grad(bridge.log_potential)(x)
    np.testing.assert_allclose(bridge.drift(x, 1.0), x + score, rtol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_plan_by_quadrature(family):
    """exp(x y / eps) v(y), normalised by a sum over a grid: the normaliser, density and moments."""
    bridge = made(family, dim=1, epsilon=0.3)
    x, y = 0.7, np.linspace(-12.0, 12.0, 40_001)
    log_a, r, S, eps = arrays(bridge)
    inner = log_a - 0.5 * np.log(2 * np.pi * eps * S[:, 0, 0])
    parts = inner - (y[:, None] - r[:, 0]) ** 2 / (2 * eps * S[:, 0, 0])
    weights = np.exp(x * y / eps + logsumexp(parts, axis=1)) * (y[1] - y[0])
    total = weights.sum()
    point = jnp.array([x])
    np.testing.assert_allclose(bridge.log_normaliser(point), np.log(total), rtol=1e-10)
    plan = bridge.conditional(point)
    mean = (weights @ y) / total
    np.testing.assert_allclose(plan.mean, [mean], rtol=1e-9)
    np.testing.assert_allclose(plan.covariance, [[weights @ (y - mean) ** 2 / total]], rtol=1e-9)
    density = np.log(weights[18_000] / (y[1] - y[0]) / total)
    end = jnp.asarray(y[18_000:18_001])
    np.testing.assert_allclose(plan.log_prob(end), density, rtol=1e-9)
    np.testing.assert_allclose(bridge.log_likelihood(point, end), density, rtol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_of_the_plan_have_its_moments(family):
    plan = made(family).conditional(jnp.array([0.4, -1.0, 0.3]))
    drawn = np.asarray(plan.sample(jax.random.key(0), (100, 1000)))
    assert drawn.shape == (100, 1000, 3)
    drawn = drawn.reshape(-1, 3)
    # Five standard errors.
    np.testing.assert_allclose(drawn.mean(axis=0), plan.mean, atol=5 * drawn.std() / 300)
    np.testing.assert_allclose(np.cov(drawn.T), plan.covariance, atol=0.03)


@pytest.mark.parametrize(
    "method", ["sample_path", pytest.param("simulate_path", marks=pytest.mark.slow)]
)
def test_paths_have_the_covariance_of_the_diffusion(method):
    """E x_t x_s' of a bridge with one component, which is a Gaussian process: with y = S x + r + e,
    x_t = (1 - t) x + t y + a Brownian bridge of covariance eps min(s, t) (1 - max(s, t))."""
    bridge = made(Diagonal(), dim=2, components=1)
    times, x = jnp.array([0.25, 0.75, 1.0]), jnp.array([0.5, -1.0])
    more = {"steps": 64} if method == "simulate_path" else {}
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = jax.jit(jax.vmap(lambda key: getattr(bridge, method)(key, x, times, **more)))
    paths = np.asarray(draw(keys))
    s = np.exp(np.asarray(bridge.shape[0]))
    eps, t = float(bridge.epsilon), np.asarray(times)
    end = s * np.asarray(x) + np.asarray(bridge.centres[0])
    mean = (1 - t)[:, None] * np.asarray(x) + t[:, None] * end
    np.testing.assert_allclose(paths.mean(axis=0), mean, atol=0.03)
    for i in range(2):
        tied = np.minimum.outer(t, t) * (1 - np.maximum.outer(t, t))
        expected = eps * (np.outer(t, t) * s[i] + tied)
        np.testing.assert_allclose(np.cov(paths[:, :, i].T), expected, atol=0.02)


def test_bures_wasserstein_is_scipys():
    rng = np.random.default_rng(0)
    a, b = (m @ m.T + np.eye(4) for m in rng.normal(size=(2, 4, 4)))
    m, n = rng.normal(size=(2, 4))
    root = scipy.linalg.sqrtm(a)
    cross = np.trace(scipy.linalg.sqrtm(root @ b @ root)).real
    expected = 0.5 * np.sum((m - n) ** 2) + 0.5 * np.trace(a + b) - cross
    np.testing.assert_allclose(bures_wasserstein(*map(jnp.asarray, (m, a, n, b))), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_truth_scores_zero(family):
    benchmark = gaussian_mixture_benchmark(3, 1.0, jax.random.key(0), covariance=family)
    assert float(benchmark.kl(benchmark.bridge, 1000)) == 0
    assert float(benchmark.path_kl(benchmark.bridge, 1000)) == 0
    assert abs(float(benchmark.conditional_uvp(benchmark.bridge))) < 1e-12
    assert abs(float(benchmark.uvp(benchmark.bridge, 1000))) < 1e-12


@pytest.mark.slow
def test_scores_of_another_bridge():
    """The constant map scores 100 (the law of total variance), and the divergence of plans is the
    divergence of diffusions (Girsanov), computed from drifts alone."""
    benchmark = gaussian_mixture_benchmark(2, 1.0, jax.random.key(1))
    truth = benchmark.bridge
    x, y = benchmark.sample_pairs(jax.random.key(2), 20_000)
    np.testing.assert_allclose(jnp.sum(jnp.var(y, axis=0)), benchmark.variance, rtol=0.03)
    constant = LightBridge(
        jnp.zeros(1), jnp.mean(y, axis=0)[None], jnp.full((1, 2), -25.0), truth.epsilon, Diagonal()
    )
    assert abs(float(benchmark.conditional_uvp(constant)) - 100) < 4
    other = LightBridge(
        truth.log_weights + 0.5 * jnp.arange(5), 1.1 * truth.centres, 0.9 * truth.shape,
        truth.epsilon, truth.family,
    )  # fmt: skip
    static, dynamic = benchmark.kl(other, 20_000), benchmark.path_kl(other, 20_000)
    assert 0.01 < float(static)
    np.testing.assert_allclose(static, dynamic, rtol=0.06)
    assert float(benchmark.uvp(other, 20_000)) > 0.1
    moved = jax.vmap(lambda key, x: other.conditional(x).sample(key))(
        jax.random.split(jax.random.key(3), 20_000), x
    )
    expected = bures_wasserstein(*moments(moved), *moments(y)) / (0.5 * benchmark.variance)
    np.testing.assert_allclose(benchmark.uvp(other, 20_000), 100 * expected, rtol=0.15)


def moments(y):
    return jnp.mean(y, axis=0), jnp.cov(y.T)


def test_the_construction_is_fixed():
    """Numbers of this construction, so that a table stays comparable."""
    benchmark = gaussian_mixture_benchmark(2, 0.1, jax.random.key(0))
    np.testing.assert_allclose(benchmark.bridge.centres[0], FIXED, rtol=1e-10)
    with pytest.raises(ValueError, match="epsilon"):
        gaussian_mixture_benchmark(2, 0.0, jax.random.key(0))
    with pytest.raises(ValueError, match="dim"):
        gaussian_mixture_benchmark(0, 1.0, jax.random.key(0))


FIXED = [0.5958186632964275, 2.2186518024460966]
