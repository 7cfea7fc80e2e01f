"""Proofs of infeasibility and unboundedness, checked against the data."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core.solution import Dual
from ..core.vectors import largest, matmul

"""How many times the data's own size a feasible point would have to be away: 1e6, in float32 1e3."""


def _distance(dtype: Any) -> float:
    return 1e6 if dtype == jnp.float64 else 1e3


def proves_infeasible(problem: Any, dual: Dual) -> Bool[Array, ""]:
    """Whether A'y + G'z - w_l + w_u = 0 with z, w >= 0 and b'y + h'z - lower'w_l + upper'w_u < 0.

    To rounding: with r the first sum and -g < 0 the second, no x with ||x||_1 < g / |r| is feasible.
    That has to be at least 1e6 (1e3) times the size of the terms of g over that of the terms of r.
    """
    zero = jnp.zeros_like(problem.q)
    balance, size = zero, zero
    gap, terms = zero[0], zero[0]
    signs = jnp.ones_like(zero[0], dtype=bool)
    for matrix, side, value, sign in (
        (problem.A, problem.b, dual.equality, None),
        (problem.G, problem.h, dual.inequality, 1),
        (None, problem.lower, dual.lower, -1),
        (None, problem.upper, dual.upper, 1),
    ):
        if value is None:
            continue
        # A positive multiplier of an infinite side proves nothing.
        signs = signs & jnp.all(jnp.isfinite(side) | (value == 0))
        if sign is not None:
            signs = signs & jnp.all(value >= 0)
        weight = value if sign is None else sign * value
        balance = balance + (weight if matrix is None else matmul(weight, matrix))
        size = size + (jnp.abs(value) if matrix is None else matmul(jnp.abs(value), jnp.abs(matrix)))
        product = jnp.where(value == 0, 0, weight * jnp.where(jnp.isfinite(side), side, 0))
        gap = gap - jnp.sum(product)
        terms = terms + jnp.sum(jnp.abs(product))
    return signs & _separates(gap, terms, largest(balance), largest(size), problem.q)


def proves_unbounded(problem: Any, ray: Float[Array, " n"]) -> Bool[Array, ""]:
    """Whether Pd = 0, Ad = 0, Gd <= 0, d >= 0 (<= 0) where lower (upper) is finite, and q'd < 0.

    To rounding: each violation, relative to its terms, at most 1e-6 (1e-3) of q'd relative to its.
    A feasible point has to be shown apart; where there is none, `infeasible` is found first.
    """
    gap, terms = -jnp.sum(problem.q * ray), jnp.sum(jnp.abs(problem.q * ray))
    size = largest(ray)

    def relative(rows, matrix):
        return rows / _positive(jnp.max(matmul(jnp.abs(matrix), jnp.abs(ray))))

    worst = largest(relative(matmul(problem.P, ray), problem.P))
    if problem.A is not None:
        worst = jnp.maximum(worst, largest(relative(matmul(problem.A, ray), problem.A)))
    if problem.G is not None:
        above = jnp.where(jnp.isfinite(problem.h), relative(matmul(problem.G, ray), problem.G), 0)
        worst = jnp.maximum(worst, jnp.max(above, initial=0.0))
    for bound, sign in ((problem.lower, -1), (problem.upper, 1)):
        if bound is not None:
            beyond = jnp.where(jnp.isfinite(bound), sign * ray / _positive(size), 0)
            worst = jnp.maximum(worst, jnp.max(beyond, initial=0.0))
    return _separates(gap, terms, worst, jnp.ones_like(worst), ray)


def _separates(gap, terms, violation, size, like) -> Bool[Array, ""]:
    """Whether gap / terms is above rounding, and 1e6 (1e3) times violation / size."""
    relative = gap / _positive(terms)
    rounding = 100 * jnp.finfo(like.dtype).eps
    return (relative > rounding) & (relative >= _distance(like.dtype) * violation / _positive(size))


def _positive(x: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(x > 0, x, jnp.ones_like(x))
