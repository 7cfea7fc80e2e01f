"""The second-order (Lorentz, ice-cream) cone {(t, x) : |x| <= t}.

With u = x / |x|, v = (t, x) has the spectral values t + |x| and t - |x| on the frame (1, u)/2 and
(1, -u)/2, and the projection takes the positive parts of the two. Its derivative has eigenvalues

    [t + |x| > 0] on (1, u),   [t - |x| > 0] on (1, -u),   their divided difference on the rest.

Fukushima, Luo and Tseng (2002). With J = diag(1, -1, ..., -1), s^ = s / (s'Js)^1/2 and likewise
z^, the scaling W of s and z is

    W^2 = a^2 (2 ww' - J),   w = (s^ + J z^) / (2 + 2 s^'z^)^1/2,   a^4 = s'Js / z'Jz,

which has the same frame, with u of w: a^2 (w_0 + |w_1|)^2 on (1, u), a^2 (w_0 - |w_1|)^2 on
(1, -u), a^2 on the rest, and (w_0 + |w_1|) (w_0 - |w_1|) = 1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core.vectors import dot, matmul, norm
from .cone import (
    AbstractSpectrum,
    AbstractSymmetricCone,
    AbstractVectors,
    Spectral,
    check_order,
    divided_difference,
    first_zero,
    heaviside,
)


class Frame(AbstractSpectrum):
    """An operator on the frame.

    Attributes:
        u: x / |x|, 0 where x is 0: all three values are then one.
        values: on (1, u), on (1, -u), on the rest.
    """

    u: Float[Array, " rows-1"]
    values: Float[Array, "3"]

    def apply(self, fn: Spectral, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        values, along = fn(self.values), dot(self.u, v[1:])
        return self._apply(values, jnp.expand_dims(along, 0), v[:, None])[:, 0]

    def root(self, fn: Spectral, matrix: Float[Array, "rows n"]) -> Float[Array, "rows n"]:
        return self._apply(jnp.sqrt(fn(self.values)), matmul(self.u, matrix[1:]), matrix)

    def _apply(
        self, values: Float[Array, "3"], along: Float[Array, " n"], matrix: Float[Array, "rows n"]
    ) -> Float[Array, "rows n"]:
        """Of each column, `along` being the part of its x along u."""
        above, below, rest = values
        first, second = (matrix[0] + along) / 2, (matrix[0] - along) / 2
        high, low = (above - rest) * first, (below - rest) * second
        head = rest * matrix[0] + high + low
        return jnp.concatenate([head[None], rest * matrix[1:] + self.u[:, None] * (high - low)])


class SecondOrder(AbstractVectors, AbstractSymmetricCone):
    """{(t, x) : |x| <= t}, its own dual; t is the first row.

    Args:
        n: rows, x being of size n - 1.
    """

    def __check_init__(self):
        check_order(self, self.n)
        if self.n < 1:
            raise ValueError(f"SecondOrder: `n` counts t as well and is at least 1; got {self.n}.")

    def project(self, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        @jax.custom_jvp
        def project(v):
            length = norm(v[1:])
            inside, polar = length <= v[0], length <= -v[0]
            safe = jnp.where(length > 0, length, 1)
            half = (v[0] + length) / 2
            rest = jnp.concatenate([jnp.expand_dims(half, 0), v[1:] * (half / safe)])
            return jnp.where(inside, v, jnp.where(polar, 0, rest))

        @project.defjvp
        def rule(primals, tangents):
            return project(*primals), self.slope(*primals).apply(lambda x: x, *tangents)

        return project(v)

    def level(self, v: Float[Array, " rows"]) -> Float[Array, "1"]:
        """|x| - t."""
        return jnp.expand_dims(norm(v[1:]) - v[0], 0)

    def slope(self, v: Float[Array, " rows"]) -> Frame:
        length = norm(v[1:])
        none = length == 0
        u = v[1:] / jnp.where(none, 1, length)
        high, low = v[0] + length, v[0] - length
        values = [heaviside(high), heaviside(low), divided_difference(high, low)]
        return Frame(u, jnp.stack(values))

    @property
    def degree(self) -> int:
        return 1

    def identity(self, like: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return jnp.zeros_like(like).at[0].set(1)

    def depth(self, v: Float[Array, " rows"]) -> Float[Array, ""]:
        return v[0] - norm(v[1:])

    def scaling(self, s: Float[Array, " rows"], z: Float[Array, " rows"]) -> Frame:
        ends = [(v[0] + norm(v[1:]), v[0] - norm(v[1:])) for v in (s, z)]
        (s_det, z_det) = (high * low for high, low in ends)
        s, z = s / jnp.sqrt(s_det), z / jnp.sqrt(z_det)
        w = s.at[0].add(z[0]).at[1:].add(-z[1:]) / jnp.sqrt(2 + 2 * dot(s, z))
        length = norm(w[1:])
        high, size = (w[0] + length) ** 2, jnp.sqrt(z_det / s_det)
        u = w[1:] / jnp.where(length > 0, length, 1)
        return Frame(u, size * jnp.stack([1 / high, high, jnp.ones_like(high)]))

    def product(self, u: Float[Array, " rows"], v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        return (u[0] * v + v[0] * u).at[0].set(dot(u, v))

    def quotient(self, u: Float[Array, " rows"], d: Float[Array, " rows"]) -> Float[Array, " rows"]:
        length = norm(u[1:])
        head = (u[0] * d[0] - dot(u[1:], d[1:])) / ((u[0] - length) * (u[0] + length))
        return ((d - head * u) / u[0]).at[0].set(head)

    def along(self, v: Float[Array, " rows"], d: Float[Array, " rows"]) -> Float[Array, ""]:
        # The first root of |v + t d|_J^2 = c + 2 b t + a t^2, c > 0.
        length = norm(v[1:])
        a = (d[0] - norm(d[1:])) * (d[0] + norm(d[1:]))
        b, c = v[0] * d[0] - dot(v[1:], d[1:]), (v[0] - length) * (v[0] + length)
        square = b * b - a * c
        meets = (square >= 0) & ((a < 0) | (b < 0))
        bottom = jnp.sqrt(jnp.where(meets, square, 1)) - b
        t = jnp.where(meets & (bottom > 0), c / jnp.where(bottom > 0, bottom, 1), 2)
        return jnp.minimum(jnp.minimum(t, 2), first_zero(v[0], d[0]))
