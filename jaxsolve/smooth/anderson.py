"""Anderson acceleration of a fixed-point iteration.

    f(y) = y:   r = f(y) - y,   y <- y + m r - (S + m Q) g,   g = argmin ||r - Q g||

S and Q hold the last changes of y and of r, one column each: the combination of the last iterates
whose residual is smallest, to first order. Equal to GMRES where f is affine (Walker and Ni 2011).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..core.checks import check_kind, check_settings
from ..core.solution import Guess, Point
from ..core.solver import AbstractSolver, ended
from ..core.triangular import solve_alike
from ..core.vectors import dot, finite, matmul, norm, ravel
from .forms import Scalar, Vector, equations, equations_measure, shaper
from .problems import FixedPoint, Root

_GROWTH = 10.0
"""A residual this many times above the smallest so far is refused."""

_REJECTIONS = 30
_PATIENCE = 100


class AndersonState(eqx.Module):
    """A point with its residual, the last changes, and the step that leaves it.

    Attributes:
        values: y - f(y) there.
        steps, changes: S' and the changes of `values`, one a row; empty rows are zero.
        gram: the products of `changes` with each other.
        count: changes taken so far.
        move: the step to be tried next.
        radius: an upper bound of its length after a refusal; infinite at first.
        rejections: since the last accepted step.
        best: the smallest norm of `values` so far.
        idle: steps since `best` last fell.
    """

    primal: PyTree[Array]
    values: Vector
    steps: Float[Array, "memory n"]
    changes: Float[Array, "memory n"]
    gram: Float[Array, "memory memory"]
    count: Int[Array, ""]
    move: Vector
    radius: Scalar
    rejections: Int[Array, ""]
    best: Scalar
    idle: Int[Array, ""]


class Anderson(AbstractSolver[FixedPoint | Root]):
    """Anderson acceleration: one evaluation a step, for contractions and for much that is not.

    The default of `FixedPoint`. A `Root` F is solved as the fixed point of y - F(y).

    Anderson (1965); Walker and Ni (2011). A trial whose residual is ten times the smallest so far,
    or not finite, is refused: its change is kept, and the next step is shorter.

    Args:
        memory: changes kept; each costs two vectors.
        mixing: m, the weight of the residual; below 1 it damps a violent f.
    """

    memory: int = 8
    mixing: float = 1.0

    step_limit: ClassVar[int] = 2000

    def __check_init__(self) -> None:
        check_settings(self)

    def refuse(self, problem: FixedPoint | Root) -> None:
        check_kind(self, problem, FixedPoint, Root)

    def init(self, problem: FixedPoint | Root, guess: Guess) -> AndersonState:
        vector = ravel(guess.primal)
        values = equations(problem, guess.primal)(vector)
        rows = jnp.zeros((self.memory, vector.size), vector.dtype)
        steps, changes = rows, rows
        gram = jnp.zeros((self.memory, self.memory), vector.dtype)
        count = jnp.zeros((), jnp.int32)
        found = guess.state
        if isinstance(found, AndersonState) and found.steps.shape == rows.shape:
            steps, changes, gram, count = found.steps, found.changes, found.gram, found.count
        size = norm(values)
        return AndersonState(
            primal=guess.primal,
            values=values,
            steps=steps,
            changes=changes,
            gram=gram,
            count=count,
            move=self._move(values, steps, changes, gram),
            radius=jnp.full_like(size, jnp.inf),
            rejections=jnp.zeros_like(size, jnp.int32),
            best=size,
            idle=jnp.zeros_like(size, jnp.int32),
        )

    def step(self, problem: FixedPoint | Root, state: AndersonState) -> AndersonState:
        vector = ravel(state.primal)
        trial = vector + state.move
        values = equations(problem, state.primal)(trial)
        size = norm(values)
        usable = finite(values) & jnp.isfinite(size)
        accepted = usable & (size <= _GROWTH * state.best)

        # A refused trial is a secant as good as any, unless it is not finite.
        change = values - state.values
        square = dot(change, change)
        enters = usable & (square > 0) & jnp.isfinite(square)
        row = state.count % self.memory
        steps = state.steps.at[row].set(jnp.where(enters, state.move, state.steps[row]))
        changes = state.changes.at[row].set(jnp.where(enters, change, state.changes[row]))
        own = jnp.arange(self.memory, dtype=row.dtype) == row
        products = matmul(changes, changes[row])
        gram = jnp.where(own[None, :], products[:, None], state.gram)
        gram = jnp.where(own[:, None], products[None, :], gram)

        vector = jnp.where(accepted, trial, vector)
        values = jnp.where(accepted, values, state.values)
        move = self._move(values, steps, changes, gram)
        tried = norm(state.move)
        refused = jnp.where(usable, 0.5 * tried, 0.1 * tried)
        radius = jnp.where(accepted, jnp.maximum(2 * tried, 2 * state.radius), refused)
        length = norm(move)
        # Not the quotient's minimum with 1: the derivative of an infinite one is NaN.
        long = radius < length
        move = move * jnp.where(long, jnp.where(long, radius, 1) / jnp.where(long, length, 1), 1)
        progress = accepted & (size < 0.99 * state.best)
        return AndersonState(
            primal=shaper(state.primal)(vector),
            values=values,
            steps=steps,
            changes=changes,
            gram=gram,
            count=state.count + enters.astype(jnp.int32),
            move=move,
            radius=radius,
            rejections=jnp.where(accepted, 0, state.rejections + 1),
            best=jnp.where(progress, size, state.best),
            idle=jnp.where(progress, 0, state.idle + 1),
        )

    def measure(self, problem: FixedPoint | Root, state: AndersonState) -> Scalar:
        return equations_measure(problem, ravel(state.primal), state.values)

    def status(self, problem: FixedPoint | Root, state: AndersonState, tolerance: Scalar) -> Any:
        solved = self.measure(problem, state) <= tolerance
        stalled = (state.rejections >= _REJECTIONS) | (state.idle >= _PATIENCE)
        return ended(solved, stalled)

    def full_step(self, problem: FixedPoint | Root, point: Point) -> Point:
        vector = ravel(point.primal)
        return Point(shaper(point.primal)(vector - equations(problem, point.primal)(vector)))

    def point(self, problem: FixedPoint | Root, state: AndersonState) -> Point:
        return Point(state.primal)

    def _move(
        self,
        values: Vector,
        steps: Float[Array, "memory n"],
        changes: Float[Array, "memory n"],
        gram: Float[Array, "memory memory"],
    ) -> Vector:
        """The step of the accelerated iteration; the plain one where the memory is of no use."""
        # Unit columns; what the rounding of the products cannot tell apart is regularised away.
        squares = jnp.diagonal(gram)
        used = squares > 0
        sizes = jnp.sqrt(jnp.where(used, squares, 1))
        ridge = 10 * self.memory * jnp.finfo(values.dtype).eps
        scaled = gram / (sizes[:, None] * sizes[None, :])
        scaled = scaled + jnp.diag(jnp.where(used, ridge, 1.0).astype(values.dtype))
        weights = solve_alike(scaled, matmul(changes, values) / sizes) / sizes
        weights = jnp.where(finite(weights), weights, jnp.zeros_like(weights))
        left = values - matmul(weights, changes)
        return -self.mixing * left - matmul(weights, steps)
