"""The cone of symmetric positive semidefinite matrices, as scaled triangles.

`svec` lists the lower triangle row by row, X_00, X_10, X_11, X_20, ..., off-diagonal entries times
sqrt(2), so that svec(X)'svec(Y) is the trace of XY. This is the order of Clarabel's
`PSDTriangleConeT` (the upper triangle by columns); SCS lists the lower triangle by columns.

The projection is (X + |X|)/2, and the derivative of |X| the solution Y of |X| Y + Y |X| = X dX +
dX X: of an equation that is regular at repeated eigenvalues, where those of the eigenvectors are
not. The derivatives of Y follow from the equation again, so that every order is safe.

The scaling of S and Z is W^2 X = TXT with TZT = S, the geometric mean of S and Z^-1.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ...core.vectors import identity, matmul
from .cone import (
    AbstractSpectrum,
    AbstractSymmetricCone,
    Spectral,
    check_order,
    divided_difference,
    first_zero,
)


class Eigenframe(AbstractSpectrum):
    """Factors of the entries in the basis of eigenvectors."""

    vectors: Float[Array, "n n"]
    values: Float[Array, "n n"]
    cone: "PositiveSemidefinite"

    def apply(self, fn: Spectral, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        turned = matmul(self.vectors.T, matmul(self.cone.smat(v), self.vectors))
        back = matmul(self.vectors, matmul(fn(self.values) * turned, self.vectors.T))
        return self.cone.svec(back)


class PositiveSemidefinite(AbstractSymmetricCone):
    """{svec(X) : X symmetric, positive semidefinite}, its own dual.

    Args:
        n: order of the matrices; the cone has n (n + 1) / 2 rows.
    """

    n: int = eqx.field(static=True)

    def __check_init__(self):
        check_order(self, self.n)

    @property
    def rows(self) -> int:
        return self.n * (self.n + 1) // 2

    def svec(self, matrix: Float[Array, "n n"]) -> Float[Array, " rows"]:
        """The scaled lower triangle, row by row, of the matrix' symmetric part."""
        i, j = np.tril_indices(self.n)
        weight = jnp.asarray(np.where(i == j, 0.5, np.sqrt(0.5)), matrix.dtype)
        return weight * (matrix[i, j] + matrix[j, i])

    def smat(self, v: Float[Array, " rows"]) -> Float[Array, "n n"]:
        """The symmetric matrix of a scaled triangle."""
        i, j = np.tril_indices(self.n)
        place = np.zeros((self.n, self.n), np.int32)
        place[i, j] = place[j, i] = np.arange(self.rows)
        weight = np.where(np.eye(self.n, dtype=bool), 1, np.sqrt(0.5))
        return jnp.asarray(weight, v.dtype) * v[place]

    def project(self, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        @jax.custom_jvp
        def positive(matrix):
            values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
            return matmul(vectors * jnp.maximum(values, 0), vectors.T)

        @positive.defjvp
        def rule(primals, tangents):
            matrix, change = primals[0], tangents[0]
            plus = positive(matrix)
            size = 2 * plus - matrix
            half = matmul(matrix, change)
            turned = lyapunov(size, half + half.T)
            return plus, (change + turned) / 2

        return self.svec(positive(self.smat(v)))

    def slope(self, v: Float[Array, " rows"]) -> Eigenframe:
        values, vectors = jnp.linalg.eigh(self.smat(v), symmetrize_input=False)
        return Eigenframe(vectors, divided_difference(values[:, None], values[None, :]), self)

    @property
    def degree(self) -> int:
        return self.n

    def identity(self, like: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return self.svec(identity(jnp.zeros_like(like[: self.n])))

    def depth(self, v: Float[Array, " rows"]) -> Float[Array, ""]:
        return jnp.linalg.eigvalsh(self.smat(v), symmetrize_input=False)[0]

    def scaling(self, s: Float[Array, " rows"], z: Float[Array, " rows"]) -> Eigenframe:
        root = lax.linalg.cholesky(self.smat(s))
        inner = matmul(root.T, matmul(self.smat(z), root))
        values, vectors = jnp.linalg.eigh((inner + inner.T) / 2, symmetrize_input=False)
        half = matmul(root, vectors * values**-0.25)
        values, vectors = jnp.linalg.eigh(matmul(half, half.T), symmetrize_input=False)
        return Eigenframe(vectors, 1 / (values[:, None] * values[None, :]), self)

    def product(self, u: Float[Array, " rows"], v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return self.svec(matmul(self.smat(u), self.smat(v)))

    def quotient(self, u: Float[Array, " rows"], d: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return self.svec(lyapunov(self.smat(u), 2 * self.smat(d)))

    def along(self, v: Float[Array, " rows"], d: Float[Array, " rows"]) -> Float[Array, ""]:
        root = lax.linalg.cholesky(self.smat(v))
        half = lax.linalg.triangular_solve(root, self.smat(d), left_side=True, lower=True)
        turned = lax.linalg.triangular_solve(root, half.T, left_side=True, lower=True)
        least = jnp.linalg.eigvalsh((turned + turned.T) / 2, symmetrize_input=False)[0]
        return first_zero(jnp.ones_like(least), least)


def lyapunov(matrix: Float[Array, "n n"], right: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The symmetric Y with matrix Y + Y matrix = right, the matrix positive semidefinite; 0 where
    two eigenvalues are both 0. Its derivatives are those of the equation."""

    def product(solved):
        half = matmul(matrix, solved)
        return half + half.T

    def solve(_, right):
        values, vectors = jnp.linalg.eigh(lax.stop_gradient(matrix), symmetrize_input=False)
        total = jnp.abs(values[:, None]) + jnp.abs(values[None, :])
        size = jnp.max(jnp.abs(values))
        none = total <= 4 * values.size * jnp.finfo(values.dtype).eps * size
        turned = matmul(vectors.T, matmul(right, vectors))
        turned = jnp.where(none, 0, turned) / jnp.where(none, 1, total)
        return matmul(vectors, matmul(turned, vectors.T))

    return lax.custom_linear_solve(product, right, solve, symmetric=True)
