"""From a guess to a judged point: the solver's program for the loop, and the verdict."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .loop import AbstractLanes, Program, run
from .problem import AbstractProblem
from .progress import AbstractProgress
from .solution import RESULTS, Guess, Point, Residual
from .solver import AbstractSolver


class Limits(eqx.Module):
    """When to stop, and how much history to keep."""

    tolerance: Float[Array, ""]
    max_steps: Int[Array, ""]
    record: int = eqx.field(static=True)


class Outcome(eqx.Module):
    """What a search leaves, one lane's worth; the state is the main solver's own last one."""

    point: Point
    result: Any
    steps: Int[Array, ""]
    residual: Residual
    history: Float[Array, " record"] | None
    state: PyTree

    @property
    def solved(self) -> Bool[Array, ""]:
        """Whether the optimality system holds at the point, so that it may be differentiated."""
        return (self.result == RESULTS.successful) | (self.result == RESULTS.approximate)


class Progression(eqx.Module):
    """The loop's carry: the solver's state, and what the frame keeps of it."""

    state: PyTree
    steps: Int[Array, ""]
    claim: Any
    history: Float[Array, " record"] | None


def begin(
    problem: AbstractProblem, solver: AbstractSolver, guess: Guess, limits: Limits
) -> tuple[Progression, Bool[Array, ""]]:
    """The first state; a lane whose data speak against solving is done before its first step."""
    state = solver.init(problem, guess)
    history = None
    if limits.record:
        history = jnp.full((limits.record,), jnp.nan, limits.tolerance.dtype)
    screened, _ = problem.screen(guess)
    done, claim = solver.status(problem, state, limits.tolerance)
    # A method may see that it cannot begin at such a point; why is said here.
    lost = done & ~jnp.isfinite(solver.measure(problem, state))
    claim = RESULTS.where(lost, RESULTS.nonfinite_state, claim)
    claim = RESULTS.where(done, claim, RESULTS.max_steps_reached)
    refused = screened != RESULTS.successful
    claim = RESULTS.where(refused, screened, claim)
    steps = jnp.zeros_like(limits.max_steps)
    return Progression(state, steps, claim, history), done | refused | (limits.max_steps <= 0)


def advance(
    problem: AbstractProblem, solver: AbstractSolver, limits: Limits, old: Progression
) -> tuple[Progression, Bool[Array, ""]]:
    """One step; a lost iterate ends the lane at its last finite state."""
    state = solver.step(problem, old.state)
    measure = solver.measure(problem, state)
    finite = jnp.isfinite(measure)
    state = jax.tree.map(
        # Leaves that the step hands on stay the same object: the loop does not copy them. Foreign
        # states hold static leaves, too.
        lambda new, kept: (
            new if new is kept or not eqx.is_array(new) else jnp.where(finite, new, kept)
        ),
        state,
        old.state,
    )
    done, claim = solver.status(problem, state, limits.tolerance)
    claim = RESULTS.where(done, claim, RESULTS.max_steps_reached)
    claim = RESULTS.where(finite, claim, RESULTS.nonfinite_state)
    steps = old.steps + 1
    history = old.history
    if history is not None:
        history = jnp.roll(history, -1).at[-1].set(measure.astype(history.dtype))
    done = done | ~finite | (steps >= limits.max_steps)
    return Progression(state, steps, claim, history), done


def conclude(
    problem: AbstractProblem,
    solver: AbstractSolver,
    guess: Guess,
    limits: Limits,
    end: Progression,
) -> Outcome:
    """The polish, the point, its recomputed residual, and the verdict."""
    state = solver.finish(problem, end.state)
    point = with_multipliers(problem, solver.point(problem, state))
    screened, evidence = problem.screen(guess)
    refused = screened != RESULTS.successful
    if evidence.dual is None:
        evidence = Point(evidence.primal, point.dual)
    point = jax.tree.map(lambda e, p: jnp.where(refused, e, p), evidence, point)
    residual = problem.residual(point)
    result = verdict(problem, solver, point, residual, end.claim, limits.tolerance)
    return Outcome(
        point=point,
        result=RESULTS.where(refused, screened, result),
        steps=end.steps,
        residual=residual,
        history=end.history,
        state=state,
    )


def with_multipliers(problem: AbstractProblem, point: Point) -> Point:
    """The point with the best duals, where its solver returned none."""
    return (
        point if point.dual is not None else Point(point.primal, problem.multipliers(point.primal))
    )


def verdict(
    problem: AbstractProblem,
    solver: AbstractSolver,
    point: Point,
    residual: Residual,
    claim: Any,
    tolerance: Float[Array, ""],
) -> Any:
    """Success is measured, and infeasible and unbounded are proved; else the solver's own word."""
    solved = residual.within(tolerance)
    solved = solved & (claim != RESULTS.nonconvex) & (claim != RESULTS.approximate)
    # 16 eps: what rounding alone leaves of a residual relative to its scale.
    below = tolerance < 16 * jnp.finfo(tolerance.dtype).eps
    unmet = RESULTS.where(below, RESULTS.tolerance_below_dtype, RESULTS.stalled)
    proof = (claim == RESULTS.infeasible) | (claim == RESULTS.unbounded)
    proved = proof & problem.certificate(point, claim) if solver.proves else jnp.array(False)
    unfounded = (claim == RESULTS.successful) | (claim == RESULTS.stalled) | (proof & ~proved)
    result = RESULTS.where(unfounded, unmet, claim)
    lost = (claim == RESULTS.approximate) & ~jnp.isfinite(residual.relative)
    result = RESULTS.where(lost, RESULTS.nonfinite_state, result)
    # A lost iterate's last finite point may still be a solution.
    return RESULTS.where(solved & ~proved, RESULTS.successful, result)


def settled(result: Any) -> Bool[Array, ""]:
    """Whether a rescue has nothing to add."""
    out = result == RESULTS.successful
    for item in (
        RESULTS.approximate,
        RESULTS.infeasible,
        RESULTS.unbounded,
        RESULTS.nonconvex,
        RESULTS.nonfinite_input,
    ):
        out = out | (result == item)
    return out


def search(
    problem: AbstractProblem,
    solver: AbstractSolver,
    guess: Guess,
    limits: Limits,
    *,
    lanes: AbstractLanes,
    progress: AbstractProgress | None,
) -> Outcome:
    """Run the solver through the loop, and its rescue on the lanes that need it.

    Nothing here is differentiated: the loop stops gradients at its door.
    """
    first = _run(problem, solver, guess, limits, lanes, progress)
    rescue = solver.rescue()
    if rescue is None:
        return first
    left = limits.max_steps - first.steps
    spent = Limits(limits.tolerance, left, limits.record)
    skip = settled(first.result) | (left <= 0)
    found = _run(problem, rescue, guess, spent, lanes, progress, (skip, _stateless(first)))
    return eqx.tree_at(lambda o: o.state, found, first.state, is_leaf=lambda x: x is None)


def _run(
    problem: AbstractProblem,
    solver: AbstractSolver,
    guess: Guess,
    limits: Limits,
    lanes: AbstractLanes,
    progress: AbstractProgress | None,
    unless: tuple[Bool[Array, ""], Outcome] | None = None,
) -> Outcome:
    data, frozen = eqx.partition((problem, guess, limits), eqx.is_array)
    carry_box, result_box = _Box(), _Box()

    def init(data):
        problem, guess, limits = eqx.combine(data, frozen)
        carry, done = begin(problem, solver, guess, limits)
        return carry_box.pack(carry), done

    def step(data, carry):
        problem, _, limits = eqx.combine(data, frozen)
        carry, done = advance(problem, solver, limits, carry_box.unpack(carry))
        return carry_box.pack(carry), done

    def finish(data, carry):
        problem, guess, limits = eqx.combine(data, frozen)
        outcome = conclude(problem, solver, guess, limits, carry_box.unpack(carry))
        return result_box.pack(outcome if unless is None else _stateless(outcome))

    def measure(carry):
        return solver.measure(problem, carry_box.unpack(carry).state)

    shown = measure if progress is not None else None
    program = Program(init, step, finish, shown, solver.light_steps)
    arrays = None if unless is None else (unless[0], eqx.filter(unless[1], eqx.is_array))
    return result_box.unpack(run(program, data, lanes=lanes, unless=arrays, progress=progress))


def _stateless(outcome: Outcome) -> Outcome:
    """The outcome of a rescue, whose state is of another kind."""
    return eqx.tree_at(lambda o: o.state, outcome, None)


class _Box:
    """Keeps a pytree's static leaves while its arrays are in the loop."""

    def pack(self, tree: PyTree) -> PyTree:
        arrays, self.static = eqx.partition(tree, eqx.is_array)
        return arrays

    def unpack(self, arrays: PyTree) -> PyTree:
        return eqx.combine(arrays, self.static)
