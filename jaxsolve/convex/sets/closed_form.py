"""The projection on a set that has a formula, its solver of no step, and its derivative.

    F(x) = x - face(p; pattern of x)

is 0 at the projection, and its Jacobian in x is the identity: the implicit function theorem on it
is the derivative of the formula on the pattern, and there is no linear system to solve.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from ...core.adjoint import AbstractAdjoint
from ...core.checks import check_kind, show
from ...core.mesh import vary, varying
from ...core.problem import AbstractProblem, Structure
from ...core.search import begin, conclude
from ...core.solution import RESULTS, Guess, Point, Residual, Scale
from ...core.solver import AbstractSolver
from ...core.unsolved import usable
from ...core.vectors import clean, frozen, largest
from .base import AbstractClosedForm


class FormulaProjection(AbstractProblem):
    """The projection of an array, or of the leaves of a pytree as one vector.

    Attributes:
        unravel: from the vector back to the pytree; `None` for an array.
    """

    point: Array
    set: AbstractClosedForm
    unravel: Callable[[Array], PyTree] | None = eqx.field(static=True, default=None)

    @classmethod
    def of(cls, point: PyTree[Array], set: AbstractClosedForm) -> Self:
        """The problem with the set's data brought to the point's shape and dtype."""
        array, unravel = opened(point, type(set).__name__)
        set.matches(point)
        return cls(array, set.fit(array), unravel)

    @property
    def structure(self) -> Structure:
        return Structure(symmetric=True, definite=True)

    def formula(self) -> Array:
        """The projection as an ordinary function, to be differentiated as one."""
        found = frozen(self)
        return self.set.face(self.point, jax.lax.stop_gradient(found.set.find(found.point)))

    def clean(self) -> Bool[Array, ""]:
        """Whether the point is finite and no data are NaN."""
        return clean(self.point, self.set)

    def optimality(self, point: Point) -> Point:
        at = jax.lax.stop_gradient(point.primal)
        return Point(point.primal - self.set.face(self.point, at))

    def residual(self, point: Point) -> Residual:
        """Membership, and the distance of point - x to the normal cone: not the formula's word."""
        primal = self.set.violation(point.primal)
        dual = self.set.normality(self.point, point.primal)
        one, zero = jnp.ones_like(primal), jnp.zeros_like(primal)
        # An infinite radius is no scale: everything would pass.
        size = jnp.asarray(self.set.size(), one.dtype)
        size = jnp.maximum(one, jnp.where(jnp.isfinite(size), size, 0))
        scale = jnp.maximum(one, largest(self.point))
        return Residual(primal, dual, zero, Scale(size, jnp.maximum(size, scale), one))

    def default_solver(self) -> "ClosedForm":
        return ClosedForm()

    def default_adjoint(self) -> AbstractAdjoint:
        return Explicit()

    def prepare(self, init: PyTree | None) -> tuple[Self, Array]:
        return self, self.point

    def restore(self, value: Array) -> PyTree:
        return value if self.unravel is None else self.unravel(value)

    def screen(self, guess: Guess) -> tuple[Any, Point]:
        result = RESULTS.where(
            self.clean(),
            RESULTS.where(self.set.empty(), RESULTS.infeasible, RESULTS.successful),
            RESULTS.nonfinite_input,
        )
        return result, Point(jnp.full_like(self.point, jnp.nan))


class ClosedForm(AbstractSolver[FormulaProjection]):
    """The formula of a set: done before the first step."""

    step_limit: ClassVar[int] = 1

    def refuse(self, problem: FormulaProjection) -> None:
        check_kind(self, problem, FormulaProjection)

    def init(self, problem: FormulaProjection, guess: Guess) -> Array:
        return problem.formula()

    def step(self, problem: FormulaProjection, state: Array) -> Array:
        return state

    def measure(self, problem: FormulaProjection, state: Array) -> Float[Array, ""]:
        return 0 * largest(state)

    def status(
        self, problem: FormulaProjection, state: Array, tolerance: Float[Array, ""]
    ) -> tuple[Bool[Array, ""], Any]:
        return jnp.array(True), RESULTS.successful

    def point(self, problem: FormulaProjection, state: Array) -> Point:
        return Point(state)

    def full_step(self, problem: FormulaProjection, point: Point) -> Point:
        return Point(problem.formula())


class Explicit(AbstractAdjoint):
    """The derivative of the set's formula on the pattern of the point found.

    What `Implicit` comes to on a system whose Jacobian is the identity. No loop is run for a solver
    that needs no step: a batch goes through the formula as through any function, without a queue.
    """

    def solve(self, problem, solver, guess, limits, search):
        if isinstance(solver, ClosedForm):
            start, _ = begin(problem, solver, guess, limits)
            outcome = frozen(conclude(problem, solver, guess, limits, start))
        else:
            outcome = frozen(search())
        data, static = eqx.partition(problem, eqx.is_inexact_array)

        def face(data: PyTree, at: Array) -> Array:
            problem: FormulaProjection = eqx.combine(data, static)
            return problem.set.face(problem.point, at)

        @jax.custom_jvp
        def attached(data: PyTree, at: Array, solved: Bool[Array, ""]) -> Array:
            return at

        @attached.defjvp
        def rule(primals, tangents):
            data, at, solved = primals
            at = attached(data, at, solved)
            # A refused lane's NaN must not reach others through data that they share.
            clean, place = usable((data, at), solved)
            # In a shard_map `clean` varies with `solved`, where shared data do not.
            moved = jax.tree.map(lambda t, c: vary(t, varying(c)), tangents[0], clean)
            _, pushed = jax.jvp(lambda d: face(d, place), (clean,), (moved,))
            # There the derivative is NaN in every direction, whatever the pattern would hide.
            parts = [jnp.sum(gate(t, solved)) for t in jax.tree.leaves(moved)]
            lost = jnp.broadcast_to(sum(parts[1:], parts[0]), pushed.shape)
            return at, gate(jnp.where(solved, pushed, lost), solved)

        return outcome, Point(attached(data, outcome.point.primal, outcome.solved))


def gate(tangent: Array, solved: Bool[Array, ""]) -> Array:
    """The tangent, NaN where it is not 0 and the lane is not solved; and so is its transpose."""

    def passed(_, t: Array) -> Array:
        return jnp.where(solved | (t == 0), t, jnp.nan)

    return jax.lax.custom_linear_solve(lambda t: t, tangent, passed, symmetric=True)


def opened(point: PyTree[Array], name: str) -> tuple[Array, Callable | None]:
    """A point as one floating array, and the way back where it was a pytree.

    Raises:
        TypeError: a leaf is no array of floating-point numbers.
    """
    leaves = jax.tree.leaves(point)
    if not leaves:
        raise TypeError(f"{name}: `point` has no arrays.")
    for leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"{name}: `point` is {show(jax.tree.map(jnp.asarray, point))}; give real "
                "floating-point numbers (float32 or float64)."
            )
    if jax.tree.structure(point) == jax.tree.structure(0):
        array = jnp.asarray(point)
        # A weak type would not stay that of the result.
        return jax.lax.convert_element_type(array, array.dtype), None
    return ravel_pytree(point)
