"""The set where a function is at most 0.

    minimise |w - p|^2 / 2   subject to   f(w) <= 0:
    w - p + z grad f(w) = 0,   min(z, -f(w)) = 0.

Each step solves the quadratic model with the Hessian I + z f''(w) and the linearised f, whose
multiplier is one quotient, and shortens it until the exact penalty |w - p|^2 / 2 + nu max(f, 0)
falls: Newton's method on the conditions near the solution.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from ...core.checks import check_instance, check_kind, show
from ...core.closure import trace
from ...core.problem import AbstractProblem
from ...core.solution import RESULTS, Dual, Guess, Point, Residual, Scale
from ...core.solver import AbstractSolver, ended
from ...core.vectors import clean, dot, largest
from .base import AbstractSet

Scalar = Float[Array, ""]
Vector = Float[Array, " n"]


class Sublevel(AbstractSet):
    """{w : fn(w) <= 0} for a twice differentiable function of any array or pytree.

    For convex functions the projection is found from every point; else a nearby point where the
    conditions hold. Dense in the Hessian: for up to some hundred variables. Of an empty set the
    result is `stalled`. Where fn is 0 at the point itself, with multiplier 0, derivatives are the
    mean of those of the two sides.

    Example:
        ```python
        ellipse = sets.Sublevel(lambda w: w[0] ** 2 + 4 * w[1] ** 2 - 1)
        ellipse.project(jnp.array([2.0, 1.0]))
        ```

    Args:
        fn: a real scalar of the point. Data belong in an `eqx.Module` with a `__call__`, or are
            captured inside of a jit; a new function is a new program.
    """

    fn: Callable[[PyTree], Scalar]

    def problem(self, point: PyTree[Array]) -> "SublevelProjection":
        from .closed_form import opened

        check_instance("Sublevel", "fn", self.fn, Callable, "a function of the point")
        array, unravel = opened(point, "Sublevel")
        shape = array.shape
        back = (lambda w: w.reshape(shape)) if unravel is None else unravel
        function = _OfVector(self.fn, back)
        closed, out = trace(function, array.ravel(), None)
        if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != () or out.dtype != array.dtype:
            raise TypeError(
                f"Sublevel: `fn` must return a real scalar of the point's dtype ({array.dtype}); "
                f"it returns {show(out)}."
            )
        return SublevelProjection(array.ravel(), closed, back)


class _OfVector(eqx.Module):
    """fn of the vector of the point's entries, as a function of two arguments."""

    fn: Callable
    back: Callable = eqx.field(static=True)

    def __call__(self, vector: Vector, args: Any) -> Scalar:
        return self.fn(self.back(vector))


class SublevelProjection(AbstractProblem):
    """The conditions in w (the value) and the multiplier z (`dual.inequality`)."""

    point: Vector
    fn: Callable[[Vector, Any], Scalar]
    back: Callable = eqx.field(static=True)

    def level(self, w: Vector) -> Scalar:
        """f(w)."""
        return self.fn(w, None)

    def optimality(self, point: Point) -> Point:
        level, slope = jax.value_and_grad(self.level)(point.primal)
        z = point.dual.inequality
        return Point(point.primal - self.point + z * slope, Dual(inequality=jnp.minimum(z, -level)))

    def residual(self, point: Point) -> Residual:
        found = jax.value_and_grad(self.level)(point.primal)
        return self.judged(point.primal, point.dual.inequality, *found)

    def judged(self, w: Vector, z: Scalar, level: Scalar, slope: Vector) -> Residual:
        """The residual, from f and its gradient at w."""
        one = jnp.ones_like(level)
        scale = jnp.maximum(jnp.maximum(one, largest(self.point)), z * largest(slope))
        return Residual(
            jnp.maximum(level, 0),
            largest(w - self.point + z * slope),
            jnp.abs(jnp.minimum(z, -level)),
            Scale(one, scale, one),
        )

    def multipliers(self, value: Vector) -> Dual:
        level, slope = jax.value_and_grad(self.level)(value)
        square = dot(slope, slope)
        near = level >= -(jnp.finfo(level.dtype).eps ** 0.33)
        z = dot(slope, self.point - value) / jnp.where(square > 0, square, 1)
        return Dual(inequality=jnp.where(near, jnp.maximum(z, 0), 0))

    def default_solver(self) -> AbstractSolver:
        return SequentialNewton()

    def prepare(self, init: PyTree | None) -> tuple[Self, Vector]:
        if init is None:
            return self, self.point
        value = jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(init)])
        if value.shape != self.point.shape or value.dtype != self.point.dtype:
            raise ValueError(
                f"Projection: `init` is {show(value)} as a vector, but `point` {show(self.point)}."
            )
        return self, value

    def restore(self, value: Vector) -> PyTree:
        return self.back(value)

    def screen(self, guess: Guess) -> tuple[Any, Point]:
        usable = clean((self.point, guess.primal), self.fn)
        result = RESULTS.where(usable, RESULTS.successful, RESULTS.nonfinite_input)
        nan = jnp.full_like(self.point, jnp.nan)
        return result, Point(nan, Dual(inequality=0 * nan[0]))


class State(eqx.Module):
    """w and z with f and its gradient there, the penalty's weight, and steps without progress."""

    w: Vector
    z: Scalar
    level: Scalar
    slope: Vector
    weight: Scalar
    stuck: Bool[Array, ""]


class SequentialNewton(AbstractSolver[SublevelProjection]):
    """Sequential quadratic programming for one inequality, with the exact Hessian."""

    step_limit: ClassVar[int] = 200

    def refuse(self, problem: SublevelProjection) -> None:
        check_kind(self, problem, SublevelProjection)

    def init(self, problem: SublevelProjection, guess: Guess) -> State:
        level, slope = jax.value_and_grad(problem.level)(guess.primal)
        z = guess.dual.inequality if isinstance(guess.dual, Dual) else 0 * level
        return State(guess.primal, z, level, slope, 0 * level + 1, level != level)

    def step(self, problem: SublevelProjection, state: State) -> State:
        w, z, level, slope = state.w, state.z, state.level, state.slope
        away = w - problem.point
        curved = jax.hessian(problem.level)(w)
        eye = jnp.eye(w.size, dtype=w.dtype)
        factor = lax.linalg.cholesky(eye + z * (curved + curved.T) / 2)
        # Of a function that is not convex the identity is left.
        factor = jnp.where(jnp.isfinite(factor[-1, -1]), factor, eye)
        back = lambda r: jax.scipy.linalg.cho_solve((factor, True), r)
        free, pull = back(away), back(slope)
        square = dot(slope, pull)
        multiplier = jnp.maximum(level - dot(slope, free), 0) / jnp.where(square > 0, square, 1)
        direction = -free - multiplier * pull

        weight = jnp.maximum(state.weight, 2 * multiplier)
        fall = dot(away, direction) - weight * jnp.maximum(level, 0)
        lengths = 0.5 ** jnp.arange(16, dtype=w.dtype)

        def change(length):
            """Of the penalty; the square's in a form that does not cancel."""
            half = dot(away, direction) * length + length**2 * dot(direction, direction) / 2
            new = problem.level(w + length * direction)
            return half + weight * (jnp.maximum(new, 0) - jnp.maximum(level, 0))

        falls = jax.vmap(change)(lengths) <= 1e-4 * lengths * fall
        old = problem.judged(w, z, level, slope).relative
        full = w + direction
        found = jax.value_and_grad(problem.level)(full)
        # A full step that gets much nearer to the conditions needs no penalty to fall.
        whole = problem.judged(full, multiplier, *found).relative <= 0.5 * old
        length = jnp.where(whole, 1, lengths[jnp.argmax(falls)])
        moved = whole | jnp.any(falls)
        length = jnp.where(moved, length, 0)
        w, z = w + length * direction, z + length * (multiplier - z)
        level, slope = jax.value_and_grad(problem.level)(w)
        return State(w, z, level, slope, weight, ~moved)

    def measure(self, problem: SublevelProjection, state: State) -> Scalar:
        return problem.judged(state.w, state.z, state.level, state.slope).relative

    def status(
        self, problem: SublevelProjection, state: State, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        solved = self.measure(problem, state) <= tolerance
        return ended(solved, state.stuck)

    def point(self, problem: SublevelProjection, state: State) -> Point:
        return Point(state.w, Dual(inequality=state.z))
