"""Projection on the coupled set C = {(x, y) in X x Y : h(x, y) = 0, g(x, y) <= 0}, h and g affine.

Equalities alone (X and Y may add some) are a formula, w - Q'(Q w - d) with orthonormal rows Q. Else
C is the intersection of a simple set S (the equalities, or X x Y) with the remaining rows, and its
projection is P_S(w - M'u), where u >= 0 of inequalities is the maximum of the dual function, whose
gradient is M P_S(w - M'u) - d and 1-Lipschitz, for |M| <= 1: accelerated gradient steps with
restarts (O'Donoghue and Candès, 2015), which start at the u of the step before.
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..convex.sets import Affine
from ..core.loop import Program, run
from ..core.vectors import dot, largest, matmul, ravel
from .bilevel import Bilevel, Pair
from .coupling import AffineRows, orthonormal

Vector = Float[Array, " n"]
Scalar = Float[Array, ""]

_MOST_STEPS = 2000
_RESOLUTION = 0.75
"""The dual gradient, relative to the point, that is enough: eps to this power."""


class AbstractRegion(eqx.Module):
    """A coupled set; its projection may leave something for the next one."""

    @abc.abstractmethod
    def project(self, functions: Any, both: Vector) -> tuple[Vector, "AbstractRegion"]:
        """The nearest point (`functions` knows X and Y), and the set for the next projection."""


class Flat(AbstractRegion):
    """{w : rows w = offset}, rows orthonormal or 0."""

    rows: Float[Array, "e n"]
    offset: Float[Array, " e"]

    def nearest(self, both: Vector) -> Vector:
        return both - matmul(matmul(self.rows, both) - self.offset, self.rows)

    def project(self, functions: Any, both: Vector) -> tuple[Vector, AbstractRegion]:
        return self.nearest(both), self


class Cut(AbstractRegion):
    """A simple set cut by rows, of joint norm at most 1.

    Attributes:
        simple: the equalities; `None` where the simple set is X x Y.
        rows, offset: of the cut; `equalities` of them are such.
        dual: u of the last projection.
    """

    simple: Flat | None
    rows: Float[Array, "q n"]
    offset: Float[Array, " q"]
    dual: Float[Array, " q"]
    equalities: int = eqx.field(static=True)

    def project(self, functions: Any, both: Vector) -> tuple[Vector, AbstractRegion]:
        def nearest(w: Vector) -> Vector:
            if self.simple is not None:
                return self.simple.nearest(w)
            return functions.into_both(w)

        dual = _dual(self, nearest, both)
        found = nearest(both - matmul(dual, self.rows))
        # Constant leaves stay the same objects: the loop does not copy them.
        return found, Cut(self.simple, self.rows, self.offset, dual, self.equalities)


class _Ascent(eqx.Module):
    """Dual point, extrapolated point, weight of the momentum."""

    dual: Vector
    ahead: Vector
    momentum: Scalar
    count: Int[Array, ""]


def _dual(cut: Cut, nearest: Any, both: Vector) -> Vector:
    signed = jnp.arange(cut.offset.size) >= cut.equalities
    goal = jnp.finfo(both.dtype).eps ** _RESOLUTION * jnp.maximum(largest(both), 1)

    def start(_: Any) -> tuple[_Ascent, Bool[Array, ""]]:
        dual = cut.dual + 0 * both[0]
        one = jnp.ones_like(both[0])
        return _Ascent(dual, dual, one, jnp.zeros((), jnp.int32)), one != one

    def step(_: Any, s: _Ascent) -> tuple[_Ascent, Bool[Array, ""]]:
        slope = matmul(cut.rows, nearest(both - matmul(s.ahead, cut.rows))) - cut.offset
        new = s.ahead + slope
        new = jnp.where(signed, jnp.maximum(new, 0), new)
        off = largest(new - s.ahead)
        forth = dot(s.ahead - new, new - s.dual) <= 0
        momentum = jnp.where(forth, (1 + jnp.sqrt(1 + 4 * s.momentum**2)) / 2, 1.0)
        pull = jnp.where(forth, (s.momentum - 1) / momentum, 0.0)
        ahead = new + pull * (new - s.dual)
        count = s.count + 1
        return _Ascent(new, ahead, momentum, count), (off <= goal) | (count >= _MOST_STEPS)

    return run(Program(start, step, lambda _, s: s.dual), ())


def coupled_set(problem: Bilevel, primal: Pair, rows: AffineRows) -> AbstractRegion:
    """C of a problem whose coupling constraints have these rows."""
    count = rows.equalities
    flat = Flat(rows.matrix[:count], rows.offset[:count])
    sets = problem.upper_set, problem.lower_set
    simple = all(found is None or isinstance(found, Affine) for found in sets)
    if not simple:
        # Orthonormal rows and rows of norm 1 have norm sqrt(2) together.
        both = 0 < count < rows.offset.size
        size = jnp.sqrt(jnp.asarray(2.0 if both else 1.0, rows.offset.dtype))
        return Cut(None, rows.matrix / size, rows.offset / size, 0 * rows.offset, count)
    flat = _with_sets(flat, problem, primal)
    if count == rows.offset.size:
        return flat
    cuts = rows.matrix[count:], rows.offset[count:]
    return Cut(flat, cuts[0], cuts[1], 0 * cuts[1], 0)


def _with_sets(flat: Flat, problem: Bilevel, primal: Pair) -> Flat:
    """With the equations of X and Y."""
    sizes = [ravel(part).size for part in primal]
    rows, offsets = [flat.rows], [flat.offset]
    for place, found in enumerate((problem.upper_set, problem.lower_set)):
        if not isinstance(found, Affine):
            continue
        given = found.constraints(ravel(primal[place]))
        own = given["A"]
        blocks = [jnp.zeros_like(own, shape=(own.shape[0], size)) for size in sizes]
        blocks[place] = own
        rows.append(jnp.concatenate(blocks, axis=1))
        offsets.append(given["b"])
    if len(rows) == 1:
        return flat
    basis = orthonormal(jnp.concatenate(rows), jnp.concatenate(offsets))
    return Flat(basis.rows, basis.offset)
