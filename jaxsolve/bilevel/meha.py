"""MEHA: bilevel problems without coupling constraints, by gradients alone.

With v the Moreau envelope of the lower level (`value_function.py`, without constraints),

    minimise F(x, y) / c_k + f(x, y) - v(x, y)   over x in X, y in Y

by one step, c_k = penalty (k + 1)^exponent:

    t     <-  P_Y(t - eta (grad_y f(x, t) + (t - y) / gamma1))
    x, y  <-  P_XxY((x, y) - alpha (grad F / c_k + grad f - grad v))

Liu, Liu, Yao, Zeng, Zhang, "Moreau envelope for nonconvex bi-level optimization: a single-loop and
Hessian-free solution strategy", ICML 2024.
"""

from jaxtyping import PyTree

from ..core.checks import check_absent
from ..core.vectors import ravel
from .bilevel import COUPLING, Bilevel, Pair
from .coupling import AbstractRows
from .value_function import AbstractValueFunction, ValueFunctionState


class MEHA(AbstractValueFunction):
    """Moreau envelope of the lower level, single loop, first derivatives alone.

    For lower levels of any size that are convex but not strictly, or weakly convex (`gamma1` below
    half the inverse of the most negative curvature of f in y). Where they are strongly convex,
    `HypergradientDescent` and `SABA` have no bias. The result is `approximate`: as with `LVHBA`,
    errors fall like 1 / c_k, and `Polished(MEHA())` removes them.

    Args:
        gamma1: of the proximal term.
        step_size: alpha, of x and y.
        inner_step_size: eta, of t.
        penalty, exponent: c_k = penalty (k + 1)^exponent.
        unit: f is divided by it: about the curvature of f in y.
        steps: after which it ends.
    """

    gamma1: float = 10.0
    step_size: float = 0.05
    inner_step_size: float = 0.3
    penalty: float = 0.5
    exponent: float = 0.49
    unit: float = 1.0
    steps: int = 3_000

    def refuse(self, problem: Bilevel) -> None:
        super().refuse(problem)
        advice = "use LVHBA(), or BiCGAFFA() where the constraints are not affine."
        check_absent("MEHA", problem, COUPLING, advice)

    def constraints(self, problem: Bilevel, primal: Pair) -> tuple[AbstractRows | None, PyTree]:
        return None, None

    def step(self, problem: Bilevel, state: ValueFunctionState) -> ValueFunctionState:
        functions = self.functions(problem, state)
        both, inner = ravel(state.primal), ravel(state.auxiliary)
        weight = self.weight(state.count, both)
        moved = self.proximal_step(functions, both, inner, None)
        found = self.descent(functions, both, moved, (None, None), weight)
        new = functions.into_both(both - self.step_size * found.direction)
        return self.moved(state, (both, new), moved, (None, None), found)
