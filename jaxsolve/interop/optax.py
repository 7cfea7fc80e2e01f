"""optax's gradient transformations as minimisers."""

from typing import Any, ClassVar

import jax
import optax
from jaxtyping import PyTree

from ..core.problem import AbstractProblem
from ..core.solution import Guess, Point
from ..core.solver import as_solver
from .foreign import AbstractForeign, ForeignState, abroad, accept, arrays, moved, objective, start


class Optax(AbstractForeign):
    """An optax transformation as a solver; `solve(problem, optax.adam(1e-2))` makes it by itself.

    Minimises to the problem's own residual, not for a number of steps. Extra arguments (`value`,
    `grad`, `value_fn`, as `optax.lbfgs()` wants them) are given. Make the transformation once, not
    at each call: each is another program to compile.

    Example:
        ```python
        problem = Minimise(lambda y, a: jnp.sum((y - a) ** 2), jnp.arange(3.0))
        solve(problem, optax.lbfgs(), init=jnp.zeros(3))
        ```

    Args:
        transformation: the optax transformation.
    """

    transformation: optax.GradientTransformation

    step_limit: ClassVar[int] = 10_000

    def refuse(self, problem: AbstractProblem) -> None:
        accept("An optax transformation", problem.statement(), ("minimise", "least_squares"))

    def init(self, problem: AbstractProblem, guess: Guess) -> ForeignState:
        with abroad():
            inner = arrays(self.transformation.init(guess.primal))
            slope = self._slope(problem, guess.primal)
        if guess.state is not None:
            inner = guess.state.inner[0]
        return start(problem, guess.primal, (inner, *slope))

    def step(self, problem: AbstractProblem, state: ForeignState) -> ForeignState:
        update = optax.with_extra_args_support(self.transformation).update
        inner, value, gradient = state.inner
        with abroad():
            fn = objective(problem.statement())
            updates, inner = update(
                gradient, inner, state.primal, value=value, grad=gradient, value_fn=fn
            )
            primal: PyTree = optax.apply_updates(state.primal, updates)
            # At the same point as the measure: compiled, the two are one evaluation.
            slope = jax.value_and_grad(fn)(primal)
        return moved(problem, state, primal, (inner, *slope))

    def full_step(self, problem: AbstractProblem, point: Point) -> Point:
        """The transformation's first update from the point: of `optax.sgd` the gradient step."""
        update = optax.with_extra_args_support(self.transformation).update
        fn = objective(problem.statement())
        value, gradient = jax.value_and_grad(fn)(point.primal)
        inner = self.transformation.init(point.primal)
        updates, _ = update(gradient, inner, point.primal, value=value, grad=gradient, value_fn=fn)
        return Point(optax.apply_updates(point.primal, updates), point.dual)

    def _slope(self, problem: AbstractProblem, primal: PyTree) -> tuple[Any, PyTree]:
        return jax.value_and_grad(objective(problem.statement()))(primal)


@as_solver.register
def _(solver: optax.GradientTransformation) -> Optax:
    return Optax(solver)


__all__ = ["Optax"]
