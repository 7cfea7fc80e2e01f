"""The convex quadratic program.

    minimise  x'Px/2 + q'x   subject to   Ax = b,  Gx <= h,  lower <= x <= upper

Any field but P and q may be absent (`None`); bounds and h may hold infinities. With multipliers
y, z, w_l, w_u of the constraints in this order, x is a solution when

    Px + q + A'y + G'z - w_l + w_u = 0,   Ax = b,
    min(z, h - Gx) = 0,   min(w_l, x - lower) = 0,   min(w_u, upper - x) = 0.
"""

from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..core.problem import AbstractProblem, Statement, Structure
from ..core.solution import RESULTS, Dual, Guess, Point, Residual
from ..core.vectors import dot
from . import fields, sparse
from .scales import counted, dual_scale_of, finite_part, judged, side_of, sizes_of
from .sparse import Matrix

if TYPE_CHECKING:
    from ..core.solver import AbstractSolver


SMALL = 10
"""Up to so many free variables, and twice as many rows, the active-set method is the default: there
1.2 to 1.8 times as fast as the interior point, at twice the size half as fast."""


class Conditions(NamedTuple):
    """The optimality conditions before complementarity, and what was added up to form them."""

    gradient: Float[Array, " n"]
    equality: Float[Array, " p"] | None
    slack: Dual
    terms: dict[str, Array]


class QuadraticProgram(AbstractProblem):
    """minimise x'Px/2 + q'x subject to Ax = b, Gx <= h, lower <= x <= upper.

    Example:
        ```python
        P, q = jnp.eye(2), jnp.array([-2.0, 1.0])
        problem = QuadraticProgram(P, q, G=jnp.ones((1, 2)), h=jnp.ones(1), lower=0.0)
        solution = solve(problem)
        solution.value, solution.dual.inequality, solution.dual.lower
        ```

    Args:
        P: symmetric, positive semidefinite on the null space of A; read as (P + P')/2. Zero makes
            it a linear program. P, A and G may be sparse (`BCOO`) or lineax operators: then the
            solver is `OperatorSplitting`.
        q: the linear term.
        A, b: equalities; rows may be redundant.
        G, h: inequalities; +inf in h is a row without effect.
        lower, upper: bounds, infinite where there is none; a scalar is for all variables. Equal
            entries fix a variable.
        symmetric: set by `prepare` once P is.
    """

    P: Float[Array, "n n"] | Matrix
    q: Float[Array, " n"]
    A: Float[Array, "p n"] | Matrix | None = eqx.field(default=None, kw_only=True)
    b: Float[Array, " p"] | None = eqx.field(default=None, kw_only=True)
    G: Float[Array, "m n"] | Matrix | None = eqx.field(default=None, kw_only=True)
    h: Float[Array, " m"] | None = eqx.field(default=None, kw_only=True)
    lower: Float[Array, " n"] | Float[Array, ""] | float | None = eqx.field(
        default=None, kw_only=True
    )
    upper: Float[Array, " n"] | Float[Array, ""] | float | None = eqx.field(
        default=None, kw_only=True
    )
    symmetric: bool = eqx.field(default=False, static=True, kw_only=True, repr=False)

    @classmethod
    def from_two_sided(
        cls,
        P: Float[Array, "n n"],
        q: Float[Array, " n"],
        A: Float[Array, "m n"],
        l: Float[Array, " m"],
        u: Float[Array, " m"],
    ) -> Self:
        """The problem with rows l <= Ax <= u; infinite and equal entries are allowed.

        With concrete l and u, equal entries become equalities and infinite sides are left out; with
        traced ones, whose values shapes cannot follow, every row is written twice.
        """
        return cls(P, q, **fields.two_sided(A, l, u))

    @property
    def structure(self) -> Structure:
        unconstrained = all(x is None for x in (self.A, self.G, self.lower, self.upper))
        return Structure(
            symmetric=self.G is None and self.lower is None and self.upper is None or unconstrained,
            affine=True,
        )

    def objective(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """x'Px/2 + q'x."""
        return dot(x, sparse.apply(self.P, x)) / 2 + dot(self.q, x)

    def bend(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """(P + P')x/2."""
        return (sparse.apply if self.symmetric else sparse.symmetric)(self.P, x)

    def conditions(self, point: Point) -> Conditions:
        """The gradient of the Lagrangian, Ax - b and the slacks."""
        x, dual = point.primal, point.dual
        terms = {"x": x, "Px": self.bend(x), "q": self.q}
        gradient, equality, slacks = terms["Px"] + self.q, None, {}
        if self.A is not None and self.b is not None:
            terms |= {"Ax": sparse.apply(self.A, x), "b": self.b, "y": dual.equality}
            terms["A'y"] = sparse.transposed(self.A, dual.equality)
            equality, gradient = terms["Ax"] - self.b, gradient + terms["A'y"]
        if self.G is not None and self.h is not None:
            terms |= {"Gx": sparse.apply(self.G, x), "h": finite_part(self.h), "z": dual.inequality}
            terms["G'z"] = sparse.transposed(self.G, dual.inequality)
            slacks["inequality"], gradient = self.h - terms["Gx"], gradient + terms["G'z"]
        if self.lower is not None:
            terms |= {"lower": finite_part(self.lower), "w_l": dual.lower}
            slacks["lower"], gradient = x - self.lower, gradient - dual.lower
        if self.upper is not None:
            terms |= {"upper": finite_part(self.upper), "w_u": dual.upper}
            slacks["upper"], gradient = self.upper - x, gradient + dual.upper
        return Conditions(gradient, equality, Dual(**slacks), terms)

    def optimality(self, point: Point) -> Point:
        return self._relaxed(point, jnp.minimum)

    def smoothed_optimality(self, point: Point, kappa: Float[Array, ""]) -> Point:
        """min(a, b) replaced by Chen-Harker-Kanzow-Smale's function, 0 where ab = kappa, a > 0."""

        def smooth(dual, slack):
            bounded = jnp.isfinite(slack)
            s = jnp.where(bounded, slack, 1.0)
            total, root = dual + s, jnp.sqrt((dual - s) ** 2 + 4 * kappa)
            # Two forms of (total - root) / 2: each where it does not cancel.
            positive = total > 0
            above = 2 * (dual * s - kappa) / jnp.where(positive, total + root, 1.0)
            return jnp.where(bounded, jnp.where(positive, above, (total - root) / 2), dual)

        return self._relaxed(point, smooth)

    def _relaxed(self, point: Point, pair) -> Point:
        found, dual = self.conditions(point), point.dual
        slack = found.slack
        return Point(
            found.gradient,
            Dual(
                found.equality,
                None if self.G is None else pair(dual.inequality, slack.inequality),
                None if self.lower is None else pair(dual.lower, slack.lower),
                None if self.upper is None else pair(dual.upper, slack.upper),
            ),
        )

    def residual(self, point: Point) -> Residual:
        """Maximum norms, judged against the size of what was added up to form them.

        The primal scale of a field is max(1, |Ax|, |b|), max(1, |Gx|) or max(1, |x|): large rows of
        A say nothing of bounds. The dual one is max(1, |Px|, |q|, |A'y|, |G'z|, |w|). Products with
        x or multipliers above 1e6 (1e3 in float32) count no more than at that size, or than b, h
        and finite bounds. Complementarity is max |min(dual, slack)|; each pair is judged by the
        scale of the smaller of the two. `scale` says what that came to.
        """
        found, one = self.conditions(point), jnp.ones_like(point.primal[0])
        size = sizes_of(found.terms)
        dual_scale, side = dual_scale_of(size), side_of(size)
        widths = {}
        if "Ax" in size:
            widths["equality"] = jnp.maximum(counted(size["Ax"], size["x"]), size["b"])
        for field, rows in (("inequality", "Gx"), ("lower", "x"), ("upper", "x")):
            if getattr(found.slack, field) is not None:
                widths[field] = counted(size[rows], size["x"], side)
        widths = Dual(**{field: jnp.maximum(width, 1) for field, width in widths.items()})
        widest = reduce(jnp.maximum, jax.tree.leaves(widths), one)
        amiss, amiss_scaled, natural, natural_scaled = [], [], [], []
        if found.equality is not None:
            amiss, amiss_scaled = [found.equality], [found.equality / widths.equality]
        for dual, slack, width in fields.pairs(point.dual, found.slack, widths):
            amiss.append(jnp.minimum(slack, 0))
            amiss_scaled.append(amiss[-1] / width)
            natural.append(jnp.minimum(dual, slack))
            natural_scaled.append(jnp.minimum(dual / dual_scale, slack / width))
        parts = [amiss, amiss_scaled, natural, natural_scaled, [found.gradient]]
        return judged([jnp.concatenate([self.q[:0], *p]) for p in parts], widest, dual_scale)

    def multipliers(self, value: Float[Array, " n"]) -> Dual:
        """Nonnegative least squares on the constraints that are active at `value`."""
        from .multipliers import least_squares_multipliers

        return least_squares_multipliers(self, value)

    def default_solver(self) -> "AbstractSolver":
        """`OperatorSplitting` where a matrix is sparse or an operator, `ActiveSet` for up to
        `SMALL` free variables and twice as many rows, `InteriorPoint` for all others."""
        from .active_set import ActiveSet
        from .interior_point import InteriorPoint
        from .operator_splitting import OperatorSplitting

        if any(sparse.is_matrix_free(x) for x in (self.P, self.A, self.G)):
            return OperatorSplitting()
        sides = (self.h, self.lower, self.upper)
        rows = sum(jnp.size(x) for x in sides if x is not None)
        free = self.q.shape[0] - (0 if self.b is None else self.b.shape[0])
        return ActiveSet() if free <= SMALL and 0 < rows <= 2 * SMALL else InteriorPoint()

    def prepare(self, init: PyTree | None) -> tuple[Self, Float[Array, " n"]]:
        if self.P is None:
            raise TypeError(f"{type(self).__name__}: `P` is None; use LinearProgram.")
        found, value = fields.prepare(self, init)
        P = found.pop("P")
        return type(self)(P, found.pop("q"), **found, symmetric=not sparse.is_matrix_free(P)), value

    def zero_dual(self) -> Dual:
        """Multipliers of zeros, of this problem's structure."""
        n = jnp.zeros_like(self.q)
        return Dual(
            None if self.b is None else jnp.zeros_like(self.b),
            None if self.h is None else jnp.zeros_like(self.h),
            None if self.lower is None else n,
            None if self.upper is None else n,
        )

    def screen(self, guess: Guess) -> tuple[Any, Point]:
        lower = None if self.lower is None else -jnp.asarray(self.lower)
        # Inf is no side, -Inf is one that nothing meets.
        sides = [jnp.minimum(x, 0) for x in (self.h, lower, self.upper) if x is not None]
        clean = sparse.all_finite(self.P, self.q, self.A, self.b, self.G, guess.primal, *sides)
        result = RESULTS.where(clean, RESULTS.successful, RESULTS.nonfinite_input)
        dual = self.zero_dual()
        if self.lower is not None and self.upper is not None:
            excess = jnp.asarray(self.lower - self.upper)
            # w_l = w_u = e_i at the worst crossing i: 0'x <= upper_i - lower_i < 0.
            crossed = (excess > 0) & (jnp.arange(excess.size) == jnp.argmax(excess))
            one = (crossed & clean).astype(self.q.dtype)
            dual = Dual(dual.equality, dual.inequality, one, one)
            result = RESULTS.where(clean & jnp.any(excess > 0), RESULTS.infeasible, result)
        return result, Point(jnp.where(clean, guess.primal, 0.0), dual)

    def certificate(self, point: Point, result: Any) -> Bool[Array, ""]:
        """Whether `point.dual` proves that there is no feasible point within 1e6 (1e3 in float32)
        times the data's own size, or `point.primal` is a ray of descent to that accuracy."""
        from .certificates import proves_infeasible, proves_unbounded

        infeasible = proves_infeasible(self, point.dual)
        unbounded = proves_unbounded(self, point.primal)
        return ((result == RESULTS.infeasible) & infeasible) | (
            (result == RESULTS.unbounded) & unbounded
        )

    def statement(self) -> Statement:
        def equality(x):
            assert self.A is not None and self.b is not None
            return sparse.apply(self.A, x) - self.b

        def inequality(x):
            assert self.G is not None and self.h is not None
            return sparse.apply(self.G, x) - self.h

        return Statement(
            "minimise",
            self.objective,
            None if self.A is None else equality,
            None if self.G is None else inequality,
            self.lower,
            self.upper,
        )

    def describe(self) -> list[str]:
        """What the data say before a solve, in words (eager)."""
        from .describe import describe

        return describe(self)
