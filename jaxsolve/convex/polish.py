"""The optimality system at a fixed active set: what polishes a point and what differentiates it.

Rows that are active are equalities C_i x = d_i, the others have no multiplier. With one Cholesky
factor of H + K' diag(w) K, w a large weight on the active rows, the system

    P dx + A'dy + C'dz = r_x,   A dx = r_y,   C_i dx - dz_i / w_i = r_i   (dz_i = 0 where w_i = 0)

is solved by two triangular solves. What the finite weight leaves (a relative 1/w) is taken away by
refinement on the true system: the method of multipliers with a huge penalty.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.solution import Dual, Point
from ..core.solver import AbstractPreconditioner
from .reduced import Reduced
from .small import lanes_last, solve_factored, times, transpose_times


class ActiveSystem(AbstractPreconditioner):
    """The factored system. `solve` and `transpose_solve` are with the Jacobian of `optimality`.

    Attributes:
        weight: w; large on active rows, 1 on ties, 0 on inactive rows.
        tied: rows whose dual and slack are both zero: `min` counts half of each.
        small: whether lanes go last.
    """

    reduced: Reduced
    factor: Float[Array, "k k"]
    weight: Float[Array, " m"]
    tied: Any
    P: Float[Array, "n n"]
    G: Float[Array, "r n"] | None
    equalities: int = eqx.field(static=True)
    small: bool = eqx.field(static=True)

    def rows(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """C x."""
        parts = [] if self.G is None else [times(self.G, x)]
        parts += [s * x for s, has in zip((-1, 1), self.reduced.bounds, strict=True) if has]
        return jnp.concatenate(parts) if parts else x[:0]

    def columns(self, z: Float[Array, " m"]) -> Float[Array, " n"]:
        """C'z."""
        rows, bound = self.reduced.split(z)
        out = jnp.zeros_like(self.P[0])
        if rows is not None:
            out = out + transpose_times(self.G, rows)
        return out if bound is None else out + bound

    def back(
        self,
        r_x: Float[Array, " n"],
        r_y: Float[Array, " p"] | None,
        r_z: Float[Array, " m"],
        offset: Float[Array, " m"] | None = None,
    ) -> tuple[Array, Array | None, Array]:
        """dx, dy, dz of the system above, `offset` added to dz."""
        reduced = self.reduced
        offset = jnp.zeros_like(r_z) if offset is None else offset
        if reduced.rotation is None:
            base, gradient = jnp.zeros_like(r_x), -r_x
        else:
            base = reduced.particular(r_y[: reduced.triangle.shape[0]])
            gradient = times(self.P, base) - r_x
        z = offset + self.weight * (self.rows(base) - r_z)
        dv = solve_factored(self.factor, -reduced.restrict(gradient + self.columns(z)))
        dx = base + reduced.lift(dv)
        dz = offset + self.weight * (self.rows(dx) - r_z)
        if reduced.rotation is None:
            return dx, None if r_y is None else jnp.zeros_like(r_y), dz
        dy = reduced.equality_dual(times(self.P, dx) + self.columns(dz) - r_x)
        missing = r_y.shape[0] - dy.shape[0]
        return dx, jnp.concatenate([dy, jnp.zeros_like(r_y[:missing])]) if missing else dy, dz

    def solve(self, residual: Point) -> Point:
        return self._placed(_solve, residual)

    def transpose_solve(self, residual: Point) -> Point:
        return self._placed(_transpose_solve, residual)

    def _placed(self, fn, residual: Point) -> Point:
        return lanes_last(fn, self, residual) if self.small else fn(self, residual)

    def gathered(self, dual: Dual) -> Float[Array, " m"]:
        """The rows of C as one vector."""
        parts = [x for x in (dual.inequality, dual.lower, dual.upper) if x is not None]
        return jnp.concatenate(parts) if parts else self.weight

    def scattered(self, y: Array | None, z: Float[Array, " m"]) -> Dual:
        """The inverse of `gathered`."""
        count = 0 if self.G is None else self.G.shape[0]
        n, at, parts = self.P.shape[0], count, []
        for has in self.reduced.bounds:
            parts.append(z[at : at + n] if has else None)
            at += n if has else 0
        return Dual(y, z[:count] if count else None, *parts)


def _share(system: ActiveSystem) -> Float[Array, " m"]:
    """The part of dz in a row of `optimality`: 1 inactive, 0 active, 1/2 tied."""
    one = jnp.ones_like(system.weight)
    return jnp.where(system.weight == 0, one, jnp.where(system.tied, one / 2, 0 * one))


def _solve(system: ActiveSystem, residual: Point) -> Point:
    # share * dz - (1 - share) * C dx = r
    r = system.gathered(residual.dual)
    share = _share(system)
    inactive = share == 1
    target = jnp.where(inactive, 0, -r / jnp.where(inactive, 1, 1 - share))
    offset = jnp.where(inactive, r, 0)
    x, y, z = system.back(residual.primal, residual.dual.equality, target, offset)
    return Point(x, system.scattered(y, z))


def _transpose_solve(system: ActiveSystem, residual: Point) -> Point:
    # P x + A'y - C'((1 - share) z) = r_x, A x = r_y, C x + share * z = r_z
    r = system.gathered(residual.dual)
    share = _share(system)
    inactive = share == 1
    x, y, moved = system.back(residual.primal, residual.dual.equality, jnp.where(inactive, 0, r))
    z = jnp.where(inactive, r - system.rows(x), -moved / jnp.where(inactive, 1, 1 - share))
    return Point(x, system.scattered(y, z))
