"""BOME: both levels descend at once, the lower level's optimality as a constraint on the direction.

With y~ after T gradient steps of the lower level from y, and q(x, y) = f(x, y) - f(x, y~) >= 0,
y~ held constant, of all directions d the one nearest to grad F that makes q fall:

    lam = max(eta |grad q|^2 - <grad F, grad q>, 0) / |grad q|^2,   d = grad F + lam grad q     (1)

    (x, y) <- (x, y) - step d

Liu, Ye, Wu, Stone and Liu (2022): the dynamic barrier. Lengths are those of a variable x that is
measured in units in which both step sizes are one, so that (1) holds whatever the two are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..core.vectors import inner
from .bilevel import Bilevel, Pair
from .loops import (
    AbstractBilevelLoop,
    LoopState,
    Move,
    Rates,
    descend,
    descent,
    fallen,
    lower_gradient,
    minus,
    plus,
    times,
    upper_pieces,
)


class BOME(AbstractBilevelLoop):
    """First-order bilevel descent with a dynamic barrier: gradients alone, no penalty to choose.

    For lower levels without second derivatives, best with all data a step: (1) is a quotient of
    squares, which noise biases, and near the lower level's solution, where grad q is small, all
    the more. A step costs T + 2 gradients of f and one of F.

    Args:
        upper_step_size, lower_step_size: a and b. The T inner steps have size b, below 1 / L for
            lower curvature L.
        barrier: eta, how fast q has to fall.
        decay: step t has sizes a / t^decay and b / t^decay.
        inner_steps: T.
        steps: after which the solve ends as `approximate`.
    """

    upper_step_size: float | Float[Array, ""] = 0.1
    lower_step_size: float | Float[Array, ""] = 0.1
    barrier: float = 0.5
    decay: float = 0.5
    inner_steps: int = 10
    steps: int = 1_000

    def start(self, problem: Bilevel, primal: Pair, adjoint: PyTree[Array]) -> PyTree:
        return None

    def rates(self, state: LoopState) -> Rates:
        return fallen(super().rates(state), state, self.decay, self.decay)

    def move(self, problem: Bilevel, state: LoopState, rates: Rates, key: Array) -> Move:
        x, y = state.primal
        first, second = jax.random.split(key)
        # Of a size that does not fall: grad_x q has a bias of what T steps do not reach.
        inner_rate = super().rates(state).lower
        lowest = descent(problem, x, y, inner_rate, jax.random.split(first, self.inner_steps))
        batch = problem.sample(second)
        of_upper = upper_pieces(batch, x, y)
        of_gap = (
            minus(jax.grad(batch.inner)(x, y), jax.grad(batch.inner)(x, lowest)),
            lower_gradient(batch, x, y),
        )
        ratio = rates.upper / rates.lower
        square = ratio * inner(of_gap[0], of_gap[0]) + inner(of_gap[1], of_gap[1])
        along = ratio * inner(of_upper.upper, of_gap[0]) + inner(of_upper.lower, of_gap[1])
        # At the lower level's solution grad q = 0, and no multiplier of it does anything.
        least = jnp.finfo(square.dtype).tiny
        weight = jnp.maximum(self.barrier * square - along, 0) / jnp.maximum(square, least)
        return Move(
            direction=plus(of_upper.upper, times(weight, of_gap[0])),
            lower=descend(y, rates.lower, plus(of_upper.lower, times(weight, of_gap[1]))),
            memory=None,
        )
