"""The plan that `LowRankSinkhorn` finds, and its objective (both as in `low_rank.py`)."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..core.checks import check_count
from ..core.vectors import HIGHEST, matmul
from .cost_products import cost_product
from .entropic_transport import EntropicTransport
from .geometry import Scalar
from .plan import check_vector, logarithm


class Factors(NamedTuple):
    """Q = a exp(left), R = b exp(right), rows of both normalised, and log g."""

    left: Float[Array, "n r"]
    right: Float[Array, "m r"]
    middle: Float[Array, " r"]


class LowRankPlan(eqx.Module):
    """p = Q diag(1/g) R', never written out but by `matrix`.

    Its derivatives in costs, points and epsilon are those at the plan as it is, which for `cost` at
    a stationary point are all there are; the factors have none. Those in weights are NaN.

    Attributes:
        problem: as it was solved: transposed where there are more columns than rows.
        factors: see `Factors`.
    """

    problem: EntropicTransport
    factors: Factors

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        n, m = self.problem.geometry.shape
        return (m, n) if self.problem.flipped else (n, m)

    @property
    def weights(self) -> Float[Array, " r"]:
        """g, of the points in between."""
        return jnp.exp(self.factors.middle)

    @property
    def parts(self) -> tuple[Float[Array, "n r"], Float[Array, "m r"]]:
        """Q and R."""
        a, b = self.problem.weights
        found = a[:, None] * jnp.exp(self.factors.left), b[:, None] * jnp.exp(self.factors.right)
        return (found[1], found[0]) if self.problem.flipped else found

    @property
    def matrix(self) -> Float[Array, "n m"]:
        """The plan itself."""
        first, second = self.parts
        return matmul(first / self.weights, second.T)

    @property
    def transport_cost(self) -> Scalar:
        """sum_ij p_ij c_ij, from the factors."""
        return expected(self.problem, self.factors)

    @property
    def cost(self) -> Scalar:
        """F: at least `transport_cost` + epsilon KL(p | a b'), the optimal value of the problem."""
        return objective(self.problem, self.factors)

    def apply(self, vector: Float[Array, "k ..."], axis: int = 1) -> Float[Array, "l ..."]:
        """The plan times a vector of columns (`axis=1`), or its transpose times one of rows (0).

        Raises:
            ValueError: the vector's length is another one.
        """
        vector = check_vector("LowRankPlan.apply", self.shape, vector, axis)
        return jnp.tensordot(
            self.parts[1 - axis], self._between(vector, axis), 1, precision=HIGHEST
        )

    def mean(self, vector: Float[Array, "k ..."], axis: int = 1) -> Float[Array, "l ..."]:
        """The mean of a vector of columns in each row (`axis=1`), or of one of rows in each column
        (0), weighted by the plan. Rows and columns without weight have one too.

        Raises:
            ValueError: the vector's length is another one.
        """
        vector = check_vector("LowRankPlan.mean", self.shape, vector, axis)
        left, right = self.factors.left, self.factors.right
        share = (right, left) if self.problem.flipped else (left, right)
        return jnp.tensordot(
            jnp.exp(share[1 - axis]), self._between(vector, axis), 1, precision=HIGHEST
        )

    def sample(self, key: Array, count: int) -> tuple[Int[Array, " count"], Int[Array, " count"]]:
        """Pairs (i, j), drawn independently in proportion to p_ij."""
        check_count("LowRankPlan.sample", count=count)
        middle, *ends = jax.random.split(key, 3)
        between = jax.random.categorical(middle, self.factors.middle, shape=(count,))
        rows, columns = (
            jax.random.categorical(end, logarithm(part.T[between]), axis=1)
            for end, part in zip(ends, self.parts, strict=True)
        )
        return rows, columns

    def _between(self, vector: Float[Array, "k ..."], axis: int) -> Float[Array, "r ..."]:
        """The mean of the vector in each of the points in between."""
        gathered = jnp.tensordot(self.parts[axis], vector, (0, 0), precision=HIGHEST)
        return gathered / self.weights.reshape((-1,) + (1,) * (vector.ndim - 1))


def expected(problem: EntropicTransport, factors: Factors) -> Scalar:
    """<c, p>."""
    a, b = problem.weights
    right = b[:, None] * jnp.exp(factors.right - factors.middle)
    moved = cost_product(problem.geometry, right)
    return jnp.sum(a[:, None] * jnp.exp(factors.left) * moved)


def objective(problem: EntropicTransport, factors: Factors) -> Scalar:
    """F."""
    return expected(problem, factors) + problem.epsilon * information(problem, factors)


def information(problem: EntropicTransport, factors: Factors) -> Scalar:
    """KL(Q | a g'), g of sum 1 as a target, with the masses of the plan and of a b'."""
    a, _ = problem.weights
    own, mass = jnp.exp(factors.left), problem.mass
    share = factors.middle - jnp.log(mass)
    found = jnp.sum(a * jnp.sum(own * (factors.left - share), axis=1))
    return found + mass * (mass - 1 - jnp.log(mass))
