"""What stochastic bilevel methods have in common: one loop for both levels.

    x <- P_X(x - a_t d),   d near the hypergradient,   y <- a step of the lower level

Each method says what d and the lower step are, from random batches. Their end is not a stationary
point but lies around one, by the noise of the batches or the bias of d: the result is
`approximate`.
"""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, UInt32

from ..core.checks import check_absent, check_kind, check_settings
from ..core.keys import first_key, next_keys
from ..core.solution import RESULTS, Guess, Point
from ..core.solver import AbstractSolver, resumed
from ..core.vectors import finite, largest
from .bilevel import COUPLING, Bilevel, Pair

Scalar = Float[Array, ""]

_SMOOTHING = 0.01


class LoopState(eqx.Module):
    """The two variables, what the method keeps beside them, and what is drawn next.

    Attributes:
        primal: (x, y).
        memory: the method's own.
        gradient: a running mean of the directions of x, of all at first and then of some hundred.
        measure: its largest entry, or the method's own; NaN where the variables are lost.
        key: two numbers, which files can hold.
        count: steps made, those of an earlier solve included.
    """

    primal: Pair
    memory: PyTree
    gradient: PyTree[Array]
    measure: Scalar
    key: UInt32[Array, "2"]
    count: Int[Array, ""]


class Move(NamedTuple):
    """What a step of a method finds.

    Attributes:
        direction: what x goes against.
        lower: the next y.
        memory: the method's own.
        measure: the relative residual, where the method knows it better than from a running mean.
    """

    direction: PyTree[Array]
    lower: PyTree[Array]
    memory: PyTree
    measure: Scalar | None = None


class Rates(NamedTuple):
    """Step sizes of the two levels."""

    upper: Scalar
    lower: Scalar


class AbstractBilevelLoop(AbstractSolver[Bilevel]):
    """All of a stochastic bilevel method but its directions.

    A solve that was cut by `max_steps` goes on where it was when its solution is given as `init`.
    Step sizes may be arrays: `jax.vmap` over them is a search for good ones.
    """

    upper_step_size: eqx.AbstractVar[float | Scalar]
    lower_step_size: eqx.AbstractVar[float | Scalar]
    steps: eqx.AbstractVar[int]

    step_limit: ClassVar[int] = 2**31 - 1

    def __check_init__(self):
        check_settings(self, may_be_zero=("decay", "growth"))

    @abc.abstractmethod
    def start(self, problem: Bilevel, primal: Pair, adjoint: PyTree[Array]) -> PyTree:
        """The method's first memory; `adjoint` is a guess of v."""

    @abc.abstractmethod
    def move(self, problem: Bilevel, state: LoopState, rates: Rates, key: Array) -> Move:
        """One step from `state`."""

    def rates(self, state: LoopState) -> Rates:
        """The step sizes of this step; constant, unless a method says otherwise."""
        dtype = state.measure.dtype
        return Rates(*(jnp.asarray(s, dtype) for s in (self.upper_step_size, self.lower_step_size)))

    def refuse(self, problem: Bilevel) -> None:
        check_kind(self, problem, Bilevel)
        advice = "its lower level is without constraints. LVHBA() takes it."
        check_absent(type(self).__name__, problem, (*COUPLING, "lower_set"), advice)

    def init(self, problem: Bilevel, guess: Guess) -> LoopState:
        x, y = guess.primal
        dtype = jnp.result_type(*jax.tree.leaves((x, y)))
        adjoint = jax.tree.map(jnp.zeros_like, y)
        known = problem.fitting(guess)
        if known is not None:
            adjoint = known.adjoint.primal
        fresh = LoopState(
            primal=(problem.into_upper(x), y),
            memory=self.start(problem, guess.primal, adjoint),
            gradient=jax.tree.map(jnp.zeros_like, x),
            measure=jnp.ones((), dtype),
            key=first_key(guess.key),
            count=jnp.zeros((), jnp.int32),
        )
        found = guess.state
        if not isinstance(found, LoopState):
            return fresh
        kept = eqx.tree_at(lambda s: s.primal, found, guess.primal)
        assert guess.tolerance is not None
        return resumed(kept, fresh, self.status(problem, found, guess.tolerance)[0])

    def step(self, problem: Bilevel, state: LoopState) -> LoopState:
        key, (draw,) = next_keys(state.key, 1)
        rates = self.rates(state)
        direction, lower, memory, measure = self.move(problem, state, rates, draw)
        x, y = state.primal
        moved = problem.into_upper(descend(x, rates.upper, direction))
        if problem.upper_set is not None:
            direction = jax.tree.map(lambda a, b: (a - b) / rates.upper.astype(a.dtype), x, moved)
        share = jnp.maximum(1 / (state.count + 1).astype(rates.upper.dtype), _SMOOTHING)
        gradient = jax.tree.map(
            lambda mean, d: mean + share.astype(d.dtype) * (d - mean), state.gradient, direction
        )
        measure = largest(gradient) if measure is None else measure
        usable = finite(moved, lower)
        return LoopState(
            primal=(moved, lower),
            memory=memory,
            gradient=gradient,
            measure=jnp.where(usable, measure.astype(state.measure.dtype), jnp.nan),
            key=key,
            count=state.count + 1,
        )

    def measure(self, problem: Bilevel, state: LoopState) -> Scalar:
        return state.measure

    def status(self, problem: Bilevel, state: LoopState, tolerance: Scalar) -> Any:
        return state.count >= self.steps, RESULTS.approximate

    def point(self, problem: Bilevel, state: LoopState) -> Point:
        # Without duals: the problem finds v at the y reached. Methods that have v say so.
        return Point(state.primal)


def fallen(first: Rates, state: LoopState, upper: float, lower: float) -> Rates:
    """Step sizes that fall as t^-upper and t^-lower."""
    t = (state.count + 1).astype(state.measure.dtype)
    return Rates(first.upper * t**-upper, first.lower * t**-lower)


# --- pieces of directions --------------------------------------------------------------------


class UpperPieces(NamedTuple):
    """grad_x F and grad_y F."""

    upper: PyTree[Array]
    lower: PyTree[Array]


class LowerPieces(NamedTuple):
    """grad_y f; H v and J v, where H = d/dy grad_y f and J = d/dx grad_y f, transposed."""

    gradient: PyTree[Array]
    product: PyTree[Array]
    cross: PyTree[Array]


def upper_pieces(problem: Bilevel, x: PyTree[Array], y: PyTree[Array]) -> UpperPieces:
    """Of F, by one gradient."""
    return UpperPieces(*jax.grad(problem.objective, argnums=(0, 1))(x, y))


def lower_gradient(problem: Bilevel, x: PyTree[Array], y: PyTree[Array]) -> PyTree[Array]:
    """grad_y f."""
    return jax.grad(problem.inner, argnums=1)(x, y)


def lower_pieces(
    problem: Bilevel, x: PyTree[Array], y: PyTree[Array], v: PyTree[Array]
) -> LowerPieces:
    """Of f, by one gradient and one pullback of it."""
    gradient, pullback = jax.vjp(lambda x, y: lower_gradient(problem, x, y), x, y)
    cross, product = pullback(v)
    return LowerPieces(gradient, product, cross)


def descend(value: PyTree[Array], rate: Scalar, direction: PyTree[Array]) -> PyTree[Array]:
    """value - rate direction, leaf by leaf in its own dtype."""
    return jax.tree.map(lambda a, d: a - rate.astype(a.dtype) * d, value, direction)


def descent(
    problem: Bilevel,
    x: PyTree[Array],
    y: PyTree[Array],
    rate: Scalar,
    keys: Array,
) -> PyTree[Array]:
    """y after one gradient step of the lower level a key, each on a batch of its own."""

    def step(y: PyTree, key: Array) -> tuple[PyTree, None]:
        return descend(y, rate, lower_gradient(problem.sample(key), x, y)), None

    return jax.lax.scan(step, y, keys)[0]


def plus(*trees: PyTree[Array]) -> PyTree[Array]:
    """The sum of trees."""
    return jax.tree.map(lambda *leaves: sum(leaves[1:], start=leaves[0]), *trees)


def minus(a: PyTree[Array], b: PyTree[Array]) -> PyTree[Array]:
    """a - b."""
    return jax.tree.map(jnp.subtract, a, b)


def times(scale: Scalar, tree: PyTree[Array]) -> PyTree[Array]:
    """scale times a tree, in the dtypes of its leaves."""
    return jax.tree.map(lambda leaf: scale.astype(leaf.dtype) * leaf, tree)
