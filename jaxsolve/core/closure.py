"""Functions given by users: what they capture, and which part of their variable is solved for.

Inside `solve` a user's function may close over traced arrays. Left alone, a derivative rule or a
batching rule would not see them; `trace` makes them leaves. The variable is partitioned once, at
the door: `partition` separates the floating arrays from all the rest, and `Combined` puts the rest
back before the user's function is called.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from .mesh import vary, varying


class Closed(eqx.Module):
    """A function as a jaxpr, with the tracers that it captured as leaves.

    Concrete arrays that it captured stay constants: they are no data to differentiate in.
    """

    captured: list[Array | None]
    leaves: list[Array]
    constants: "_Constants" = eqx.field(static=True)
    jaxpr: Any = eqx.field(static=True)
    result: Any = eqx.field(static=True)

    def __call__(self, value: PyTree, args: PyTree) -> PyTree:
        inputs = [*self.leaves, *jax.tree.leaves(eqx.filter((value, args), eqx.is_array))]
        avals = [var.aval for var in self.jaxpr.invars]
        inputs = [vary(x, aval.mat.varying) for x, aval in zip(inputs, avals, strict=True)]
        pairs = zip(self.captured, self.constants.arrays, strict=True)
        consts = [kept if own is None else own for own, kept in pairs]
        out = jax.core.eval_jaxpr(self.jaxpr, consts, *inputs)
        # A constant result comes back as a number.
        return jax.tree.unflatten(self.result, [jnp.asarray(x) for x in out])


class _Constants:
    """Arrays in a static field: compared by identity."""

    def __init__(self, arrays: list[Array | None]):
        self.arrays = arrays


def trace(fn: Callable, value: PyTree, args: PyTree) -> tuple[Closed, PyTree]:
    """Trace `fn(value, args)` once: a solve inside of it is not traced again by each derivative.

    Returns:
        A module whose leaves are what `fn` captured, and the result's structure as
        `jax.ShapeDtypeStruct` leaves.
    """
    own, frozen = eqx.partition((fn, value, args), eqx.is_array)
    own_fn, own_inputs = own[0], (own[1], own[2])

    def call(own_fn: PyTree, own_inputs: PyTree) -> PyTree:
        function, value, args = eqx.combine((own_fn, *own_inputs), frozen)
        out = function(value, args)
        # Not weakly typed: solvers keep such results in their loops.
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), out)

    closed, shape = jax.make_jaxpr(call, return_shape=True)(own_fn, own_inputs)
    axes = varying((own_inputs, own_fn, closed.consts))
    if any(varying(x) != axes for x in jax.tree.leaves(own_inputs)):
        # In a shard_map the loop's point varies over all of these axes: so must the jaxpr's.
        own_fn, own_inputs = vary((own_fn, own_inputs), axes)
        closed, shape = jax.make_jaxpr(call, return_shape=True)(own_fn, own_inputs)
    captured, kept = eqx.partition(closed.consts, lambda x: isinstance(x, jax.core.Tracer))
    result, leaves = jax.tree.structure(shape), jax.tree.leaves(own_fn)
    return Closed(captured, leaves, _Constants(kept), closed.jaxpr, result), shape


class Combined(eqx.Module):
    """`fn` of the whole variable, called with its floating arrays alone."""

    fn: Callable
    rest: PyTree

    def __call__(self, value: PyTree, args: PyTree) -> PyTree:
        return self.fn(self.restore(value), args)

    def restore(self, value: PyTree) -> PyTree:
        """The user's variable: floating arrays from `value`, other leaves as they were given."""
        return eqx.combine(value, self.rest)


def partition(init: PyTree, name: str = "init") -> tuple[PyTree, PyTree]:
    """Split a variable into its floating arrays and the rest (each `None` in the other's place).

    Python and NumPy floats count as arrays when there is no array at all: `init=1.0` is a variable,
    but the slope of a network's activation is not.

    Raises:
        TypeError: a leaf is complex, or none is floating; the message names the pytree path.
    """
    paths = jtu.tree_flatten_with_path(init)[0]
    for path, leaf in paths:
        if isinstance(leaf, complex) or (_is_array(leaf) and _kind(leaf, jnp.complexfloating)):
            raise TypeError(
                f"`{name}{jtu.keystr(path)}` is complex ({_dtype(leaf)}): a variable is real. "
                "Solve for its real and imaginary parts."
            )
    found = any(_is_array(leaf) for _, leaf in paths)

    def is_variable(leaf: Any) -> bool:
        floating = _is_array(leaf) and _kind(leaf, jnp.floating)
        return floating or (not found and isinstance(leaf, float | np.floating))

    value, rest = eqx.partition(init, is_variable)
    if not jax.tree.leaves(value):
        leaves = [f"`{name}{jtu.keystr(path)}` is {_dtype(leaf)}" for path, leaf in paths[:3]]
        raise TypeError(
            f"`{name}` has no floating-point array to solve for: "
            f"{', '.join(leaves) if leaves else 'it has no leaves'}. "
            "Give it as float32 or float64."
        )
    return jax.tree.map(_strong, value), rest


def open_variable(fn: Callable, init: PyTree, name: str = "init") -> tuple[Callable, PyTree]:
    """The function of the floating arrays of `init`, and those arrays."""
    value, rest = partition(init, name)
    return (Combined(fn, rest) if jax.tree.leaves(rest) else fn), value


def open_function(
    name: str, fn: Callable, init: PyTree, args: PyTree
) -> tuple[Callable, PyTree, PyTree]:
    """`fn(y, args)` of a problem `name`, closed over what it captured and of the floating arrays of
    `init` alone; those arrays; and the shapes that it returns."""
    if init is None:
        raise TypeError(f"{name} needs `init`, a guess of the value: solve(problem, init=...).")
    opened, value = open_variable(fn, init)
    if isinstance(opened, Combined):
        closed, out = trace(opened.fn, opened.restore(value), args)
        return Combined(closed, opened.rest), value, out
    closed, out = trace(opened, value, args)
    return closed, value, out


def restore(fn: Callable, value: PyTree) -> PyTree:
    """The user's variable again, from the arrays that `open_variable` had left of it."""
    return fn.restore(value) if isinstance(fn, Combined) else value


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray)


def _kind(leaf: Any, kind: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, kind))


def _dtype(leaf: Any) -> str:
    return str(leaf.dtype) if hasattr(leaf, "dtype") else type(leaf).__name__


def _strong(leaf: Any) -> Array:
    # A weak type would change in the first step, and loops refuse that.
    if isinstance(leaf, float | np.floating):
        return jnp.asarray(leaf, dtype=jnp.result_type(float))
    return jnp.asarray(leaf, dtype=jax.dtypes.canonicalize_dtype(leaf.dtype))
