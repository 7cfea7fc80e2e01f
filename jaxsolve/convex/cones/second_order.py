"""The second-order (Lorentz, ice-cream) cone {(t, x) : |x| <= t}.

With u = x / |x|, v = (t, x) has the spectral values t + |x| and t - |x| on the frame (1, u)/2 and
(1, -u)/2, and the projection takes the positive parts of the two. Its derivative has eigenvalues

    [t + |x| > 0] on (1, u),   [t - |x| > 0] on (1, -u),   their divided difference on the rest.

Fukushima, Luo and Tseng (2002).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core.vectors import dot, norm
from .cone import AbstractSlope, AbstractVectors, Spectral, divided_difference, heaviside


class Frame(AbstractSlope):
    """The derivative on the frame.

    Attributes:
        u: x / |x|, 0 where x is 0: all three values are then one.
        values: on (1, u), on (1, -u), on the rest.
    """

    u: Float[Array, " rows-1"]
    values: Float[Array, "3"]

    def apply(self, fn: Spectral, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        above, below, rest = fn(self.values)
        along = dot(self.u, v[1:])
        first, second = (v[0] + along) / 2, (v[0] - along) / 2
        high, low = (above - rest) * first, (below - rest) * second
        head = jnp.expand_dims(rest * v[0] + high + low, 0)
        return jnp.concatenate([head, rest * v[1:] + (high - low) * self.u])


class SecondOrder(AbstractVectors):
    """{(t, x) : |x| <= t}, its own dual; t is the first row.

    Args:
        n: rows, x being of size n - 1.
    """

    def __check_init__(self):
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

    def slope(self, v: Float[Array, " rows"]) -> Frame:
        length = norm(v[1:])
        none = length == 0
        u = v[1:] / jnp.where(none, 1, length)
        high, low = v[0] + length, v[0] - length
        values = [heaviside(high), heaviside(low), divided_difference(high, low)]
        return Frame(u, jnp.stack(values))
