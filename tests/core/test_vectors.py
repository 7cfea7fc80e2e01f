"""Norms and checks of vectors, with NaN in large arrays: XLA's own maximum loses it there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsolve import RESULTS, Minimise, solve
from jaxsolve.core.vectors import clean, finite, largest, maxima

SHAPES = [(1,), (20,), (5000,), (250, 30)]


@pytest.mark.fast
@pytest.mark.parametrize("shape", SHAPES)
def test_one_entry_that_is_not_finite_is_found_anywhere(shape, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(dtype)
    assert jax.jit(largest)(x) == np.abs(x).max()
    assert jax.jit(finite)(x) and jax.jit(clean)(x, x)
    for place in {0, x.size // 2, x.size - 1}:
        for bad in (np.nan, np.inf, -np.inf):
            spoilt = x.copy()
            spoilt.flat[place] = bad
            assert jax.jit(largest)(spoilt) == np.inf
            assert not jax.jit(finite)(x, spoilt)
            assert not jax.jit(clean)(spoilt, x)
            assert jax.jit(clean)(x, spoilt) == (not np.isnan(bad))


@pytest.mark.fast
@pytest.mark.parametrize("longest", [(3, 4), (800,)])
def test_the_largest_of_many_arrays_are_those_of_each(longest, dtype):
    rng = np.random.default_rng(0)
    shapes = [(), (0,), (5,), longest]
    arrays = [np.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    wanted = [np.abs(x).max(initial=0) for x in arrays]
    np.testing.assert_array_equal(jax.jit(maxima)(arrays), wanted)
    arrays[2][3] = np.nan
    found = jax.jit(maxima)(arrays)
    assert found[2] == np.inf and np.array_equal(np.delete(found, 2), np.delete(wanted, 2))
    assert not jax.jit(finite)(arrays) and jax.jit(finite)(arrays[:2], arrays[3]) and finite(())


def squares(y, target):
    return jnp.sum((y - target) ** 2)


@pytest.mark.fast
def test_nan_in_a_large_array_of_the_data_is_reported():
    target = np.zeros(6000, np.float32)
    assert solve(Minimise(squares, target), init=target).result == RESULTS.successful
    target[4321] = np.nan
    start = jnp.zeros(6000, jnp.float32)
    found = solve(Minimise(squares, target), init=start, throw=False)
    assert found.result == RESULTS.nonfinite_input


@pytest.mark.fast
def test_nan_in_a_large_gradient_is_no_success():
    """A function whose own data are right, and whose gradient is not."""

    def fn(y, _):
        return jnp.sum(jnp.where(jnp.arange(6000) == 4321, jnp.sqrt(y - y), y**2))

    found = solve(Minimise(fn), init=jnp.zeros(6000, jnp.float32), throw=False)
    assert found.result not in (RESULTS.successful, RESULTS.approximate)
