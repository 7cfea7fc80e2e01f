"""Where a cost lives, and products with the kernels that are made of it.

Everything in this folder that reads a cost does so through one map: for a potential g of the
columns (those of no weight left out), and epsilon,

    base_i = min_j (c_ij - g_j),     K_ij = exp(-((c_ij - g_j) - base_i) / epsilon),

so that each row of K has a 1 in it and none an entry above that. What a geometry provides is
K'w(Kv), the rows' numbers w(.) in between; a dense one holds K, the others do not.
"""

import abc
from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from ..core.checks import check_array, check_real, show
from ..core.vectors import identity, matmul

Scalar = Float[Array, ""]
Rows = Float[Array, " n"]
Columns = Float[Array, " m"]
Weigh = Callable[..., Float[Array, "..."]]
"""(Kv of a row, base of a row, further numbers of the row) -> the row's weight."""


class AbstractKernel(eqx.Module):
    """K, for one potential and one epsilon."""

    base: Rows

    @abc.abstractmethod
    def rows(self, columns: Float[Array, "m ..."]) -> Float[Array, "n ..."]:
        """K v."""

    @abc.abstractmethod
    def columns(self, rows: Float[Array, "n ..."]) -> Float[Array, "m ..."]:
        """K' u."""

    def raised(self, shift: Scalar) -> Self:
        """K of g + shift: the same, with another base."""
        return eqx.tree_at(lambda k: k.base, self, self.base - shift)

    def scaled(self, rows: Rows, columns: Columns) -> Float[Array, "n m"]:
        """diag(u) K diag(v)."""
        return rows[:, None] * self.rows(jnp.diag(columns))

    def gram(self, rows: Rows) -> Float[Array, "m m"]:
        """K' diag(u) K."""
        every = self.rows(identity(self.columns(rows)))
        return self.columns(rows[:, None] * every)

    def through(self, columns: Columns, weigh: Weigh, *data: Rows) -> tuple[Rows, Columns]:
        """K v, and K' weigh(K v, base, *data)."""
        found = self.rows(columns)
        return found, self.columns(weigh(found, self.base, *data))


class AbstractGeometry(eqx.Module):
    """The costs c of a transport problem; its arrays are data to differentiate in."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]: ...

    @property
    @abc.abstractmethod
    def dtype(self) -> Any: ...

    @abc.abstractmethod
    def transposed(self) -> "AbstractGeometry":
        """The costs c'."""

    def checked(self) -> Self:
        """The geometry, its fields checked: raises `TypeError`, `ValueError` that name them."""
        return self

    @abc.abstractmethod
    def kernel(self, g: Columns, live: Bool[Array, " m"], epsilon: Scalar) -> AbstractKernel:
        """K, its base without a derivative (any base makes the same plan)."""

    @abc.abstractmethod
    def expected(
        self, kernel: AbstractKernel, g: Columns, rows: Rows, columns: Columns, epsilon: Scalar
    ) -> Scalar:
        """sum_ij u_i K_ij v_j c_ij."""

    @abc.abstractmethod
    def spread(self) -> Scalar:
        """The size of the differences of costs: where the scaling of epsilon begins."""

    @abc.abstractmethod
    def some(self, index: Array) -> Float[Array, "k m"]:
        """The costs of some rows."""

    def matrix(self) -> Float[Array, "n m"]:
        """All costs."""
        return self.some(jnp.arange(self.shape[0]))


class Dense(AbstractGeometry):
    """A matrix of costs; infinite ones forbid a pair."""

    costs: Float[Array, "n m"]

    @property
    def shape(self) -> tuple[int, int]:
        n, m = self.costs.shape
        return n, m

    @property
    def dtype(self) -> Any:
        return self.costs.dtype

    def transposed(self) -> "Dense":
        return Dense(self.costs.T)

    def checked(self) -> "Dense":
        costs = check_array("EntropicTransport", "cost", self.costs)
        if costs.ndim != 2 or costs.size == 0:
            raise ValueError(
                f"EntropicTransport: `cost` is {show(costs)}: it must have shape [any, any], with "
                "one entry or more."
            )
        check_real("EntropicTransport", "cost", costs.dtype)
        return Dense(costs)

    def kernel(self, g: Columns, live: Bool[Array, " m"], epsilon: Scalar) -> "DenseKernel":
        base, matrix = kernel_of(self.costs, g, live, epsilon)
        return DenseKernel(base, matrix)

    def expected(self, kernel, g, rows, columns, epsilon) -> Scalar:
        assert isinstance(kernel, DenseKernel)
        weighted = jnp.where(jnp.isfinite(self.costs), self.costs, 0) * kernel.matrix
        return jnp.sum(rows * matmul(weighted, columns))

    def spread(self) -> Scalar:
        finite = jnp.isfinite(self.costs)
        held = jnp.where(finite, self.costs, 0)
        mean = jnp.sum(held) / jnp.maximum(jnp.sum(finite, dtype=self.dtype), 1)
        return mean - jnp.min(jnp.where(finite, self.costs, mean))

    def some(self, index: Array) -> Float[Array, "k m"]:
        return self.costs[index]

    def matrix(self) -> Float[Array, "n m"]:
        return self.costs


class DenseKernel(AbstractKernel):
    """K as a matrix."""

    matrix: Float[Array, "n m"]

    def scaled(self, rows, columns):
        return rows[:, None] * self.matrix * columns

    def gram(self, rows):
        return matmul(self.matrix.T, rows[:, None] * self.matrix)

    def rows(self, columns):
        return matmul(self.matrix, columns)

    def columns(self, rows):
        return matmul(self.matrix.T, rows) if rows.ndim > 1 else matmul(rows, self.matrix)


def kernel_of(
    costs: Float[Array, "n m"], g: Columns, live: Bool[Array, " m"], epsilon: Scalar
) -> tuple[Rows, Float[Array, "n m"]]:
    """(base, K) of some rows."""
    excess = costs - g
    base = lax.stop_gradient(jnp.min(jnp.where(live, excess, jnp.inf), axis=1))
    base = jnp.where(jnp.isfinite(base), base, 0)
    # Infinite costs: an entry that is 0, with a derivative that is.
    allowed = jnp.isfinite(excess)
    exponent = jnp.where(allowed, excess - base[:, None], 0) / epsilon
    # The entries of columns without weight may be above 1, and must not overflow.
    limit = jnp.log(jnp.finfo(excess.dtype).max) / 2
    kernel = jnp.where(allowed, jnp.exp(-jnp.maximum(exponent, -limit)), 0)
    return base, kernel
