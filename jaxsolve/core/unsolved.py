"""NaN for the derivative of what was not solved.

A lane that failed has no derivative, and its zero would pass for one. Nothing multiplies by NaN: a
failed lane that is masked, whose cotangent is 0, leaves the data that it shares with others alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .mesh import vary, varying
from .solution import Point


def gated(x: Array, trusted: Bool[Array, ""]) -> Array:
    """x, forwards and backwards; where not `trusted` NaN, unless x is 0."""
    axes = varying((x, trusted))
    trusted = vary(trusted, axes)

    def solve(_: Any, v: Array) -> Array:
        return jnp.where(trusted | ~jnp.any(v != 0), v, jnp.nan)

    return jax.lax.custom_linear_solve(lambda v: v, vary(x, axes), solve=solve, symmetric=True)


def guarded(value: Point, source: Point, trusted: Bool[Array, ""]) -> Point:
    """`value`, with the derivative of `source`, NaN where it is not to be trusted."""

    @jax.custom_jvp
    def gate(value, source, trusted):
        return value

    @gate.defjvp
    def rule(primals, tangents):
        keep = jax.tree.map(lambda t: gated(t, primals[2]), tangents[1])
        return gate(*primals), keep

    return gate(value, source, trusted)


def failure(data: PyTree[Array], solved: Bool[Array, ""]) -> Float[Array, ""] | float:
    """0, to be added to what is made of the data: where not `solved`, that is the way by which NaN
    gets past all that stops a derivative in between (a clipped entry, a projection).

    Forwards its derivative is NaN where any of the data moves; backwards, where what comes is NaN,
    it is NaN in all of the data. At any order; nothing moves: 0.
    """
    if not jax.tree.leaves(data):
        return 0.0
    dtype = jnp.result_type(*jax.tree.leaves(data))
    solved = jax.lax.stop_gradient(solved)
    axes = varying((data, solved))

    def moving(x: Array) -> Float[Array, ""]:
        marks = jax.lax.custom_linear_solve(
            lambda v: v,
            x,
            solve=lambda _, v: (v != 0).astype(v.dtype),
            transpose_solve=lambda _, v: v,
        )
        return jnp.sum(marks).astype(dtype)

    @jax.custom_jvp
    def none(data: PyTree[Array], solved: Array) -> Array:
        zero = vary(jnp.zeros((), dtype), axes)
        # Of the lanes that its derivative has.
        return jnp.where(vary(solved, axes), zero, zero)

    @none.defjvp
    def rule(primals, tangents):
        zero, fine = none(*primals), vary(primals[1], axes)
        # Leaf by leaf: some may be known to stand still.
        marks = [moving(x) for x in jax.tree.leaves(tangents[0])]
        # The factor has NaN as its own derivative: that of the second order.
        moved = vary(sum(marks[1:], marks[0]), axes) * (1 + zero)
        lost = jax.lax.custom_linear_solve(
            lambda v: v,
            moved,
            solve=lambda _, v: jnp.where(fine | (v == 0), jnp.zeros_like(v), jnp.nan),
            transpose_solve=lambda _, v: jnp.where(jnp.isnan(v), v, jnp.zeros_like(v)),
        )
        return zero, lost

    return none(data, solved)


def where_solved(data: PyTree[Array], solved: Bool[Array, ""]) -> PyTree[Array]:
    """Data, for what a value computes of them: where not `solved`, NaN is the derivative of all
    that depends on them.

    Of what does not it stays 0, so that a failed lane that is masked leaves data that it shares
    with others alone. A copy for each lane: for weights, not for matrices.
    """

    @jax.custom_jvp
    def gate(x: Array, solved: Array) -> Array:
        # Of the lanes that its derivative has.
        return jnp.where(solved, x, x)

    @gate.defjvp
    def rule(primals, tangents):
        return gate(*primals), gated(tangents[0], primals[1])

    solved = jax.lax.stop_gradient(solved)
    return jax.tree.map(lambda x: gate(x, solved), data)


def usable(tree: PyTree[Array], solved: Bool[Array, ""]) -> PyTree[Array]:
    """The tree, with 0 for what is not finite where not `solved`: a product of it with 0 would put
    NaN into what lanes share."""
    return jax.tree.map(lambda x: jnp.where(solved | jnp.isfinite(x), x, jnp.zeros_like(x)), tree)


def plus(tree: PyTree[Array], number: Float[Array, ""] | float) -> Any:
    """A number added to every entry, in the dtype of its leaf."""
    return jax.tree.map(lambda x: x + jnp.asarray(number).astype(x.dtype), tree)
