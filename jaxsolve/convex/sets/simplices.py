"""Simplices and the l1 ball."""

from typing import Self

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from ...core.checks import show
from ...core.vectors import largest
from .base import AbstractClosedForm, number, scalar, shaped, vector
from .bounds import natural
from .threshold import capped_threshold, simplex_threshold

Scalar = Float[Array, ""]
Vector = Float[Array, " n"]


class Simplex(AbstractClosedForm):
    """{x : x >= 0, sum x = total}: the probability simplex for total = 1.

    An entry on the boundary of the support, where the projection has two one-sided derivatives,
    counts as zero. No sorting: see `threshold.py`.

    Example:
        ```python
        sets.Simplex().project(jnp.array([1.0, 0.8, -1.0]))
        ```

    Args:
        total: at least 0; the set is empty below.
    """

    total: Scalar = eqx.field(default=1.0, converter=number)

    def fit(self, point: Array) -> Self:
        vector("Simplex", point)
        return type(self)(scalar("Simplex", "total", self.total, point))

    def find(self, point: Vector) -> Vector:
        # A negative total has no root: NaN.
        total = jnp.where(self.total >= 0, self.total, jnp.nan)
        top, tau = simplex_threshold(point, total)
        return jnp.maximum((point - top) - tau, 0)

    def face(self, point: Vector, at: Vector) -> Vector:
        return on_support(point, at, self.total)

    def violation(self, at: Vector) -> Scalar:
        return jnp.maximum(largest(jnp.maximum(-at, 0)), jnp.abs(jnp.sum(at) - self.total))

    def normality(self, point: Vector, at: Vector) -> Scalar:
        pull = point - at
        return largest(jnp.minimum(jnp.max(pull) - pull, jnp.maximum(at, 0)))

    def empty(self) -> Bool[Array, ""]:
        return self.total < 0

    def size(self) -> Scalar:
        return jnp.abs(self.total)

    def constraints(self, point: Array) -> dict[str, Array]:
        ones = jnp.ones_like(point)
        return {"A": ones[None, :], "b": self.total[None], "lower": 0 * ones}


class CappedSimplex(AbstractClosedForm):
    """{x : 0 <= x <= cap, sum x = total}: choose `total` of n things, fractionally, for cap = 1.

    An entry that touches a bound without a force counts as held there.

    Args:
        total: from 0 to the sum of the caps; the set is empty outside.
        cap: at least 0, infinite for none; a scalar is for all entries.
    """

    total: Scalar = eqx.field(converter=number)
    cap: Vector | Scalar = eqx.field(default=1.0, converter=number)

    def fit(self, point: Array) -> Self:
        vector("CappedSimplex", point)
        return type(self)(
            scalar("CappedSimplex", "total", self.total, point),
            shaped("CappedSimplex", "cap", self.cap, point.shape, point, full=True),
        )

    def find(self, point: Vector) -> Vector:
        tau = capped_threshold(point, self.cap, self.total)
        tau = jnp.where(self.empty(), jnp.nan, tau)
        return jnp.clip(point - tau, 0, self.cap)

    def face(self, point: Vector, at: Vector) -> Vector:
        held, full = (at <= 0) | (at >= self.cap), (at >= self.cap) & (self.cap > 0)
        free = ~(held | (at != at))
        count = jnp.sum(free, dtype=point.dtype)
        rest = self.total - jnp.sum(jnp.where(full, self.cap, 0))
        # Around a shift of a free entry: sums of small numbers.
        pivot = lax.stop_gradient(jnp.max(jnp.where(free, point - at, -jnp.inf)))
        pivot = jnp.where(jnp.isfinite(pivot), pivot, 0)
        mean = jnp.sum(jnp.where(free, point - pivot, 0)) - rest
        inner = (point - pivot) - mean / jnp.maximum(count, 1)
        # 0 * at: NaN stays.
        full = full | (free & (inner > self.cap))
        return jnp.where(free & (inner > 0) & ~full, inner, jnp.where(full, self.cap, 0 * at))

    def violation(self, at: Vector) -> Scalar:
        outside = jnp.maximum(jnp.maximum(-at, at - self.cap), 0)
        return jnp.maximum(largest(outside), jnp.abs(jnp.sum(at) - self.total))

    def normality(self, point: Vector, at: Vector) -> Scalar:
        # tau is at least the pull of what is below its cap, at most that of what is above 0.
        pull = point - at
        low = jnp.max(jnp.where(at < self.cap, pull, -jnp.inf))
        high = jnp.min(jnp.where(at > 0, pull, jnp.inf))
        low, high = (
            jnp.where(jnp.isfinite(low), low, high),
            jnp.where(jnp.isfinite(high), high, low),
        )
        # Caps of 0 alone: any multiplier will do.
        tau = jnp.where(jnp.isfinite(low + high), (low + high) / 2, 0)
        force = pull - tau
        return largest(natural(force, at, self.cap - at))

    def empty(self) -> Bool[Array, ""]:
        # One cap for all entries, of which there may be any number: only a fitted set knows.
        most = jnp.sum(self.cap) if self.cap.ndim else jnp.where(self.cap > 0, jnp.inf, 0)
        return (self.total < 0) | jnp.any(self.cap < 0) | (self.total > most)

    def size(self) -> Scalar:
        cap = jnp.where(jnp.isfinite(self.cap), self.cap, 0)
        return jnp.maximum(jnp.abs(self.total), largest(cap))

    def constraints(self, point: Array) -> dict[str, Array]:
        ones = jnp.ones_like(point)
        return {"A": ones[None, :], "b": self.total[None], "lower": 0 * ones, "upper": self.cap}


class L1Ball(AbstractClosedForm):
    """{x : sum |x_i| <= radius}, of any array or pytree.

    The boundary counts as inside (the derivative is the point's), an entry on the boundary of the
    support as zero.

    Args:
        radius: at least 0; the set is empty below.
    """

    radius: Scalar = eqx.field(default=1.0, converter=number)

    def fit(self, point: Array) -> Self:
        if point.size == 0:
            raise ValueError(f"L1Ball: `point` must have an entry; it is {show(point)}.")
        return type(self)(scalar("L1Ball", "radius", self.radius, point))

    def find(self, point: Array) -> Array:
        size = jnp.abs(point)
        radius = jnp.where(self.radius >= 0, self.radius, jnp.nan)
        top, tau = simplex_threshold(size.ravel(), radius)
        outside = jnp.sign(point) * jnp.maximum((size - top) - tau, 0)
        # Inside the root is negative.
        return jnp.where(top + tau > 0, outside, point + 0 * tau)

    def face(self, point: Array, at: Array) -> Array:
        size = jnp.abs(point)
        outside = ~(jnp.sum(size) <= self.radius)
        return jnp.where(outside, jnp.sign(at) * on_support(size, jnp.abs(at), self.radius), point)

    def violation(self, at: Array) -> Scalar:
        return jnp.maximum(jnp.sum(jnp.abs(at)) - self.radius, 0)

    def normality(self, point: Array, at: Array) -> Scalar:
        pull = point - at
        multiplier = largest(pull)
        along = jnp.minimum(multiplier - jnp.sign(at) * pull, jnp.abs(at))
        slack = jnp.maximum(self.radius - jnp.sum(jnp.abs(at)), 0)
        return jnp.maximum(largest(along), jnp.minimum(multiplier, slack))

    def empty(self) -> Bool[Array, ""]:
        return self.radius < 0

    def size(self) -> Scalar:
        return jnp.abs(self.radius)


def on_support(point: Array, at: Array, total: Scalar) -> Array:
    """The projection on {x : sum x = total, x = 0 where at is}: exact to rounding, and linear.

    The sum is formed around the shift that `at` shows, so that it is one of small numbers.
    """
    support = at > 0
    count = jnp.maximum(jnp.sum(support, dtype=point.dtype), 1)
    above = point - _pivot(point, at)
    inner = above - (jnp.sum(jnp.where(support, above, 0)) - total) / count
    # 0 * at: NaN stays. What rounding leaves below 0 is on the boundary.
    return jnp.where(support & (inner > 0), inner, 0 * at)


def _pivot(point: Array, at: Array) -> Scalar:
    """The shift that `at` shows: point - at is it on the support, and less elsewhere."""
    return lax.stop_gradient(jnp.max(point - at))
