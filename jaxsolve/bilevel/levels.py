"""The functions and sets of a bilevel problem, as they come in: traced, and checked."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from ..convex.sets.base import check_set
from ..core.checks import check_scalar, kind, show
from ..core.closure import open_function, partition

Scalar = Float[Array, ""]
Pair = tuple[PyTree, PyTree]


class Opened(eqx.Module):
    """A user's function of (x, y, args), traced, of the floating arrays of x and y alone."""

    inner: Callable

    def __call__(self, x: PyTree[Array], y: PyTree[Array], args: PyTree) -> PyTree[Array]:
        return self.inner((x, y), args)


class OfPair(eqx.Module):
    fn: Callable

    def __call__(self, value: Pair, args: PyTree) -> PyTree:
        return self.fn(value[0], value[1], args)


class LowerAt(eqx.Module):
    fn: Callable

    def __call__(self, y: PyTree[Array], data: PyTree) -> Scalar:
        return self.fn(data[0], y, data[1])


class GradientAt(eqx.Module):
    fn: Callable

    def __call__(self, y: PyTree[Array], data: PyTree) -> PyTree[Array]:
        value, gradient = jax.value_and_grad(LowerAt(self.fn))(y, data)
        # A gradient may be finite where its function is not, as that of log is below 0.
        good = jnp.isfinite(value)
        return jax.tree.map(lambda g: jnp.where(good, g, jnp.nan), gradient)


def arrays_of(name: str, init: PyTree | None) -> Pair:
    """A guess (x, y), lone numbers as arrays; raises where either has nothing to solve for."""
    if not isinstance(init, tuple) or len(init) != 2:
        found = "None" if init is None else kind(init)
        raise TypeError(f"{name} needs `init`, a pair (x, y) of guesses; got {found}.")
    parts = [partition(part, f"init[{i}]") for i, part in enumerate(init)]
    for i, (floating, _) in enumerate(parts):
        if sum(leaf.size for leaf in jax.tree.leaves(floating)) == 0:
            raise TypeError(f"{name}: `init[{i}]` has no entries: it is {show(floating)}.")
    x, y = (eqx.combine(*part) for part in parts)
    return x, y


def open_level(
    name: str, field: str, fn: Callable, init: Any, args: PyTree
) -> tuple[Callable, Pair, PyTree]:
    """`open_function` of a function of (x, y, args); where shapes do not fit in it, the error says
    which function it is, and what x and y are."""
    try:
        return open_function(name, OfPair(fn), init, args)
    except (TypeError, ValueError) as error:
        text = str(error)
        if type(error) not in (TypeError, ValueError) or "shape" not in text:
            raise
        x, y = (show(partition(part)[0]) for part in init)
        raise type(error)(
            f"{name}: `{field}` cannot be called with x (`init[0]`) {x} and y (`init[1]`) {y}: "
            f"{text}"
        ) from error


def check_fits(name: str, field: str, found: Any, place: int, part: PyTree[Array]) -> None:
    """Raise unless a field is a set that takes the variable `init[place]`."""
    if found is None:
        return
    check_set(name, field, found)
    try:
        found.problem(part)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{name}: `{field}` does not fit `init[{place}]`, {show(part)}: {error}"
        ) from error


def check_out(name: str, field: str, out: PyTree) -> None:
    """Raise unless objectives are real scalars and constraints floating arrays."""
    if field in ("upper", "lower"):
        check_scalar(name, out, field)
        return
    leaves = jtu.tree_flatten_with_path(out)[0]
    if not leaves:
        raise TypeError(f"{name}: `{field}` returns no arrays.")
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{name}: `{field}(x, y, args){jtu.keystr(path)}` is {show(leaf)}; constraints are "
                "real floating-point arrays."
            )
