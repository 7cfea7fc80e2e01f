"""Many small leaves as one vector a dtype: fewer kernels to compile, and to start at each step."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .program import Traced

# Copying a larger leaf costs more than a kernel of its own.
_SMALL = 32


class Packing:
    """The layout of one lane's pytree: vectors of small leaves, then the other leaves."""

    def __init__(self, shapes: PyTree):
        self.leaves, self.tree = jax.tree.flatten(shapes)
        self.groups: dict = {}
        for number, leaf in enumerate(self.leaves):
            extended = jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
            if not extended and math.prod(leaf.shape) <= _SMALL:
                self.groups.setdefault(leaf.dtype, []).append(number)
        small = {number for group in self.groups.values() for number in group}
        self.large = [number for number in range(len(self.leaves)) if number not in small]

    @property
    def shapes(self) -> list[jax.ShapeDtypeStruct]:
        vectors = [
            jax.ShapeDtypeStruct((sum(math.prod(self.leaves[n].shape) for n in group),), dtype)
            for dtype, group in self.groups.items()
        ]
        large = [self.leaves[number] for number in self.large]
        return vectors + [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in large]

    def pack(self, tree: PyTree[Array]) -> list[Array]:
        leaves = jax.tree.leaves(tree)
        vectors = [
            jnp.concatenate([jnp.ravel(leaves[number]) for number in group])
            for group in self.groups.values()
        ]
        return vectors + [leaves[number] for number in self.large]

    def unpack(self, packed: list[Array]) -> PyTree[Array]:
        leaves = dict(zip(self.large, packed[len(self.groups) :], strict=True))
        for group, vector in zip(self.groups.values(), packed, strict=False):
            start = 0
            for number in group:
                shape = self.leaves[number].shape
                end = start + math.prod(shape)
                leaves[number] = vector[start:end].reshape(shape)
                start = end
        return jax.tree.unflatten(self.tree, [leaves[n] for n in range(len(self.leaves))])


class Packed(NamedTuple):
    """A program with carry and result packed; see `Traced`."""

    init: Callable
    step: Callable
    finish: Callable
    measure: Callable | None
    carry: list[jax.ShapeDtypeStruct]
    result: list[jax.ShapeDtypeStruct]
    constant: list[bool]
    nested: bool
    pack_result: Callable[[PyTree[Array]], list[Array]]


def packed(program: Traced) -> tuple[Packed, Callable[[list[Array]], PyTree[Array]]]:
    """The program with its carry and result packed, and what unpacks the result."""
    carry, result = Packing(program.carry), Packing(program.result)
    shown = program.measure

    def init(consts, data):
        first, done = program.init(consts, data)
        return carry.pack(first), done

    def step(consts, data, state):
        stepped, done = program.step(consts, data, carry.unpack(state))
        return carry.pack(stepped), done

    def finish(consts, data, state):
        return result.pack(program.finish(consts, data, carry.unpack(state)))

    new = Packed(
        init=init,
        step=step,
        finish=finish,
        measure=None if shown is None else lambda c, state: shown(c, carry.unpack(state)),
        carry=carry.shapes,
        result=result.shapes,
        constant=[False] * len(carry.groups) + [program.constant[n] for n in carry.large],
        nested=program.nested,
        pack_result=result.pack,
    )
    return new, result.unpack
