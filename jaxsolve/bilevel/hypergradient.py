"""The hypergradient: the derivative of the upper level at the lower level's solution.

    h(x) = F(x, y(x)),   y(x) = argmin_y f(x, y)

Approximate implicit differentiation (Pedregosa 2016, Grazzi et al. 2020) solves the lower level,
then the adjoint system

    H v = -grad_y F,   H = grad_yy f

and has with L = F + v'grad_y f the hypergradient grad_x L, whose error is that of y and v; the
value L has an error of second order. Iterative differentiation goes through steps of the lower
solver instead.
"""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from ..core.adjoint import AbstractAdjoint, Detached, OneStep, Unrolled
from ..core.checks import check_absent, check_instance, check_limits, kind
from ..core.linear import (
    DENSE_LIMIT,
    AbstractLinearSolver,
    ConjugateGradient,
    Operator,
    checked,
)
from ..core.problem import AbstractProblem, Structure
from ..core.solution import Point, Solution
from ..core.solve import default_tolerance, solve
from ..core.solver import AbstractSolver, as_solver
from ..core.vectors import coarsest, dot, finite, identity, largest, norm, positive, ravel
from ..smooth.broyden import Broyden
from ..smooth.newton import Newton
from .bilevel import COUPLING, Bilevel, BilevelDual, LowerPoint
from .fisher import MFACInverse
from .stochastic import StochasticBilevel

Scalar = Float[Array, ""]
Vector = Float[Array, " m"]

_SMALL = 128
"""Up to this many lower variables the default is Newton's method."""


class Evaluation(eqx.Module):
    """The upper level at one x.

    Attributes:
        lower: the lower level's solution there: its `value` is y.
        adjoint: v.
        value: L, which is F where y solves the lower level.
        gradient: the hypergradient.
        measure: the largest relative residual, that of the stationarity of x included.
        bends: v'Hv / |v|^2, and -1 where the matrix H has been formed and has a negative
            eigenvalue: negative where the lower level is at no minimum (0 if not known).
    """

    x: PyTree[Array]
    lower: Solution
    adjoint: PyTree[Array]
    value: Scalar
    gradient: PyTree[Array]
    measure: Scalar
    bends: Scalar


def hypergradient(
    problem: AbstractProblem,
    init: PyTree,
    *,
    lower_solver: Any = None,
    linear_solver: Any = None,
    adjoint: AbstractAdjoint | None = None,
    tolerance: float | Scalar | None = None,
) -> Evaluation:
    """The hypergradient at one x, for loops of your own.

    Example:
        ```python
        problem = Bilevel(
            lambda x, y, args: jnp.sum((y - 1.0) ** 2),
            lambda x, y, args: jnp.sum((y - args) ** 2) + jnp.exp(x) * jnp.sum(y**2),
            jnp.array([2.0, 3.0]),
        )
        hypergradient(problem, (jnp.array(0.0), jnp.zeros(2))).gradient
        ```

    Args:
        problem: a `Bilevel` without coupling, or a `StochasticBilevel` (all of its data are used).
        init: `(x, y)`: where, and a guess of y.
        lower_solver, linear_solver, adjoint: as in `HypergradientDescent`.
        tolerance: of both solves; `None` follows the dtype, as in `solve`.

    Returns:
        The `Evaluation`; nothing of it is differentiated.
    """
    if not isinstance(problem, Bilevel | StochasticBilevel):
        check_uncoupled("hypergradient", problem)
    found, (x, y) = problem.prepare(init)
    check_uncoupled("hypergradient", found)
    check_limits(tolerance, None, 0)
    method = Hypergradients(lower_solver, linear_solver, adjoint)
    method.check("hypergradient")
    dtype = coarsest((x, y))
    if tolerance is None:
        tolerance = default_tolerance(dtype)
    return _evaluate(method, found, x, y, None, jnp.asarray(tolerance, dtype))


@eqx.filter_jit
def _evaluate(method: "Hypergradients", *args: Any) -> Evaluation:
    return jax.tree.map(
        lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, method.evaluate(*args)
    )


def check_uncoupled(name: str, problem: AbstractProblem) -> None:
    """Raise `TypeError` unless the problem is a `Bilevel` without coupling constraints."""
    if not isinstance(problem, Bilevel):
        raise TypeError(f"{name} takes a Bilevel, not {type(problem).__name__}.")
    check_absent(name, problem, COUPLING, "LVHBA() can.")


class Hypergradients(eqx.Module):
    """How hypergradients are found: see `HypergradientDescent`."""

    lower_solver: Any = None
    linear_solver: Any = None
    adjoint: AbstractAdjoint | None = None

    def check(self, name: str) -> None:
        """Raise `TypeError` naming a setting that is none, or not one beside the others."""
        if self.lower_solver is not None:
            try:
                as_solver(self.lower_solver)
            except TypeError as error:
                raise TypeError(f"{name}, `lower_solver`: {error}") from error
        if self.adjoint is not None and self.linear_solver is not None:
            raise TypeError(
                f"{name}: `adjoint` differentiates the lower solver's steps, and solves no system: "
                "leave out `linear_solver`."
            )
        if self.adjoint is not None and not isinstance(self.adjoint, Unrolled | OneStep):
            raise TypeError(
                f"{name}: `adjoint` must be Unrolled(...) or OneStep(); got {kind(self.adjoint)}. "
                "Without it, differentiation is implicit."
            )
        wanted = "a solver of jaxsolve.linear, or MFACInverse(...)"
        check_instance(
            name, "linear_solver", self.linear_solver, AbstractLinearSolver | None, wanted
        )

    @property
    def exact(self) -> bool:
        """Whether hypergradients are as accurate as what is asked for."""
        return self.adjoint is None and getattr(self.linear_solver, "exact", True)

    def evaluate(
        self,
        problem: Bilevel,
        x: PyTree[Array],
        start: Solution | PyTree[Array],
        adjoint: PyTree[Array] | None,
        tolerance: Scalar,
    ) -> Evaluation:
        """The lower level at x from `start`, v from `adjoint` (`None`: from 0), and what follows
        from them."""
        if self.adjoint is not None:
            return self._through_steps(problem, x, start, adjoint, tolerance)
        lower = self._lower(problem, x, start, tolerance, Detached())
        adjoint, bends = self._adjoint(problem, x, lower, adjoint, tolerance)
        point = Point((x, lower.value), BilevelDual(None, None, LowerPoint(adjoint)))
        value, gradient, residual = problem.hypergradient(point)
        measure = residual.relative
        if not self.exact:
            measure = _stationarity(problem, x, lower, gradient)
        return Evaluation(x, lower, adjoint, value, gradient, measure, bends)

    def behind(self, problem: Bilevel, x: PyTree[Array], lower: Solution) -> Scalar:
        """The relative residual of the lower level at x of a solution from elsewhere."""
        inner, _ = self._stated(problem, x, lower.value)
        return inner.residual(Point(lower.value)).relative

    def _through_steps(self, problem, x, start, adjoint, tolerance) -> Evaluation:
        if isinstance(self.adjoint, Unrolled):
            # All of its steps count, those from a point that is good enough already, too.
            tolerance = jnp.full_like(tolerance, jnp.finfo(tolerance.dtype).tiny)

        def reduced(x: PyTree[Array]) -> tuple[Scalar, Solution]:
            lower = self._lower(problem, x, start, tolerance, self.adjoint)
            return problem.objective(x, lower.value), lower

        (value, lower), gradient = jax.value_and_grad(reduced, has_aux=True)(x)
        measure = _stationarity(problem, x, lower, gradient)
        unknown = jnp.zeros_like(measure)
        return Evaluation(x, lower, adjoint, value, gradient, measure, unknown)

    def _lower(self, problem, x, start, tolerance, adjoint) -> Solution:
        value = start.value if isinstance(start, Solution) else start
        inner, method = self._stated(problem, x, value)
        return solve(inner, method, start, tolerance=tolerance, adjoint=adjoint, throw=False)

    def _stated(self, problem, x, value) -> tuple[AbstractProblem, AbstractSolver]:
        """The lower level at x, and its solver. Newton's method, where its matrix is small: what it
        ends with is far below the tolerance, and the hypergradient's error with it."""
        small = sum(leaf.size for leaf in jax.tree.leaves(value)) <= _SMALL
        method = self.lower_solver
        if method is None and self.adjoint is None and small and problem.smooth_lower:
            method = Newton()
        if isinstance(method, Newton | Broyden) and problem.smooth_lower:
            return problem.lower_equations(x), method
        inner = problem.lower_problem(x)
        return inner, as_solver(inner.default_solver() if method is None else method)

    def _adjoint(
        self, problem, x, lower: Solution, start, tolerance
    ) -> tuple[PyTree[Array], Scalar]:
        """v of H v = -grad_y F, by what is left of it at `start`, and the curvature along it."""
        y, unravel = ravel_pytree(lower.value)
        slope = ravel(jax.grad(lambda v: problem.objective(x, v))(lower.value))

        def residual(y: Vector) -> Vector:
            return ravel(problem.lower_residual(x, LowerPoint(unravel(y))).primal)

        # H itself where it is symmetric; of a projection's residual the transpose.
        _, along = jax.linearize(residual, y)
        back = jax.linear_transpose(along, y)
        smooth = problem.lower_set is None
        product = along if smooth else lambda v: back(v)[0]
        operator = Operator(
            product, along, Structure(smooth, smooth), self._precondition(problem, x, lower)
        )
        # An approximate inverse that is applied again and again need not converge.
        if start is None or not self.exact:
            begin, left = jnp.zeros_like(y), -slope
        else:
            begin = ravel(start)
            left = -slope - product(begin)
        method = self._method(problem, x, lower, tolerance * norm(slope) / positive(norm(left)))
        bent = jnp.zeros((), bool)
        if method is None and smooth and y.size <= _SMALL:
            operator, matrix = operator.materialised(left)
            bent = _indefinite(matrix)
        if method is None:
            change = checked(None, operator, left).x
        else:
            change = method.solve(operator, left)
        v = begin + change
        bends = -dot(v, slope) / positive(dot(v, v))
        # Of an approximate inverse, and where y is at a bound, this is no curvature.
        plain = self.exact and smooth
        blur = jnp.finfo(v.dtype).eps ** 0.5 * norm(slope) / positive(norm(v))
        bends = jnp.where(plain & (bends < -blur), bends, jnp.maximum(bends, 0))
        return unravel(v), jnp.where(bent, -1.0, bends)

    def _method(self, problem, x, lower: Solution, rtol: Scalar) -> AbstractLinearSolver | None:
        method = self.linear_solver
        if method is not None:
            return _bound(method, problem, x, lower.value)
        small = ravel(lower.value).size <= DENSE_LIMIT
        if small or problem.lower_set is not None:
            return None
        return ConjugateGradient(jnp.minimum(rtol, 0.1))

    def _precondition(self, problem, x, lower: Solution) -> Any:
        if problem.lower_set is not None:
            return None
        inner, method = self._stated(problem, x, lower.value)
        if self.linear_solver is not None and not isinstance(method, Newton):
            # Factors make one step of many. Quasi-Newton pairs may be none yet, and cost as much as
            # a product of a large sparse matrix.
            return None
        found = method.preconditioner(inner, lower.state)  # pyright: ignore[reportArgumentType]
        if found is None:
            return None
        _, unravel = ravel_pytree(lower.value)
        return lambda r: ravel(found.solve(Point(unravel(r))).primal)


def _indefinite(matrix: Float[Array, "m m"]) -> Bool[Array, ""]:
    """Whether a symmetric matrix has an eigenvalue below 0, by more than rounding."""
    shift = jnp.finfo(matrix.dtype).eps ** 0.5 * largest(matrix)
    factor = jnp.linalg.cholesky(matrix + shift * identity(matrix[0]))
    return finite(matrix) & ~finite(factor)


def _stationarity(problem: Bilevel, x: PyTree, lower: Solution, gradient: PyTree) -> Scalar:
    """The relative residual of the lower level, and of x by this gradient."""
    scale = jnp.maximum(1, largest(jax.grad(problem.objective, (0, 1))(x, lower.value)))
    own = largest(problem.stationarity(x, gradient)) / scale
    return jnp.maximum(own, lower.stats.residual.relative)


def _bound(method: Any, problem: Bilevel, x: PyTree, y: PyTree) -> AbstractLinearSolver:
    """The method, with M-FAC in it bound to gradients at a point."""
    if isinstance(method, MFACInverse):
        return method.at(x, y, problem.args)
    if isinstance(method, ConjugateGradient) and method.preconditioner is not None:
        return replace(method, preconditioner=_bound(method.preconditioner, problem, x, y))
    return method
