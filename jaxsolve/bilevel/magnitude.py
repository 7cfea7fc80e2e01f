"""Pruning by magnitude: the smallest weights go, at once or in rounds. Han et al. (2015)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from ..core.checks import check_number, show
from ..core.solution import Guess
from .masks import kept_units
from .pruning import Network, PreparedPruning, masked
from .rounds import AbstractRounds, RoundsState


class MagnitudePruning(AbstractRounds):
    """The largest weights are kept, and trained: the cheapest method, and the one to beat.

    Args:
        steps: of training after pruning; then it ends as `approximate`.
        optimiser: an optax transformation; make it once. `None`: momentum 0.9, a rate of 0.1 that
            falls to 0 as a cosine.
    """

    steps: int = 1000
    optimiser: optax.GradientTransformation | None = None

    def rounds(self, problem: PreparedPruning) -> int:
        return 1

    def prune(
        self, problem: PreparedPruning, state: RoundsState, number: Int[Array, ""], key: Array
    ) -> tuple[Network, Network]:
        mask = problem.mask(state.params, _squares(problem, state), problem.kept)
        return mask, masked(mask, state.params)


class IterativeMagnitudePruning(AbstractRounds):
    """In each round a fifth of what is left goes by magnitude, and what stays is trained again.

    Slow (a sparsity of 0.95 takes 14 rounds) and hard to beat. With `rewind`, the weights of an
    early step of training, the kept ones go back there after each pruning: Frankle and Carbin's
    lottery tickets (2019), with the rewinding of Frankle et al. (2020).

    Args:
        steps: of training in each round.
        optimiser: an optax transformation, begun anew in each round; make it once. `None`: momentum
            0.9, a rate of 0.1 that falls to 0 as a cosine.
        rate: the part of the units left that a round prunes; the last round prunes what remains.
        rewind: weights to which a round's training goes back, of the structure of `params`; `None`
            goes on with those found.
    """

    steps: int = 1000
    optimiser: optax.GradientTransformation | None = None
    rate: float = 0.2
    rewind: PyTree = None

    def __check_init__(self):
        check_number("IterativeMagnitudePruning", rate=self.rate)
        if not 0 < self.rate < 1:
            raise ValueError(
                f"IterativeMagnitudePruning: `rate` must be in (0, 1); got {self.rate}."
            )

    def init(self, problem: PreparedPruning, guess: Guess) -> RoundsState:
        params = guess.primal[1]
        if self.rewind is not None and show(self.rewind) != show(params):
            raise ValueError(
                f"IterativeMagnitudePruning: `rewind` is {show(self.rewind)}, but `params` are "
                f"{show(params)}."
            )
        return super().init(problem, guess)

    def rounds(self, problem: PreparedPruning) -> Int[Array, ""]:
        # The first round all of whose groups are small enough.
        enough = jnp.all(self._schedule(problem) <= problem.kept, axis=1)
        return jnp.argmax(enough) + 1

    def prune(
        self, problem: PreparedPruning, state: RoundsState, number: Int[Array, ""], key: Array
    ) -> tuple[Network, Network]:
        kept = jnp.maximum(self._schedule(problem)[number], problem.kept)
        mask = problem.mask(state.params, _squares(problem, state), kept)
        params = state.params if self.rewind is None else self.rewind
        return mask, masked(mask, params)

    def _schedule(self, problem: PreparedPruning) -> Int[Array, "rounds groups"]:
        """Units kept in each round, down to none."""
        rounds = 1 + int(np.ceil(np.log(2 * max(problem.units)) / -np.log1p(-self.rate)))
        left = [kept_units(1 - (1 - self.rate) ** (r + 1), problem.units) for r in range(rounds)]
        return jnp.asarray(np.stack([*left, np.zeros_like(left[0])]))


def _squares(problem: PreparedPruning, state: RoundsState) -> list[Any]:
    """Of the weights; those that are pruned already come last, also where kept ones are 0."""
    masks, params = (problem.prunable(x) for x in (state.mask, state.params))
    return [jnp.where(m > 0, p * p, -1) for m, p in zip(masks, params, strict=True)]
