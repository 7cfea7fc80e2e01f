"""A layer that solves a problem made of its inputs.

    x = solve(problem_fn(*inputs)).value

What is differentiated is the solution, by the problem's optimality conditions, in the inputs and in
whatever else `problem_fn` holds: the weights of a module, or arrays that it closes over.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from ..core.adjoint import AbstractAdjoint
from ..core.checks import check_instance
from ..core.problem import AbstractProblem
from ..core.solve import solve


class SolverLayer(eqx.Module):
    """The solution of a problem, as a function of what the problem is made of.

    One input, no batch axis: `jax.vmap` adds it. Nothing is raised where a solve fails, eager or
    compiled: a network's output is data. There the value is the last point found, and its
    derivative NaN in that lane alone. To see the result, `solve` the `problem_fn` yourself.

    Example:
        ```python
        sparsemax = SolverLayer(
            lambda s: QuadraticProgram(jnp.eye(3), -s, A=jnp.ones((1, 3)), b=jnp.ones(1), lower=0.0)
        )
        sparsemax(jnp.array([1.0, 0.8, -1.0]))
        ```

    Args:
        problem_fn: inputs -> problem, or inputs -> (problem, init) where the solver needs a start
            (`Minimise`, `Root`, ...). A module with weights of its own is trained with the network.
            The start is a constant: no derivative flows into it.
        solver: as in `solve`; `None`: the problem's own.
        adjoint: as in `solve`; `None`: the problem's own.
    """

    problem_fn: Callable[..., AbstractProblem | tuple[AbstractProblem, PyTree]]
    solver: Any = None
    adjoint: AbstractAdjoint | None = None

    def __call__(self, *inputs: PyTree[Array]) -> PyTree[Array]:
        """The solution's value, of the structure of the problem's variable.

        Raises:
            TypeError, ValueError: at trace time, where shapes, dtypes or settings do not fit.
        """
        wanted = "a function that returns a problem"
        check_instance("SolverLayer", "problem_fn", self.problem_fn, Callable, wanted)
        problem = self.problem_fn(*inputs)
        init = None
        if isinstance(problem, tuple):
            if len(problem) != 2:
                raise TypeError(
                    "`problem_fn` must return a problem or a pair (problem, init); "
                    f"it returned {len(problem)} things."
                )
            problem, init = problem
        return solve(problem, self.solver, init, adjoint=self.adjoint, throw=False).value
