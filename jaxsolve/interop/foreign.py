"""What the solvers of other libraries have in common as solvers of ours.

They see a problem through `problem.statement()` alone, and whether they are done is measured by
`problem.residual`: a foreign solver goes on past its own tolerances until our residual is within
ours, or until it fails, or has nothing more to give.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core.problem import AbstractProblem, Statement
from ..core.search import with_multipliers
from ..core.solution import RESULTS, Point
from ..core.solver import AbstractSolver

PATIENCE = 100
"""Steps without progress, of a solver that says it is done or stands still, until it is stalled."""

_FIELDS = ("equality", "inequality", "lower", "upper")


class ForeignState(eqx.Module):
    """A foreign solver's state, and what is ours of it.

    Attributes:
        primal: the point that it would return now.
        measure: the problem's relative residual there.
        best: the measure at the last progress, a tenth at least below the one before.
        idle: steps since the solver made progress, while it says it is done or stands still.
        failure: 0, or the code of the `RESULTS` item that it ended with.
        inner: the solver's own state; `None` in a finished state where it is of no further use.
    """

    primal: PyTree[Array]
    measure: Float[Array, ""]
    best: Float[Array, ""]
    idle: Int[Array, ""]
    failure: Any
    inner: PyTree


class AbstractForeign(AbstractSolver[AbstractProblem]):
    """A solver of another library: measured by the problem, never by its own word."""

    def measure(self, problem: AbstractProblem, state: ForeignState) -> Float[Array, ""]:
        return state.measure

    def status(
        self, problem: AbstractProblem, state: ForeignState, tolerance: Float[Array, ""]
    ) -> tuple[Bool[Array, ""], Any]:
        solved = state.measure <= tolerance
        failed = state.failure != RESULTS.successful
        word = RESULTS.where(failed, state.failure, RESULTS.stalled)
        over = failed | (state.idle >= self._patience)
        return solved | over, RESULTS.where(solved, RESULTS.successful, word)

    def point(self, problem: AbstractProblem, state: ForeignState) -> Point:
        return Point(state.primal)

    @property
    def _patience(self) -> int:
        return PATIENCE


def start(problem: AbstractProblem, primal: PyTree[Array], inner: PyTree) -> ForeignState:
    """The first state."""
    measure = relative(problem, primal)
    idle = jnp.zeros_like(measure, jnp.int32)
    failure = RESULTS.where(measure < 0, RESULTS.stalled, RESULTS.successful)
    return ForeignState(primal, measure, measure, idle, failure, inner)


def moved(
    problem: AbstractProblem,
    state: ForeignState,
    primal: PyTree[Array],
    inner: PyTree,
    done: Bool[Array, ""] | bool = False,
    failure: Any = RESULTS.successful,
) -> ForeignState:
    """The state after a step to `primal`.

    Args:
        done: the solver says it has converged.
        failure: the `RESULTS` item with which it ended, `successful` if it did not.
    """
    primal = like(primal, state.primal)
    measure = relative(problem, primal)
    still = jnp.asarray(done)
    same = jnp.ones_like(still)
    for new, old in zip(jax.tree.leaves(primal), jax.tree.leaves(state.primal), strict=True):
        same = same & jnp.all(new == old)
    progress = measure < 0.9 * state.best
    waits = (still | same) & ~progress
    return ForeignState(
        primal,
        measure,
        jnp.where(progress, measure, state.best),
        jnp.where(waits, state.idle + 1, jnp.zeros_like(state.idle)),
        failure,
        like(inner, state.inner),
    )


def relative(problem: AbstractProblem, primal: PyTree[Array]) -> Float[Array, ""]:
    """The problem's relative residual at a primal point, with its best multipliers."""
    return problem.residual(with_multipliers(problem, Point(primal))).relative


def like(new: PyTree, old: PyTree) -> PyTree:
    """`new` in the dtypes of `old`: a float32 state stays one where x64 is on."""

    def cast(x: Any, y: Any) -> Any:
        return jnp.asarray(x, y.dtype) if eqx.is_array(y) else x

    return jax.tree.map(cast, new, old)


def arrays(tree: PyTree) -> PyTree:
    """A foreign state with strongly typed arrays; its numbers stay static."""

    def convert(x: Any) -> Any:
        return jax.lax.convert_element_type(x, x.dtype) if eqx.is_array(x) else x

    return jax.tree.map(convert, tree)


@contextlib.contextmanager
def abroad() -> Iterator[None]:
    """How foreign code is traced: products at full precision, standard promotion."""
    with jax.default_matmul_precision("highest"), jax.numpy_dtype_promotion("standard"):
        yield


def accept(solver: str, statement: Statement, kinds: tuple[str, ...], *fields: str) -> None:
    """Raise `TypeError` unless `solver` takes a problem of this kind with these constraints.

    Args:
        solver: its name, for the message.
        kinds: the kinds that it solves.
        fields: those of `equality`, `inequality`, `lower`, `upper` that it honours.
    """
    if statement.kind not in kinds:
        raise TypeError(
            f"{solver} solves problems of kind {', '.join(kinds)}; this one is "
            f"a {statement.kind} problem."
        )
    for name in _FIELDS:
        if getattr(statement, name) is not None and name not in fields:
            raise TypeError(
                f"{solver} cannot honour `{name}` of the problem. Use a solver for constrained "
                'problems (`solver=None`, or Scipy("SLSQP")).'
            )


def once(fn: Callable) -> Callable:
    """`fn`, traced once for all its uses inside one step (line searches call it in loops)."""
    return jax.jit(lambda primal: fn(primal))


def objective(statement: Statement) -> Callable[[PyTree[Array]], Float[Array, ""]]:
    """The scalar to minimise: `fn` itself, or half the sum of squares of its equations."""
    if statement.kind == "minimise":
        return once(statement.fn)
    residuals = equations(statement)

    def half_squares(primal: PyTree[Array]) -> Float[Array, ""]:
        squares = [jnp.sum(x * x) for x in jax.tree.leaves(residuals(primal))]
        return sum(squares[1:], squares[0]) / 2

    return once(half_squares)


def equations(statement: Statement) -> Callable[[PyTree[Array]], PyTree[Array]]:
    """What must vanish: a root's function, y - f(y), or residuals in the sense of least squares."""
    if statement.kind != "fixed_point":
        return once(statement.fn)
    return once(lambda primal: jax.tree.map(jnp.subtract, primal, statement.fn(primal)))
