"""Masks of exact counts: which weights of a network are kept, one by one or in slices.

What is pruned as one is a unit, and units compete within a group. Of a group of n units, at a
sparsity s, n - int(s n) are kept: those of the largest importance, and of equal ones the first.
"""

import abc
from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..core.mesh import vary, varying

Leaves = list[Float[Array, "..."]]


class AbstractStructure(eqx.Module):
    """Which weights are pruned together, and against which others.

    Attributes:
        least_axes: arrays with fewer axes are not pruned, unless `Pruning` is told to.
    """

    least_axes: ClassVar[int]

    @abc.abstractmethod
    def units(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The number of units in each group, of arrays of these shapes."""

    @abc.abstractmethod
    def masks(self, importance: Leaves, kept: Int[Array, " groups"]) -> Leaves:
        """1 where an array keeps its weights, 0 elsewhere.

        Args:
            importance: of each weight; that of a unit is the sum of its weights'.
            kept: units to keep, in each group.
        """

    @abc.abstractmethod
    def counts(self, masks: Leaves) -> Int[Array, " groups"]:
        """The units of each group of which anything is kept."""


class Unstructured(AbstractStructure):
    """Each weight by itself; those of all arrays compete, with one threshold for the network."""

    least_axes: ClassVar[int] = 2

    def units(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        return (sum(int(np.prod(shape)) for shape in shapes),)

    def masks(self, importance: Leaves, kept: Int[Array, " groups"]) -> Leaves:
        chosen = largest_of(jnp.concatenate([x.ravel() for x in importance]), kept[0])
        ends = np.cumsum([x.size for x in importance])[:-1]
        parts = jnp.split(chosen, ends)
        return [
            part.reshape(x.shape).astype(x.dtype) for part, x in zip(parts, importance, strict=True)
        ]

    def counts(self, masks: Leaves) -> Int[Array, " groups"]:
        return jnp.stack([_count(jnp.concatenate([x.ravel() for x in masks]))])


class _Slices(AbstractStructure):
    """Slices of an array, along one axis: those of one array compete."""

    axis: eqx.AbstractVar[int]

    least_axes: ClassVar[int] = 3

    def units(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        if not isinstance(self.axis, int):
            raise TypeError(f"{type(self).__name__}: `axis` must be an integer; got {self.axis!r}.")
        for shape in shapes:
            if not -len(shape) <= self.axis < len(shape):
                raise ValueError(
                    f"{type(self).__name__}: `axis` is {self.axis}, but an array to be pruned has "
                    f"shape {list(shape)}."
                )
        return tuple(shape[self.axis] for shape in shapes)

    def masks(self, importance: Leaves, kept: Int[Array, " groups"]) -> Leaves:
        out = []
        for x, count in zip(importance, kept, strict=True):
            others = self._others(x)
            chosen = largest_of(jnp.sum(x, axis=others), count)
            out.append(jnp.broadcast_to(jnp.expand_dims(chosen, others), x.shape).astype(x.dtype))
        return out

    def counts(self, masks: Leaves) -> Int[Array, " groups"]:
        return jnp.stack([_count(jnp.max(x, axis=self._others(x))) for x in masks])

    def _others(self, x: Array) -> tuple[int, ...]:
        return tuple(i for i in range(x.ndim) if i != self.axis % x.ndim)


class Filters(_Slices):
    """Whole filters: what one output of a layer reads. Those of each array compete.

    Of convolution kernels, unless `Pruning` is told more: in the last matrix of a classifier an
    output is a class.

    Args:
        axis: the outputs of a kernel; the last one in (height, width, in, out) and in (in, out), as
            flax, haiku and `jax.lax` with "HWIO" have them. 0 for (out, in, height, width).
    """

    axis: int = eqx.field(default=-1, static=True)


class Channels(_Slices):
    """Whole input channels of a layer. Those of each array compete.

    Args:
        axis: the inputs of a kernel; the last but one in (height, width, in, out) and in (in, out).
            1 for (out, in, height, width).
    """

    axis: int = eqx.field(default=-2, static=True)


def kept_units(sparsity: float, units: Sequence[int]) -> np.ndarray:
    """The units to keep, in each group."""
    # Decimals are meant: 0.29 * 100 is 28.999...
    return np.array([n - int(sparsity * n * (1 + 1e-12)) for n in units], np.int32)


def largest_of(values: Float[Array, " n"], count: Int[Array, ""]) -> Bool[Array, " n"]:
    """The `count` largest entries, of equal ones the first.

    The threshold is found bit by bit, for the order of floats is that of their bits. That takes a
    fifteenth of a sort's time (20 000 entries, CPU).
    """
    width = 8 * values.dtype.itemsize
    kind = jnp.dtype(f"uint{width}")
    one = jnp.ones((), kind)
    sign = one << jnp.asarray(width - 1, kind)
    # -0 is 0; the bits of negative floats fall as these rise.
    bits = jax.lax.bitcast_convert_type(jnp.where(values == 0, 0, values), kind)
    bits = jnp.where(bits >= sign, ~bits, bits | sign)

    number = lambda which: jnp.sum(which, dtype=count.dtype)

    def lower(threshold: Array, i: Array) -> tuple[Array, None]:
        higher = threshold | (one << (width - 1 - i).astype(kind))
        return jnp.where(number(bits >= higher) >= count, higher, threshold), None

    start = vary(jnp.zeros((), kind), varying((values, count)))
    threshold, _ = jax.lax.scan(lower, start, jnp.arange(width, dtype=jnp.int32))
    above, ties = bits > threshold, bits == threshold
    return above | (ties & (jnp.cumsum(ties, dtype=count.dtype) <= count - number(above)))


def _count(mask: Float[Array, " n"]) -> Int[Array, ""]:
    return jnp.sum(mask != 0).astype(jnp.int32)
