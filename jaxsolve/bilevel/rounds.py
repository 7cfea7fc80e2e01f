"""Pruning in rounds: prune, train what is left, prune again.

    for r = 1 ... R:   m <- the units to keep of those left,   `steps` of training of m theta

All rounds are one compiled loop: each step trains, and the first of a round prunes before it does.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree, UInt32

from ..core.checks import check_count, check_kind
from ..core.keys import first_key, next_keys
from ..core.solution import RESULTS, Guess, Point
from ..core.solver import AbstractSolver, resumed
from ..core.vectors import ravel
from .pruning import Network, PreparedPruning, Pruning, Scalar, check_optax, masked, smoothed


class RoundsState(eqx.Module):
    """Weights, mask and optimiser, and what is drawn next.

    Attributes:
        params: of the pruned network.
        inner: the optimiser's state; it starts anew in each round.
        loss: the mean of the last batches' losses.
        key: two numbers, which files can hold.
        count: steps made, those of an earlier solve included.
    """

    params: Network
    mask: Network
    inner: PyTree
    loss: Scalar
    key: UInt32[Array, "2"]
    count: Int[Array, ""]


class AbstractRounds(AbstractSolver[Pruning]):
    """What pruning in rounds has in common: all but what a round prunes.

    A solve that was cut by `max_steps` goes on where it was when its solution is given as `init`.
    """

    steps: eqx.AbstractVar[int]
    optimiser: eqx.AbstractVar[optax.GradientTransformation | None]

    step_limit: ClassVar[int] = 2**31 - 1

    def __check_init__(self):
        name = type(self).__name__
        check_count(name, steps=self.steps)
        check_optax(name, optimiser=self.optimiser)

    @abc.abstractmethod
    def prune(
        self, problem: PreparedPruning, state: RoundsState, number: Int[Array, ""], key: Array
    ) -> tuple[Network, Network]:
        """The mask and the weights with which round `number` (from 0) begins."""

    @abc.abstractmethod
    def rounds(self, problem: PreparedPruning) -> int | Int[Array, ""]:
        """How many there are."""

    def lengths(self) -> tuple[int, int]:
        """The steps of a round, and of the last one."""
        return self.steps, self.steps

    def refuse(self, problem: PreparedPruning) -> None:
        check_kind(self, problem, PreparedPruning)

    def init(self, problem: PreparedPruning, guess: Guess) -> RoundsState:
        mask, params = guess.primal
        fresh = RoundsState(
            params=params,
            mask=mask,
            inner=self._optimiser().init(params),
            loss=jnp.zeros((), ravel(params).dtype),
            key=first_key(guess.key),
            count=jnp.zeros((), jnp.int32),
        )
        found = guess.state
        if not isinstance(found, RoundsState):
            return fresh
        return resumed(found, fresh, self.ended(problem, found))

    def step(self, problem: PreparedPruning, state: RoundsState) -> RoundsState:
        key, draws = next_keys(state.key, 2)
        optimiser = self._optimiser()
        number = state.count // self.lengths()[0]
        begins = (state.count % self.lengths()[0] == 0) & (number < self.rounds(problem))

        def begin(state: RoundsState) -> tuple[Network, Network, PyTree]:
            mask, params = self.prune(problem, state, number, draws[0])
            return mask, params, optimiser.init(params)

        kept = lambda state: (state.mask, state.params, state.inner)
        mask, params, inner = jax.lax.cond(begins, begin, kept, state)
        loss, slope = problem.gradient(params, problem.sample(draws[1]))
        slope = masked(mask, problem.penalised(slope, params))
        changes, inner = optimiser.update(slope, inner, params)
        # Of an optimiser that moves weights without a gradient, too, nothing comes back.
        params = jax.tree.map(lambda m, p, c: m * (p + c), mask, params, changes)
        return RoundsState(
            params=params,
            mask=mask,
            inner=inner,
            loss=smoothed(state.loss, loss, state.count),
            key=key,
            count=state.count + 1,
        )

    def measure(self, problem: PreparedPruning, state: RoundsState) -> Scalar:
        return state.loss

    def status(self, problem: PreparedPruning, state: RoundsState, tolerance: Scalar) -> Any:
        return self.ended(problem, state), RESULTS.approximate

    def ended(self, problem: PreparedPruning, state: RoundsState) -> Bool[Array, ""]:
        """Whether the last round is over."""
        each, last = self.lengths()
        return state.count >= (self.rounds(problem) - 1) * each + last

    def point(self, problem: PreparedPruning, state: RoundsState) -> Point:
        return Point((state.mask, state.params))

    def _optimiser(self) -> optax.GradientTransformation:
        if self.optimiser is not None:
            return self.optimiser
        return optax.sgd(optax.cosine_decay_schedule(0.1, self.lengths()[1]), 0.9)
