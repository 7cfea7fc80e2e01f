"""Cholesky factors and the systems that they solve, small ones written out.

Up to `WRITTEN_OUT` unknowns XLA makes one kernel of a triangular system, which on a batch takes a
tenth of LAPACK's calls (512 systems of 5: 3.5 us against 35), of a factor a sixth to a third.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

WRITTEN_OUT = 8


def cholesky(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """L of L L' = matrix, of which the lower triangle is read; not finite in its last entry where
    the matrix is not positive definite."""
    n = matrix.shape[0]
    if n > WRITTEN_OUT:
        return lax.linalg.cholesky(matrix, symmetrize_input=False)
    rows: list[list[Array]] = []
    for i in range(n):
        row: list[Array] = []
        for j in range(i):
            row.append((matrix[i, j] - _sum(row, rows[j][:j])) / rows[j][j])
        square = matrix[i, i] - _sum(row, row)
        row.append(jnp.sqrt(jnp.where(square > 0, square, jnp.nan)))
        rows.append(row)
    zero = jnp.zeros((), matrix.dtype)
    full = [jnp.stack([*row, *[zero] * (n - len(row))]) for row in rows]
    return jnp.stack(full) if n else matrix


def solve_lower(
    factor: Float[Array, "n n"], b: Float[Array, "n ..."], transposed: bool = False
) -> Float[Array, "n ..."]:
    """L^{-1} b or L^{-T} b."""
    n = factor.shape[0]
    if n > WRITTEN_OUT:
        columns = b[:, None] if b.ndim == 1 else b
        found = lax.linalg.triangular_solve(
            factor, columns, left_side=True, lower=True, transpose_a=transposed
        )
        return found[:, 0] if b.ndim == 1 else found
    upper = factor.T if transposed else factor
    x: dict[int, Array] = {}
    for i in reversed(range(n)) if transposed else range(n):
        known = list(x)
        x[i] = (b[i] - _sum([upper[i, j] for j in known], [x[j] for j in known])) / factor[i, i]
    return jnp.stack([x[i] for i in range(n)]) if n else b


def solve_definite(factor: Float[Array, "n n"], b: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """(L L')^{-1} b."""
    return solve_lower(factor, solve_lower(factor, b), transposed=True)


def _sum(a: list[Array], b: list[Array]) -> Array | float:
    return sum((x * y for x, y in zip(a, b, strict=True)), start=0.0)
