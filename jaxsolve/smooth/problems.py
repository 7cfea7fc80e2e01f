"""Smooth problems without constraints: roots, fixed points, minimisers, least squares.

Each is a function `fn(y, args)` of any pytree `y` with floating arrays, and data `args`:

| problem | solution | optimality |
| --- | --- | --- |
| `Root` | F(y) = 0 | F(y) |
| `FixedPoint` | f(y) = y | y - f(y) |
| `Minimise` | a local minimiser of f | grad f(y) |
| `LeastSquares` | a local minimiser of ||r(y)||^2 / 2 | J(y)' r(y) |
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from ..core.checks import check_instance, check_scalar, show
from ..core.closure import open_function, restore
from ..core.problem import AbstractProblem, Statement, Structure
from ..core.solution import RESULTS, Guess, Point, Residual, Scale
from ..core.vectors import clean, largest

if TYPE_CHECKING:
    from ..core.solver import AbstractSolver

_DENSE_VARIABLES = 256
"""Up to this many variables a root's default solver factors the Jacobian."""


class AbstractSmooth(AbstractProblem):
    """What the four have in common: a function, its data, and the door they come in by."""

    fn: Callable[[PyTree, PyTree], PyTree]
    args: PyTree = None
    size: int | None = eqx.field(default=None, static=True, kw_only=True, repr=False)

    kind: ClassVar[Literal["root", "fixed_point", "minimise", "least_squares"]]

    def __check_init__(self) -> None:
        check_instance(type(self).__name__, "fn", self.fn, Callable, "a function fn(y, args)")

    def __call__(self, value: PyTree[Array]) -> PyTree[Array]:
        """`fn(value, args)`."""
        return self.fn(value, self.args)

    def prepare(self, init: PyTree | None) -> tuple[Self, PyTree[Array]]:
        fn, value, out = open_function(type(self).__name__, self.fn, init, self.args)
        self._check(value, out)
        size = sum(x.size for x in jax.tree.leaves(value))
        return type(self)(fn, self.args, size=size), value

    def _check(self, value: PyTree[Array], out: PyTree) -> None:
        """Raise where the function's result has the wrong structure, shape or dtype."""
        raise NotImplementedError

    def restore(self, value: PyTree[Array]) -> PyTree:
        return restore(self.fn, value)

    def screen(self, guess: Guess) -> tuple[Any, Point]:
        usable = clean(guess.primal, self.args)
        result = RESULTS.where(usable, RESULTS.successful, RESULTS.nonfinite_input)
        return result, Point(guess.primal)

    def statement(self) -> Statement:
        return Statement(self.kind, self)


class Root(AbstractSmooth):
    """Find y with F(y) = 0, where F(y, args) has the structure and shapes of y.

    Example:
        ```python
        solve(Root(lambda y, a: y**2 - a, jnp.array(2.0)), init=jnp.array(1.0))
        ```

    Args:
        fn: F(y, args).
        args: its data, any pytree; what a derivative of the solution is taken in.
    """

    kind = "root"

    def optimality(self, point: Point) -> Point:
        return Point(self(point.primal))

    def residual(self, point: Point) -> Residual:
        return _primal(largest(self(point.primal)))

    def default_solver(self) -> "AbstractSolver":
        from .broyden import Broyden
        from .newton import Newton

        return Newton() if self.size is None or self.size <= _DENSE_VARIABLES else Broyden()

    def _check(self, value: PyTree[Array], out: PyTree) -> None:
        _same(value, out, "Root")


class FixedPoint(AbstractSmooth):
    """Find y with f(y) = y, where f(y, args) has the structure and shapes of y.

    Example:
        ```python
        solve(FixedPoint(lambda y, a: jnp.cos(a * y), jnp.array(1.0)), init=jnp.array(0.5))
        ```

    Args:
        fn: f(y, args).
        args: its data, any pytree.
    """

    kind = "fixed_point"

    def optimality(self, point: Point) -> Point:
        return Point(jax.tree.map(jnp.subtract, point.primal, self(point.primal)))

    def residual(self, point: Point) -> Residual:
        size = jnp.maximum(largest(point.primal), 1.0)
        return _primal(largest(self.optimality(point).primal), size)

    def default_solver(self) -> "AbstractSolver":
        from .anderson import Anderson

        return Anderson()

    def _check(self, value: PyTree[Array], out: PyTree) -> None:
        _same(value, out, "FixedPoint")


class Minimise(AbstractSmooth):
    """Find a local minimiser of a real function f(y, args).

    Example:
        ```python
        solve(Minimise(lambda y, a: jnp.sum((y - a) ** 4), jnp.arange(3.0)), init=jnp.zeros(3))
        ```

    Args:
        fn: f(y, args), a real scalar.
        args: its data, any pytree.
    """

    kind = "minimise"

    @property
    def structure(self) -> Structure:
        return Structure(symmetric=True, definite=True)

    def optimality(self, point: Point) -> Point:
        return Point(jax.grad(self)(point.primal))

    def residual(self, point: Point) -> Residual:
        value, gradient = jax.value_and_grad(self)(point.primal)
        # A gradient may be finite where its function is not, as that of log is below 0.
        return _dual(jnp.where(jnp.isfinite(value), largest(gradient), jnp.inf))

    def default_solver(self) -> "AbstractSolver":
        from .lbfgs import LBFGS

        return LBFGS()

    def _check(self, value: PyTree[Array], out: PyTree) -> None:
        check_scalar("Minimise", out)


class LeastSquares(AbstractSmooth):
    """Find a local minimiser of ||r(y)||^2 / 2 for residuals r(y, args), any pytree of arrays.

    Example:
        ```python
        t = jnp.linspace(0.0, 2.0, 20)
        data = 3.0 * jnp.exp(-0.7 * t)
        fit = lambda y, args: y[0] * jnp.exp(-y[1] * args[0]) - args[1]
        solve(LeastSquares(fit, (t, data)), init=jnp.ones(2))
        ```

    Args:
        fn: r(y, args).
        args: its data, any pytree.
    """

    kind = "least_squares"

    @property
    def structure(self) -> Structure:
        return Structure(symmetric=True, definite=True)

    def optimality(self, point: Point) -> Point:
        return Point(self._gradient(point)[1])

    def residual(self, point: Point) -> Residual:
        residuals, gradient = self._gradient(point)
        squares = [jnp.sum(x * x) for x in jax.tree.leaves(residuals)]
        size = jnp.sqrt(jnp.maximum(sum(squares[1:], squares[0]), 1.0))
        return _dual(largest(gradient), size)

    def _gradient(self, point: Point) -> tuple[PyTree[Array], PyTree[Array]]:
        residuals, pullback = jax.vjp(self, point.primal)
        return residuals, pullback(residuals)[0]

    def default_solver(self) -> "AbstractSolver":
        from .levenberg_marquardt import LevenbergMarquardt

        return LevenbergMarquardt()

    def _check(self, value: PyTree[Array], out: PyTree) -> None:
        paths = jtu.tree_flatten_with_path(out)[0]
        for path, leaf in paths:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(
                    f"LeastSquares: the residual `fn(y, args){jtu.keystr(path)}` has dtype "
                    f"{leaf.dtype}; residuals are real floating-point arrays."
                )
        if sum(leaf.size for _, leaf in paths) == 0:
            raise TypeError(f"LeastSquares: `fn` returns no residuals, but {show(out)}.")


def _primal(size: Float[Array, ""], scale: Float[Array, ""] | None = None) -> Residual:
    zero, one = jnp.zeros_like(size), jnp.ones_like(size)
    return Residual(size, zero, zero, Scale(one if scale is None else scale, one, one))


def _dual(size: Float[Array, ""], scale: Float[Array, ""] | None = None) -> Residual:
    zero, one = jnp.zeros_like(size), jnp.ones_like(size)
    return Residual(zero, size, zero, Scale(one, one if scale is None else scale, one))


def _same(value: PyTree[Array], out: PyTree, name: str) -> None:
    expected, found = jax.tree.structure(value), jax.tree.structure(out)
    if expected != found:
        raise TypeError(
            f"{name}: `fn(y, args)` must return the structure of `init`, {expected}; "
            f"it returns {found}."
        )
    pairs = zip(jtu.tree_flatten_with_path(value)[0], jax.tree.leaves(out), strict=True)
    for (path, leaf), result in pairs:
        if leaf.shape != result.shape or leaf.dtype != result.dtype:
            raise TypeError(
                f"{name}: `fn(y, args){jtu.keystr(path)}` is {show(result)}, "
                f"but `init{jtu.keystr(path)}` is {show(leaf)}."
            )
