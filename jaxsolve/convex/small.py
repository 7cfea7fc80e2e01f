"""Linear algebra along the leading axes, whatever stands behind them.

Every function here takes vectors `[n, *lanes]` and matrices `[m, n, *lanes]`. Alone (`lanes` empty)
and large, products go to BLAS and factorisations to LAPACK. In a batch of tiny problems LAPACK costs
a call a lane; `lanes_last` puts the batch behind instead, and the same code becomes a few elementwise
kernels, unrolled over the matrix and vectorised over the lanes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, PyTree

from ..core.vectors import matmul

Vector = Float[Array, "n *lanes"]
Matrix = Float[Array, "m n *lanes"]

UNROLLED = 8
"""Triangular factors up to this size are unrolled."""

SMALL_VARIABLES, SMALL_ROWS = 16, 48
"""Problems up to this size are stepped lanes last."""


def is_small(variables: int, equalities: int, inequalities: int) -> bool:
    """Whether a problem's step is cheaper elementwise over lanes than by LAPACK lane by lane."""
    return (
        variables <= SMALL_VARIABLES
        and equalities <= UNROLLED
        and variables - equalities <= UNROLLED
        and inequalities <= SMALL_ROWS
    )


def lanes_last(fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`fn(*args)`; under vmap, `fn` sees the batch as one more trailing axis of every array.

    `fn` must be written for trailing lanes. Its derivatives are those of `fn` itself.
    """
    leaves, tree = jax.tree.flatten(args)

    def plain(*leaves):
        return fn(*jax.tree.unflatten(tree, leaves))

    @custom_vmap
    def batched(*leaves):
        return plain(*leaves)

    @batched.def_vmap
    def rule(size, in_batched, *leaves):
        def last(x, has):
            return jnp.moveaxis(x, 0, -1) if has else jnp.broadcast_to(x[..., None], (*x.shape, size))

        moved = [last(x, has) for x, has in zip(leaves, in_batched, strict=True)]
        out = lanes_last(fn, *jax.tree.unflatten(tree, moved))
        return jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), out), jax.tree.map(lambda _: True, out)

    # `custom_vmap` has no reverse mode; `OneStep` and `Unrolled` differentiate the plain function.
    @jax.custom_jvp
    def call(*leaves):
        return batched(*leaves)

    @call.defjvp
    def tangent(primals, tangents):
        return jax.jvp(plain, primals, tangents)

    return call(*leaves)


def times(a: Matrix, x: Vector) -> Vector:
    """A x."""
    if a.ndim == 2 and a.size > UNROLLED**2:
        return matmul(a, x)
    return _sum(a[:, j] * x[j] for j in range(a.shape[1])) if a.shape[1] else a.sum(1)


def transpose_times(a: Matrix, y: Vector) -> Vector:
    """A' y."""
    if a.ndim == 2 and a.size > UNROLLED**2:
        return matmul(y, a)
    return _sum(a[i] * y[i] for i in range(a.shape[0])) if a.shape[0] else a.sum(0)


def product(a: Matrix, b: Matrix) -> Matrix:
    """A B."""
    if a.ndim == 2:
        return matmul(a, b)
    return _sum(a[:, j, None] * b[j] for j in range(a.shape[1])) if a.shape[1] else a[:, :0] * 0


def gram(a: Matrix, weight: Vector) -> Matrix:
    """A' diag(weight) A."""
    if a.ndim == 2:
        return matmul(a.T, weight[:, None] * a)
    return _sum(a[i, :, None] * (weight[i] * a[i]) for i in range(a.shape[0]))


def transpose(a: Matrix) -> Matrix:
    """A'."""
    return jnp.swapaxes(a, 0, 1)


def dot(a: Vector, b: Vector) -> Float[Array, "*lanes"]:
    """a'b."""
    return jnp.sum(a * b, axis=0)


def largest(*vectors: Vector | None) -> Float[Array, "*lanes"]:
    """The maximum norm over all of them."""
    parts = [jnp.max(jnp.abs(x), axis=0) for x in vectors if x is not None and x.shape[0]]
    out = parts[0]
    for part in parts[1:]:
        out = jnp.maximum(out, part)
    return out


def diagonal(a: Matrix) -> Vector:
    """The diagonal."""
    return jnp.stack([a[i, i] for i in range(a.shape[0])]) if a.ndim > 2 else jnp.diagonal(a)


def add_diagonal(a: Matrix, d: Vector) -> Matrix:
    """A + diag(d)."""
    n = a.shape[0]
    eye = jnp.eye(n, dtype=a.dtype).reshape(n, n, *(1,) * (a.ndim - 2))
    return a + eye * d[:, None]


def cholesky(a: Matrix) -> Matrix:
    """L with L L' = A; NaN where A is not positive definite."""
    n = a.shape[0]
    if a.ndim == 2 and n > UNROLLED:
        return lax.linalg.cholesky(a, symmetrize_input=False)
    columns = []
    for j in range(n):
        column = a[j:, j]
        for k, left in enumerate(columns):
            column = column - left[j - k :] * left[j - k]
        columns.append(column / jnp.sqrt(column[0]))
    return jnp.stack(
        [jnp.concatenate([jnp.zeros_like(a[:j, j]), c]) for j, c in enumerate(columns)], axis=1
    )


def solve_lower(factor: Matrix, b: Vector) -> Vector:
    """L^{-1} b."""
    n = factor.shape[0]
    if factor.ndim == 2 and n > UNROLLED:
        return lax.linalg.triangular_solve(factor, b[:, None], left_side=True, lower=True)[:, 0]
    out = []
    for i in range(n):
        value = b[i]
        for j in range(i):
            value = value - factor[i, j] * out[j]
        out.append(value / factor[i, i])
    return jnp.stack(out) if out else b


def solve_lower_transposed(factor: Matrix, b: Vector) -> Vector:
    """L^{-T} b."""
    n = factor.shape[0]
    if factor.ndim == 2 and n > UNROLLED:
        return lax.linalg.triangular_solve(
            factor, b[:, None], left_side=True, lower=True, transpose_a=True
        )[:, 0]
    out: list[Array] = [b[:0]] * n
    for i in reversed(range(n)):
        value = b[i]
        for j in range(i + 1, n):
            value = value - factor[j, i] * out[j]
        out[i] = value / factor[i, i]
    return jnp.stack(out) if out else b


def solve_factored(factor: Matrix, b: Vector) -> Vector:
    """(L L')^{-1} b."""
    return solve_lower_transposed(factor, solve_lower(factor, b))


def orthogonal(a: Matrix) -> tuple[Matrix, Matrix]:
    """Q (n x n, orthogonal) and L (p x p, lower) with A = [L, 0] Q', for A of p <= n rows."""
    p, n = a.shape[:2]
    if a.ndim == 2 and n > 2 * UNROLLED:
        q, r = jnp.linalg.qr(a.T, mode="complete")
        return q, r[:p].T
    work = transpose(a)
    eye = jnp.eye(n, dtype=a.dtype).reshape(n, n, *(1,) * (a.ndim - 2))
    basis = eye + jnp.zeros_like(work[:1, :1])
    for j in range(p):
        below = (jnp.arange(n) >= j).reshape(n, *(1,) * (a.ndim - 2))
        column = jnp.where(below, work[:, j], 0)
        size = jnp.sqrt(dot(column, column))
        head = jnp.where(work[j, j] < 0, -size, size)
        mirror = column.at[j].add(head)
        square = dot(mirror, mirror)
        factor = 2 / jnp.where(square > 0, square, jnp.ones_like(square))
        work = work - mirror[:, None] * (factor * transpose_times(work, mirror))
        basis = basis - (factor * times(basis, mirror))[:, None] * mirror
    return basis, transpose(work[:p])


def _sum(terms):
    total = None
    for term in terms:
        total = term if total is None else total + term
    return total
