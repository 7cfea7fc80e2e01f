"""Products of cones: vectors are the cones' own, one after the other."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...core.vectors import largest
from .cone import AbstractBarrierCone, AbstractCone, AbstractSlope, Spectral
from .linear import Nonnegative, Zero


class Slopes(AbstractSlope):
    """The slopes of a product, those of a run of equal cones as one batch."""

    parts: tuple[Any, ...]
    cones: "Product"

    def apply(self, fn: Spectral, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        out = []
        for slope, piece in zip(self.parts, self.cones.split(v), strict=True):
            out.append(jax.vmap(lambda s, x: s.apply(fn, x))(slope, piece).ravel())
        return _joined(out, v)

    def root(self, fn: Spectral, matrix: Float[Array, "rows n"]) -> Float[Array, "rows n"]:
        pieces = zip(self.parts, self.cones.split(matrix), strict=True)
        found = [jax.vmap(lambda s, m: s.root(fn, m))(*piece) for piece in pieces]
        return _joined([x.reshape(-1, matrix.shape[1]) for x in found], matrix)

    def map(self, fn: Spectral) -> "Slopes":
        return Slopes(tuple(part.map(fn) for part in self.parts), self.cones)


class Product(AbstractBarrierCone):
    """The product of cones; neighbours that are equal are one batch.

    It has a barrier where all of them have one.

    Args:
        cones: any number; without any it is the cone of no rows.
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

    def split(self, v: Float[Array, "rows ..."]) -> list[Float[Array, "count own ..."]]:
        """The parts of v, or of the rows of a matrix, one a run."""
        out, at = [], 0
        for cone, count in self.runs:
            piece = v[at : at + count * cone.rows]
            out.append(piece.reshape(count, cone.rows, *v.shape[1:]))
            at += count * cone.rows
        return out

    def each(self, values: list[Array], like: Array) -> Array:
        """A value a cone, from one array a run, at each of the cone's rows; of none, `like`."""
        runs = zip(values, self.runs, strict=True)
        parts = [jnp.repeat(value, cone.rows) for value, (cone, _) in runs]
        return _joined(parts, like)

    def sizes(self, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """The largest absolute entry of each cone, at each of its rows."""
        return self.each([jax.vmap(largest)(x) for x in self.split(v)], v)

    def consists(self, kind: type[AbstractCone]) -> Bool[Array, " rows"]:
        """Rows that are of cones of this kind."""
        held = [jnp.full(count, isinstance(cone, kind)) for cone, count in self.runs]
        return self.each(held, jnp.zeros(0, bool))

    def binding(self, h: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """h where it is a size of every slack h - Gx near the cone's boundary: 0 on `Nonnegative`,
        where active slacks are 0 and h of the others may be anything."""
        return jnp.where(self.consists(Nonnegative), 0, h)

    def project(self, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return self._rowwise(lambda cone, x: cone.project(x), v)

    def slope(self, v: Float[Array, " rows"]) -> Slopes:
        return Slopes(tuple(self._mapped(lambda cone, x: cone.slope(x), v)), self)

    @property
    def degree(self) -> int:
        return sum(_barrier(cone).degree for cone in self.cones)

    def identity(self, like: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return self._rowwise(lambda cone, x: _barrier(cone).identity(x), like)

    def depth(self, v: Float[Array, " rows"]) -> Float[Array, ""]:
        depths = self._mapped(lambda cone, x: _barrier(cone).depth(x), v)
        return jnp.min(_joined(depths, v), initial=jnp.inf)

    def scaling(self, s: Float[Array, " rows"], z: Float[Array, " rows"]) -> Slopes:
        parts = self._mapped(lambda cone, *x: _barrier(cone).scaling(*x), s, z)
        return Slopes(tuple(parts), self)

    def centre(self, scaling: Any, s, z, ds, dz, level):
        out = []
        pieces = zip(self.runs, scaling.parts, *map(self.split, (s, z, ds, dz)), strict=True)
        for (cone, _), *piece in pieces:
            own = partial(_barrier(cone).centre, level=level)
            out.append(jax.vmap(own)(*piece).ravel())
        return _joined(out, s)

    def reach(self, s, z, ds, dz):
        lengths = self._mapped(lambda cone, *x: _barrier(cone).reach(*x), s, z, ds, dz)
        return jnp.min(_joined(lengths, s), initial=2)

    def held(self, v: Float[Array, " rows"]) -> Float[Array, " held"]:
        """The entries that have to be 0."""
        runs = zip(self.runs, self.split(v), strict=True)
        return _joined([x.ravel() for (cone, _), x in runs if isinstance(cone, Zero)], v[:0])

    def level(self, v: Float[Array, " rows"]) -> Float[Array, " levels"] | None:
        """Of the cones that are not `Zero`."""
        out = []
        for (cone, _), piece in zip(self.runs, self.split(v), strict=True):
            if isinstance(cone, Zero):
                continue
            levels = jax.vmap(cone.level)(piece)
            if levels is None:
                return None
            out.append(levels.ravel())
        return _joined(out, v[:0])

    def _mapped(self, fn: Callable[..., Any], *vectors: Array) -> list[Any]:
        """fn(cone, *parts), batched over each run."""
        pieces = zip(self.runs, *(self.split(v) for v in vectors), strict=True)
        return [jax.vmap(partial(fn, cone))(*parts) for (cone, _), *parts in pieces]

    def _rowwise(self, fn: Callable[..., Any], *vectors: Array) -> Float[Array, " rows"]:
        return _joined([x.ravel() for x in self._mapped(fn, *vectors)], vectors[0])


def _barrier(cone: AbstractCone) -> AbstractBarrierCone:
    if not isinstance(cone, AbstractBarrierCone):
        raise TypeError(f"{type(cone).__name__} has no barrier here.")
    return cone


def _joined(parts: list[Array], like: Array) -> Array:
    """The parts in one array; without parts, `like`, which is empty."""
    return jnp.concatenate(parts) if parts else like
