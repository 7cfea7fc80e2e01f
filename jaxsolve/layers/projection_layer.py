"""The projection on a set as a layer.

x = argmin  |x - point|^2 / 2   subject to   x in C
"""

from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from ..convex.projection import Projection
from ..convex.sets import AbstractSet
from ..core.adjoint import AbstractAdjoint
from ..core.solve import solve


class ProjectionLayer(eqx.Module):
    """The nearest element of a set, as a function of the point.

    The set's arrays (bounds, rows, a radius) are the layer's weights: they are trained with the
    network unless they are held constant. One point, no batch axis: `jax.vmap` adds it. Nothing is
    raised where a set is empty: the derivative is NaN in that lane alone, and
    `solve(Projection(point, set))` says why.

    Example:
        ```python
        sparsemax = ProjectionLayer(sets.Simplex())
        sparsemax(jnp.array([1.0, 0.8, -1.0]))
        ```

    Args:
        set: one of `jaxsolve.sets`.
        solver: as in `solve`; `None`: the set's own.
        adjoint: as in `solve`; `None`: the set's own.
    """

    set: AbstractSet
    solver: Any = None
    adjoint: AbstractAdjoint | None = None

    def __call__(self, point: PyTree[Array]) -> PyTree[Array]:
        """The projection, of the structure of the point.

        Raises:
            TypeError, ValueError: at trace time, where the set's fields do not fit the point.
        """
        problem = Projection(point, self.set)
        return solve(problem, self.solver, adjoint=self.adjoint, throw=False).value
