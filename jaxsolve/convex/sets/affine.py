"""The solutions of linear equations.

With W the pseudo-inverse of A, of rows scaled to size 1,

    P(p) = p - W (A p - b),

for rows of any rank. Where a change of A makes dependent rows contradict each other, no derivative
exists; the one that is given holds the rank (Golub and Pereyra, 1973), and is the solution of least
norm of the linearised conditions.
"""

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...core.vectors import largest, matmul, positive
from ..certificates import separation
from .base import AbstractClosedForm, shaped, vector


class _Rows(NamedTuple):
    """The equations, each divided by the largest entry of its row, and the pseudo-inverse."""

    matrix: Float[Array, "p n"]
    side: Float[Array, " p"]
    inverse: Float[Array, "n p"]

    def excess(self, at: Float[Array, " n"]) -> Float[Array, " p"]:
        return matmul(self.matrix, at) - self.side

    def nearest(self, at: Float[Array, " n"]) -> Float[Array, " n"]:
        return at - matmul(self.inverse, self.excess(at))


class Affine(AbstractClosedForm):
    """{x : Ax = b}. Rows may depend on each other; where they contradict, the set is empty.

    One singular value decomposition of A, shared by all points of a batch where A is.

    Example:
        ```python
        plane = sets.Affine(jnp.array([[1.0, 1.0, 1.0]]), jnp.array([1.0]))
        plane.project(jnp.zeros(3))  # a third each
        ```

    Args:
        A, b: the equations.
    """

    A: Float[Array, "p n"]
    b: Float[Array, " p"]

    def fit(self, point: Array) -> Self:
        vector("Affine", point)
        A = shaped("Affine", "A", self.A, (None, point.size), point)
        return type(self)(A, shaped("Affine", "b", self.b, (A.shape[0],), point))

    def find(self, point: Array) -> Array:
        return self.face(point, point)

    def face(self, point: Array, at: Array) -> Array:
        if not self.b.size:
            return point
        rows = self._rows()
        near = rows.nearest(point)
        # Of the rounding in W much is gone after a second time, which has no derivative.
        return near + jax.lax.stop_gradient(rows.nearest(near) - near)

    def violation(self, at: Array) -> Float[Array, ""]:
        """Of rows whose largest entry is 1."""
        return largest((matmul(self.A, at) - self.b) / self._units())

    def normality(self, point: Array, at: Array) -> Float[Array, ""]:
        if not self.b.size:
            return largest(point - at)
        rows, pull = self._rows(), point - at
        return largest(pull - matmul(matmul(pull, rows.inverse), rows.matrix))

    def empty(self) -> Bool[Array, ""]:
        """Whether what b lacks of the range of A is more than the root of the rounding, and a
        certificate: r with A'r = 0, b'r > 0."""
        if not self.b.size:
            return jnp.array(False)
        rows = self._rows()
        lack = -rows.excess(rows.nearest(0 * self.A[0]))
        lack = lack - matmul(rows.matrix, matmul(rows.inverse, lack))
        size = largest(rows.side)
        seen = largest(lack) > jnp.finfo(lack.dtype).eps ** 0.5 * jnp.maximum(size, 1)
        proved = separation(-lack * rows.side, size * largest(matmul(lack, rows.matrix)))
        return (seen & proved) | jnp.any(jnp.isinf(self.b))

    def size(self) -> Float[Array, ""]:
        return largest(self.b / self._units())

    def constraints(self, point: Array) -> dict[str, Array]:
        return {"A": self.A, "b": self.b}

    def _units(self) -> Float[Array, " p"]:
        # Projection and derivative are the same for any: they need none of their own.
        return positive(jax.lax.stop_gradient(jnp.max(jnp.abs(self.A), axis=1)))

    def _rows(self) -> _Rows:
        units = self._units()
        matrix = self.A / units[:, None]
        return _Rows(matrix, self.b / units, jnp.linalg.pinv(matrix))
