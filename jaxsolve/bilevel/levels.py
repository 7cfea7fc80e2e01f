"""The functions and sets of a bilevel problem, as they come in: traced, and checked."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from ..core.checks import check_scalar, show
from ..core.closure import partition

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
        found = "None" if init is None else type(init).__name__
        raise TypeError(f"{name} needs `init`, a pair (x, y) of guesses; got {found}.")
    x, y = (eqx.combine(*partition(part, f"init[{i}]")) for i, part in enumerate(init))
    return x, y


def check_callable(name: str, field: str, fn: Any) -> None:
    """Raise unless a field is a function."""
    if not callable(fn):
        raise TypeError(
            f"{name}: `{field}` must be a function of (x, y, args); got {type(fn).__name__}."
        )


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
