"""The optimal brain surgeon with M-FAC: prune what the loss feels least, and move the rest.

With F the Fisher matrix of m gradients at the present weights w, damped by delta,

    importance_k = w_k^2 / (2 [F^{-1}]_kk),    w <- w + F^{-1} t,  t_k = -w_k / [F^{-1}]_kk

for the pruned k (0 elsewhere): the sum of the changes that are best for each alone. It leaves out
how they act on each other, so that F is computed again `recomputations` times, between which the
density falls by equal factors. Hassibi and Stork (1993); Frantar, Kurtic and Alistarh (2021).
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int

from ..core.checks import check_count, check_instance
from ..core.vectors import ravel
from .fisher import FisherInverse, MFACInverse
from .pruning import Network, PreparedPruning, masked
from .rounds import AbstractRounds, RoundsState


class OBS(AbstractRounds):
    """Pruning by the inverse Fisher matrix, and training after it.

    Worth more than magnitudes the less training may follow.

    Args:
        steps: of training after the last pruning; then it ends as `approximate`.
        optimiser: an optax transformation, begun anew after each pruning; make it once. `None`:
            momentum 0.9, a rate of 0.1 that falls to 0 as a cosine.
        recomputations: of F, each of which prunes.
        between: steps of training from one to the next, at least 1.
        inverse: `MFACInverse(number, damping, samples, block_size)`; its gradients are of random
            batches, of the loss alone. Its cost is O(m^2 d) and m gradients a recomputation.

    Raises:
        TypeError: `inverse` has its own `gradients`.
    """

    steps: int = 1000
    optimiser: optax.GradientTransformation | None = None
    recomputations: int = 16
    between: int = 1
    inverse: MFACInverse = MFACInverse(number=64, damping=1e-5)

    def __check_init__(self):
        check_count("OBS", recomputations=self.recomputations, between=self.between)
        check_instance("OBS", "inverse", self.inverse, MFACInverse, "MFACInverse(...)")

    def refuse(self, problem: PreparedPruning) -> None:
        super().refuse(problem)
        if self.inverse.gradients is not None:
            raise TypeError("OBS: `inverse` has `gradients`, but those are the solver's own.")

    def rounds(self, problem: PreparedPruning) -> int:
        return self.recomputations

    def lengths(self) -> tuple[int, int]:
        return self.between, self.steps

    def prune(
        self, problem: PreparedPruning, state: RoundsState, number: Int[Array, ""], key: Array
    ) -> tuple[Network, Network]:
        inverse = self.fisher(problem, state.mask, state.params, key)
        flat, shaped = ravel_pytree(state.params)
        diagonal = inverse.diagonal()
        importance = shaped(flat**2 / (2 * diagonal))
        masks, leaves = (problem.prunable(x) for x in (state.mask, importance))
        left = [jnp.where(m > 0, x, -1) for m, x in zip(masks, leaves, strict=True)]
        mask = problem.mask(state.params, left, self.kept(problem, number))
        gone = ravel(state.mask) - ravel(mask)
        moved = flat + inverse(-gone * flat / diagonal)
        return mask, masked(mask, shaped(moved))

    def kept(self, problem: PreparedPruning, number: Int[Array, ""]) -> Int[Array, " groups"]:
        """Units left after a round: equal factors from all to what the problem asks for."""
        units = jnp.asarray(problem.units, jnp.float32)
        part = (number + 1).astype(units.dtype) / self.recomputations
        density = problem.kept.astype(units.dtype) / units
        left = jnp.ceil(units * density**part).astype(problem.kept.dtype)
        last = number + 1 >= self.recomputations
        return jnp.where(last, problem.kept, jnp.maximum(left, problem.kept))

    def fisher(
        self, problem: PreparedPruning, mask: Network, params: Network, key: Array
    ) -> FisherInverse:
        """F^{-1} of the kept weights; that of the others is 1 / delta."""

        def row(key: Array) -> Array:
            _, slope = problem.gradient(params, problem.sample(key))
            return ravel(masked(mask, slope))

        rows = jax.lax.map(row, jax.random.split(key, self.inverse.number))
        samples = self.inverse.samples or problem.batch_size
        return replace(self.inverse, samples=samples).bind(rows)
