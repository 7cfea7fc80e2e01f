"""The two linear systems of `OperatorSplitting`, by factors of arrays or by products alone.

With r the weights of the rows, D the derivative of the projection on C, a step of the splitting and
a Newton step on Px + q + M'y = 0, N = w - Pi(w + y/r) = 0 solve

    (P + s I + M' r M) dx = -g,
    P dx + M'r e = -g,   (I - D) M dx - D e = -N,   dy = r e.

Factored, e is eliminated with D + c (I - D) for D, c small, and two sweeps take away what this
changed. By products alone, the second system is made symmetric with T = (I - D)^1/2 and
e = r^-1/2 T u + D N, and MINRES solves it. Where Newton's method does not gain, more of I - D is
kept on purpose (`soft`): a proximal method of multipliers.
"""

import abc
import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.krylov import conjugate_gradient, minres
from ..core.triangular import cholesky, solve_definite, solve_lower
from ..core.vectors import dot, identity, matmul
from .splitting_form import Form, RowSlope

SWEEPS = 2


def floor(dtype) -> float:
    """What is put for D where it is 0, and taken away by the sweeps."""
    return float(jnp.finfo(dtype).eps) ** 0.4


_Vector = Float[Array, " n"]
_Side = tuple[Float[Array, " n"], Float[Array, " rows"]]
_Found = tuple[Float[Array, " n"], Float[Array, " rows"], Float[Array, " rows"]]


class AbstractSystem(eqx.Module):
    """A form, and how its linear systems are solved."""

    form: Form

    @abc.abstractmethod
    def splitting(self, weight: Float[Array, " rows"]) -> Callable[[_Vector], _Vector]:
        """g -> dx of the first system."""

    @abc.abstractmethod
    def newton(
        self,
        slope: RowSlope,
        weight: Float[Array, " rows"],
        gradient: Float[Array, " n"],
        gap: Float[Array, " rows"],
        soft: Float[Array, ""],
    ) -> tuple[Float[Array, " n"], Float[Array, " rows"]]:
        """dx and dy of the second system, e being held back with `soft` times I - D."""


def ridge(form: Form, weight: Float[Array, " rows"]) -> Float[Array, ""]:
    """What the diagonals are measured by: the mean of P's, or that of the rows where P is 0."""
    own = jnp.mean(jnp.abs(form.diagonal()))
    rows = dot(weight, form.squares(1)) / form.q.size if form.count else jnp.ones_like(own)
    rows = jnp.where(rows > 0, rows, 1)
    return jnp.where(own > 0, own, rows)


class Factored(AbstractSystem):
    """By Cholesky factors, of a form with A over G in one array."""

    @classmethod
    def of(cls, form: Form) -> "Factored":
        """Of a form of arrays."""
        none = jnp.zeros_like(form.q)[None, :][:0]
        rows = jnp.concatenate(form.matrices) if form.matrices else none
        return cls(dataclasses.replace(form, matrices=(rows,)))

    @property
    def rows(self) -> Float[Array, "r n"]:
        """A over G."""
        return self.form.matrices[0]

    def gram(self, half: Float[Array, "r n"], own: Float[Array, "..."]) -> Float[Array, "n n"]:
        """P + R'R + diag(own), R being rows of M times the root of their weight."""
        matrix = jnp.diag(jnp.zeros_like(self.form.q) + own)
        if self.form.P is not None:
            matrix = matrix + self.form.P
        return matrix + matmul(half.T, half) if half.shape[0] else matrix

    def splitting(self, weight):
        q, count = self.form.q, self.rows.shape[0]
        little = jnp.finfo(q.dtype).eps ** 0.4 * ridge(self.form, weight)
        own = little + weight[count:] if self.form.box else little
        factor = cholesky(self.gram(jnp.sqrt(weight[:count, None]) * self.rows, own))
        half = solve_lower(factor, identity(q))
        # The inverse only contracts: what is solved is the gradient that it multiplies.
        inverse = matmul(half.T, half)
        return lambda g: -matmul(inverse, g)

    def newton(self, slope, weight, gradient, gap, soft):
        return NewtonSystem.of(self, slope, weight, soft).solve(gradient, gap)


class NewtonSystem(eqx.Module):
    """The second system, factored."""

    form: Form
    slope: RowSlope
    weight: Float[Array, " rows"]
    soft: Float[Array, ""]
    factor: Float[Array, "n n"]

    @classmethod
    def of(cls, system: Factored, slope: RowSlope, weight, soft) -> "NewtonSystem":
        form, rows, count = system.form, system.rows, system.rows.shape[0]
        c = soft + floor(weight.dtype)

        def stiff(d):
            return (1 - d) / (d + c * (1 - d))

        own = jnp.finfo(weight.dtype).eps ** 0.5 * ridge(form, weight)
        if form.box:
            own = own + weight[count:] * stiff(slope.values[count:])
        held = RowSlope(slope.values[:count], slope.cones)
        half = held.root(stiff, jnp.sqrt(weight[:count, None]) * rows)
        return cls(form, slope, weight, soft, cholesky(system.gram(half, own)))

    def once(self, sides: list[_Side]) -> list[_Found]:
        """dx, e and M dx for each (gradient, gap), up to the floor and the ridge."""
        c = self.soft + floor(self.weight.dtype)

        def inverse(d):
            return 1 / (d + c * (1 - d))

        def pull(gap):
            return self.form.transposed(self.weight * self.slope.apply(inverse, gap))

        right = [gradient + pull(gap) for gradient, gap in sides]
        moves = -solve_definite(self.factor, jnp.stack(right, axis=1))

        def ended(dx, gap):
            row = self.form.apply(dx)
            bent = self.slope.apply(lambda d: 1 - d, row)
            return dx, self.slope.apply(inverse, bent + gap), row

        return [ended(moves[:, k], gap) for k, (_, gap) in enumerate(sides)]

    def product(self, dx, e, row) -> _Side:
        """The system's own left side."""
        first = self.form.bend(dx) + self.form.transposed(self.weight * e)
        second = self.slope.apply(lambda d: 1 - d, row)
        return first, second - self.slope.apply(lambda d: d + self.soft * (1 - d), e)

    def solve(self, gradient, gap) -> _Side:
        """dx and dy."""
        [(dx, dy, _)] = self.refined([(gradient, gap)])
        return dx, dy

    def refined(self, sides: list[_Side], sweeps: int = SWEEPS) -> list[_Found]:
        """dx, dy and M dx for each (gradient, gap)."""
        found = self.once(sides)
        for _ in range(sweeps):
            left = [self.product(*each) for each in found]
            found = jax.tree.map(jnp.add, found, self.once(jax.tree.map(jnp.add, sides, left)))
        return [(dx, self.weight * e, row) for dx, e, row in found]


class Products(AbstractSystem):
    """By products: conjugate gradient for the first system, MINRES for the second."""

    products: int = eqx.field(static=True, default=20)

    def splitting(self, weight):
        form = self.form
        little = jnp.finfo(form.q.dtype).eps ** 0.4 * ridge(form, weight)
        diagonal = form.diagonal() + form.squares(0, weight) + little

        def product(v):
            return form.bend(v) + little * v + form.transposed(weight * form.apply(v))

        def solve(g):
            return conjugate_gradient(
                product, -g, precondition=lambda r: r / diagonal, rtol=0.1, limit=self.products
            )

        return solve

    def newton(self, slope, weight, gradient, gap, soft):
        rtol = float(jnp.finfo(gap.dtype).eps ** 0.5)
        return symmetric_newton(self.form, slope, weight, gradient, gap, rtol, soft)


def symmetric_newton(
    form: Form,
    slope: RowSlope,
    weight: Float[Array, " rows"],
    gradient: Float[Array, " n"],
    gap: Float[Array, " rows"],
    rtol: float,
    soft: Float[Array, ""] | float = 0.0,
    limit: int = 500,
) -> tuple[Float[Array, " n"], Float[Array, " rows"]]:
    """dx and dy of the second system by MINRES, scaled by the first system's diagonal."""
    n, root = gradient.shape[0], jnp.sqrt(weight)
    diagonal = form.diagonal() + form.squares(0, weight)
    scale = 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1))

    def turn(v):
        return slope.apply(lambda d: jnp.sqrt(jnp.maximum(1 - d, 0)), v)

    def product(v):
        x, u = scale * v[:n], v[n:]
        first = form.bend(x) + form.transposed(root * turn(u))
        second = root * turn(form.apply(x)) - slope.apply(lambda d: d + soft * (1 - d), u)
        return jnp.concatenate([scale * first, second])

    offset = slope.apply(lambda d: d, gap)
    right = scale * (gradient + form.transposed(weight * offset))
    right = -jnp.concatenate([right, root * turn(gap + offset)])
    v = minres(product, right, rtol=rtol, limit=limit)
    return scale * v[:n], root * turn(v[n:]) + weight * offset


def system_of(form: Form) -> AbstractSystem:
    """`Factored` where all matrices are arrays."""
    return Factored.of(form) if form.dense else Products(form)
