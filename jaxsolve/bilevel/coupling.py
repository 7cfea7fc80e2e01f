"""The rows of the coupling constraints h(x, y) = 0, g(x, y) <= 0 in units of their own.

Methods that move multipliers and variables at once need rows of about unit norm: their step is
bounded by the norm of the rows, which 200 ones have at 14. Affine rows are formed once: equalities
as an orthonormal basis of theirs (dependent rows fall away), inequalities row by row to unit norm
and then together to norm 1. Other rows are divided by the norms they have at the first point.

An inequality with an infinite side (g = -Inf) asks for nothing: it becomes -1 <= 0.

With h = M w - b, M = U S V' (a singular value decomposition) and rows V' w - S^-1 U' b, multipliers
u of these are U S^-1 u of h: those of least norm.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..core.vectors import largest, matmul, norm, positive, ravel
from ..smooth.forms import shaper
from .bilevel import Bilevel, LowerPoint, Pair

Vector = Float[Array, " n"]
Scalar = Float[Array, ""]

_POWER_STEPS = 20


class AbstractRows(eqx.Module):
    """c(x, y), equalities first, in units of its own.

    Attributes:
        equalities: how many of the rows must be 0; the others at most 0.
    """

    equalities: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, problem: Bilevel, x: PyTree[Array], y: PyTree[Array]) -> Vector: ...

    @abc.abstractmethod
    def restore(self, multiplier: Vector) -> tuple[Vector, Vector]:
        """The multipliers of h and g of those of these rows."""

    @abc.abstractmethod
    def scaled(self, values: Vector) -> Vector:
        """What h and g have in the units of these rows."""

    def violation(self, problem: Bilevel, primal: Pair) -> Scalar:
        """By how much the constraints fail at a point, in these units."""
        values = self.scaled(coupling_values(problem, primal))
        inequality = jnp.arange(values.size) >= self.equalities
        return largest(jnp.where(inequality, jnp.maximum(values, 0), values))

    def clip(self, multiplier: Vector, bound: float | Array) -> Vector:
        """On [-bound, bound], those of inequalities on [0, bound]."""
        signed = jnp.arange(multiplier.size) >= self.equalities
        least = jnp.where(signed, jnp.zeros_like(multiplier), -bound)
        return jnp.clip(multiplier, least, bound)

    def lower_point(self, problem: Bilevel, primal: Pair, multiplier: Vector) -> LowerPoint:
        """u = (y, mu, lam), the multipliers as h and g are shaped."""
        parts = []
        for fn, part in zip(_functions(problem), self.restore(multiplier), strict=True):
            like = jax.eval_shape(fn, *primal)
            parts.append(None if like is None else shaper(like)(part))
        return LowerPoint(primal[1], parts[0], parts[1])


class AffineRows(AbstractRows):
    """matrix w - offset with w = (x, y).

    Attributes:
        matrix: orthonormal rows of the equalities, 0 where they depend on others; then those of
            the inequalities.
        back: U S^-1 of the equalities.
        units: what the rows of the inequalities were divided by.
        conflict: by how much dependent equalities contradict each other.
    """

    matrix: Float[Array, "q n"]
    offset: Float[Array, " q"]
    back: Float[Array, "p e"]
    units: Float[Array, " k"]
    conflict: Scalar
    equalities: int = eqx.field(static=True)

    def __call__(self, problem: Bilevel, x: PyTree[Array], y: PyTree[Array]) -> Vector:
        return matmul(self.matrix, ravel((x, y))) - self.offset

    def scaled(self, values: Vector) -> Vector:
        equality = matmul(values[: self.back.shape[0]], self.back)
        return jnp.concatenate([equality, values[self.back.shape[0] :] / self.units])

    def violation(self, problem: Bilevel, primal: Pair) -> Scalar:
        return jnp.maximum(super().violation(problem, primal), self.conflict)

    def restore(self, multiplier: Vector) -> tuple[Vector, Vector]:
        first, second = multiplier[: self.equalities], multiplier[self.equalities :]
        return matmul(self.back, first), second / self.units


class SmoothRows(AbstractRows):
    """The rows of any functions, each divided by its unit."""

    units: Float[Array, " q"]
    equalities: int = eqx.field(static=True)

    def __call__(self, problem: Bilevel, x: PyTree[Array], y: PyTree[Array]) -> Vector:
        return self.scaled(coupling_values(problem, (x, y)))

    def scaled(self, values: Vector) -> Vector:
        idle = (jnp.arange(values.size) >= self.equalities) & (values == -jnp.inf)
        return jnp.where(idle, -1.0, values) / self.units

    def restore(self, multiplier: Vector) -> tuple[Vector, Vector]:
        own = multiplier / self.units
        return own[: self.equalities], own[self.equalities :]


class Basis(NamedTuple):
    """Rows of a system M w = b, orthonormal or 0; `back` is U S^-1, `conflict` what is left of b
    over the largest singular value."""

    rows: Float[Array, "e n"]
    offset: Float[Array, " e"]
    back: Float[Array, "p e"]
    conflict: Scalar


def orthonormal(matrix: Float[Array, "p n"], side: Float[Array, " p"]) -> Basis:
    """The system's rows as an orthonormal basis; one row costs O(n)."""
    if matrix.shape[0] == 1:
        values = norm(matrix[0])[None]
        left, right = jnp.ones_like(values)[:, None], matrix / positive(values)[:, None]
    else:
        left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    cut = max(matrix.shape) * jnp.finfo(matrix.dtype).eps * largest(values)
    keep = values > cut
    back = left * jnp.where(keep, 1 / jnp.where(keep, values, 1), 0)
    reached = matmul(left, jnp.where(keep, matmul(side, left), 0))
    conflict = largest(side - reached) / positive(largest(values))
    return Basis(jnp.where(keep[:, None], right, 0), matmul(side, back), back, conflict)


def affine_rows(problem: Bilevel, primal: Pair) -> AffineRows:
    """The rows of affine coupling constraints, formed at one point."""
    flat, unravel = ravel_pytree(primal)
    parts = []
    for fn in _functions(problem):

        def values(w: Vector, fn: Callable = fn) -> Vector:
            out = fn(*unravel(w))
            return w[:0] if out is None else ravel(out)

        matrix = jax.jacrev(values)(flat) if values(flat).size else flat[None][:0]
        parts.append((matrix, matmul(matrix, flat) - values(flat)))
    equality, inequality = parts
    if equality[0].shape[0]:
        basis = orthonormal(*equality)
    else:
        basis = Basis(equality[0], equality[1], equality[0][:, :0], jnp.zeros_like(flat[0]))
    rows, side = inequality
    idle = side == jnp.inf
    rows, side = jnp.where(idle[:, None], 0.0, rows), jnp.where(idle, 1.0, side)
    if not rows.shape[0]:
        units = side
    else:
        units = positive(jax.vmap(norm)(rows))
        scaled = rows / units[:, None]
        units = units * spectral_norm(
            lambda w: matmul(scaled, w), lambda u: matmul(u, scaled), flat
        )
    return AffineRows(
        matrix=jnp.concatenate([basis.rows, rows / units[:, None]]),
        offset=jnp.concatenate([basis.offset, side / units]),
        back=basis.back,
        units=units,
        conflict=basis.conflict,
        equalities=basis.rows.shape[0],
    )


def smooth_rows(problem: Bilevel, primal: Pair) -> SmoothRows:
    """The rows of any coupling constraints, in units of the norms that they have at a point."""
    flat, unravel = ravel_pytree(primal)
    rows = lambda w: coupling_values(problem, unravel(w))
    values, pullback = jax.vjp(rows, flat)

    def length(i: Array) -> Scalar:
        return norm(pullback(jnp.zeros_like(values).at[i].set(1))[0])

    # One row after another: all at once are the Jacobian.
    units = positive(jax.lax.map(length, jnp.arange(values.size)))
    push = lambda w: jax.jvp(rows, (flat,), (w,))[1] / units
    units = units * spectral_norm(push, lambda u: pullback(u / units)[0], flat)
    first = problem.equality(*primal)
    return SmoothRows(units=units, equalities=sum(x.size for x in jax.tree.leaves(first)))


def spectral_norm(
    product: Callable[[Vector], Vector], transpose: Callable[[Vector], Vector], like: Vector
) -> Scalar:
    """The norm of a matrix by power steps, from a fixed start; 1 of the zero matrix."""
    start = jnp.cos(jnp.arange(like.size, dtype=like.dtype)) + 0 * like

    def step(v: Vector, _: None) -> tuple[Vector, None]:
        moved = transpose(product(v))
        return moved / positive(norm(moved)), None

    v, _ = jax.lax.scan(step, start / norm(start), length=_POWER_STEPS)
    return positive(norm(product(v)))


def _functions(problem: Bilevel) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return problem.equality, problem.inequality


def coupling_values(problem: Bilevel, primal: Pair) -> Vector:
    """h and g as one vector."""
    return ravel([fn(*primal) for fn in _functions(problem)])
