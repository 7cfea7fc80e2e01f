"""jaxopt's solvers. jaxopt itself is imported by whoever writes `Jaxopt(jaxopt.LBFGS)`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..core.problem import AbstractProblem, Statement
from ..core.solution import RESULTS, Guess
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

_MINIMISERS = (
    "LBFGS BFGS NonlinearCG GradientDescent PolyakSGD ArmijoSGD OptaxSolver "
    "LBFGSB ProjectedGradient"
).split()
_KINDS = {
    **dict.fromkeys(_MINIMISERS, ("minimise", "least_squares")),
    **dict.fromkeys(
        ("GaussNewton", "LevenbergMarquardt"), ("least_squares", "root", "fixed_point")
    ),
    **dict.fromkeys(("Broyden", "Bisection"), ("root", "fixed_point")),
    **dict.fromkeys(("AndersonAcceleration", "FixedPointIteration"), ("fixed_point",)),
}
_FLAT = ("GaussNewton", "LevenbergMarquardt")
"""They take vectors alone."""
_BOUNDED = ("LBFGSB", "ProjectedGradient")
_FUNCTION = ("fun", "residual_fun", "optimality_fun", "fixed_point_fun")
_OURS = {
    "maxiter": "`max_steps` of `solve`",
    "tol": "`tolerance` of `solve`",
    "projection": "the problem's `lower` and `upper`",
    "has_aux": "a function without auxiliary output",
    "value_and_grad": "a function of the value alone",
    "implicit_diff": "`adjoint` of `solve`",
    "implicit_diff_solve": "`adjoint` of `solve`",
    "unroll": "`adjoint` of `solve`",
    "jit": "`jax.jit`",
}


class Jaxopt(AbstractForeign):
    """A jaxopt solver as one of ours: its class and settings, with the problem's function.

    LBFGS, BFGS, NonlinearCG, GradientDescent, PolyakSGD, ArmijoSGD and OptaxSolver minimise; LBFGSB
    and ProjectedGradient within bounds, which the problem must have on both sides; GaussNewton and
    LevenbergMarquardt solve least squares; Broyden and Bisection roots; AndersonAcceleration and
    FixedPointIteration fixed points. They run until the problem's residual is within the tolerance
    of `solve`. jaxopt is no longer maintained: this is for leaving it step by step.

    Example:
        ```python
        problem = Minimise(lambda y, a: jnp.sum((y - a) ** 2), jnp.arange(3.0))
        solve(problem, Jaxopt(jaxopt.LBFGS, history_size=5), init=jnp.zeros(3))
        ```

    Args:
        solver: the class, not an object: an object owns a function already.
        settings: its keyword arguments, without the function.
    """

    solver: type = eqx.field(static=True)
    settings: dict[str, Any]

    def __init__(self, solver: type, **settings: Any):
        if not isinstance(solver, type):
            raise TypeError(
                "`Jaxopt` takes a class and its settings, Jaxopt(jaxopt.LBFGS, history_size=5); a "
                f"{type(solver).__name__} object owns a function already."
            )
        if not solver.__module__.startswith("jaxopt.") or solver.__name__ not in _KINDS:
            raise TypeError(
                f"`Jaxopt` cannot use {solver.__name__}: it takes {', '.join(sorted(_KINDS))}. "
                "SciPy's methods are `Scipy(method)`; programs have solvers of their own."
            )
        for name in settings:
            if name in _FUNCTION:
                raise TypeError(f"`{name}` is given by the problem, not to `Jaxopt`.")
            if name in _OURS:
                raise TypeError(f"`{name}` of {solver.__name__} is replaced by {_OURS[name]}.")
        self.solver = solver
        self.settings = settings

    def refuse(self, problem: AbstractProblem) -> None:
        name, statement = f"jaxopt.{self.solver.__name__}", problem.statement()
        bounded = self.solver.__name__ in _BOUNDED
        accept(
            name, statement, _KINDS[self.solver.__name__], *(("lower", "upper") if bounded else ())
        )
        if bounded:
            for field in ("lower", "upper"):
                if getattr(statement, field) is None:
                    raise TypeError(f"{name} needs `{field}`: this problem has none.")

    def init(self, problem: AbstractProblem, guess: Guess) -> ForeignState:
        with abroad():
            solver, bounds = self._made(problem, guess.primal)
            primal = guess.primal
            if bounds:
                primal = jax.tree.map(jnp.clip, primal, *bounds)
            at, _ = self._form(primal)
            inner = solver.init_state(at, *self._given(bounds))
            # jaxopt changes the types of its state in the first step; loops do not allow that.
            step = jax.eval_shape(lambda p, s: solver.update(p, s, *self._given(bounds)), at, inner)
            inner = _as(inner, step.state)
        return start(problem, primal, inner)

    def step(self, problem: AbstractProblem, state: ForeignState) -> ForeignState:
        with abroad():
            solver, bounds = self._made(problem, state.primal)
            at, restore = self._form(state.primal)
            at, inner = solver.update(at, state.inner, *self._given(bounds))
            primal = restore(at)
        failed = jnp.asarray(getattr(inner, "failed_linesearch", False))
        if not getattr(solver, "stop_if_linesearch_fails", False):
            failed = jnp.zeros_like(failed)
        failure = RESULTS.where(failed, RESULTS.stalled, RESULTS.successful)
        return moved(problem, state, primal, arrays(inner), failure=failure)

    def _made(self, problem: AbstractProblem, primal: PyTree[Array]) -> tuple[Any, tuple | None]:
        """The solver of this problem's function, and its bounds where it takes bounds."""
        name, statement = self.solver.__name__, problem.statement()
        if name not in _BOUNDED:
            return self.solver(self._fn(statement, primal), **self.settings), None
        bounds = tuple(
            jax.tree.map(
                lambda x, b: jnp.broadcast_to(jnp.asarray(b, x.dtype), x.shape), primal, side
            )
            for side in (statement.lower, statement.upper)
        )
        projected = {} if name == "LBFGSB" else {"projection": _clip}
        return self.solver(objective(statement), **projected, **self.settings), bounds

    def _form(self, primal: PyTree[Array]) -> tuple[PyTree[Array], Callable]:
        """The point as the solver takes it, and the way back."""
        return ravel_pytree(primal) if self.solver.__name__ in _FLAT else (primal, lambda x: x)

    def _fn(self, statement: Statement, primal: PyTree[Array]) -> Callable:
        name = self.solver.__name__
        if name in _MINIMISERS:
            return objective(statement)
        if name in ("AndersonAcceleration", "FixedPointIteration"):
            return statement.fn
        residuals, (_, restore) = equations(statement), self._form(primal)
        if name in _FLAT:
            return lambda x: ravel_pytree(residuals(restore(x)))[0]
        return residuals

    def _given(self, bounds: tuple | None) -> tuple:
        return () if bounds is None else (bounds,)


def _clip(primal: PyTree[Array], bounds: tuple[PyTree[Array], PyTree[Array]]) -> PyTree[Array]:
    return jax.tree.map(jnp.clip, primal, *bounds)


def _as(inner: PyTree, types: PyTree) -> PyTree:
    """`inner` in the dtypes and shapes of `types`."""
    return jax.tree.map(
        lambda x, t: jnp.broadcast_to(jnp.asarray(x).astype(t.dtype), t.shape), inner, types
    )
