"""Sorting and ranking by transport against NumPy, SciPy and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import rankdata

import jaxsolve as js

X = np.array([3.1, -2.0, 0.4, 7.5, 0.9, -0.6])


def test_small_epsilons_sort_and_rank(x64):
    x = jnp.asarray(X)
    np.testing.assert_allclose(js.SoftSort(epsilon=1e-4)(x), np.sort(X), atol=1e-8)
    np.testing.assert_allclose(js.SoftRank(epsilon=1e-4)(x), rankdata(X), atol=1e-8)
    tied = np.where(X > 3, 3.1, X)
    ranks = js.SoftRank(epsilon=1e-4)(jnp.asarray(tied))
    np.testing.assert_allclose(ranks, rankdata(tied), atol=1e-8)


def test_what_is_smooth_stays_monotone_and_keeps_means_and_scale(x64):
    x = jnp.asarray(X)
    order = np.argsort(X)
    for epsilon in (0.01, 1.0):
        ranks, values = js.SoftRank(epsilon=epsilon)(x), js.SoftSort(epsilon=epsilon)(x)
        assert np.all(np.diff(ranks[order]) > 0) and np.all(np.diff(values) > 0)
        np.testing.assert_allclose(np.mean(ranks), 3.5, rtol=1e-6)
        np.testing.assert_allclose(np.mean(values), X.mean(), rtol=1e-6)
        np.testing.assert_allclose(js.SoftRank(epsilon=epsilon)(9 * x - 4), ranks, rtol=1e-6)
        np.testing.assert_allclose(
            js.SoftSort(epsilon=epsilon)(9 * x - 4), 9 * values - 4, rtol=1e-6
        )
        matrix = X.size * np.asarray(js.SoftSort(epsilon=epsilon).plan(x).matrix)
        np.testing.assert_allclose(matrix.sum(0), 1, atol=1e-5)
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(matrix.T @ X, values, rtol=1e-4)


@pytest.mark.parametrize("size", [1e20, 1e-24])
def test_no_scale_overflows(size):
    x = jnp.asarray(X * size, jnp.float32)
    np.testing.assert_allclose(js.SoftRank(epsilon=1e-4)(x), rankdata(X), atol=1e-3)
    np.testing.assert_allclose(js.SoftSort(epsilon=1e-4)(x) / size, np.sort(X), rtol=1e-3)


def test_padding_has_no_part():
    x, weights = jnp.asarray([*X, np.inf], jnp.float32), jnp.array([1.0] * 6 + [0.0])
    ranks = js.SoftRank(epsilon=1e-4)(x, weights)
    np.testing.assert_allclose(ranks[:6], js.SoftRank(epsilon=1e-4, targets=7)(x[:6]), atol=1e-3)
    np.testing.assert_allclose(np.mean(ranks[:6]), 3.5, rtol=1e-5)
    assert bool(jnp.all(jnp.isfinite(js.SoftSort(epsilon=1e-4)(x, weights))))


def test_targets_of_a_layer_in_a_compiled_program():
    x = jnp.asarray(X, jnp.float32)
    for targets in (None, 2, np.int64(2), (0.5, 0.5)):
        layer = js.SoftSort(targets=targets)
        np.testing.assert_allclose(jax.jit(layer)(x), layer(x), rtol=1e-5)


def test_what_are_no_targets_is_named():
    for targets in (0, 2.5, (), True):
        with pytest.raises(ValueError, match="SoftSort: `targets` must be"):
            js.SoftSort(targets=targets)(jnp.arange(3.0))


@pytest.mark.slow
def test_targets_are_parts_of_the_sorted_values(x64):
    x = jnp.asarray(X)
    found = js.SoftSort(epsilon=1e-4, targets=3)(x)
    np.testing.assert_allclose(found, np.sort(X).reshape(3, 2).mean(1), atol=1e-8)
    found = js.SoftSort(epsilon=1e-4, targets=(0.5, 1 / 6, 1 / 3))(x)
    ordered = np.sort(X)
    np.testing.assert_allclose(
        found, [ordered[:3].mean(), ordered[3], ordered[4:].mean()], atol=1e-8
    )
    ranks = js.SoftRank(epsilon=1e-4, targets=2)(x)
    np.testing.assert_allclose(ranks, np.where(rankdata(X) <= 3, 2, 5), atol=1e-8)


@pytest.mark.slow
def test_weights_are_repetitions_and_zeros_take_no_part(x64):
    x = jnp.asarray(X)
    weights = jnp.array([2.0, 1, 1, 1, 1, 0])
    kept = np.repeat(X, [2, 1, 1, 1, 1, 0])
    layer = js.SoftSort(epsilon=0.02, targets=4)
    np.testing.assert_allclose(layer(x, weights), layer(jnp.asarray(kept)), rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(layer(x, weights) ** 2))(x)
    assert gradient[-1] == 0 and np.all(np.isfinite(gradient))


@pytest.mark.slow
def test_axes_are_lanes():
    values = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    for axis in (0, 1, -1):
        layer = js.SoftSort(epsilon=1e-4, axis=axis)
        found = layer(jnp.asarray(values))
        np.testing.assert_allclose(found, np.sort(values, axis=axis), atol=1e-4)
        ranks = js.SoftRank(epsilon=1e-4, axis=axis)(jnp.asarray(values))
        np.testing.assert_allclose(ranks, rankdata(values, axis=axis), atol=2e-2)
    found = js.SoftSort(epsilon=1e-4, axis=1, targets=2)(
        jnp.asarray(values), jnp.array([1.0, 1, 0, 1, 1])
    )
    kept = np.sort(values[:, [0, 1, 3, 4]], axis=1)
    np.testing.assert_allclose(found, kept.reshape(2, 2, 2, 3).mean(2), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [js.SoftSort, js.SoftRank])
def test_derivatives_are_differences(x64, layer):
    weight = jnp.cos(jnp.arange(X.size, dtype=float))

    def value(x, epsilon):
        return jnp.sum(weight * layer(epsilon=epsilon, targets=X.size)(x) ** 2)

    fn = jax.jit(value)
    gradient = jax.jit(jax.grad(value, (0, 1)))
    x = jnp.asarray(X)
    found = gradient(x, 0.03)
    for direction in np.eye(X.size):
        slope = (fn(x + 1e-5 * direction, 0.03) - fn(x - 1e-5 * direction, 0.03)) / 2e-5
        np.testing.assert_allclose(found[0] @ direction, slope, rtol=1e-5, atol=1e-6)
    slope = (fn(x, 0.03 + 1e-6) - fn(x, 0.03 - 1e-6)) / 2e-6
    np.testing.assert_allclose(found[1], slope, rtol=1e-5)


def test_wrong_inputs_are_named():
    with pytest.raises(TypeError, match="SoftSort: `values` is int32"):
        js.SoftSort()(jnp.arange(3))
    for epsilon, error in ((0.0, ValueError), (-1.0, ValueError), ("a", TypeError)):
        with pytest.raises(error, match="SoftSort: `epsilon` must be"):
            js.SoftSort(epsilon=epsilon)(jnp.ones(3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"SoftRank: `axis` must be a whole number; got 0\.5"):
        js.SoftRank(axis=0.5)(jnp.ones(3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no axis 1"):
        js.SoftRank(axis=1)(jnp.ones(3))
    with pytest.raises(ValueError, match="`weights` is float32"):
        js.SoftRank()(jnp.ones((3, 2)), jnp.ones(3))
    with pytest.raises(ValueError, match="one vector"):
        js.SoftRank().plan(jnp.ones((3, 2)))
