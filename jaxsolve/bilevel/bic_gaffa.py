"""BiC-GAFFA: bilevel problems with coupling constraints of any form, without projections on them.

With c the constraints and l = f + u'c, the doubly regularised gap of the lower level is

    G(x, y, z) = max over t in Y, u   l(x, y, u) - |u - z|^2 / (2 gamma2)
                                      - l(x, t, z) - |t - y|^2 / (2 gamma1)

u >= 0 of inequalities. It is at least 0, and 0 where y solves the lower level and z holds its
multipliers; u has the closed form z + gamma2 c(x, y). One step on F / c_k + G over X x Y x Z, where
Z is [-r, r], [0, r] of inequalities, and c_k = penalty (k + 1)^exponent:

    t     <-  P_Y(t - eta (grad_y l(x, t, z) + (t - y) / gamma1))
    u     <-  z + gamma2 c(x, y), its positive part of inequalities
    x, y  <-  P_XxY((x, y) - alpha (grad F / c_k + grad G))
    z     <-  P_Z(z - beta ((u - z) / gamma2 - c(x, t)))

Yao, Yin, Zeng, Zhang, "Overcoming lower-level constraints in bilevel optimization: a novel approach
with regularized gap functions", 2024.
"""

import jax.numpy as jnp
from jaxtyping import PyTree

from ..core.vectors import dot, largest, ravel
from .bilevel import Bilevel, Pair
from .coupling import AbstractRows, smooth_rows
from .value_function import AbstractValueFunction, ValueFunctionState


class BiCGAFFA(AbstractValueFunction):
    """Doubly regularised gap function, single loop, first derivatives alone, no projection.

    For coupling constraints that are not affine, or are too many to project on; they are met in
    the limit only. The result is `approximate`: as with `LVHBA`, errors fall like 1 / c_k, and
    `Polished(BiCGAFFA())` removes them. Constraints are taken in units of the norms that their
    gradients have at the first point: `bound`, step sizes and `gamma2` are of such rows.

    Args:
        gamma1, gamma2: of the proximal terms.
        step_size: alpha, of x and y.
        inner_step_size: eta, of t.
        multiplier_step_size: beta, of z.
        penalty, exponent: c_k = penalty (k + 1)^exponent.
        bound: r.
        unit: f is divided by it: about the curvature of f in y.
        steps: after which it ends.
    """

    gamma1: float = 10.0
    gamma2: float = 1.0
    step_size: float = 0.05
    inner_step_size: float = 0.3
    multiplier_step_size: float = 0.05
    penalty: float = 0.5
    exponent: float = 0.49
    bound: float = 1e3
    unit: float = 1.0
    steps: int = 3_000

    def constraints(self, problem: Bilevel, primal: Pair) -> tuple[AbstractRows | None, PyTree]:
        return (smooth_rows(problem, primal) if problem.coupled else None), None

    def step(self, problem: Bilevel, state: ValueFunctionState) -> ValueFunctionState:
        functions = self.functions(problem, state)
        both, inner = ravel(state.primal), ravel(state.auxiliary)
        x, y = functions.split(both)
        weight = self.weight(state.count, both)
        dual, centre = state.multiplier, state.centre
        moved = self.proximal_step(functions, both, inner, centre)
        rest = proximity = 0.0
        far = centre
        if functions.rows is not None and centre is not None:
            rows = functions.rows
            dual = rows.clip(centre + self.gamma2 * functions.constraints(x, y), jnp.inf)
            away = (dual - centre) / self.gamma2
            proximity = self.gamma2 * dot(away, away) / 2
            slope = away - functions.constraints(x, moved)
            later = rows.clip(centre - self.multiplier_step_size * slope, self.bound)
            rest = largest(later - centre) / self.multiplier_step_size
            centre = later
        found = self.descent(functions, both, moved, (dual, far), weight)
        found = found._replace(gap=found.gap - proximity)
        new = functions.into_both(both - self.step_size * found.direction)
        return self.moved(state, (both, new), moved, (dual, centre), found, rest)
