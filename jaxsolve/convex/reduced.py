"""A quadratic program on the null space of its equalities.

With A = [L, 0] Q' and Q = [range, basis], every x with Ax = b is x = start + basis v, and the program is

    minimise  v'Hv/2 + g'v   subject to   Kv <= e,

K the rows of G and of the bounds. That is one orthogonal factorisation a solve, and then Cholesky
factors of size n - p only: 2 to 4 times less work than a Schur complement.

All inequalities stand in one vector of m rows: G, then lower, then upper. Lanes may trail.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core.solution import Dual
from .small import (
    add_diagonal,
    diagonal,
    gram,
    largest,
    orthogonal,
    product,
    solve_lower,
    solve_lower_transposed,
    times,
    transpose,
    transpose_times,
)


class Reduced(eqx.Module):
    """The reduced program.

    Attributes:
        rotation, triangle: Q and L; `None` without equalities.
        start: the particular solution of Ax = b.
        hessian, gradient: H and g.
        rows: G basis.
        limit: e; 0 where a row is absent.
        present: rows with a finite limit. fixed: rows that are equalities (lower = upper).
        dependent: whether rows of A depend on each other, so that the reduction loses solutions.
        penalty: the weight of an active row: large, relative to the curvature and the row's norm.
        curvature: the largest diagonal entry of H, 1 for a linear program.
        dual_scale, primal_scale: sizes of the data.
    """

    rotation: Float[Array, "n n"] | None
    triangle: Float[Array, "p p"] | None
    start: Float[Array, " n"] | None
    hessian: Float[Array, "k k"]
    gradient: Float[Array, " k"]
    rows: Float[Array, "r k"] | None
    limit: Float[Array, " m"]
    present: Bool[Array, " m"]
    fixed: Bool[Array, " m"]
    dependent: Bool[Array, ""]
    penalty: Float[Array, " m"]
    curvature: Float[Array, ""]
    dual_scale: Float[Array, ""]
    primal_scale: Float[Array, ""]
    bounds: tuple[bool, bool] = eqx.field(static=True)

    @property
    def basis(self) -> Float[Array, "n k"] | None:
        """Columns that span the null space; `None` is the identity."""
        return None if self.rotation is None else self.rotation[:, self.triangle.shape[0] :]

    @property
    def range(self) -> Float[Array, "n p"]:
        """Columns that span the range of A'."""
        return self.rotation[:, : self.triangle.shape[0]]

    def lift(self, v: Float[Array, " k"]) -> Float[Array, " n"]:
        """basis v."""
        return v if self.rotation is None else times(self.basis, v)

    def restrict(self, x: Float[Array, " n"]) -> Float[Array, " k"]:
        """basis'x."""
        return x if self.rotation is None else transpose_times(self.basis, x)

    def constraints(self, v: Float[Array, " k"]) -> Float[Array, " m"]:
        """Kv."""
        parts = [] if self.rows is None else [times(self.rows, v)]
        if any(self.bounds):
            x = self.lift(v)
            parts += [sign * x for sign, has in zip((-1, 1), self.bounds, strict=True) if has]
        return jnp.concatenate(parts) if parts else v[:0]

    def transposed(self, z: Float[Array, " m"]) -> Float[Array, " k"]:
        """K'z."""
        rows, bound = self.split(z)
        out = jnp.zeros_like(self.gradient)
        if rows is not None:
            out = out + transpose_times(self.rows, rows)
        if bound is not None:
            out = out + self.restrict(bound)
        return out

    def split(self, z: Float[Array, " m"], lower_sign: int = -1) -> tuple[Any, Any]:
        """The part of G, and the bounds' parts added up in x (None where absent)."""
        count = 0 if self.rows is None else self.rows.shape[0]
        rows = None if self.rows is None else z[:count]
        if not any(self.bounds):
            return rows, None
        n = z[count:].shape[0] // sum(self.bounds)
        bound, at = None, count
        for sign, has in zip((lower_sign, 1), self.bounds, strict=True):
            if has:
                part = sign * z[at : at + n]
                bound = part if bound is None else bound + part
                at += n
        return rows, bound

    def normal(self, weight: Float[Array, " m"], shift: Float[Array, ""]) -> Float[Array, "k k"]:
        """H + shift + K' diag(weight) K."""
        rows, bound = self.split(weight, 1)
        out = add_diagonal(self.hessian, shift + jnp.zeros_like(self.gradient))
        if rows is not None:
            out = out + gram(self.rows, rows)
        if bound is not None:
            out = add_diagonal(out, bound) if self.rotation is None else out + gram(self.basis, bound)
        return out

    def particular(self, b: Float[Array, " p"]) -> Float[Array, " n"]:
        """The x in the range of A' with Ax = b."""
        return times(self.range, solve_lower(self.triangle, b))

    def equality_dual(self, gradient: Float[Array, " n"]) -> Float[Array, " p"]:
        """The y for which A'y + gradient has no part in the range of A'."""
        return -solve_lower_transposed(self.triangle, transpose_times(self.range, gradient))

    def dual(self, y: Float[Array, " p"] | None, z: Float[Array, " m"]) -> Dual:
        """Multipliers by field; a fixed variable's free multiplier is split by sign."""
        count = 0 if self.rows is None else self.rows.shape[0]
        parts: list[Array | None] = [None, None]
        if any(self.bounds):
            n = z[count:].shape[0] // sum(self.bounds)
            parts, at = [], count
            for has in self.bounds:
                parts.append(z[at : at + n] if has else None)
                at += n if has else 0
            if all(self.bounds):
                free = self.fixed[count : count + n]
                lower, upper = parts
                parts = [
                    jnp.where(free, jnp.maximum(lower, 0), lower),
                    jnp.where(free, jnp.maximum(-lower, 0), upper),
                ]
        return Dual(y, None if self.rows is None else z[:count], *parts)

    def gather(self, dual: Dual) -> Float[Array, " m"]:
        """The inequalities' multipliers as one vector; the inverse of `dual`."""
        parts = [x for x in (dual.inequality, dual.lower, dual.upper) if x is not None]
        if not parts:
            return self.limit
        z = jnp.concatenate(parts)
        if all(self.bounds):
            n = dual.lower.shape[0]
            upper = jnp.concatenate([jnp.zeros_like(z[: z.shape[0] - n]), dual.upper])
            shifted = jnp.concatenate([upper[n:], upper[:n]])
            z = jnp.where(self.fixed, z - shifted, z)
        return z


def reduce(problem: Any) -> Reduced:
    """The reduced program of a `QuadraticProgram` whose P is symmetric."""
    P, q, A, b, G, h = problem.P, problem.q, problem.A, problem.b, problem.G, problem.h
    n = P.shape[0]
    limits, fixed = [], []
    if G is not None:
        limits.append(h)
        fixed.append(jnp.zeros_like(h, dtype=bool))
    for value, other, sign in (
        (problem.lower, problem.upper, -1),
        (problem.upper, problem.lower, 1),
    ):
        if value is not None:
            limits.append(sign * value)
            fixed.append(jnp.zeros_like(value, dtype=bool) if other is None else value == other)
    if fixed and problem.lower is not None and problem.upper is not None:
        # A fixed variable is one equality: it stands in the rows of `lower`.
        limits[-1] = jnp.where(fixed[-1], jnp.inf, limits[-1])
        fixed[-1] = jnp.zeros_like(fixed[-1])
    limit = jnp.concatenate(limits) if limits else q[:0]
    present = jnp.isfinite(limit)
    limit = jnp.where(present, limit, 0)
    fixed_rows = jnp.concatenate(fixed) & present if fixed else present

    rotation = triangle = start = None
    hessian, gradient, rows = P, q, G
    dependent = jnp.zeros_like(q[0], dtype=bool)
    # With as many equalities as variables there is no null space: left to the rescue.
    p = 0 if A is None else min(A.shape[0], n - 1)
    if p:
        rotation, triangle = orthogonal(A[:p])
        size = jnp.abs(diagonal(triangle))
        dependent = jnp.min(size, axis=0) <= 100 * n * jnp.finfo(q.dtype).eps * jnp.max(size, axis=0)
        basis, range_ = rotation[:, p:], rotation[:, :p]
        start = times(range_, solve_lower(triangle, b[:p]))
        bent = product(P, basis)
        hessian = product(transpose(basis), bent)
        gradient = transpose_times(basis, q) + transpose_times(bent, start)
        moved = []
        if G is not None:
            rows = product(G, basis)
            moved.append(times(G, start))
        moved += [-start] if problem.lower is not None else []
        moved += [start] if problem.upper is not None else []
        if moved:
            limit = jnp.where(present, limit - jnp.concatenate(moved), 0)
    if A is not None and p < A.shape[0]:
        dependent = dependent | True
    one = jnp.ones_like(q[0])
    curvature = largest(diagonal(hessian))
    curvature = jnp.where(curvature > 0, curvature, one)
    squares = [] if rows is None else [jnp.sum(rows * rows, axis=1)]
    if problem.lower is not None or problem.upper is not None:
        unit = jnp.ones_like(q) if rotation is None else jnp.sum(rotation[:, p:] ** 2, axis=1)
        squares += [unit for x in (problem.lower, problem.upper) if x is not None]
    penalty = limit
    if squares:
        square = jnp.concatenate(squares)
        square = jnp.maximum(square, 1e-3 * largest(square))
        square = jnp.where(square > 0, square, 1)
        penalty = jnp.finfo(q.dtype).eps ** -0.4 * curvature / square
    return Reduced(
        rotation=rotation,
        triangle=triangle,
        start=start,
        hessian=hessian,
        gradient=gradient,
        rows=rows,
        limit=limit,
        present=present,
        fixed=fixed_rows,
        dependent=dependent,
        penalty=penalty,
        curvature=curvature,
        dual_scale=jnp.maximum(one, largest(q, gradient)),
        primal_scale=jnp.maximum(one, largest(b)) if A is not None else one,
        bounds=(problem.lower is not None, problem.upper is not None),
    )
