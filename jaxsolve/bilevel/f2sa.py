"""F2SA: the hypergradient from two solutions of the lower level, without second derivatives.

With a penalty c that grows, and the lower level's solutions with and without the upper one,

    y = argmin f(x, .),   z = argmin f(x, .) + F(x, .) / c,
    d = grad_x F(x, z) + c (grad_x f(x, z) - grad_x f(x, y))                                    (1)

which is within O(1 / c) of the hypergradient. A step makes T gradient steps of y and of z, then one
of x against (1). Kwon, Kwon, Wright and Nowak (2023).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .bilevel import Bilevel, Pair
from .loops import (
    AbstractBilevelLoop,
    LoopState,
    Move,
    Rates,
    descend,
    fallen,
    lower_gradient,
    minus,
    plus,
    times,
    upper_pieces,
)

Scalar = Float[Array, ""]


class Memory(eqx.Module):
    """z, and the penalty c."""

    penalised: PyTree[Array]
    penalty: Scalar


class F2SA(AbstractBilevelLoop):
    """Fully first-order bilevel descent: gradients alone, two lower variables.

    For lower levels whose second derivatives are dear. A step costs 2 T + 2 gradients of f and
    T + 1 of F. The bias falls as 1 / c, but the noise of (1) grows with c (what y and z do not have
    in common; each pair of gradients of f is of one batch): with small batches let c grow slowly
    and the steps fall.

    z descends f + F / c and not c f + F, as published: that has the curvature of f, so that one
    `lower_step_size` serves any c.

    Args:
        upper_step_size, lower_step_size: of the first step; the lower one below 1 / L, for the
            curvature L of f + F / c.
        penalty: c of the first step.
        growth: step t adds growth / t^growth_decay to c. In theory c is of order t^(1/7), which is
            a decay of 6/7; 0 lets c grow linearly.
        upper_decay, lower_decay: the step sizes fall as t^-decay; in theory 5/7 and 4/7.
        inner_steps: T.
        steps: after which the solve ends as `approximate`.
    """

    upper_step_size: float | Scalar = 0.1
    lower_step_size: float | Scalar = 0.1
    penalty: float | Scalar = 10.0
    growth: float | Scalar = 0.1
    growth_decay: float = 1 / 7
    upper_decay: float = 0.5
    lower_decay: float = 0.5
    inner_steps: int = 10
    steps: int = 1_000

    def start(self, problem: Bilevel, primal: Pair, adjoint: PyTree[Array]) -> Memory:
        dtype = jnp.result_type(*jax.tree.leaves(primal))
        return Memory(primal[1], jnp.asarray(self.penalty, dtype))

    def rates(self, state: LoopState) -> Rates:
        return fallen(super().rates(state), state, self.upper_decay, self.lower_decay)

    def move(self, problem: Bilevel, state: LoopState, rates: Rates, key: Array) -> Move:
        x, y = state.primal
        c = state.memory.penalty

        def lower(pair: tuple[PyTree, PyTree], key: Array) -> tuple[tuple[PyTree, PyTree], None]:
            y, z = pair
            batch = problem.sample(key)
            slope = jax.grad(batch.objective, argnums=1)(x, z)
            penalised = plus(lower_gradient(batch, x, z), times(1 / c, slope))
            plain = descend(y, rates.lower, lower_gradient(batch, x, y))
            return (plain, descend(z, rates.lower, penalised)), None

        keys = jax.random.split(key, self.inner_steps + 1)
        (y, z), _ = jax.lax.scan(lower, (y, state.memory.penalised), keys[1:])
        batch = problem.sample(keys[0])
        cross = minus(*(jax.grad(batch.inner)(x, point) for point in (z, y)))
        direction = plus(upper_pieces(batch, x, z).upper, times(c, cross))
        t = (state.count + 1).astype(c.dtype)
        grown = c + jnp.asarray(self.growth, c.dtype) * t**-self.growth_decay
        return Move(direction, y, Memory(z, grown))
