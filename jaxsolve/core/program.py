"""A program, traced once: what the loop compiles, batches and places on a mesh."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.extend.core as jec
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, PyTree

from .mesh import vary, varying


class Program(NamedTuple):
    """One lane's work, from its data to its result.

    Attributes:
        init: data -> (carry, done)
        step: data, carry -> (carry, done)
        finish: data, carry -> result
        measure: carry -> the number that progress shows, `None` for none
        light: whether a step costs little beside `init` and `finish`
    """

    init: Callable[[PyTree], tuple[PyTree, Bool[Array, ""]]]
    step: Callable[[PyTree, PyTree], tuple[PyTree, Bool[Array, ""]]]
    finish: Callable[[PyTree, PyTree], PyTree]
    measure: Callable[[PyTree], Float[Array, ""]] | None = None
    light: bool = False


class Traced(NamedTuple):
    """A program whose functions take what they captured as their first argument.

    Attributes:
        carry, result: shapes and dtypes, of one lane.
        axes: the mesh axes over which carry and result vary.
        constant: which leaves of the carry the step hands on as they are.
        nested: whether the step holds a loop of its own.
        brisk: says whether `init` and `finish` cost next to nothing beside a step.
        light: as of the program.
    """

    init: Callable[[PyTree, PyTree], tuple[PyTree, Bool[Array, ""]]]
    step: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, Bool[Array, ""]]]
    finish: Callable[[PyTree, PyTree, PyTree], PyTree]
    measure: Callable[[PyTree, PyTree], Float[Array, ""]] | None
    carry: PyTree
    result: PyTree
    axes: frozenset[str]
    constant: list[bool]
    nested: bool
    brisk: Callable[[], bool]
    light: bool


def trace(program: Program, data: PyTree[Array]) -> tuple[Traced, PyTree[Array], PyTree[Array]]:
    """The traced program, the data, and the arrays that its functions captured.

    Inside a `shard_map` the data and all that the loop carries are made to vary over the union of
    the mesh axes over which the data and the captured arrays vary.
    """
    axes = varying(data)
    while True:
        data = vary(data, axes)
        closed = _close(program, data, axes)
        consts = tuple(fn.consts for fn in closed)
        wider = axes | varying(consts)
        if wider == axes:
            break
        axes = wider
    init, step, finish, *shown = closed
    carry = init.state(axes)
    traced = Traced(
        init=lambda consts, data: vary(init(consts[0], data), axes),
        step=lambda consts, data, carry: vary(step(consts[1], data, carry), axes),
        finish=lambda consts, data, carry: vary(finish(consts[2], data, carry), axes),
        measure=(lambda consts, carry: shown[0](consts[3], carry)) if shown else None,
        carry=carry,
        result=finish.shape,
        axes=axes,
        constant=step.hands_on(len(jax.tree.leaves(carry))),
        nested=has_loop(step.jaxpr),
        brisk=lambda: _brisk(init.jaxpr, step.jaxpr, finish.jaxpr),
        light=program.light,
    )
    return traced, data, consts


def retrace(program: Program, data: PyTree[Array], consts: PyTree[Array]) -> Traced:
    """The program again, without the explicit mesh in whose types `trace` has met it.

    Raises:
        TypeError: captured arrays are not found again.
    """
    lane = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), data)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        again, _, found = trace(program, lane)
    shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (consts, found)]
    if shapes[0] != shapes[1]:
        raise TypeError(
            "A batch sharded by an explicit mesh runs functions that capture arrays which cannot "
            "be moved to the devices: hand these arrays over as data."
        )
    return again


def _close(program: Program, data: PyTree, axes: frozenset[str]) -> list["_Closed"]:
    init = _Closed(program.init, "init", data)
    carry = init.state(axes)
    step = _Closed(program.step, "step", data, carry)
    _check_carry(init, step)
    closed = [init, step, _Closed(program.finish, "finish", data, carry)]
    if program.measure is not None:
        closed.append(_Closed(program.measure, "measure", carry))
    return closed


class _Closed:
    """A function as a jaxpr, and the arrays that it captured."""

    def __init__(self, fn: Callable, name: str, *args: PyTree):
        closed, self.shape = jax.make_jaxpr(fn, return_shape=True)(*args)
        self.jaxpr, self.consts, self.name = closed.jaxpr, closed.consts, name
        self.out, self.tree = closed.out_avals, jax.tree.structure(self.shape)
        _refuse_collectives(closed, name)

    def __call__(self, consts: list[Array], *args: PyTree) -> PyTree:
        out = jax.core.eval_jaxpr(self.jaxpr, consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(self.tree, [_strong(x) for x in out])

    def hands_on(self, count: int) -> list[bool]:
        """Which of the last `count` arguments are the results of their places."""
        before = self.jaxpr.invars[len(self.jaxpr.invars) - count :]
        after = self.jaxpr.outvars[:count]
        return [new is old for new, old in zip(after, before, strict=True)]

    def state(self, axes: frozenset[str]) -> PyTree:
        """The carry that this function returns beside `done`, as types that vary over `axes`."""
        cast = lambda leaves: vary([_strong(x) for x in leaves], axes)
        leaves = jax.make_jaxpr(cast)(self.out).out_avals
        tree = jax.tree.unflatten(self.tree, leaves)
        if not isinstance(tree, tuple) or len(tree) != 2:
            raise TypeError(f"`{self.name}` must return a pair: the carry, and whether it is done.")
        return tree[0]


def _strong(x: Any) -> Array:
    # A weak type (of a literal) would change in the first step, and loops refuse that.
    return jax.lax.convert_element_type(x, x.dtype) if getattr(x, "weak_type", False) else x


def _check_carry(init: _Closed, step: _Closed) -> None:
    """`step` returns what `init` does, and `done` is a boolean."""
    first, second = (jtu.tree_flatten_with_path(fn.shape)[0] for fn in (init, step))
    if init.tree != step.tree:
        paths = [{jtu.keystr(path[1:]) for path, _ in leaves} for leaves in (first, second)]
        raise TypeError(
            f"`step` returns a carry of another structure than `init`: leaves {sorted(paths[0])} "
            f"became {sorted(paths[1])} ({init.tree} became {step.tree})."
        )
    for (path, old), (_, new) in zip(first, second, strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise TypeError(
                f"`step` changes the carry's leaf `{jtu.keystr(path[1:])}` from "
                f"{old.dtype}{list(old.shape)} to {new.dtype}{list(new.shape)}: a loop's state "
                "keeps its shapes and dtypes."
            )
    for fn in (init, step):
        done = fn.shape[1]
        if getattr(done, "shape", None) != () or done.dtype != jnp.bool_:
            raise TypeError(f"`{fn.name}` must return a boolean scalar as `done`; got {done}.")


_LOOPS = {"while", "custom_vmap_call"}


def has_loop(jaxpr: Any) -> bool:
    """Whether a jaxpr holds a loop whose trip count depends on values."""
    return any(
        eqn.primitive.name in _LOOPS
        or any(has_loop(sub) for sub in jec.jaxprs_in_params(eqn.params))
        for eqn in jaxpr.eqns
    )


_CUBIC = {"cholesky", "triangular_solve", "lu", "qr", "geqrf", "eigh", "svd"}
_UNKNOWN = _LOOPS | {"pure_callback", "io_callback", "ffi_call"}


def _work(jaxpr: Any, unknown: float) -> float:
    """Operations, roughly: entries times the sums behind them; of what has no bound, `unknown`."""
    total = 0
    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, list(jec.jaxprs_in_params(eqn.params))
        shapes = [x.aval.shape for x in (*eqn.invars, *eqn.outvars)]
        size = max(map(math.prod, shapes), default=0)
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            size = math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in contracted)
        elif name in _CUBIC:
            size *= max(map(max, shapes))
        elif inner and not name.startswith("reduce"):
            size = eqn.params.get("length", 1) * sum(_work(sub, unknown) for sub in inner)
        total += size + (unknown if name in _UNKNOWN else 0)
    return total


def _brisk(init: Any, step: Any, finish: Any) -> bool:
    begins = _work(init, math.inf) + _work(finish, math.inf)
    return 2 * begins <= _work(step, 0) and begins < math.inf


def _refuse_collectives(closed: Any, name: str) -> None:
    manual = set(jax.sharding.get_abstract_mesh().manual_axes)
    names = {e.name for e in closed.effects if type(e).__name__ == "NamedAxisEffect"} - manual
    if names:
        raise TypeError(
            f"`{name}` holds a collective over the vmapped axis {sorted(map(str, names))}. Lanes "
            "of a batch stop at different steps and cannot wait for each other: reduce before or "
            "after the solve, or write the sum over lanes as one problem."
        )
