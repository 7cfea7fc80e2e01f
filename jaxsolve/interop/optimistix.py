"""optimistix's minimisers, least-squares solvers, root finders and fixed-point solvers."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import PyTree

from ..core.problem import AbstractProblem, Statement
from ..core.solution import RESULTS, Guess
from ..core.solver import as_solver
from .foreign import (
    AbstractForeign,
    ForeignState,
    abroad,
    accept,
    arrays,
    equations,
    moved,
    objective,
    start,
)

_KINDS = {
    optx.AbstractMinimiser: ("minimise", "least_squares", "root", "fixed_point"),
    optx.AbstractLeastSquaresSolver: ("least_squares", "root", "fixed_point"),
    optx.AbstractRootFinder: ("root", "fixed_point"),
    optx.AbstractFixedPointSolver: ("fixed_point",),
}

_SEARCHES = (optx.Bisection, optx.GoldenSearch)
"""They want the ends of an interval, as options."""


class Optimistix(AbstractForeign):
    """An optimistix solver as one of ours; `solve(problem, optx.BFGS(...))` makes it by itself.

    Its `rtol` and `atol` no longer decide: it goes on until the problem's residual is within the
    tolerance of `solve`. A minimiser given a root or fixed point minimises half the sum of squares.
    Each step evaluates the problem once more than optimistix would, to measure the residual.
    optimistix's solvers do not run inside `shard_map` (0.1.0).

    Example:
        ```python
        problem = Minimise(lambda y, a: jnp.sum((y - a) ** 2), jnp.arange(3.0))
        solve(problem, optx.BFGS(rtol=1e-6, atol=1e-6), init=jnp.zeros(3))
        bisection = Optimistix(optx.Bisection(1e-6, 1e-6), {"lower": 0.0, "upper": 1.0})
        solve(Root(lambda y, a: y**2 - a, 0.5), bisection, init=jnp.array(0.5))
        ```

    Args:
        solver: the optimistix solver.
        options: what optimistix calls so: run-time arguments of some solvers.
        tags: lineax tags of the Jacobian, for `optx.Newton`, `optx.GaussNewton` and their like.
    """

    solver: optx.AbstractIterativeSolver
    options: dict[str, Any] = eqx.field(default_factory=dict)
    tags: frozenset[object] = eqx.field(default=frozenset(), static=True)

    def refuse(self, problem: AbstractProblem) -> None:
        kinds = next((k for kind, k in _KINDS.items() if isinstance(self.solver, kind)), None)
        name = f"optimistix.{type(self.solver).__name__}"
        if kinds is None:
            raise TypeError(f"{name} is no minimiser, least-squares solver or root finder.")
        accept(name, problem.statement(), kinds)
        for option in ("lower", "upper") if isinstance(self.solver, _SEARCHES) else ():
            if option not in self.options:
                raise TypeError(
                    f'{name} needs the option `{option}`: Optimistix(solver, {{"lower": ..., '
                    '"upper": ...}).'
                )

    def init(self, problem: AbstractProblem, guess: Guess) -> ForeignState:
        with abroad():
            inner = arrays(self._first(problem, guess.primal))
        return start(problem, guess.primal, (guess.primal, inner))

    def step(self, problem: AbstractProblem, state: ForeignState) -> ForeignState:
        fn = self._fn(problem)
        if state.inner is None:
            # Only `OneStep` steps from a finished state.
            state = self._again(problem, state)
        y, inner = state.inner
        with abroad():
            new, inner, aux = self.solver.step(fn, y, None, self.options, inner, self.tags)
            done, result = self.solver.terminate(fn, y, None, self.options, inner, self.tags)
            best, _, _ = self.solver.postprocess(
                fn, new, aux, None, self.options, inner, self.tags, result
            )
        return moved(problem, state, best, (new, inner), done, _translate(result))

    def finish(self, problem: AbstractProblem, state: ForeignState) -> ForeignState:
        # The inner state may hold jaxprs: as part of a `Solution` each would be a new program.
        return eqx.tree_at(lambda s: s.inner, state, None)

    def _first(self, problem: AbstractProblem, primal: PyTree) -> PyTree:
        fn = self._fn(problem)
        out = jax.eval_shape(lambda y: fn(y, None)[0], primal)
        solver = self.solver
        bisects = isinstance(solver, optx.Bisection)
        if bisects and solver.flip == "detect" and not solver.expand_if_necessary:
            # Its own detection raises on the host, for a whole batch, where one root is outside.
            solver = eqx.tree_at(lambda s: s.flip, solver, False)
            inner = solver.init(fn, primal, None, self.options, out, None, self.tags)
            flip = fn(inner.lower, None)[0] > fn(inner.upper, None)[0]
            return eqx.tree_at(lambda s: s.flip, inner, flip)
        return solver.init(fn, primal, None, self.options, out, None, self.tags)

    def _again(self, problem: AbstractProblem, state: ForeignState) -> ForeignState:
        direct = (optx.Newton, optx.Chord, optx.FixedPointIteration, optx.OptaxMinimiser)
        if not isinstance(self.solver, direct):
            raise TypeError(
                f"`adjoint=OneStep` differentiates a step, but one step of optimistix."
                f"{type(self.solver).__name__} only evaluates a point proposed before it. "
                "Use Implicit()."
            )
        with abroad():
            inner = arrays(self._first(problem, state.primal))
        return eqx.tree_at(
            lambda s: s.inner, state, (state.primal, inner), is_leaf=lambda x: x is None
        )

    def _fn(self, problem: AbstractProblem) -> Callable:
        statement = problem.statement()
        fn = _asked(self.solver, statement)
        return lambda y, args: (fn(y), None)


def _asked(solver: Any, statement: Statement) -> Callable:
    if isinstance(solver, optx.AbstractMinimiser):
        return objective(statement)
    if isinstance(solver, optx.AbstractFixedPointSolver):
        return statement.fn
    return equations(statement)


def _translate(result: Any) -> Any:
    """optimistix's failure in our words. Its step limit and tolerances are not ours."""
    good = result == optx.RESULTS.successful
    singular = (result == optx.RESULTS.singular) | (result == optx.RESULTS.breakdown)
    lost = (result == optx.RESULTS.nonfinite) | (result == optx.RESULTS.nonfinite_input)
    out = RESULTS.where(singular, RESULTS.singular, RESULTS.stalled)
    out = RESULTS.where(lost, RESULTS.nonfinite_state, out)
    return RESULTS.where(jnp.asarray(good), RESULTS.successful, out)


@as_solver.register
def _(solver: optx.AbstractIterativeSolver) -> Optimistix:
    return Optimistix(solver)
