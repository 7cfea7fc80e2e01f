"""stocBiO: stochastic descent of the lower level, then a hypergradient by a Neumann series.

    y <- T steps  y - b grad_y f,
    v = -b sum_{j < K} (I - b H_j) ... (I - b H_1) grad_y F,                                    (1)
    x <- x - a (grad_x F + J v)

each T and each H_j on a batch of its own. Where the batches are all data, v is that of the lower
level but for a factor (1 - b mu)^K, mu its least curvature. Ji, Yang and Liang (2021).
"""

import jax
from jaxtyping import Array, Float, PyTree

from .bilevel import Bilevel, Pair
from .loops import (
    AbstractBilevelLoop,
    LoopState,
    Move,
    Rates,
    descend,
    descent,
    lower_gradient,
    lower_pieces,
    plus,
    times,
    upper_pieces,
)


class StocBiO(AbstractBilevelLoop):
    """Stochastic bilevel descent in two loops, with a truncated Neumann series for the adjoint.

    For lower levels that are cheap beside the upper one, and where nothing should be kept from one
    step to the next but (x, y). A step costs T gradients of f, K of its products and one of F. It
    is biased by (1 - b mu)^K: for lower levels of weak curvature `SOBA` or `SABA`, whose v is
    carried from step to step, are better.

    Args:
        upper_step_size, lower_step_size: a and b, constant; b below 1 / L, for lower curvature L.
        inner_steps: T.
        neumann_terms: K.
        steps: after which the solve ends as `approximate`.
    """

    upper_step_size: float | Float[Array, ""] = 0.1
    lower_step_size: float | Float[Array, ""] = 0.1
    inner_steps: int = 10
    neumann_terms: int = 10
    steps: int = 1_000

    def start(self, problem: Bilevel, primal: Pair, adjoint: PyTree[Array]) -> PyTree:
        return None

    def move(self, problem: Bilevel, state: LoopState, rates: Rates, key: Array) -> Move:
        x, y = state.primal
        keys = jax.random.split(key, 3)
        y = descent(problem, x, y, rates.lower, jax.random.split(keys[0], self.inner_steps))
        batch = problem.sample(keys[1])
        upper = upper_pieces(batch, x, y)
        v = self._adjoint(problem, x, y, rates.lower, upper.lower, keys[2])
        cross = lower_pieces(batch, x, y, v).cross
        return Move(plus(upper.upper, cross), y, None)

    def _adjoint(
        self,
        problem: Bilevel,
        x: PyTree[Array],
        y: PyTree[Array],
        rate: Float[Array, ""],
        slope: PyTree[Array],
        key: Array,
    ) -> PyTree[Array]:
        """v of (1)."""

        def term(carry: tuple[PyTree, PyTree], key: Array) -> tuple[tuple[PyTree, PyTree], None]:
            total, last = carry
            batch = problem.sample(key)
            gradient = lambda y: lower_gradient(batch, x, y)
            product = jax.jvp(gradient, (y,), (last,))[1]
            last = descend(last, rate, product)
            return (plus(total, last), last), None

        keys = jax.random.split(key, self.neumann_terms)[1:]
        (total, _), _ = jax.lax.scan(term, (slope, slope), keys)
        return times(-rate, total)
