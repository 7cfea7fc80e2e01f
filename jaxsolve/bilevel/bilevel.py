"""Bilevel problems: an objective of two variables, one of which solves a problem in the other.

    minimise F(x, y) over x in X and y,   where y solves
        minimise f(x, y) over y in Y   subject to   h(x, y) = 0,   g(x, y) <= 0

With u = (y, mu, lam), the lower level's multipliers included, y solves it (f and g convex in y)
when r(x, u) = 0:

    r = (grad_y l, h, min(lam, -g)),   l = f + mu'h + lam'g                                   (1)

where for a set Y the first part is y - P_Y(y - grad_y l). What remains is to minimise F subject to
(1), and of that the Lagrangian L = F + v'r is stationary in x, u and v:

    grad_u L = 0    the adjoint system, (dr/du)' v = -grad_u F
    grad_x L = 0    the hypergradient, grad_x F + (dr/dx)' v

As derivatives of one function they have a symmetric Jacobian; a derivative of a bilevel solution
(three levels) goes through it. Where y is not unique, v is the least one in norm, and the
conditions are those of the y that is best for F.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..convex.composite import Composite
from ..convex.multipliers import signed_multipliers
from ..convex.penalties import Indicator
from ..convex.sets.base import AbstractSet, emptiness
from ..core.checks import check_instance
from ..core.closure import restore
from ..core.linear import Operator, checked
from ..core.problem import AbstractProblem, Structure
from ..core.solution import RESULTS, Guess, Point, Residual, Scale
from ..core.vectors import clean, inner, largest, ravel, same_shapes
from ..smooth.problems import Minimise, Root
from .levels import (
    GradientAt,
    LowerAt,
    Opened,
    Pair,
    arrays_of,
    check_fits,
    check_out,
    open_level,
)

if TYPE_CHECKING:
    from ..core.solver import AbstractSolver

Scalar = Float[Array, ""]


class LowerPoint(eqx.Module):
    """u = (y, mu, lam): a point of the lower level's conditions; also their residual, and v.

    Attributes:
        primal: y, or what belongs to it.
        equality, inequality: of the shapes of h and g, `None` without them.
    """

    primal: PyTree[Array]
    equality: PyTree[Array] = None
    inequality: PyTree[Array] = None


class BilevelDual(eqx.Module):
    """The lower level's multipliers, and those of its conditions.

    Attributes:
        equality, inequality: mu and lam >= 0, of h(x, y) = 0 and g(x, y) <= 0.
        adjoint: v, of the conditions r(x, u) = 0.
    """

    equality: PyTree[Array]
    inequality: PyTree[Array]
    adjoint: LowerPoint


COUPLING = ("coupling", "coupling_equality")
"""The fields that join the two variables."""


class Bilevel(AbstractProblem):
    """minimise upper(x, y, args) over x and y, where y minimises lower(x, y, args).

    Example:
        ```python
        fit = lambda x, y, args: jnp.sum((y - 1.0) ** 2) + 0.1 * jnp.sum(x**2)
        ridge = lambda x, y, args: jnp.sum((y - args) ** 2) + jnp.sum(jnp.exp(x) * y**2)
        problem = Bilevel(fit, ridge, jnp.array([2.0, 3.0]))
        x, y = solve(problem, init=(jnp.zeros(2), jnp.zeros(2))).value
        ```

    The lower level is convex in y; where its solution is not unique, y is the one that is best for
    `upper`. Values are pairs `(x, y)` of any pytrees; `init` is such a pair. The dual is a
    `BilevelDual`.

    A point is judged by the lower level's conditions (primal residual and complementarity), and by
    the exact hypergradient, projected on X, and the adjoint system (dual residual, relative to
    max(1, |grad F|)).

    Args:
        upper: F(x, y, args), a real scalar.
        lower: f(x, y, args), a real scalar.
        args: their data, any pytree; what a derivative of the solution is taken in.
        coupling: g(x, y, args), arrays that must be at most 0, as a constraint of the lower level.
        coupling_equality: h(x, y, args), arrays that must be 0, likewise.
        upper_set: X, one of `jaxsolve.sets`.
        lower_set: Y.
    """

    upper: Callable[[PyTree, PyTree, PyTree], Any]
    lower: Callable[[PyTree, PyTree, PyTree], Any]
    args: PyTree = None
    coupling: Callable[[PyTree, PyTree, PyTree], Any] | None = eqx.field(default=None, kw_only=True)
    coupling_equality: Callable[[PyTree, PyTree, PyTree], Any] | None = eqx.field(
        default=None, kw_only=True
    )
    upper_set: AbstractSet | None = eqx.field(default=None, kw_only=True)
    lower_set: AbstractSet | None = eqx.field(default=None, kw_only=True)

    # --- the functions ---------------------------------------------------------------------

    def objective(self, x: PyTree[Array], y: PyTree[Array]) -> Scalar:
        """F(x, y)."""
        return self.upper(x, y, self.args)

    def inner(self, x: PyTree[Array], y: PyTree[Array]) -> Scalar:
        """f(x, y)."""
        return self.lower(x, y, self.args)

    def equality(self, x: PyTree[Array], y: PyTree[Array]) -> PyTree[Array]:
        """h(x, y), `None` without one."""
        return None if self.coupling_equality is None else self.coupling_equality(x, y, self.args)

    def inequality(self, x: PyTree[Array], y: PyTree[Array]) -> PyTree[Array]:
        """g(x, y), `None` without one."""
        return None if self.coupling is None else self.coupling(x, y, self.args)

    @property
    def coupled(self) -> bool:
        """Whether constraints join the two variables."""
        return any(getattr(self, field) is not None for field in COUPLING)

    def into_upper(self, x: PyTree[Array]) -> PyTree[Array]:
        """P_X(x)."""
        return x if self.upper_set is None else self.upper_set.project(x)

    def into_lower(self, y: PyTree[Array]) -> PyTree[Array]:
        """P_Y(y)."""
        return y if self.lower_set is None else self.lower_set.project(y)

    def lower_problem(self, x: PyTree[Array]) -> Minimise | Composite:
        """The lower level at x, without coupling constraints."""
        fn, args = LowerAt(self.lower), (x, self.args)
        if self.lower_set is None:
            return Minimise(fn, args)
        return Composite(fn, Indicator(self.lower_set), args)

    def lower_equations(self, x: PyTree[Array]) -> Root:
        """grad_y f = 0 at x, of a lower level without set and coupling."""
        return Root(GradientAt(self.lower), (x, self.args))

    def sample(self, key: Array) -> "Bilevel":
        """The problem on a random batch of its data; here, on all of them."""
        return self

    # --- the conditions --------------------------------------------------------------------

    def lower_residual(self, x: PyTree[Array], lower: LowerPoint) -> LowerPoint:
        """r(x, u) of (1)."""
        y = lower.primal

        def lagrangian(y: PyTree[Array]) -> Scalar:
            out = self.inner(x, y)
            out = out + inner(lower.equality, self.equality(x, y))
            return out + inner(lower.inequality, self.inequality(x, y))

        first = jax.grad(lagrangian)(y)
        if self.lower_set is not None:
            moved = jax.tree.map(jnp.subtract, y, first)
            first = jax.tree.map(jnp.subtract, y, self.lower_set.project(moved))
        slack = jax.tree.map(jnp.negative, self.inequality(x, y))
        pairs = jax.tree.map(jnp.minimum, lower.inequality, slack)
        return LowerPoint(first, self.equality(x, y), pairs)

    def _derivatives(self, point: Point) -> tuple[Scalar, PyTree, LowerPoint, LowerPoint]:
        """L, grad_x L, grad_u L and grad_v L = r."""
        x, y = point.primal
        dual: BilevelDual = point.dual
        lower = LowerPoint(y, dual.equality, dual.inequality)

        def lagrangian(x: PyTree, lower: LowerPoint, adjoint: LowerPoint) -> tuple:
            residual = self.lower_residual(x, lower)
            return self.objective(x, lower.primal) + inner(adjoint, residual), residual

        both = jax.value_and_grad(lagrangian, argnums=(0, 1), has_aux=True)
        (value, residual), (gradient, system) = both(x, lower, dual.adjoint)
        return value, gradient, system, residual

    def stationarity(self, x: PyTree[Array], gradient: PyTree[Array]) -> PyTree[Array]:
        """The hypergradient; with a set X, x - P_X(x - hypergradient)."""
        if self.upper_set is None:
            return gradient
        moved = jax.tree.map(jnp.subtract, x, gradient)
        return jax.tree.map(jnp.subtract, x, self.upper_set.project(moved))

    @property
    def smooth_lower(self) -> bool:
        """Whether the lower level's conditions have no kinks."""
        return self.lower_set is None and self.coupling is None

    @property
    def structure(self) -> Structure:
        return Structure(symmetric=self.upper_set is None)

    def optimality(self, point: Point) -> Point:
        _, gradient, system, residual = self._derivatives(point)
        first = self.stationarity(point.primal[0], gradient)
        dual = BilevelDual(system.equality, system.inequality, residual)
        return Point((first, system.primal), dual)

    def residual(self, point: Point) -> Residual:
        return self.hypergradient(point)[2]

    def hypergradient(self, point: Point) -> tuple[Scalar, PyTree[Array], Residual]:
        """L and grad_x L at a point (the hypergradient, where u and v solve their systems), and
        `residual`."""
        value, gradient, system, residual = self._derivatives(point)
        first = self.stationarity(point.primal[0], gradient)
        size = largest(jax.grad(self.objective, argnums=(0, 1))(*point.primal))
        one = jnp.ones_like(size)
        pairs = jnp.zeros_like(size)
        if residual.inequality is not None:
            pairs = largest(residual.inequality)
        # A gradient may be finite where its function is not, as that of log is below 0.
        good = jnp.isfinite(value) & jnp.isfinite(self.inner(*point.primal))
        primal = largest((residual.primal, residual.equality))
        judged = Residual(
            primal=jnp.where(good, primal, jnp.inf),
            dual=largest((first, system)),
            complementarity=pairs,
            scale=Scale(one, jnp.maximum(one, size), one),
        )
        return value, gradient, judged

    def multipliers(self, value: Pair) -> BilevelDual:
        """Of the lower level by least squares on the constraints that are active, then v."""
        x, y = value
        lower = LowerPoint(y)
        if self.coupled:
            lower = LowerPoint(y, *self._lower_multipliers(x, y))
        return self.dual(x, lower)

    def dual(self, x: PyTree[Array], lower: LowerPoint) -> BilevelDual:
        """The multipliers of a point whose lower level has been solved: v is found."""
        return BilevelDual(lower.equality, lower.inequality, self.adjoint(x, lower))

    def adjoint(self, x: PyTree[Array], lower: LowerPoint) -> LowerPoint:
        """v of the adjoint system, (dr/du)' v = -grad_u F; the least one in norm where the system
        is singular, and its least squares where it has no solution."""
        flat, unravel = ravel_pytree(lower)

        def residual(u: Array) -> Array:
            return ravel(self.lower_residual(x, unravel(u)))

        slope = ravel(jax.grad(lambda low: self.objective(x, low.primal))(lower))
        _, pullback = jax.vjp(residual, flat)
        operator = Operator(
            lambda v: pullback(v)[0],
            lambda w: jax.jvp(residual, (flat,), (w,))[1],
            Structure(self.smooth_lower, self.smooth_lower and not self.coupled),
        )
        return unravel(checked(None, operator, -slope).x)

    def _lower_multipliers(self, x: PyTree[Array], y: PyTree[Array]) -> tuple[PyTree, PyTree]:
        """mu and lam >= 0 of the active constraints that make grad_y l least; with a set Y, of its
        part along the face of Y on which y lies."""
        flat, unravel = ravel_pytree(y)
        gradient = ravel(jax.grad(lambda y: self.inner(x, y))(y))
        rows, allowed, signed, backs = [], [], [], []
        for fn, inequality in ((self.equality, False), (self.inequality, True)):
            found = fn(x, y)
            values, back = ravel_pytree(found)
            backs.append((values.size, back))
            if found is None:
                continue
            rows.append(jax.jacrev(lambda v, fn=fn: ravel(fn(x, unravel(v))))(flat))
            near = jnp.finfo(flat.dtype).eps ** 0.33 * jnp.maximum(largest(flat), 1)
            allowed.append(values >= -near if inequality else jnp.ones_like(values, bool))
            signed.append(jnp.full_like(values, inequality, bool))
        matrix = jnp.concatenate(rows)
        if self.lower_set is not None:
            project = lambda v: ravel(self.into_lower(unravel(v)))
            moved = flat - gradient
            face = lambda d: jax.jvp(project, (moved,), (d,))[1]
            matrix, gradient = jax.vmap(face)(matrix), face(gradient)
        u = signed_multipliers(matrix, gradient, jnp.concatenate(allowed), jnp.concatenate(signed))
        parts, at = [], 0
        for size, back in backs:
            parts.append(back(u[at : at + size]) if size else None)
            at += size
        return parts[0], parts[1]

    # --- the door --------------------------------------------------------------------------

    def default_solver(self) -> "AbstractSolver":
        if self.coupled:
            from .lvhba import LVHBA

            return LVHBA()
        from .hypergradient_descent import HypergradientDescent

        return HypergradientDescent()

    def prepare(self, init: PyTree | None) -> tuple[Self, Pair]:
        name = type(self).__name__
        init = arrays_of(name, init)
        opened, value = {}, None
        for field in ("upper", "lower", *COUPLING):
            fn = getattr(self, field)
            if fn is None and field in COUPLING:
                continue
            check_instance(name, field, fn, Callable, "a function of (x, y, args)")
            assert fn is not None
            closed, value, out = open_level(name, field, fn, init, self.args)
            opened[field] = Opened(closed)
            check_out(name, field, out)
        assert value is not None
        for place, field in enumerate(("upper_set", "lower_set")):
            check_fits(name, field, getattr(self, field), place, value[place])
        names = list(opened)
        prepared = eqx.tree_at(
            lambda p: [getattr(p, n) for n in names], self, [opened[n] for n in names]
        )
        return prepared, value

    def restore(self, value: PyTree[Array]) -> PyTree:
        return restore(self.upper.inner, value) if isinstance(self.upper, Opened) else value

    def screen(self, guess: Guess) -> tuple[Any, Point]:
        usable = clean(guess.primal, (self.args, self.upper_set, self.lower_set))
        result = RESULTS.successful
        for found, part in zip((self.upper_set, self.lower_set), guess.primal, strict=True):
            if found is not None:
                result = RESULTS.where(found.proved_empty(part), RESULTS.infeasible, result)
        result = RESULTS.where(usable, result, RESULTS.nonfinite_input)
        return result, Point(guess.primal, self.fitting(guess))

    def describe(self) -> list[str]:
        fields = ("upper_set", "lower_set")
        return [text for name in fields for text in emptiness(name, getattr(self, name))]

    def fitting(self, guess: Guess) -> BilevelDual | None:
        """A guess's dual; `None` where it has none, or one of another problem."""
        x, y = guess.primal
        equality, inequality = jax.eval_shape(lambda: (self.equality(x, y), self.inequality(x, y)))
        wanted = BilevelDual(equality, inequality, LowerPoint(y, equality, inequality))
        found = guess.dual
        return found if isinstance(found, BilevelDual) and same_shapes(found, wanted) else None
