"""A solver: how the point is found. Loop, verdict and derivative are not its business."""

import abc
from functools import singledispatch
from typing import Any, ClassVar, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .checks import kind
from .problem import AbstractProblem
from .solution import RESULTS, Guess, Point

_Problem = TypeVar("_Problem", bound=AbstractProblem)


class AbstractPreconditioner(eqx.Module):
    """An approximate inverse of the Jacobian of `optimality`, as the solver's last step left it.

    Attributes:
        accurate: whether it is wrong by rounding only, and not by what its factor leaves out.
    """

    accurate: ClassVar[bool] = False

    @abc.abstractmethod
    def solve(self, residual: Point) -> Point:
        """Approximately J^{-1} residual."""

    @abc.abstractmethod
    def transpose_solve(self, residual: Point) -> Point:
        """Approximately J^{-T} residual."""


class AbstractSolver(eqx.Module, Generic[_Problem]):
    """Settings as fields; pure functions of one problem without batch axes.

    `solve` calls `init` once and `step` until `status` says done or the step limit is reached, then
    `finish` once, and reads `point`. It keeps the last finite state, counts, records `measure`,
    judges the point, and attaches the derivative: none of that is written here. States are pytrees
    of arrays of fixed shape and dtype.
    """

    step_limit: ClassVar[int] = 1000
    """Steps allowed when `solve` is given no `max_steps`."""

    light_steps: ClassVar[bool] = False
    """Whether a step costs little beside `init` and `finish`: then larger batches are stepped
    together, without a queue."""

    on_host: ClassVar[bool] = False
    """Whether `step` leaves the device: then `OneStep` and `Unrolled` are refused."""

    proves: ClassVar[bool] = False
    """Whether `status` may say `infeasible` or `unbounded`: of other solvers, that is not heard."""

    def for_problem(self, problem: _Problem) -> "AbstractSolver":
        """The solver that does this one's work for such a problem, where methods of one name
        differ by the kind of problem; itself otherwise."""
        return self

    def prepare(
        self, problem: AbstractProblem, init: PyTree | None, key: Any = None
    ) -> tuple[AbstractProblem, PyTree[Array]]:
        """`problem.prepare(init)`, unless the form of the value is the solver's own (the size of a
        model that is fitted): the problem that it sees, and where it starts."""
        return problem.prepare(init)

    def refuse(self, problem: _Problem) -> None:
        """Raise `TypeError` naming the field of `problem` that this solver cannot honour."""

    @abc.abstractmethod
    def init(self, problem: _Problem, guess: Guess) -> PyTree:
        """The first state. `guess.state`, where given, is the last state of an earlier solve."""

    @abc.abstractmethod
    def step(self, problem: _Problem, state: PyTree) -> PyTree: ...

    @abc.abstractmethod
    def measure(self, problem: _Problem, state: PyTree) -> Float[Array, ""]:
        """The relative residual as `init` or `step` has formed it: what the bar shows and the
        history keeps, NaN or Inf when the iterate is lost. No new evaluation of the problem."""

    def status(
        self, problem: _Problem, state: PyTree, tolerance: Float[Array, ""]
    ) -> tuple[Bool[Array, ""], Any]:
        """Whether to stop, and the solver's word on why (a `RESULTS` item); `solve` judges it."""
        return self.measure(problem, state) <= tolerance, RESULTS.successful

    def finish(self, problem: _Problem, state: PyTree) -> PyTree:
        """Run once on the final state (a polish); its factorisation may serve `preconditioner`."""
        return state

    @abc.abstractmethod
    def point(self, problem: _Problem, state: PyTree) -> Point:
        """The primal value and its duals (`dual=None`: `problem.multipliers` finds them). Where
        `status` said `infeasible`, `unbounded`: the certificate in `dual`, the ray in `primal`."""

    def preconditioner(self, problem: _Problem, state: PyTree) -> AbstractPreconditioner | None:
        """An approximate inverse for the derivative, from the finished state, or `None`."""
        return None

    def full_step(self, problem: _Problem, point: Point) -> Point:
        """One undamped step from a point, differentiable in the problem: what `OneStep` takes."""
        raise TypeError(
            f"`adjoint=OneStep()` needs a method whose plain step converges by itself (Newton, "
            f"LevenbergMarquardt, Anderson): {type(self).__name__} has none. Use Implicit()."
        )

    def rescue(self) -> "AbstractSolver | None":
        """The solver for those lanes alone that this one leaves without a verified verdict. Their
        state stays the one that this solver ended with."""
        return None


def ended(solved: Bool[Array, ""], stuck: Bool[Array, ""]) -> tuple[Bool[Array, ""], Any]:
    """The `status` of a method that ends at a solution or gives up."""
    return solved | stuck, RESULTS.where(solved, RESULTS.successful, RESULTS.stalled)


def resumed(kept: PyTree, fresh: PyTree, ended: Bool[Array, ""]) -> PyTree:
    """The state that a method of a set number of steps begins with: the one that it is given, cut
    before its end, or a first one, where that had ended and its point alone is a start."""
    return jax.tree.map(
        lambda new, old: jnp.where(ended, new, old) if eqx.is_array(new) else new, fresh, kept
    )


@singledispatch
def as_solver(solver: Any) -> AbstractSolver:
    """The solver itself, or a foreign one wrapped; `interop` registers the foreign kinds."""
    raise TypeError(
        f"`solver` must be a jaxsolve solver, an optimistix solver, an optax transformation, "
        f"`Jaxopt(...)` or `Scipy(...)`; got {kind(solver)}."
    )


@as_solver.register
def _(solver: AbstractSolver) -> AbstractSolver:
    return solver
