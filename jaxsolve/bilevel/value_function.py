"""What the methods of the value function share: problem, state, and the penalised descent.

The lower level at x, with multipliers u of its coupling constraints c and a proximal term,

    v(x, y, z) = min over t, max over u   f(x, t) + u'c(x, t) + |t - y|^2 / (2 gamma1)
                                          - |u - z|^2 / (2 gamma2)                             (1)

is at most f(x, y) at points that fulfil the constraints, and equal to it where y solves the lower
level and z holds its multipliers. So F / c_k + f - v is descended, with weights c_k that grow:
first derivatives alone, no system, no inner loop. At the weight c_k the point is wrong by O(1/c_k).

Yao, Yu, Zeng, Zhang (2024); Liu, Liu, Yao, Zeng, Zhang (2024); Yao, Yin, Zeng, Zhang (2024).
"""

import abc
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..core.checks import check_instance, check_kind, check_settings
from ..core.solution import RESULTS, Guess, Point
from ..core.solver import AbstractSolver
from ..core.vectors import dot, largest, ravel, same_shapes
from ..smooth.forms import shaper
from .bilevel import Bilevel, LowerPoint, Pair
from .coupling import AbstractRows

Vector = Float[Array, " n"]
Scalar = Float[Array, ""]


_DRIFT = 0.5
"""Of the gradient of F, from which on the penalised residual is no bias."""
_VIOLATION = 0.1
"""Of the constraints, more than which is no bias of a penalty: there may be no point in them."""


class ValueFunctionState(eqx.Module):
    """Where a method of the value function is.

    Attributes:
        primal: (x, y).
        auxiliary: t of (1), a step behind its minimum.
        multiplier, centre: u and z, of the scaled rows; `None` without coupling.
        rows: the coupling constraints; constant.
        region: the set that (x, y) is projected on, for methods that do so.
        gap: f - v at the point before the step, as far as t and u are the saddle point.
        penalised: the largest entry of c_k times the step's projected gradient.
        size: max(1, |grad F|).
        count: steps made, those of earlier solves included; c_k follows from it.
        end: the count at which this solve ends.
    """

    primal: Pair
    auxiliary: PyTree[Array]
    multiplier: Vector | None
    centre: Vector | None
    rows: AbstractRows | None
    region: PyTree
    gap: Scalar
    penalised: Scalar
    size: Scalar
    count: Int[Array, ""]
    end: Int[Array, ""]


class Functions(NamedTuple):
    """The problem's functions of vectors; f is in its unit.

    Attributes:
        like: (x, y), which gives the structure.
    """

    problem: Bilevel
    rows: AbstractRows | None
    like: Pair
    unit: float | Array

    def split(self, both: Vector) -> tuple[Vector, Vector]:
        count = ravel(self.like[0]).size
        return both[:count], both[count:]

    def restore(self, both: Vector) -> Pair:
        return shaper(self.like)(both)

    def upper(self, both: Vector) -> Scalar:
        return self.problem.objective(*self.restore(both))

    def constraints(self, x: Vector, y: Vector) -> Vector:
        assert self.rows is not None
        return self.rows(self.problem, shaper(self.like[0])(x), shaper(self.like[1])(y))

    def lagrangian(self, x: Vector, y: Vector, multiplier: Vector | None = None) -> Scalar:
        """f + u'c, without a multiplier f."""
        out = self.problem.inner(shaper(self.like[0])(x), shaper(self.like[1])(y)) / self.unit
        return out if multiplier is None else out + dot(multiplier, self.constraints(x, y))

    def into_upper(self, x: Vector) -> Vector:
        return ravel(self.problem.into_upper(shaper(self.like[0])(x)))

    def into_lower(self, y: Vector) -> Vector:
        return ravel(self.problem.into_lower(shaper(self.like[1])(y)))

    def into_both(self, both: Vector) -> Vector:
        x, y = self.split(both)
        return jnp.concatenate([self.into_upper(x), self.into_lower(y)])


class Descent(NamedTuple):
    """The gradient of F / c + f - v in (x, y), the gap without the multipliers' proximal term, and
    |grad F|."""

    direction: Vector
    gap: Scalar
    slope: Scalar


class AbstractValueFunction(AbstractSolver[Bilevel]):
    """What methods of the value function have in common: all but the step.

    They end after `steps` steps as `approximate`: the point is biased by the last penalty weight.
    A solve that was cut by `max_steps` goes on where it was when its solution is given as `init`;
    one that had ended makes `steps` more, with weights that grow on.
    """

    gamma1: eqx.AbstractVar[float]
    step_size: eqx.AbstractVar[float]
    inner_step_size: eqx.AbstractVar[float]
    penalty: eqx.AbstractVar[float]
    exponent: eqx.AbstractVar[float]
    unit: eqx.AbstractVar[float]
    steps: eqx.AbstractVar[int]

    step_limit: ClassVar[int] = 2**31 - 1

    def __check_init__(self) -> None:
        check_settings(self)

    def refuse(self, problem: Bilevel) -> None:
        check_kind(self, problem, Bilevel)

    @abc.abstractmethod
    def constraints(self, problem: Bilevel, primal: Pair) -> tuple[AbstractRows | None, PyTree]:
        """Rows and region, from the data of this solve."""

    def enter(self, state: ValueFunctionState, functions: Functions) -> ValueFunctionState:
        """The first state with its point where the method wants it."""
        return state

    def functions(self, problem: Bilevel, state: ValueFunctionState) -> Functions:
        return Functions(problem, state.rows, state.primal, self.unit)

    def init(self, problem: Bilevel, guess: Guess) -> ValueFunctionState:
        rows, region = self.constraints(problem, guess.primal)
        found = guess.state
        primal = guess.primal
        both = ravel(primal)
        multiplier = None
        if rows is not None:
            shapes = jax.eval_shape(lambda: rows(problem, *primal))
            multiplier = jnp.zeros_like(both, shape=shapes.shape) + 0 * both[0]
        if isinstance(found, ValueFunctionState) and same_shapes(found.multiplier, multiplier):
            end = self.steps * (found.count // self.steps + 1)
            return replace(found, primal=primal, rows=rows, region=region, end=end)
        infinite = jnp.full_like(both[0], jnp.inf)
        state = ValueFunctionState(
            primal=primal,
            auxiliary=primal[1],
            multiplier=multiplier,
            centre=multiplier,
            rows=rows,
            region=region,
            gap=infinite,
            penalised=infinite,
            size=jnp.ones_like(infinite),
            count=jnp.zeros((), jnp.int32),
            end=jnp.asarray(self.steps, jnp.int32),
        )
        return self.enter(state, self.functions(problem, state))

    def weight(self, count: Int[Array, ""], like: Array) -> Scalar:
        """c_k."""
        return self.penalty * (count + 1).astype(like.dtype) ** self.exponent

    def proximal_step(
        self, functions: Functions, both: Vector, inner: Vector, multiplier: Vector | None
    ) -> Vector:
        """A projected gradient step of t in (1)."""
        x, y = functions.split(both)
        slope = jax.grad(functions.lagrangian, argnums=1)(x, inner, multiplier)
        slope = slope + (inner - y) / self.gamma1
        return functions.into_lower(inner - self.inner_step_size * slope)

    def descent(
        self,
        functions: Functions,
        both: Vector,
        inner: Vector,
        multipliers: tuple[Vector | None, Vector | None],
        weight: Scalar,
    ) -> Descent:
        """Of F / c + l(x, y, u1) - l(x, t, u2) - |t - y|^2 / (2 gamma1) in (x, y)."""
        x, y = functions.split(both)
        slope = jax.grad(functions.upper)(both)
        value = jax.value_and_grad(functions.lagrangian, argnums=(0, 1))
        own, (own_x, own_y) = value(x, y, multipliers[0])
        best, best_x = jax.value_and_grad(functions.lagrangian)(x, inner, multipliers[1])
        away = y - inner
        lower = jnp.concatenate([own_x - best_x, own_y - away / self.gamma1])
        gap = own - best - dot(away, away) / (2 * self.gamma1)
        return Descent(slope / weight + lower, gap, largest(slope))

    def moved(
        self,
        state: ValueFunctionState,
        both: tuple[Vector, Vector],
        inner: Vector,
        multipliers: tuple[Vector | None, Vector | None],
        found: Descent,
        rest: Scalar | float = 0.0,
        region: PyTree = None,
    ) -> ValueFunctionState:
        """The state after a step.

        Args:
            both: (x, y) before and after.
            multipliers: u and z after.
            rest: the part of the projected gradient that belongs to z.
            region: with what the projection keeps.
        """
        old, new = both
        weight = self.weight(state.count, old)
        step = jnp.maximum(largest(new - old) / self.step_size, rest)
        return ValueFunctionState(
            primal=shaper(state.primal)(new),
            auxiliary=shaper(state.auxiliary)(inner),
            multiplier=multipliers[0],
            centre=multipliers[1],
            rows=state.rows,
            region=state.region if region is None else region,
            gap=found.gap * self.unit,
            penalised=weight * step,
            size=jnp.maximum(found.slope, 1.0),
            count=state.count + 1,
            end=state.end,
        )

    def measure(self, problem: Bilevel, state: ValueFunctionState) -> Scalar:
        return state.penalised / state.size

    def status(self, problem: Bilevel, state: ValueFunctionState, tolerance: Scalar) -> Any:
        # At half the size of the gradient of F, x and y go down it together (F may be unbounded
        # below); a gap beyond what F changes by on the way to 0 is none: the inner point is lost.
        both = ravel(state.primal)
        most = state.size * jnp.maximum(largest(both), 1) * both.size
        gap = self.weight(state.count, state.gap) * jnp.abs(state.gap) / self.unit
        near = (self.measure(problem, state) <= _DRIFT) & (gap <= most)
        ended = state.count >= state.end
        near = jax.lax.cond(
            ended, lambda: near & (self._violation(problem, state) <= _VIOLATION), lambda: near
        )
        return ended, RESULTS.where(near, RESULTS.approximate, RESULTS.stalled)

    def _violation(self, problem: Bilevel, state: ValueFunctionState) -> Scalar:
        """By how much the coupling constraints fail, in their units and those of (x, y)."""
        if state.rows is None:
            return jnp.zeros_like(state.gap)
        size = jnp.maximum(largest(state.primal), 1)
        return state.rows.violation(problem, state.primal) / size

    def lower_point(self, problem: Bilevel, state: ValueFunctionState) -> LowerPoint:
        """(y, mu, lam) in the units of the problem."""
        if state.rows is None:
            return LowerPoint(state.primal[1])
        assert state.multiplier is not None
        return state.rows.lower_point(problem, state.primal, state.multiplier * self.unit)

    def point(self, problem: Bilevel, state: ValueFunctionState) -> Point:
        lower = self.lower_point(problem, state)
        return Point(state.primal, problem.dual(state.primal[0], lower))


def check_value_function(name: str, solver: Any) -> None:
    """Raise `TypeError` unless a field `solver` is a value-function method."""
    wanted = "LVHBA(...), BiCGAFFA(...) or MEHA(...)"
    check_instance(name, "solver", solver, AbstractValueFunction, wanted)
