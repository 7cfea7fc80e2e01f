import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxsolve.core.triangular import WRITTEN_OUT, cholesky, solve_definite, solve_lower

SIZES = [0, 1, 2, 5, WRITTEN_OUT, WRITTEN_OUT + 1]


def drawn(n, lanes=3):
    rng = np.random.default_rng(n)
    roots = rng.normal(size=(lanes, n, n))
    return roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(n), rng.normal(size=(lanes, n))


@pytest.mark.parametrize("n", SIZES)
def test_written_out_and_called_are_scipys(n, x64):
    matrices, right = drawn(n)
    factors = jax.vmap(cholesky)(jnp.asarray(matrices))
    for k, (matrix, b) in enumerate(zip(matrices, right, strict=True)):
        expected = np.linalg.cholesky(matrix)
        np.testing.assert_allclose(factors[k], expected, rtol=1e-12, atol=1e-12)
        pairs = [(False, expected), (True, expected.T)] if n else []
        for transposed, triangle in pairs:
            found = solve_lower(factors[k], b, transposed)
            wanted = scipy.linalg.solve_triangular(triangle, b, lower=not transposed)
            np.testing.assert_allclose(found, wanted, rtol=1e-9)
        if n:
            wanted = np.linalg.solve(matrix, b)
            np.testing.assert_allclose(solve_definite(factors[k], b), wanted, rtol=1e-9)
            both = jnp.stack([jnp.asarray(b), 2 * jnp.asarray(b)], axis=1)
            found = solve_definite(factors[k], both)
            np.testing.assert_allclose(found, np.stack([wanted, 2 * wanted], 1), rtol=1e-9)


@pytest.mark.parametrize("n", SIZES[2:])
@pytest.mark.parametrize("pivot", [-1.0, 0.0])
def test_a_matrix_without_a_factor_shows_in_the_last_entry(n, pivot, x64):
    for place in range(n):
        matrix = np.eye(n)
        matrix[place, place] = pivot
        assert not np.isfinite(cholesky(jnp.asarray(matrix))[-1, -1])


def test_only_the_lower_triangle_is_read(x64):
    (matrix, *_), _ = drawn(4)
    spoilt = np.tril(matrix) + np.triu(np.full((4, 4), np.nan), 1)
    np.testing.assert_allclose(cholesky(jnp.asarray(spoilt)), np.linalg.cholesky(matrix))
