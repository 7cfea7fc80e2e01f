import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads

from jaxsolve.core.triangular import MANY, SMALL, cholesky, solve_alike, solve_definite, solve_lower

SIZES = [0, 1, 2, 5, SMALL, SMALL + 1]
BATCHES = [(), (3,), (MANY + 1,), (3, MANY)]
"""One lane, few, many, and many in two axes of which the inner one holds few."""


def drawn(n, batch):
    rng = np.random.default_rng(n)
    roots = rng.normal(size=(*batch, n, n))
    return roots @ roots.swapaxes(-1, -2) + 0.1 * np.eye(n), rng.normal(size=(*batch, n))


def over(batch, fn):
    for _ in batch:
        fn = jax.vmap(fn)
    return jax.jit(fn)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("n", SIZES)
def test_written_out_and_called_are_scipys(n, batch, x64):
    matrices, right = drawn(n, batch)
    factors = over(batch, cholesky)(matrices)
    np.testing.assert_allclose(factors, np.linalg.cholesky(matrices), rtol=1e-9, atol=1e-12)
    wanted = np.linalg.solve(matrices, right[..., None])[..., 0]
    np.testing.assert_allclose(over(batch, solve_definite)(factors, right), wanted, rtol=1e-8)
    both = np.stack([right, 2 * right], axis=-1)
    found = over(batch, solve_definite)(factors, both)
    np.testing.assert_allclose(found, np.stack([wanted, 2 * wanted], -1), rtol=1e-8)
    for transposed in (False, True):
        found = over(batch, lambda L, b, t=transposed: solve_lower(L, b, t))(factors, right)
        for lane in np.ndindex(*batch):
            triangle = np.asarray(factors[lane]).T if transposed else np.asarray(factors[lane])
            wanted = right[lane]
            if n:
                wanted = scipy.linalg.solve_triangular(triangle, wanted, lower=not transposed)
            np.testing.assert_allclose(found[lane], wanted, rtol=1e-9)


@pytest.mark.parametrize("lanes", [3, MANY])
def test_a_factor_that_lanes_share_is_not_batched(lanes, x64):
    (matrix, right), (_, many) = drawn(4, ()), drawn(4, (lanes,))
    factor = jnp.asarray(np.linalg.cholesky(matrix))
    found = jax.vmap(solve_definite, (None, 0))(factor, jnp.asarray(many))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, many.T).T, rtol=1e-9)
    factors = jax.vmap(cholesky)(jnp.asarray(drawn(4, (lanes,))[0]))
    found = jax.vmap(solve_definite, (0, None))(factors, jnp.asarray(right))
    wanted = np.linalg.solve(drawn(4, (lanes,))[0], np.broadcast_to(right, (lanes, 4))[..., None])
    np.testing.assert_allclose(found, wanted[..., 0], rtol=1e-9)


@pytest.mark.parametrize("batch", [(), (MANY,)])
def test_derivatives(batch, x64):
    matrices, right = drawn(3, batch)

    def solved(matrix, b):
        return solve_definite(cholesky((matrix + matrix.T) / 2), b)

    check_grads(over(batch, solved), (jnp.asarray(matrices), jnp.asarray(right)), order=2)


@pytest.mark.parametrize("lanes", [1, MANY])
@pytest.mark.parametrize("n", SIZES[2:])
@pytest.mark.parametrize("pivot", [-1.0, 0.0])
def test_a_matrix_without_a_factor_shows_in_the_last_entry(n, pivot, lanes, x64):
    for place in range(n):
        matrix = np.eye(n)
        matrix[place, place] = pivot
        factors = jax.vmap(cholesky)(jnp.stack([jnp.asarray(matrix)] * lanes))
        assert not np.isfinite(factors[:, -1, -1]).any()


@pytest.mark.parametrize("lanes", [1, MANY])
def test_only_the_lower_triangle_is_read(lanes, x64):
    matrix, _ = drawn(4, ())
    spoilt = np.tril(matrix) + np.triu(np.full((4, 4), np.nan), 1)
    factors = jax.vmap(cholesky)(jnp.stack([jnp.asarray(spoilt)] * lanes))
    np.testing.assert_allclose(factors, np.stack([np.linalg.cholesky(matrix)] * lanes))


@pytest.mark.parametrize("n", [0, 5, SMALL, SMALL + 1])
def test_alike_are_a_lane_and_its_batch(n, x64):
    matrices, right = drawn(n, (MANY,))
    found = jax.jit(jax.vmap(solve_alike))(matrices, right)
    wanted = np.linalg.solve(matrices, right[..., None])[..., 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-8)
    for lane in range(MANY):
        alone = jax.jit(solve_alike)(matrices[lane], right[lane])
        np.testing.assert_allclose(alone, found[lane], rtol=1e-14)
