"""Layers: values, derivatives, batches, training, saving."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsolve as js
from jaxsolve.convex import QuadraticProgram
from jaxsolve.smooth.problems import Minimise


def simplex(s):
    one = jnp.ones_like(s)
    return QuadraticProgram(jnp.diag(one), -s, A=one[None], b=one[:1], lower=0.0)


def project(s):
    """The nearest point of the simplex by sorting, in NumPy."""
    s = np.asarray(s, np.float64)
    ordered = np.sort(s)[::-1]
    excess = np.cumsum(ordered) - 1
    count = np.arange(1, s.size + 1)
    last = count[ordered - excess / count > 0][-1]
    return np.maximum(s - excess[last - 1] / last, 0)


def test_qp_layer_is_the_projection_and_its_derivative(x64):
    s = jnp.array([1.0, 0.8, 0.1, -1.0])
    layer = js.QPLayer()
    n = s.size

    def fn(s):
        return layer(jnp.eye(n), -s, A=jnp.ones((1, n)), b=jnp.ones(1), lower=0.0)

    np.testing.assert_allclose(fn(s), project(s), atol=1e-8)
    # On the support: the centring matrix; zero elsewhere.
    support = (project(s) > 0).astype(float)
    expected = np.diag(support) - np.outer(support, support) / support.sum()
    np.testing.assert_allclose(jax.jit(jax.jacrev(fn))(s), expected, atol=1e-8)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(fn))(s), expected, atol=1e-8)


def test_solver_layer_with_a_start_and_weights_of_its_own(x64):
    class Energy(eqx.Module):
        weight: jax.Array

        def __call__(self, x):
            energy = lambda y, x: jnp.sum((y - x) ** 2 / 2 + self.weight * y**2 / 2)
            return Minimise(energy, x), jnp.zeros_like(x)

    layer = js.SolverLayer(Energy(jnp.array(3.0)))
    x = jnp.array([1.0, -2.0])
    np.testing.assert_allclose(layer(x), x / 4, atol=1e-7)
    gradient = eqx.filter_grad(lambda layer: jnp.sum(layer(x)))(layer)
    # y = x / (1 + w): dy/dw = -x / (1 + w)^2.
    np.testing.assert_allclose(gradient.problem_fn.weight, -jnp.sum(x) / 16, atol=1e-7)
    np.testing.assert_allclose(jax.jacrev(layer)(x), np.eye(2) / 4, atol=1e-7)


def test_solver_layer_refuses_other_tuples():
    layer = js.SolverLayer(lambda x: (Minimise(lambda y, _: y**2), x, x))
    with pytest.raises(TypeError, match="problem_fn"):
        layer(jnp.array(1.0))
    with pytest.raises(TypeError, match="SolverLayer: `problem_fn` must be a function .* got 1"):
        js.SolverLayer(1)(jnp.array(1.0))  # pyright: ignore[reportArgumentType]


def test_a_failed_lane_is_nan_in_the_derivative_alone(x64):
    # The second lane's bounds cross.
    def fn(q, upper):
        return js.QPLayer()(jnp.eye(2), q, lower=0.0, upper=upper)

    q = jnp.array([[-0.5, -0.25], [-0.5, -0.25]])
    upper = jnp.array([1.0, -1.0])
    slope = jax.jit(jax.vmap(jax.jacrev(fn)))(q, upper)
    np.testing.assert_allclose(slope[0], -np.eye(2), atol=1e-8)
    assert bool(jnp.all(jnp.isnan(slope[1])))


class Gate(eqx.Module):
    score: eqx.nn.MLP
    layer: js.QPLayer

    def __init__(self, key):
        self.score = eqx.nn.MLP(2, 3, 8, 1, activation=jnp.tanh, key=key)
        self.layer = js.QPLayer()

    def __call__(self, x):
        s = self.score(x)
        return self.layer(jnp.eye(3), -s, A=jnp.ones((1, 3)), b=jnp.ones(1), lower=0.0)


def test_a_network_is_trained_through_a_qp_layer_and_saved(tmp_path):
    x = jax.random.normal(jax.random.key(0), (32, 2))
    target = jax.nn.one_hot(jnp.argmax(jnp.stack([x[:, 0], x[:, 1], -x.sum(1)], 1), 1), 3)
    model = Gate(jax.random.key(1))
    optimiser = optax.adam(3e-2)
    state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_value_and_grad
    def loss(model):
        return jnp.mean((jax.vmap(model)(x) - target) ** 2)

    @eqx.filter_jit
    def update(model, state):
        value, gradient = loss(model)
        change, state = optimiser.update(gradient, state)
        return eqx.apply_updates(model, change), state, value

    losses = []
    for _ in range(60):
        model, state, value = update(model, state)
        losses.append(float(value))
    assert losses[-1] < 0.3 * losses[0]

    eqx.tree_serialise_leaves(tmp_path / "model.eqx", model)
    loaded = eqx.tree_deserialise_leaves(tmp_path / "model.eqx", Gate(jax.random.key(2)))
    evaluate = eqx.filter_jit(lambda model: jax.vmap(model)(x))
    np.testing.assert_array_equal(evaluate(loaded), evaluate(model))
