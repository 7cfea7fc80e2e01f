"""LV-HBA: bilevel problems with coupling constraints, by gradients and one projection a step.

With c the constraints and v the proximal Lagrangian value function of `value_function.py`,

    minimise F(x, y) / c_k + f(x, y) - v(x, y, z)   over (x, y) in C, z in Z                   (1)

where C are the points of X x Y that fulfil the constraints and Z holds multipliers, [0, r] of
inequalities and [-r, r] of equalities. One step, c_k = penalty (k + 1)^exponent:

    t     <-  P_Y(t - eta (grad_y l(x, t, u) + (t - y) / gamma1)),   l = f + u'c
    u     <-  P_Z(u + eta (c(x, t) - (u - z) / gamma2))
    x, y  <-  P_C((x, y) - alpha (grad F / c_k + grad f - grad v))
    z     <-  P_Z(z + beta (u - z) / gamma2)

with t and u both from their old values, and grad v at the new ones. Yao, Yu, Zeng, Zhang,
"Constrained bi-level optimization: proximal Lagrangian value function approach and Hessian-free
algorithm", ICLR 2024.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..core.checks import kind, show
from ..core.vectors import dot, largest, ravel, same_shapes
from ..smooth.affine import is_affine
from .bilevel import Bilevel, Pair
from .coupled_set import coupled_set
from .coupling import AbstractRows, affine_rows, coupling_values, smooth_rows
from .value_function import AbstractValueFunction, Functions, ValueFunctionState, Vector


class LVHBA(AbstractValueFunction):
    """Proximal Lagrangian value function, single loop, first derivatives alone.

    For problems whose levels share constraints, and for lower levels that are convex, but not
    strictly. The coupling constraints are affine in (x, y) together, or come with a `projection`.
    The result is `approximate`: errors fall like 1 / c_k, not with the steps as such (10 %, 1 % and
    0.1 % want ten times the steps each, and more). `Polished(LVHBA())` removes what is left.
    `solution.state` holds the two numbers that tell how good the point is, `gap` (f - v) and
    `penalised` (the projected gradient of c_k times (1)). `suggest_steps` chooses the settings.

    Constraints are taken in units of their own (`coupling.py`): `bound`, step sizes and `gamma2`
    are of rows of norm 1, which is what makes one choice of them good for many problems.

    Args:
        gamma1, gamma2: of the proximal terms.
        step_size: alpha, of x and y.
        inner_step_size: eta, of t and u.
        multiplier_step_size: beta, of z.
        penalty, exponent: c_k = penalty (k + 1)^exponent; theory wants an exponent below 1/2.
        bound: r.
        unit: f is divided by it: about the curvature of f in y.
        projection: P_C as a function `(x, y) -> (x, y)`, X and Y included, where it is not to be
            found from the rows.
        steps: after which it ends.
    """

    gamma1: float = 10.0
    gamma2: float = 1.0
    step_size: float = 0.05
    inner_step_size: float = 0.3
    multiplier_step_size: float = 1.0
    penalty: float = 0.5
    exponent: float = 0.49
    bound: float = 1e3
    unit: float = 1.0
    projection: Callable[[PyTree, PyTree], Pair] | None = eqx.field(default=None, kw_only=True)
    steps: int = 3_000

    def __check_init__(self) -> None:
        if self.projection is not None and not callable(self.projection):
            raise TypeError(
                "LVHBA: `projection` must be a function (x, y) -> (x, y); got "
                f"{kind(self.projection)}."
            )

    def constraints(self, problem: Bilevel, primal: Pair) -> tuple[AbstractRows | None, PyTree]:
        if not problem.coupled:
            return None, None
        if self.projection is not None:
            return smooth_rows(problem, primal), None
        if not is_affine(lambda both: coupling_values(problem, both), primal):
            raise TypeError(
                "LVHBA projects (x, y) on the constraints, which it can where `coupling` and "
                "`coupling_equality` are affine in x and y together; their derivatives depend on x "
                "or y. Use BiCGAFFA(), or give the projection: "
                "LVHBA(projection=lambda x, y: (x, y))."
            )
        rows = affine_rows(problem, primal)
        return rows, coupled_set(problem, primal, rows)

    def enter(self, state: ValueFunctionState, functions: Functions) -> ValueFunctionState:
        both, region = self._project(functions, state, ravel(state.primal))
        primal = functions.restore(both)
        return eqx.tree_at(
            lambda s: (s.primal, s.auxiliary, s.region),
            state,
            (primal, primal[1], region),
            is_leaf=lambda x: x is None,
        )

    def step(self, problem: Bilevel, state: ValueFunctionState) -> ValueFunctionState:
        functions = self.functions(problem, state)
        both = ravel(state.primal)
        inner = ravel(state.auxiliary)
        weight = self.weight(state.count, both)
        dual, centre = state.multiplier, state.centre
        moved = self.proximal_step(functions, both, inner, dual)
        rest = proximity = 0.0
        if functions.rows is not None and dual is not None and centre is not None:
            values = functions.constraints(functions.split(both)[0], inner)
            slope = values - (dual - centre) / self.gamma2
            dual = functions.rows.clip(dual + self.inner_step_size * slope, self.bound)
            away = dual - centre
            proximity = dot(away, away) / (2 * self.gamma2)
            pull = self.multiplier_step_size * away / self.gamma2
            later = functions.rows.clip(centre + pull, self.bound)
            rest = largest(later - centre) / self.multiplier_step_size
            centre = later
        found = self.descent(functions, both, moved, (None, dual), weight)
        found = found._replace(gap=found.gap + proximity)
        goal = both - self.step_size * found.direction
        new, region = self._project(functions, state, goal)
        return self.moved(state, (both, new), moved, (dual, centre), found, rest, region)

    def _project(
        self, functions: Functions, state: ValueFunctionState, both: Vector
    ) -> tuple[Vector, PyTree]:
        if state.region is not None:
            return state.region.project(functions, both)
        if self.projection is not None:
            like = functions.restore(both)
            found = self.projection(*like)
            if not same_shapes(found, like):
                raise TypeError(
                    f"LVHBA: `projection(x, y)` must return a pair like (x, y), {show(like)}; it "
                    f"returns {show(jax.tree.map(jnp.asarray, found))}."
                )
            return ravel(found), None
        return functions.into_both(both), None
