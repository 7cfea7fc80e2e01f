"""PZOBO: the lower level's Jacobian by differences along random directions.

With y(x) the end of T gradient steps of the lower level from the y at hand, and normal u_1 ... u_Q,

    delta_q = (y(x + mu u_q) - y(x)) / mu,
    d = grad_x F + (1 / Q) sum_q u_q <delta_q, grad_y F>,   at (x, y(x))                        (1)

whose mean is the hypergradient but for O(mu) and for what T steps do not reach. Sow, Ji and Liang
(2022).
"""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..core.vectors import inner
from .bilevel import Bilevel, Pair
from .loops import (
    AbstractBilevelLoop,
    LoopState,
    Move,
    Rates,
    descent,
    minus,
    plus,
    upper_pieces,
)


class PZOBO(AbstractBilevelLoop):
    """Bilevel descent by differences of lower descents: no second derivatives, no adjoint.

    For few upper variables: (1) sees the response along Q directions alone, and its variance grows
    as dim x / Q. All Q + 1 descents are of the same batches and run together (vmap). A step costs
    (Q + 1) T gradients of f and one of F.

    Args:
        upper_step_size, lower_step_size: a and b, constant.
        radius: mu. In float32 not below 1e-3 of the size of x: differences lose digits.
        directions: Q.
        inner_steps: T. y starts where the last step left it, the response starts at 0: its bias is
            (1 - b mu_f)^T for lower curvature mu_f, however many steps are made.
        steps: after which the solve ends as `approximate`.
    """

    upper_step_size: float | Float[Array, ""] = 0.1
    lower_step_size: float | Float[Array, ""] = 0.1
    radius: float | Float[Array, ""] = 0.01
    directions: int = 10
    inner_steps: int = 10
    steps: int = 1_000

    def start(self, problem: Bilevel, primal: Pair, adjoint: PyTree[Array]) -> PyTree:
        return None

    def move(self, problem: Bilevel, state: LoopState, rates: Rates, key: Array) -> Move:
        x, y = state.primal
        keys = jax.random.split(key, 3)
        draws = jax.random.split(keys[0], self.inner_steps)
        end = descent(problem, x, y, rates.lower, draws)
        upper = upper_pieces(problem.sample(keys[1]), x, end)
        flat, unravel = ravel_pytree(x)
        radius = jnp.asarray(self.radius, flat.dtype)

        def along(u: Float[Array, " n"]) -> Float[Array, " n"]:
            moved = descent(problem, unravel(flat + radius * u), y, rates.lower, draws)
            return u * jnp.asarray(inner(minus(moved, end), upper.lower), u.dtype) / radius

        us = jax.random.normal(keys[2], (self.directions, flat.size), flat.dtype)
        response = unravel(jnp.mean(jax.vmap(along)(us), axis=0))
        return Move(plus(upper.upper, response), end, None)
