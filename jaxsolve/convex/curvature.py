"""Whether a quadratic form is convex where it has to be."""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from ..core.vectors import matmul, maxima, positive
from . import sparse
from .sparse import Matrix


def is_convex(P: Matrix | None, A: Matrix | None) -> Bool[Array, ""]:
    """Whether P is positive semidefinite, or is on the null space of A (a weight on A's rows). Of
    sparse matrices and operators it is believed."""
    if P is None or any(sparse.is_matrix_free(x) for x in (P, A)):
        return jnp.array(True)
    eps = jnp.finfo(P.dtype).eps
    square = jnp.zeros_like(P) if A is None else matmul(A.T, A)
    size, other = positive(maxima([P, square]))
    little = jnp.diag(eps**0.6 * size + jnp.zeros_like(P[0]))
    forms = P[None]
    if A is not None:
        forms = jnp.stack([P, P + eps**-0.25 * size / other * square])
    factors = lax.linalg.cholesky(forms + little, symmetrize_input=False)
    return functools.reduce(jnp.logical_or, jnp.isfinite(factors[:, -1, -1]))
