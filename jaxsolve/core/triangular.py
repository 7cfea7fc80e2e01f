"""Cholesky factors and the systems that they solve; small ones of many lanes are written out.

Up to `SMALL` unknowns XLA makes one kernel of a triangular system in which all lanes go side by
side: 512 systems of 5 take 3.5 us where LAPACK's calls take 35, a factor a sixth to a third. Of one
lane it would be a kernel an entry, where LAPACK is one in all: hence `_by_lanes`.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

SMALL, MANY = 8, 8
"""Unknowns and lanes up to which, and from which on, systems are written out."""


def cholesky(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """L of L L' = matrix, of which the lower triangle is read; not finite in its last entry where
    the matrix is not positive definite."""
    call = partial(lax.linalg.cholesky, symmetrize_input=False)
    if not 0 < matrix.shape[0] <= SMALL:
        return call(matrix)
    return _by_lanes(call, _written_cholesky, matrix)


def solve_lower(
    factor: Float[Array, "n n"], b: Float[Array, "n ..."], transposed: bool = False
) -> Float[Array, "n ..."]:
    """L^{-1} b or L^{-T} b."""
    columns = b[:, None] if b.ndim == 1 else b
    call = partial(lax.linalg.triangular_solve, left_side=True, lower=True, transpose_a=transposed)
    if 0 < factor.shape[0] <= SMALL:
        found = _by_lanes(call, partial(_written_solve, transposed=transposed), factor, columns)
    else:
        found = call(factor, columns)
    return found[:, 0] if b.ndim == 1 else found


def solve_definite(factor: Float[Array, "n n"], b: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """(L L')^{-1} b."""
    return solve_lower(factor, solve_lower(factor, b), transposed=True)


def _by_lanes(call: Callable[..., Array], written: Callable[..., Array], *operands: Array) -> Array:
    """`call`, which takes leading axes; under `vmap` over `MANY` lanes or more, `written`."""

    @custom_vmap
    def over(*operands):
        return call(*operands)

    @over.def_vmap
    def rule(size, batched, *operands):
        operands = [
            x if has else jnp.broadcast_to(x, (size, *x.shape))
            for x, has in zip(operands, batched, strict=True)
        ]
        axes = operands[0].shape[:-2]
        lanes, fn = math.prod(axes), written
        # A symbolic number of lanes (`jax.export`) compares with none.
        if isinstance(lanes, int) and lanes < MANY:
            return over(*operands), True
        for _ in axes:
            fn = jax.vmap(fn)
        return fn(*operands), True

    # The derivative is the call's: a `custom_vmap` has none in reverse mode.
    @jax.custom_jvp
    def differentiable(*operands):
        return over(*operands)

    differentiable.defjvp(lambda primals, tangents: jax.jvp(call, primals, tangents))
    return differentiable(*operands)


def _written_cholesky(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    n = matrix.shape[0]
    rows: list[list[Array]] = []
    for i in range(n):
        row: list[Array] = []
        for j in range(i):
            row.append((matrix[i, j] - _sum(row, rows[j][:j])) / rows[j][j])
        square = matrix[i, i] - _sum(row, row)
        row.append(jnp.sqrt(jnp.where(square > 0, square, jnp.nan)))
        rows.append(row)
    zero = jnp.zeros((), matrix.dtype)
    return jnp.stack([jnp.stack([*row, *[zero] * (n - len(row))]) for row in rows])


def _written_solve(
    factor: Float[Array, "n n"], b: Float[Array, "n k"], *, transposed: bool
) -> Float[Array, "n k"]:
    n = factor.shape[0]
    upper = factor.T if transposed else factor
    x: dict[int, Array] = {}
    for i in reversed(range(n)) if transposed else range(n):
        known = list(x)
        x[i] = (b[i] - _sum([upper[i, j] for j in known], [x[j] for j in known])) / factor[i, i]
    return jnp.stack([x[i] for i in range(n)])


def _sum(a: list[Array], b: list[Array]) -> Array | float:
    return sum((x * y for x, y in zip(a, b, strict=True)), start=0.0)
