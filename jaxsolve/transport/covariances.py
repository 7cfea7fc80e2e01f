"""The covariance matrices of a mixture's components: which of them a fit may take.

A light bridge has one positive definite matrix S_k a component. A family turns a free array, the
`shape` of all of them, into what the bridge needs of the S_k, by matrix products over all points
and components at once: no array of points x components x dimensions is formed.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float

from ..core.checks import check_instance
from ..core.mesh import vary, varying
from ..core.vectors import matmul

_PRODUCTS = 8
"""Up to this many dimensions quadratic forms are taken of all products of two coordinates."""

Shape = Float[Array, "k p"]
"""The free parameters of the S_k, a row each."""


class AbstractCovariance(eqx.Module):
    """A family of positive definite matrices with free parameters."""

    @abc.abstractmethod
    def parameters(self, dim: int) -> int:
        """p, of one matrix."""

    @abc.abstractmethod
    def from_diagonal(self, diagonal: Float[Array, "k d"]) -> Shape:
        """The shape of diagonal matrices."""

    @abc.abstractmethod
    def dense(self, shape: Shape) -> Float[Array, "k d d"]:
        """S_k."""

    @abc.abstractmethod
    def log_det(self, shape: Shape) -> Float[Array, " k"]:
        """log det S_k."""

    @abc.abstractmethod
    def times(self, shape: Shape, x: Float[Array, " d"]) -> Float[Array, "k d"]:
        """S_k x."""

    @abc.abstractmethod
    def colour(self, shape: Float[Array, " p"], noise: Float[Array, " d"]) -> Float[Array, " d"]:
        """A root of one S times a vector: white noise becomes a draw of covariance S."""

    @abc.abstractmethod
    def tilt(
        self, shape: Shape, centres: Float[Array, "k d"], x: Float[Array, "n d"]
    ) -> Float[Array, "n k"]:
        """x'S_k x / 2 + r_k'x."""

    @abc.abstractmethod
    def distance(
        self, shape: Shape, centres: Float[Array, "k d"], y: Float[Array, "n d"]
    ) -> Float[Array, "n k"]:
        """(y - r_k)'S_k^{-1}(y - r_k) / 2."""

    @abc.abstractmethod
    def trace(self, shape: Shape, covariance: Float[Array, "d d"]) -> Float[Array, " k"]:
        """tr(S_k C)."""

    @abc.abstractmethod
    def between(
        self, shape: Shape, time: Float[Array, ""], *vectors: Float[Array, "k d"]
    ) -> tuple[Float[Array, " k"], list[Float[Array, "k d"]]]:
        """With B_k = t S_k + (1 - t) I: log det B_k, and B_k^{-1} of vectors, one for each k."""


def check_family(name: str, family: Any) -> None:
    """Raise `TypeError` where a `covariance` is no family."""
    check_instance(name, "covariance", family, AbstractCovariance, "Diagonal() or Full()")


class Diagonal(AbstractCovariance):
    """Diagonal matrices; the shape is the logarithm of the diagonal, of size d."""

    def parameters(self, dim: int) -> int:
        return dim

    def from_diagonal(self, diagonal: Float[Array, "k d"]) -> Shape:
        return jnp.log(diagonal)

    def dense(self, shape: Shape) -> Float[Array, "k d d"]:
        return jax.vmap(jnp.diag)(jnp.exp(shape))

    def log_det(self, shape: Shape) -> Float[Array, " k"]:
        return jnp.sum(shape, axis=-1)

    def times(self, shape: Shape, x: Float[Array, " d"]) -> Float[Array, "k d"]:
        return jnp.exp(shape) * x

    def colour(self, shape: Float[Array, " p"], noise: Float[Array, " d"]) -> Float[Array, " d"]:
        return jnp.exp(0.5 * shape) * noise

    def tilt(self, shape, centres, x):
        return _halves(x, jnp.exp(shape), centres)

    def distance(self, shape, centres, y):
        precision = jnp.exp(-shape)
        pull = precision * centres
        own = 0.5 * jnp.sum(pull * centres, axis=1)
        return _halves(y, precision, -pull) + own

    def trace(self, shape: Shape, covariance: Float[Array, "d d"]) -> Float[Array, " k"]:
        return matmul(jnp.exp(shape), jnp.diagonal(covariance))

    def between(self, shape, time, *vectors):
        middle = time * jnp.exp(shape) + (1 - time)
        return jnp.sum(jnp.log(middle), axis=1), [v / middle for v in vectors]


class Full(AbstractCovariance):
    """All positive definite matrices: S = LL', L lower triangular with the exponential of its
    stated diagonal. The shape is L row by row, of size d (d + 1) / 2."""

    def parameters(self, dim: int) -> int:
        return dim * (dim + 1) // 2

    def from_diagonal(self, diagonal: Float[Array, "k d"]) -> Shape:
        rows, columns = jnp.tril_indices(diagonal.shape[1])
        return jnp.where(rows == columns, 0.5 * jnp.log(diagonal)[:, rows], 0)

    def from_dense(self, matrices: Float[Array, "k d d"]) -> Shape:
        """The shape of given matrices."""
        rows, columns = jnp.tril_indices(matrices.shape[1])
        lower = jnp.linalg.cholesky(matrices)[:, rows, columns]
        return jnp.where(rows == columns, jnp.log(jnp.where(rows == columns, lower, 1)), lower)

    def factor(self, shape: Float[Array, "*k p"]) -> Float[Array, "*k d d"]:
        """L."""
        dim = _dim(shape.shape[-1])
        rows, columns = jnp.tril_indices(dim)
        entries = jnp.where(rows == columns, jnp.exp(shape), shape)
        empty = vary(jnp.zeros((*shape.shape[:-1], dim, dim), shape.dtype), varying(shape))
        return empty.at[..., rows, columns].set(entries)

    def dense(self, shape: Shape) -> Float[Array, "k d d"]:
        factor = self.factor(shape)
        return matmul(factor, factor.mT)

    def log_det(self, shape: Shape) -> Float[Array, " k"]:
        diagonal = jnp.cumsum(jnp.arange(1, _dim(shape.shape[-1]) + 1)) - 1
        return 2 * jnp.sum(shape[:, diagonal], axis=1)

    def times(self, shape: Shape, x: Float[Array, " d"]) -> Float[Array, "k d"]:
        return matmul(self.dense(shape), x)

    def colour(self, shape: Float[Array, " p"], noise: Float[Array, " d"]) -> Float[Array, " d"]:
        return matmul(self.factor(shape), noise)

    def tilt(self, shape, centres, x):
        return 0.5 * _quadratic(self.dense(shape), x) + matmul(x, centres.T)

    def distance(self, shape, centres, y):
        factor = self.factor(shape)
        unit = vary(jnp.eye(y.shape[1], dtype=y.dtype), varying(factor))
        inverse = jax.vmap(lambda f: solve_triangular(f, unit, lower=True))(factor)
        precision = matmul(inverse.mT, inverse)
        pull = jax.vmap(matmul)(precision, centres)
        own = 0.5 * jnp.sum(pull * centres, axis=1)
        return 0.5 * _quadratic(precision, y) - matmul(y, pull.T) + own

    def trace(self, shape: Shape, covariance: Float[Array, "d d"]) -> Float[Array, " k"]:
        factor = self.factor(shape)
        return jnp.sum(factor * matmul(covariance, factor), axis=(1, 2))

    def between(self, shape, time, *vectors):
        dense = self.dense(shape)
        unit = vary(jnp.eye(dense.shape[1], dtype=dense.dtype), varying(dense))
        lower = jnp.linalg.cholesky(time * dense + (1 - time) * unit)
        log_det = 2 * jnp.sum(jnp.log(jax.vmap(jnp.diagonal)(lower)), axis=1)
        solve = jax.vmap(lambda factor, v: cho_solve((factor, True), v))
        return log_det, [solve(lower, v) for v in vectors]


def _dim(size: int) -> int:
    """d with d (d + 1) / 2 = size."""
    return int(((8 * size + 1) ** 0.5 - 1) / 2)


def _halves(
    x: Float[Array, "n d"], diagonals: Float[Array, "k d"], linear: Float[Array, "k d"]
) -> Float[Array, "n k"]:
    """x'D_k x / 2 + l_k'x, in one product: two passes less over n x k entries."""
    both = jnp.concatenate([0.5 * x * x, x], axis=1)
    return matmul(both, jnp.concatenate([diagonals, linear], axis=1).T)


def _quadratic(matrices: Float[Array, "k d d"], x: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """x'M_k x."""
    dim = x.shape[1]
    if dim <= _PRODUCTS:
        rows, columns = jnp.tril_indices(dim)
        twice = jnp.where(rows == columns, 1, 2).astype(x.dtype)
        return matmul(x[:, rows] * x[:, columns], (twice * matrices[:, rows, columns]).T)

    # One component after the other, and again in the backward pass: points x dimensions at a time.
    @jax.checkpoint
    def of(matrix: Float[Array, "d d"]) -> Float[Array, " n"]:
        return jnp.sum(x * matmul(x, matrix), axis=1)

    return jax.lax.map(of, matrices).T
