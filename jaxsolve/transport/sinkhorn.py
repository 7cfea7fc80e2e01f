"""Sinkhorn's method, stabilised and accelerated.

    p = diag(u) K diag(b v):   u = a / (K b v),   v = 1 / (K'u)

alternates between the sums of rows and of columns (Sinkhorn 1967; Cuturi 2013). Its l = log v is
kept small: one step here makes the kernel K of the potential so far (Schmitzer 2019), and repeats
the two products with it until the sums are met, or until l has moved so far that the kernel must be
made again. Epsilon falls by fours from the size of the costs. The products are combined by
Anderson's method; where that makes no progress Newton's method takes over (`balancing.py`).
"""

import math
from typing import Any, ClassVar, Self

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float, Int

from ..core.checks import check_kind
from ..core.mesh import joined, vary
from ..core.solution import Guess, Point
from ..core.solver import AbstractPreconditioner, AbstractSolver, ended
from ..core.vectors import finite, largest, positive
from .balancing import FACTOR_LIMIT, Held, accelerated, newton
from .entropic_transport import EntropicTransport, Potential
from .geometry import Columns, Scalar

_FACTOR = 4.0
_FIRST = 0.25
"""Of the spread of the costs: where the scaling of epsilon begins."""
_STAGE_ERROR = 1e-2
_PATIENCE = 20
_RETRY = 4
_LEAST_STAGE_ERROR = 1e-6
"""Weight that has to go a long way, between clusters, is found at large epsilons or never: after
`_RETRY` steps without progress at the last epsilon the scaling begins anew, a hundred times more
exact, down to this."""
_STAYS = 5.0


class SinkhornState(eqx.Module):
    """A potential, and the epsilon for which it was found.

    Attributes:
        at: the potential.
        epsilon: of the stage.
        first: where its scaling begins.
        stage_error: what is asked for at larger epsilons.
        error: the part of the weight by which the columns' sums are off, at the last step.
        solved: whether that was at the problem's epsilon, and small enough.
        newton: whether the next step is Newton's.
        stiff: whether a step at the problem's epsilon was.
        products: pairs of products with the kernel so far.
        best: the smallest error of the last epsilon.
        idle: steps since it fell.
        tolerance: what is asked for.
    """

    at: Potential
    epsilon: Scalar
    first: Scalar
    stage_error: Scalar
    error: Scalar
    solved: Bool[Array, ""]
    newton: Bool[Array, ""]
    stiff: Bool[Array, ""]
    products: Int[Array, ""]
    best: Scalar
    idle: Int[Array, ""]
    tolerance: Scalar


class WeightPreconditioner(AbstractPreconditioner):
    """The diagonal of the optimality's Jacobian, but for its small part from other columns."""

    share: Columns

    @classmethod
    def of(cls, problem: EntropicTransport) -> "WeightPreconditioner":
        """Of a problem."""
        _, b = problem.weights
        return cls(jnp.where(b > 0, b, problem.mass / b.size))

    def solve(self, residual: Point) -> Point:
        at: Any = residual.primal
        return Point(Potential(at.value / self.share, at.remainder))

    def transpose_solve(self, residual: Point) -> Point:
        return self.solve(residual)


class _FactorPreconditioner(AbstractPreconditioner):
    """The optimality's Jacobian of sums that are held, factorised where that pays: where Sinkhorn's
    steps were slow at the problem's epsilon its diagonal says little.

    Attributes:
        lower: of its factor over the roots of the shares; of no use unless `factored`.
    """

    shares: WeightPreconditioner
    lower: Float[Array, "m m"]
    factored: Bool[Array, ""]

    @classmethod
    def of(cls, problem: EntropicTransport, at: Potential, pays: Bool[Array, ""]) -> Self:
        """Of the plan at a potential."""
        # In a shard_map the branches of a batched cond take no data that vary over other axes.
        (problem, at, pays), axes = joined((problem, at, pays))
        shares = WeightPreconditioner.of(problem)
        roots = jnp.sqrt(shares.share)

        def factor() -> tuple[Float[Array, "m m"], Bool[Array, ""]]:
            a, b = problem.weights
            sums = problem.sums(at)
            scaling = jnp.where(sums.rows > 0, sums.rows**2 / positive(a), 0)
            columns = b * sums.columns / roots
            matrix = jnp.diag(sums.columns * sums.back * (1 + 10 * jnp.finfo(b.dtype).eps))
            matrix = matrix - columns[:, None] * sums.kernel.gram(scaling) * columns
            pull = b / roots
            matrix = matrix + pull[:, None] * pull / problem.mass
            lower = lax.linalg.cholesky(matrix, symmetrize_input=False)
            return lower, finite(lower)

        def none() -> tuple[Float[Array, "m m"], Bool[Array, ""]]:
            empty = jnp.zeros((roots.size, roots.size), roots.dtype)
            return vary((empty, jnp.zeros_like(pays)), axes)

        return cls(shares, *lax.cond(pays, factor, none))

    def solve(self, residual: Point) -> Point:
        at: Any = residual.primal
        (own, right), _ = joined((self, at.value))
        roots = jnp.sqrt(own.shares.share)

        def through() -> Columns:
            return cho_solve((own.lower, True), right / roots) / roots

        value = lax.cond(own.factored, through, lambda: right / own.shares.share)
        return Point(Potential(value, at.remainder))

    def transpose_solve(self, residual: Point) -> Point:
        return self.solve(residual)


class Sinkhorn(AbstractSolver[EntropicTransport]):
    """The default of `EntropicTransport`.

    A step makes a kernel and makes products with it; `state.products` counts pairs of these, what
    elsewhere is an iteration. For costs that are never written out a product computes them again.
    Costs that are sharded over rows in a `jit` stay where they are: a device has its rows of the
    kernel, and what is exchanged are sums of columns.

    Schmitzer (2019) for the kernel and the scaling of epsilon.
    """

    step_limit: ClassVar[int] = 200

    def refuse(self, problem: EntropicTransport) -> None:
        check_kind(self, problem, EntropicTransport)

    def init(self, problem: EntropicTransport, guess: Guess) -> SinkhornState:
        at: Any = guess.state.at if isinstance(guess.state, SinkhornState) else guess.primal
        zero = jnp.zeros_like(at.value[0])
        cold = jnp.all(at.value == 0)
        ratio = _FIRST * problem.geometry.spread() / positive(problem.epsilon)
        stages = jnp.ceil(jnp.log(jnp.maximum(ratio, 1)) / math.log(_FACTOR))
        stages = jnp.where(jnp.isfinite(stages), stages, 0)
        first = problem.epsilon * _FACTOR**stages
        tolerance = zero if guess.tolerance is None else guess.tolerance.astype(zero.dtype)
        none = jnp.zeros_like(zero, jnp.int32)
        return SinkhornState(
            at=at,
            epsilon=jnp.where(cold, first, problem.epsilon),
            first=first,
            stage_error=zero + _STAGE_ERROR,
            error=zero + jnp.inf,
            solved=zero > 0,
            newton=zero > 0,
            stiff=guess.state.stiff if isinstance(guess.state, SinkhornState) else zero > 0,
            products=none,
            best=zero + jnp.inf,
            idle=none,
            tolerance=tolerance,
        )

    def step(self, problem: EntropicTransport, state: SinkhornState) -> SinkhornState:
        _, b = problem.weights
        last = state.epsilon <= problem.epsilon
        stage = eqx.tree_at(lambda p: p.epsilon, problem, state.epsilon)
        g = state.at.value
        held = Held(stage, problem.geometry.kernel(g, b > 0, state.epsilon), g)
        shift = jnp.zeros_like(state.epsilon)
        if not problem.balanced:
            held, shift = held.levelled(state.at.remainder)
        goal = jnp.where(last, 0.9 * state.tolerance, state.stage_error)
        first = accelerated(held, state.at.remainder, goal, state.newton)
        second = newton(held, state.at.remainder, goal, ~state.newton)
        log = jnp.where(state.newton, second.log, first.log)
        error = jnp.where(state.newton, second.error, first.error)
        slow = jnp.where(state.newton, second.slow, first.slow)

        met = (error <= goal) & (shift == 0)
        best = jnp.where(last, jnp.minimum(state.best, error), state.best)
        idle = jnp.where(last & (error > 0.9 * state.best), state.idle + 1, 0)
        finer = state.stage_error > _LEAST_STAGE_ERROR
        anew = (idle >= _RETRY) & ~met & finer & (state.first > problem.epsilon)
        smaller = jnp.maximum(state.epsilon / _FACTOR, problem.epsilon)
        epsilon = jnp.where(met & ~last, smaller, state.epsilon)
        epsilon = jnp.where(anew, state.first, epsilon)

        # While l is small the kernel stays what it is: to make it again of a potential that is
        # rounded changes it, by more than the tolerance where epsilon is small.
        stays = last & ~anew & (shift == 0) & (met | (largest(log) < _STAYS))
        change = shift + state.epsilon * log
        moved = g + change
        value = jnp.where(stays, g, moved)
        rest = jnp.where(stays, log, ((g - moved) + change) / epsilon)
        return SinkhornState(
            at=Potential(value, rest),
            epsilon=epsilon,
            first=state.first,
            stage_error=jnp.where(anew, 1e-2 * state.stage_error, state.stage_error),
            error=error,
            solved=met & last,
            newton=~met & ~anew & (slow ^ state.newton),
            stiff=state.stiff | (last & state.newton),
            products=state.products + first.count + second.count,
            best=jnp.where(anew, jnp.inf, best),
            idle=jnp.where(anew, 0, idle),
            tolerance=state.tolerance,
        )

    def measure(self, problem: EntropicTransport, state: SinkhornState) -> Scalar:
        return state.error

    def status(
        self, problem: EntropicTransport, state: SinkhornState, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        return ended(state.solved, state.idle >= _PATIENCE)

    def point(self, problem: EntropicTransport, state: SinkhornState) -> Point:
        return Point(state.at)

    def preconditioner(
        self, problem: EntropicTransport, state: SinkhornState
    ) -> AbstractPreconditioner:
        size = state.at.value.size
        if not problem.balanced or size > FACTOR_LIMIT:
            return WeightPreconditioner.of(problem)
        # Of 34 problems (benchmarks/sinkhorn.py) conjugate gradients take 10 to 258 steps without a
        # factor where Newton's method was not needed, and up to thousands where it was.
        return _FactorPreconditioner.of(problem, state.at, state.stiff)
