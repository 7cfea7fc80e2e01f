"""The linear program.

    minimise  c'x   subject to   Ax = b,  Gx <= h,  lower <= x <= upper

Any field but c may be absent; bounds and h may hold infinities. Multipliers and their signs are
those of `QuadraticProgram`, which it is solved as, with P = 0.
"""

from typing import TYPE_CHECKING, Any

import equinox as eqx
from jaxtyping import Array, Float, PyTree

from ..core.problem import AbstractProblem
from ..core.solution import Point, Residual
from . import fields, sparse
from .quadratic_program import QuadraticProgram
from .sparse import Matrix

if TYPE_CHECKING:
    from ..core.solver import AbstractSolver


class LinearProgram(AbstractProblem):
    """minimise c'x subject to Ax = b, Gx <= h, lower <= x <= upper.

    A solution that is a vertex is a locally constant function of c, and moves with the sides of its
    active constraints. Where the solution is not unique, the derivative is the one of minimum norm.

    Example:
        ```python
        # The shortest of three ways, as a distribution over them.
        lengths = jnp.array([3.0, 1.0, 2.0])
        problem = LinearProgram(lengths, A=jnp.ones((1, 3)), b=jnp.ones(1), lower=0.0)
        solve(problem).value
        ```

    Args:
        c: the costs.
        A, b, G, h, lower, upper: as in `QuadraticProgram`.
    """

    c: Float[Array, " n"]
    A: Matrix | None = eqx.field(default=None, kw_only=True)
    b: Float[Array, " p"] | None = eqx.field(default=None, kw_only=True)
    G: Matrix | None = eqx.field(default=None, kw_only=True)
    h: Float[Array, " m"] | None = eqx.field(default=None, kw_only=True)
    lower: Float[Array, " n"] | Float[Array, ""] | float | None = eqx.field(
        default=None, kw_only=True
    )
    upper: Float[Array, " n"] | Float[Array, ""] | float | None = eqx.field(
        default=None, kw_only=True
    )

    def prepare(self, init: PyTree | None) -> tuple[Any, Float[Array, " n"]]:
        """The quadratic program that it is."""
        found, value = fields.prepare(self, init, linear="c")
        c, _ = found.pop("c"), found.pop("P")
        free = next((x for x in (found["A"], found["G"]) if sparse.is_matrix_free(x)), None)
        return _Flat(sparse.zeros(c.shape[0], free, c.dtype), c, **found, symmetric=True), value

    @property
    def quadratic(self) -> QuadraticProgram:
        """With P = 0."""
        return self.prepare(None)[0]

    def optimality(self, point: Point) -> Point:
        return self.quadratic.optimality(point)

    def residual(self, point: Point) -> Residual:
        return self.quadratic.residual(point)

    def default_solver(self) -> "AbstractSolver":
        return self.quadratic.default_solver()

    def describe(self) -> list[str]:
        return self.quadratic.describe()


class _Flat(QuadraticProgram):
    """A quadratic program that is known to be linear."""

    def default_solver(self) -> "AbstractSolver":
        from .active_set import ActiveSet
        from .interior_point import InteriorPoint

        # Without curvature a working set changes more often than an interior point steps.
        chosen = super().default_solver()
        return InteriorPoint() if isinstance(chosen, ActiveSet) else chosen
