"""Transport through few points: plans of low rank.

    p = Q diag(1/g) R',    Q 1 = a,  R 1 = b,  Q'1 = R'1 = g,   Q (n, r), R (m, r)

sends weight from a to r points of weight g and from these to b. Scetbon, Cuturi and Peyre (2021),
Low-rank Sinkhorn factorization, minimise <c, p> over such factors by mirror descent,

    (Q, R, g) <- the KL projection of (Q exp(-s dQ), R exp(-s dR), g exp(-s dg)) on the constraints,

the projection by Dykstra's method, whose steps cost O((n + m) r). Entropy is theirs but for its
form: here the objective is

    F = <c, p> + epsilon KL(Q | a g')

which is at least <c, p> + epsilon KL(p | a b'), since no more can be known of where weight ends
than of the point through which it went, and equal to it at Q = p, R = diag(b). So F is an upper
bound of what `EntropicTransport` minimises, its minimum falls with r, and from r = m on it is that
of the plan itself. F is not convex: what descent finds depends on its start.
"""

import math
from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import log_softmax, logsumexp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core.adjoint import AbstractAdjoint, Detached
from ..core.checks import check_kind, check_settings
from ..core.loop import Program, run
from ..core.problem import AbstractProblem
from ..core.solution import RESULTS, Guess, Point, Residual, Scale
from ..core.solver import AbstractSolver
from ..core.unsolved import where_solved
from ..core.vectors import matmul, positive
from .cost_products import cost_product
from .entropic_transport import EntropicTransport
from .geometry import Columns, Rows, Scalar
from .low_rank_plan import Factors, LowRankPlan, objective

_STEP, _LARGEST_STEP, _LEAST_STEP = 1.0, 3.0, 1e-3
"""Of a mirror step: how far the logarithm of an entry may move."""
_GROWTH, _CUT = 1.5, 0.5
_PATIENCE = 10
_INNER, _INNER_STEPS, _LAST_STEPS = 1e-6, 200, 20_000
"""What Dykstra's method is asked for within a step, and its steps there and at the end."""
_LEAST_WEIGHT = 1e-6
"""Of an intermediate point, over 1 / r: the paper's lower bound of g."""


class _Factors(Detached):
    """The factors are constants, but costs are seen through them."""

    def view(self, problem):
        return problem


class LowRankTransport(AbstractProblem):
    """Plans of one rank for an entropic transport problem: what `LowRankSinkhorn` sees."""

    transport: EntropicTransport
    rank: int = eqx.field(static=True)

    def optimality(self, point: Point) -> Point:
        raise TypeError("A plan of low rank has no optimality conditions: use adjoint=Detached().")

    def default_adjoint(self) -> AbstractAdjoint:
        return _Factors()

    def residual(self, point: Point) -> Residual:
        """The sum of what the plan's rows and columns are off by."""
        factors: Any = point.primal
        a, b = self.transport.weights
        first, second = a[:, None] * jnp.exp(factors.left), b[:, None] * jnp.exp(factors.right)
        g = jnp.exp(factors.middle)
        error = jnp.sum(jnp.abs(matmul(first, jnp.sum(second, axis=0) / g) - a))
        error = error + jnp.sum(jnp.abs(matmul(second, jnp.sum(first, axis=0) / g) - b))
        zero, one = jnp.zeros_like(error), jnp.ones_like(error)
        return Residual(error, zero, zero, Scale(self.transport.mass, one, one))

    def screen(self, guess: Guess) -> tuple[Any, Point]:
        factors: Any = guess.primal
        zero = jnp.zeros_like(factors.right[:, 0])
        result, _ = self.transport.screen(Guess((zero, zero)))
        costs = jnp.isfinite(cost_product(self.transport.geometry, jnp.ones_like(zero)[:, None]))
        clean = jnp.all(costs)
        for x in factors:
            clean = clean & jnp.all(jnp.isfinite(x))
        result = RESULTS.where(
            clean | (result != RESULTS.successful), result, RESULTS.nonfinite_input
        )
        return result, Point(factors)

    def certificate(self, point: Point, result: Any) -> Bool[Array, ""]:
        return self.transport.certificate(point, result)

    def default_solver(self) -> "LowRankSinkhorn":
        return LowRankSinkhorn(self.rank)

    def prepare(self, init: PyTree | None) -> tuple[Self, Any]:
        raise TypeError("Give the EntropicTransport itself.")

    def restore(self, value: Any) -> LowRankPlan:
        # The factors are those of the weights as they are: without theirs a derivative is another.
        problem = self.transport
        weights = where_solved(problem.weights, jnp.zeros((), bool))
        return LowRankPlan(eqx.tree_at(lambda p: (p.a, p.b), problem, weights), value)


class LowRankState(eqx.Module):
    """Factors, their objective, and how far the next step goes.

    Attributes:
        idle: accepted steps since one lowered the objective by more than the tolerance times its
            size.
        error: of the sums.
        tolerance: what is asked for.
    """

    factors: Factors
    value: Scalar
    step: Scalar
    idle: Int[Array, ""]
    error: Scalar
    tolerance: Scalar


class LowRankSinkhorn(AbstractSolver[EntropicTransport]):
    """Plans of rank r for `EntropicTransport` with both sums held: another point than the optimum,
    so that the result is `approximate`.

    For many points whose plan is wanted as an operator: a step costs O((n + m) r d) between points
    with squared distances, and the plan is applied in O((n + m) r). The value is a `LowRankPlan`,
    whose `cost` is an upper bound of the optimal value. It starts at random factors drawn with
    `key`: take the lowest of some keys. `solution.stats.residual` is that of the sums.

    Args:
        rank: r.
    """

    rank: int

    step_limit: ClassVar[int] = 5000

    def __check_init__(self):
        check_settings(self)

    def prepare(
        self, problem: AbstractProblem, init: Any, key: Array | None = None
    ) -> tuple[Any, Factors]:
        check_kind(self, problem, EntropicTransport)
        assert isinstance(problem, EntropicTransport)
        if not problem.balanced:
            raise TypeError("LowRankSinkhorn cannot honour `tau` of EntropicTransport.")
        transport, _ = problem.prepare(None)
        fit = LowRankTransport(transport, self.rank)
        shapes = [(size, self.rank) for size in transport.geometry.shape]
        if init is not None:
            if not isinstance(init, LowRankPlan):
                raise TypeError("LowRankSinkhorn: `init` must be a LowRankPlan.")
            given = init.factors.left.shape, init.factors.right.shape
            if given != tuple(shapes) or init.problem.flipped != transport.flipped:
                raise ValueError(
                    f"LowRankSinkhorn: the factors of `init` have shapes {given}, but {shapes} are "
                    "needed."
                )
            return fit, init.factors
        keys = jax.random.split(jax.random.key(0) if key is None else key)
        dtype = transport.geometry.dtype
        left, right = (
            log_softmax(jax.random.normal(k, shape, dtype), axis=1)
            for k, shape in zip(keys, shapes, strict=True)
        )
        middle = jnp.full((self.rank,), -math.log(self.rank), dtype) + jnp.log(transport.mass)
        return fit, Factors(left, right, middle)

    def refuse(self, problem: Any) -> None:
        check_kind(self, problem, LowRankTransport)

    def init(self, problem: Any, guess: Guess) -> LowRankState:
        factors, error = projected(problem.transport, guess.primal, _INNER, _INNER_STEPS)
        zero = jnp.zeros_like(factors.middle[0])
        return LowRankState(
            factors=factors,
            value=objective(problem.transport, factors),
            step=zero + _STEP,
            idle=jnp.zeros_like(zero, jnp.int32),
            error=error,
            tolerance=zero if guess.tolerance is None else guess.tolerance.astype(zero.dtype),
        )

    def step(self, problem: Any, state: LowRankState) -> LowRankState:
        transport: EntropicTransport = problem.transport
        moved = descended(transport, state.factors, state.step)
        factors, error = projected(transport, moved, _INNER, _INNER_STEPS)
        value = objective(transport, factors)
        # Steps that do not descend are taken back; NaN is one.
        taken = value <= state.value
        small = state.value - value <= state.tolerance * jnp.abs(state.value)
        factors = jax.tree.map(lambda new, old: jnp.where(taken, new, old), factors, state.factors)
        changed = jnp.where(taken, jnp.minimum(_GROWTH * state.step, _LARGEST_STEP), state.step)
        return LowRankState(
            factors=factors,
            value=jnp.where(taken, value, state.value),
            step=jnp.where(taken, changed, _CUT * state.step),
            idle=jnp.where(taken, jnp.where(small, state.idle + 1, 0), state.idle),
            error=jnp.where(taken, error, state.error),
            tolerance=state.tolerance,
        )

    def measure(self, problem: Any, state: LowRankState) -> Scalar:
        return state.error

    def status(
        self, problem: Any, state: LowRankState, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        done = (state.step < _LEAST_STEP) | (state.idle >= _PATIENCE)
        return done, RESULTS.approximate

    def finish(self, problem: Any, state: LowRankState) -> LowRankState:
        goal = 8 * jnp.finfo(state.value.dtype).eps
        factors, error = projected(problem.transport, state.factors, goal, _LAST_STEPS)
        return eqx.tree_at(lambda s: (s.factors, s.error), state, (factors, error))

    def point(self, problem: Any, state: LowRankState) -> Point:
        return Point(state.factors)


def descended(problem: EntropicTransport, factors: Factors, step: Scalar) -> Factors:
    """A mirror step from factors, before its projection; the entropy's part is implicit."""
    a, b = problem.weights
    geometry, epsilon = problem.geometry, problem.epsilon
    first, second = a[:, None] * jnp.exp(factors.left), b[:, None] * jnp.exp(factors.right)
    g = jnp.exp(factors.middle)
    through = cost_product(geometry, second)
    left = through / g
    right = cost_product(geometry.transposed(), first) / g
    middle = -jnp.sum(first * through, axis=0) / (g * g)
    # What is added to a row does not matter; nor does a number added to the gradient of g.
    left, right = (x - jnp.min(x, axis=1, keepdims=True) for x in (left, right))
    middle = middle - jnp.min(middle)
    largest = jnp.max(jnp.stack([jnp.max(x) for x in (left, right, middle)]))
    length = step / positive(largest)
    share = factors.middle - jnp.log(problem.mass)
    pulled = factors.left - length * left + length * epsilon * share
    return Factors(
        log_softmax(pulled / (1 + length * epsilon), axis=1),
        log_softmax(factors.right - length * right, axis=1),
        factors.middle - length * middle,
    )


class _Dykstra(NamedTuple):
    """Logarithms of the columns' scalings of both factors, log g, and the memory of its bound."""

    first: Float[Array, " r"]
    second: Float[Array, " r"]
    middle: Float[Array, " r"]
    memory: Float[Array, " r"]
    error: Scalar
    count: Int[Array, ""]


def projected(
    problem: EntropicTransport, factors: Factors, goal: Any, limit: int
) -> tuple[Factors, Scalar]:
    """The KL projection on the constraints and g >= a small number, and what the sums of the rows
    are off by, over the total weight. Only the bound on g needs Dykstra's memory: other sets are
    affine."""
    a, b = problem.weights
    mass = problem.mass
    least = jnp.log(_LEAST_WEIGHT * mass / factors.middle.size)
    left, right = jnp.exp(factors.left), jnp.exp(factors.right)

    def half(kernel: Float[Array, "k r"], weights: Rows | Columns, columns: Array) -> Array:
        """The logarithms of the columns' sums where those of the rows are met."""
        rows = matmul(kernel, jnp.exp(columns))
        return jnp.log(positive(matmul(weights / positive(rows), kernel))) + columns

    def init(factors: Factors) -> tuple[_Dykstra, Bool[Array, ""]]:
        zero = jnp.zeros_like(factors.middle)
        infinite = jnp.sum(zero) + jnp.inf
        none = jnp.zeros_like(infinite, jnp.int32)
        return _Dykstra(zero, zero, factors.middle, zero, infinite, none), infinite < 0

    def step(_: Any, s: _Dykstra) -> tuple[_Dykstra, Bool[Array, ""]]:
        one = half(left, a, s.first)
        two = half(right, b, s.second)
        wanted = s.middle + s.memory
        bounded = jnp.maximum(wanted, least)
        middle = (bounded + one + two) / 3
        error = jnp.sum(jnp.abs(jnp.exp(one) - jnp.exp(middle)))
        error = error + jnp.sum(jnp.abs(jnp.exp(two) - jnp.exp(middle)))
        error = (error + jnp.sum(jnp.abs(jnp.exp(bounded) - jnp.exp(middle)))) / mass
        new = _Dykstra(
            s.first + middle - one,
            s.second + middle - two,
            middle,
            wanted - bounded,
            error,
            s.count + 1,
        )
        return new, (error <= goal) | (new.count >= limit)

    def finish(_: Any, s: _Dykstra) -> _Dykstra:
        return s

    s = run(Program(init, step, finish), lax.stop_gradient(factors))
    # Rows of sum a and b exactly; g the mean of the columns' sums, which agree to the error.
    first = log_softmax(factors.left + s.first, axis=1)
    second = log_softmax(factors.right + s.second, axis=1)
    sums = [jnp.log(positive(matmul(w, jnp.exp(x)))) for w, x in ((a, first), (b, second))]
    return Factors(first, second, logsumexp(jnp.stack(sums), axis=0) - math.log(2)), s.error
