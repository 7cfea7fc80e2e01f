"""What a set is: data, and the problem of projecting a point on it.

    P_C(p) = argmin_x |x - p|^2 / 2   subject to   x in C

A set states that problem: by a formula (`AbstractClosedForm`), as a quadratic program
(`polyhedra.py`), in its multipliers (`transport.py`).
"""

import abc
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ...core.checks import check_array, check_instance, check_shape, show
from ...core.problem import AbstractProblem
from ...core.solution import RESULTS, Guess
from ...core.solve import solve


class AbstractSet(eqx.Module):
    """A closed set; its arrays are data to differentiate in."""

    @abc.abstractmethod
    def problem(self, point: PyTree[Array]) -> AbstractProblem:
        """The problem whose value is the projection of `point`.

        Raises:
            TypeError, ValueError: a field does not fit the point; the message names both.
        """

    def fit(self, point: Array) -> Self:
        """The set with data of the point's dtype and full shape; raises where they do not fit."""
        return self

    def project(self, point: PyTree[Array]) -> PyTree[Array]:
        """The nearest element of the set: the value of `solve(Projection(point, self))`, NaN where
        the set is empty."""
        solution = solve(self.problem(point), throw=False)
        # The last point of a failed solve would pass for an element.
        empty = solution.result == RESULTS.infeasible
        return jax.tree.map(lambda x: jnp.where(empty, jnp.nan, x), solution.value)

    def empty(self) -> Bool[Array, ""]:
        """Whether the data by themselves leave no element, as far as a set sees it without being
        fitted to a point; NaN does not."""
        return jnp.array(False)

    def proved_empty(self, point: PyTree[Array]) -> Bool[Array, ""]:
        """Whether the set is known to have no element, for points like this one."""
        problem, start = self.problem(point).prepare(None)
        return problem.screen(Guess(start))[0] == RESULTS.infeasible

    def constraints(self, point: Array) -> dict[str, Array] | None:
        """The set, fitted to the point, as fields `A, b, G, h, lower, upper` of a quadratic
        program; `None` for a set that has no such description."""
        return None


def check_set(name: str, field: str, found: Any) -> None:
    """Raise `TypeError` unless a field holds a set."""
    check_instance(name, field, found, AbstractSet, "one of jaxsolve.sets")


class AbstractClosedForm(AbstractSet):
    """A set whose projection is a formula on a pattern: which entries are free, at a bound, zero.

    `find` looks for the point and is not differentiated; `face` is the formula on the pattern of
    the point that was found, and its derivative is the projection's wherever that has one.
    """

    def problem(self, point: PyTree[Array]) -> AbstractProblem:
        from .closed_form import FormulaProjection

        return FormulaProjection.of(point, self)

    def project(self, point: PyTree[Array]) -> PyTree[Array]:
        """The nearest element of the set, by the formula alone: NaN where the set is empty or data
        are NaN. `solve(Projection(point, self))` measures it and says why."""
        from .closed_form import FormulaProjection

        problem = FormulaProjection.of(point, self)
        found = problem.formula()
        return problem.restore(jnp.where(problem.clean() & ~problem.set.empty(), found, jnp.nan))

    def matches(self, point: PyTree[Array]) -> None:
        """Raise where a field that is a pytree does not have the structure of the point's."""

    @abc.abstractmethod
    def find(self, point: Array) -> Array:
        """The projection, by any means."""

    @abc.abstractmethod
    def face(self, point: Array, at: Array) -> Array:
        """The projection on the face on which `at` lies, a smooth function of point and data."""

    @abc.abstractmethod
    def violation(self, at: Array) -> Float[Array, ""]:
        """How far `at` is from fulfilling the conditions of the set, in the maximum norm."""

    @abc.abstractmethod
    def normality(self, point: Array, at: Array) -> Float[Array, ""]:
        """How far point - at is from the normal cone at `at`, by a multiplier read from both and
        natural residuals min(dual, slack); not from the formula."""

    def size(self) -> Float[Array, ""] | float:
        """The size of the data, beside that of the point: what `violation` is judged by."""
        return 0.0


def emptiness(field: str, found: AbstractSet | None) -> list[str]:
    """A sentence where a field's data leave no element; eager."""
    if found is None or not bool(found.empty()):
        return []
    return [f"`{field}` is empty: the data of {type(found).__name__} leave no element."]


def number(value: Any) -> Any:
    """A Python number as an array: a new value is no new program. (A field's converter.)"""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return jnp.asarray(float(value))


def floating(name: str, field: str, value: Any, like: Array) -> Array:
    """`value` as an array of the dtype of `like`.

    Raises:
        TypeError: it is not an array of floating-point numbers, or of another precision.
    """
    if value is None:
        raise TypeError(f"{name}: `{field}` is None; it must be given.")
    array = check_array(name, field, value)
    # Numbers have no precision of their own.
    numeric = array.dtype != bool
    if numeric and (isinstance(value, int | float) or array.weak_type):
        return array.astype(like.dtype)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{name}: `{field}` has dtype {array.dtype}; give real floating-point numbers."
        )
    if array.dtype != like.dtype:
        raise TypeError(
            f"{name}: `{field}` is {show(array)}, but `point` is {show(like)}. "
            "Cast them to one precision."
        )
    return array


def shaped(
    name: str,
    field: str,
    value: Any,
    shape: tuple[int | None, ...],
    like: Array,
    full: bool = False,
) -> Array:
    """`floating`, of the given shape (`None`: any length); with `full` a scalar stands for all.

    Raises:
        ValueError: the shape is another one.
    """
    array = floating(name, field, value, like)
    if full and array.ndim == 0:
        return jnp.broadcast_to(array, [s or 0 for s in shape])
    check_shape(name, field, (show(array), array.shape), shape, "point", show(like))
    return array


def scalar(name: str, field: str, value: Any, like: Array) -> Float[Array, ""]:
    """`floating`, without axes."""
    return shaped(name, field, value, (), like)


def check_init(init: PyTree | None, point: Array) -> None:
    """Raise unless a guess of the projection is absent or has the point's shape."""
    if init is not None and jnp.shape(init) != point.shape:
        raise ValueError(
            f"Projection: `init` must have the point's shape, {show(point)}; "
            f"it has shape {jnp.shape(init)}."
        )


def vector(name: str, point: Array) -> None:
    """Raise unless the point is a vector with an entry."""
    if point.ndim != 1 or point.size == 0:
        raise ValueError(f"{name}: `point` must be a vector; it is {show(point)}.")
