"""The exponential cone, the closure of {(x, y, z) : y > 0, y exp(x / y) <= z}.

A point v = (r, s, t) outside the cone, its polar and the quadrant r <= 0, s <= 0 is the sum of its
projection and of a polar point,

    v = a (p, 1, e^p) + c (1, 1 - p, -e^-p),   a = ((p - 1) r + s) / w,   c = (r - p s) / w,

with w = p^2 - p + 1 and p the root, where a > 0 and c > 0, of the increasing function

    f(p) = a e^p - c e^-p - t.

Friberg (2021), who proves it. The root is found on a logarithm of f, which is nearly straight, by a
fixed number of Halley's steps.

K* = {z : Mz in K} for the symmetric M(u, v, w) = (u - v, -u, w), and f(x, y, z) = -log(y log(z / y)
- x) - log y - log z is a barrier of K. That of K*, F(z) = f(Mz), is taken: its conjugate's gradient
is one root more. With the shadows s~ = -F'(z) and z~ = -F*'(s), the scaling W^2 takes z to s and z~
to s~,

    W^2 = ss'/s'z + dd'/d'e + t aa',   d = s - mu s~,  e = z - mu z~,  a along z x z~,

and t is what makes it nearest to mu F''(z). Tuncel (2001), Dahl and Andersen (2022).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ...core.vectors import dot, identity, largest, matmul, norm
from .cone import AbstractBarrierCone, AbstractSpectrum, Spectral, first_zero

_STEPS = 6
_SWEEPS = 4
_CENTRE = (-1.051383943750229, 0.5564096186043385, 1.2589678864644602)
_RADIUS = 0.5
"""A ball of this radius around the centre is in the cone and its dual."""


class Eigen(AbstractSpectrum):
    """The derivative by its eigenvectors."""

    vectors: Float[Array, "3 3"]
    values: Float[Array, "3"]

    def apply(self, fn: Spectral, v: Float[Array, "3"]) -> Float[Array, "3"]:
        return matmul(self.vectors, fn(self.values) * matmul(v, self.vectors))

    def root(self, fn: Spectral, matrix: Float[Array, "3 n"]) -> Float[Array, "3 n"]:
        # Eigenvalues of 0 and 1 have roundings of either sign.
        values = jnp.maximum(fn(self.values), 0)
        return jnp.sqrt(values)[:, None] * matmul(self.vectors.T, matrix)


class Exponential(AbstractBarrierCone):
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
        found = eigen((matrix + matrix.T) / 2)
        return found.map(lambda d: jnp.clip(d, 0, 1))

    @property
    def degree(self) -> int:
        return 3

    def identity(self, like: Float[Array, "3"]) -> Float[Array, "3"]:
        return jnp.asarray(_CENTRE, like.dtype) + 0 * like

    def depth(self, v: Float[Array, "3"]) -> Float[Array, ""]:
        return -norm(v) / _RADIUS

    def scaling(self, s: Float[Array, "3"], z: Float[Array, "3"]) -> Eigen:
        eps, mu = jnp.finfo(s.dtype).eps, dot(s, z) / 3
        hessian = jax.vmap(_turned, 1, 1)(jax.vmap(_turned)(_hessian(_turned(z))))
        near, back = _shadow(z), _conjugate_shadow(s)
        apart = dot(near, back) / 3
        d, e = s - mu * near, z - mu * back
        bent = matmul(hessian, back) - apart * near
        left, right = dot(d, e), dot(back, matmul(hessian, back)) - 3 * apart**2
        rest = hessian - jnp.outer(near, near) / 3 - jnp.outer(bent, bent) / right
        axis = jnp.cross(z, back)
        axis = axis / norm(axis)
        secant = jnp.outer(s, s) / (3 * mu) + jnp.outer(d, d) / left
        secant = secant + mu * norm(rest.ravel()) * jnp.outer(axis, axis)
        # On the path the shadows are the points themselves, and leave the scaling open.
        off = (mu * apart - 1 > jnp.sqrt(eps)) & (right > eps * apart**2) & (left > 0)
        off = off & jnp.all(jnp.isfinite(secant))
        found = eigen(jnp.where(off, secant, mu * hessian))
        return found.map(lambda w: 1 / jnp.maximum(w, eps**2 * jnp.max(w)))

    def centre(self, scaling, s, z, ds, dz, level):
        # The third derivative of F along dz and (F'')^-1 ds.
        at, along = _turned(z), _turned(dz)
        bent = _solved(_hessian(at), jnp.stack([-ds[1], -ds[1] - ds[0], ds[2]]))
        third = _turned(matmul(jax.jvp(_hessian, (at,), (along,))[1], bent))
        third = jnp.where(jnp.all(jnp.isfinite(third)), third, 0)
        return scaling.apply(lambda w: w, level * _shadow(z) + third / 2) - z

    def reach(self, s, z, ds, dz):
        pairs = jnp.stack([s, _turned(z)]), jnp.stack([ds, _turned(dz)])
        return jnp.min(jax.vmap(_reach)(*pairs))


def _turned(z: Float[Array, "3"]) -> Float[Array, "3"]:
    """Mz: in K where z is in K*."""
    return jnp.stack([z[0] - z[1], -z[0], z[2]])


def _excess(v: Float[Array, "3"]) -> Float[Array, ""]:
    """y log(z / y) - x, concave."""
    return v[1] * jnp.log(v[2] / v[1]) - v[0]


def _normal(v: Float[Array, "3"]) -> Float[Array, "3"]:
    """The derivative of `_excess`."""
    return jnp.stack([-jnp.ones_like(v[0]), jnp.log(v[2] / v[1]) - 1, v[1] / v[2]])


def _hessian(v: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """f''(v)."""
    (_, y, z), excess, normal = v, _excess(v), _normal(v)
    none = jnp.zeros_like(y)
    curve = [[none, none, none], [none, 1 / y, -1 / z], [none, -1 / z, y / z**2]]
    own = jnp.diag(jnp.stack([none, 1 / y**2, 1 / z**2]))
    curve = jnp.stack([jnp.stack(row) for row in curve])
    return jnp.outer(normal, normal) / excess**2 + curve / excess + own


def _shadow(z: Float[Array, "3"]) -> Float[Array, "3"]:
    """-F'(z), z in K*."""
    v = _turned(z)
    own = jnp.stack([jnp.zeros_like(v[0]), 1 / v[1], 1 / v[2]])
    return _turned(_normal(v) / _excess(v) + own)


def _conjugate_shadow(s: Float[Array, "3"]) -> Float[Array, "3"]:
    """The z in K* with -F'(z) = s."""
    _, y, z = s
    # u + log(1 + u) = r, concave: Newton's steps go up to the root, four to rounding.
    r = _excess(s) / y
    u = r / 2
    for _ in range(4):
        u = u - (u + jnp.log1p(u) - r) * (1 + u) / (2 + u)
    first = -1 / (u * y)
    return jnp.stack(
        [first, first * (1 + jnp.log1p(u) + jnp.log(y / z)) + 1 / y, (1 + u) / (u * z)]
    )


def _solved(matrix: Float[Array, "3 3"], right: Float[Array, "3"]) -> Float[Array, "3"]:
    """By Cramer's rule."""
    a, b, c = matrix
    rows = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)])
    return matmul(right, rows) / dot(a, rows[0])


def _reach(v: Float[Array, "3"], d: Float[Array, "3"]) -> Float[Array, ""]:
    """The largest t <= 2, less one part in a thousand, with v + t d in K, v inside.

    Of a concave function a tangent's root from outside is outside, and a chord's is inside.
    """
    top = 0.999 * jnp.min(first_zero(v[1:], d[1:]))
    inside, high = _excess(v), top
    whole = _excess(v + top * d) >= 0
    for _ in range(9):
        at = v + high * d
        slope = dot(_normal(at), d)
        nearer = high - _excess(at) / jnp.where(slope < 0, slope, -jnp.inf)
        high = jnp.clip(nearer, 0, high)
    near = 0.999 * high
    over = -jnp.minimum(_excess(v + near * d), 0)
    return jnp.where(whole, top, jnp.where(over > 0, near * inside / (inside + over), near))


def eigen(matrix: Float[Array, "3 3"]) -> Eigen:
    """Of a symmetric matrix by Jacobi's rotations, each entry to its own precision."""

    def rotation(carry, p, q):
        (a, vectors), r = carry, 3 - p - q
        none = a[p, q] == 0
        ratio = (a[q, q] - a[p, p]) / jnp.where(none, 1, 2 * a[p, q])
        t = jnp.where(ratio < 0, -1, 1) / (jnp.abs(ratio) + jnp.sqrt(1 + ratio**2))
        t = jnp.where(none, 0, t)
        c = 1 / jnp.sqrt(1 + t * t)
        s = t * c
        first, second = c * a[r, p] - s * a[r, q], s * a[r, p] + c * a[r, q]
        new = {(p, p): a[p, p] - t * a[p, q], (q, q): a[q, q] + t * a[p, q], (r, r): a[r, r]}
        new |= {(p, q): 0 * t, (r, p): first, (r, q): second}
        new |= {(j, i): x for (i, j), x in new.items()}
        matrix = jnp.stack([jnp.stack([new[i, j] for j in range(3)]) for i in range(3)])
        columns = {p: c * vectors[:, p] - s * vectors[:, q], r: vectors[:, r]}
        columns[q] = s * vectors[:, p] + c * vectors[:, q]
        return matrix, jnp.stack([columns[i] for i in range(3)], axis=1)

    def sweep(carry, _):
        for p, q in ((0, 1), (0, 2), (1, 2)):
            carry = rotation(carry, p, q)
        return carry, None

    (found, vectors), _ = lax.scan(sweep, (matrix, identity(matrix[0])), length=_SWEEPS)
    return Eigen(vectors, jnp.diagonal(found))


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
    """The root of f: Halley's steps on a logarithm between its ends, then one of Newton on f."""
    r, s, t = v[0], v[1], v[2]
    far = _far(v)
    one = jnp.ones_like(r)
    first, last = 1 - s / jnp.where(r != 0, r, 1), r / jnp.where(s != 0, s, 1)
    low = jnp.where(r > 0, first, -far)
    low = jnp.where(s < 0, jnp.maximum(low, last), low)
    high = jnp.where(r < 0, first, far)
    high = jnp.where(s > 0, jnp.minimum(high, last), high)
    low, high = jnp.clip(low, -far, far), jnp.clip(high, -far, far)
    # Where t < 0, p is 1 - p and r is s: then f is of the same form, with e|t| for t and e^2 c.
    above = t >= 0
    left, right = jnp.where(above, r, s), jnp.where(above, s, r)
    first, last = jnp.where(above, low, 1 - high), jnp.where(above, high, 1 - low)
    side, factor = jnp.where(above, t, -np.e * t), jnp.where(above, one, np.e**2 * one)
    tiny = jnp.finfo(v.dtype).tiny ** 0.5

    def step(p, _):
        # log(a e^p) - log(t + c e^-p), which is nearly straight.
        a = jnp.maximum((p - 1) * left + right, tiny)
        down = factor * jnp.exp(-p)
        total = side * (p * p - p + 1) + jnp.maximum(left - p * right, 0) * down
        total = jnp.maximum(total, tiny)
        turn = (side * (2 * p - 1) - (right + left - p * right) * down) / total
        bend = (2 * side + (2 * right + left - p * right) * down) / total
        slope = left / a + 1 - turn
        slope = jnp.where(slope > 0, slope, one)
        newton = -(jnp.log(a / total) + p) / slope
        curve = turn**2 - bend - (left / a) ** 2
        new = p + newton / jnp.clip(1 + newton * curve / (2 * slope), 0.2, 5)
        # Beyond an end, most of the way to it: one may be singular, the root close to the other.
        new = jnp.where(new < first, p + 0.98 * (first - p), new)
        return jnp.where(new > last, p + 0.98 * (last - p), new), None

    start = (
        jnp.maximum(first, jnp.minimum(-3, last - 3)) + jnp.minimum(last, jnp.maximum(3, first + 3))
    ) / 2
    p, _ = lax.scan(step, start, length=_STEPS)
    p = jnp.where(above, p, 1 - p)
    value, slope = jax.value_and_grad(_function)(p, v)
    return jnp.clip(p - value / jnp.where(slope > 0, slope, one), low, high)


@_root.defjvp
def _root_rule(primals, tangents):
    v = primals[0]
    p = _root(v)
    slope, pull = jax.grad(_function, argnums=(0, 1))(p, v)
    return p, -jnp.sum(pull * tangents[0]) / jnp.where(slope > 0, slope, jnp.ones_like(slope))
