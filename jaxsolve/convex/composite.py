"""A smooth function plus a penalty.

    minimise  f(y, args) + h(y)

y is a solution of a convex one, and stationary for any other, when y = prox(y - s grad f(y), s) for
one s > 0, and then for all. This is one equation for each coordinate, semismooth, with no
multipliers in it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..core.checks import check_scalar
from ..core.closure import open_function, restore
from ..core.mesh import vary, varying
from ..core.problem import AbstractProblem, Structure
from ..core.solution import RESULTS, Guess, Point, Residual, Scale
from ..core.vectors import clean, largest
from .penalties import AbstractPenalty

if TYPE_CHECKING:
    from ..core.solver import AbstractSolver


class Composite(AbstractProblem):
    """minimise fn(y, args) + penalty(y), fn smooth.

    Example:
        ```python
        X, b = jnp.eye(3), jnp.array([3.0, 0.2, -1.0])
        fit = lambda y, args: jnp.sum((args[0] @ y - args[1]) ** 2) / 2
        problem = Composite(fit, penalties.L1(0.5), (X, b))
        solve(problem, init=jnp.zeros(3)).value
        ```

    Derivatives are taken in `args`, in what `fn` captured, and in the penalty's weights: on the set
    of coordinates (groups, pieces, ranks) that the solution has found, as long as that is stable.

    Args:
        fn: fn(y, args), a real scalar.
        penalty: one of `jaxsolve.penalties`.
        args: its data, any pytree.
    """

    fn: Callable[[PyTree, PyTree], PyTree]
    penalty: AbstractPenalty
    args: PyTree = None
    size: int | None = eqx.field(default=None, static=True, kw_only=True, repr=False)
    projects: bool = eqx.field(default=False, static=True, kw_only=True, repr=False)

    @property
    def structure(self) -> Structure:
        return Structure(symmetric=self.projects, definite=self.projects)

    def smooth(self, value: PyTree[Array]) -> Float[Array, ""]:
        """The smooth part: fn, and that of the penalty."""
        own, _ = self.penalty.split()
        out = self.fn(value, self.args)
        return out if own is None else out + own(value).astype(out.dtype)

    @property
    def sharp(self) -> AbstractPenalty:
        """The penalty without its smooth part."""
        return self.penalty.split()[1]

    def natural(
        self, value: PyTree[Array], gradient: PyTree[Array], step_size: Float[Array, ""]
    ) -> PyTree[Array]:
        """y - prox(y - s g, s), by what the prox takes off, so that large y do not cancel."""
        moved = _along(value, gradient, -step_size)
        return _along(self.sharp.remainder(moved, step_size), gradient, step_size)

    def optimality(self, point: Point) -> Point:
        """The natural residual over s, with 1 / s the typical curvature of f at the point.

        With P the Jacobian of the prox and H the Hessian of f its own is (I - P) / s + P H. Where P
        is a projection, rows are combined so that it becomes (I - P) / s + P H P, symmetric: f is
        evaluated where the penalty alone holds what is not free.
        """
        value, sharp = point.primal, self.sharp
        fixed = jax.tree.map(jax.lax.stop_gradient, value)
        gradient, curve = jax.linearize(jax.grad(self.smooth), fixed)
        step = jax.lax.stop_gradient(_typical_step(curve, fixed))
        if self.projects:
            # All of this has the value of `value`; its derivative is P dy + (I - P) dprox.
            moved = jax.lax.stop_gradient(_along(fixed, gradient, -step))
            held, push = jax.linearize(lambda z: sharp.prox(z, step), moved)
            drift = jax.tree.map(lambda h: h - jax.lax.stop_gradient(h), held)
            moves = jax.tree.map(lambda y, f, d: y - f - d, value, fixed, drift)
            free = push(moves)
            place = jax.tree.map(lambda f, d, m: f + d + m, fixed, drift, free)
        else:
            place = value
        residual = self.natural(place, jax.grad(self.smooth)(place), step)
        residual = jax.tree.map(lambda r, y, p: r + (y - p), residual, value, place)
        return Point(jax.tree.map(lambda r: r / step.astype(r.dtype), residual))

    def residual(self, point: Point) -> Residual:
        """The natural residual for s = 1 (without a penalty the gradient, as in `Minimise`), judged
        against max(1, |grad f|): what the penalty balances."""
        gradient = jax.grad(self.smooth)(point.primal)
        natural, scale = self.measured(point.primal, gradient)
        zero, one = jnp.zeros_like(natural), jnp.ones_like(natural)
        return Residual(zero, natural, zero, Scale(one, scale, one))

    def measured(
        self, value: PyTree[Array], gradient: PyTree[Array]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The largest natural residual, and the scale against which it is judged."""
        one = jnp.ones_like(jax.tree.leaves(value)[0], shape=())
        return largest(self.natural(value, gradient, one)), jnp.maximum(one, largest(gradient))

    def default_solver(self) -> "AbstractSolver":
        from .proximal_gradient import ProximalGradient

        return ProximalGradient()

    def prepare(self, init: PyTree | None) -> tuple[Self, PyTree[Array]]:
        if not isinstance(self.penalty, AbstractPenalty):
            raise TypeError(
                "Composite: `penalty` must be one of jaxsolve.penalties; got "
                f"{type(self.penalty).__name__}."
            )
        fn, value, out = open_function("Composite", self.fn, init, self.args)
        check_scalar("Composite", out)
        self.penalty.check(value, "init")
        size = sum(x.size for x in jax.tree.leaves(value))
        projects = self.sharp.projects(value)
        return type(self)(fn, self.penalty, self.args, size=size, projects=projects), value

    def restore(self, value: PyTree[Array]) -> PyTree:
        return restore(self.fn, value)

    def screen(self, guess: Guess) -> tuple[Any, Point]:
        usable = clean(guess.primal, (self.args, self.penalty))
        result = RESULTS.where(self.penalty.valid(), RESULTS.successful, RESULTS.nonconvex)
        empty = self.penalty.nowhere(guess.primal)
        result = RESULTS.where(empty, RESULTS.infeasible, result)
        result = RESULTS.where(usable, result, RESULTS.nonfinite_input)
        return result, Point(guess.primal)

    def describe(self) -> list[str]:
        return self.penalty.describe()


def _along(value: PyTree[Array], direction: PyTree[Array], length: Float[Array, ""]) -> PyTree:
    """value + length direction, each leaf in its own dtype."""
    return jax.tree.map(lambda y, d: y + length.astype(y.dtype) * d, value, direction)


def _typical_step(curve: Callable[[PyTree], PyTree], value: PyTree[Array]) -> Float[Array, ""]:
    """1 over the root mean square eigenvalue of the Hessian, by a product with a fixed vector; 1
    where there is no curvature. Any number would do: it balances the rows of the conditions."""
    leaves, tree = jax.tree.flatten(value)
    # Neither constant nor alternating, which differences and averages would not see.
    waves = [
        jnp.cos(jnp.arange(x.size, dtype=x.dtype) ** 2 + k).reshape(x.shape)
        for k, x in enumerate(leaves)
    ]
    waves = vary(waves, varying(value))
    bends = jax.tree.leaves(curve(jax.tree.unflatten(tree, waves)))
    squares = [sum(jnp.sum(x * x).astype(leaves[0].dtype) for x in xs) for xs in (waves, bends)]
    ratio = squares[0] / jnp.where(squares[1] > 0, squares[1], 1)
    usable = (squares[1] > 0) & jnp.isfinite(squares[1]) & (ratio > 0)
    return jnp.where(usable, jnp.sqrt(jnp.where(usable, ratio, 1)), 1)
