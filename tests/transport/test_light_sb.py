"""Fits of light bridges: closed forms, recovery of a known truth, derivatives against refitting."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import jaxsolve as js


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def samples(seed=0, n=60, m=50, dim=2):
    rng = np.random.default_rng(seed)
    x0 = rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim)) + 0.5
    groups = np.where(rng.uniform(size=(m, 1)) < 0.4, -2.0, 2.0)
    return jnp.asarray(x0), jnp.asarray(groups + 0.7 * rng.normal(size=(m, dim)))


def test_one_full_component_is_the_plan_between_gaussians():
    """Entropic transport of Gaussians in closed form (Janati et al. 2020; Mallasto et al. 2022):
    the cross-covariance A^{1/2} (A^{1/2} B A^{1/2} + eps^2 I / 4)^{1/2} A^{-1/2} - eps I / 2."""
    x0, x1 = samples(dim=3)
    epsilon = 0.3
    found = js.solve(js.SchrodingerBridge(x0, x1, epsilon=epsilon), js.LightSB(1, js.Full()))
    A, B = (np.cov(np.asarray(x).T, bias=True) for x in (x0, x1))
    root = scipy.linalg.sqrtm(A)
    inner = scipy.linalg.sqrtm(root @ B @ root + epsilon**2 / 4 * np.eye(3))
    cross = root @ inner @ np.linalg.inv(root) - epsilon / 2 * np.eye(3)
    slope = cross.T @ np.linalg.inv(A)
    np.testing.assert_allclose(found.value.family.dense(found.value.shape)[0], slope, atol=1e-7)
    ends = slope @ np.asarray(x0).mean(axis=0) + found.value.centres[0]
    np.testing.assert_allclose(ends, np.asarray(x1).mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(found.value.log_weights, 0.0, atol=1e-12)


@pytest.mark.parametrize(
    "covariance", [js.Diagonal(), pytest.param(js.Full(), marks=pytest.mark.slow)]
)
def test_derivatives_are_those_of_refitting(covariance):
    """In epsilon, and in the points through a map upstream."""
    x0, x1 = samples()
    start = js.solve(js.SchrodingerBridge(x0, x1, epsilon=0.6), js.LightSB(2, covariance)).value

    @jax.jit
    def scored(epsilon, bend):
        upstream = x0 + bend * jnp.sin(x0[:, ::-1]), x1 * (1 + bend)
        problem = js.SchrodingerBridge(*upstream, epsilon=epsilon)
        solver = js.LightSB(2, covariance)
        bridge = js.solve(problem, solver, start, tolerance=1e-12, throw=False).value
        point = jnp.array([0.3, -0.8])
        return jnp.sum(bridge.drift(point, 0.4)) + bridge.log_weights[0] + jnp.sum(bridge.shape)

    found = jax.jit(jax.grad(scored, (0, 1)))(0.6, 0.1)
    h = 1e-4
    by_epsilon = (scored(0.6 + h, 0.1) - scored(0.6 - h, 0.1)) / (2 * h)
    by_bend = (scored(0.6, 0.1 + h) - scored(0.6, 0.1 - h)) / (2 * h)
    np.testing.assert_allclose(found, (by_epsilon, by_bend), rtol=1e-5)


def test_a_detached_fit_is_constant_in_all_of_its_data():
    """The means that the bridge is put back between are data, too."""
    x0, x1 = samples()

    @jax.jit
    def end(scale, epsilon):
        problem = js.SchrodingerBridge(scale * x0, x1, epsilon=epsilon)
        found = js.solve(problem, js.LightSB(1), adjoint=js.Detached(), throw=False)
        return found.value.conditional(x0[0]).mean[0] + found.value.drift(x0[0], 0.5)[0]

    assert jax.grad(end, (0, 1))(1.0, 0.6) == (0.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "seed"), [(1.0, 0), (10.0, 0)])
def test_the_truth_is_recovered(epsilon, seed):
    """KL below 1e-3, and as near to the truth as the fit that starts there."""
    benchmark = js.gaussian_mixture_benchmark(
        2, epsilon, jax.random.key(seed), covariance=js.Diagonal()
    )
    x0 = benchmark.sample_source(jax.random.key(1), 100_000)
    x1 = benchmark.sample_target(jax.random.key(2), 100_000)
    problem = js.SchrodingerBridge(x0, x1, epsilon=epsilon)
    blind, led = (js.solve(problem, js.LightSB(5), init) for init in (None, benchmark.bridge))
    divergences = [float(benchmark.kl(s.value, 20_000)) for s in (blind, led)]
    assert divergences[0] < 1e-3
    assert divergences[0] <= 1.5 * divergences[1]
    scores = [float(benchmark.conditional_uvp(s.value)) for s in (blind, led)]
    assert scores[0] <= 2 * scores[1]


def test_a_bridge_in_other_coordinates():
    """Far from the origin, and warm: what the fit's own coordinates do is undone."""
    x0, x1 = samples()
    near = js.solve(js.SchrodingerBridge(x0, x1, epsilon=0.5), js.LightSB(2))
    far = js.solve(js.SchrodingerBridge(x0 + 7, x1 - 40, epsilon=0.5), js.LightSB(2))
    point = jnp.array([0.3, -0.8])
    expected = near.value.conditional(point)
    found = far.value.conditional(point + 7)
    np.testing.assert_allclose(found.mean, expected.mean - 40, atol=1e-6)
    np.testing.assert_allclose(found.covariance, expected.covariance, atol=1e-6)
    again = js.solve(js.SchrodingerBridge(x0, x1, epsilon=0.5), js.LightSB(2), near.value)
    assert int(again.stats.steps) == 0
    np.testing.assert_allclose(again.value.centres, near.value.centres, atol=1e-12)


@pytest.mark.slow
def test_solvers_of_other_libraries_and_the_default():
    x0, x1 = samples()
    problem = js.SchrodingerBridge(x0, x1, epsilon=0.5)
    start = js.solve(problem, js.LightSB(2), max_steps=3, throw=False).value
    ours = js.solve(problem, js.LightSB(2), start)
    theirs = js.solve(problem, optax.lbfgs(), start)
    np.testing.assert_allclose(theirs.value.centres, ours.value.centres, atol=1e-6)
    newton = js.solve(problem, js.LightSB(2, minimiser=js.TrustRegionNewton()), start)
    np.testing.assert_allclose(newton.value.centres, ours.value.centres, atol=1e-6)
    default = js.solve(problem, throw=False)
    assert default.value.centres.shape == (10, 2)


@pytest.mark.slow
def test_single_precision_and_lanes():
    x0, x1 = (x.astype(jnp.float32) for x in samples())
    epsilons = jnp.array([0.3, 1.0, 3.0], jnp.float32)

    def fit(epsilon):
        found = js.solve(js.SchrodingerBridge(x0, x1, epsilon=epsilon), js.LightSB(2))
        return found.value.drift(x0[0], 0.5), found.success

    drifts, success = jax.vmap(fit)(epsilons)
    assert drifts.dtype == jnp.float32 and bool(success.all())
    for k in range(3):
        np.testing.assert_allclose(drifts[k], fit(epsilons[k])[0], atol=2e-3)


def test_input_that_does_not_fit_is_named():
    x0, x1 = samples()
    for problem, message in (
        (js.SchrodingerBridge(x0, x1[:, :1], epsilon=1.0), "x1"),
        (js.SchrodingerBridge(x0[0], x1, epsilon=1.0), "rows of a matrix"),
    ):
        with pytest.raises(ValueError, match=message):
            js.solve(problem, js.LightSB(2))
    with pytest.raises(ValueError, match="positive"):
        js.SchrodingerBridge(x0, x1, epsilon=0.0)
    with pytest.raises(TypeError, match="`epsilon` must be a number"):
        js.solve(js.SchrodingerBridge(x0, x1, epsilon=jnp.ones(2)))
    with pytest.raises(TypeError, match="floating"):
        js.solve(js.SchrodingerBridge(x0.astype(int), x1, epsilon=1.0))
    good = js.SchrodingerBridge(x0, x1, epsilon=1.0)
    start = js.solve(good, js.LightSB(2)).value
    with pytest.raises(ValueError, match="3 components"):
        js.solve(good, js.LightSB(3), start)
    with pytest.raises(TypeError, match="covariances"):
        js.solve(good, js.LightSB(2, js.Full()), start)
    with pytest.raises(TypeError, match="LightBridge"):
        js.solve(good, js.LightSB(2), x0)
    with pytest.raises(ValueError, match="components"):
        js.solve(good, js.LightSB(0))
    with pytest.raises(TypeError, match="LightProblem"):
        js.solve(js.Minimise(lambda y, _: jnp.sum(y)), js.LightSB(2), x0)


@pytest.mark.parametrize("tau", [None, 1.0])
def test_a_sample_of_nan_has_a_derivative_of_nan_alone(tau):
    """It was 0: what stands in for NaN has no derivative."""
    x0, x1 = (x[:30] for x in samples())

    def mean(scale):
        problem = js.SchrodingerBridge(scale * x0, x1, epsilon=0.5, tau=tau)
        value = js.solve(problem, js.LightSB(1), throw=False).value
        bridge = value if tau is None else value.bridge
        return bridge.conditional(x0[0]).mean[0]

    slopes = jax.jit(jax.vmap(jax.grad(mean)))(jnp.array([1.0, jnp.nan, 1.2]))
    assert np.isnan(slopes[1]) and np.isfinite(slopes[0]) and np.isfinite(slopes[2])
