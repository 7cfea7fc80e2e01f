"""Cholesky factors and the systems that they solve; small ones of many lanes are written out.

Up to `SMALL` unknowns XLA makes one kernel of a triangular system in which all lanes go side by
side: 512 systems of 5 take 3.5 us where LAPACK's calls take 35, a factor a sixth to a third. Of one
lane it would be a kernel an entry, where LAPACK is one in all. Hence the primitives, which learn
from `vmap` how many lanes there are.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from .mesh import vary, varying

SMALL, MANY = 8, 8
"""Unknowns up to which, and lanes from which on, systems are written out."""


def cholesky(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """L of L L' = matrix, of which the lower triangle is read; not finite in its last entry where
    the matrix is not positive definite."""
    small = 0 < matrix.shape[0] <= SMALL
    return _CHOLESKY.bind(matrix) if small else _called_cholesky(matrix)


def solve_lower(
    factor: Float[Array, "n n"], b: Float[Array, "n ..."], transposed: bool = False
) -> Float[Array, "n ..."]:
    """L^{-1} b or L^{-T} b."""
    columns = b[:, None] if b.ndim == 1 else b
    if 0 < factor.shape[0] <= SMALL:
        axes = varying((factor, columns))
        found = _SOLVE.bind(vary(factor, axes), vary(columns, axes), transposed=transposed)
    else:
        found = _called_solve(factor, columns, transposed=transposed)
    return found[:, 0] if b.ndim == 1 else found


def solve_definite(factor: Float[Array, "n n"], b: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """(L L')^{-1} b."""
    return solve_lower(factor, solve_lower(factor, b), transposed=True)


def solve_alike(matrix: Float[Array, "n n"], b: Float[Array, " n"]) -> Float[Array, " n"]:
    """matrix^{-1} b, the matrix definite, with the same roundings in one lane and in many: for
    iterations that make steps of their differences."""
    small = 0 < matrix.shape[0] <= SMALL
    factor = (_written_cholesky if small else _called_cholesky)(matrix)
    solve, columns = _written_solve if small else _called_solve, b[:, None]
    half = solve(factor, columns, transposed=False)
    return solve(factor, half, transposed=True)[:, 0]


def _by_lanes(name: str, called: Callable[..., Array], written: Callable[..., Array]) -> Primitive:
    """`called`, which takes leading axes and whose result is of the type of its last operand;
    under `vmap` over `MANY` lanes or more, `written`."""
    primitive = Primitive(name)

    def batch(operands, axes, **settings):
        size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
        operands = [
            jnp.broadcast_to(x, (size, *x.shape)) if a is None else jnp.moveaxis(x, a, 0)
            for x, a in zip(operands, axes, strict=True)
        ]
        lanes = operands[0].shape[:-2]
        # A symbolic number of lanes (`jax.export`) compares with none.
        if all(isinstance(n, int) for n in lanes) and math.prod(lanes) < MANY:
            return primitive.bind(*operands, **settings), 0
        fn = lambda *own: written(*own, **settings)
        for _ in lanes:
            fn = jax.vmap(fn)
        return fn(*operands), 0

    def jvp(primals, tangents, **settings):
        tangents = tuple(ad.instantiate_zeros(t) for t in tangents)
        return jax.jvp(lambda *own: called(*own, **settings), primals, tangents)

    def eager(*operands, **settings):
        return jax.jit(called, static_argnames=tuple(settings))(*operands, **settings)

    primitive.def_impl(eager)
    primitive.def_abstract_eval(lambda *types, **_: types[-1])
    mlir.register_lowering(primitive, mlir.lower_fun(called, multiple_results=False))
    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = jvp
    return primitive


def _called_cholesky(matrix: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
    return lax.linalg.cholesky(matrix, symmetrize_input=False)


def _called_solve(
    factor: Float[Array, "... n n"], b: Float[Array, "... n k"], *, transposed: bool
) -> Float[Array, "... n k"]:
    return lax.linalg.triangular_solve(
        factor, b, left_side=True, lower=True, transpose_a=transposed
    )


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


_CHOLESKY = _by_lanes("small_cholesky", _called_cholesky, _written_cholesky)
_SOLVE = _by_lanes("small_triangular_solve", _called_solve, _written_solve)
