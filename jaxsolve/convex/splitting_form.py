"""The form in which `OperatorSplitting` sees a quadratic or a cone program.

    minimise  x'Px/2 + q'x   subject to   w = Mx in C,   M = [A; G; I],

with C a product of intervals (all rows of a quadratic program, the equalities of a cone program)
and of shifted cones h - K. A multiplier y of w is in the normal cone of C: with Pi the projection
on C, (x, y) is a solution when Px + q + M'y = 0 and w = Pi(w + y).
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core.solution import Dual
from ..core.vectors import largest
from . import sparse
from .cone_program import ConeProgram
from .cones import Product, Zero
from .cones.cone import AbstractSlope, Spectral, heaviside
from .quadratic_program import QuadraticProgram
from .sparse import Matrix


class RowSlope(AbstractSlope):
    """The derivative of the projection on C: intervals first, then cones."""

    values: Float[Array, " k"]
    cones: Any

    def apply(self, fn: Spectral, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        count = self.values.shape[0]
        parts = [fn(self.values) * v[:count]] if count else []
        if self.cones is not None:
            parts.append(self.cones.apply(fn, v[count:]))
        return jnp.concatenate(parts) if parts else v

    def root(self, fn: Spectral, matrix: Float[Array, "rows n"]) -> Float[Array, "rows n"]:
        count = self.values.shape[0]
        parts = [jnp.sqrt(fn(self.values))[:, None] * matrix[:count]] if count else []
        if self.cones is not None:
            parts.append(self.cones.root(fn, matrix[count:]))
        return jnp.concatenate(parts) if parts else matrix

    def map(self, fn: Spectral) -> "RowSlope":
        cones = None if self.cones is None else self.cones.map(fn)
        return RowSlope(fn(self.values), cones)


class Form(eqx.Module):
    """The program.

    Attributes:
        matrices: those of A and G that are present.
        low, high: the intervals' ends.
        cone, h: the shifted cone; `None` for a quadratic program.
        box: whether M ends in the identity.
        kind: which fields there are: equality, inequality, lower, upper.
    """

    P: Matrix | None
    q: Float[Array, " n"]
    matrices: tuple[Matrix, ...]
    low: Float[Array, " k"]
    high: Float[Array, " k"]
    h: Float[Array, " c"] | None
    cone: Product | None
    box: bool = eqx.field(static=True)
    kind: tuple[bool, bool, bool, bool] = eqx.field(static=True)

    @property
    def dense(self) -> bool:
        """Whether P and M are arrays."""
        return not any(sparse.is_matrix_free(x) for x in (self.P, *self.matrices))

    @property
    def count(self) -> int:
        """Rows of M."""
        return self.low.shape[0] + (0 if self.h is None else self.h.shape[0])

    def bend(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """Px."""
        if self.P is None:
            return jnp.zeros_like(x)
        # `prepare` has made an array symmetric.
        return sparse.symmetric(self.P, x) if not self.dense else sparse.apply(self.P, x)

    def diagonal(self) -> Float[Array, " n"]:
        """The diagonal of P."""
        return jnp.zeros_like(self.q) if self.P is None else sparse.diagonal(self.P)

    def apply(self, x: Float[Array, " n"]) -> Float[Array, " rows"]:
        """Mx."""
        parts = [sparse.apply(matrix, x) for matrix in self.matrices] + [x] * self.box
        return jnp.concatenate(parts) if parts else x[:0]

    def pushes(self, y: Float[Array, " rows"]) -> list[Float[Array, " n"]]:
        """The terms of M'y."""
        out, at = [], 0
        for matrix in self.matrices:
            count = sparse.shape_of(matrix)[0]
            out.append(sparse.transposed(matrix, y[at : at + count]))
            at += count
        return [*out, y[at:]] if self.box else out

    def transposed(self, y: Float[Array, " rows"]) -> Float[Array, " n"]:
        """M'y."""
        return sum(self.pushes(y), jnp.zeros_like(self.q))

    def squares(self, axis: int, weight: Float[Array, " rows"] | None = None) -> Float[Array, " k"]:
        """Sums of squares of M's rows (axis 1); of its columns, rows weighted (axis 0)."""
        if axis == 1:
            parts = [sparse.squares(matrix, 1) for matrix in self.matrices]
            parts += [jnp.ones_like(self.q)] * self.box
            return jnp.concatenate(parts) if parts else self.q[:0]
        assert weight is not None
        total, at = jnp.zeros_like(self.q), 0
        for matrix in self.matrices:
            count = sparse.shape_of(matrix)[0]
            total = total + sparse.weighted_squares(matrix, weight[at : at + count])
            at += count
        return total + weight[at:] if self.box else total

    def fixed(self) -> Bool[Array, " rows"]:
        """Rows that are equalities."""
        out = self.low == self.high
        if self.cone is None:
            return out
        return jnp.concatenate([out, self.cone.consists(Zero)])

    def project(self, v: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """The nearest point of C."""
        count = self.low.shape[0]
        near = jnp.clip(v[:count], self.low, self.high)
        if self.cone is None or self.h is None:
            return near
        return jnp.concatenate([near, self.h - self.cone.project(self.h - v[count:])])

    def slope(self, v: Float[Array, " rows"]) -> RowSlope:
        """The derivative of `project`."""
        count = self.low.shape[0]
        inside = heaviside(v[:count] - self.low) * heaviside(self.high - v[:count])
        inside = jnp.where(self.low == self.high, 0, inside)
        if self.cone is None or self.h is None:
            return RowSlope(inside, None)
        return RowSlope(inside, self.cone.slope(self.h - v[count:]))

    def recede(self, y: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """The nearest multiplier with which the rows can prove infeasibility."""
        count = self.low.shape[0]
        own = y[:count]
        own = jnp.where(jnp.isfinite(self.high), own, jnp.minimum(own, 0))
        own = jnp.where(jnp.isfinite(self.low), own, jnp.maximum(own, 0))
        if self.cone is None:
            return own
        return jnp.concatenate([own, self.cone.project_dual(y[count:])])

    def alike(self, values: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """`values` with their mean over each curved cone: its rows have one weight."""
        if self.cone is None:
            return values
        count = self.low.shape[0]
        own = values[count:]
        means = [jnp.mean(x, axis=1) for x in self.cone.split(own)]
        return jnp.concatenate([values[:count], self.cone.each(means, own)])

    def sizes(self, w: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """At each row the size of what its slack was added up from: of its field, or its cone."""
        count, parts, at = self.low.shape[0], [], 0
        own = jnp.maximum(
            jnp.abs(w[:count]), jnp.where(self.low == self.high, jnp.abs(self.low), 0)
        )
        for rows in [sparse.shape_of(m)[0] for m in self.matrices] + [self.q.size] * self.box:
            # Rows of a cone come after those of intervals.
            parts += [jnp.full(rows, largest(own[at : at + rows]))] if at < count else []
            at += rows
        if self.cone is not None and self.h is not None:
            sides = self.cone.sizes(self.cone.binding(self.h))
            parts.append(jnp.maximum(self.cone.sizes(w[count:]), sides))
        return jnp.maximum(jnp.concatenate(parts), 1)

    def error(
        self,
        x: Float[Array, " n"],
        w: Float[Array, " rows"],
        bent: Float[Array, " n"],
        y: Float[Array, " rows"],
    ) -> tuple[Float[Array, ""], Float[Array, " n"]]:
        """The natural residual, each part over its scale as in `residual`, but that of a small
        objective is not 1; and the gradient."""
        pushes = self.pushes(y)
        gradient = sum(pushes, bent + self.q)
        one = jnp.ones_like(x[0])
        # An operator has no diagonal but an estimate of several products.
        least = jnp.clip(jnp.max(self.diagonal()), 0, 1) if self.dense else one
        dual = jnp.max(jnp.stack([least, *(largest(t) for t in (bent, self.q, *pushes))]))
        dual = jnp.where(jnp.maximum(least, largest(self.q)) > 0, dual, jnp.maximum(dual, one))
        error = largest(gradient) / dual
        if self.count == 0:
            return error, gradient
        size = self.sizes(w)
        gap = (w - self.project(w + y * (size / dual))) / size
        return jnp.maximum(error, largest(gap)), gradient

    def complementary(
        self,
        x: Float[Array, " n"],
        y: Float[Array, " rows"],
        weight: Float[Array, " rows"],
        error: Float[Array, ""],
    ) -> Float[Array, " rows"]:
        """The multipliers near y that fit the slacks exactly, if that keeps the residual `error`;
        else y."""
        w, bent = self.apply(x), self.bend(x)
        v = w + y / weight
        exact = weight * (v - self.project(v))
        found, _ = self.error(x, w, bent, exact)
        enough = jnp.maximum(error, 8 * jnp.finfo(x.dtype).eps)
        return jnp.where(found <= enough, exact, y)

    def split(self, y: Float[Array, " rows"]) -> Dual:
        """Multipliers by field."""
        parts, at = [], 0
        for matrix in self.matrices:
            count = sparse.shape_of(matrix)[0]
            parts.append(y[at : at + count])
            at += count
        equality = parts.pop(0) if self.kind[0] else None
        inequality = parts.pop(0) if self.kind[1] else None
        own = y[at:]
        below = jnp.maximum(-own, 0) if self.kind[3] else -own
        above = jnp.maximum(own, 0) if self.kind[2] else own
        return Dual(
            equality, inequality, below if self.kind[2] else None, above if self.kind[3] else None
        )

    def gather(self, dual: Dual) -> Float[Array, " rows"]:
        """The inverse of `split`."""
        parts = [x for x in (dual.equality, dual.inequality) if x is not None]
        if self.box:
            none = jnp.zeros_like(self.q)
            above = none if dual.upper is None else dual.upper
            parts.append(above - (none if dual.lower is None else dual.lower))
        return jnp.concatenate(parts) if parts else self.q[:0]


def form_of(problem: QuadraticProgram | ConeProgram) -> Form:
    """The form of a prepared problem."""
    q, matrices, ends = problem.q, [], []
    if problem.A is not None:
        matrices.append(problem.A)
        ends.append((problem.b, problem.b))
    if problem.G is not None:
        matrices.append(problem.G)
    cone = h = lower = upper = None
    if isinstance(problem, ConeProgram):
        if problem.G is not None:
            cone, h = problem.cone, problem.h
    else:
        if problem.h is not None:
            ends.append((jnp.full_like(problem.h, -jnp.inf), problem.h))
        lower, upper = problem.lower, problem.upper
        if lower is not None or upper is not None:
            none = jnp.full_like(q, jnp.inf)
            ends.append((-none if lower is None else lower, none if upper is None else upper))
    low = jnp.concatenate([a for a, _ in ends]) if ends else q[:0]
    high = jnp.concatenate([b for _, b in ends]) if ends else q[:0]
    kind = (problem.A is not None, problem.G is not None, lower is not None, upper is not None)
    box = lower is not None or upper is not None
    return Form(problem.P, q, tuple(matrices), low, high, h, cone, box, kind)


def row_weights(form: Form) -> Float[Array, " rows"]:
    """One over the squared size of each row; of a curved cone, one for all of its rows."""
    size = form.alike(form.squares(1))
    return 1 / jnp.where(size > 0, size, 1)


def first_level(form: Form, unit: Float[Array, " rows"]) -> Float[Array, ""]:
    """The mean curvature; without curvature, the size of the multipliers over that of the rows."""
    one = jnp.ones_like(form.q[0])
    if form.count == 0:
        return one
    sides = [jnp.where(jnp.isfinite(s), s, 0) for s in (form.low, form.high)]
    sides = jnp.concatenate(sides + ([] if form.h is None else [form.h]))
    far = jnp.maximum(one, largest(sides))
    flat = jnp.maximum(largest(form.q), 1e-3) / far
    bend = jnp.mean(jnp.abs(form.diagonal()))
    return jnp.where(bend > 0, bend, flat)
