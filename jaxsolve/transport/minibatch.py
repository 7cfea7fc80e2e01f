"""Light bridges by gradients of small batches: for points that are too many for one product.

    theta <- optimiser(grad of the loss of a batch, theta)

As Korotin et al. (2024) fit theirs. The end is not a stationary point but lies around one, with the
noise of the gradients: the result is `approximate`, and the solution has no derivative.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree, UInt32

from ..core.adjoint import AbstractAdjoint, Detached
from ..core.checks import check_instance, check_kind, check_settings
from ..core.keys import first_key, next_keys
from ..core.solution import RESULTS, Guess, Point
from ..core.solver import AbstractSolver, resumed
from ..core.vectors import largest
from .bridge import LightParameters, LightProblem, SchrodingerBridge
from .coupling import Batch
from .covariances import AbstractCovariance, Diagonal, check_family
from .light_bridge import LightBridge, Scalar
from .light_sb import prepare

_SMOOTHING = 0.99


class _Stochastic(LightProblem):
    """A fit whose solver ends near a solution: its derivative would be another point's."""

    def default_adjoint(self) -> AbstractAdjoint:
        return Detached()


class MinibatchState(eqx.Module):
    """Parameters, the optimiser's state, and what is drawn next.

    Attributes:
        gradient: the mean of the last gradients, each 0.99 of the next one's weight.
        key: two numbers, which files can hold.
        count: steps made, those of an earlier solve included.
    """

    primal: LightParameters
    inner: PyTree
    gradient: LightParameters
    key: UInt32[Array, "2"]
    count: Int[Array, ""]


class AbstractMinibatch(AbstractSolver[SchrodingerBridge]):
    """What fits by small batches have in common: all but the loss of a batch.

    A solve that was cut by `max_steps` goes on where it was when its solution is given as `init`:
    keep that (`equinox.tree_serialise_leaves`) and it is a checkpoint.
    """

    components: eqx.AbstractVar[int]
    covariance: eqx.AbstractVar[AbstractCovariance]
    optimiser: eqx.AbstractVar[optax.GradientTransformation]
    batch_size: eqx.AbstractVar[int]
    steps: eqx.AbstractVar[int]
    starts: eqx.AbstractVar[int]

    step_limit: ClassVar[int] = 2**31 - 1

    def __check_init__(self):
        name = type(self).__name__
        check_settings(self)
        check_family(name, self.covariance)
        wanted = "an optax transformation"
        check_instance(name, "optimiser", self.optimiser, optax.GradientTransformation, wanted)

    @abc.abstractmethod
    def loss(self, problem: LightProblem, value: LightParameters, key: Array) -> Scalar:
        """Of one random batch; its gradient, on average, is 0 at the solution."""

    def refuse(self, problem: LightProblem) -> None:
        check_kind(self, problem, LightProblem)

    def prepare(
        self, problem: SchrodingerBridge, init: LightBridge | None, key: Array | None = None
    ) -> tuple[LightProblem, LightParameters]:
        fit, value = prepare(self, problem, init, key)
        return _Stochastic(**{name: getattr(fit, name) for name in fit.__dataclass_fields__}), value

    def init(self, problem: LightProblem, guess: Guess) -> MinibatchState:
        fresh = MinibatchState(
            primal=guess.primal,
            inner=self.optimiser.init(guess.primal),  # pyright: ignore[reportArgumentType]
            gradient=jax.tree.map(jnp.zeros_like, guess.primal),
            key=first_key(guess.key),
            count=jnp.zeros((), jnp.int32),
        )
        found = guess.state
        if not isinstance(found, MinibatchState):
            return fresh
        kept = eqx.tree_at(lambda s: s.primal, found, guess.primal)
        return resumed(kept, fresh, found.count >= self.steps)

    def step(self, problem: LightProblem, state: MinibatchState) -> MinibatchState:
        key, (draw,) = next_keys(state.key, 1)
        gradient = jax.grad(lambda value: self.loss(problem, value, draw))(state.primal)
        changes, inner = self.optimiser.update(gradient, state.inner, state.primal)  # pyright: ignore[reportArgumentType]
        moved = jax.tree.map(jnp.add, state.primal, changes)
        return MinibatchState(
            # The gauge is kept exactly: a bridge, whose weights have sum 1, is then a checkpoint.
            primal=eqx.tree_at(lambda p: p.logits, moved, jax.nn.log_softmax(moved.logits)),
            inner=inner,
            gradient=jax.tree.map(
                lambda old, new: _SMOOTHING * old + (1 - _SMOOTHING) * new, state.gradient, gradient
            ),
            key=key,
            count=state.count + 1,
        )

    def measure(self, problem: LightProblem, state: MinibatchState) -> Scalar:
        return largest(state.gradient) / problem.scale

    def status(self, problem: LightProblem, state: MinibatchState, tolerance: Scalar) -> Any:
        return state.count >= self.steps, RESULTS.approximate

    def point(self, problem: LightProblem, state: MinibatchState) -> Point:
        return Point(state.primal)


class MinibatchLightSB(AbstractMinibatch):
    """`LightSB` on small batches, with an optax transformation.

    For samples of which not even one product with the components fits the memory; `LightSB` is
    faster and exact wherever it fits.

    Args:
        components: K.
        covariance: `Diagonal()` or `Full()`.
        optimiser: an optax transformation; make it once.
        batch_size: points of each sample in a batch.
        steps: after which the fit ends as `approximate`.
        starts: as in `LightSB`.
    """

    components: int = 10
    covariance: AbstractCovariance = Diagonal()
    optimiser: optax.GradientTransformation = optax.adam(1e-2)
    batch_size: int = 128
    steps: int = 10_000
    starts: int = 8

    def loss(self, problem: LightProblem, value: LightParameters, key: Array) -> Scalar:
        """L of the batch."""
        batch = draw(problem, self.batch_size, key)
        return eqx.tree_at(lambda p: (p.inputs, p.targets), problem, batch)(value)


def draw(problem: LightProblem, size: int, key: Array) -> Batch:
    """Points of both samples, each alone and with replacement."""
    keys = jax.random.split(key)
    parts = []
    for own, points in zip(keys, (problem.inputs, problem.targets), strict=True):
        parts.append(points[jax.random.randint(own, (size,), 0, points.shape[0])])
    return parts[0], parts[1]
