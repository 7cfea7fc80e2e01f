"""Iterative Bregman projections for barycentres, stabilised and accelerated.

    f_k = -epsilon log sum_j r_j exp((g_kj - c_kij) / epsilon)            rows have their sums
    log b = sum_k w_k log(p_k' 1),  g_k += epsilon (log b - log(p_k' 1))  columns have the same

The kernels K_k are those of the potentials so far, and stay while l_k = log v_k is small; epsilon
falls by fours from the size of the costs; the steps are combined by Anderson's method, all as in
`sinkhorn.py`.

Benamou, Carlier, Cuturi, Nenna and Peyre (2015), proposition 2.
"""

import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ..core.checks import check_kind
from ..core.solution import Guess, Point
from ..core.solver import AbstractSolver, ended
from ..core.vectors import largest, positive
from .balancing import accelerated
from .barycentre import Barycentre, through
from .entropic_transport import Potential
from .geometry import AbstractKernel, Columns, Scalar
from .sinkhorn import WeightPreconditioner

_FACTOR = 4.0
_FIRST = 0.25
"""Of the spread of the costs: where the scaling of epsilon begins."""
_STAGE_ERROR = 1e-2
_PATIENCE = 20
_STAYS = 5.0


class Together(NamedTuple):
    """A problem with its kernels; l is that of all measures, one after the other.

    Attributes:
        b: weights of the least squares.
    """

    problem: Barycentre
    kernels: AbstractKernel
    b: Columns

    def split(self, log: Columns) -> Any:
        """A row for each measure."""
        return log.reshape(self.problem.measures.shape[0], -1)

    def sweep(self, log: Columns) -> tuple[Any, Columns]:
        v = jnp.exp(self.split(log))
        found, back = through(self.kernels, v / v.shape[1], self.problem.measures)
        return found, back.ravel()

    def move(self, log: Columns, found: Any, back: Columns) -> Columns:
        logs = self.split(log + jnp.log(jnp.maximum(back, jnp.finfo(back.dtype).tiny)))
        return (self.problem.mean(logs) - logs).ravel()

    def error(self, log: Columns, back: Columns) -> Scalar:
        sums = self.split(jnp.exp(log) * back)
        off = jnp.max(jnp.sum(jnp.abs(sums - self.problem.mean(sums)), axis=1))
        return off / (sums.shape[1] * self.problem.mass)


class BregmanState(eqx.Module):
    """Potentials, and the epsilon for which they were found.

    Attributes:
        at: the potentials.
        epsilon: of the stage.
        error: the part of the weight by which a plan misses the barycentre, at the last step.
        solved: whether that was at the problem's epsilon, and small enough.
        products: pairs of products with all kernels so far.
        best: the smallest error of the last epsilon.
        idle: steps since it fell.
        tolerance: what is asked for.
    """

    at: Potential
    epsilon: Scalar
    error: Scalar
    solved: Bool[Array, ""]
    products: Int[Array, ""]
    best: Scalar
    idle: Int[Array, ""]
    tolerance: Scalar


class BregmanProjections(AbstractSolver[Barycentre]):
    """The default of `Barycentre`.

    A step makes the kernels and makes products with them; `state.products` counts pairs of these,
    what elsewhere is an iteration.
    """

    step_limit: ClassVar[int] = 300

    def refuse(self, problem: Barycentre) -> None:
        check_kind(self, problem, Barycentre)

    def init(self, problem: Barycentre, guess: Guess) -> BregmanState:
        at: Any = guess.primal
        zero = jnp.zeros_like(at.value[0, 0])
        spread = jnp.max(problem.each(lambda geometry, _: geometry.spread(), problem.measures))
        ratio = _FIRST * spread / positive(problem.epsilon)
        stages = jnp.ceil(jnp.log(jnp.maximum(ratio, 1)) / math.log(_FACTOR))
        stages = jnp.where(jnp.isfinite(stages) & jnp.all(at.value == 0), stages, 0)
        tolerance = zero if guess.tolerance is None else guess.tolerance.astype(zero.dtype)
        none = jnp.zeros_like(zero, jnp.int32)
        return BregmanState(
            at=at,
            epsilon=problem.epsilon * _FACTOR**stages,
            error=zero + jnp.inf,
            solved=zero > 0,
            products=none,
            best=zero + jnp.inf,
            idle=none,
            tolerance=tolerance,
        )

    def step(self, problem: Barycentre, state: BregmanState) -> BregmanState:
        last = state.epsilon <= problem.epsilon
        stage = eqx.tree_at(lambda p: p.epsilon, problem, state.epsilon)
        sums = stage.shares(state.at).sums
        weights = jnp.broadcast_to(stage.mean(sums), sums.shape).ravel()
        g = state.at.value
        held = Together(stage, stage.kernels(g), weights)
        goal = jnp.where(last, 0.9 * state.tolerance, _STAGE_ERROR)
        chunk = accelerated(held, state.at.remainder.ravel(), goal, state.error < 0)
        log, error = chunk.log.reshape(g.shape), chunk.error

        met = error <= goal
        epsilon = jnp.where(
            met & ~last, jnp.maximum(state.epsilon / _FACTOR, problem.epsilon), state.epsilon
        )
        # While l is small the kernels stay what they are, as in `Sinkhorn`.
        stays = last & (met | (largest(log) < _STAYS))
        moved = g + state.epsilon * log
        rest = ((g - moved) + state.epsilon * log) / epsilon
        return BregmanState(
            at=Potential(jnp.where(stays, g, moved), jnp.where(stays, log, rest)),
            epsilon=epsilon,
            error=error,
            solved=met & last,
            products=state.products + chunk.count,
            best=jnp.where(last, jnp.minimum(state.best, error), state.best),
            idle=jnp.where(last & (error > 0.9 * state.best), state.idle + 1, 0),
            tolerance=state.tolerance,
        )

    def measure(self, problem: Barycentre, state: BregmanState) -> Scalar:
        return state.error

    def status(
        self, problem: Barycentre, state: BregmanState, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        return ended(state.solved, state.idle >= _PATIENCE)

    def point(self, problem: Barycentre, state: BregmanState) -> Point:
        return Point(state.at)

    def preconditioner(self, problem: Barycentre, state: BregmanState) -> WeightPreconditioner:
        """The diagonal of the optimality's Jacobian, but for its small part from other columns."""
        w = problem.proportions[:, None]
        barycentre = problem.mean(problem.shares(state.at).sums)
        even = problem.mass / barycentre.size
        least = jnp.finfo(even.dtype).eps ** 2 * even
        return WeightPreconditioner(jnp.where(w > 0, w * jnp.maximum(barycentre, least), even))
