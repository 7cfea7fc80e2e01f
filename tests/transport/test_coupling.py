"""Couplings of batches, and bridges matched to them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from transport_plans import sinkhorn

import jaxsolve as js

EPSILON = 0.5


def batch(size, dim=2):
    rng = np.random.default_rng(3)
    x0 = rng.normal(size=(size, dim))
    return x0, 0.7 * rng.normal(size=(size, dim)) + np.where(
        rng.uniform(size=(size, 1)) < 0.3, 1, 0
    )


def test_partners_are_drawn_in_proportion_to_the_plan(x64):
    """20 000 draws in a compiled scan against the plan of the whole cost |x - y|^2 / 2, by NumPy:
    the greatest of 64 frequencies' errors in units of their own deviations. No x0 is moved."""
    count = 20_000
    x0, x1 = batch(8)
    coupling = js.MinibatchTransport(EPSILON, tolerance=1e-8)

    @jax.jit
    def drawn(x0, x1):
        def step(total, key):
            kept, partners = coupling(key, x0, x1)
            chosen = jnp.all(partners[:, None] == x1, axis=2)
            return total + chosen, jnp.max(jnp.abs(kept - x0))

        zero = jnp.zeros((8, 8), int)
        return jax.lax.scan(step, zero, jax.random.split(jax.random.key(0), count))

    total, moved = drawn(jnp.asarray(x0), jnp.asarray(x1))
    assert float(moved.max()) == 0
    assert (total.sum(axis=1) == count).all()
    even = np.full(8, 1 / 8)
    costs = 0.5 * ((x0[:, None] - x1) ** 2).sum(-1)
    shares = 8 * sinkhorn(costs, even, even, EPSILON)[0]
    deviations = np.sqrt(np.maximum(shares * (1 - shares), 1e-6) / count)
    assert np.abs((np.asarray(total) / count - shares) / deviations).max() < 4


def test_a_batch_without_a_plan_stays_as_it_was(x64):
    x0, x1 = (jnp.asarray(x) for x in batch(8))
    broken = x0.at[2, 0].set(jnp.nan)
    kept, partners = js.MinibatchTransport(EPSILON)(jax.random.key(0), broken, x1)
    np.testing.assert_array_equal(kept, broken)
    np.testing.assert_array_equal(partners, x1)


@pytest.mark.fast
@pytest.mark.parametrize("settings", [{"epsilon": 0.0}, {"epsilon": 0.5, "tolerance": -1.0}])
def test_settings_are_positive(settings):
    with pytest.raises(ValueError, match="MinibatchTransport"):
        js.MinibatchTransport(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.05, EPSILON], ids=["near the cheapest", "of the bridge"])
def test_bridge_between_gaussians_whatever_the_pairs(epsilon, x64):
    """One component between Gaussians: S with v1 = S^2 v0 + eps S in each axis. Six fits, whose
    errors are noise (deviations of 2 % alone), in their mean."""
    rng = np.random.default_rng(0)
    x0 = rng.normal(size=(5000, 2)) * [1.0, 0.5] + 1
    x1 = rng.normal(size=(5000, 2)) * [0.6, 2.0] - 2
    v0, v1 = x0.var(axis=0), x1.var(axis=0)
    exact = 2 * v1 / (EPSILON + np.sqrt(EPSILON**2 + 4 * v0 * v1))
    solver = js.LightSBM(
        1, coupling=js.MinibatchTransport(epsilon), batch_size=128, steps=1000,
        optimiser=optax.adam(optax.cosine_decay_schedule(3e-2, 1000)),
    )  # fmt: skip
    problem = js.SchrodingerBridge(jnp.asarray(x0), jnp.asarray(x1), epsilon=EPSILON)
    keys = jax.random.split(jax.random.key(0), 6)
    found = jax.vmap(lambda key: js.solve(problem, solver, key=key, throw=False))(keys)
    assert (found.result == js.RESULTS.approximate).all()
    np.testing.assert_allclose(np.exp(found.value.shape[:, 0]).mean(axis=0), exact, rtol=0.03)
    ends = jax.vmap(lambda b: b.conditional(jnp.asarray(x0.mean(axis=0))).mean)(found.value)
    np.testing.assert_allclose(ends.mean(axis=0), x1.mean(axis=0), atol=0.05)
