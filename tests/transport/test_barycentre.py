"""Barycentres against closed forms and differences; what the contract lacks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from barycentres import barycentre
from scipy.optimize import brentq

import jaxsolve as js

X = np.linspace(-7, 7, 300)
MEANS, VARIANCES, WEIGHTS = np.array([-1.5, 1.0]), np.array([0.5, 1.2]), np.array([0.3, 0.7])


def normals(x=X):
    densities = np.exp(-((x - MEANS[:, None]) ** 2) / (2 * VARIANCES[:, None]))
    return densities / densities.sum(axis=1, keepdims=True)


def squares(x, y):
    return ((x[:, None] - y) ** 2).sum(-1)


def test_normal_distributions_have_their_closed_form(x64):
    """Of N(m_k, A_k) with |x - y|^2 it is N(sum w m, B). The plan to N(m, B) of least cost has the
    cross covariance c_k = sqrt(A_k B + (epsilon / 4)^2) - epsilon / 4, and the derivative of its
    cost in B is 1 - A_k / c_k: so sum w A / c = 1. Equal A: B = A + epsilon / 2."""
    costs = squares(X[:, None], X[:, None])
    for epsilon in (0.5, 0.1):
        problem = js.Barycentre(
            jnp.asarray(costs), jnp.asarray(normals()), jnp.asarray(WEIGHTS), epsilon=epsilon
        )
        b = np.asarray(js.solve(problem, tolerance=1e-10).value.barycentre)

        def gap(variance, quarter=epsilon / 4):
            cross = np.sqrt(VARIANCES * variance + quarter**2) - quarter
            return np.sum(WEIGHTS * VARIANCES / cross) - 1

        expected: Any = brentq(gap, 0.1, 5)
        mean = b @ X
        np.testing.assert_allclose(mean, WEIGHTS @ MEANS, atol=1e-5)
        np.testing.assert_allclose(b @ (X - mean) ** 2, expected, rtol=1e-5)


@pytest.mark.slow
def test_derivatives_are_differences(x64):
    rng = np.random.default_rng(0)
    measures = jnp.asarray(rng.uniform(0.2, 1, size=(3, 5)))
    args = (jnp.asarray(rng.uniform(size=(5, 4))), measures, jnp.array([0.2, 0.5, 0.6]), 0.2)

    def value(costs, measures, weights, epsilon):
        measures = measures / measures.sum(axis=1, keepdims=True)
        problem = js.Barycentre(costs, measures, weights, epsilon=epsilon)
        found = js.solve(problem, tolerance=1e-13, throw=False).value
        shape = jnp.sum(jnp.cos(jnp.arange(4)) * found.barycentre)
        return jnp.stack([shape, found.cost, jnp.sum(found.matrices**2)])

    fn, jacobian = jax.jit(value), jax.jit(jax.jacrev(value, (0, 1, 2, 3)))
    found = jacobian(*args)
    for k, arg in enumerate(args):
        direction = jnp.asarray(rng.normal(size=jnp.shape(arg)))
        up, down = ([*args[:k], arg + s * direction, *args[k + 1 :]] for s in (1e-6, -1e-6))
        slope = (fn(*up) - fn(*down)) / 2e-6
        moved = jnp.sum((found[k] * direction).reshape(3, -1), axis=1)
        np.testing.assert_allclose(moved, slope, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_a_weight_that_is_zero_has_its_derivative(x64):
    """The path from one measure to another begins where the other's weight is 0."""
    costs, measures = squares(X[::10, None], X[::10, None]), normals(X[::10])

    def value(t):
        problem = js.Barycentre(
            jnp.asarray(costs), jnp.asarray(measures), jnp.stack([1 - t, t]), epsilon=1.0
        )
        found = js.solve(problem, tolerance=1e-12, throw=False).value
        return jnp.stack([found.barycentre @ X[::10], found.cost])

    fn = jax.jit(value)
    slope = (-3 * fn(0.0) + 4 * fn(1e-4) - fn(2e-4)) / 2e-4
    np.testing.assert_allclose(jax.jit(jax.jacfwd(value))(0.0), slope, rtol=1e-5)


@pytest.mark.slow
def test_points_and_grids_are_their_matrix(x64):
    rng = np.random.default_rng(0)
    shape = (4, 5)
    measures = rng.uniform(0.1, 1, size=(3, *shape))
    measures /= measures.sum(axis=(1, 2), keepdims=True)
    places = np.stack(np.meshgrid(*(np.linspace(0, 1, k) for k in shape), indexing="ij"), -1)
    flat = places.reshape(-1, 2)
    costs = np.stack([squares(flat, flat)] * 3)
    expected = barycentre(costs, measures.reshape(3, -1), np.ones(3), 0.05)
    grid = js.Barycentre.from_grid(shape, jnp.asarray(measures), epsilon=0.05)
    flattened = jnp.asarray(measures.reshape(3, -1))
    points = js.Barycentre.from_points(jnp.asarray(flat), flattened, epsilon=0.05)
    blocks = js.Barycentre.from_points(jnp.asarray(flat), flattened, epsilon=0.05, block=7)
    for problem in (grid, points, blocks):
        found = js.solve(problem, tolerance=1e-12).value
        np.testing.assert_allclose(found.barycentre, expected[0], atol=1e-10)
        np.testing.assert_allclose(found.matrices, expected[1], atol=1e-10)


@pytest.mark.slow
def test_a_solution_of_other_weights_is_a_start(x64):
    costs = jnp.asarray(squares(X[::5, None], X[::5, None]))
    measures = jnp.asarray(normals(X[::5]))
    problem = lambda w: js.Barycentre(costs, measures, jnp.asarray(w), epsilon=0.3)
    first = js.solve(problem([0.5, 0.5]), tolerance=1e-10)
    warm = js.solve(problem([0.3, 0.7]), init=first.value, tolerance=1e-10)
    cold = js.solve(problem([0.3, 0.7]), tolerance=1e-10)
    np.testing.assert_allclose(warm.value.barycentre, cold.value.barycentre, atol=1e-9)


@pytest.mark.slow
def test_without_any_weight_there_is_no_derivative(x64):
    """Nothing of a linear system is left to say so: it is the value's own derivative that is NaN.
    The other lane of the batch, and costs that both share, are not touched where it is masked."""
    z = np.linspace(0, 1, 9)
    costs = jnp.asarray((z[:, None] - z) ** 2)
    measures = np.exp(-((z - np.array([[0.3], [0.6]])) ** 2) / 0.02)
    measures = jnp.asarray(measures / measures.sum(axis=1, keepdims=True))

    def centre(costs, weights):
        solution = js.solve(js.Barycentre(costs, measures, weights, epsilon=0.3), throw=False)
        mean = jnp.sum(solution.value.barycentre * jnp.arange(measures.shape[1]))
        return jnp.where(solution.success, mean, 0), mean

    weights = jnp.array([[0.0, 0.0], [0.3, 0.7]])
    of = lambda place: jax.vmap(jax.grad(lambda w: centre(costs, w)[place]))(weights)
    assert jnp.isnan(of(1)[0]).all() and jnp.isfinite(of(1)[1]).all()
    np.testing.assert_array_equal(of(0)[0], 0)
    masked = lambda c, w: jax.vmap(lambda w: centre(c, w)[0])(w).sum()
    both, good = (jax.grad(masked)(costs, w) for w in (weights, weights[1:]))
    np.testing.assert_allclose(both, good, atol=1e-9)
    assert jnp.isnan(jax.jacfwd(lambda w: centre(costs, w)[1])(weights[0])).all()


@pytest.mark.parametrize(
    "wrong, error, words",
    [
        ({"cost": jnp.ones(4)}, ValueError, "`cost` is"),
        ({"measures": jnp.ones((2, 3))}, ValueError, "`measures` is float32"),
        ({"weights": jnp.ones(3)}, ValueError, "`weights` is float32"),
        ({"weights": jnp.ones(2, jnp.float16)}, TypeError, "one precision"),
    ],
)
def test_wrong_fields_are_named(wrong, error, words):
    fields = {"cost": jnp.ones((4, 5)), "measures": jnp.ones((2, 4)), "weights": None} | wrong
    with pytest.raises(error, match=words):
        js.solve(js.Barycentre(**fields, epsilon=0.1))
