"""The exponential cone, the closure of {(x, y, z) : y > 0, y exp(x / y) <= z}.

A point v = (r, s, t) outside the cone, its polar and the quadrant r <= 0, s <= 0 is the sum of its
projection and of a polar point,

    v = a (p, 1, e^p) + c (1, 1 - p, -e^-p),   a = ((p - 1) r + s) / w,   c = (r - p s) / w,

with w = p^2 - p + 1 and p the root, where a > 0 and c > 0, of the increasing function

    f(p) = a e^p - c e^-p - t.

Friberg (2021), who proves it. The root is bracketed on a logarithm of f, which is nearly straight,
by Newton's steps and halvings, a fixed number of each.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ...core.vectors import largest, matmul
from .cone import AbstractCone, AbstractSpectrum, Spectral

_STEPS = 20


class Eigen(AbstractSpectrum):
    """The derivative by its eigenvectors."""

    vectors: Float[Array, "3 3"]
    values: Float[Array, "3"]

    def apply(self, fn: Spectral, v: Float[Array, "3"]) -> Float[Array, "3"]:
        return matmul(self.vectors, fn(self.values) * matmul(v, self.vectors))


class Exponential(AbstractCone):
    """{(x, y, z) : y exp(x / y) <= z, y > 0} and its closure {x <= 0, y = 0, z >= 0}.

    The order of SCS and Clarabel. Its dual is the closure of {(u, v, w) : u < 0, -u exp(v / u - 1)
    <= w}.
    """

    @property
    def rows(self) -> int:
        return 3

    def project(self, v: Float[Array, "3"]) -> Float[Array, "3"]:
        r, s, t = v[0], v[1], v[2]
        inside, polar, flat = _regions(v)
        apart = ~(inside | polar | flat)
        # The root is asked of a harmless point where there is none.
        safe = jnp.where(apart, v, jnp.asarray([1.0, 0.0, 0.0], v.dtype))
        size = lax.stop_gradient(largest(safe))
        safe = safe / size
        p = _root(safe)
        w = p * p - p + 1
        # Rounding of a is multiplied by e^p, that of c by e^-p: each where it is made smaller.
        direct = ((p - 1) * safe[0] + safe[1]) / w
        high = jnp.maximum(safe[2] + (safe[0] - p * safe[1]) / w * jnp.exp(-p), 0)
        a = jnp.where(p > 0, high * jnp.exp(-p), direct)
        found = size * jnp.stack([a * p, a, jnp.where(p > 0, high, direct * jnp.exp(p))])
        # Where e^p is nought to any precision, the cone is the quadrant x <= 0, y >= 0, z >= 0.
        far = _far(v)
        steep = apart & (safe[1] >= 0) & (safe[0] < -far * safe[1])
        found = jnp.where(steep, jnp.stack([r, s, jnp.maximum(t, 0)]), found)
        corner = jnp.stack([jnp.minimum(r, 0), jnp.zeros_like(s), jnp.maximum(t, 0)])
        out = jnp.where(flat, corner, found)
        return jnp.where(inside, v, jnp.where(polar, 0, out))

    def slope(self, v: Float[Array, "3"]) -> Eigen:
        matrix = jax.jacfwd(self.project)(v)
        values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
        return Eigen(vectors, jnp.clip(values, 0, 1))


def _regions(v: Float[Array, "3"]) -> tuple[Array, Array, Array]:
    """Whether v lies in the cone, in its polar, in the quadrant where both are flat."""
    r, s, t = v[0], v[1], v[2]
    tiny = jnp.finfo(v.dtype).tiny
    positive, negative = s > 0, r > 0
    x = r / jnp.where(positive, s, 1)
    inside = (
        positive & (t > 0) & (jnp.log(jnp.maximum(s, tiny)) + x <= jnp.log(jnp.maximum(t, tiny)))
    )
    inside = inside | ((r <= 0) & (s == 0) & (t >= 0))
    # -v in the dual: r > 0 and r exp(s/r - 1) <= -t.
    y = s / jnp.where(negative, r, 1)
    polar = negative & (t < 0)
    polar = polar & (jnp.log(jnp.maximum(r, tiny)) + y - 1 <= jnp.log(jnp.maximum(-t, tiny)))
    polar = polar | ((r == 0) & (s <= 0) & (t <= 0))
    return inside, polar, (r <= 0) & (s <= 0)


def _far(v: Float[Array, "3"]) -> float:
    """Beyond this p, e^p and e^-p are nought or infinite beside each other."""
    return 0.45 * float(np.log(np.finfo(v.dtype).max))


def _function(p: Float[Array, ""], v: Float[Array, "3"]) -> Float[Array, ""]:
    r, s, t = v[0], v[1], v[2]
    w = p * p - p + 1
    return ((p - 1) * r + s) / w * jnp.exp(p) - (r - p * s) / w * jnp.exp(-p) - t


@jax.custom_jvp
def _root(v: Float[Array, "3"]) -> Float[Array, ""]:
    """The root of f: bracketed on a logarithm, then once Newton on f itself."""
    r, s, t = v[0], v[1], v[2]
    far = _far(v)
    one = jnp.ones_like(r)
    first, last = 1 - s / jnp.where(r != 0, r, 1), r / jnp.where(s != 0, s, 1)
    low = jnp.where(r > 0, first, -far)
    low = jnp.where(s < 0, jnp.maximum(low, last), low)
    high = jnp.where(r < 0, first, far)
    high = jnp.where(s > 0, jnp.minimum(high, last), high)
    low, high = jnp.clip(low, -far, far), jnp.clip(high, -far, far)
    # log(a e^p) = log(t + c e^-p) where t >= 0, log(c e^-p) = log(a e^p - t) else.
    above = t >= 0

    def straight(p):
        w = p * p - p + 1
        a, c = jnp.maximum((p - 1) * r + s, 0) / w, jnp.maximum(r - p * s, 0) / w
        up, down = a * jnp.exp(p), c * jnp.exp(-p)
        tiny = jnp.finfo(v.dtype).tiny
        left, right = jnp.where(above, up, up - t), jnp.where(above, t + down, down)
        value = jnp.log(jnp.maximum(left, tiny)) - jnp.log(jnp.maximum(right, tiny))
        turn = (2 * p - 1) / w
        da, dc = r / w - a * turn, -s / w - c * turn
        dup, ddown = (da + a) * jnp.exp(p), (dc - c) * jnp.exp(-p)
        slope = dup / jnp.maximum(left, tiny) - ddown / jnp.maximum(right, tiny)
        return value, slope

    eps = jnp.finfo(v.dtype).eps

    def step(carry, _):
        low, high, p, width = carry
        value, slope = straight(p)
        low, high = jnp.where(value > 0, low, p), jnp.where(value > 0, p, high)
        newton = p - value / jnp.where(slope > 0, slope, one)
        # At the root steps are rounding, which no more shrinks: half of a one-sided bracket is far.
        moved = jnp.abs(newton - p)
        shrinks = (moved < width / 2) | (moved <= 8 * eps * (1 + jnp.abs(p)))
        fits = (slope > 0) & (newton >= low) & (newton <= high) & shrinks
        new = jnp.where(fits, newton, (low + high) / 2)
        return (low, high, new, jnp.where(fits, jnp.abs(newton - p), high - low)), None

    left = jnp.maximum(low, jnp.minimum(-3, high - 3))
    near = (left + jnp.minimum(high, jnp.maximum(3, low + 3))) / 2
    (low, high, p, _), _ = lax.scan(step, (low, high, near, 4 * far * one), length=_STEPS)
    value, slope = jax.value_and_grad(_function)(p, v)
    return jnp.clip(p - value / jnp.where(slope > 0, slope, one), low, high)


@_root.defjvp
def _root_rule(primals, tangents):
    v = primals[0]
    p = _root(v)
    slope, pull = jax.grad(_function, argnums=(0, 1))(p, v)
    return p, -jnp.sum(pull * tangents[0]) / jnp.where(slope > 0, slope, jnp.ones_like(slope))
