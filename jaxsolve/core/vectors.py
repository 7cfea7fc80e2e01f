"""Pytrees as vectors, and products at full precision (GPUs and TPUs lower it by default)."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from .mesh import vary, varying

HIGHEST = jax.lax.Precision.HIGHEST
_SMALL = 512
"""Entries up to which arrays are padded to one length."""


def ravel(tree: PyTree[Array]) -> Float[Array, " n"]:
    """The leaves of `tree` as one vector."""
    return ravel_pytree(tree)[0]


def identity(like: Float[Array, " n"]) -> Float[Array, "n n"]:
    """The unit vectors, a row each, of the size and dtype of `like`, varying over its mesh axes."""
    # A constant would be hoisted out of a loop that is seldom entered, and made every time.
    _, rows = jax.lax.optimization_barrier((like, jnp.arange(like.size, dtype=jnp.int32)))
    eye = (rows[:, None] == jnp.arange(like.size, dtype=jnp.int32)).astype(like.dtype)
    return vary(eye, varying(like))


def basis(like: Float[Array, " n"]) -> Float[Array, "n n"]:
    """`identity` as a constant, for derivatives in a loop that is always entered: XLA takes their
    products with it out of the loop where they do not depend on the point."""
    return vary(jnp.eye(like.size, dtype=like.dtype), varying(like))


def diagonal(matrix: Float[Array, "n n"]) -> Float[Array, " n"]:
    """The diagonal; of a small matrix as a sum, which XLA fuses: a gather is two kernels more."""
    if matrix.shape[0] > 32:
        return jnp.diagonal(matrix)
    place = jnp.arange(matrix.shape[0], dtype=jnp.int32)
    return jnp.sum(jnp.where(place[:, None] == place, matrix, 0), axis=1)


def dot(a: Float[Array, " n"], b: Float[Array, " n"]) -> Float[Array, ""]:
    """a'b. An elementwise product and a sum: XLA fuses it, a call to a BLAS it does not."""
    return jnp.sum(a * b)


def inner(a: PyTree[Array], b: PyTree[Array]) -> Float[Array, ""] | float:
    """The inner product of two trees, 0 of trees without arrays."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum((dot(x, y) for x, y in pairs), start=0.0)


def matmul(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """a @ b at full precision."""
    return jnp.matmul(a, b, precision=HIGHEST)


def norm(a: Float[Array, " n"]) -> Float[Array, ""]:
    """The Euclidean norm, with derivative 0 at 0 (the root's own is infinite); NaN for NaN."""
    return root(jnp.sum(a * a))


def root(squares: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root, with derivative 0 at 0."""
    zero = squares == 0
    safe = jnp.where(zero, jnp.ones_like(squares), squares)
    return jnp.where(zero, jnp.zeros_like(squares), jnp.sqrt(safe))


def largest(tree: PyTree[Array]) -> Float[Array, ""]:
    """The largest absolute entry of an array or of a pytree of them; 0 of none, Inf for NaN."""
    # A maximum of more than some thousand entries loses NaN on CPUs (XLA of jaxlib 0.10.2), and
    # without entries it has no derivative, whatever its initial value.
    parts = [
        jnp.max(jnp.where(jnp.isnan(x), jnp.inf, jnp.abs(x))) if x.size else jnp.sum(x)
        for x in jax.tree.leaves(tree)
    ]
    found = parts[0]
    for part in parts[1:]:
        dtype = jnp.promote_types(found.dtype, part.dtype)
        found = jnp.maximum(found.astype(dtype), part.astype(dtype))
    return found


def maxima(arrays: Sequence[Array]) -> Float[Array, " k"]:
    """`largest` of each of `k` arrays, eight in one reduction (XLA fuses no more): small ones take
    longer to start than to read, and XLA sets each apart at every call, whether it runs or not."""
    longest = max([x.size for x in arrays] + [1])
    if longest > _SMALL:
        return jnp.stack([largest(x) for x in arrays])
    padded = [jnp.pad(jnp.ravel(x), (0, longest - x.size)) for x in arrays]
    rows = [jnp.stack(padded[i : i + 8]) for i in range(0, len(padded), 8)]
    found = [jnp.max(jnp.where(jnp.isnan(x), jnp.inf, jnp.abs(x)), axis=1) for x in rows]
    return jnp.concatenate(found)


def positive(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """`a`, and 1 where it is not positive: what may be divided by."""
    return jnp.where(a > 0, a, jnp.ones_like(a))


def regular(pivots: Float[Array, " n"]) -> Bool[Array, ""]:
    """Whether the sizes of a factorisation's pivots speak for a matrix that has an inverse."""
    least = 10 * pivots.size * jnp.finfo(pivots.dtype).eps
    return jnp.min(pivots) > least * jnp.max(pivots)


def coarsest(tree: PyTree[Array]) -> jnp.dtype:
    """The dtype of least precision among the leaves: what all of them can be found to."""
    return max((x.dtype for x in jax.tree.leaves(tree)), key=lambda d: float(jnp.finfo(d).eps))


def frozen(tree: PyTree) -> PyTree:
    """The tree without its derivatives."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, tree)


def same_shapes(a: PyTree, b: PyTree) -> bool:
    """Whether two trees have the same structure and, leaf by leaf, shapes."""
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    return shapes(a) == shapes(b)


def finite(*arrays: PyTree[Array]) -> Bool[Array, ""]:
    """Whether all entries of all arrays are finite."""

    # 0 times Inf or NaN is NaN. A product with the last axis takes half the time of a look at each
    # entry on CPUs; behind the barrier nobody sees that the other factor is 0. Small ones are
    # looked at: where more than nine kernels could start at once, XLA hands some to other
    # threads, and a single small solve waits 15 microseconds for them.
    def vanishing(x: Array) -> Array:
        return matmul(x, jax.lax.optimization_barrier(jnp.zeros(x.shape[-1], x.dtype)))

    leaves = [jax.lax.stop_gradient(x) for x in jax.tree.leaves(arrays)]
    if not leaves:
        return jnp.array(True)
    dtype = jnp.result_type(*leaves)
    parts = [vanishing(x) if x.size > (128 if x.ndim > 1 else _SMALL) else x for x in leaves]
    return jnp.all(jnp.isfinite(jnp.concatenate([jnp.ravel(x).astype(dtype) for x in parts])))


def clean(point: PyTree[Array], data: PyTree) -> Bool[Array, ""]:
    """Whether a starting point is finite and the data it goes with hold no NaN; Inf may be meant in
    them (a bound, a mask of logits)."""
    usable = finite(point)
    for x in jax.tree.leaves(eqx.filter(data, eqx.is_inexact_array)):
        # No sum of squares is NaN unless an entry is. On CPUs it is found three times as fast as
        # whether any entry of a mask is set.
        usable = usable & ~jnp.isnan(jnp.sum(jnp.abs(jax.lax.stop_gradient(x)) ** 2))
    return usable
