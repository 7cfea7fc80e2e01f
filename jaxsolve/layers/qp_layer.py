"""The convex quadratic program as a layer.

    x = argmin  x'Px/2 + q'x   subject to   Ax = b,  Gx <= h,  lower <= x <= upper

differentiable in every field.
"""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from ..convex.quadratic_program import QuadraticProgram
from ..core.adjoint import AbstractAdjoint
from ..core.solve import solve


class QPLayer(eqx.Module):
    """The solution of a quadratic program, as a function of its fields.

    It has no weights: P, q and the fields are inputs, and all that is learned stands before the
    layer. One program, no batch axis: `jax.vmap` adds it. Nothing is raised where a program has no
    solution: its derivative is NaN in that lane alone, and `solve(QuadraticProgram(...))` says why.

    Where the active set changes a solution has no derivative, and towards an inactive constraint it
    is zero: `adjoint=Implicit(degenerate=Smoothed(kappa))` gives a smooth one of another point.

    Example:
        ```python
        QPLayer()(jnp.eye(2), jnp.array([-1.0, 1.0]), G=jnp.ones((1, 2)), h=jnp.ones(1), lower=0.0)
        ```

    Args:
        solver: as in `solve`; `None`: `QuadraticProgram.default_solver()`.
        adjoint: as in `solve`; `None`: `Implicit()`.
    """

    solver: Any = None
    adjoint: AbstractAdjoint | None = None

    def __call__(
        self, P: Float[Array, "n n"], q: Float[Array, " n"], **fields: Any
    ) -> Float[Array, " n"]:
        """The solution.

        Args:
            P: symmetric, positive semidefinite; read as (P + P')/2.
            q: the linear term.
            fields: `A, b, G, h, lower, upper` of `QuadraticProgram`.

        Raises:
            TypeError, ValueError: at trace time, where fields, shapes or dtypes do not fit.
        """
        problem = QuadraticProgram(P, q, **fields)
        return solve(problem, self.solver, adjoint=self.adjoint, throw=False).value
