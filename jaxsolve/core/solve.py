"""`solve`: problem, solver, guess -> checks -> loop -> verdict -> derivative -> Solution."""

from dataclasses import fields, replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .adjoint import AbstractAdjoint
from .checks import check_instance, check_limits, check_problem
from .loop import AbstractLanes, Refill
from .problem import AbstractProblem
from .progress import as_progress
from .search import Limits, search
from .solution import RESULTS, Guess, Solution, SolveError, Stats, is_traced
from .solver import AbstractSolver, as_solver
from .vectors import coarsest, frozen


def solve(
    problem: AbstractProblem,
    solver: Any = None,
    init: PyTree | Solution | None = None,
    *,
    key: Array | None = None,
    tolerance: float | Array | None = None,
    max_steps: int | Array | None = None,
    adjoint: AbstractAdjoint | None = None,
    lanes: AbstractLanes | None = None,
    throw: bool = True,
    verbose: Any = False,
    record: int = 0,
) -> Solution:
    """Find the point where a problem's optimality conditions hold, differentiably.

    Args:
        problem: what to solve, without batch axes.
        solver: a solver of ours, an optimistix solver, an optax transformation, `Jaxopt(...)` or
            `Scipy(...)`; `None`: `problem.default_solver()`.
        init: a guess of the value, or a `Solution` of a like problem (a warm start).
        key: for solvers that draw random numbers.
        tolerance: on each part of the residual, relative to the problem's scale; `None` follows
            the dtype (1e-8 in float64, 1e-4 in float32; of the coarsest variable).
        max_steps: `None`: the solver's own limit.
        adjoint: how to differentiate; `None`: `problem.default_adjoint()`.
        lanes: what happens to a batch; `None`: `Refill()`.
        throw: raise when the result, on concrete values, is a failure. In traced code nothing is
            raised; see `Solution.result` and `Solution.checked`.
        verbose: `True` (a bar), `"table"` (a line a step) or `fn(step, worst, left, lanes)`.
        record: how many of the last step residuals to keep in `Solution.history`.

    Returns:
        The `Solution`. Derivatives flow through `value` and `dual`; everything else is constant.

    Raises:
        TypeError, ValueError: at trace time, where shapes, dtypes or settings do not fit.
        SolveError: with `throw`, on concrete values; it holds the solution.
    """
    check_problem(problem)
    check_limits(tolerance, max_steps, record)
    wanted = "an adjoint (Implicit(), OneStep(), Unrolled(steps), Detached()) or None"
    check_instance("solve", "adjoint", adjoint, AbstractAdjoint | None, wanted)
    wanted = "a key of jax.random (jax.random.key(0)) or None"
    check_instance("solve", "key", key, jax.Array | np.ndarray | None, wanted)
    wanted = "Refill(), Lockstep() or None"
    check_instance("solve", "lanes", lanes, AbstractLanes | None, wanted)
    dual = state = None
    if isinstance(init, Solution):
        init, dual, state = init.value, init.dual, init.state
    settings = (
        None if solver is None else as_solver(solver),
        adjoint,
        Refill() if lanes is None else lanes,
        as_progress(verbose),
        record,
    )
    limits = (tolerance, None if max_steps is None else jnp.asarray(max_steps, jnp.int32))
    solution = _solve(_lifted(problem), _lift(init), dual, state, key, limits, settings)
    if throw and not is_traced(solution):
        _raise(solution)
    return solution


@eqx.filter_jit
def _solve(problem, init, dual, state, key, limits, settings) -> Solution:
    solver, adjoint, lanes, progress, record = settings
    prepare = problem.prepare if solver is None else partial(solver.prepare, problem, key=key)
    problem, value = prepare(init)
    solver = as_solver(problem.default_solver() if solver is None else solver)
    solver = solver.for_problem(problem)
    solver.refuse(problem)
    adjoint = problem.default_adjoint() if adjoint is None else adjoint
    problem = adjoint.view(problem)
    stop = partial(jax.tree.map, jax.lax.stop_gradient)
    limits = _limits(value, solver, limits[0], limits[1], record)
    guess = Guess(stop(value), stop(dual), key=key, tolerance=limits.tolerance)
    guess = _with_state(problem, solver, guess, state)

    outcome, point = adjoint.solve(
        problem,
        solver,
        guess,
        limits,
        lambda: search(problem, solver, guess, limits, lanes=lanes, progress=progress),
    )
    value = problem.restore(point.primal)
    if adjoint.stationary:
        value = problem.stationary(value, outcome.solved)
    return Solution(
        value=value,
        dual=problem.restore_dual(point),
        result=outcome.result,
        stats=Stats(outcome.steps, outcome.residual),
        history=outcome.history,
        state=outcome.state,
    )


def default_tolerance(dtype: jnp.dtype) -> float:
    """What is asked for where no `tolerance` is given."""
    return {"float64": 1e-8, "float32": 1e-4}.get(dtype.name, 1e-2)


def _limits(value: PyTree, solver: AbstractSolver, tolerance, max_steps, record: int) -> Limits:
    dtype = coarsest(value)
    if tolerance is None:
        tolerance = default_tolerance(dtype)
    if max_steps is None:
        max_steps = solver.step_limit
    return Limits(
        jax.lax.stop_gradient(jnp.asarray(tolerance, dtype)),
        jnp.asarray(max_steps, jnp.int32),
        record,
    )


def _with_state(
    problem: AbstractProblem, solver: AbstractSolver, guess: Guess, state: PyTree
) -> Guess:
    """The guess with a previous solution's state, if it is a state of this solver and size."""
    if state is None:
        return guess
    fresh = eqx.filter_eval_shape(solver.init, problem, guess)

    def shape(tree: PyTree) -> PyTree:
        tree = eqx.filter(tree, lambda x: hasattr(x, "shape"))
        return jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), tree)

    if jax.tree.structure(fresh) != jax.tree.structure(state) or shape(fresh) != shape(state):
        return guess
    return replace(guess, state=frozen(state))


def _lifted(problem: AbstractProblem) -> AbstractProblem:
    """The problem with the Python floats of its data as arrays: a new value is no new program."""
    changed = {f.name: _lift(getattr(problem, f.name)) for f in fields(problem) if f.init}
    names = [n for n, new in changed.items() if new is not getattr(problem, n)]
    if not names:
        return problem
    return eqx.tree_at(
        lambda p: [getattr(p, n) for n in names],
        problem,
        [changed[n] for n in names],
        is_leaf=lambda x: x is None,
    )


def _lift(tree: PyTree) -> PyTree:
    """Floats and NumPy arrays as JAX arrays; what a module holds is its own affair."""

    def is_number(x: Any) -> bool:
        return isinstance(x, float | np.ndarray | np.floating)

    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda x: isinstance(x, eqx.Module))
    if not any(is_number(x) for x in leaves):
        return tree
    if len(leaves) > 1 and any(eqx.is_array(x) for x in leaves):
        # Next to arrays a float may be a setting (a slope); only NumPy's arrays are data.
        return jax.tree.unflatten(
            structure, [jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in leaves]
        )
    return jax.tree.unflatten(structure, [jnp.asarray(x) if is_number(x) else x for x in leaves])


def _raise(solution: Solution) -> None:
    codes = np.asarray(solution.result._value)
    good = [RESULTS.successful._value, RESULTS.approximate._value]
    failed = ~np.isin(codes, np.asarray(good))
    if not failed.any():
        return
    first = int(codes[failed][0])
    name = next(n for n, item in RESULTS._name_to_item.items() if int(item._value) == first)
    raise SolveError(f"{name}: {RESULTS._index_to_message[first]}\n{solution.summary()}", solution)
