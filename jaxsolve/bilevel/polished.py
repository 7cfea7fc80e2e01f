"""What a penalty method leaves is removed: extrapolation, the lower level solved, Newton's method.

A method that ends at a penalty weight c has a point w(c) = w + O(1/c). From those at the weights
c/2 and c:

    w1 = 2 w(c) - w(c/2)                                 Richardson's extrapolation, error O(1/c^2)
    u2: r(x1, u2) = 0                                    the lower level's conditions, x1 held
    v2: the adjoint system at (x1, u2)
    (x, u, v): grad L(x, u, v) = 0                       the whole problem's conditions

The second and the last are solved by Newton's method with steps of least norm: of many lower
solutions it finds one next to the extrapolated y. Where the functions are quadratic and the
constraints affine equalities, each is one exact step. The last is kept only where it ends at a
value of F that is no higher: Newton's method knows stationary points, not minima.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core.linear import MINRES, Operator, checked
from ..core.loop import Program, run
from ..core.problem import AbstractProblem, Structure
from ..core.solution import RESULTS, Guess, Point
from ..core.solver import AbstractSolver
from ..core.vectors import finite, norm, same_shapes
from .bilevel import Bilevel, LowerPoint
from .value_function import AbstractValueFunction, ValueFunctionState, check_value_function

Vector = Float[Array, " n"]
Scalar = Float[Array, ""]

_NEWTON_STEPS = 20
_DENSE = 64
_LENGTHS = (1.0, 0.5, 0.2, 0.05, 0.01)


class PolishedState(eqx.Module):
    """The inner method's state, and what becomes of it.

    Attributes:
        inner: of the solver that is polished.
        earlier: (x, (y, mu, lam)) at half the last weight.
        weight: that weight.
        found: the polished point, after `finish`, or a start that is one already.
        settled: whether it is.
    """

    inner: ValueFunctionState
    earlier: tuple[PyTree[Array], LowerPoint]
    weight: Scalar
    found: Point
    settled: Bool[Array, ""]

    @property
    def gap(self) -> Scalar:
        """f - v of the inner method."""
        return self.inner.gap

    @property
    def penalised(self) -> Scalar:
        """The penalised residual of the inner method."""
        return self.inner.penalised


class Polished(AbstractSolver[Bilevel]):
    """A method of the value function, whose last point is then made exact.

    The result is `successful` where the conditions of the `Bilevel` hold to the tolerance, which
    Newton's method reaches where these are smooth next to the solution; else `stalled`. Up to 512
    unknowns (x, and y and multipliers twice) its systems are dense; above, by MINRES, GMRES, LSQR.

    Args:
        solver: `LVHBA(...)`, `BiCGAFFA(...)` or `MEHA(...)`.
    """

    solver: AbstractValueFunction

    step_limit: ClassVar[int] = 2**31 - 1

    def __check_init__(self) -> None:
        check_value_function("Polished", self.solver)

    def prepare(self, problem: AbstractProblem, init: PyTree | None, key: Any = None) -> Any:
        return self.solver.prepare(problem, init, key)

    def refuse(self, problem: Bilevel) -> None:
        self.solver.refuse(problem)

    def init(self, problem: Bilevel, guess: Guess) -> PolishedState:
        kept = guess.state
        if isinstance(kept, PolishedState):
            guess = eqx.tree_at(lambda g: g.state, guess, kept.inner, is_leaf=lambda x: x is None)
        inner = self.solver.init(problem, guess)
        earlier, weight = self._snapshot(problem, inner)
        resumes = isinstance(kept, PolishedState) and same_shapes(kept.earlier, earlier)
        shapes = jax.eval_shape(self.solver.point, problem, inner)
        found = jax.tree.map(lambda x: jnp.zeros_like(weight, x.dtype, shape=x.shape), shapes)
        if resumes:
            earlier, weight = kept.earlier, kept.weight
        settled = jnp.zeros_like(weight, bool)
        known = problem.fitting(guess)
        if known is not None:
            assert guess.tolerance is not None
            found = Point(guess.primal, known)
            settled = problem.residual(found).within(guess.tolerance)
        return PolishedState(inner, earlier, weight, found, settled)

    def step(self, problem: Bilevel, state: PolishedState) -> PolishedState:
        inner = self.solver.step(problem, state.inner)
        new = self._snapshot(problem, inner)
        early = new[1] <= self.solver.weight(inner.end - 1, new[1]) / 2
        earlier, weight = jax.tree.map(
            lambda a, b: jnp.where(early, a, b), new, (state.earlier, state.weight)
        )
        return PolishedState(inner, earlier, weight, state.found, state.settled)

    def measure(self, problem: Bilevel, state: PolishedState) -> Scalar:
        return self.solver.measure(problem, state.inner)

    def status(self, problem: Bilevel, state: PolishedState, tolerance: Scalar) -> Any:
        # What `finish` makes of it is not known here: `solve` finds that it has succeeded.
        ended = self.solver.status(problem, state.inner, tolerance)[0]
        return ended | state.settled, RESULTS.stalled

    def finish(self, problem: Bilevel, state: PolishedState) -> PolishedState:
        x, lower = self._extrapolated(problem, state)
        flat, unravel = ravel_pytree(lower)
        smooth = problem.lower_set is None and problem.coupling is None
        found = newton(
            lambda u: ravel_pytree(problem.lower_residual(x, unravel(u)))[0],
            flat,
            Structure(smooth, smooth and not problem.coupled),
        )
        lower = unravel(found)
        start = Point((x, lower.primal), problem.dual(x, lower))
        flat, unravel = ravel_pytree(start)
        conditions = lambda w: ravel_pytree(problem.optimality(unravel(w)))[0]
        end = unravel(newton(conditions, flat, problem.structure))
        value, reached = problem.objective(*start.primal), problem.objective(*end.primal)
        blur = jnp.sqrt(jnp.finfo(value.dtype).eps) * jnp.maximum(jnp.abs(value), 1)
        better = reached <= value + blur
        point = jax.tree.map(
            lambda a, b, c: jnp.where(state.settled, c, jnp.where(better, a, b)),
            end,
            start,
            state.found,
        )
        return eqx.tree_at(lambda s: s.found, state, point)

    def point(self, problem: Bilevel, state: PolishedState) -> Point:
        return state.found

    def _snapshot(self, problem: Bilevel, inner: ValueFunctionState) -> Any:
        x = inner.primal[0]
        weight = self.solver.weight(inner.count - 1, inner.gap)
        return (x, self.solver.lower_point(problem, inner)), weight

    def _extrapolated(self, problem: Bilevel, state: PolishedState) -> tuple[PyTree, LowerPoint]:
        now, weight = self._snapshot(problem, state.inner)
        apart = weight - state.weight
        far = apart > 0.01 * weight
        ratio = jnp.where(far, state.weight / jnp.where(far, apart, 1), 0)
        x, lower = jax.tree.map(
            lambda new, old: new + ratio.astype(new.dtype) * (new - old), now, state.earlier
        )
        y = problem.into_lower(lower.primal)
        lam = lower.inequality
        lam = jax.tree.map(lambda u: jnp.maximum(u, 0), lam)
        return problem.into_upper(x), LowerPoint(y, lower.equality, lam)


def newton(residual: Callable[[Vector], Vector], start: Vector, structure: Structure) -> Vector:
    """A zero of a (semi)smooth square system by damped steps of least norm; where it finds none,
    the point with the smallest residual that it saw."""
    goal = jnp.finfo(start.dtype).eps ** 0.75
    # Of a symmetric singular system MINRES finds the least solution, long before an SVD does.
    linear_solver = MINRES() if structure.symmetric and start.size > _DENSE else None

    def begin(start: Vector) -> tuple[tuple[Vector, Vector, Int[Array, ""]], Bool[Array, ""]]:
        value = residual(start)
        return (start, value, jnp.zeros((), jnp.int32)), norm(value) <= goal

    def step(_: Vector, carry: Any) -> tuple[Any, Bool[Array, ""]]:
        at, value, count = carry
        _, push = jax.linearize(residual, at)
        pull = jax.linear_transpose(push, at)
        operator = Operator(push, lambda w: pull(w)[0], structure)
        move = checked(linear_solver, operator, -value).x
        move = jnp.where(finite(move), move, 0)
        lengths = jnp.asarray(_LENGTHS, at.dtype)
        points = at + lengths[:, None] * move
        values = jax.lax.map(residual, points)
        sizes = jax.vmap(norm)(values)
        sizes = jnp.where(jnp.isfinite(sizes), sizes, jnp.inf)
        best = jnp.argmin(sizes)
        falls = sizes[best] < norm(value)
        at = jnp.where(falls, points[best], at)
        value = jnp.where(falls, values[best], value)
        count = count + 1
        done = ~falls | (norm(value) <= goal) | (count >= _NEWTON_STEPS)
        return (at, value, count), done

    return run(Program(begin, step, lambda _, carry: carry[0]), start)
