"""Sorting and ranking as layers: entropic transport of values to fixed targets.

plan   from n values, squashed between 0 and 1, to m targets between 0 and 1 (transport/sorting)
sorted value of target j      the mean of the values that go to it
rank of value i               n times the mean of the targets to which it goes, plus 1/2, n being
                              the number of values that have weight
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.adjoint import AbstractAdjoint
from ..core.checks import check_instance, check_positive, show
from ..core.solve import solve
from ..core.vectors import positive
from ..transport.plan import Plan
from ..transport.sorting import places, sorting_problem

Vector = Float[Array, " n"]


class _ToTargets(eqx.Module):
    """Values to targets: what sorting and ranking share."""

    epsilon: Float[Array, ""] | float = 1e-2
    targets: int | Sequence[float] | Array | None = None
    axis: int = eqx.field(default=-1, static=True)
    solver: Any = None
    adjoint: AbstractAdjoint | None = None

    def plan(self, values: Float[Array, " n"], weights: Float[Array, " n"] | None = None) -> Plan:
        """The soft permutation of one vector, from values to targets: `plan.matrix` has a row for
        each value. With equal weights n times the matrix has rows and columns of sum 1 (m = n).

        Args:
            values: one vector, whatever `axis` is.
            weights: as in the call.
        """
        values, weights = self._checked(values, weights, (0,))
        return self._solved(values, weights)

    def _solved(self, values: Vector, weights: Vector) -> Plan:
        weights = weights / positive(jnp.sum(weights))
        problem = sorting_problem(values, weights, self._shares(values), epsilon=self.epsilon)
        return solve(problem, self.solver, adjoint=self.adjoint, throw=False).value

    def _shares(self, values: Vector) -> Float[Array, " m"]:
        """The weights of the targets, of sum 1."""
        targets: Any = values.size if self.targets is None else self.targets
        counts = isinstance(targets, int | np.integer) and not isinstance(targets, bool)
        if counts and targets >= 1:
            targets = np.ones(targets)
        shares = jnp.asarray(targets, values.dtype)
        if shares.ndim != 1 or shares.size == 0:
            raise ValueError(
                f"{type(self).__name__}: `targets` must be a number of at least 1, or one vector "
                f"of weights; it is {self.targets!r}."
            )
        return shares / positive(jnp.sum(shares))

    def _checked(self, values: Any, weights: Any, axes: tuple[int, ...]) -> tuple[Array, Array]:
        name = type(self).__name__
        check_positive(name, epsilon=self.epsilon)
        check_instance(name, "axis", self.axis, int, "a whole number")
        values = jnp.asarray(values)
        if values.dtype not in (jnp.float32, jnp.float64):
            raise TypeError(f"{name}: `values` is {show(values)}: give float32 or float64.")
        if values.ndim == 0 or not -values.ndim <= self.axis < values.ndim:
            raise ValueError(f"{name}: `values` is {show(values)}, which has no axis {self.axis}.")
        if axes and values.ndim != 1:
            raise ValueError(f"{name}.plan: `values` is {show(values)}: it must be one vector.")
        if values.size == 0:
            raise ValueError(f"{name}: `values` is {show(values)}: there is nothing to sort.")
        if weights is None:
            return values, jnp.ones_like(values)
        weights = jnp.asarray(weights, values.dtype)
        if weights.ndim == 1 and values.ndim > 1 and weights.size == values.shape[self.axis]:
            others = [i for i in range(values.ndim) if i != self.axis % values.ndim]
            weights = jnp.broadcast_to(jnp.expand_dims(weights, others), values.shape)
        if weights.shape != values.shape:
            raise ValueError(
                f"{name}: `weights` is {show(weights)}, but `values` is {show(values)}: `weights` "
                f"must have its shape, or that of its axis {self.axis}."
            )
        return values, weights

    def _along(self, fn: Callable[[Array, Array], Array], values: Any, weights: Any) -> Array:
        """fn of each vector along the axis."""
        values, weights = self._checked(values, weights, ())
        if values.ndim == 1:
            return fn(values, weights)
        moved = [jnp.moveaxis(x, self.axis, -1) for x in (values, weights)]
        rows = [x.reshape(-1, x.shape[-1]) for x in moved]
        found = jax.vmap(fn)(*rows)
        return jnp.moveaxis(found.reshape(*moved[0].shape[:-1], -1), -1, self.axis)


class SoftSort(_ToTargets):
    """The values in increasing order, smoothed.

    Each sorted value is a mean of the values, weighted by the plan: they are increasing, between
    the least and the largest, and go to `jnp.sort(values)` as epsilon falls. Scale and place of the
    values change nothing but scale and place of the result. A vector without spread, or of one
    value, is returned as it is. Nothing is raised where a solve fails: its derivative is NaN in
    that lane alone.

    Example:
        ```python
        SoftSort(epsilon=1e-3)(jnp.array([3.0, 1.0, 2.0]))
        SoftSort(targets=(0.45, 0.1, 0.45))(jnp.arange(101.0))[1]  # about the median
        ```

    Args:
        epsilon: of the squared distance between places on [0, 1] (a value's place is its sigmoid,
            standardised; a target's the part of the weight below it). The smaller, the nearer to
            the sorted values, and the less smooth.
        targets: `None`: as many results as values. A number: that many quantiles, each the mean of
            an equal part of the sorted values. Weights: each the mean of its part of them.
        axis: along which values are sorted; in the result its length is that of the targets.
        solver, adjoint: as in `solve`.
    """

    def __call__(
        self, values: Float[Array, "..."], weights: Float[Array, "..."] | None = None
    ) -> Float[Array, "..."]:
        """The sorted values.

        Args:
            values: any number of axes.
            weights: at least 0, of the shape of the values or of one vector of them; `None`: equal.
                Those of weight 0 take no part.

        Raises:
            TypeError, ValueError: at trace time, where shapes or dtypes do not fit.
        """

        def ordered(x: Vector, a: Vector) -> Vector:
            # A padding of infinity has no part in a mean.
            return self._solved(x, a).mean(jnp.where(a > 0, x, 0), axis=0)

        return self._along(ordered, values, weights)


class SoftRank(_ToTargets):
    """The ranks of values, from 1 for the least to n for the largest, smoothed.

    They are increasing in the values, have the weighted mean (n + 1) / 2, n counting the values
    that have weight, are the same for equal values and
    for values of another scale and place, and go to `jax.scipy.stats.rankdata(values)` as epsilon
    falls. For decreasing ranks negate the values. Nothing is raised where a solve fails: its
    derivative is NaN in that lane alone.

    Example:
        ```python
        SoftRank(epsilon=1e-3)(jnp.array([3.0, 1.0, 2.0]))
        ```

    Args:
        epsilon: as in `SoftSort`.
        targets: `None`: as many as values. A number, or weights: of fewer targets, faster; ranks
            then are those of the parts of the values that go to them.
        axis: along which values are ranked.
        solver, adjoint: as in `solve`.
    """

    def __call__(
        self, values: Float[Array, "..."], weights: Float[Array, "..."] | None = None
    ) -> Float[Array, "..."]:
        """The ranks, of the shape of the values.

        Args:
            values: any number of axes.
            weights: at least 0, of the shape of the values or of one vector of them; `None`: equal.
                Values of weight 0 are ranked among the others, and do not count.

        Raises:
            TypeError, ValueError: at trace time, where shapes or dtypes do not fit.
        """

        def rank(x: Vector, a: Vector) -> Vector:
            return jnp.sum(a > 0) * self._solved(x, a).mean(places(self._shares(x))) + 0.5

        return self._along(rank, values, weights)
