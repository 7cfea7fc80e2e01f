"""The optimality system at a fixed active set: what differentiates the solution of a program.

Rows that are active are equalities C_i x = d_i, the others have no multiplier. With one Cholesky
factor of H + K' diag(w) K, w a large weight on the active rows, the system

    P dx + A'dy + C'dz = r_x,   A dx = r_y,   C_i dx - dz_i / w_i = r_i   (dz_i = 0 where w_i = 0)

is solved by two triangular solves. What the finite weight leaves (a relative 1/w) is taken away by
repeating that on the residual: the method of multipliers with a huge penalty.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.krylov import least_residual
from ..core.solution import Dual, Point
from ..core.solver import AbstractPreconditioner
from ..core.vectors import matmul
from .iterate import Iterate, direction
from .quadratic_program import QuadraticProgram
from .reduced import Reduced, collapse, expand, fields_of, join


class ActiveSystem(AbstractPreconditioner):
    """The factored system. `solve` and `transpose_solve` are with the Jacobian of `optimality`.

    Attributes:
        weight: w; large on active rows, 1 on ties, 0 on inactive rows.
        tied: rows whose dual and slack are both zero: `min` counts half of each.
    """

    reduced: Reduced
    factor: Float[Array, "k k"]
    weight: Float[Array, " m"]
    tied: Any
    P: Float[Array, "n n"]
    G: Float[Array, "r n"] | None
    equalities: int = eqx.field(static=True)

    accurate: ClassVar[bool] = True

    def rows(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """C x."""
        rows = x if self.G is None else jnp.concatenate([matmul(self.G, x), x])
        return expand(rows, self.reduced.inequalities, self.reduced.bounds)

    def columns(self, z: Float[Array, " m"]) -> Float[Array, " n"]:
        """C'z."""
        count, bounds = self.reduced.inequalities, self.reduced.bounds
        total = jnp.zeros_like(self.P[0])
        if self.G is not None:
            total = total + matmul(z[:count], self.G)
        if any(bounds):
            total = total + collapse(z, count, bounds)[count:]
        return total

    def back(
        self, r_x: Float[Array, " n"], r_y: Float[Array, " p"] | None, r_z: Float[Array, " m"]
    ) -> tuple[Array, Array | None, Array]:
        """dx, dy, dz of the system above."""
        reduced = self.reduced
        if reduced.basis is None or r_y is None:
            dx, dz = self._reduced(-r_x, r_z)
            return dx, None if r_y is None else jnp.zeros_like(r_y), dz
        base = reduced.particular(r_y[: reduced.equalities])
        gradient = reduced.restrict(matmul(self.P, base) - r_x)
        dv, dz = self._reduced(gradient, r_z - self.rows(base))
        dx = base + matmul(reduced.basis, dv)
        dy = reduced.equality_dual(matmul(self.P, dx) + self.columns(dz) - r_x)
        missing = r_y.shape[0] - dy.shape[0]
        return dx, jnp.concatenate([dy, jnp.zeros_like(r_y[:missing])]) if missing else dy, dz

    def _reduced(
        self, gradient: Float[Array, " k"], target: Float[Array, " m"]
    ) -> tuple[Float[Array, " k"], Float[Array, " m"]]:
        """H dv + K'dz = -gradient, K_i dv = target_i (and dz_i more in a tie), dz_i = 0 elsewhere:
        by the method of multipliers, with a step to the least residual after each sweep."""
        none = jnp.zeros_like(target)

        def gap(at: Iterate) -> Float[Array, " m"]:
            found = at.row - target - jnp.where(self.tied, at.z, 0)
            return jnp.where(self.weight > 0, found, 0)

        now = old = Iterate(0 * gradient, gradient, none, none, none)
        for _ in range(2):
            step = direction(self.reduced, self.factor, self.weight, now.gradient, gap(now), none)
            new = jax.tree.map(jnp.add, now, step)
            left = [jnp.concatenate([at.gradient, gap(at)]) for at in (new, old)]
            now, old = least_residual(new, old, *left), new
        return now.v, now.z

    def solve(self, residual: Point) -> Point:
        # share * dz - (1 - share) * C dx = r
        r, share = self._gathered(residual.dual), self._share()
        inactive = share == 1
        target = jnp.where(inactive, 0, -r / jnp.where(inactive, 1, 1 - share))
        offset = jnp.where(inactive, r, 0)
        r_x = residual.primal - self.columns(offset)
        x, y, z = self.back(r_x, residual.dual.equality, target)
        return Point(x, self._scattered(y, z + offset))

    def transpose_solve(self, residual: Point) -> Point:
        # P x + A'y - C'((1 - share) z) = r_x, A x = r_y, C x + share * z = r_z
        r, share = self._gathered(residual.dual), self._share()
        inactive = share == 1
        target = jnp.where(inactive, 0, r)
        x, y, moved = self.back(residual.primal, residual.dual.equality, target)
        z = jnp.where(inactive, r - self.rows(x), -moved / jnp.where(inactive, 1, 1 - share))
        return Point(x, self._scattered(y, z))

    def _share(self) -> Float[Array, " m"]:
        """The part of dz in a row of `optimality`: 1 inactive, 0 active, 1/2 tied."""
        return jnp.where(self.weight == 0, 1, self.tied.astype(self.weight.dtype) / 2)

    def _gathered(self, dual: Dual) -> Float[Array, " m"]:
        return join(dual.inequality, dual.lower, dual.upper, self.weight)

    def _scattered(self, y: Array | None, z: Float[Array, " m"]) -> Dual:
        return Dual(y, *fields_of(z, self.reduced.inequalities, self.reduced.bounds))


def answer(
    problem: QuadraticProgram, reduced: Reduced, v: Float[Array, " k"], z: Float[Array, " m"]
) -> Point:
    """The point in the problem's own variables, with the multipliers of its equalities."""
    x = reduced.lift(v)
    if problem.lower is not None and problem.upper is not None:
        x = jnp.where(problem.lower == problem.upper, problem.lower, x)
    dual = reduced.dual(None, z)
    if problem.b is None:
        return Point(x, dual)
    y = jnp.zeros_like(problem.b)
    if reduced.triangle is not None:
        others = eqx.tree_at(lambda p: (p.A, p.b), problem, (None, None))
        gradient = others.conditions(Point(x, dual)).gradient
        y = join(reduced.equality_dual(gradient), y, None, y)[: y.size]
    return Point(x, _with_equality(dual, y))


def active_system(
    problem: QuadraticProgram,
    reduced: Reduced,
    factor: Float[Array, "k k"],
    weight: Float[Array, " m"],
    z: Float[Array, " m"],
) -> ActiveSystem:
    """What the last polish left, for the derivative."""
    tied = jnp.zeros_like(reduced.fixed)
    if all(reduced.bounds):
        # Of a fixed variable's two bounds one is active and one tied.
        count, bounds = reduced.inequalities, reduced.bounds
        rows, large, upper = fields_of(weight, count, bounds)
        fixed = fields_of(reduced.fixed, count, bounds)[1]
        high = fixed & (fields_of(z, count, bounds)[1] < 0)
        weight = join(
            rows,
            jnp.where(high, 1, large),
            jnp.where(fixed, jnp.where(high, large, 1), upper),
            weight,
        )
        tied = join(None if rows is None else rows != rows, high, fixed & ~high, weight)
    equalities = 0 if problem.b is None else problem.b.shape[0]
    return ActiveSystem(reduced, factor, weight, tied, problem.P, problem.G, equalities)


def _with_equality(dual: Dual, y: Float[Array, " p"]) -> Dual:
    return Dual(y, dual.inequality, dual.lower, dual.upper)
