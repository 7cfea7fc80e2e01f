"""How the upper variable moves: a rule that is told the value and the gradient where it asks.

An evaluation of the upper level is a solve of the lower one, so a rule asks for one at a time, and
is never given a function. What it has been told is the tangent of the value at that point.
"""

import abc
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from ..core.solution import Guess
from ..core.vectors import dot, largest, ravel
from ..smooth.forms import blur, shaper
from ..smooth.lbfgs import LBFGS, LBFGSState
from ..smooth.problems import Minimise

Scalar = Float[Array, ""]
_State = TypeVar("_State")

_MEMORY = 5
"""Values among which the largest must be undercut."""
_DECREASE = 1e-4


class Moved(NamedTuple, Generic[_State]):
    """What became of a trial.

    Attributes:
        state: of the rule.
        accepted: whether the trial is the new point.
        stuck: whether no step lowers the value.
    """

    state: _State
    accepted: Bool[Array, ""]
    stuck: Bool[Array, ""]


class AbstractDescent(eqx.Module, Generic[_State]):
    """A rule; its state knows the point that it is at."""

    @abc.abstractmethod
    def init(self, x: PyTree[Array], value: Scalar, gradient: PyTree[Array], old: Any) -> _State:
        """At x; `old` is the last state of an earlier solve, or `None`."""

    @abc.abstractmethod
    def trial(self, state: _State) -> PyTree[Array]:
        """Where it wants the value next."""

    @abc.abstractmethod
    def move(
        self, state: _State, trial: PyTree[Array], value: Scalar, gradient: PyTree[Array]
    ) -> Moved[_State]:
        """Take note of the trial's value (NaN: no good) and gradient."""


class _Tangent(eqx.Module):
    """A function by its value and gradient at one point."""

    point: PyTree[Array]
    value: Scalar
    gradient: PyTree[Array]

    def __call__(self, x: PyTree[Array], args: Any) -> Scalar:
        return self.value + dot(ravel(self.gradient), ravel(x) - ravel(self.point))


class QuasiNewton(AbstractDescent[LBFGSState]):
    """`LBFGS`, whose steps are one evaluation each."""

    method: LBFGS

    def init(self, x, value, gradient, old):
        at = Minimise(_Tangent(x, value, gradient))
        return self.method.init(at, Guess(x, state=old))

    def trial(self, state):
        return state.trial

    def move(self, state, trial, value, gradient):
        moved = self.method.step(Minimise(_Tangent(trial, value, gradient)), state)
        accepted = jnp.all(ravel(moved.primal) == ravel(trial)) & jnp.isfinite(value)
        return Moved(moved, accepted, moved.stuck)


class SpectralState(eqx.Module):
    """A point with its value and gradient, the step size, and the last values."""

    x: PyTree[Array]
    value: Scalar
    gradient: PyTree[Array]
    step_size: Scalar
    recent: Float[Array, " memory"]


class ProjectedSpectral(AbstractDescent[SpectralState]):
    """Projected gradient steps of the length of Barzilai and Borwein, accepted where they lower the
    largest of the last values (Birgin, Martinez and Raydan 2000)."""

    project: Callable[[PyTree], PyTree]

    def init(self, x, value, gradient, old):
        size = largest(gradient)
        step_size = 1 / jnp.maximum(size, 1)
        if isinstance(old, SpectralState):
            step_size = old.step_size.astype(step_size.dtype)
        recent = jnp.full((_MEMORY,), value)
        return SpectralState(x, value, gradient, step_size, recent)

    def trial(self, state):
        return self.project(_along(state.x, state.gradient, -state.step_size))

    def move(self, state, trial, value, gradient):
        step = ravel(trial) - ravel(state.x)
        bend = ravel(gradient) - ravel(state.gradient)
        square, curved = dot(step, step), dot(step, bend)
        ceiling = jnp.max(state.recent) - _DECREASE / state.step_size * square
        # Where values no longer resolve the decrease, it is taken for one.
        accepted = value <= ceiling + blur(state.value)
        spectral = jnp.where(curved > 0, square / jnp.where(curved > 0, curved, 1), jnp.inf)
        spectral = jnp.clip(spectral, 1e-3 * state.step_size, 1e2 * state.step_size)
        known = jnp.isfinite(value) & (curved > 0)
        shorter = jnp.where(known, jnp.minimum(0.5 * spectral, 0.5 * state.step_size), 0.0)
        shorter = jnp.maximum(shorter, 0.1 * state.step_size)
        new = SpectralState(
            trial, value, gradient, spectral, jnp.roll(state.recent, 1).at[0].set(value)
        )
        old = eqx.tree_at(lambda s: s.step_size, state, shorter)
        state = jax.tree.map(lambda n, o: jnp.where(accepted, n, o), new, old)
        return Moved(state, accepted, state.step_size < jnp.finfo(value.dtype).tiny)


class TransformationState(eqx.Module):
    """A point, the transformation's state, and the point that its update leads to."""

    inner: PyTree
    trial: PyTree[Array]


class Transformation(AbstractDescent[TransformationState]):
    """An optax transformation; each of its updates is taken, and projected."""

    transformation: optax.GradientTransformation
    project: Callable[[PyTree], PyTree]

    def init(self, x, value, gradient, old):
        if isinstance(old, TransformationState):
            # It has seen this gradient.
            return old
        return self._next(self.transformation.init(x), x, value, gradient)

    def trial(self, state):
        return state.trial

    def move(self, state, trial, value, gradient):
        return Moved(
            self._next(state.inner, trial, value, gradient),
            jnp.isfinite(value),
            jnp.array(False),
        )

    def _next(self, inner, x, value, gradient) -> TransformationState:
        update = optax.with_extra_args_support(self.transformation).update
        updates, inner = update(gradient, inner, x, value=value, grad=gradient)
        moved = jax.tree.map(lambda a, u: a + u.astype(a.dtype), x, updates)
        return TransformationState(inner, self.project(moved))


def _along(x: PyTree[Array], direction: PyTree[Array], length: Scalar) -> PyTree[Array]:
    return shaper(x)(ravel(x) + length * ravel(direction))
