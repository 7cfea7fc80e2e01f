"""A quadratic program on the null space of its equalities.

With A = [L, 0] Q' and Q = [span, basis], every x with Ax = b is x = start + basis v, and the
program is

    minimise  v'Hv/2 + g'v   subject to   Kv <= e.

That is one orthogonal factorisation a solve, and then Cholesky factors of size n - p only: 2 to 4
times less work than a Schur complement. The m inequalities stand in one vector: G, lower, upper.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from ..core.orthogonal import rotation
from ..core.solution import Dual
from ..core.triangular import solve_lower
from ..core.vectors import diagonal, identity, matmul, maxima, positive
from . import sparse
from .quadratic_program import QuadraticProgram


class Reduced(eqx.Module):
    """The reduced program.

    Attributes:
        span, basis, triangle: Q in its two parts, and L; `None` without equalities.
        start: the particular solution of Ax = b.
        operator: H over the rows of G basis, over the basis itself where there are bounds.
        gradient: g. push, degree: K'1 over the rows of inequalities, and how many they are.
        limit: e; 0 where a row is absent (an infinite limit).
        sizes: the norms of the rows of K, 1 where a row is absent.
        penalty: the weight of an active row: large beside H over the row's square; 0 if absent.
        fixed: rows that are equalities (lower = upper).
        dependent: whether rows of A depend on each other, so that the reduction loses solutions.
        curvature: the largest diagonal entry of H, 1 for a linear program.
        dual_scale: the size of the objective, without a floor: a covariance of 1e-6 is solved as
            the same one of 1.
        primal_scale: of each row, 1 or more; by how far away the equalities are.
    """

    span: Float[Array, "n p"] | None
    basis: Float[Array, "n k"] | None
    triangle: Float[Array, "p p"] | None
    start: Float[Array, " n"] | None
    operator: Float[Array, "k+r k"]
    gradient: Float[Array, " k"]
    push: Float[Array, " k"]
    degree: Float[Array, ""]
    limit: Float[Array, " m"]
    sizes: Float[Array, " m"]
    penalty: Float[Array, " m"]
    fixed: Bool[Array, " m"]
    dependent: Bool[Array, ""]
    curvature: Float[Array, ""]
    dual_scale: Float[Array, ""]
    primal_scale: Float[Array, " m"]
    bounds: tuple[bool, bool] = eqx.field(static=True)
    inequalities: int = eqx.field(static=True)

    @property
    def size(self) -> int:
        return self.gradient.shape[-1]

    @property
    def hessian(self) -> Float[Array, "k k"]:
        return self.operator[: self.size]

    @property
    def equalities(self) -> int:
        """Equalities that the reduction took."""
        return 0 if self.triangle is None else self.triangle.shape[0]

    @property
    def ceiling(self) -> Float[Array, " m"]:
        """The largest weight z/s that a factor takes without breaking down."""
        above = jnp.finfo(self.penalty.dtype).eps ** -0.3 * self.penalty
        return jnp.where(self.penalty > 0, above, 1)

    @property
    def free(self) -> Bool[Array, " m"]:
        """Rows that are inequalities."""
        return (self.penalty > 0) & ~self.fixed

    def lift(self, v: Float[Array, " k"]) -> Float[Array, " n"]:
        """start + basis v."""
        if self.basis is None or self.start is None:
            return v
        return self.start + matmul(self.basis, v)

    def restrict(self, x: Float[Array, " n"]) -> Float[Array, " k"]:
        """basis'x."""
        return x if self.basis is None else matmul(x, self.basis)

    def drop(self, x: Float[Array, " n"]) -> Float[Array, " k"]:
        """The v nearest to x: the inverse of `lift`."""
        return self.restrict(x if self.start is None else x - self.start)

    def matrix(self) -> Float[Array, "m k"]:
        """K."""
        rows = self.operator[self.size :]
        if any(self.bounds) and self.basis is None:
            rows = jnp.concatenate([rows, identity(self.gradient)])
        return expand(rows, self.inequalities, self.bounds)

    def apply(self, v: Float[Array, " k"]) -> tuple[Float[Array, " k"], Float[Array, " m"]]:
        """Hv and Kv."""
        both = matmul(self.operator, v)
        rows = both[self.size :]
        if any(self.bounds) and self.basis is None:
            rows = jnp.concatenate([rows, v])
        return both[: self.size], expand(rows, self.inequalities, self.bounds)

    def transposed(self, z: Float[Array, " m"]) -> Float[Array, " k"]:
        """K'z."""
        rows = collapse(z, self.inequalities, self.bounds)
        if any(self.bounds) and self.basis is None:
            own = rows[self.inequalities :]
            if self.inequalities == 0:
                return own
            return own + matmul(rows[: self.inequalities], self.operator[self.size :])
        return matmul(rows, self.operator[self.size :])

    def normal(self, weight: Float[Array, " m"], more: Any = 1) -> Float[Array, "k k"]:
        """H + K' diag(weight) K, and a little on the diagonal, so that a linear program's has a
        factor; `more` times as much."""
        count = self.inequalities
        weight = collapse(weight, count, self.bounds, sign=1)
        extra = more * jnp.finfo(weight.dtype).eps ** 0.5 * self.curvature + jnp.zeros_like(
            self.gradient
        )
        if any(self.bounds) and self.basis is None:
            extra, weight = extra + weight[count:], weight[:count]
        rows = self.operator[self.size :]
        total = self.hessian
        if rows.size:
            # The barrier keeps XLA from a product along columns: a third less time on CPUs.
            total = total + matmul(lax.optimization_barrier(rows.T * weight), rows)
        # LAPACK reads columns: the transpose of a symmetric matrix is there without a copy.
        return (total + jnp.diag(extra)).T

    def particular(self, b: Float[Array, " p"]) -> Float[Array, " n"]:
        """The x in the range of A' with Ax = b."""
        assert self.span is not None and self.triangle is not None
        return matmul(self.span, solve_lower(self.triangle, b))

    def equality_dual(self, gradient: Float[Array, " n"]) -> Float[Array, " p"]:
        """The y for which A'y + gradient has no part in the range of A'."""
        assert self.span is not None and self.triangle is not None
        along = matmul(gradient, self.span)
        return -solve_lower(self.triangle, along, transposed=True)

    def dual(self, y: Float[Array, " p"] | None, z: Float[Array, " m"]) -> Dual:
        """Multipliers by field; a fixed variable's free multiplier is split by sign."""
        rows, lower, upper = fields_of(z, self.inequalities, self.bounds)
        if all(self.bounds):
            free = fields_of(self.fixed, self.inequalities, self.bounds)[1]
            upper = jnp.where(free, jnp.maximum(-lower, 0), upper)
            lower = jnp.where(free, jnp.maximum(lower, 0), lower)
        return Dual(y, rows, lower, upper)

    def gather(self, dual: Dual) -> Float[Array, " m"]:
        """The inverse of `dual`."""
        lower, upper = dual.lower, dual.upper
        if all(self.bounds):
            free = fields_of(self.fixed, self.inequalities, self.bounds)[1]
            lower, upper = jnp.where(free, lower - upper, lower), jnp.where(free, 0, upper)
        return join(dual.inequality, lower, upper, self.limit)


def expand(rows: Array, count: int, bounds: tuple[bool, bool]) -> Array:
    """Cx from [Gx, x]: [Gx, -x, x]."""
    x = rows[count:]
    return join(rows[:count], -x if bounds[0] else None, x if bounds[1] else None, rows)


def collapse(z: Array, count: int, bounds: tuple[bool, bool], sign: int = -1) -> Array:
    """The transpose of `expand`; with `sign` 1 that of its absolute value."""
    rows, lower, upper = fields_of(z, count, bounds)
    if lower is not None and upper is not None:
        own = upper + sign * lower
    else:
        own = upper if lower is None else sign * lower
    return join(rows, own, None, z)


def fields_of(z: Array, count: int, bounds: tuple[bool, bool]) -> tuple[Any, Any, Any]:
    """The parts of G, lower and upper; `None` where there is none."""
    n = (z.shape[0] - count) // max(sum(bounds), 1)
    parts: list[Any] = [z[:count] if count else None]
    for has in bounds:
        parts.append(z[count : count + n] if has else None)
        count += n if has else 0
    return parts[0], parts[1], parts[2]


def join(rows: Any, lower: Any, upper: Any, like: Array) -> Array:
    """The inverse of `fields_of`."""
    parts = [x for x in (rows, lower, upper) if x is not None]
    return jnp.concatenate(parts) if parts else like[:0]


def require_dense(solver: Any, problem: Any) -> None:
    """Raise `TypeError` unless the problem is a `QuadraticProgram` of arrays."""
    name = type(solver).__name__
    if not isinstance(problem, QuadraticProgram):
        raise TypeError(f"{name} solves a QuadraticProgram; got {type(problem).__name__}.")
    require_arrays(name, problem)


def require_arrays(name: str, problem: Any) -> None:
    """Raise `TypeError` unless P, A and G are arrays."""
    for field in ("P", "A", "G"):
        if sparse.is_matrix_free(getattr(problem, field)):
            kind = type(getattr(problem, field)).__name__
            raise TypeError(
                f"{name} factors its matrices, but `{field}` is a {kind}: give an array, or use "
                "OperatorSplitting."
            )


def reduce(problem: Any, keep: bool = False) -> Reduced:
    """The reduced program of a `QuadraticProgram` whose P is symmetric.

    With `keep` the equalities are not reduced away: they are the first rows, and `fixed`.
    """
    P, q, A, b, G, h = problem.P, problem.q, problem.A, problem.b, problem.G, problem.h
    equalities = 0 if A is None else A.shape[0]
    kept = equalities if keep else 0
    both = [x for x in (A, G) if x is not None]
    squares = jnp.sum(jnp.concatenate(both) ** 2, axis=1) if both else q[:0]
    far = side = jnp.zeros_like(q[0])
    if A is not None:
        far, side = maxima([b / positive(jnp.sqrt(squares[:equalities])), b])
    # A row of zeros says nothing, and with a side of 0 it would leave no interior.
    idle = squares == 0
    if h is not None:
        idle = idle & jnp.concatenate([jnp.ones(equalities, dtype=bool), h >= 0])
    if kept:
        idle = idle.at[:kept].set(False)
        G = jnp.concatenate(both)
        h = b if h is None else jnp.concatenate([b, h])
        A = None
    else:
        squares, idle = squares[equalities:], idle[equalities:]
    lower, upper = problem.lower, problem.upper
    n = P.shape[0]
    bounds = (lower is not None, upper is not None)
    count = 0 if G is None else G.shape[0]
    reach = far * jnp.sqrt(squares)
    if kept:
        reach = reach.at[:kept].set(side)
    own = far + jnp.zeros_like(q)
    reach = join(reach, own if bounds[0] else None, own if bounds[1] else None, q)
    equal = None
    if lower is not None and upper is not None:
        # A fixed variable is one equality: it stands in the rows of `lower`.
        equal = lower == upper
        upper = jnp.where(equal, jnp.inf, upper)
    limit = join(h, None if lower is None else -lower, upper, q)
    present = jnp.isfinite(limit)
    present = present.at[:count].set(present[:count] & ~idle)
    fixed = jnp.zeros_like(present)
    if equal is not None:
        fixed = fixed.at[count : count + n].set(equal)
    if kept:
        fixed = fixed.at[:kept].set(True)

    span = basis = triangle = start = None
    hessian, gradient, rows = P, q, G
    dependent = jnp.zeros_like(q[0], dtype=bool)
    # With as many equalities as variables there is no null space: left to the rescue.
    p = 0 if A is None else min(A.shape[0], n - 1)
    if p and A is not None:
        turned, upper_triangle = rotation(A[:p].T)
        triangle = upper_triangle.T
        size = jnp.abs(diagonal(triangle))
        most, least = maxima([size, 1 / size])
        dependent = ~(most * least < 1 / (100 * n * jnp.finfo(q.dtype).eps))
        span, basis = turned[:, :p], turned[:, p:]
        start = matmul(span, solve_lower(triangle, b[:p]))
        bent = matmul(P, basis)
        hessian = matmul(lax.optimization_barrier(basis.T), bent)
        gradient = matmul(q + matmul(P, start), basis)
        at = join(None if G is None else matmul(G, start), start, None, q)
        limit = limit - expand(at, count, bounds)
        rows = join(
            None if G is None else matmul(G, basis), basis if any(bounds) else None, None, basis
        )
    if A is not None and p < A.shape[0]:
        dependent = dependent | True
    operator = hessian if rows is None else jnp.concatenate([hessian, rows])

    diagonals = [jnp.maximum(diagonal(matrix), 0) for matrix in (hessian, P)]
    curvature, bend, *linear = maxima([*diagonals, q, gradient])
    # No more than 1, as if x were of that size; a program without objective counts as 1.
    dual_scale = positive(jnp.maximum(jnp.minimum(bend, 1), jnp.maximum(*linear)))
    curvature = positive(curvature)
    square = whole = jnp.concatenate([squares, jnp.ones_like(q) if any(bounds) else q[:0]])
    if basis is not None:
        # What the reduction leaves of a row is known to that row's rounding.
        square = jnp.sum(operator[operator.shape[1] :] ** 2, axis=1)
        square = jnp.maximum(square, jnp.finfo(q.dtype).eps * whole)
    square = positive(square)
    own = square[count:]
    square = join(square[:count], own if bounds[0] else None, own if bounds[1] else None, q)
    penalty = jnp.finfo(q.dtype).eps ** (-0.5 if keep else -0.4) * curvature / square
    out = Reduced(
        span=span,
        basis=basis,
        triangle=triangle,
        start=start,
        operator=operator,
        gradient=gradient,
        push=gradient,
        degree=q[0],
        limit=jnp.where(present, limit, 0),
        sizes=jnp.where(present, jnp.sqrt(square), 1),
        penalty=jnp.where(present, penalty, 0),
        fixed=fixed & present,
        dependent=dependent,
        curvature=curvature,
        dual_scale=dual_scale,
        primal_scale=jnp.maximum(reach, 1),
        bounds=bounds,
        inequalities=count,
    )
    each = jnp.where(out.free, jnp.ones_like(limit), 0)
    return eqx.tree_at(lambda r: (r.push, r.degree), out, (out.transposed(each), jnp.sum(each)))
