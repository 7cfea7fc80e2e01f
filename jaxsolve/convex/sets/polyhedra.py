"""Polyhedra: the projection on them is a quadratic program with P = I and q = -p.

So the interior point method finds it, an empty polyhedron is proved by a Farkas certificate, and
the multipliers and derivatives are the program's.
"""

from typing import Any, Self

import equinox as eqx
from jaxtyping import Array, Bool, Float

from ...core.solution import RESULTS
from ...core.solve import solve
from ...core.vectors import frozen, identity
from ..quadratic_program import QuadraticProgram
from .base import AbstractSet, number, shaped, vector
from .bounds import Box

FIELDS = ("A", "b", "G", "h", "lower", "upper")


class Polyhedron(AbstractSet):
    """{x : Ax = b, Gx <= h, lower <= x <= upper}; absent fields are `None`.

    Rows may be redundant, bounds and h infinite, scalar bounds are for all entries. The result of a
    solve is `infeasible`, with a certificate, where the set is empty.

    Example:
        ```python
        polyhedron = sets.Polyhedron(G=jnp.array([[1.0, 2.0]]), h=jnp.array([1.0]), lower=0.0)
        polyhedron.project(jnp.array([1.0, 1.0]))
        ```
    """

    A: Float[Array, "p n"] | None = eqx.field(default=None, kw_only=True)
    b: Float[Array, " p"] | None = eqx.field(default=None, kw_only=True)
    G: Float[Array, "m n"] | None = eqx.field(default=None, kw_only=True)
    h: Float[Array, " m"] | None = eqx.field(default=None, kw_only=True)
    lower: Float[Array, " n"] | Float[Array, ""] | float | None = eqx.field(
        default=None, kw_only=True, converter=number
    )
    upper: Float[Array, " n"] | Float[Array, ""] | float | None = eqx.field(
        default=None, kw_only=True, converter=number
    )

    def problem(self, point: Array) -> QuadraticProgram:
        return program(self, point)

    def fit(self, point: Array) -> Self:
        name = type(self).__name__
        vector(name, point)
        out: dict[str, Any] = {}
        for matrix, side in (("A", "b"), ("G", "h")):
            rows, right = getattr(self, matrix), getattr(self, side)
            if (rows is None) != (right is None):
                given, absent = (matrix, side) if right is None else (side, matrix)
                raise TypeError(f"{name}: `{given}` is given, but `{absent}` is None.")
            if rows is None:
                continue
            rows = shaped(name, matrix, rows, (None, point.size), point)
            out[matrix], out[side] = rows, shaped(name, side, right, (rows.shape[0],), point)
        for field in ("lower", "upper"):
            value = getattr(self, field)
            if value is not None:
                out[field] = shaped(name, field, value, point.shape, point, full=True)
        return type(self)(**out)

    def empty(self) -> Bool[Array, ""]:
        """Whether bounds cross."""
        return Box(self.lower, self.upper).empty()

    def proved_empty(self, point: Array) -> Bool[Array, ""]:
        return without_point(self.problem(point))

    def constraints(self, point: Array) -> dict[str, Array]:
        return {k: v for k in FIELDS if (v := getattr(self, k, None)) is not None}


def without_point(problem: QuadraticProgram) -> Bool[Array, ""]:
    """Whether a projection on rows and bounds is proved infeasible."""
    return solve(frozen(problem), throw=False).result == RESULTS.infeasible


def program(region: Any, point: Array) -> QuadraticProgram:
    """The projection on a set that can state itself as rows and bounds."""
    from .closed_form import opened

    point, unravel = opened(point, type(region).__name__)
    if unravel is not None:
        raise TypeError(f"{type(region).__name__}: `point` must be one vector, not a pytree.")
    fitted = region.fit(point)
    return nearest(point, fitted.constraints(point))


def nearest(point: Float[Array, " n"], constraints: dict[str, Any]) -> QuadraticProgram:
    """minimise |x - point|^2 / 2 subject to these fields of a quadratic program."""
    return QuadraticProgram(identity(point), -point, **constraints)
