"""Unbalanced light bridges: a grid solved in NumPy, the balanced limit, the published toy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

import jaxsolve as js


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def on_a_grid(first, second, epsilon, tau, size=241):
    """Moments of the plan between two Gaussians (mean, deviation), its entropy taken against dx dy:
    (mass, means, covariance)."""
    axes = [np.linspace(m - 7 * s, m + 7 * s, size) for m, s in (first, second)]
    logs = [norm.logpdf(z, *law) for z, law in zip(axes, (first, second), strict=True)]
    steps = [np.log(z[1] - z[0]) for z in axes]
    cost = 0.5 * (axes[0][:, None] - axes[1]) ** 2
    f, g, share = np.zeros(size), np.zeros(size), tau / (tau + epsilon)
    for _ in range(3000):
        f = share * (epsilon * (logs[0] - logsumexp((g - cost) / epsilon + steps[1], axis=1)))
        new = logsumexp((f[:, None] - cost) / epsilon + steps[0], axis=0)
        new = share * (epsilon * (logs[1] - new))
        change, g = np.abs(new - g).max(), new
        if change < 1e-12:
            break
    plan = np.exp((f[:, None] + g - cost) / epsilon + steps[0] + steps[1])
    mass = plan.sum()
    x, y = (np.broadcast_to(z, (size, size)) for z in (axes[0][:, None], axes[1]))
    means = np.array([(plan * z).sum() / mass for z in (x, y)])
    away = (x - means[0], y - means[1])
    covariance = np.array([[(plan * p * q).sum() / mass for p in away] for q in away])
    return mass, means, covariance


@pytest.mark.parametrize("tau", [0.7, pytest.param(20.0, marks=pytest.mark.slow)])
def test_one_component_is_the_plan_between_gaussians(tau):
    """Of which both marginals are Gaussians: K = 1 is exact."""
    first, second, epsilon = (0.5, 1.0), (2.0, 0.6), 0.3
    levels = (np.arange(200_000) + 0.5) / 200_000
    x0, x1 = (jnp.asarray(norm.ppf(levels, *law))[:, None] for law in (first, second))
    problem = js.SchrodingerBridge(x0, x1, epsilon=epsilon, tau=tau)
    found = js.solve(problem, js.LightSB(1)).value
    mass, means, covariance = on_a_grid(first, second, epsilon, tau)
    np.testing.assert_allclose(found.mass, mass, rtol=1e-4)
    u, slope = found.source, jnp.exp(found.bridge.shape[0, 0])
    mean, variance = u.means[0, 0], u.covariance[0, 0]
    np.testing.assert_allclose(mean, means[0], atol=2e-4)
    np.testing.assert_allclose(found.bridge.conditional(u.means[0]).mean[0], means[1], atol=2e-4)
    np.testing.assert_allclose(variance, covariance[0, 0], rtol=1.5e-3)
    np.testing.assert_allclose(slope * variance, covariance[0, 1], rtol=1.5e-3)
    whole = slope**2 * variance + epsilon * slope
    np.testing.assert_allclose(whole, covariance[1, 1], rtol=1.5e-3)


def samples(seed=0, n=60, m=50):
    rng = np.random.default_rng(seed)
    groups = np.where(rng.uniform(size=(m, 1)) < 0.4, -2.0, 2.0)
    x0 = np.where(rng.uniform(size=(n, 1)) < 0.5, -1.0, 1.5) + 0.8 * rng.normal(size=(n, 2))
    return jnp.asarray(x0), jnp.asarray(groups + 0.7 * rng.normal(size=(m, 2)))


@pytest.mark.slow
def test_a_large_tau_is_the_balanced_fit():
    x0, x1 = samples()
    balanced = js.solve(js.SchrodingerBridge(x0, x1, epsilon=0.6), js.LightSB(2)).value
    point = jnp.array([0.3, -0.8])
    gaps = []
    for tau in (1e3, 1e5, 1e7):
        problem = js.SchrodingerBridge(x0, x1, epsilon=0.6, tau=tau)
        found = js.solve(problem, js.LightSB(2), key=jax.random.key(1), tolerance=1e-7).value
        away = found.bridge.conditional(point).mean - balanced.conditional(point).mean
        gaps.append(float(jnp.max(jnp.abs(away))))
        assert abs(float(found.mass) - 1) < 20 / tau
    assert gaps[0] < 5e-2 and gaps[1] < 5e-4 and gaps[2] < 2e-5


@pytest.mark.slow
def test_derivatives_are_those_of_refitting():
    """In epsilon, in tau and in the points."""
    x0, x1 = samples()
    problem = js.SchrodingerBridge(x0, x1, epsilon=0.6, tau=3.0)
    start = js.solve(problem, js.LightSB(2)).value

    @jax.jit
    def scored(epsilon, tau, bend):
        upstream = x0 + bend * jnp.sin(x0[:, ::-1]), x1 * (1 + bend)
        problem = js.SchrodingerBridge(*upstream, epsilon=epsilon, tau=tau)
        found = js.solve(problem, js.LightSB(2), start, tolerance=1e-12, throw=False).value
        point = jnp.array([0.3, -0.8])
        return found.log_density(point, point[::-1]) + jnp.sum(found.bridge.drift(point, 0.4))

    at = (0.6, 3.0, 0.1)
    found = jax.jit(jax.grad(scored, (0, 1, 2)))(*at)
    h = 1e-4
    for k in range(3):
        up, down = ([v + s * h * (i == k) for i, v in enumerate(at)] for s in (1, -1))
        np.testing.assert_allclose(found[k], (scored(*up) - scored(*down)) / (2 * h), rtol=2e-5)


@pytest.mark.slow
def test_the_published_toy():
    """Two groups each, a quarter of x0 to the left but three quarters of x1: with a small tau all
    stay on their side, and the shares of what goes are equal (the geometric mean of 1/4 and 3/4, on
    both sides); with a large one half of the plan crosses."""
    rng = np.random.default_rng(0)

    def groups(counts, height, size=1000):
        """Left and right, of the same points so many times over."""
        own = 0.3 * rng.normal(size=(size, 2)) + np.array([0.0, height])
        sides = [np.tile(own, (n, 1)) + [x, 0.0] for n, x in zip(counts, (-3.0, 1.0), strict=True)]
        return jnp.asarray(np.concatenate(sides))

    x0, x1 = groups((1, 3), 3.0), groups((3, 1), 0.0)
    crossing, lefts, masses = [], [], []
    for tau in (1.0, 1000.0):
        problem = js.SchrodingerBridge(x0, x1, epsilon=0.05, tau=tau)
        found = js.solve(problem, js.LightSB(2), tolerance=1e-6).value
        x, y = found.sample(jax.random.key(0), 20_000)
        crossing.append(float(jnp.mean((x[:, 0] > -1) != (y[:, 0] > -1))))
        lefts.append(float(jnp.mean(x[:, 0] < -1)))
        masses.append(float(found.mass))
    np.testing.assert_allclose(crossing, [0.0, 0.5], atol=0.02)
    np.testing.assert_allclose(lefts, [0.5, 0.25], atol=0.02)
    assert masses[0] < 0.2 and abs(masses[1] - 1) < 0.02


def test_what_does_not_fit_is_named():
    x0, x1 = samples()
    with pytest.raises(ValueError, match="tau"):
        js.SchrodingerBridge(x0, x1, epsilon=1.0, tau=0.0)
    problem = js.SchrodingerBridge(x0, x1, epsilon=1.0, tau=2.0)
    with pytest.raises(TypeError, match="cannot honour `tau`"):
        js.solve(problem, js.MinibatchLightSB(2))
    with pytest.raises(TypeError, match="`tau` must be a number"):
        js.solve(js.SchrodingerBridge(x0, x1, epsilon=1.0, tau=jnp.ones(2)), js.LightSB(2))
    start = js.LightBridge(
        jnp.zeros(2), jnp.zeros((2, 2)), jnp.zeros((2, 2)), jnp.asarray(1.0), js.Diagonal()
    )
    with pytest.raises(TypeError, match="UnbalancedLightBridge"):
        js.solve(problem, js.LightSB(2), start)
    negative = js.SchrodingerBridge(x0, x1, epsilon=1.0, tau=jnp.asarray(-1.0))
    found = js.solve(negative, js.LightSB(1), throw=False)
    assert found.result == js.RESULTS.nonfinite_input
