"""Broyden's method for equations: secants instead of Jacobians, one evaluation of F a step.

    F(y) = 0:   d = -H F(y),   H <- (I + u s') H,   u = (s - H q) / (s' H q)

with s a step and q the change of F along it ("good" Broyden). H is a first inverse times the last
few rank-one factors; it learns from rejected trials as well. The step is held in a trust region.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core.checks import check_instance, check_kind, check_real, check_settings
from ..core.solution import Guess, Point
from ..core.solver import AbstractSolver, ended
from ..core.vectors import dot, finite, identity, largest, matmul, norm, ravel
from .forms import Scalar, Vector, equations, equations_measure, shaper
from .newton import Newton
from .problems import FixedPoint, Root

_REJECTIONS = 12
"""In a row, before H is forgotten; in two such rows, before the solver gives up."""


class AbstractStart(eqx.Module):
    """The first inverse Jacobian."""

    @abc.abstractmethod
    def init(self, fn: Any, vector: Vector, values: Vector) -> Float[Array, "..."]: ...


class Jacobian(AbstractStart):
    """The inverse of the Jacobian at the first point; a multiple of 1 where that is singular."""

    def init(self, fn: Any, vector: Vector, values: Vector) -> Float[Array, "n n"]:
        check_real("Broyden", "init", vector.dtype)
        unit = identity(vector)
        jacobian = jax.vmap(jax.linearize(fn, vector)[1], out_axes=1)(unit)
        inverse = jnp.linalg.solve(jacobian, unit)
        check = largest(matmul(jacobian, inverse) - unit)
        multiple = Multiple().init(fn, vector, values) * unit
        return jnp.where(finite(inverse) & (check < 0.1), inverse, multiple)


class Multiple(AbstractStart):
    """The multiple of 1 that minimises ||F|| along F to first order: one Jacobian product."""

    def init(self, fn: Any, vector: Vector, values: Vector) -> Float[Array, ""]:
        product = jax.jvp(fn, (vector,), (values,))[1]
        square = dot(product, product)
        multiple = dot(values, product) / jnp.where(square > 0, square, 1.0)
        usable = jnp.isfinite(multiple) & (multiple != 0)
        return jnp.where(usable, multiple, jnp.ones_like(multiple))


class Inverse(eqx.Module):
    """H = (1 + U C S') H_0: a first inverse (a matrix, or a multiple of 1) and rank-one factors.

    Attributes:
        first: H_0.
        updates: U', a row each; `steps`: S'.
        coefficients: C, lower triangular with unit diagonal in the rows in use.
        count: rows in use.
    """

    first: Float[Array, "..."]
    updates: Float[Array, "memory n"]
    steps: Float[Array, "memory n"]
    coefficients: Float[Array, "memory memory"]
    count: Int[Array, ""]

    @classmethod
    def empty(cls, first: Float[Array, "..."], like: Vector, memory: int) -> "Inverse":
        """H_0."""
        rows = jnp.zeros((memory, like.size), like.dtype)
        square = jnp.zeros((memory, memory), like.dtype)
        return cls(first, rows, rows, square, jnp.zeros((), jnp.int32))

    def times(self, vector: Vector) -> Vector:
        """H vector."""
        vector = matmul(self.first, vector) if self.first.ndim else self.first * vector
        inner = matmul(self.coefficients, matmul(self.steps, vector))
        return vector + matmul(inner, self.updates)

    def cleared(self, where: Bool[Array, ""], first: Float[Array, "..."]) -> "Inverse":
        """Without its factors, and with another H_0, `where` it holds."""

        def clear(x):
            return jnp.where(where, jnp.zeros_like(x), x)

        return Inverse(
            jnp.where(where, first, self.first),
            clear(self.updates),
            clear(self.steps),
            clear(self.coefficients),
            clear(self.count),
        )

    def with_secant(self, step: Vector, change: Vector, where: Bool[Array, ""]) -> "Inverse":
        """The nearest H (in the sense of Broyden) that takes `change` to `step`.

        When the memory is full, all factors are forgotten and this one is the first of the next.
        """
        full = self.count >= self.steps.shape[0]
        base = self.cleared(full & where, self.first)
        image = base.times(change)
        denominator, square = dot(step, image), dot(step, step)
        # A small denominator would make H nearly singular: damp the update (More and Trangenstein).
        ratio = denominator / jnp.where(square > 0, square, 1.0)
        ratio = jnp.where(square > 0, ratio, jnp.ones_like(ratio))
        sign = jnp.where(ratio >= 0, jnp.ones_like(ratio), -1.0)
        damping = jnp.where(jnp.abs(ratio) >= 0.1, 1.0, (1 - 0.1 * sign) / (1 - ratio))
        blended = damping * image + (1 - damping) * step
        denominator = dot(step, blended)
        enters = where & finite(image) & (jnp.abs(denominator) > 0)
        update = (step - blended) / jnp.where(denominator != 0, denominator, 1.0)
        enters = enters & finite(update)
        row = base.count
        own = jnp.arange(self.steps.shape[0], dtype=row.dtype) == row
        coefficients = matmul(matmul(base.updates, step), base.coefficients)
        coefficients = jnp.where(own, jnp.ones_like(coefficients), coefficients)

        def put(matrix, vector):
            return jnp.where((own & enters)[:, None], vector[None, :], matrix)

        return Inverse(
            base.first,
            put(base.updates, update),
            put(base.steps, step),
            put(base.coefficients, coefficients),
            base.count + enters.astype(jnp.int32),
        )


class BroydenState(eqx.Module):
    """A point with its F, the inverse, and the radius of the next step.

    Attributes:
        move: the step to be tried next.
        rejections: since the last accepted step.
        forgotten: whether H was forgotten since the last accepted step.
    """

    primal: PyTree[Array]
    values: Vector
    inverse: Inverse
    move: Vector
    radius: Scalar
    rejections: Int[Array, ""]
    forgotten: Bool[Array, ""]


class Broyden(AbstractSolver[Root | FixedPoint]):
    """Limited-memory Broyden for roots: where a Jacobian a step costs too much.

    Superlinear near a regular root, where the first inverse is good. It may stall far away from
    one: lanes without a solution are then given to `rescue`.

    Broyden (1965); product form of the limited memory as in Kelley (1995), chapter 7.

    Args:
        memory: rank-one factors kept; each costs two vectors.
        start: `Jacobian()` or `Multiple()`; `None` takes the Jacobian up to 256 variables.
    """

    memory: int = 30
    start: AbstractStart | None = None

    step_limit: ClassVar[int] = 1000

    def __check_init__(self) -> None:
        check_settings(self)
        wanted = "a first inverse (Jacobian(), Multiple()) or None"
        check_instance("Broyden", "start", self.start, AbstractStart | None, wanted)

    def refuse(self, problem: Root | FixedPoint) -> None:
        check_kind(self, problem, Root, FixedPoint)

    def init(self, problem: Root | FixedPoint, guess: Guess) -> BroydenState:
        vector = ravel(guess.primal)
        fn = equations(problem, guess.primal)
        values = fn(vector)
        start = self.start or (Jacobian() if vector.size <= 256 else Multiple())
        found = guess.state
        if isinstance(found, BroydenState) and found.inverse.steps.shape == (
            self.memory,
            vector.size,
        ):
            inverse = found.inverse
        else:
            inverse = Inverse.empty(start.init(fn, vector, values), vector, self.memory)
        move = -inverse.times(values)
        zero = jnp.zeros((), values.dtype)
        return BroydenState(
            primal=guess.primal,
            values=values,
            inverse=inverse,
            move=jnp.where(finite(move), move, jnp.zeros_like(move)),
            radius=jnp.where(finite(move), norm(move), jnp.ones_like(zero)),
            rejections=jnp.zeros_like(zero, jnp.int32),
            forgotten=zero > 1,
        )

    def step(self, problem: Root | FixedPoint, state: BroydenState) -> BroydenState:
        vector = ravel(state.primal)
        trial = vector + state.move
        values = equations(problem, state.primal)(trial)
        usable = finite(values)
        old, new = norm(state.values), norm(values)
        accepted = usable & (new < (1 - 1e-4) * old)
        inverse = state.inverse.with_secant(state.move, values - state.values, usable)

        rejections = jnp.where(accepted, 0, state.rejections + 1)
        forget = ~accepted & (rejections % _REJECTIONS == 0)
        # From nothing again: a multiple of 1, by the last secant.
        change = values - state.values
        square = dot(change, change)
        multiple = dot(state.move, change) / jnp.where(square > 0, square, 1.0)
        multiple = jnp.where(jnp.isfinite(multiple) & (multiple != 0), multiple, 1.0)
        first = state.inverse.first
        if first.ndim:
            first = multiple * identity(vector)
        else:
            first = multiple.astype(first.dtype)
        inverse = inverse.cleared(forget, first)

        size = norm(state.move)
        shrunk = jnp.where(usable, 0.5 * size, 0.1 * size)
        grown = jnp.where(new < 0.5 * old, 4 * size, 2 * size)
        radius = jnp.where(accepted, jnp.maximum(grown, state.radius), shrunk)
        radius = jnp.where(forget, jnp.maximum(norm(vector), 1.0) * 0.1, radius)

        vector = jnp.where(accepted, trial, vector)
        values = jnp.where(accepted, values, state.values)
        move = -inverse.times(values)
        move = jnp.where(finite(move), move, jnp.zeros_like(move))
        length = norm(move)
        move = move * jnp.minimum(1.0, radius / jnp.where(length > 0, length, 1.0))
        return BroydenState(
            primal=shaper(state.primal)(vector),
            values=values,
            inverse=inverse,
            move=move,
            radius=radius,
            rejections=rejections,
            forgotten=forget | (state.forgotten & ~accepted),
        )

    def measure(self, problem: Root | FixedPoint, state: BroydenState) -> Scalar:
        return equations_measure(problem, ravel(state.primal), state.values)

    def status(
        self, problem: Root | FixedPoint, state: BroydenState, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        solved = self.measure(problem, state) <= tolerance
        stalled = state.forgotten & (state.rejections >= 2 * _REJECTIONS)
        return ended(solved, stalled)

    def point(self, problem: Root | FixedPoint, state: BroydenState) -> Point:
        return Point(state.primal)

    def rescue(self) -> Newton:
        return Newton()
