"""What a penalty is: a convex function h with its proximal operator,

    prox(z, s) = argmin_y  h(y) + ||y - z||^2 / (2 s).

It is single-valued and nonexpansive whatever h is, and its Jacobian is symmetric with eigenvalues
between 0 and 1 wherever it exists.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...core.checks import check_array, check_number, show
from ...core.solution import is_traced


class AbstractPenalty(eqx.Module):
    """A convex function of a pytree of floating arrays, and its proximal operator."""

    @abc.abstractmethod
    def value(self, y: PyTree[Array]) -> Float[Array, ""]:
        """h(y); infinite outside of the domain."""

    def inside(self, y: PyTree[Array]) -> Float[Array, ""]:
        """h(y) of a y that `prox` has returned: a set need not be asked again."""
        return self.value(y)

    @abc.abstractmethod
    def prox(self, point: PyTree[Array], step_size: Float[Array, ""]) -> PyTree[Array]:
        """argmin_y h(y) + ||y - point||^2 / (2 step_size), differentiable in all it is given."""

    def remainder(self, point: PyTree[Array], step_size: Float[Array, ""]) -> PyTree[Array]:
        """point - prox(point, step_size), without cancellation where the penalty can."""
        return jax.tree.map(jnp.subtract, point, self.prox(point, step_size))

    @abc.abstractmethod
    def check(self, y: PyTree[Array], name: str) -> None:
        """Raise where the penalty does not fit a variable that the caller knows as `name`."""

    def valid(self) -> Bool[Array, ""]:
        """Whether h is convex: no weight is negative. NaN is not asked about."""
        return jnp.array(True)

    def nowhere(self, y: PyTree[Array]) -> Bool[Array, ""]:
        """Whether h is known to be infinite everywhere."""
        return jnp.array(False)

    def describe(self) -> list[str]:
        """What the data say, in words; eager."""
        return []

    def projects(self, y: PyTree[Array]) -> bool:
        """Whether the Jacobian of `prox` is an orthogonal projection wherever it exists, as it is
        for polyhedral functions: the optimality conditions are then symmetric."""
        return False

    def blocks(self, y: PyTree[Array]) -> "Blocks | None":
        """h as a sum over blocks of coordinates, `None` where it is no such sum."""
        return None

    def split(self) -> "tuple[Callable[[PyTree[Array]], Float[Array, '']] | None, AbstractPenalty]":
        """A smooth part (`None` where there is none) and the rest."""
        return None, self


class Blocks(NamedTuple):
    """h as a sum over blocks of coordinates.

    Attributes:
        order: the coordinates of each block, of all leaves one after another; their number where a
            block is shorter than others.
        weights: of each block.
        prox: (weight, entries of a block, step size) -> entries.
    """

    order: Int[np.ndarray, "blocks width"]
    weights: Float[Array, " blocks"]
    prox: Callable[[Array, Array, Array], Array]


class AbstractWeighted(AbstractPenalty):
    """A penalty that is a sum over the leaves of its variable, with a weight for each.

    `weight` is a scalar or an array that goes for every leaf, or a pytree of the variable's
    structure with one for each.
    """

    weight: eqx.AbstractVar[PyTree[Array]]

    @abc.abstractmethod
    def leaf_value(self, weight: Array, y: Array) -> Float[Array, ""]: ...

    @abc.abstractmethod
    def leaf_prox(self, weight: Array, point: Array, step_size: Array) -> Array: ...

    def leaf_remainder(self, weight: Array, point: Array, step_size: Array) -> Array:
        return point - self.leaf_prox(weight, point, step_size)

    @abc.abstractmethod
    def weight_shape(self, y: Any) -> tuple[int, ...]:
        """The shape that the weight of such a leaf broadcasts to; raises `ValueError` with the
        reason where the penalty is not defined on it."""

    def value(self, y: PyTree[Array]) -> Float[Array, ""]:
        parts = jax.tree.leaves(self._over(self.leaf_value, y))
        total = parts[0]
        for part in parts[1:]:
            total = total + part.astype(total.dtype)
        return total

    def prox(self, point: PyTree[Array], step_size: Float[Array, ""]) -> PyTree[Array]:
        return self._over(self.leaf_prox, point, step_size)

    def remainder(self, point: PyTree[Array], step_size: Float[Array, ""]) -> PyTree[Array]:
        return self._over(self.leaf_remainder, point, step_size)

    def valid(self) -> Bool[Array, ""]:
        return nonnegative(self.weight)

    def check(self, y: PyTree[Array], name: str) -> None:
        check_weights(self, "weight", self.weight, y, name, self.weight_shape)

    def _over(self, fn: Callable, y: PyTree[Array], *scalars: Array) -> PyTree[Array]:
        leaves, tree = jax.tree.flatten(y)
        weights = spread(self.weight, y)
        out = [
            fn(w.astype(x.dtype), x, *(jnp.asarray(s).astype(x.dtype) for s in scalars))
            for w, x in zip(weights, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, out)


def prox(
    penalty: AbstractPenalty, point: PyTree[Array], step_size: float | Float[Array, ""] = 1.0
) -> PyTree[Array]:
    """argmin_y penalty(y) + ||y - point||^2 / (2 step_size).

    Differentiable in the point, the penalty's weights and the step size. With a negative weight or
    step size there is no such point: NaN where these are traced.

    Example:
        ```python
        prox(penalties.L1(1.0), jnp.array([3.0, -0.5]), 0.5)  # [2.5, 0]
        ```

    Raises:
        TypeError, ValueError: the penalty does not fit the point; a weight or the step size is
            negative.
    """
    if not isinstance(penalty, AbstractPenalty):
        raise TypeError(f"`penalty` must be one of jaxsolve.penalties; got {penalty!r}.")
    if eqx.is_array_like(step_size) and jnp.ndim(step_size) != 0:
        raise ValueError(f"`step_size` must be a scalar; got shape {jnp.shape(step_size)}.")
    check_number("prox", step_size=step_size)
    point = jax.tree.map(jnp.asarray, point)
    penalty.check(point, "point")
    step_size, convex = jnp.asarray(step_size), penalty.valid()
    if not is_traced(step_size) and step_size < 0:
        raise ValueError(f"prox: `step_size` must not be negative; got {step_size}.")
    if not is_traced(convex) and not convex:
        raise ValueError(f"prox: `penalty`, {type(penalty).__name__}, has a negative weight.")
    exists = convex & ~(step_size < 0)
    return jax.tree.map(lambda x: jnp.where(exists, x, jnp.nan), penalty.prox(point, step_size))


def weights(tree: PyTree) -> PyTree[Array]:
    """Numbers as arrays: a new value of a weight is then no new program."""
    return jax.tree.map(lambda x: check_array("A penalty", "weight", x), tree)


def spread(weight: PyTree[Array], y: PyTree[Array]) -> list[Array]:
    """A weight for each leaf of the variable."""
    leaves = jax.tree.leaves(weight)
    count = len(jax.tree.leaves(y))
    return leaves * count if len(leaves) == 1 else leaves


def nonnegative(*trees: PyTree[Array]) -> Bool[Array, ""]:
    """Whether no entry is below 0."""
    out = jnp.array(True)
    for x in jax.tree.leaves(trees):
        out = out & ~jnp.any(x < 0)
    return out


def check_weights(
    penalty: AbstractPenalty,
    field: str,
    weight: PyTree[Array],
    y: PyTree[Array],
    name: str,
    shape: Callable[[Any], tuple[int, ...]],
) -> None:
    """Raise unless the leaves of `weight` broadcast to what `shape` says of the leaves of `y`."""
    who = type(penalty).__name__
    paths = jtu.tree_flatten_with_path(y)[0]
    if not paths:
        raise TypeError(f"{who}: `{name}` has no arrays.")
    for path, leaf in paths:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{who}: `{name}{jtu.keystr(path)}` is {show(leaf)}; give floating-point numbers."
            )
    found = jtu.tree_flatten_with_path(weight)[0]
    if len(found) != 1 and jax.tree.structure(weight) != jax.tree.structure(y):
        raise TypeError(
            f"{who}: `{field}` must be one array or have the structure of `{name}`, "
            f"{jax.tree.structure(y)}; it has {jax.tree.structure(weight)}."
        )
    found = found * len(paths) if len(found) == 1 else found
    for (own, w), (path, leaf) in zip(found, paths, strict=True):
        here = f"`{name}{jtu.keystr(path)}` is {show(leaf)}"
        try:
            wanted = shape(leaf)
        except ValueError as error:
            raise ValueError(f"{who}: {here}, but {error}.") from None
        if not jnp.issubdtype(w.dtype, jnp.floating) and not w.weak_type:
            raise TypeError(f"{who}: `{field}{jtu.keystr(own)}` is {show(w)}, not floating-point.")
        if w.dtype != leaf.dtype and not w.weak_type:
            raise TypeError(
                f"{who}: `{field}{jtu.keystr(own)}` is {show(w)}, but {here}. "
                "Cast them to one precision."
            )
        try:
            fits = jnp.broadcast_shapes(w.shape, wanted) == wanted
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{who}: `{field}{jtu.keystr(own)}` is {show(w)}, but {here}: it must broadcast "
                f"to shape {list(wanted)}."
            )
