"""SOBA: one stochastic step for both levels and for the adjoint system at once.

With the adjoint v of the lower level, H v = -grad_y F, and random batches of f and F, that of f the
same in all its pieces,

    d_y = grad_y f,   d_v = H v + grad_y F,   d_x = grad_x F + J v                              (1)

    (y, v) <- (y, v) - b_t (d_y, d_v),   x <- x - a_t d_x

Dagreou, Ablin, Vaiter and Moreau (2022). The three directions are formed before anything moves.
"""

from jaxtyping import Array, Float, PyTree

from ..core.solution import Point
from .bilevel import Bilevel, BilevelDual, LowerPoint, Pair
from .loops import (
    AbstractBilevelLoop,
    LoopState,
    Move,
    Rates,
    descend,
    fallen,
    lower_pieces,
    plus,
    upper_pieces,
)


class SOBA(AbstractBilevelLoop):
    """Stochastic bilevel descent with falling steps: one gradient of F, one of f and its pullback.

    For data of which each sample is looked at a few times: no memory but v. Steps fall with t so
    that the noise of the batches averages out; where samples are looked at often, `SABA`, whose
    steps need not fall, ends closer to the solution.

    Args:
        upper_step_size, lower_step_size: a and b of the first step. b below 1 / L, for lower
            curvature L; a as large as it goes without making y follow too late.
        decay: step t has sizes a / t^decay and b / t^decay; 0 keeps them.
        steps: after which the solve ends as `approximate`.
    """

    upper_step_size: float | Float[Array, ""] = 0.1
    lower_step_size: float | Float[Array, ""] = 0.1
    decay: float = 0.5
    steps: int = 10_000

    def start(self, problem: Bilevel, primal: Pair, adjoint: PyTree[Array]) -> PyTree:
        return adjoint

    def rates(self, state: LoopState) -> Rates:
        return fallen(super().rates(state), state, self.decay, self.decay)

    def move(self, problem: Bilevel, state: LoopState, rates: Rates, key: Array) -> Move:
        (x, y), v = state.primal, state.memory
        batch = problem.sample(key)
        upper, lower = upper_pieces(batch, x, y), lower_pieces(batch, x, y, v)
        return Move(
            direction=plus(upper.upper, lower.cross),
            lower=descend(y, rates.lower, lower.gradient),
            memory=descend(v, rates.lower, plus(lower.product, upper.lower)),
        )

    def point(self, problem: Bilevel, state: LoopState) -> Point:
        return Point(state.primal, BilevelDual(None, None, LowerPoint(state.memory)))
