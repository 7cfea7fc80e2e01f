"""The semismooth Newton step of y = prox(y - s g(y), s).

With P the Jacobian of the prox at z = y - s g (symmetric, between 0 and 1), H the Hessian of f,
R = y - prox(z, s) and a damping m / s of H,

    J d = -R,   J = I - P + s P H + m P.

Up to 128 variables J is formed and factored. Else d = -R + P u, where u solves

    (P (I - P) + s P H P + m P P) u = P (s H R + m R - R),

which is symmetric and semidefinite: by conjugate gradients, on what the penalty leaves free.

Of the points prox(y + t d - s (g + t H d), s) for some t between 0 (the proximal step) and 1 (that
of the model from its own Newton point) the one is taken where the model of f, plus h, is least: the
full step may hold coordinates of the wrong sign, and judging it costs no evaluation of f.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core.krylov import conjugate_gradient
from ..core.loop import Program, run
from ..core.mesh import vary, varying
from ..core.vectors import basis, dot, finite, matmul

Scalar = Float[Array, ""]
Vector = Float[Array, " n"]

DENSE_LIMIT = 128
_PRODUCTS = 500
"""Of conjugate gradients a step, at most."""
_LENGTHS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.12, 0.06, 0.0)


class Model(NamedTuple):
    """f to second order at a point, and the penalty.

    Attributes:
        at: the problem as functions of a vector: `smooth`, `penalty`, `prox`.
        vector, gradient: the point, and g there.
        step_size: s.
        damping: m.
        forcing: relative residual of the linear system that is enough.
    """

    at: Any
    vector: Vector
    gradient: Vector
    step_size: Scalar
    damping: Scalar
    forcing: Scalar


class Trial(NamedTuple):
    """A point to be evaluated, and its t: 0 for a proximal step."""

    point: Vector
    length: Scalar


def newton_trial(model: Model, proposal: Vector, wanted: Bool[Array, ""]) -> Trial:
    """The trial of a Newton step where it is wanted, else the proximal step `proposal`."""
    plain = Trial(proposal, jnp.zeros_like(model.step_size))
    if proposal.size <= DENSE_LIMIT:
        # A branch would be taken by every lane of a batch.
        found = _search(model, _dense)
        return jax.tree.map(lambda new, old: jnp.where(wanted, new, old), found, plain)
    # In a batch only the lanes that want it iterate.
    program = Program(
        lambda data: (_search(model, _reduced), wanted | ~wanted),
        lambda data, carry: (carry, wanted | ~wanted),
        lambda data, carry: carry,
    )
    return run(program, (), unless=(~wanted, plain))


def _search(model: Model, solve: Callable) -> Trial:
    at, s = model.at, model.step_size
    forward = model.vector - s * model.gradient
    proposal, push = jax.linearize(lambda z: at.prox(z, s), forward)
    _, curve = jax.linearize(jax.grad(at.smooth), model.vector)
    direction, curve = solve(model, push, curve, model.vector - proposal)
    turn = direction - s * curve(direction)
    lengths = vary(jnp.asarray(_LENGTHS, s.dtype), varying(s))
    points = jax.vmap(lambda t: at.prox(forward + t * turn, s))(lengths)
    moves = points - model.vector

    def judge(point: Vector, move: Vector) -> Scalar:
        return dot(model.gradient + 0.5 * curve(move), move) + at.penalty(point)

    values = jax.vmap(judge)(points, moves)
    values = jnp.where(jnp.isfinite(values), values, jnp.inf)
    # Of values that differ by rounding, the Newton point's: -g'y is the size of h at a solution.
    rounding = 10 * jnp.finfo(values.dtype).eps * dot(jnp.abs(model.gradient), jnp.abs(proposal))
    longest = jnp.argmax(values <= jnp.min(values) + rounding)
    pick = jnp.where(finite(direction), longest, len(_LENGTHS) - 1)
    length = lengths[pick]
    return Trial(jnp.where(length > 0, points[pick], proposal), length)


def _dense(model: Model, push, curve, residual: Vector) -> tuple[Vector, Callable]:
    """The direction, and the products with H."""
    unit = basis(residual)
    hessian = jax.vmap(curve, out_axes=1)(unit)
    slope = jax.vmap(push, out_axes=1)(unit)
    damped = model.step_size * hessian + model.damping * unit
    direction = jnp.linalg.solve(unit - slope + matmul(slope, damped), -residual)
    return direction, lambda v: matmul(hessian, v)


def _reduced(model: Model, push, curve, residual: Vector) -> tuple[Vector, Callable]:
    def damped(v: Vector) -> Vector:
        return model.step_size * curve(v) + model.damping * v

    def product(u: Vector) -> Vector:
        free = push(u)
        return push(u - free + damped(free))

    right = push(damped(residual) - residual)
    limit = min(right.size, _PRODUCTS)
    u = conjugate_gradient(product, right, precondition=None, rtol=model.forcing, limit=limit)
    return push(u) - residual, curve
