"""The Sinkhorn divergence against NumPy, its limits, and differences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transport_plans import sinkhorn

import jaxsolve as js


def drawn(n=8, m=8, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 2)), 0.5 * rng.normal(size=(m, 2)) + 1
    a, b = rng.uniform(0.2, 1, size=n), rng.uniform(0.2, 1, size=m)
    return x, y, a / a.sum(), b / b.sum()


def found(x, y, *weights, tau: Any = None, **options):
    """Of NumPy arrays."""
    options = {"tolerance": 1e-12} | options
    return js.sinkhorn_divergence(jnp.asarray(x), jnp.asarray(y), *weights, tau=tau, **options)


def optimum(x, y, a, b, epsilon, tau=None):
    """The primal objective at the plan that NumPy finds."""

    def kl(p, q):
        return np.sum(p * np.log(p / q) - p + q)

    costs = ((x[:, None] - y) ** 2).sum(-1)
    plan, _, _ = sinkhorn(costs, a, b, epsilon, tau)
    value = np.sum(plan * costs) + epsilon * kl(plan, a[:, None] * b)
    return value if tau is None else value + tau * (kl(plan.sum(1), a) + kl(plan.sum(0), b))


def divergence(x, y, a, b, epsilon, tau=None):
    own = optimum(x, x, a, a, epsilon, tau) + optimum(y, y, b, b, epsilon, tau)
    between = optimum(x, y, a, b, epsilon, tau)
    return between - own / 2 + epsilon / 2 * (a.sum() - b.sum()) ** 2


def test_value_is_that_of_numpy_and_zero_at_equal_measures(x64):
    x, y, a, b = drawn()
    value = found(x, y, a, b, epsilon=0.3)
    np.testing.assert_allclose(value, divergence(x, y, a, b, 0.3), rtol=1e-9)
    for epsilon in (0.1, 10.0):
        assert abs(found(x, x, a, a, epsilon=epsilon)) < 1e-14
    order = np.random.default_rng(1).permutation(a.size)
    same = found(x, x[order], a, a[order], epsilon=0.1)
    assert abs(same) < 1e-12


@pytest.mark.slow
def test_unbalanced_value_has_the_term_of_the_masses(x64):
    x, y, a, b = drawn(7, 5)
    b = 1.4 * b
    value = found(x, y, a, b, epsilon=0.3, tau=0.7)
    np.testing.assert_allclose(value, divergence(x, y, a, b, 0.3, 0.7), rtol=1e-9)
    order = np.random.default_rng(1).permutation(a.size)
    same = found(x, x[order], a, a[order], epsilon=0.3, tau=0.7)
    assert abs(same) < 1e-12
    # Another mass at the same points: above 0, which without the term it would not be.
    assert found(x, x, a, 2 * a, epsilon=5.0, tau=0.7) > 0.01


@pytest.mark.slow
def test_it_is_positive_and_goes_to_the_distances_of_means_and_samples(x64):
    distance = lambda x, y: jnp.sqrt(jnp.sum((x - y) ** 2) + 1e-30)
    between = lambda x, y: np.sqrt(((x[:, None] - y) ** 2).sum(-1))
    value = jax.jit(lambda *d: js.sinkhorn_divergence(*d[:4], epsilon=d[4], tolerance=1e-13))
    x, y, a, b = drawn(8, 8)
    for seed in range(5):
        x, y, a, b = drawn(8, 8, seed)
        values = [float(value(x, y, a, b, e)) for e in (0.1, 1.0, 1e6)]
        assert min(values) > 0
        np.testing.assert_allclose(values[-1], np.sum((a @ x - b @ y) ** 2), rtol=1e-4)
    limit = found(x, y, a, b, epsilon=1e6, cost_fn=distance, tolerance=1e-13)
    energy = a @ between(x, y) @ b - 0.5 * a @ between(x, x) @ a - 0.5 * b @ between(y, y) @ b
    np.testing.assert_allclose(limit, energy, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [None, 0.7])
def test_derivatives_are_differences(x64, tau):
    x, y, a, b = map(jnp.asarray, drawn(6, 4))

    def value(x, a):
        # Without tau the total is held: only differences of weights are free.
        return js.sinkhorn_divergence(x, y, a / a.sum(), b, epsilon=0.3, tau=tau, tolerance=1e-13)

    fn, gradient = jax.jit(value), jax.jit(jax.grad(value, (0, 1)))
    hessian = jax.jit(jax.hessian(value))(x, a)
    rng = np.random.default_rng(0)
    for _ in range(2):
        dx, da = jnp.asarray(rng.normal(size=x.shape)), jnp.asarray(rng.normal(size=a.shape))
        step = 1e-5
        up, down = (x + step * dx, a + 0.1 * step * da), (x - step * dx, a - 0.1 * step * da)
        slope = jnp.sum(gradient(x, a)[0] * dx) + 0.1 * jnp.sum(gradient(x, a)[1] * da)
        np.testing.assert_allclose(slope, (fn(*up) - fn(*down)) / (2 * step), atol=1e-8)
        up, down = (x + step * dx, a), (x - step * dx, a)
        change = (gradient(*up)[0] - gradient(*down)[0]) / (2 * step)
        np.testing.assert_allclose(jnp.einsum("ijkl,kl->ij", hessian, dx), change, atol=1e-6)


def test_a_solve_that_fails_is_nan(x64):
    x, y, a, b = map(jnp.asarray, drawn())
    value = lambda x: js.sinkhorn_divergence(x, y, -a, b, epsilon=0.3, tolerance=1e-12)
    assert jnp.isnan(value(x))
    with pytest.raises(TypeError, match="`tau`"):
        found(x, y, a, b, epsilon=0.3, tau=(0.1, None))


@pytest.mark.slow
def test_the_gradient_of_a_failed_lane_is_nan(x64):
    x, y, a, b = map(jnp.asarray, drawn())

    def value(a, x):
        return js.sinkhorn_divergence(x, y, a, b, epsilon=0.3, tolerance=1e-12)

    gradients = jax.vmap(jax.grad(value, 1), (0, None))(jnp.stack([a, -a]), x)
    assert jnp.all(jnp.isfinite(gradients[0])) and jnp.all(jnp.isnan(gradients[1]))
