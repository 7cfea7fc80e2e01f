"""Products with a problem's matrices: arrays, BCOO sparse matrices, lineax operators.

The one file that knows of `jax.experimental.sparse`. A solver that factors asks `is_dense` first;
what is matrix-free asks for products and for the sizes of rows and columns alone.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Bool, Float

from ..core.checks import check_real
from ..core.vectors import finite, matmul

Matrix = Any
"""An array, a `BCOO` without batch or dense axes, or a `lineax.AbstractLinearOperator`."""


def is_matrix_free(matrix: Matrix) -> bool:
    """Whether `matrix` is a BCOO matrix or an operator."""
    return isinstance(matrix, BCOO | lx.AbstractLinearOperator)


def from_entries(
    values: Float[Array, " k"], row: np.ndarray, column: np.ndarray, shape: tuple[int, int]
) -> BCOO:
    """The sparse matrix with these entries."""
    indices = jnp.asarray(np.stack([row, column], axis=1), jnp.int32)
    return BCOO((values, indices), shape=shape)


def zeros(n: int, like: Matrix | None, dtype: Any) -> Matrix:
    """The n x n matrix of zeros, sparse where `like` is."""
    if like is None or not is_matrix_free(like):
        return jnp.zeros((n, n), dtype)
    return from_entries(jnp.zeros(1, dtype), np.zeros(1), np.zeros(1), (n, n))


def checked(name: str, field: str, matrix: Matrix) -> Matrix:
    """`matrix`, where it is of a kind that has products; raises `TypeError`, `ValueError`."""
    if isinstance(matrix, BCOO) and (matrix.n_batch or matrix.n_dense or matrix.ndim != 2):
        raise ValueError(
            f"{name}: `{field}` is a BCOO of shape {list(matrix.shape)} with {matrix.n_batch} "
            f"batch and {matrix.n_dense} dense axes; give a matrix with none of either."
        )
    check_real(name, field, dtype_of(matrix))
    return matrix


def shape_of(matrix: Matrix) -> tuple[int, ...]:
    """Rows and columns."""
    if isinstance(matrix, lx.AbstractLinearOperator):
        return matrix.out_size(), matrix.in_size()
    return tuple(matrix.shape)


def dtype_of(matrix: Matrix) -> Any:
    """The dtype of the entries."""
    if isinstance(matrix, lx.AbstractLinearOperator):
        return matrix.in_structure().dtype
    return matrix.dtype


def apply(matrix: Matrix, x: Float[Array, " n"]) -> Float[Array, " m"]:
    """matrix @ x."""
    if isinstance(matrix, BCOO):
        rows, columns = matrix.indices[:, 0], matrix.indices[:, 1]
        return _sum(matrix.data * x[columns], rows, matrix.shape[0])
    if isinstance(matrix, lx.AbstractLinearOperator):
        return matrix.mv(x)
    return matmul(matrix, x)


def transposed(matrix: Matrix, y: Float[Array, " m"]) -> Float[Array, " n"]:
    """matrix' @ y."""
    if isinstance(matrix, BCOO):
        rows, columns = matrix.indices[:, 0], matrix.indices[:, 1]
        return _sum(matrix.data * y[rows], columns, matrix.shape[1])
    if isinstance(matrix, lx.AbstractLinearOperator):
        return matrix.T.mv(y)
    return matmul(y, matrix)


def symmetric(matrix: Matrix, x: Float[Array, " n"]) -> Float[Array, " n"]:
    """(matrix + matrix') @ x / 2."""
    if isinstance(matrix, lx.AbstractLinearOperator) and lx.is_symmetric(matrix):
        return matrix.mv(x)
    return (apply(matrix, x) + transposed(matrix, x)) / 2


def squares(matrix: Matrix, axis: int) -> Float[Array, " k"]:
    """The sums of the squared entries of each column (axis 0) or row (axis 1); of an operator, an
    estimate of their mean."""
    if isinstance(matrix, BCOO):
        return _sum(matrix.data**2, matrix.indices[:, 1 - axis], matrix.shape[1 - axis])
    if isinstance(matrix, lx.AbstractLinearOperator):
        rows, columns = shape_of(matrix)
        push = matrix.mv if axis == 1 else matrix.T.mv
        total = [
            jnp.mean(push(sign) ** 2) for sign in _signs(rows if axis == 0 else columns, matrix)
        ]
        return jnp.full((columns if axis == 0 else rows,), sum(total) / len(total))
    return jnp.sum(matrix**2, axis=axis)


def weighted_squares(matrix: Matrix, weight: Float[Array, " m"]) -> Float[Array, " n"]:
    """The diagonal of matrix' diag(weight) matrix; of an operator, an estimate of its mean."""
    if isinstance(matrix, BCOO):
        rows, columns = matrix.indices[:, 0], matrix.indices[:, 1]
        return _sum(matrix.data**2 * weight[rows], columns, matrix.shape[1])
    if isinstance(matrix, lx.AbstractLinearOperator):
        return squares(matrix, 0) * jnp.mean(weight)
    return matmul(weight, matrix**2)


def sizes(matrix: Matrix) -> Float[Array, " m"]:
    """The largest absolute entry of each row; of an operator, the root of `squares`."""
    if isinstance(matrix, BCOO):
        rows = matrix.indices[:, 0]
        blank = jnp.zeros_like(matrix.data, shape=(matrix.shape[0],))
        return blank.at[rows].max(jnp.abs(matrix.data), mode="drop")
    if isinstance(matrix, lx.AbstractLinearOperator):
        return jnp.sqrt(squares(matrix, 1))
    return jnp.max(jnp.abs(matrix), axis=1)


def diagonal(matrix: Matrix) -> Float[Array, " n"]:
    """The diagonal; of an operator, the mean of it for all."""
    if isinstance(matrix, BCOO):
        rows, columns = matrix.indices[:, 0], matrix.indices[:, 1]
        return _sum(jnp.where(rows == columns, matrix.data, 0), rows, matrix.shape[0])
    if isinstance(matrix, lx.AbstractLinearOperator):
        count = shape_of(matrix)[0]
        signs = _signs(count, matrix)
        total = [jnp.mean(sign * matrix.mv(sign)) for sign in signs]
        return jnp.full((count,), sum(total) / len(total))
    return jnp.diagonal(matrix)


def all_finite(*data: Matrix | None) -> Bool[Array, ""]:
    """Whether all entries are finite; of an operator, all of its arrays."""
    return finite(eqx.filter(data, eqx.is_inexact_array))


def _sum(values: Float[Array, " k"], places: Array, size: int) -> Float[Array, " size"]:
    # Padding has the index `size`, which is dropped.
    return jnp.zeros_like(values, shape=(size,)).at[places].add(values, mode="drop")


def _signs(size: int, matrix: Matrix) -> list[Float[Array, " size"]]:
    """Three vectors of random signs: the mean of |row'e|^2 over them is |row|^2."""
    drawn = np.random.default_rng(0).choice([-1.0, 1.0], (3, size))
    return [jnp.asarray(sign, dtype_of(matrix)) for sign in drawn]
