"""Entropic barycentres of measures.

    minimise  sum_k w_k (sum_ij c_kij p_kij + epsilon KL(p_k | a_k r'))
    subject to  p_k 1 = a_k,  p_k' 1 = b  for all k

in the plans p_k and the barycentre b, with w summing to 1 and r equal weights of sum 1. The entropy
is taken against r, not against b: so b is smoother than the measures, on the real line with squared
distances by a variance of epsilon / 2. The solution is

    p_kij = a_ki r_j exp((f_ki + g_kj - c_kij) / epsilon),    sum_k w_k g_k = 0,
    f_ki  = -epsilon log sum_j r_j exp((g_kj - c_kij) / epsilon)

so that the g_k are what there is to find. With g_k = y_k - sum_l w_l y_l the last condition holds
by itself, and the gradient of the concave semi-dual function in y,

    w_k (p_k' 1 - sum_l w_l p_l' 1) = 0,

is a symmetric system. It leaves open one y for all, and a constant in each: derivatives are taken
without these.

Agueh and Carlier (2011); Benamou, Carlier, Cuturi, Nenna and Peyre (2015).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from ..core.adjoint import envelope
from ..core.checks import check_array, check_shape, show
from ..core.problem import AbstractProblem, Structure
from ..core.solution import RESULTS, Guess, Point, Residual, Scale
from ..core.unsolved import where_solved
from ..core.vectors import dot, positive
from .entropic_transport import Potential, floating, scalar
from .geometry import AbstractGeometry, AbstractKernel, Dense, Scalar

if TYPE_CHECKING:
    from ..core.solver import AbstractSolver

Each = Float[Array, "k m"]


class Shares(NamedTuple):
    """The plans at potentials: p_k = diag(rows_k) K_k diag(columns_k) / m.

    Attributes:
        kernels: K, batched.
        columns, rows: the factors.
        f: the potentials of the rows.
        sums: the columns' sums of each plan.
    """

    kernels: AbstractKernel
    columns: Each
    rows: Float[Array, "k n"]
    f: Float[Array, "k n"]
    sums: Each


class Barycentre(AbstractProblem):
    """The measure that is least far, in entropic transport, from all of several.

    The value is `Couplings`: `barycentre`, the plans to it, the optimal value. Costs, measures,
    weights and epsilon may be differentiated in.

    Example:
        ```python
        x = jnp.linspace(0, 1, 50)
        measures = jnp.stack([x < 0.2, x > 0.6]).astype(float)
        measures = measures / measures.sum(axis=1, keepdims=True)
        problem = Barycentre((x[:, None] - x) ** 2, measures, epsilon=1e-2)
        solve(problem).value.barycentre
        ```

    Args:
        cost: from the points of the measures (rows) to those of the barycentre (columns): a matrix
            for all measures (infinite entries forbid a pair), one for each, or a geometry
            (`from_points`, `from_grid`).
        measures: a row each, at least 0, all of the same total.
        weights: of the measures, at least 0; only their proportions matter; `None`: equal ones. A
            measure of weight 0 has no part in the barycentre; its own plan has no derivative.
        epsilon: in units of the cost, above 0.
    """

    cost: Float[Array, "n m"] | Float[Array, "k n m"] | AbstractGeometry
    measures: Float[Array, "k n"]
    weights: Float[Array, " k"] | None = None
    epsilon: Float[Array, ""] | Any = eqx.field(kw_only=True)

    @classmethod
    def from_points(
        cls,
        x: Float[Array, "n d"],
        measures: Float[Array, "k n"],
        weights: Float[Array, " k"] | None = None,
        *,
        epsilon: Float[Array, ""] | float,
        y: Float[Array, "m d"] | None = None,
        cost_fn: Callable[[Array, Array], Array] | None = None,
        block: int | None = None,
    ) -> "Barycentre":
        """Of measures on points.

        Args:
            x: the points, one a row.
            y: those of the barycentre; `None`: the same.
            measures, weights, epsilon: as for a matrix.
            cost_fn, block: as in `EntropicTransport.from_points`.
        """
        from .points import Points

        return cls(Points.of(x, x if y is None else y, cost_fn, block), measures, weights,
                   epsilon=epsilon)  # fmt: skip

    @classmethod
    def from_grid(
        cls,
        shape: tuple[int, ...],
        measures: Float[Array, "k n"],
        weights: Float[Array, " k"] | None = None,
        *,
        epsilon: Float[Array, ""] | float,
        costs: tuple[Float[Array, "k l"], ...] | None = None,
    ) -> "Barycentre":
        """Of measures on a grid, images for example, with a cost that is a sum over its axes.

        Args:
            shape: of the grid; a measure has its product as length, or its shape.
            measures, weights, epsilon: as for a matrix.
            costs: as in `EntropicTransport.from_grid`.
        """
        from .grid import Grid

        measures = check_array(cls.__name__, "measures", measures)
        grid = Grid.of(shape, costs, measures)
        if measures.ndim != 2:
            wanted = (None, *grid.axes[0])
            given = show(measures), measures.shape
            check_shape(cls.__name__, "measures", given, wanted, "shape", str(tuple(shape)))
            measures = measures.reshape(measures.shape[0], -1)
        return cls(grid, measures, weights, epsilon=epsilon)

    @property
    def structure(self) -> Structure:
        return Structure(symmetric=True, definite=True)

    @property
    def geometry(self) -> AbstractGeometry:
        """The cost of the first measure as a geometry."""
        if isinstance(self.cost, AbstractGeometry):
            return self.cost
        return Dense(self.cost[0] if self.cost.ndim == 3 else self.cost)

    def each(self, fn: Callable, *arrays: Any) -> Any:
        """fn(geometry, *arrays) of each measure."""
        if isinstance(self.cost, AbstractGeometry) or self.cost.ndim == 2:
            geometry = self.geometry
            return eqx.filter_vmap(lambda *x: fn(geometry, *x))(*arrays)
        return eqx.filter_vmap(lambda c, *x: fn(Dense(c), *x))(self.cost, *arrays)

    @property
    def proportions(self) -> Float[Array, " k"]:
        """w."""
        w: Any = self.weights
        return w / positive(jnp.sum(w))

    @property
    def mass(self) -> Scalar:
        """The total of a measure."""
        return positive(jnp.sum(self.measures[0]))

    def mean(self, each: Float[Array, "k *rest"]) -> Float[Array, "*rest"]:
        """sum_k w_k x_k."""
        return jnp.tensordot(self.proportions, each, axes=1, precision=lax.Precision.HIGHEST)

    def kernels(self, g: Each) -> AbstractKernel:
        """K of each measure, batched."""
        live = jnp.ones(g.shape[1], bool)
        return self.each(lambda geometry, g: geometry.kernel(g, live, self.epsilon), g)

    def shares(self, at: Potential) -> Shares:
        """The plans. Derivatives in y are products with K, which is made of constants."""
        fixed, size = lax.stop_gradient(at.value), at.value.shape[1]
        rest = lax.stop_gradient(at.remainder)
        kernels = self.kernels(fixed)
        middle = self.mean(at.value / self.epsilon + rest)
        v = jnp.exp((at.value - fixed) / self.epsilon + rest - middle)
        found, back = through(kernels, v / size, self.measures)
        f = kernels.base - self.epsilon * jnp.log(positive(found))
        return Shares(kernels, v, self.measures / positive(found), f, v * back / size)

    def optimality(self, point: Point) -> Point:
        at: Any = point.primal
        w = self.proportions[:, None]
        sums = self.shares(at).sums
        barycentre = self.mean(sums)
        found = self.epsilon * w * (sums - barycentre)

        moved = at.value - lax.stop_gradient(at.value)
        level = lax.stop_gradient(barycentre)
        least = jnp.finfo(level.dtype).eps ** 2 * self.mass / level.size
        together = level * self.mean(moved)
        constant = level * jnp.sum(level * moved, axis=1, keepdims=True) / self.mass
        # The last holds columns that have no weight to speak of.
        found = found + w * (together + constant + least * moved)
        found = jnp.where(w > 0, found, self.mass / level.size * moved)
        return Point(Potential(found, at.remainder - lax.stop_gradient(at.remainder)))

    def residual(self, point: Point) -> Residual:
        """The largest of what the plans' columns are off the barycentre by, summed, judged by the
        total weight; measures of weight 0 too. The rows' sums hold by how f is formed."""
        at: Any = point.primal
        sums = self.shares(at).sums
        error = jnp.max(jnp.sum(jnp.abs(sums - self.mean(sums)), axis=1))
        zero, one = jnp.zeros_like(error), jnp.ones_like(error)
        return Residual(error, zero, zero, Scale(self.mass, one, one))

    def semidual(self, at: Potential) -> Scalar:
        """The dual objective with the best f: the optimal value at a solution, below it else."""
        shares = self.shares(at)
        each = jax.vmap(dot)(self.measures, shares.f)
        left = jnp.sum(self.measures, axis=1) - jnp.sum(shares.sums, axis=1)
        return self.mean(each + self.epsilon * left)

    def default_solver(self) -> "AbstractSolver":
        from .bregman_projections import BregmanProjections

        return BregmanProjections()

    def prepare(self, init: PyTree | None) -> tuple[Self, Potential]:
        name, cost = type(self).__name__, self.cost
        if not isinstance(cost, AbstractGeometry):
            cost = check_array(name, "cost", cost)
            if cost.ndim not in (2, 3) or cost.size == 0:
                raise ValueError(
                    f"{name}: `cost` is {show(cost)}: it must have shape [any, any] or "
                    "[measures, any, any], with one entry or more."
                )
        problem = eqx.tree_at(lambda p: p.cost, self, cost)
        geometry = problem.geometry.checked()
        if isinstance(cost, AbstractGeometry):
            cost = geometry
        n, m = geometry.shape
        like = jnp.zeros((), geometry.dtype)
        measures = floating(name, "measures", self.measures, like)
        against = f"{geometry.dtype}[{n}, {m}]"
        wanted = (None, n) if not (eqx.is_array(cost) and cost.ndim == 3) else (cost.shape[0], n)
        check_shape(name, "measures", (show(measures), measures.shape), wanted, "cost", against)
        count = measures.shape[0]
        if count == 0:
            raise ValueError(f"{name}: `measures` is {show(measures)}: there is none.")
        weights = jnp.ones(count, like.dtype) if self.weights is None else self.weights
        weights = floating(name, "weights", weights, like)
        check_shape(
            name, "weights", (show(weights), weights.shape), (count,), "measures", show(measures)
        )
        epsilon = scalar(name, "epsilon", self.epsilon, like)
        problem = type(self)(cost, measures, weights, epsilon=epsilon)
        if init is None:
            zero = jnp.zeros((count, m), like.dtype)
            return problem, Potential(zero, zero)
        if not isinstance(init, Couplings):
            raise TypeError(f"{name}: `init` must be Couplings, or the Solution of a like problem.")
        if init.potential.shape != (count, m):
            raise ValueError(
                f"{name}: `init` has potentials of shape {init.potential.shape}, but the problem "
                f"has {(count, m)}."
            )
        # Its own weights may be others.
        value, rest = init.potential, init.remainder
        return problem, Potential(value - problem.mean(value), rest - problem.mean(rest))

    def restore(self, value: Any) -> "Couplings":
        return Couplings(self, value.value, value.remainder)

    def stationary(self, value: Any, solved: Bool[Array, ""]) -> "Couplings":
        trust = lax.stop_gradient(jnp.where(solved, 1, 0).astype(value.potential.dtype))
        given = value.problem.measures, value.problem.weights
        problem = eqx.tree_at(
            lambda p: (p.measures, p.weights), value.problem, where_solved(given, solved)
        )
        return Couplings(problem, value.potential, value.remainder, trust)

    def screen(self, guess: Guess) -> tuple[Any, Point]:
        at: Any = guess.primal
        w: Any = self.weights
        clean = jnp.all(jnp.isfinite(self.epsilon))
        for x in jax.tree.leaves(eqx.filter(self.cost, eqx.is_inexact_array)):
            clean = clean & ~jnp.any(jnp.isnan(x) | (x == -jnp.inf))
        for x in (self.measures, w, *at):
            clean = clean & jnp.all(jnp.isfinite(x))
        totals = jnp.sum(self.measures, axis=1)
        gap = jnp.max(totals) - jnp.min(totals)
        impossible = (jnp.min(self.measures) < 0) | (jnp.min(w) < 0) | (jnp.sum(w) <= 0)
        impossible = impossible | (jnp.min(totals) <= 0)
        impossible = impossible | (gap > jnp.finfo(gap.dtype).eps ** 0.6 * jnp.max(totals))
        result = RESULTS.where(impossible, RESULTS.infeasible, RESULTS.successful)
        result = RESULTS.where(self.epsilon > 0, result, RESULTS.nonconvex)
        return RESULTS.where(clean, result, RESULTS.nonfinite_input), Point(at)

    def describe(self) -> list[str]:
        problem, _ = self.prepare(None)
        w: Any = problem.weights
        found = []
        if float(problem.epsilon) <= 0:
            found.append("`epsilon` is not positive.")
        if float(jnp.min(problem.measures)) < 0 or float(jnp.min(w)) < 0:
            found.append("A measure or a weight is negative.")
        totals = jnp.sum(problem.measures, axis=1)
        if float(jnp.max(totals) - jnp.min(totals)) > 1e-6 * float(jnp.max(totals)):
            found.append(f"The measures add up to {[round(float(t), 6) for t in totals]}.")
        return found


class Couplings(eqx.Module):
    """The plans from measures to their barycentre, by the potentials of its points.

    Every property is a differentiable function of the problem's data.

    Attributes:
        problem: as it was solved.
        potential, remainder: of each measure; see `Potential`.
        trust: 1 where the plans meet, 0 where not, `None` where nobody has looked.
    """

    problem: Barycentre
    potential: Each
    remainder: Each
    trust: Float[Array, ""] | None = None

    @property
    def at(self) -> Potential:
        """The potentials with their remainders."""
        return Potential(self.potential, self.remainder)

    @property
    def barycentre(self) -> Float[Array, " m"]:
        """b: the weights of the barycentre's points."""
        return self.problem.mean(self.problem.shares(self.at).sums)

    @property
    def matrices(self) -> Float[Array, "k n m"]:
        """The plans, from each measure to the barycentre."""
        shares = self.problem.shares(self.at)
        columns = shares.columns / shares.columns.shape[1]
        return eqx.filter_vmap(lambda k, u, v: k.scaled(u, v))(shares.kernels, shares.rows, columns)

    @property
    def potentials(self) -> tuple[Float[Array, "k n"], Float[Array, "k m"]]:
        """f and g, each g_k with mean 0."""
        problem = self.problem
        g = self.potential + problem.epsilon * lax.stop_gradient(self.remainder)
        g = g - problem.mean(g)
        middle = jnp.mean(g, axis=1, keepdims=True)
        return problem.shares(self.at).f + middle, g - middle

    @property
    def cost(self) -> Scalar:
        """The optimal value. Its derivative is that of the data at the plans as they are."""
        if self.trust is None:
            return self.problem.semidual(self.at)
        data, rest = eqx.partition(self.problem, eqx.is_inexact_array)
        return envelope(
            lambda at, data: eqx.combine(data, rest).semidual(at), self.at, data, self.trust > 0
        )


def through(
    kernels: AbstractKernel, columns: Each, measures: Float[Array, "k n"]
) -> tuple[Float[Array, "k n"], Each]:
    """K v and K'(a / K v) of each measure."""

    def one(kernel: AbstractKernel, v: Array, a: Array) -> tuple[Array, Array]:
        return kernel.through(v, lambda found, _, a: a / positive(found), a)

    return eqx.filter_vmap(one)(kernels, columns, measures)
