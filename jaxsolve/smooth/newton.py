"""Newton's method for equations, made to converge from afar.

    F(y) = 0:   d = -J(y)^{-1} F(y),   y <- y + a d   with   ||F(y + a d)|| <= (1 - c a) ||F(y)||

Where the Jacobian is singular or the search along d fails, d solves the regularised normal
equations (J'J + m D) d = -J'F instead, D the diagonal of J'J, with growing m, until that helps.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core.checks import check_kind, check_real
from ..core.solution import Guess, Point
from ..core.solver import AbstractPreconditioner, AbstractSolver, ended
from ..core.vectors import basis, finite, largest, matmul, norm, ravel, regular
from .forms import Scalar, Vector, equations, equations_measure, shaper
from .problems import FixedPoint, Root

_DECREASE = 1e-4
_HALVINGS = 6
"""Trials along one direction before the next is regularised."""

_REGULARISATIONS = 12


class Factor(AbstractPreconditioner):
    """The LU factorisation of the Jacobian, or of J'J + m D where J was of no use.

    Attributes:
        jacobian: J.
        lu, pivots: of the matrix that was solved with.
        damping: m; 0 where J itself was factored.
    """

    jacobian: Float[Array, "n n"]
    lu: Float[Array, "n n"]
    pivots: Int[Array, " n"]
    damping: Scalar

    def solve(self, residual: Point) -> Point:
        vector = ravel(residual.primal)
        return Point(shaper(residual.primal)(self.apply(vector)), residual.dual)

    def transpose_solve(self, residual: Point) -> Point:
        vector = ravel(residual.primal)
        plain = self._solve(vector, 1)
        # (J'J + m D)^{-1} J' transposed: the matrix is symmetric.
        regular = matmul(self.jacobian, self._solve(vector, 0))
        out = jnp.where(self.damping > 0, regular, plain)
        return Point(shaper(residual.primal)(out), residual.dual)

    def apply(self, vector: Vector) -> Vector:
        """The (regularised) inverse times a vector."""
        right = jnp.where(self.damping > 0, matmul(vector, self.jacobian), vector)
        return self._solve(right, 0)

    def _solve(self, vector: Vector, transposed: int) -> Vector:
        return jax.scipy.linalg.lu_solve((self.lu, self.pivots), vector, trans=transposed)


class NewtonState(eqx.Module):
    """A point with its F and Jacobian, and the damped step that leaves it.

    Attributes:
        primal: the last accepted point.
        values: F there.
        factor: of the Jacobian there, by which `direction` was found.
        direction: -J^{-1} F, or a regularised one.
        step_size: along it, tried next.
        trials: along it, so far.
        regularised: times that the regularisation grew since the last accepted point.
        stuck: no step lowers ||F||.
    """

    primal: PyTree[Array]
    values: Vector
    factor: Factor
    direction: Vector
    step_size: Scalar
    trials: Int[Array, ""]
    regularised: Int[Array, ""]
    stuck: Bool[Array, ""]


class Newton(AbstractSolver[Root | FixedPoint]):
    """Damped Newton for roots of up to some thousand equations: one Jacobian a step.

    The default of `Root` for small systems. Quadratic convergence near a regular root; from afar
    ||F|| falls at every accepted step. A point where J'F = 0 but F is not 0 ends as `stalled`.

    Nocedal and Wright (2006), chapter 11.
    """

    step_limit: ClassVar[int] = 500

    def refuse(self, problem: Root | FixedPoint) -> None:
        check_kind(self, problem, Root, FixedPoint)

    def init(self, problem: Root | FixedPoint, guess: Guess) -> NewtonState:
        vector = ravel(guess.primal)
        check_real("Newton", "init", vector.dtype)
        values, jacobian = _linearise(problem, guess.primal, vector)
        zero = jnp.zeros((), values.dtype)
        count = jnp.zeros_like(zero, jnp.int32)
        factor, direction, singular = _solve(jacobian, values, zero)
        return NewtonState(
            primal=guess.primal,
            values=values,
            factor=factor,
            direction=direction,
            step_size=(~singular).astype(zero.dtype),
            trials=count,
            regularised=count,
            stuck=zero > 1,
        )

    def step(self, problem: Root | FixedPoint, state: NewtonState) -> NewtonState:
        vector = ravel(state.primal)
        trial = vector + state.step_size * state.direction
        values, jacobian = _linearise(problem, state.primal, trial)
        usable = finite(values, jacobian)
        old, new = norm(state.values), norm(values)
        accepted = usable & (new <= (1 - _DECREASE * state.step_size) * old) & (state.step_size > 0)

        # The minimiser of the parabola through ||F||^2 at 0, its slope -2 ||F||^2, and the trial.
        ratio = new / jnp.where(old > 0, old, jnp.ones_like(old))
        shrink = state.step_size / (ratio * ratio - 1 + 2 * state.step_size)
        shrink = jnp.clip(jnp.where(usable, shrink, 0.1), 0.1, 0.5)
        step_size = state.step_size * shrink
        trials = state.trials + 1
        failed = ~accepted & ((trials >= _HALVINGS) | (state.step_size == 0))
        regularised = jnp.where(accepted, 0, state.regularised + failed.astype(jnp.int32))

        vector = jnp.where(accepted, trial, vector)
        values = jnp.where(accepted, values, state.values)
        jacobian = jnp.where(accepted, jacobian, state.factor.jacobian)
        grown = jnp.asarray(10.0, old.dtype) ** (regularised - 4).astype(old.dtype)
        damping = jnp.where(regularised > 0, grown, 0.0)
        # A lane alone factors again only where the matrix has changed.
        factor, direction, singular = jax.lax.cond(
            accepted | failed,
            lambda: _solve(jacobian, values, damping),
            lambda: (state.factor, state.direction, state.step_size == 0),
        )
        anew = accepted | failed
        step_size = jnp.where(anew, (~singular).astype(old.dtype), step_size)
        return NewtonState(
            primal=shaper(state.primal)(vector),
            values=values,
            factor=factor,
            direction=direction,
            step_size=step_size.astype(old.dtype),
            trials=jnp.where(anew, 0, trials),
            regularised=regularised,
            stuck=regularised > _REGULARISATIONS,
        )

    def measure(self, problem: Root | FixedPoint, state: NewtonState) -> Scalar:
        return equations_measure(problem, ravel(state.primal), state.values)

    def status(
        self, problem: Root | FixedPoint, state: NewtonState, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        solved = self.measure(problem, state) <= tolerance
        return ended(solved, state.stuck)

    def point(self, problem: Root | FixedPoint, state: NewtonState) -> Point:
        return Point(state.primal)

    def full_step(self, problem: Root | FixedPoint, point: Point) -> Point:
        values, jacobian = _linearise(problem, point.primal, ravel(point.primal))
        direction = jnp.linalg.solve(jacobian, -values)
        return Point(shaper(point.primal)(ravel(point.primal) + direction))

    def preconditioner(self, problem: Root | FixedPoint, state: NewtonState) -> Factor:
        # With a singular J it gives one solution of many, and its residual does not tell.
        factor = state.factor
        usable = regular(jnp.abs(jnp.diagonal(factor.lu))) & (factor.damping == 0)
        return eqx.tree_at(lambda f: f.lu, factor, jnp.where(usable, factor.lu, jnp.nan))


def _linearise(
    problem: Root | FixedPoint, primal: PyTree[Array], vector: Vector
) -> tuple[Vector, Float[Array, "n n"]]:
    """F and its Jacobian."""
    fn = equations(problem, primal)
    values, tangent = jax.linearize(fn, vector)
    return values, jax.vmap(tangent, out_axes=1)(basis(vector))


def _solve(
    jacobian: Float[Array, "n n"], values: Vector, damping: Scalar
) -> tuple[Factor, Vector, Bool[Array, ""]]:
    """The (regularised) Newton direction, and whether the matrix was of no use for it."""
    regularises = damping > 0

    def regularised() -> Float[Array, "n n"]:
        gram = matmul(jacobian.T, jacobian)
        # Relative to each column, so that an equation that is almost flat still moves.
        sizes = jnp.diagonal(gram)
        floor = jnp.maximum(
            largest(sizes) * jnp.finfo(sizes.dtype).eps ** 2, jnp.finfo(sizes.dtype).tiny
        )
        return gram + jnp.diag(damping * jnp.maximum(sizes, floor))

    matrix = jax.lax.cond(regularises, regularised, lambda: jacobian)
    lu, pivots = jax.scipy.linalg.lu_factor(matrix)
    factor = Factor(jacobian, lu, pivots, damping)
    direction = -factor.apply(values)
    usable = finite(direction) & finite(values)
    # A finite solution of a singular system can be wrong: J d = -F has to hold roughly.
    error = largest(matmul(jacobian, direction) + values)
    singular = ~usable | (~regularises & ~(error <= 0.1 * largest(values)))
    return factor, jnp.where(usable, direction, jnp.zeros_like(direction)), singular
