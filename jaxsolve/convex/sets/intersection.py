"""Intersections of convex sets: one quadratic program, or Dykstra's method.

    minimise |x - p|^2 / 2   subject to   x in C_1, ..., x in C_m

With normals y_i of C_i at x, the projection is where

    x = p - y_1 - ... - y_m,   x = P_i(x + y_i)   for every i.

Dykstra (1983) goes round: z = x + y_i, x = P_i(z), y_i = z - x. The first equation then always
holds, and the second holds for the x that came out of P_i: once a round leaves them all the same,
it is solved. What is differentiated is this system in (x, y), by the formulas of the P_i.
"""

from typing import Any, ClassVar, Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ...core.checks import check_kind
from ...core.problem import AbstractProblem
from ...core.solution import RESULTS, Guess, Point, Residual, Scale
from ...core.solver import AbstractSolver
from ...core.vectors import clean, largest
from ..quadratic_program import QuadraticProgram
from .base import AbstractClosedForm, AbstractSet, check_init, check_set
from .closed_form import opened
from .polyhedra import nearest, without_point
from .sparse import KSparse

Scalar = Float[Array, ""]


class Intersection(AbstractSet):
    """The points that several convex sets have in common.

    Boxes, simplices, halfspaces, `Affine`, `Polyhedron` and `Isotonic` make up one quadratic
    program, with a certificate where nothing is in common. With any other set among them it is
    Dykstra's method: each round projects on every set, and rounds converge linearly, slowly where
    boundaries meet at small angles. Of an empty intersection it says `max_steps_reached`.

    Example:
        ```python
        sets.Intersection(sets.L2Ball(1.0), sets.Box(lower=0.0)).project(jnp.array([2.0, -1.0]))
        ```

    Args:
        sets: at least one.
    """

    sets: tuple[AbstractSet, ...]

    def __init__(self, *sets: AbstractSet):
        for i, one in enumerate(sets):
            check_set("Intersection", f"sets[{i}]", one)
            if isinstance(one, KSparse):
                raise TypeError(f"Intersection: `sets[{i}]`, KSparse, is not convex.")
        if not sets:
            raise TypeError("Intersection: give at least one set.")
        self.sets = sets

    def fit(self, point: Array) -> Self:
        return type(self)(*(one.fit(point) for one in self.sets))

    def problem(self, point: PyTree[Array]) -> AbstractProblem:
        array, unravel = opened(point, "Intersection")
        if unravel is not None:
            raise TypeError("Intersection: `point` must be one array, not a pytree.")
        fitted = self.fit(array)
        rows = fitted.constraints(array) if array.ndim == 1 else None
        if rows is None:
            return IntersectionProjection(array, fitted.sets)
        return nearest(array, rows)

    def empty(self) -> Bool[Array, ""]:
        """Whether one of the sets is."""
        return jnp.any(jnp.stack([one.empty() for one in self.sets]))

    def proved_empty(self, point: PyTree[Array]) -> Bool[Array, ""]:
        problem = self.problem(point)
        if isinstance(problem, QuadraticProgram):
            return without_point(problem)
        return super().proved_empty(point)

    def constraints(self, point: Array) -> dict[str, Array] | None:
        parts = [one.constraints(point) for one in self.sets]
        if any(part is None for part in parts):
            return None
        out: dict[str, Array] = {}
        for part in parts:
            for field, value in (part or {}).items():
                if field not in out:
                    out[field] = value
                elif field == "lower":
                    out[field] = jnp.maximum(out[field], value)
                elif field == "upper":
                    out[field] = jnp.minimum(out[field], value)
                else:
                    out[field] = jnp.concatenate([out[field], value])
        return out


class IntersectionProjection(AbstractProblem):
    """The system in x (the value) and the normals y_1, ..., y_m (the dual)."""

    point: Array
    sets: tuple[AbstractSet, ...]

    def optimality(self, point: Point) -> Point:
        x, normals = point.primal, point.dual
        gaps = [x - one.project(x + y) for one, y in zip(self.sets, normals, strict=True)]
        return Point(x - self.point + sum(normals[1:], normals[0]), tuple(gaps))

    def residual(self, point: Point) -> Residual:
        found = self.optimality(point)
        gaps = jnp.stack([largest(gap) for gap in found.dual])
        one = jnp.ones_like(gaps[0])
        # Of an empty intersection the normals grow for ever: they are no scale for the gaps.
        size = jnp.maximum(one, largest(self.point))
        terms = jnp.maximum(size, jnp.max(jnp.stack([largest(y) for y in point.dual])))
        return Residual(jnp.max(gaps), largest(found.primal), 0 * one, Scale(size, terms, one))

    def multipliers(self, value: Array) -> tuple[Array, ...]:
        """The normals, of a point alone: Dykstra's increments are not known, zeros."""
        return tuple(jnp.zeros_like(value) for _ in self.sets)

    def default_solver(self) -> AbstractSolver:
        return Dykstra()

    def prepare(self, init: PyTree | None) -> tuple[Self, Array]:
        check_init(init, self.point)
        return self, self.point

    def screen(self, guess: Guess) -> tuple[Any, Point]:
        empty = jnp.array(False)
        for one in self.sets:
            if isinstance(one, AbstractClosedForm):
                empty = empty | one.empty()
        result = RESULTS.where(empty, RESULTS.infeasible, RESULTS.successful)
        result = RESULTS.where(clean(self.point, self.sets), result, RESULTS.nonfinite_input)
        nan = jnp.full_like(self.point, jnp.nan)
        return result, Point(nan, self.multipliers(nan))


class Round(eqx.Module):
    """x after a round, the normals, and by how much the points of the round differ."""

    x: Array
    normals: tuple[Array, ...]
    spread: Scalar


class Dykstra(AbstractSolver[IntersectionProjection]):
    """Alternating projections with a correction: one round over all sets is one step."""

    step_limit: ClassVar[int] = 20_000

    def refuse(self, problem: IntersectionProjection) -> None:
        check_kind(self, problem, IntersectionProjection)

    def init(self, problem: IntersectionProjection, guess: Guess) -> Round:
        normals = problem.multipliers(problem.point)
        if isinstance(guess.state, Round):
            normals = guess.state.normals
        x = problem.point - sum(normals[1:], normals[0])
        return _round(problem, Round(x, normals, 0 * largest(x)))

    def step(self, problem: IntersectionProjection, state: Round) -> Round:
        return _round(problem, state)

    def measure(self, problem: IntersectionProjection, state: Round) -> Scalar:
        return state.spread / jnp.maximum(largest(problem.point), 1)

    def status(
        self, problem: IntersectionProjection, state: Round, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        # The residual is at most twice the spread.
        return self.measure(problem, state) <= tolerance / 2, RESULTS.successful

    def point(self, problem: IntersectionProjection, state: Round) -> Point:
        return Point(state.x, state.normals)


def _round(problem: IntersectionProjection, state: Round) -> Round:
    x, normals, visited = state.x, [], []
    for one, y in zip(problem.sets, state.normals, strict=True):
        shifted = x + y
        x = one.project(shifted)
        normals.append(shifted - x)
        visited.append(x)
    # What rounding took from x = p - sum y is put back.
    x = problem.point - sum(normals[1:], normals[0])
    spread = jnp.max(jnp.stack([largest(x - v) for v in visited]))
    return Round(x, tuple(normals), spread)
