"""Products of cones: vectors are the cones' own, one after the other."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .cone import AbstractCone, AbstractSlope, Spectral


class Slopes(AbstractSlope):
    """The slopes of a product, those of a run of equal cones as one batch."""

    parts: tuple[Any, ...]
    cones: "Product"

    def apply(self, fn: Spectral, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        out = []
        for slope, piece in zip(self.parts, self.cones.split(v), strict=True):
            out.append(jax.vmap(lambda s, x: s.apply(fn, x))(slope, piece).ravel())
        return jnp.concatenate(out)


class Product(AbstractCone):
    """The product of cones; neighbours that are equal are one batch.

    Args:
        cones: at least one.
    """

    cones: tuple[AbstractCone, ...]

    @property
    def rows(self) -> int:
        return sum(cone.rows for cone in self.cones)

    @property
    def runs(self) -> list[tuple[AbstractCone, int]]:
        """Neighbours that are equal: (cone, how many)."""
        out: list[tuple[AbstractCone, int]] = []
        for cone in self.cones:
            if out and type(out[-1][0]) is type(cone) and out[-1][0].rows == cone.rows:
                out[-1] = (cone, out[-1][1] + 1)
            else:
                out.append((cone, 1))
        return out

    def split(self, v: Float[Array, " rows"]) -> list[Float[Array, "count own"]]:
        """The parts of v, one a run."""
        out, at = [], 0
        for cone, count in self.runs:
            out.append(v[at : at + count * cone.rows].reshape(count, cone.rows))
            at += count * cone.rows
        return out

    def each(self, values: list[Array]) -> Float[Array, " rows"]:
        """A value a cone, from one array a run, at each of the cone's rows."""
        parts = [
            jnp.repeat(value, cone.rows) for value, (cone, _) in zip(values, self.runs, strict=True)
        ]
        return jnp.concatenate(parts)

    def project(self, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        pairs = zip(self.runs, self.split(v), strict=True)
        return jnp.concatenate([jax.vmap(cone.project)(x).ravel() for (cone, _), x in pairs])

    def slope(self, v: Float[Array, " rows"]) -> Slopes:
        pairs = zip(self.runs, self.split(v), strict=True)
        return Slopes(tuple(jax.vmap(cone.slope)(x) for (cone, _), x in pairs), self)
