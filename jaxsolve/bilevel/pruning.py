"""Pruning: which weights of a network to keep, as a bilevel problem.

    minimise over m in S  l(m theta(m)),   theta(m) = argmin_theta l(m theta) + gamma |theta|^2 / 2

with S the masks m of 0 and 1 that keep an exact number of weights (`masks.py`), and l the mean of a
loss over data. Since theta(m) is 0 where m is, the weights of a value are those of the pruned
network: m theta = theta. Zhang et al. (2022).

Masks are not continuous, and the lower level of a network has many solutions: there is no
optimality system, a point is approximate, and no derivative of it is defined.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core.adjoint import AbstractAdjoint, Detached
from ..core.checks import (
    check_count,
    check_instance,
    check_not_negative,
    check_number,
    check_scalar,
    count_samples,
    kind,
    show,
)
from ..core.closure import open_function, partition, restore
from ..core.problem import AbstractProblem
from ..core.solution import RESULTS, Guess, Point, Residual, Scale, is_traced
from ..core.vectors import clean, largest, same_shapes
from .masks import AbstractStructure, Leaves, Unstructured, kept_units

if TYPE_CHECKING:
    from ..core.solver import AbstractSolver

Scalar = Float[Array, ""]
Network = PyTree[Array]

_SMOOTHING = 0.95


class _Pruning(AbstractProblem):
    """What a pruning problem refuses, before and after it is prepared."""

    def optimality(self, point: Point) -> Point:
        raise TypeError(
            "Pruning has no optimality system to differentiate: a mask is not continuous. Its "
            "solutions are constants (`Detached()`); train the kept weights with `Minimise` for a "
            "derivative at a given mask."
        )

    def stationary(self, value: PyTree, solved: Bool[Array, ""]) -> PyTree:
        # Only an adjoint that rests on `optimality` asks: it is refused, differentiated or not.
        self.optimality(Point(value))
        return value

    def default_adjoint(self) -> AbstractAdjoint:
        return Detached()

    def default_solver(self) -> "AbstractSolver":
        from .bip import BiP

        return BiP()


class Pruning(_Pruning):
    """Find the weights of a network to keep, and their values.

    The value is `(mask, params)`: the mask has the shapes of the weights, 1 where one is kept (and
    all over arrays that are not pruned); `params` are the weights of the pruned network, 0 where
    the mask is. Solvers begin at `params`, trained weights; of an `init`, which is a pair like the
    value, they take the weights.

    A point is judged by its counts and the weights outside of its mask (primal residual), and by
    the largest entry of the lower level's gradient at kept weights, over all data (dual residual).

    Example:
        ```python
        import optax
        from jaxsolve.bilevel.bip import BiP
        from jaxsolve.bilevel.pruning import Pruning

        keys = jax.random.split(jax.random.key(0))
        x = jax.random.normal(keys[0], (256, 20))
        y = x[:, :3].sum(axis=1)
        fit = lambda params, batch: jnp.mean((batch[0] @ params["w"][:, 0] - batch[1]) ** 2)
        params = {"w": 0.1 * jax.random.normal(keys[1], (20, 1))}
        problem = Pruning(fit, params, (x, y), sparsity=0.85, batch_size=32)
        mask, params = solve(problem, BiP(steps=200)).value
        ```

    Args:
        loss: `(params, batch)` -> the mean loss of a batch, a real scalar.
        params: the weights, any pytree; floating arrays are trained.
        data: a pytree of arrays, samples along their first axes; batches are drawn from it.
        sparsity: the part of the units that is pruned, in [0, 1): of a group of n units,
            n - int(sparsity n) are kept.
        structure: `Unstructured()`, `Filters()` or `Channels()`.
        penalty: gamma, of all weights, biases included.
        batch_size: samples of a batch (all, where there are fewer).
        prunable: `(path, array)` -> whether an array is pruned; the path is as in `['conv']['w']`.
            `None`: arrays of at least two axes, or three where slices are pruned.

    Raises:
        TypeError, ValueError: nothing is prunable; a setting is of another type or out of range;
            arrays of the data have different numbers of samples.
    """

    loss: Callable[[PyTree, PyTree], Any]
    params: PyTree
    data: PyTree[Array]
    kept: Int[Array, " groups"]
    penalty: float | Array
    form: AbstractStructure
    units: tuple[int, ...] = eqx.field(static=True)
    chosen: tuple[bool, ...] = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    def __init__(
        self,
        loss: Callable[[PyTree, PyTree], Any],
        params: PyTree,
        data: PyTree[Array],
        *,
        sparsity: float,
        structure: AbstractStructure = Unstructured(),
        penalty: float | Array = 1e-4,
        batch_size: int = 128,
        prunable: Callable[[str, Any], bool] | None = None,
    ):
        if not callable(loss):
            raise TypeError(f"Pruning: `loss` must be a function of a batch; got {kind(loss)}.")
        check_number("Pruning", sparsity=sparsity, penalty=penalty)
        check_not_negative("Pruning", penalty=penalty)
        if is_traced(sparsity) or not 0 <= sparsity < 1:
            raise ValueError(f"Pruning: `sparsity` must be a number in [0, 1); got {sparsity}.")
        check_count("Pruning", batch_size=batch_size)
        wanted = "Unstructured(), Filters() or Channels()"
        check_instance("Pruning", "structure", structure, AbstractStructure, wanted)
        wanted = "a function of (path, array) or None"
        check_instance("Pruning", "prunable", prunable, Callable | None, wanted)
        leaves = jtu.tree_flatten_with_path(partition(params, "params")[0])[0]
        if prunable is None:
            prunable = lambda path, leaf: leaf.ndim >= structure.least_axes
        self.chosen = tuple(bool(prunable(jtu.keystr(path), leaf)) for path, leaf in leaves)
        shapes = [leaf.shape for (_, leaf), one in zip(leaves, self.chosen, strict=True) if one]
        if not shapes:
            seen = ", ".join(f"`params{jtu.keystr(p)}` is {show(leaf)}" for p, leaf in leaves[:3])
            raise TypeError(
                f"Pruning: no array of `params` is prunable ({seen}); {type(structure).__name__} "
                f"takes arrays of at least {structure.least_axes} axes, or those that `prunable` "
                "names."
            )
        self.loss, self.params, self.data = loss, params, data
        self.form, self.penalty = structure, penalty
        self.units = structure.units(shapes)
        # Not static: another sparsity is no new program.
        self.kept = jnp.asarray(kept_units(float(sparsity), self.units))
        self.batch_size = min(batch_size, count_samples("Pruning", "data", data))

    def residual(self, point: Point) -> Residual:
        prepared, _ = self.prepare(None)
        return prepared.residual(point)

    def prepare(self, init: PyTree | None) -> tuple["PreparedPruning", tuple[Network, Network]]:
        params = self.params if init is None else _weights(init)
        own, given = (partition(tree, "params")[0] for tree in (self.params, params))
        if not same_shapes(given, own):
            raise ValueError(
                f"Pruning: the weights of `init` are {show(given)}, but `params` are {show(own)}."
            )
        count, size = count_samples("Pruning", "data", self.data), self.batch_size
        take = lambda number: jax.tree.map(lambda x: jnp.asarray(x)[:number], self.data)
        fn, value, out = open_function("Pruning", self.loss, params, take(size))
        check_scalar("Pruning", out, "loss")
        rest = None
        if count % size:
            rest, _, _ = open_function("Pruning", self.loss, params, take(count % size))
        prepared = PreparedPruning(
            fn=fn,
            rest=rest,
            data=jax.tree.map(jnp.asarray, self.data),
            kept=self.kept,
            penalty=jnp.asarray(self.penalty),
            form=self.form,
            units=self.units,
            chosen=self.chosen,
            batch_size=size,
        )
        return prepared, (jax.tree.map(jnp.ones_like, value), value)


class PreparedPruning(_Pruning):
    """What solvers see of a `Pruning`: batches, gradients and masks.

    Attributes:
        fn: the loss of a batch.
        form: what is pruned together.
        rest: that of the last samples, fewer than a batch; `None` if there are none.
        kept, units: units to keep and all units, in each group.
        chosen: which leaves of the weights are pruned.
    """

    fn: Callable[[Network, PyTree], Scalar]
    rest: Callable[[Network, PyTree], Scalar] | None
    data: PyTree[Array]
    kept: Int[Array, " groups"]
    penalty: Scalar
    form: AbstractStructure
    units: tuple[int, ...] = eqx.field(static=True)
    chosen: tuple[bool, ...] = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    def sample(self, key: Array) -> PyTree[Array]:
        """A random batch, drawn with replacement; all data, where they are no more than a batch."""
        if self.batch_size == self._count:
            return self.data
        rows = jax.random.randint(key, (self.batch_size,), 0, self._count)
        return jax.tree.map(lambda x: x[rows], self.data)

    def gradient(self, params: Network, batch: PyTree[Array]) -> tuple[Scalar, Network]:
        """The loss of a batch, and its gradient."""
        return jax.value_and_grad(self.fn)(params, batch)

    def penalised(self, gradient: Network, params: Network) -> Network:
        """A gradient with that of the penalty."""
        return jax.tree.map(lambda g, p: g + self.penalty.astype(p.dtype) * p, gradient, params)

    def mean_gradient(self, params: Network) -> Network:
        """The gradient of the mean loss over all data, a batch at a time."""
        size, count = self.batch_size, self._count
        whole = count // size
        batches = jax.tree.map(
            lambda x: x[: whole * size].reshape(whole, size, *x.shape[1:]), self.data
        )

        def add(total: Network, batch: PyTree) -> tuple[Network, None]:
            return jax.tree.map(jnp.add, total, jax.grad(self.fn)(params, batch)), None

        total = jax.tree.map(lambda x: 0 * x, params)
        total, _ = jax.lax.scan(add, total, batches)
        total = jax.tree.map(lambda x: x * (size / count), total)
        if self.rest is None:
            return total
        last = jax.tree.map(lambda x: x[whole * size :], self.data)
        part = jax.grad(self.rest)(params, last)
        return jax.tree.map(lambda t, x: t + x * (1 - whole * size / count), total, part)

    def prunable(self, params: Network) -> Leaves:
        """The leaves that are pruned."""
        return [x for x, one in zip(jax.tree.leaves(params), self.chosen, strict=True) if one]

    def replaced(self, params: Network, pruned: Leaves) -> Network:
        """The tree with other leaves in the place of those that are pruned."""
        leaves, tree = jax.tree.flatten(params)
        new = iter(pruned)
        chosen = zip(leaves, self.chosen, strict=True)
        return jax.tree.unflatten(tree, [next(new) if one else x for x, one in chosen])

    def mask(self, params: Network, importance: Leaves, kept: Int[Array, " groups"]) -> Network:
        """The mask that keeps the units of the largest importance: all of what is not pruned."""
        ones = jax.tree.map(jnp.ones_like, params)
        return self.replaced(ones, self.form.masks(importance, kept))

    def residual(self, point: Point) -> Residual:
        mask, params = point.primal
        masks = self.prunable(mask)
        counts = jnp.abs(self.form.counts(masks) - self.kept)
        outside = largest(jax.tree.map(lambda m, p: (1 - m) * p, mask, params))
        broken = largest([m * (1 - m) for m in masks])
        primal = jnp.maximum(outside, broken.astype(outside.dtype))
        primal = jnp.maximum(primal, jnp.max(counts).astype(primal.dtype))
        slope = self.penalised(self.mean_gradient(params), params)
        dual = largest(masked(mask, slope))
        one = jnp.ones_like(dual)
        return Residual(primal, dual, jnp.zeros_like(dual), Scale(one, one, one))

    def screen(self, guess: Guess) -> tuple[Any, Point]:
        fine = clean(guess.primal, self.data)
        verdict = RESULTS.where(fine, RESULTS.successful, RESULTS.nonfinite_input)
        return verdict, Point(guess.primal, guess.dual)

    def prepare(self, init: PyTree | None) -> tuple["PreparedPruning", PyTree]:
        raise TypeError("This problem is prepared already.")

    def restore(self, value: tuple[Network, Network]) -> tuple[Network, PyTree]:
        return value[0], restore(self.fn, value[1])

    @property
    def _count(self) -> int:
        return jax.tree.leaves(self.data)[0].shape[0]


def _weights(init: Any) -> PyTree:
    if not isinstance(init, tuple) or len(init) != 2:
        raise TypeError(
            f"Pruning: `init` must be a pair (mask, params); got {type(init).__name__}."
        )
    return init[1]


def check_optax(name: str, **optimisers: Any) -> None:
    """Raise `TypeError` unless each is an optax transformation or `None`."""
    for field, found in optimisers.items():
        wanted = "an optax transformation or None"
        check_instance(name, field, found, optax.GradientTransformation | None, wanted)


def masked(mask: Network, params: Network) -> Network:
    """m theta."""
    return jax.tree.map(jnp.multiply, mask, params)


def smoothed(mean: Scalar, loss: Scalar, count: Int[Array, ""]) -> Scalar:
    """The running mean of losses; the first one is taken as it is."""
    weight = jnp.where(count == 0, 1.0, 1 - _SMOOTHING).astype(mean.dtype)
    return mean + weight * (loss.astype(mean.dtype) - mean)
