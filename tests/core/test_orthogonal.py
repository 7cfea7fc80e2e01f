"""Orthogonal factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsolve.core.orthogonal import FEW, rotation
from jaxsolve.testing.compare import precision


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (5, 4), (FEW, FEW), (FEW + 1, 3), (40, 20)])
@pytest.mark.parametrize("kind", ["full rank", "a column of zeros", "a column twice"])
def test_they_are_those_of_numpy(shape, kind, dtype):
    matrix = np.random.default_rng(0).normal(size=(2, *shape))
    if kind == "a column of zeros":
        matrix[..., 0] = 0
    if kind == "a column twice":
        matrix[..., -1] = matrix[..., 0]
    n, p = shape
    with precision(dtype):
        q, r = jax.jit(jax.vmap(rotation))(jnp.asarray(matrix, dtype))
    within = 100 * np.finfo(dtype).eps
    assert (q.shape, r.shape) == ((2, n, n), (2, p, p))
    for mine, triangle, lane in zip(np.asarray(q), np.asarray(r), matrix, strict=True):
        expected = np.linalg.qr(lane, mode="complete")[1][:p]
        np.testing.assert_allclose(mine.T @ mine, np.eye(n), atol=within)
        np.testing.assert_allclose(mine[:, :p] @ triangle, lane, atol=within)
        np.testing.assert_allclose(np.abs(triangle), np.abs(expected), atol=within)
        np.testing.assert_array_equal(triangle, np.triu(triangle))
