"""The projection of a point on a set.

    P_C(p) = argmin_x |x - p|^2 / 2   subject to   x in C

The set states what has to hold at the projection, and how it is found: see `sets`.
"""

from typing import TYPE_CHECKING, Any

from jaxtyping import Array, PyTree

from ..core.adjoint import AbstractAdjoint
from ..core.problem import AbstractProblem, Structure
from ..core.solution import Point, Residual
from ..core.solve import solve
from .sets.base import AbstractSet, check_set, emptiness

if TYPE_CHECKING:
    from ..core.solver import AbstractSolver


class Projection(AbstractProblem):
    """The nearest element of a set.

    Differentiable in the point and in the set's data. What is solved is the problem that the set
    states for the point: a formula, a quadratic program, a system in the multipliers.

    Example:
        ```python
        solution = solve(Projection(jnp.array([1.0, 0.8, -1.0]), sets.Simplex()))
        solution.value, solution.result
        ```

    Args:
        point: an array of the shape that the set asks for; balls, boxes and `KSparse` take any
            array and any pytree of arrays.
        set: one of `jaxsolve.sets`.
    """

    point: PyTree[Array]
    set: AbstractSet

    @property
    def stated(self) -> AbstractProblem:
        """The problem that the set states for the point."""
        check_set("Projection", "set", self.set)
        return self.set.problem(self.point)

    @property
    def structure(self) -> Structure:
        return self.stated.structure

    def optimality(self, point: Point) -> Point:
        return self.stated.optimality(point)

    def residual(self, point: Point) -> Residual:
        return self.stated.residual(point)

    def default_solver(self) -> "AbstractSolver":
        return self.stated.default_solver()

    def default_adjoint(self) -> AbstractAdjoint:
        return self.stated.default_adjoint()

    def prepare(self, init: PyTree | None) -> tuple[Any, PyTree[Array]]:
        return self.stated.prepare(init)

    def describe(self) -> list[str]:
        return emptiness("set", self.set) + self.stated.prepare(None)[0].describe()


def project(point: PyTree[Array], set: AbstractSet) -> PyTree[Array]:
    """The nearest element of a set: the value of `solve(Projection(point, set))`, never raised for.

    Where the set is empty or data are not finite, the value is that of the failed solve (NaN for
    sets with a formula) and its derivative NaN; `solve` says why.

    Example:
        ```python
        project(jnp.array([1.0, 0.8, -1.0]), sets.Simplex())
        ```

    Args:
        point: what to project.
        set: one of `jaxsolve.sets`.
    """
    return solve(Projection(point, set), throw=False).value
