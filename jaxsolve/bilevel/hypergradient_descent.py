"""Descent along hypergradients.

    minimise h(x) = F(x, y(x)) over x in X,   y(x) = argmin_y f(x, y)

A step solves the lower level at a new x, from the last y, then the adjoint system

    H v = -grad_y F,   H = grad_yy f

from the last v (`hypergradient.py`). Both are solved as accurately as the step needs: their
tolerances fall with the hypergradient.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from ..core.adjoint import AbstractAdjoint, Unrolled
from ..core.checks import kind
from ..core.solution import RESULTS, Guess, Point
from ..core.solver import AbstractSolver
from ..core.vectors import ravel
from ..smooth.lbfgs import LBFGS
from .bilevel import Bilevel, BilevelDual, LowerPoint
from .descents import AbstractDescent, ProjectedSpectral, QuasiNewton, Transformation
from .hypergradient import (
    Evaluation,
    Hypergradients,
    Scalar,
    check_uncoupled,
)

_PATIENCE = 100
"""Steps without a smaller hypergradient after which no progress is possible."""
_FORCING = 0.02
"""Tolerance of a lower solve, in terms of the last step's residual."""
_LOOSEST = 1e-3
_SHARE = 0.1
"""Of what a move of x leaves open in the lower level, what a solve of it may leave."""
_REJECTIONS = 3
"""Trials in a row that lower no value, after which the value itself is looked at."""


class HypergradientDescentState(eqx.Module):
    """The best point so far as the descent has it.

    Attributes:
        at: the accepted point.
        descent: the state of the rule by which x moves.
        goal: the tolerance that is asked for.
        best: the smallest residual so far.
        idle: steps since it last fell.
        stuck: no step lowers the value.
        rejections: trials since the last accepted one.
        loose: whether the accepted point's lower level could have been solved better.
    """

    at: Evaluation
    descent: Any
    goal: Scalar
    best: Scalar
    idle: Int[Array, ""]
    stuck: Bool[Array, ""]
    rejections: Int[Array, ""]
    loose: Bool[Array, ""]


class HypergradientDescent(AbstractSolver[Bilevel]):
    """The default of `Bilevel` without coupling: exact hypergradients, and quasi-Newton steps.

    For lower levels with one solution. One step is one lower solve, one adjoint solve, and one
    gradient; a lower level with a set Y is differentiated on the face on which y lies.

    Args:
        lower_solver: of `Minimise`, or, with a set Y, of `Composite`; `Newton()` and `Broyden()`
            take grad_y f = 0. `None`: the default of these, and up to 128 variables, without a set,
            `Newton()`.
        optimiser: an optax transformation (make it once), each of whose updates is taken; or
            `LBFGS(...)`. `None` is `LBFGS()`, and with a set X projected spectral steps.
        linear_solver: of the adjoint system. `None`: a factorisation of H up to 512 unknowns, else
            conjugate gradients, preconditioned by the lower solver. An approximate inverse
            (`linear.Neumann(k)`, `linear.Nystroem(rank, damping)`, `MFACInverse`) leaves an error
            in the hypergradient: the result is `approximate`.
        adjoint: `Unrolled(k)` or `OneStep()`: differentiate the lower solver's steps instead, k of
            them from the last y. What they leave is an error as well.
    """

    lower_solver: Any = None
    optimiser: optax.GradientTransformation | LBFGS | None = None
    linear_solver: Any = None
    adjoint: AbstractAdjoint | None = None

    step_limit: ClassVar[int] = 1000

    def refuse(self, problem: Bilevel) -> None:
        check_uncoupled(type(self).__name__, problem)
        self._hypergradients.check("HypergradientDescent")
        biased = not self._hypergradients.exact and not isinstance(self.adjoint, Unrolled)
        if biased and not isinstance(self.optimiser, optax.GradientTransformation):
            raise TypeError(
                "HypergradientDescent: values do not fall along hypergradients that are "
                "approximate, and a search for lower ones would end anywhere: give `optimiser` an "
                "optax transformation."
            )
        if isinstance(self.optimiser, LBFGS) and problem.upper_set is not None:
            raise TypeError(
                "HypergradientDescent: LBFGS() cannot honour `upper_set` of Bilevel; leave out "
                "`optimiser`, or give an optax transformation."
            )
        self._descent(problem)

    def init(self, problem: Bilevel, guess: Guess) -> HypergradientDescentState:
        x, y = guess.primal
        x = problem.into_upper(x)
        assert guess.tolerance is not None
        old = guess.state if isinstance(guess.state, HypergradientDescentState) else None
        adjoint = jax.tree.map(jnp.zeros_like, y)
        known = problem.fitting(guess)
        if known is not None:
            adjoint = known.adjoint.primal
        tolerance = jnp.maximum(guess.tolerance, _LOOSEST)
        at = self._hypergradients.evaluate(
            problem, x, y if old is None else old.at.lower, adjoint, tolerance
        )
        last = None if old is None else old.descent
        return HypergradientDescentState(
            at=at,
            descent=self._descent(problem).init(x, at.value, at.gradient, last),
            goal=guess.tolerance,
            best=at.measure,
            idle=jnp.zeros_like(at.value, jnp.int32),
            stuck=at.value != at.value,
            rejections=jnp.zeros_like(at.value, jnp.int32),
            loose=tolerance > self._tightest(guess.tolerance),
        )

    def step(self, problem: Bilevel, state: HypergradientDescentState) -> HypergradientDescentState:
        descent, at = self._descent(problem), state.at
        # A value that is too low, of a lower level that was not solved well, cannot be undercut; a
        # gradient that is too small leads nowhere.
        trial = descent.trial(state.descent)
        there = jnp.all(ravel(trial) == ravel(at.x))
        again = state.loose & (there | (state.rejections >= _REJECTIONS))
        x = jax.tree.map(lambda o, n: jnp.where(again, o, n), at.x, trial)
        tightest = self._tightest(state.goal)
        loosest = jnp.where(again, tightest, jnp.maximum(_LOOSEST, tightest))
        tolerance = jnp.clip(_FORCING * at.measure, tightest, loosest)
        # However small it is, y has to follow x: else values and gradients are those of another x.
        behind = self._hypergradients.behind(problem, x, at.lower)
        follows = jnp.maximum(_SHARE * behind, 16 * jnp.finfo(tolerance.dtype).eps)
        tolerance = jnp.minimum(tolerance, follows)
        new = self._hypergradients.evaluate(problem, x, at.lower, at.adjoint, tolerance)
        solved = new.lower.stats.residual.within(jnp.maximum(10 * tolerance, state.goal))
        value = jnp.where(solved, new.value, jnp.nan)
        moved = descent.move(state.descent, x, value, new.gradient)
        rule = jax.lax.cond(
            again,
            lambda: descent.init(x, new.value, new.gradient, state.descent),
            lambda: moved.state,
        )
        taken = moved.accepted | again
        at = jax.tree.map(lambda n, o: jnp.where(taken, n, o) if eqx.is_array(n) else n, new, at)
        nearer = at.measure < 0.9 * state.best
        loose = jnp.where(taken, tolerance > tightest, state.loose)
        return HypergradientDescentState(
            at=at,
            descent=rule,
            goal=state.goal,
            best=jnp.where(nearer, at.measure, state.best),
            idle=jnp.where(nearer, 0, state.idle + 1),
            stuck=moved.stuck & ~loose & ~again,
            rejections=jnp.where(
                taken, 0, jnp.where(moved.stuck, _REJECTIONS, state.rejections + 1)
            ),
            loose=loose,
        )

    def _tightest(self, goal: Scalar) -> Scalar:
        return 0.1 * goal

    def measure(self, problem: Bilevel, state: HypergradientDescentState) -> Scalar:
        return state.at.measure

    def status(
        self, problem: Bilevel, state: HypergradientDescentState, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        solved = state.at.measure <= tolerance
        bent = state.at.bends < 0
        stalled = state.stuck | (state.idle >= _PATIENCE)
        good = RESULTS.successful if self._hypergradients.exact else RESULTS.approximate
        result = RESULTS.where(solved, good, RESULTS.stalled)
        return solved | stalled, RESULTS.where(solved & bent, RESULTS.nonconvex, result)

    def point(self, problem: Bilevel, state: HypergradientDescentState) -> Point:
        primal = (state.at.x, state.at.lower.value)
        if not self._hypergradients.exact:
            return Point(primal)
        return Point(primal, BilevelDual(None, None, LowerPoint(state.at.adjoint)))

    @property
    def _hypergradients(self) -> Hypergradients:
        return Hypergradients(self.lower_solver, self.linear_solver, self.adjoint)

    def _descent(self, problem: Bilevel) -> AbstractDescent:
        chosen = self.optimiser
        if chosen is None:
            free = problem.upper_set is None
            return QuasiNewton(LBFGS()) if free else ProjectedSpectral(problem.into_upper)
        if isinstance(chosen, LBFGS):
            return QuasiNewton(chosen)
        if isinstance(chosen, optax.GradientTransformation):
            return Transformation(chosen, problem.into_upper)
        raise TypeError(
            "HypergradientDescent: `optimiser` must be an optax transformation or LBFGS(...); got "
            f"{kind(chosen)}."
        )
