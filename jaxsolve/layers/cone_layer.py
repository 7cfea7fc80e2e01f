"""A layer that solves a cone program of its inputs."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from ..convex.cone_program import ConeProgram, as_cones
from ..convex.cones import AbstractCone
from ..core.adjoint import AbstractAdjoint
from ..core.solve import solve


class ConeLayer(eqx.Module):
    """The solution of a cone program, as a function of its fields.

    It has no weights but the shape of the problem, its cones: P, q and the fields are inputs. One
    program, no batch axis: `jax.vmap` adds it. Nothing is raised where a program has no solution:
    its derivative is NaN in that lane alone, and `solve(ConeProgram(...))` says why.

    Example:
        ```python
        layer = ConeLayer([SecondOrder(3)])
        G = jnp.concatenate([jnp.zeros((1, 2)), -jnp.eye(2)])
        layer(None, jnp.array([-1.0, -2.0]), G=G, h=jnp.array([1.0, 0.0, 0.0]))
        ```

    Args:
        cones: in the order of the rows of G.
        solver: as in `solve`; `None`: that of `ConeProgram.default_solver`.
        adjoint: as in `solve`; `None`: `Implicit()`.
    """

    cones: tuple[AbstractCone, ...] = eqx.field(converter=as_cones)
    solver: Any = None
    adjoint: AbstractAdjoint | None = None

    def __call__(
        self, P: Float[Array, "n n"] | None, q: Float[Array, " n"], **fields: Any
    ) -> Float[Array, " n"]:
        """The solution.

        Args:
            P: symmetric, positive semidefinite; `None` for a linear objective.
            q: the linear term.
            fields: `A, b, G, h` of `ConeProgram`.

        Raises:
            TypeError, ValueError: at trace time, where fields, shapes or dtypes do not fit.
        """
        problem = ConeProgram(P, q, cones=self.cones, **fields)
        return solve(problem, self.solver, adjoint=self.adjoint, throw=False).value
