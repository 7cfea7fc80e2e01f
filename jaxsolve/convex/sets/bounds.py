"""Boxes, maximum-norm balls and halfspaces."""

from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from ...core.vectors import dot, largest, ravel
from .base import AbstractClosedForm, number, scalar, shaped, vector


class Box(AbstractClosedForm):
    """{x : lower <= x <= upper}.

    Both bounds may be absent (`None`), infinite, a scalar for all entries, or of the point's shape
    (its pytree structure). Where an entry of the point equals a bound, it counts as free: the
    derivative is the point's, not the bound's. Where the bounds are equal they fix the entry.

    Example:
        ```python
        sets.Box(lower=0.0, upper=1.0).project(jnp.array([-1.0, 0.5, 3.0]))
        ```
    """

    lower: Any = eqx.field(default=None, converter=number)
    upper: Any = eqx.field(default=None, converter=number)

    def fit(self, point: Array) -> Self:
        fields = []
        for field, missing in (("lower", -jnp.inf), ("upper", jnp.inf)):
            value = getattr(self, field)
            if isinstance(value, dict | list | tuple):
                value = ravel_pytree(value)[0]
            value = jnp.asarray(missing, point.dtype) if value is None else value
            fields.append(shaped("Box", field, value, point.shape, point, full=True))
        return type(self)(*fields)

    def matches(self, point: PyTree[Array]) -> None:
        if jax.tree.structure(point) == jax.tree.structure(0):
            return
        wanted = [jnp.shape(x) for x in jax.tree.leaves(point)]
        for field in ("lower", "upper"):
            value = getattr(self, field)
            if value is None or jax.tree.structure(value) == jax.tree.structure(0):
                continue
            same = jax.tree.structure(value) == jax.tree.structure(point)
            if not same or [jnp.shape(x) for x in jax.tree.leaves(value)] != wanted:
                raise ValueError(
                    f"Box: `{field}` is {outline(value)}, but `point` is {outline(point)}: "
                    f"`{field}` must be a scalar, or have the point's structure and shapes."
                )

    def find(self, point: Array) -> Array:
        return jnp.minimum(jnp.maximum(point, self.lower), self.upper)

    def face(self, point: Array, at: Array) -> Array:
        # A bound that is not held is not differentiated either.
        below, above = point < self.lower, point > self.upper
        return jnp.where(below, self.lower, jnp.where(above, self.upper, point))

    def violation(self, at: Array) -> Float[Array, ""]:
        return largest(jnp.maximum(jnp.maximum(self.lower - at, at - self.upper), 0))

    def normality(self, point: Array, at: Array) -> Float[Array, ""]:
        return largest(natural(point - at, at - self.lower, self.upper - at))

    def empty(self) -> Bool[Array, ""]:
        ends = (self.lower, -jnp.inf), (self.upper, jnp.inf)
        lower, upper = (ravel(free if end is None else end) for end, free in ends)
        return jnp.any((lower > upper) | (lower == jnp.inf) | (upper == -jnp.inf))

    def size(self) -> Float[Array, ""]:
        bounds = [jnp.where(jnp.isfinite(x), x, 0) for x in (self.lower, self.upper)]
        return jnp.maximum(*map(largest, bounds))

    def constraints(self, point: Array) -> dict[str, Array]:
        return {k: v for k in ("lower", "upper") if (v := getattr(self, k)) is not None}


class LinfBall(AbstractClosedForm):
    """{x : |x_i| <= radius}, of any array or pytree; the boundary counts as inside."""

    radius: Float[Array, ""] = eqx.field(default=1.0, converter=number)

    def fit(self, point: Array) -> Self:
        return type(self)(scalar("LinfBall", "radius", self.radius, point))

    def find(self, point: Array) -> Array:
        return jnp.minimum(jnp.maximum(point, -self.radius), self.radius)

    def face(self, point: Array, at: Array) -> Array:
        outside = jnp.abs(point) > self.radius
        return jnp.where(outside, jnp.sign(point) * self.radius, point)

    def violation(self, at: Array) -> Float[Array, ""]:
        return jnp.maximum(largest(at) - self.radius, 0)

    def normality(self, point: Array, at: Array) -> Float[Array, ""]:
        return largest(natural(point - at, at + self.radius, self.radius - at))

    def empty(self) -> Bool[Array, ""]:
        return self.radius < 0

    def size(self) -> Float[Array, ""]:
        return jnp.abs(self.radius)

    def constraints(self, point: Array) -> dict[str, Array]:
        radius = jnp.broadcast_to(self.radius, point.shape)
        return {"lower": -radius, "upper": radius}


class Halfspace(AbstractClosedForm):
    """{x : normal'x <= offset}; the boundary counts as inside, a normal of zeros as no condition.

    Args:
        normal: a vector of the point's length.
        offset: a scalar.
    """

    normal: Float[Array, " n"]
    offset: Float[Array, ""] = eqx.field(default=0.0, converter=number)

    def fit(self, point: Array) -> Self:
        vector("Halfspace", point)
        normal = shaped("Halfspace", "normal", self.normal, point.shape, point)
        return type(self)(normal, scalar("Halfspace", "offset", self.offset, point))

    def find(self, point: Array) -> Array:
        return self.face(point, point)

    def face(self, point: Array, at: Array) -> Array:
        square = dot(self.normal, self.normal)
        excess = dot(self.normal, point) - self.offset
        outside = (excess > 0) & (square > 0)
        length = jnp.where(outside, excess, 0) / jnp.where(outside, square, 1)
        return point - length * self.normal

    def violation(self, at: Array) -> Float[Array, ""]:
        return jnp.maximum(dot(self.normal, at) - self.offset, 0) / self._length()

    def normality(self, point: Array, at: Array) -> Float[Array, ""]:
        length = self._length()
        unit, pull = self.normal / length, point - at
        multiplier = dot(unit, pull)
        slack = self.offset / length - dot(unit, at)
        return jnp.maximum(
            largest(pull - multiplier * unit), jnp.abs(jnp.minimum(multiplier, slack))
        )

    def _length(self) -> Float[Array, ""]:
        square = dot(self.normal, self.normal)
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 1)

    def empty(self) -> Bool[Array, ""]:
        return ((self.offset < 0) & jnp.all(self.normal == 0)) | (self.offset == -jnp.inf)

    def size(self) -> Float[Array, ""]:
        return jnp.abs(self.offset) / self._length()

    def constraints(self, point: Array) -> dict[str, Array]:
        return {"G": self.normal[None, :], "h": self.offset[None]}


def outline(tree: PyTree) -> str:
    """A pytree with the shapes of its leaves."""
    return str(jax.tree.map(lambda x: list(jnp.shape(x)), tree))


def natural(pull: Array, below: Array, above: Array) -> Array:
    """min(dual, slack) of both bounds: `pull` is w_upper - w_lower, the slacks are `below` and
    `above`."""
    low = jnp.minimum(jnp.maximum(-pull, 0), jnp.maximum(below, 0))
    high = jnp.minimum(jnp.maximum(pull, 0), jnp.maximum(above, 0))
    return jnp.maximum(low, high)
