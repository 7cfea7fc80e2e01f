"""A problem: its data, its functions, and the conditions that hold at its solutions."""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .solution import RESULTS, Guess, Point, Residual

if TYPE_CHECKING:
    from .adjoint import AbstractAdjoint
    from .solver import AbstractSolver


class Structure(NamedTuple):
    """What is known of `optimality`.

    Attributes:
        symmetric, definite: its Jacobian at a solution.
        affine: in the data, at a fixed point. Then nothing but that Jacobian multiplies by them,
            and a refused lane's NaN get nowhere: its data need not be replaced, which is a copy.
    """

    symmetric: bool = False
    definite: bool = False
    affine: bool = False


class Statement(NamedTuple):
    """A problem in plain functions of its primal value, for solvers that were not written for it.

    Attributes:
        kind: what is asked of `fn`: a root, a fixed point, the least scalar, the least squares.
        fn: primal -> result.
        equality: primal -> arrays that must be 0, `None` without such constraints.
        inequality: primal -> arrays that must be at most 0.
        lower, upper: bounds of the structure of the primal value.
    """

    kind: Literal["root", "fixed_point", "minimise", "least_squares"]
    fn: Callable[[PyTree[Array]], PyTree[Array]]
    equality: Callable[[PyTree[Array]], PyTree[Array]] | None = None
    inequality: Callable[[PyTree[Array]], PyTree[Array]] | None = None
    lower: PyTree[Array] | None = None
    upper: PyTree[Array] | None = None


class AbstractProblem(eqx.Module):
    """Data (differentiable leaves), functions, and optimality conditions. Never an algorithm.

    All methods see one problem without batch axes; vmap adds them. `prepare` runs at trace time;
    `screen`, `residual`, `certificate` are by value, lane by lane.
    """

    @property
    def structure(self) -> Structure:
        return Structure()

    @abc.abstractmethod
    def optimality(self, point: Point) -> Point:
        """A square, (semi)smooth system, of the structure of `point`, that is 0 at solutions."""

    def smoothed_optimality(self, point: Point, kappa: Float[Array, ""]) -> Point:
        """`optimality` with every complementarity pair relaxed to dual * slack = kappa: the system
        of the central path, for `Smoothed(kappa)`. The same as `optimality` where there is none."""
        return self.optimality(point)

    @abc.abstractmethod
    def residual(self, point: Point) -> Residual:
        """By which success is judged: recomputed from the data, each part with its own scale."""

    def multipliers(self, value: PyTree[Array]) -> PyTree[Array]:
        """The best duals of a primal point, for solvers that return none."""
        return None

    @abc.abstractmethod
    def default_solver(self) -> "AbstractSolver": ...

    def default_adjoint(self) -> "AbstractAdjoint":
        from .adjoint import Implicit

        return Implicit()

    @abc.abstractmethod
    def prepare(self, init: PyTree | None) -> tuple[Self, PyTree[Array]]:
        """The door: checks shapes and dtypes (raising `TypeError`/`ValueError` that name the field,
        the pytree path and both shapes), closes the functions over what they captured, and returns
        the problem the solver sees with the initial primal value (floating arrays only)."""

    def restore(self, value: PyTree[Array]) -> PyTree:
        """The inverse of what `prepare` did to the variable (static leaves put back)."""
        return value

    def stationary(self, value: PyTree, solved: Bool[Array, ""]) -> PyTree:
        """The restored value, told that its derivative is that of a point where `optimality` holds
        (where `solved`): values of minima may then use `core.adjoint.envelope`."""
        return value

    def restore_dual(self, point: Point) -> PyTree[Array]:
        """The multipliers that a solution returns: the point's, unless they are its variable."""
        return point.dual

    def screen(self, guess: Guess) -> tuple[Any, Point]:
        """A verdict from the data alone: `nonfinite_input`, or `infeasible` (crossed bounds) with
        its certificate; `successful` when nothing speaks against solving. The point has the
        structure of the solver's: the guess with zero duals when there is nothing to say."""
        return RESULTS.successful, Point(guess.primal, guess.dual)

    def certificate(self, point: Point, result: Any) -> Bool[Array, ""]:
        """Whether `point` proves `result` (`infeasible`, `unbounded`), checked against the data."""
        return jnp.array(False)

    def describe(self) -> list[str]:
        """Findings on the data in words, for `check(problem)`: eager, on concrete values."""
        return []

    def statement(self) -> Statement:
        """The problem in plain functions, for foreign solvers."""
        raise TypeError(f"{type(self).__name__} cannot be given to a foreign solver.")
