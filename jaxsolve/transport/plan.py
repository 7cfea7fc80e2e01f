"""What a transport problem's solution is: a plan that is written out only where it is asked for."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ..core.adjoint import envelope
from ..core.checks import check_array, check_count, check_point
from ..core.vectors import positive
from .entropic_transport import EntropicTransport, Potential
from .geometry import Scalar


class Plan(eqx.Module):
    """p_ij = a_i b_j exp((f_i + g_j - c_ij) / epsilon), by one of its potentials.

    Every property is a differentiable function of the problem's data.

    Attributes:
        problem: as it was solved: transposed where there are more columns than rows.
        potential, remainder: see `Potential`.
        trust: 1 where the sums are met and 0 where not, `None` where nobody has looked.
    """

    problem: EntropicTransport
    potential: Float[Array, " k"]
    remainder: Float[Array, " k"]
    trust: Float[Array, ""] | None = None

    @property
    def at(self) -> Potential:
        """The potential with its remainder."""
        return Potential(self.potential, self.remainder)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        n, m = self.problem.geometry.shape
        return (m, n) if self.problem.flipped else (n, m)

    @property
    def potentials(self) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """f and g, with <b, g> = 0 where the sums are held."""
        found = self.problem.potentials(self.at)
        f, g = found[::-1] if self.problem.flipped else found
        if not self.problem.balanced:
            return f, g
        b = self.problem.weights[0 if self.problem.flipped else 1]
        middle = jnp.sum(b * g) / jnp.sum(b)
        return f + middle, g - middle

    @property
    def matrix(self) -> Float[Array, "n m"]:
        """The plan itself."""
        sums = self.problem.sums(self.at)
        _, b = self.problem.weights
        found = sums.kernel.scaled(sums.rows, b * sums.columns)
        return found.T if self.problem.flipped else found

    @property
    def cost(self) -> Scalar:
        """The optimal value: what the plan costs, plus epsilon KL(p | a b'), plus what `tau` makes
        it pay. Its derivative is that of the data at the plan as it is."""
        if self.trust is None:
            return self.problem.semidual(self.at)
        data, rest = eqx.partition(self.problem, eqx.is_inexact_array)
        return envelope(
            lambda at, data: eqx.combine(data, rest).semidual(at), self.at, data, self.trust > 0
        )

    @property
    def transport_cost(self) -> Scalar:
        """sum_ij p_ij c_ij."""
        sums = self.problem.sums(self.at)
        _, b = self.problem.weights
        return self.problem.geometry.expected(
            sums.kernel,
            lax.stop_gradient(self.potential),
            sums.rows,
            b * sums.columns,
            self.problem.epsilon,
        )

    def apply(self, vector: Float[Array, "k ..."], axis: int = 1) -> Float[Array, "l ..."]:
        """The plan times a vector of columns (`axis=1`), or its transpose times one of rows (0).

        Raises:
            ValueError: the vector's length is another one.
        """
        vector = check_vector("Plan.apply", self.shape, vector, axis)
        if (axis == 1) != self.problem.flipped:
            return self._apply(vector)
        sums = self.problem.sums(self.at)
        _, b = self.problem.weights
        return _scaled(b * sums.columns, sums.kernel.columns(_scaled(sums.rows, vector)))

    def mean(self, vector: Float[Array, "k ..."], axis: int = 1) -> Float[Array, "l ..."]:
        """The mean of a vector of columns in each row (`axis=1`), or of one of rows in each column
        (0), weighted by the plan. Rows and columns without weight have one too.

        Raises:
            ValueError: the vector's length is another one.
        """
        vector = check_vector("Plan.mean", self.shape, vector, axis)
        sums = self.problem.sums(self.at)
        if (axis == 1) != self.problem.flipped:
            _, b = self.problem.weights
            weights, product = b * sums.columns, sums.kernel.rows
        else:
            weights, product = sums.rows, sums.kernel.columns
        flat = jnp.concatenate(
            [vector.reshape(vector.shape[0], -1), jnp.ones_like(weights)[:, None]], axis=1
        )
        found = product(weights[:, None] * flat)
        return (found[:, :-1] / positive(found[:, -1:])).reshape(-1, *vector.shape[1:])

    def sample(self, key: Array, count: int) -> tuple[Int[Array, " count"], Int[Array, " count"]]:
        """Pairs (i, j), drawn independently in proportion to p_ij."""
        check_count("Plan.sample", count=count)
        problem = self.problem
        sums = problem.sums(self.at)
        a, b = problem.weights
        left, right = jax.random.split(key)
        mass = sums.rows * sums.kernel.rows(b * sums.columns)
        first = jax.random.categorical(left, logarithm(jnp.where(a > 0, mass, 0)), shape=(count,))
        g = self.potential
        logits = (
            (g - problem.geometry.some(first)) / problem.epsilon + self.remainder + logarithm(b)
        )
        second = jax.random.categorical(right, logits, axis=1)
        return (second, first) if problem.flipped else (first, second)

    def to_map(self) -> Callable[[Float[Array, " d"]], Float[Array, " d"]]:
        """The entropic map of a plan between points: x -> the mean of y given x, for any x.

        Pooladian and Niles-Weed (2021). One point, no batch axis.

        Raises:
            TypeError: the costs are not those of points.
        """
        from .points import Points

        geometry = self.problem.geometry
        if not isinstance(geometry, Points):
            raise TypeError(
                "Plan.to_map needs points: make the problem by EntropicTransport.from_points."
            )
        flipped = self.problem.flipped
        own, points = (geometry.y, geometry.x) if flipped else (geometry.x, geometry.y)
        weights = self.problem.weights[0 if flipped else 1]
        g = self.potentials[1]

        def along(x: Float[Array, " d"]) -> Float[Array, " d"]:
            x = check_point("Plan.to_map", "x", x, own)
            cost = jax.vmap(lambda y: geometry.between(*((y, x) if flipped else (x, y))))(points)
            exponent = (g - cost) / self.problem.epsilon
            share = jax.nn.softmax(exponent + logarithm(weights))
            return jnp.sum(share[:, None] * points, axis=0)

        return along

    def _apply(self, vector: Array) -> Array:
        sums = self.problem.sums(self.at)
        _, b = self.problem.weights
        return _scaled(sums.rows, sums.kernel.rows(_scaled(b * sums.columns, vector)))


def check_vector(method: str, shape: tuple[int, int], vector: Any, axis: int) -> Array:
    """A vector as an array; raises where a plan of that shape cannot be applied to it along an
    axis."""
    vector = check_array(method, "vector", vector)
    if axis not in (0, 1):
        raise ValueError(f"{method}: `axis` must be 0 or 1; got {axis}.")
    if vector.shape[:1] != (shape[axis],):
        raise ValueError(
            f"{method}: `vector` has shape {vector.shape}, but axis {axis} of the plan has length "
            f"{shape[axis]}."
        )
    return vector


def _scaled(weights: Array, vector: Array) -> Array:
    return weights.reshape(weights.shape + (1,) * (vector.ndim - 1)) * vector


def logarithm(weights: Array) -> Array:
    """The logarithm, -inf of 0, with a derivative that is finite."""
    return jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1)), -jnp.inf)
