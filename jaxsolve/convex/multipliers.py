"""Multipliers of a point that came without: least squares with signs.

Of the constraints that are active at x, those multipliers are sought that make the gradient of
the Lagrangian least, min |g + B'u|^2 with u >= 0 on inequalities, by the primal-dual active-set
method: solve on the set, then keep the rows whose u is positive and add those along which the
residual falls.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core.loop import Program, run
from ..core.solution import Dual, Point
from ..core.vectors import identity, largest, matmul
from . import sparse

_STEPS = 50


def least_squares_multipliers(problem: Any, x: Float[Array, " n"]) -> Dual:
    """The multipliers of a `QuadraticProgram` at x."""
    n, dtype = x.shape[0], x.dtype
    found = problem.conditions(Point(x, problem.zero_dual()))
    size = jnp.maximum(largest(x), 1)
    near = jnp.finfo(dtype).eps ** 0.33 * size
    eye = jnp.eye(n, dtype=dtype)
    rows, allowed, signed = [], [], []
    slack = found.slack
    for matrix, gap in (
        (problem.A, None),
        (problem.G, slack.inequality),
        (-eye if problem.lower is not None else None, slack.lower),
        (eye if problem.upper is not None else None, slack.upper),
    ):
        if matrix is None:
            continue
        rows.append(matrix)
        close = jnp.ones_like(matrix[:, 0], dtype=bool)
        allowed.append(close if gap is None else gap <= near)
        signed.append(~close if gap is None else close)
    if not rows:
        return Dual()
    u = signed_multipliers(
        jnp.concatenate(rows), found.gradient, jnp.concatenate(allowed), jnp.concatenate(signed)
    )
    parts, at = [], 0
    for field in (problem.b, problem.h, problem.lower, problem.upper):
        count = None if field is None else field.shape[0]
        parts.append(None if count is None else u[at : at + count])
        at += count or 0
    return Dual(*parts)


def cone_multipliers(problem: Any, x: Float[Array, " n"]) -> Dual:
    """The multipliers of a `ConeProgram` at x: with c(s) <= 0 for the cones, z = -c'(s)'u."""
    zero = problem.zero_dual()
    found = problem.conditions(Point(x, zero))
    rows = [] if problem.A is None else [_matrix(problem.A, x)]
    active = [jnp.ones_like(r[:, 0], dtype=bool) for r in rows]
    signs, normals = [~a for a in active], None
    if found.slack is not None:
        s = found.slack
        held, levels = jax.jacrev(problem.cone.held)(s), problem.cone.level(s)
        normals = held
        parts = [jnp.ones_like(held[:, 0], dtype=bool)]
        if levels is not None:
            near = jnp.finfo(x.dtype).eps ** 0.33 * jnp.maximum(largest(x), 1)
            normals = jnp.concatenate([held, jax.jacrev(problem.cone.level)(s)])
            parts.append(levels >= -near)
        rows.append(-matmul(normals, _matrix(problem.G, x)))
        active += parts
        signs += [jnp.zeros_like(parts[0]), *(jnp.ones_like(p) for p in parts[1:])]
    if not rows:
        return zero
    u = signed_multipliers(
        jnp.concatenate(rows),
        found.gradient,
        jnp.concatenate(active),
        jnp.concatenate(signs),
    )
    count = 0 if problem.A is None else problem.b.shape[0]
    z = None if normals is None else -matmul(u[count:], normals)
    return Dual(None if problem.A is None else u[:count], z)


def _matrix(matrix: Any, x: Float[Array, " n"]) -> Float[Array, "m n"]:
    return jax.vmap(lambda e: sparse.apply(matrix, e), out_axes=1)(identity(x))


def signed_multipliers(
    rows: Float[Array, "m n"],
    gradient: Float[Array, " n"],
    allowed: Bool[Array, " m"],
    signed: Bool[Array, " m"],
) -> Float[Array, " m"]:
    """u that makes |gradient + rows'u| least, 0 where not `allowed`, at least 0 where `signed`."""
    data = (rows, gradient, allowed, signed)
    return run(Program(_begin, _step, lambda data, carry: carry[0]), data)


def _begin(data) -> tuple[Any, Bool[Array, ""]]:
    rows, gradient, allowed, _ = data
    steps = jnp.zeros_like(allowed[0], dtype=jnp.int32)
    return (jnp.zeros_like(matmul(rows, gradient)), allowed, steps), jnp.zeros_like(allowed[0])


def _step(data, carry):
    rows, gradient, allowed, signed = data
    _, chosen, steps = carry
    gram = matmul(rows, rows.T)
    scale = jnp.max(jnp.diagonal(gram))
    scale = jnp.where(scale > 0, scale, 1)
    both = chosen[:, None] & chosen[None, :]
    little = 10 * jnp.finfo(gram.dtype).eps * scale
    system = jnp.where(both, gram, 0) + jnp.diag(jnp.where(chosen, little, scale))
    u = jnp.linalg.solve(system, -jnp.where(chosen, matmul(rows, gradient), 0))
    slope = matmul(rows, gradient + matmul(u, rows)) / scale
    new = allowed & (~signed | (jnp.where(chosen, u, 0) - jnp.where(chosen, 0, slope) > 0))
    stop = jnp.all(new == chosen) | (steps >= _STEPS)
    return (jnp.where(signed, jnp.maximum(u, 0), u), new, steps + 1), stop
