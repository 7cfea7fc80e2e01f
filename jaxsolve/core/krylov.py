"""Iterations for A x = b where A is known by its products alone: Krylov's on the one loop.

None of them is differentiated: `core.linear` puts them inside `jax.lax.custom_linear_solve`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .loop import Program, run
from .vectors import dot, matmul, norm

Vector = Float[Array, " n"]
Product = Callable[[Vector], Vector]
T = TypeVar("T")


def _iterate(
    b: Vector,
    init: Callable[[Vector], tuple[Any, Bool[Array, ""]]],
    step: Callable[[Any], tuple[Any, Bool[Array, ""]]],
    limit: int,
) -> Vector:
    """Steps until done or `limit`; the carry's first entry is the solution."""

    def start(b):
        carry, done = init(b)
        return (carry, jnp.zeros((), jnp.int32)), done

    def advance(_, loop):
        carry, steps = loop
        carry, done = step(carry)
        steps = steps + 1
        return (carry, steps), done | (steps >= limit)

    return run(Program(start, advance, lambda _, loop: loop[0][0]), b)


def _over(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, ""]:
    """a / b, and 0 where b is 0: an exhausted direction contributes nothing."""
    safe = jnp.where(b == 0, jnp.ones_like(b), b)
    return jnp.where(b == 0, jnp.zeros_like(a), a / safe)


def least_residual(new: T, old: T, new_r: Vector, old_r: Vector) -> T:
    """The point on the line through two whose residual, linear in them, is least: Anderson's method
    with a memory of one."""
    turn = new_r - old_r
    length = _over(dot(new_r, turn), dot(turn, turn))
    return jax.tree.map(lambda a, b: a - length * (a - b), new, old)


def refine(product: Product, b: Vector, approximate: Product, sweeps: int) -> Vector:
    """Iterative refinement with an approximate inverse: `sweeps` applications of it, a step to the
    least residual after all but the last."""

    def sweep(carry, _):
        now, old = carry
        x = now[0] + approximate(now[1])
        new = x, b - product(x)
        return (least_residual(new, old, new[1], old[1]), new), None

    start = jnp.zeros_like(b), b
    ((x, r), _), _ = jax.lax.scan(sweep, (start, start), length=sweeps - 1)
    return x + approximate(r)


class _CG(NamedTuple):
    x: Vector
    r: Vector
    p: Vector
    rho: Float[Array, ""]
    goal: Float[Array, ""]


def conjugate_gradient(
    product: Product,
    b: Vector,
    *,
    precondition: Product | None,
    rtol: float | Float[Array, ""],
    limit: int,
) -> Vector:
    """A symmetric, definite. Hestenes and Stiefel (1952), preconditioned."""
    apply = precondition if precondition is not None else lambda r: r

    def init(b):
        z = apply(b)
        size = norm(b)
        return _CG(jnp.zeros_like(b), b, z, dot(b, z), rtol * size), size == 0

    def step(s: _CG):
        q = product(s.p)
        curvature = dot(s.p, q)
        alpha = _over(s.rho, curvature)
        x, r = s.x + alpha * s.p, s.r - alpha * q
        z = apply(r)
        rho = dot(r, z)
        p = z + _over(rho, s.rho) * s.p
        size = norm(r)
        lost = (curvature == 0) | (rho == 0) | ~jnp.isfinite(size)
        return _CG(x, r, p, rho, s.goal), (size <= s.goal) | lost

    return _iterate(b, init, step, limit)


class _MINRES(NamedTuple):
    x: Vector
    previous: Vector
    current: Vector
    w: Vector
    w_old: Vector
    old_beta: Float[Array, ""]
    beta: Float[Array, ""]
    bar: Float[Array, ""]
    epsilon: Float[Array, ""]
    cosine: Float[Array, ""]
    sine: Float[Array, ""]
    remaining: Float[Array, ""]
    goal: Float[Array, ""]


def minres(product: Product, b: Vector, *, rtol: float | Float[Array, ""], limit: int) -> Vector:
    """A symmetric, indefinite allowed; singular and consistent too. Paige and Saunders (1975)."""

    def init(b):
        zero, size = jnp.zeros_like(b), norm(b)
        nought = jnp.zeros_like(size)
        state = _MINRES(
            x=zero,
            previous=zero,
            current=b,
            w=zero,
            w_old=zero,
            old_beta=nought,
            beta=size,
            bar=nought,
            epsilon=nought,
            cosine=-jnp.ones_like(size),
            sine=nought,
            remaining=size,
            goal=rtol * size,
        )
        return state, size == 0

    def step(s: _MINRES):
        v = s.current * _over(jnp.ones_like(s.beta), s.beta)
        y = product(v) - _over(s.beta, s.old_beta) * s.previous
        alpha = dot(v, y)
        y = y - _over(alpha, s.beta) * s.current
        beta = norm(y)
        # The plane rotation that keeps the tridiagonal matrix's QR factor.
        delta = s.cosine * s.bar + s.sine * alpha
        gamma_bar = s.sine * s.bar - s.cosine * alpha
        gamma = jnp.hypot(gamma_bar, beta)
        cosine, sine = _over(gamma_bar, gamma), _over(beta, gamma)
        w = (v - s.epsilon * s.w_old - delta * s.w) * _over(jnp.ones_like(gamma), gamma)
        x = s.x + cosine * s.remaining * w
        remaining = sine * s.remaining
        new = _MINRES(
            x=x,
            previous=s.current,
            current=y,
            w=w,
            w_old=s.w,
            old_beta=s.beta,
            beta=beta,
            bar=-s.cosine * beta,
            epsilon=s.sine * beta,
            cosine=cosine,
            sine=sine,
            remaining=remaining,
            goal=s.goal,
        )
        lost = (beta == 0) | ~jnp.isfinite(remaining)
        return new, (jnp.abs(remaining) <= s.goal) | lost

    return _iterate(b, init, step, limit)


class _LSQR(NamedTuple):
    x: Vector
    u: Vector
    v: Vector
    w: Vector
    alpha: Float[Array, ""]
    rho_bar: Float[Array, ""]
    phi_bar: Float[Array, ""]
    goal: Float[Array, ""]
    normal_goal: Float[Array, ""]


def least_squares(
    product: Product, transpose: Product, b: Vector, *, rtol: float | Float[Array, ""], limit: int
) -> Vector:
    """The minimum-norm x of least ||A x - b||, any A. LSQR, Paige and Saunders (1982)."""

    def unit(a):
        size = norm(a)
        return a * _over(jnp.ones_like(size), size), size

    def init(b):
        u, beta = unit(b)
        v, alpha = unit(transpose(u))
        state = _LSQR(
            jnp.zeros_like(v), u, v, v, alpha, alpha, beta, rtol * beta, rtol * alpha * beta
        )
        return state, (beta == 0) | (alpha == 0)

    def step(s: _LSQR):
        u, beta = unit(product(s.v) - s.alpha * s.u)
        v, alpha = unit(transpose(u) - beta * s.v)
        rho = jnp.hypot(s.rho_bar, beta)
        cosine, sine = _over(s.rho_bar, rho), _over(beta, rho)
        theta, phi_bar = sine * alpha, sine * s.phi_bar
        x = s.x + _over(cosine * s.phi_bar, rho) * s.w
        w = v - _over(theta, rho) * s.w
        new = _LSQR(x, u, v, w, alpha, -cosine * alpha, phi_bar, s.goal, s.normal_goal)
        normal = phi_bar * alpha * jnp.abs(cosine)
        met = (phi_bar <= s.goal) | (normal <= s.normal_goal)
        return new, met | (alpha == 0) | (beta == 0) | ~jnp.isfinite(phi_bar)

    return _iterate(b, init, step, limit)


class _GMRES(NamedTuple):
    x: Vector
    r: Vector
    goal: Float[Array, ""]


def gmres(
    product: Product,
    b: Vector,
    *,
    precondition: Product | None,
    restart: int,
    rtol: float | Float[Array, ""],
    limit: int,
) -> Vector:
    """Any square A, right-preconditioned; one step is one cycle of `restart` products.

    Saad and Schultz (1986), with the orthogonalisation done twice.
    """
    apply = precondition if precondition is not None else lambda r: r
    basis_size = min(restart, b.size)

    def init(b):
        size = norm(b)
        return _GMRES(jnp.zeros_like(b), b, rtol * size), size == 0

    def step(s: _GMRES):
        size = norm(s.r)
        first = s.r * _over(jnp.ones_like(size), size)
        blank = jnp.zeros_like(s.r, shape=(basis_size + 1, b.size)) + 0 * first
        basis = blank.at[0].set(first)

        def extend(basis: Array, k: Int[Array, ""]):
            w = product(apply(basis[k]))
            column = matmul(basis, w)
            w = w - matmul(column, basis)
            again = matmul(basis, w)
            w = w - matmul(again, basis)
            length = norm(w)
            basis = basis.at[k + 1].set(w * _over(jnp.ones_like(length), length))
            return basis, (column + again).at[k + 1].set(length)

        basis, columns = jax.lax.scan(extend, basis, jnp.arange(basis_size))
        target = jnp.zeros_like(columns[0]).at[0].set(size)
        weights = jnp.linalg.lstsq(columns.T, target)[0]
        x = s.x + apply(matmul(weights, basis[:-1]))
        r = b - product(x)
        left = norm(r)
        # A cycle that gains less than a digit in a hundred will not be followed by a better one.
        stuck = left > 0.99 * size
        return _GMRES(x, r, s.goal), (left <= s.goal) | stuck | ~jnp.isfinite(left)

    return _iterate(b, init, step, -(-limit // basis_size))
