"""Entropic optimal transport.

    minimise  sum_ij c_ij p_ij + epsilon KL(p | a b')    subject to    p 1 = a,  p' 1 = b
    KL(p | q) = sum p log(p / q) - p + q

With `tau` the sums are not held, but cost tau KL(p 1 | a) + tau KL(p' 1 | b). The solution is

    p_ij = a_i b_j exp((f_i + g_j - c_ij) / epsilon),
    f_i  = -lambda epsilon log sum_j b_j exp((g_j - c_ij) / epsilon)

with lambda = tau / (tau + epsilon) (1 where the sums are held), so that g, the shorter of the two
potentials, is all there is to find: it is the root of the columns' sums, a symmetric system that is
the gradient of the concave semi-dual function. g + t, f - t make the same p: where both sums are
held derivatives of g are taken with <b, dg> = 0, and potentials are returned with <b, g> = 0.

A float holds g to its last digit, and p to that digit over epsilon. So g is kept as a number for
the kernel and a small remainder in units of epsilon, by which float32 meets the sums.

Peyre and Cuturi (2019), Computational optimal transport; Chizat et al. (2018) for `tau`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from ..core.checks import check_array, check_shape, kind, show
from ..core.problem import AbstractProblem, Structure
from ..core.solution import RESULTS, Guess, Point, Residual, Scale
from ..core.unsolved import where_solved
from ..core.vectors import dot, positive
from .geometry import AbstractGeometry, AbstractKernel, Columns, Dense, Rows, Scalar

if TYPE_CHECKING:
    from ..core.solver import AbstractSolver
    from .plan import Plan


class Potential(NamedTuple):
    """g = value + epsilon remainder; its derivative is that of the value."""

    value: Columns
    remainder: Columns


class Sums(NamedTuple):
    """A plan's sums at a potential.

    Attributes:
        kernel: K, of the potential without its remainder.
        columns: v, so that p_ij = u_i K_ij b_j v_j.
        rows: u.
        f: the potential of the rows.
        back: K'u; the sums of the columns are b v (K'u).
        wanted: what v (K'u) must be, 1 or exp(-g / tau).
    """

    kernel: AbstractKernel
    columns: Columns
    rows: Rows
    f: Rows
    back: Columns
    wanted: Columns


class EntropicTransport(AbstractProblem):
    """The plan of least cost between two sets of weights, smoothed by entropy.

    The value is a `Plan`. Weights may be zero; their points take no part, but have potentials. All
    of cost, weights, epsilon and tau may be differentiated in: `solution.value.cost` at no more
    than the price of its evaluation, anything else by one linear system.

    Example:
        ```python
        x, y = jnp.array([0.0, 1.0, 2.0]), jnp.array([0.5, 1.5])
        problem = EntropicTransport((x[:, None] - y) ** 2, epsilon=0.1)
        plan = solve(problem).value
        plan.matrix, plan.cost
        ```

    Args:
        cost: a matrix (infinite entries forbid a pair), or a geometry (`from_points`, `from_grid`).
        a, b: weights of rows and columns, at least 0; `None`: equal ones, of sum 1. Where sums are
            held, both must have the same total.
        epsilon: in units of the cost, above 0.
        tau: `None`: sums are held. A number: what it costs to miss them, in units of the cost. A
            pair: one for each side.
    """

    cost: Float[Array, "n m"] | AbstractGeometry
    a: Float[Array, " n"] | None = None
    b: Float[Array, " m"] | None = None
    epsilon: Float[Array, ""] | Any = eqx.field(kw_only=True)
    tau: Any = eqx.field(default=None, kw_only=True)
    flipped: bool = eqx.field(default=False, static=True, kw_only=True, repr=False)

    @classmethod
    def from_points(
        cls,
        x: Float[Array, "n d"],
        y: Float[Array, "m d"],
        a: Float[Array, " n"] | None = None,
        b: Float[Array, " m"] | None = None,
        *,
        epsilon: Float[Array, ""] | float,
        tau: Any = None,
        cost_fn: Callable[[Array, Array], Array] | None = None,
        block: int | None = None,
    ) -> "EntropicTransport":
        """Between points, whose costs are computed where they are needed.

        Args:
            x, y: the points, one a row.
            a, b, epsilon, tau: as for a matrix.
            cost_fn: (x_i, y_j) -> cost; `None`: the squared Euclidean distance.
            block: rows of the matrix that are in memory at once; `None`: all of a matrix of up to
                2^22 entries, and about 2^22 entries of a larger one.
        """
        from .points import Points

        return cls(Points.of(x, y, cost_fn, block), a, b, epsilon=epsilon, tau=tau)

    @classmethod
    def from_grid(
        cls,
        shape: tuple[int, ...],
        a: Float[Array, " n"] | None = None,
        b: Float[Array, " n"] | None = None,
        *,
        epsilon: Float[Array, ""] | float,
        tau: Any = None,
        costs: tuple[Float[Array, "k l"], ...] | None = None,
    ) -> "EntropicTransport":
        """Between weights on a grid, with a cost that is a sum over its axes.

        Args:
            shape: of the grid; a and b have its product as length, or its shape.
            costs: of each axis, a matrix; `None`: the squared distance of points that are evenly
                spaced on [0, 1].
        """
        from .grid import Grid, on_grid

        name = cls.__name__
        first, second = (
            None if w is None else check_array(name, field, w) for field, w in (("a", a), ("b", b))
        )
        grid = Grid.of(shape, costs, second if first is None else first)
        rows, columns = grid.axes
        first, second = on_grid(name, "a", first, rows), on_grid(name, "b", second, columns)
        return cls(grid, first, second, epsilon=epsilon, tau=tau)

    @property
    def structure(self) -> Structure:
        return Structure(symmetric=True, definite=True)

    @property
    def geometry(self) -> AbstractGeometry:
        """The cost as a geometry."""
        return self.cost if isinstance(self.cost, AbstractGeometry) else Dense(self.cost)

    @property
    def weights(self) -> tuple[Rows, Columns]:
        """a and b."""
        a: Any = self.a
        b: Any = self.b
        return a, b

    @property
    def taus(self) -> tuple[Any, Any]:
        """tau of the rows and of the columns."""
        return self.tau if isinstance(self.tau, tuple) else (self.tau, self.tau)

    @property
    def balanced(self) -> bool:
        """Whether both sums are held."""
        return self.taus == (None, None)

    def weigh(self, found: Rows, base: Rows) -> tuple[Rows, Rows]:
        """u / a and f of rows with these K v."""
        tau, safe = self.taus[0], positive(found)
        log = jnp.where(found > 0, jnp.log(safe), 0)
        if tau is None:
            return 1 / safe, base - self.epsilon * log
        share = tau / (tau + self.epsilon)
        scaling = jnp.exp(-base / (tau + self.epsilon) - share * log)
        return scaling, share * (base - self.epsilon * log)

    def wanted(self, g: Columns) -> Columns:
        """The sums of the columns over b, at a solution."""
        tau = self.taus[1]
        return jnp.ones_like(g) if tau is None else jnp.exp(-g / tau)

    def whole(self, at: Potential) -> Columns:
        """g in one number."""
        return at.value + self.epsilon * lax.stop_gradient(at.remainder)

    def sums(self, at: Potential) -> Sums:
        """The plan's sums.

        v holds all that differs from the potential by which K was made, so that derivatives in g
        are products with K.
        """
        a, b = self.weights
        geometry, epsilon = self.geometry, self.epsilon
        fixed = lax.stop_gradient(at.value)
        kernel = geometry.kernel(fixed, b > 0, epsilon)
        v = jnp.exp((at.value - fixed) / epsilon + lax.stop_gradient(at.remainder))
        found, back = kernel.through(b * v, lambda r, base, a: a * self.weigh(r, base)[0], a)
        scaling, f = self.weigh(found, kernel.base)
        return Sums(kernel, v, a * scaling, f, back, self.wanted(self.whole(at)))

    def optimality(self, point: Point) -> Point:
        at: Any = point.primal
        _, b = self.weights
        sums, epsilon = self.sums(at), self.epsilon
        live = b > 0
        # A column without weight has an equation of its own, which holds its potential.
        mass = jnp.sum(b)
        share = jnp.where(live, b, mass / b.size)
        back = jnp.where(live, sums.back, lax.stop_gradient(sums.back))
        found = epsilon * share * (sums.columns * back - sums.wanted)
        if self.balanced:
            # Which constant is added to g is for `Plan.potentials` to say.
            found = found + b * dot(b, at.value - lax.stop_gradient(at.value)) / mass
        return Point(Potential(found, at.remainder - lax.stop_gradient(at.remainder)))

    def residual(self, point: Point) -> Residual:
        """The sum of what the columns' sums are off by, judged by their total. The rows' sums hold
        by how f is formed."""
        at: Any = point.primal
        sums = self.sums(at)
        _, b = self.weights
        error = missing(b, sums.columns * sums.back, sums.wanted)
        zero, one = jnp.zeros_like(error), jnp.ones_like(error)
        return Residual(error, zero, zero, Scale(self.total(sums.wanted), one, one))

    def total(self, wanted: Columns) -> Scalar:
        """The plan's: where `tau` lets little of the weights go, that little counts, but for what
        is nothing beside them."""
        limits = jnp.finfo(wanted.dtype)
        return jnp.clip(dot(self.weights[1], wanted), limits.eps**2 * self.mass, limits.max)

    @property
    def mass(self) -> Scalar:
        """The total weight."""
        return positive(jnp.sum(self.weights[1]))

    def potentials(self, at: Potential) -> tuple[Rows, Columns]:
        """f and g; those of columns without weight from the others."""
        _, b = self.weights
        sums = self.sums(at)
        log = jnp.log(positive(sums.back))
        fixed = lax.stop_gradient(at.value)
        extended, tau = fixed - self.epsilon * log, self.taus[1]
        if tau is not None:
            extended = extended * (tau / (tau + self.epsilon))
        return sums.f, jnp.where(b > 0, self.whole(at), extended)

    def semidual(self, at: Potential) -> Scalar:
        """The dual objective with the best f: the optimal value at a solution, below it else."""
        a, b = self.weights
        sums = self.sums(at)
        left, right = self.taus

        def part(weight: Array, potential: Array, tau: Any) -> Scalar:
            if tau is None:
                return dot(weight, potential)
            return -tau * dot(weight, jnp.expm1(-potential / tau))

        # u K b v sums to a exp(-f / tau) in each row: by how f is formed.
        total = dot(a, jnp.ones_like(a) if left is None else jnp.exp(-sums.f / left))
        entropy = self.epsilon * (total - jnp.sum(a) * jnp.sum(b))
        return part(a, sums.f, left) + part(b, self.whole(at), right) - entropy

    def default_solver(self) -> "AbstractSolver":
        from .sinkhorn import Sinkhorn

        return Sinkhorn()

    def prepare(self, init: PyTree | None) -> tuple[Self, Potential]:
        name, geometry = type(self).__name__, self.geometry.checked()
        n, m = geometry.shape
        like = jnp.zeros((), geometry.dtype)
        a, b = self.a, self.b
        weights = []
        for field, given, size in (("a", a, n), ("b", b, m)):
            if given is None:
                given = jnp.full((size,), 1 / size, geometry.dtype)
            given = floating(name, field, given, like)
            against = f"{geometry.dtype}[{n}, {m}]"
            check_shape(name, field, (show(given), given.shape), (size,), "cost", against)
            weights.append(given)
        epsilon = scalar(name, "epsilon", self.epsilon, like)
        if len(self.taus) != 2:
            raise ValueError(f"{name}: `tau` must be a number or a pair; it has {len(self.taus)}.")
        taus = tuple(None if t is None else scalar(name, "tau", t, like) for t in self.taus)
        flip = n < m
        if flip:
            geometry, weights, taus = geometry.transposed(), weights[::-1], taus[::-1]
        problem = type(self)(
            geometry, *weights, epsilon=epsilon, tau=taus, flipped=self.flipped ^ flip
        )
        return problem, _start(name, init, problem)

    def restore(self, value: Any) -> "Plan":
        from .plan import Plan

        return Plan(self, value.value, value.remainder)

    def stationary(self, value: Any, solved: Bool[Array, ""]) -> "Plan":
        from .plan import Plan

        trust = lax.stop_gradient(jnp.where(solved, 1, 0).astype(value.potential.dtype))
        given = where_solved(value.problem.weights, solved)
        problem = eqx.tree_at(lambda p: (p.a, p.b), value.problem, given)
        return Plan(problem, value.potential, value.remainder, trust)

    def screen(self, guess: Guess) -> tuple[Any, Point]:
        at: Any = guess.primal
        a, b = self.weights
        arrays = jax.tree.leaves(eqx.filter(self.geometry, eqx.is_inexact_array))
        clean = jnp.all(jnp.isfinite(self.epsilon))
        for x in arrays:
            clean = clean & ~jnp.any(jnp.isnan(x) | (x == -jnp.inf))
        for x in (a, b, *at, *(t for t in self.taus if t is not None)):
            clean = clean & jnp.all(jnp.isfinite(x))
        convex = self.epsilon > 0
        for tau in self.taus:
            convex = convex if tau is None else convex & (tau > 0)
        row, column = jnp.sum(a), jnp.sum(b)
        impossible = (jnp.min(a) < 0) | (jnp.min(b) < 0) | (row <= 0) | (column <= 0)
        if self.balanced:
            gap = jnp.abs(row - column)
            impossible = impossible | (gap > jnp.finfo(row.dtype).eps ** 0.6 * (row + column))
        result = RESULTS.where(impossible, RESULTS.infeasible, RESULTS.successful)
        result = RESULTS.where(convex, result, RESULTS.nonconvex)
        return RESULTS.where(clean, result, RESULTS.nonfinite_input), Point(at)

    def describe(self) -> list[str]:
        problem, _ = self.prepare(None)
        a, b = problem.weights
        found = []
        if float(problem.epsilon) <= 0:
            found.append("`epsilon` is not positive.")
        if float(jnp.minimum(jnp.min(a), jnp.min(b))) < 0:
            found.append("A weight is negative.")
        row, column = float(jnp.sum(a)), float(jnp.sum(b))
        if problem.balanced and abs(row - column) > 1e-6 * (row + column):
            found.append(f"The weights add up to {row:.6g} and {column:.6g}; `tau` allows that.")
        return found


def missing(b: Columns, found: Columns, wanted: Columns) -> Scalar:
    """The sum of the differences of the columns' sums."""
    return jnp.sum(jnp.where(b > 0, b * jnp.abs(found - wanted), 0))


def _start(name: str, init: PyTree | None, problem: EntropicTransport) -> Potential:
    from .plan import Plan

    size = problem.geometry.shape[1]
    if init is None:
        zero = jnp.zeros((size,), problem.geometry.dtype)
        return Potential(zero, zero)
    if not isinstance(init, Plan):
        raise TypeError(f"{name}: `init` must be a Plan, or the Solution of a like problem.")
    if init.potential.shape != (size,) or init.problem.flipped != problem.flipped:
        raise ValueError(
            f"{name}: `init` is a plan of shape {init.shape}, but the cost has shape "
            f"{problem.geometry.shape[:: -1 if problem.flipped else 1]}."
        )
    return Potential(init.potential, init.remainder)


def floating(name: str, field: str, value: Any, like: Array) -> Array:
    """An array of the costs' dtype: numbers are cast, arrays of another dtype refused."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: `{field}` must be a number; got {kind(value)}.")
    array = check_array(name, field, value)
    number = isinstance(value, int | float) or array.weak_type
    if number and not jnp.issubdtype(array.dtype, jnp.complexfloating):
        return array.astype(like.dtype)
    if array.dtype != like.dtype:
        raise TypeError(
            f"{name}: `{field}` is {show(array)}, but the cost's dtype is {like.dtype}. Cast them "
            "to one precision."
        )
    return array


def scalar(name: str, field: str, value: Any, like: Array) -> Scalar:
    """The same, of shape ()."""
    array = floating(name, field, value, like)
    if array.ndim:
        raise ValueError(f"{name}: `{field}` must be a scalar; it is {show(array)}.")
    return array
