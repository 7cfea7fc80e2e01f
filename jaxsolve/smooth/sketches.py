"""Random matrices S with few rows that keep the lengths and angles of a subspace, on average.

    E[S'S] = I,    S in R^{m x n},    m rows of the sketch, n of what it is applied to

| sketch | S | S A of A in R^{n x d} costs | entry of x concentrates |
| --- | --- | --- | --- |
| `SRHT` | rows of a Hadamard matrix, the columns' signs random | n d log n | yes |
| `GaussianSketch` | independent normal entries | m n d | yes |
| `CountSketch` | one random sign a column, in a random row | n d | no |

The last column: whether each coordinate of the sketched least squares has the small error of
Song, Ye, Yin and Zhang (2023), who show that sparse sketches cannot have it.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

from ..core.vectors import matmul


class AbstractDrawn(eqx.Module):
    """A sketch that has been drawn."""

    @abc.abstractmethod
    def __call__(self, matrix: Float[Array, "n k"]) -> Float[Array, "m k"]:
        """S times a matrix."""


class AbstractSketch(eqx.Module):
    """A distribution of sketches.

    Attributes:
        rows: m, at least as many as there are variables; 4 to 16 times as many are usual.
    """

    rows: eqx.AbstractVar[int]

    @abc.abstractmethod
    def draw(self, key: Array, size: int, dtype: jnp.dtype) -> AbstractDrawn:
        """An S for matrices of `size` rows.

        Raises:
            ValueError: this kind of sketch has no so many rows for that size.
        """


class SRHT(AbstractSketch):
    """The subsampled randomised Hadamard transform: dense, but applied in n d log n operations.

    S = P H D / sqrt(m), where D holds random signs, H is the Hadamard matrix of order N, the power
    of two that is not below n (matrices are padded with zeros), and P takes m different rows.
    Ailon and Chazelle (2006); Tropp (2011).

    Args:
        rows: m, at most N.
    """

    rows: int

    def draw(self, key: Array, size: int, dtype: jnp.dtype) -> "_DrawnSRHT":
        order = 1 << max(size - 1, 0).bit_length()
        if self.rows > order:
            raise ValueError(
                f"SRHT: `rows` is {self.rows}, but {size} residuals are padded to {order}: a "
                "sketch has fewer rows than what it is applied to."
            )
        signs, places = jax.random.split(key)
        rows = jax.random.choice(places, order, (self.rows,), replace=False)
        return _DrawnSRHT(_signs(signs, size), rows.astype(jnp.int32), order)


class _DrawnSRHT(AbstractDrawn):
    signs: Int8[Array, " n"]
    rows: Int[Array, " m"]
    order: int = eqx.field(static=True)

    def __call__(self, matrix: Float[Array, "n k"]) -> Float[Array, "m k"]:
        turned = self.signs.astype(matrix.dtype)[:, None] * matrix
        padded = jnp.pad(turned, ((0, self.order - matrix.shape[0]), (0, 0)))
        return walsh_hadamard(padded)[self.rows] * self.rows.size**-0.5


class GaussianSketch(AbstractSketch):
    """Independent normal entries of variance 1/m: the best concentration, at the cost of a product.

    S is kept as a matrix.

    Args:
        rows: m.
    """

    rows: int

    def draw(self, key: Array, size: int, dtype: jnp.dtype) -> "_DrawnMatrix":
        return _DrawnMatrix(jax.random.normal(key, (self.rows, size), dtype) * self.rows**-0.5)


class _DrawnMatrix(AbstractDrawn):
    matrix: Float[Array, "m n"]

    def __call__(self, matrix: Float[Array, "n k"]) -> Float[Array, "m k"]:
        return matmul(self.matrix, matrix)


class CountSketch(AbstractSketch):
    """Each row of A is added, with a random sign, to one random row of S A: the cheapest.

    For preconditioning. An entry of A that stands out stays in one row, so that single coordinates
    of the sketched least squares may be far off. Charikar, Chen and Farach-Colton (2004); Clarkson
    and Woodruff (2013).

    Args:
        rows: m; the theory asks for d^2, 8 d are mostly enough.
    """

    rows: int

    def draw(self, key: Array, size: int, dtype: jnp.dtype) -> "_DrawnCountSketch":
        signs, places = jax.random.split(key)
        rows = jax.random.randint(places, (size,), 0, self.rows)
        return _DrawnCountSketch(_signs(signs, size), rows, self.rows)


class _DrawnCountSketch(AbstractDrawn):
    signs: Int8[Array, " n"]
    places: Int[Array, " n"]
    rows: int = eqx.field(static=True)

    def __call__(self, matrix: Float[Array, "n k"]) -> Float[Array, "m k"]:
        turned = self.signs.astype(matrix.dtype)[:, None] * matrix
        return jax.ops.segment_sum(turned, self.places, self.rows)


def walsh_hadamard(matrix: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """H times a matrix, H the Hadamard matrix (entries 1 and -1) of order n, a power of two."""
    size, columns = matrix.shape
    half = 1
    while half < size:
        pairs = matrix.reshape(-1, 2, half * columns)
        first, second = pairs[:, 0], pairs[:, 1]
        matrix = jnp.stack([first + second, first - second], axis=1)
        half *= 2
    return matrix.reshape(size, columns)


def _signs(key: Array, size: int) -> Int8[Array, " n"]:
    return 1 - 2 * (jax.random.bits(key, (size,), jnp.uint8) & 1).astype(jnp.int8)
