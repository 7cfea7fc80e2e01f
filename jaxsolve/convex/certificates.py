"""Proofs of infeasibility and unboundedness, checked against the data."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core.solution import Dual
from ..core.vectors import maxima, positive
from . import sparse
from .scales import wide


def separation(products: Float[Array, " m"], noise: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether the sum of `products` is below 0 by more than `wide` times `noise`, and by more than
    the rounding of the sum."""
    total, terms = jnp.sum(jnp.stack([products, jnp.abs(products)]), axis=1)
    gap = -total
    return (gap > 100 * jnp.finfo(products.dtype).eps * terms) & (
        gap >= wide(products.dtype) * noise
    )


def proves_infeasible(problem: Any, dual: Dual) -> Bool[Array, ""]:
    """Whether `dual` is a Farkas certificate: r = A'y + G'z - w_l + w_u is 0 with z, w >= 0 and
    b'y + h'z - lower'w_l + upper'w_u is negative.

    To rounding: if the second sum is -g < 0, no x with |x|_1 < g / |r| is feasible. That has to
    be 1e6 (1e3) times the data's own distance, the largest |side| / |row| of any constraint.
    """
    rest, products, distances = jnp.zeros_like(problem.q), [problem.q[:0]], [problem.q[:0]]
    signs = jnp.ones_like(problem.q[0], dtype=bool)
    for matrix, side, value, sign in (
        (problem.A, problem.b, dual.equality, 0),
        (problem.G, problem.h, dual.inequality, 1),
        (None, problem.lower, dual.lower, -1),
        (None, problem.upper, dual.upper, 1),
    ):
        if value is None:
            continue
        there = jnp.isfinite(side)
        if sign:
            # A positive multiplier of an infinite side proves nothing.
            signs = signs & jnp.all((value == 0) | ((value > 0) & there))
        weight = -value if sign < 0 else value
        rest = rest + (weight if matrix is None else sparse.transposed(matrix, weight))
        side = jnp.where(there, side, 0)
        products.append(weight * side)
        size = 1.0 if matrix is None else positive(sparse.sizes(matrix))
        distances.append(side / size)
    far, push = maxima([jnp.concatenate(distances), rest])
    return signs & separation(jnp.concatenate(products), far * push)


def proves_unbounded(problem: Any, ray: Float[Array, " n"]) -> Bool[Array, ""]:
    """Whether Pd = 0, Ad = 0, Gd <= 0, d >= 0 (<= 0) where lower (upper) is finite, and q'd < 0.

    To rounding: q'd is 1e6 (1e3) times each violation, of rows scaled to the size of q. A feasible
    point has to be shown apart; where there is none, `infeasible` is found first.
    """
    parts = [scaled(problem.P, problem.bend(ray))]
    if problem.A is not None:
        parts.append(scaled(problem.A, sparse.apply(problem.A, ray)))
    if problem.G is not None:
        above = scaled(problem.G, jnp.maximum(sparse.apply(problem.G, ray), 0))
        parts.append(jnp.where(jnp.isfinite(problem.h), above, 0))
    for bound, sign in ((problem.lower, -1), (problem.upper, 1)):
        if bound is not None:
            parts.append(jnp.where(jnp.isfinite(bound), jnp.maximum(sign * ray, 0), 0))
    slope, miss = maxima([problem.q, jnp.concatenate(parts)])
    return separation(problem.q * ray, slope * miss)


def scaled(matrix: Any, product: Float[Array, " m"]) -> Float[Array, " m"]:
    """A product, or a side, each entry over the size of its row."""
    return product / positive(sparse.sizes(matrix))
