"""The proximal gradient method with spectral steps and Newton steps.

    minimise f(y) + h(y):   y <- prox(y - s g, s),   g = grad f(y)

s is the spectral step of Barzilai and Borwein (1988), and a step is taken when it lowers the
largest of the last values of f + h (SpaRSA: Wright, Nowak and Figueiredo 2009). That finds the
penalty's pattern (zeros, groups, pieces); on what the pattern leaves free it is a first-order
method, and slow. So a semismooth Newton step (`semismooth.py`) is tried first, for as long as such
steps lower the value; each time that one does not, more proximal steps are made before the next.
Every iterate is the result of a prox: its zeros are exact.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core.checks import check_kind, check_real
from ..core.solution import Guess, Point
from ..core.solver import AbstractSolver, ended
from ..core.vectors import dot, finite, norm, ravel
from ..smooth.forms import blur, is_lower, shaper
from .composite import Composite
from .semismooth import Model, newton_trial

Scalar = Float[Array, ""]
Vector = Float[Array, " n"]

_MEMORY = 5
"""Values among which the largest must be undercut."""
_DECREASE = 1e-4
_PATIENCE = 100
_REJECTIONS = 40
_LEAST_DAMPING = 1e-12


class ProximalGradientState(eqx.Module):
    """A point with its value and gradient, and the steps that may leave it.

    Attributes:
        primal: the point, a result of the prox.
        value: f + h there.
        gradient: of f.
        step_size: s.
        proposal: prox(y - s g, s).
        recent: the last values of f + h.
        damping: added to the Hessian in Newton steps, as a multiple of 1 / s.
        wait: proximal steps before the next Newton step is tried.
        pause: the next `wait` after a Newton step that was of no use.
        error, scale: `problem.residual` of the point, as `measured`.
        rejections: since the last accepted step.
        lowest, best: the smallest value and relative residual so far.
        idle: steps since one of them last fell.
    """

    primal: PyTree[Array]
    value: Scalar
    gradient: Vector
    step_size: Scalar
    proposal: Vector
    recent: Float[Array, " memory"]
    damping: Scalar
    wait: Int[Array, ""]
    pause: Int[Array, ""]
    error: Scalar
    scale: Scalar
    rejections: Int[Array, ""]
    lowest: Scalar
    best: Scalar
    idle: Int[Array, ""]


class ProximalGradient(AbstractSolver[Composite]):
    """Proximal gradient steps that find the pattern, Newton steps that make it exact.

    The default of `Composite`. A step is one evaluation of the smooth part and its gradient; a
    Newton step also makes products with its Hessian (as many as variables up to 128, more variables
    by conjugate gradients). No Lipschitz constant is asked for.

    Wright, Nowak and Figueiredo (2009); Li, Sun and Toh (2018) for the Newton steps.
    """

    step_limit: ClassVar[int] = 5000

    def refuse(self, problem: Composite) -> None:
        check_kind(self, problem, Composite)

    def init(self, problem: Composite, guess: Guess) -> ProximalGradientState:
        vector = ravel(guess.primal)
        check_real("ProximalGradient", "init", vector.dtype)
        at = _At(problem, guess.primal)
        smooth, gradient = at.evaluate(vector)
        # A guess outside of the penalty's domain has no value to undercut.
        value = smooth + at.sharp.value(guess.primal).astype(vector.dtype)
        step_size = at.first_step(vector, gradient)
        damping = jnp.full_like(value, 1e-3)
        if isinstance(guess.state, ProximalGradientState):
            step_size = guess.state.step_size.astype(value.dtype)
            damping = guess.state.damping.astype(value.dtype)
        error, scale = at.measured(vector, gradient)
        count = jnp.zeros_like(value, jnp.int32)
        start = jnp.where(jnp.isfinite(value), value, jnp.inf)
        return ProximalGradientState(
            primal=guess.primal,
            value=value,
            gradient=gradient,
            step_size=step_size,
            proposal=at.step(vector, gradient, step_size),
            recent=jnp.full_like(value, 1, shape=(_MEMORY,)) * start,
            damping=damping,
            wait=count,
            pause=count + 1,
            error=error,
            scale=scale,
            rejections=count,
            lowest=start,
            best=error / scale,
            idle=count,
        )

    def step(self, problem: Composite, state: ProximalGradientState) -> ProximalGradientState:
        at = _At(problem, state.primal)
        vector, size = ravel(state.primal), state.step_size
        wanted = state.wait <= 0
        forcing = jnp.minimum(0.1, jnp.sqrt(state.error / state.scale))
        model = Model(at, vector, state.gradient, size, state.damping, forcing)
        trial, length = newton_trial(model, state.proposal, wanted)
        newton = wanted & (length > 0)

        smooth, gradient = at.evaluate(trial)
        value = smooth + at.penalty(trial)
        usable = jnp.isfinite(value) & finite(gradient)
        error, scale = at.measured(trial, gradient)
        move, bend = trial - vector, gradient - state.gradient
        square, curved = dot(move, move), dot(move, bend)

        residual = vector - state.proposal
        needed = _DECREASE / (2 * size) * jnp.where(newton, dot(residual, residual), square)
        ceiling = jnp.where(newton, state.value, jnp.max(state.recent))
        lower = value <= ceiling - needed
        # Where values no longer resolve the decrease, residuals do.
        resolution = blur(state.value)
        nearer = error / scale <= 0.9 * state.error / state.scale
        level = (value <= ceiling + resolution) & (needed <= resolution) & (nearer | ~newton)
        accepted = usable & (lower | level)

        # The spectral step, the shorter of the two where they disagree (Zhou, Gao and Dai 2006).
        convex = curved > 0
        longer = square / jnp.where(convex, curved, 1)
        bends = dot(bend, bend)
        shorter = curved / jnp.where(bends > 0, bends, 1)
        spectral = jnp.where(shorter < 0.3 * longer, shorter, longer)
        spectral = jnp.where(convex & (spectral > 0), spectral, 10 * size)
        spectral = jnp.clip(spectral, 1e-3 * size, 1e3 * size)
        back = jnp.clip(
            jnp.where(usable & convex, 0.5 * longer, 0.1 * size), 0.1 * size, 0.5 * size
        )
        step_size = jnp.where(accepted, spectral, jnp.where(newton, size, back))
        step_size = jnp.where(jnp.isfinite(step_size) & (step_size > 0), step_size, size)

        gain, lost = newton & accepted, wanted & ~(newton & accepted)
        damping = state.damping
        grown = jnp.where(length < 0.3, 5 * damping, damping)
        helped = jnp.where(length >= 1, 0.1 * damping, grown)
        damping = jnp.where(gain, helped, jnp.where(lost, 10 * damping, damping))
        damping = jnp.clip(damping, _LEAST_DAMPING, 1.0)
        pause = jnp.where(gain, 1, jnp.where(lost, jnp.minimum(2 * state.pause, 64), state.pause))
        wait = jnp.where(gain, 0, jnp.where(lost, state.pause, jnp.maximum(state.wait - 1, 0)))

        vector = jnp.where(accepted, trial, vector)
        gradient = jnp.where(accepted, gradient, state.gradient)
        value = jnp.where(accepted, value, state.value)
        error = jnp.where(accepted, error, state.error)
        scale = jnp.where(accepted, scale, state.scale)
        measure = error / scale
        progress = accepted & (is_lower(value, state.lowest) | (measure < 0.99 * state.best))
        recent = jnp.roll(state.recent, 1).at[0].set(value)
        return ProximalGradientState(
            primal=shaper(state.primal)(vector),
            value=value,
            gradient=gradient,
            step_size=step_size,
            proposal=at.step(vector, gradient, step_size),
            recent=jnp.where(accepted, recent, state.recent),
            damping=damping,
            wait=wait,
            pause=pause,
            error=error,
            scale=scale,
            rejections=jnp.where(accepted, 0, state.rejections + 1),
            lowest=jnp.where(progress, jnp.minimum(value, state.lowest), state.lowest),
            best=jnp.where(progress, jnp.minimum(measure, state.best), state.best),
            idle=jnp.where(progress, 0, state.idle + 1),
        )

    def measure(self, problem: Composite, state: ProximalGradientState) -> Scalar:
        return state.error / state.scale

    def status(
        self, problem: Composite, state: ProximalGradientState, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        solved = self.measure(problem, state) <= tolerance
        stalled = (state.rejections >= _REJECTIONS) | (state.idle >= _PATIENCE)
        return ended(solved, stalled)

    def point(self, problem: Composite, state: ProximalGradientState) -> Point:
        return Point(state.primal)


class _At:
    """A composite problem as functions of a vector; `primal` gives the variable's structure."""

    def __init__(self, problem: Composite, primal: PyTree[Array]):
        self.problem, self.restore, self.sharp = problem, shaper(primal), problem.sharp

    def smooth(self, vector: Vector) -> Scalar:
        return self.problem.smooth(self.restore(vector))

    def evaluate(self, vector: Vector) -> tuple[Scalar, Vector]:
        return jax.value_and_grad(self.smooth)(vector)

    def penalty(self, vector: Vector) -> Scalar:
        return self.sharp.inside(self.restore(vector)).astype(vector.dtype)

    def prox(self, vector: Vector, step_size: Scalar) -> Vector:
        return ravel(self.sharp.prox(self.restore(vector), step_size))

    def step(self, vector: Vector, gradient: Vector, step_size: Scalar) -> Vector:
        return self.prox(vector - step_size * gradient, step_size)

    def measured(self, vector: Vector, gradient: Vector) -> tuple[Scalar, Scalar]:
        return self.problem.measured(self.restore(vector), self.restore(gradient))

    def product(self, vector: Vector, direction: Vector) -> Vector:
        """The Hessian of the smooth part times a vector."""
        return jax.jvp(jax.grad(self.smooth), (vector,), (direction,))[1]

    def first_step(self, vector: Vector, gradient: Vector) -> Scalar:
        """1 over the curvature along the gradient."""
        bends = self.product(vector, gradient)
        square, curved = dot(gradient, gradient), dot(gradient, bends)
        usable = (curved > 0) & jnp.isfinite(curved) & (square > 0)
        found = square / jnp.where(usable, curved, 1)
        plain = 1 / jnp.maximum(1, norm(gradient))
        return jnp.where(usable & jnp.isfinite(found) & (found > 0), found, plain)
