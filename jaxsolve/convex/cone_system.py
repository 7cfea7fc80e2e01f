"""The optimality system of a solved program: what its derivative is solved with.

With D the derivative of the projection on C at w + y, and up to the signs S of rows, the Jacobian
of `optimality` and its transpose are

    P dx + M'e = r,  (I - D) M dx - D e = t;      P dx + M'(I - D) u = r,  M dx - D u = t.

The second times I - D, with e = (I - D) u, is the first with (I - D) t for t, and then
u = M dx - t + e. So one way to solve the first serves both.

A bound's two sides are one row of M. Where a side is inactive, its row says that its multiplier is
given, and its column that its unknown is: these are taken out before and put back after.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core.solution import Dual, Point
from ..core.solver import AbstractPreconditioner
from .cone_program import ConeProgram
from .quadratic_program import QuadraticProgram
from .splitting_form import Form, RowSlope, form_of
from .splitting_systems import Factored, NewtonSystem, symmetric_newton, system_of


class ConeSystem(AbstractPreconditioner):
    """Solves with the Jacobian and its transpose: factored, or by MINRES without `factors`.

    Attributes:
        sign: of the rows of `optimality` against those of the form.
        below: bounds that are active at their lower side.
    """

    form: Form
    slope: RowSlope
    factors: NewtonSystem | None
    sign: Float[Array, " rows"]
    below: Bool[Array, " n"]

    @classmethod
    def of(cls, problem: QuadraticProgram | ConeProgram, point: Point) -> "ConeSystem":
        """The system at a solution."""
        form, x = form_of(problem), point.primal
        y = form.gather(point.dual)
        slope = form.slope(form.apply(x) + y)
        one = jnp.ones_like(y)
        system = system_of(form)
        factors = None
        if isinstance(system, Factored):
            factors = NewtonSystem.of(system, slope, one, 0 * jnp.sum(x))
        count = 0 if problem.b is None else problem.b.shape[0]
        sign = jnp.where(jnp.arange(y.shape[0]) < count, one, -one)
        below = jnp.zeros_like(x, dtype=bool)
        if form.kind[2]:
            assert isinstance(problem, QuadraticProgram)
            below = point.dual.lower > x - problem.lower
        return cls(form, slope, factors, sign, below)

    def solve(self, residual: Point) -> Point:
        dual, n = residual.dual, residual.primal.shape[0]
        target = self._rows(dual)
        target = target * self.sign[: target.shape[0]]
        if not self.form.box:
            dx, e = self._newton(residual.primal, target)
            return Point(dx, self.form.split(e))
        low, high = self._sides(dual, residual.primal)
        inside = self.slope.values[-n:] == 1
        own = jnp.where(inside, low - high, jnp.where(self.below, low, -high))
        # A multiplier that is given beside an active side moves to the other equations.
        given = jnp.where(inside, 0, jnp.where(self.below, high, -low))
        dx, e = self._newton(residual.primal - given, jnp.concatenate([target, own]))
        rest, own = e[:-n], e[-n:]
        lower = jnp.where(self.below & ~inside, -own, low)
        upper = jnp.where(self.below | inside, high, own)
        return Point(dx, self._dual(rest, lower, upper))

    def transpose_solve(self, residual: Point) -> Point:
        dual, n = residual.dual, residual.primal.shape[0]
        target = self._rows(dual)
        if not self.form.box:
            dx, e = self._newton(residual.primal, self._bent(target))
            u = self.sign * (self.form.apply(dx) - target + e)
            return Point(dx, self.form.split(u))
        low, high = self._sides(dual, residual.primal)
        inside = self.slope.values[-n:] == 1
        own = jnp.where(self.below, -low, high)
        dx, e = self._newton(residual.primal, self._bent(jnp.concatenate([target, own])))
        rest, own = e[:-n], e[-n:]
        rest = self.sign[:-n] * (self.form.apply(dx)[:-n] - target + rest)
        lower = jnp.where(self.below & ~inside, own, low + dx)
        upper = jnp.where(self.below | inside, high - dx, -own)
        return Point(dx, self._dual(rest, lower, upper))

    def _rows(self, dual: Dual) -> Float[Array, " rows"]:
        """The part of A and G."""
        parts = [x for x in (dual.equality, dual.inequality) if x is not None]
        return jnp.concatenate(parts) if parts else self.form.q[:0]

    def _sides(self, dual: Dual, like: Array) -> tuple[Array, Array]:
        none = jnp.zeros_like(like)
        return (
            none if dual.lower is None else dual.lower,
            none if dual.upper is None else dual.upper,
        )

    def _dual(self, rows: Array, lower: Array, upper: Array) -> Dual:
        kind, count = self.form.kind, 0
        if kind[0]:
            count = self.form.split(jnp.zeros_like(self.sign)).equality.shape[0]
        return Dual(
            rows[:count] if kind[0] else None,
            rows[count:] if kind[1] else None,
            lower if kind[2] else None,
            upper if kind[3] else None,
        )

    def _bent(self, rows: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return self.slope.apply(lambda d: 1 - d, rows)

    def _newton(self, first: Array, second: Array) -> tuple[Array, Array]:
        if self.factors is not None:
            return self.factors.solve(-first, -second)
        rtol = float(jnp.finfo(first.dtype).eps) ** 0.8
        one = jnp.ones_like(second)
        return symmetric_newton(self.form, self.slope, one, -first, -second, rtol, limit=5000)
