"""The adjoint's linear systems: solved, checked, and differentiable in both modes.

The operator is the Jacobian J of `problem.optimality`, known by its products. `solve_checked`
wraps every method in `jax.lax.custom_linear_solve`, so that none of them is differentiated, and
holds the promise of the adjoints: an answer whose residual was measured, or NaN in its own lane.
"""

import abc
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from .checks import check_count, check_positive, check_settings
from .krylov import Product, Vector, conjugate_gradient, gmres, least_squares, minres, refine
from .loop import Program, run
from .mesh import vary, varying
from .problem import Structure
from .solver import AbstractPreconditioner
from .triangular import cholesky, solve_definite
from .vectors import (
    HIGHEST,
    coarsest,
    finite,
    identity,
    largest,
    matmul,
    norm,
    regular,
)

DENSE_LIMIT = 512
"""Up to this size the default method materialises J where the forward solver left no factor."""
SMALL = 16
"""Up to this size it always does: one copy of J makes a smaller program, a factor saves little."""


class Operator(NamedTuple):
    """J by its products with flat vectors, and what is known of it.

    Attributes:
        accurate: whether `precondition` is wrong by rounding only.
        matrix: J itself, once it has been materialised; the products are then the matrix's, so
            that a program holds the functions of the problem once.
    """

    product: Product
    transpose: Product
    structure: Structure
    precondition: Product | None = None
    accurate: bool = False
    matrix: Float[Array, "n n"] | None = None

    def materialised(self, b: Vector) -> tuple["Operator", Float[Array, "n n"]]:
        """The operator with its matrix, and that matrix."""
        if self.matrix is not None:
            return self, self.matrix
        matrix = jax.vmap(self.product, out_axes=1)(identity(b))
        known = self._replace(
            product=lambda v: matmul(matrix, v),
            transpose=lambda v: matmul(v, matrix),
            matrix=matrix,
        )
        return known, matrix


class AbstractLinearSolver(eqx.Module):
    """A method for J x = b.

    Attributes:
        exact: whether its answer must satisfy the system; an approximate inverse by design
            (`Neumann`) is taken as it is.
        dense: whether it wants J materialised.
        least: whether its answer is the least-squares solution where J is singular.
    """

    exact: ClassVar[bool] = True
    dense: ClassVar[bool] = False
    least: ClassVar[bool] = False

    def __check_init__(self) -> None:
        name = type(self).__name__
        check_positive(name, rtol=getattr(self, "rtol", None))
        check_count(name, ("max_steps",), max_steps=getattr(self, "max_steps", None))

    @abc.abstractmethod
    def solve(self, operator: Operator, b: Vector) -> Vector: ...

    def fallbacks(self, operator: Operator, b: Vector) -> Sequence["AbstractLinearSolver"]:
        """What solves the systems that this method does not, one after the other."""
        # In float32 a forward solver's factor fails one lane in some hundred. Where J is regular
        # its own is enough, at a tenth of the price of the singular values.
        factored = 4 * SMALL < b.size <= DENSE_LIMIT and not self.dense and b.dtype != jnp.float64
        return [Dense()] * factored + [_MinimumNorm()]

    def prepared(self, operator: Operator, like: Vector) -> Product:
        """r -> about J^{-1} r, for many r of the form of `like`: what can be is done once."""
        return lambda r: self.solve(operator, r)


class Dense(AbstractLinearSolver):
    """Materialises J: Cholesky where it is symmetric and definite, LU else, refined once."""

    dense: ClassVar[bool] = True

    def solve(self, operator: Operator, b: Vector) -> Vector:
        _, matrix = operator.materialised(b)
        if operator.structure.definite:
            factor = cholesky(matrix)
            pivots = jnp.diagonal(factor) ** 2
            back = lambda r: solve_definite(factor, r)
        else:
            factor = jax.scipy.linalg.lu_factor(matrix)
            pivots = jnp.abs(jnp.diagonal(factor[0]))
            back = lambda r: jax.scipy.linalg.lu_solve(factor, r)
        x = back(b)
        x = x + back(b - matmul(matrix, x))
        # A singular but consistent system has many solutions: this one must not be taken for all.
        return jnp.where(regular(pivots), x, jnp.full_like(x, jnp.nan))


class ConjugateGradient(AbstractLinearSolver):
    """For symmetric definite J, matrix-free; preconditioned by the forward solver where it can.

    Args:
        rtol: relative residual to stop at; `None` follows the dtype (eps^0.6).
        max_steps: `None` is 10 n.
        preconditioner: a fixed symmetric definite approximate inverse, in the forward solver's
            place: `Nystroem(rank, damping)`.
    """

    rtol: float | Float[Array, ""] | None = None
    max_steps: int | None = None
    preconditioner: AbstractLinearSolver | None = None

    def solve(self, operator: Operator, b: Vector) -> Vector:
        precondition, inner = operator.precondition, self.preconditioner
        if inner is not None:
            precondition = inner.prepared(operator, b)
        return conjugate_gradient(
            operator.product,
            b,
            precondition=precondition,
            rtol=_rtol(self.rtol, b),
            limit=_limit(self.max_steps, b),
        )


class NormalCG(AbstractLinearSolver):
    """Conjugate gradient on J'J x = J'b, for any J; its condition number is squared."""

    rtol: float | None = None
    max_steps: int | None = None

    def solve(self, operator: Operator, b: Vector) -> Vector:
        return conjugate_gradient(
            lambda v: operator.transpose(operator.product(v)),
            operator.transpose(b),
            precondition=None,
            rtol=_rtol(self.rtol, b),
            limit=_limit(self.max_steps, b),
        )


class MINRES(AbstractLinearSolver):
    """For symmetric J, definite or not, matrix-free."""

    rtol: float | None = None
    max_steps: int | None = None

    def solve(self, operator: Operator, b: Vector) -> Vector:
        if not operator.structure.symmetric:
            raise TypeError(
                "`linear_solver=MINRES()` needs a symmetric Jacobian of the optimality conditions; "
                "this problem's is not: use GMRES() or NormalCG()."
            )
        return minres(
            operator.product, b, rtol=_rtol(self.rtol, b), limit=_limit(self.max_steps, b)
        )


class GMRES(AbstractLinearSolver):
    """For any J, matrix-free, restarted."""

    restart: int = 30
    rtol: float | None = None
    max_steps: int | None = None

    def __check_init__(self) -> None:
        check_settings(self)

    def solve(self, operator: Operator, b: Vector) -> Vector:
        return gmres(
            operator.product,
            b,
            precondition=operator.precondition,
            restart=self.restart,
            rtol=_rtol(self.rtol, b),
            limit=_limit(self.max_steps, b),
        )


class Neumann(AbstractLinearSolver):
    """The first `terms` of J^{-1} = s sum_i (I - s J)^i, s the `step_size`: an approximation.

    It converges where the eigenvalues of s J lie within 1 of 1 (a contraction's optimality does).
    """

    terms: int
    step_size: float = 1.0

    exact: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_settings(self)

    def solve(self, operator: Operator, b: Vector) -> Vector:
        step = jnp.asarray(self.step_size, b.dtype)

        def add(carry, _):
            term, total = carry
            term = term - step * operator.product(term)
            return (term, total + term), None

        (_, total), _ = jax.lax.scan(add, (b, b), length=self.terms - 1)
        return step * total


class _Refined(AbstractLinearSolver):
    """Sweeps with the forward solver's factorisation, refined on J itself.

    Where that solves its system to rounding two are enough. Where it does not, three in float64; in
    float32, where one gains a digit or two, six leave the errors of eight without `refine`'s steps.
    """

    sweeps: int

    @classmethod
    def like(cls, operator: Operator, b: Vector) -> "_Refined":
        if operator.accurate:
            return cls(2)
        return cls(3 if b.dtype == jnp.float64 else 6)

    def solve(self, operator: Operator, b: Vector) -> Vector:
        assert operator.precondition is not None
        return refine(operator.product, b, operator.precondition, self.sweeps)

    def fallbacks(self, operator: Operator, b: Vector) -> Sequence[AbstractLinearSolver]:
        if operator.accurate and b.dtype != jnp.float64:
            # Rows that nearly depend on the equalities are known to few digits, if any.
            return [_Refined(10), _MinimumNorm()]
        return super().fallbacks(operator, b)


class _MinimumNorm(AbstractLinearSolver):
    """The least-squares solution of least norm: SVD where J may be materialised, LSQR else."""

    least: ClassVar[bool] = True

    def solve(self, operator: Operator, b: Vector) -> Vector:
        if b.size > DENSE_LIMIT:
            return least_squares(
                operator.product, operator.transpose, b, rtol=_rtol(None, b), limit=10 * b.size
            )
        _, matrix = operator.materialised(b)
        left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
        cut = b.size * jnp.finfo(b.dtype).eps * jnp.max(values)
        keep = values > cut
        inverse = jnp.where(keep, 1 / jnp.where(keep, values, 1), 0)
        return matmul(right.T, inverse * matmul(left.T, b))


def default_linear_solver(operator: Operator, b: Vector) -> AbstractLinearSolver:
    """Refinement with the forward solver's factor; dense where small; CG, MINRES or GMRES else."""
    structure, size = operator.structure, b.size
    if operator.precondition is not None and size > (64 if structure.definite else SMALL):
        # A quasi-Newton inverse asks for tens of products; up to 64 unit vectors at once are less.
        return ConjugateGradient() if structure.definite else _Refined.like(operator, b)
    if size <= DENSE_LIMIT:
        return Dense()
    if structure.definite:
        return ConjugateGradient()
    return MINRES() if structure.symmetric else GMRES()


class Checked(NamedTuple):
    """A system's solution, its relative residual, and whether it is good enough to be believed."""

    x: Vector
    residual: Float[Array, ""]
    good: Bool[Array, ""]


def checked(
    solver: AbstractLinearSolver | None,
    operator: Operator,
    b: Vector,
    dtype: jnp.dtype | None = None,
) -> Checked:
    """Solve J x = b and measure it; the lanes that fail are solved again, at last for the minimum
    norm.

    Args:
        dtype: of the coarsest part of b, where it has parts of several.
    """
    solver = default_linear_solver(operator, b) if solver is None else solver
    eps = jnp.finfo(b.dtype if dtype is None else dtype).eps
    threshold = jnp.asarray(eps**0.4, b.dtype)
    if solver.dense:
        operator, _ = operator.materialised(b)

    def measured(operator: Operator, x: Vector) -> tuple[Vector, Float[Array, ""]]:
        residual = operator.product(x) - b
        return residual, norm(residual) / jnp.maximum(norm(b), jnp.finfo(b.dtype).tiny)

    x = solver.solve(operator, b)
    _, relative = measured(operator, x)
    if not solver.exact:
        return Checked(x, relative, finite(x))
    first = Checked(x, relative, relative <= threshold)

    def again(method: AbstractLinearSolver, b: Vector) -> tuple[Checked, Bool[Array, ""]]:
        exact = operator
        if method.dense or method.least and b.size <= DENSE_LIMIT:
            exact, _ = operator.materialised(b)
        x = method.solve(exact, b)
        residual, relative = measured(exact, x)
        good = relative <= threshold
        if method.least:
            # At a singular J what can be asked for is J' (J x - b) = 0, to the size of J times that
            # of b (of J'b alone rounding is all that is left where b is orthogonal to J).
            size = norm(exact.transpose(b))
            if exact.matrix is not None:
                size = jnp.maximum(size, norm(exact.matrix.ravel()) * norm(b))
            good = good | (norm(exact.transpose(residual)) <= threshold * size)
        return Checked(x, relative, good), jnp.ones_like(good)

    for method in solver.fallbacks(operator, b):
        program = Program(
            partial(again, method),
            lambda b, carry: (carry, jnp.ones_like(carry.good)),
            lambda b, carry: carry,
        )
        first = run(program, b, unless=(first.good | (norm(b) == 0), first))
    return first


def solve_checked(
    product: Callable[[PyTree], PyTree],
    b: PyTree[Array],
    *,
    solver: AbstractLinearSolver | None,
    structure: Structure,
    preconditioner: AbstractPreconditioner | None,
    trusted: Bool[Array, ""],
) -> PyTree[Array]:
    """x with J x = b, differentiable in J and b, forwards and backwards, at any order.

    Args:
        product: v -> J v on pytrees of the structure of `b`.
        b: the right-hand side.
        solver: the method; `None` chooses one (`default_linear_solver`).
        structure: what is known of J.
        preconditioner: the forward solver's approximate inverse.
        trusted: whether J stands for a solved problem; else x is NaN, unless b is 0.
    """
    flat, unravel = ravel_pytree(b)
    if not flat.size:
        return b
    dtype = coarsest(b)
    # Matrices of half precision are not factored.
    wide = flat.dtype if jnp.finfo(flat.dtype).bits >= 32 else jnp.dtype(jnp.float32)
    trusted = jax.lax.stop_gradient(trusted)

    axes = varying(flat)

    def narrow(v: Vector) -> PyTree[Array]:
        return unravel(v.astype(flat.dtype))

    def flat_product(v: Vector) -> Vector:
        return ravel_pytree(product(narrow(vary(v, axes))))[0].astype(wide)

    def method(transposed: bool):
        def apply(v: Vector) -> Vector:
            assert preconditioner is not None
            act = preconditioner.transpose_solve if transposed else preconditioner.solve
            return ravel_pytree(act(narrow(v)))[0].astype(wide)

        def solve(forward: Product, v: Vector) -> Vector:
            back = jax.linear_transpose(forward, v)
            operator = Operator(
                forward,
                lambda w: back(w)[0],
                structure,
                None if preconditioner is None else apply,
                preconditioner is not None and preconditioner.accurate,
            )
            # Of a lane that is refused nothing is asked; it may hold NaN.
            asked = jnp.where(trusted, v, jnp.zeros_like(v))
            unit = _unit(asked)
            out = checked(solver, operator, asked / unit, dtype)
            zero = ~jnp.any(v != 0)
            nan = jnp.full_like(v, jnp.nan)
            x = jnp.where(out.good & trusted, out.x * unit, nan)
            return jnp.where(zero, jnp.zeros_like(v), x)

        return solve

    with jax.default_matmul_precision(str(HIGHEST.name).lower()):
        x = jax.lax.custom_linear_solve(
            flat_product,
            flat.astype(wide),
            solve=method(False),
            transpose_solve=method(True),
            symmetric=structure.symmetric,
        )
    return narrow(x)


def _unit(b: Vector) -> Float[Array, ""]:
    """The power of two below the largest entry: the square of a small one would vanish, that of a
    large one overflow. A division by it is exact."""
    size = largest(b)
    size = jnp.where(jnp.isfinite(size) & (size > 0), size, jnp.ones_like(size))
    return jnp.ldexp(jnp.ones_like(size), jnp.frexp(size)[1] - 1)


def _rtol(rtol: float | Float[Array, ""] | None, b: Vector) -> float | Float[Array, ""]:
    return float(jnp.finfo(b.dtype).eps) ** 0.6 if rtol is None else rtol


def _limit(max_steps: int | None, b: Vector) -> int:
    return 10 * b.size if max_steps is None else max_steps
