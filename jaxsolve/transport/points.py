"""Costs between points: a matrix that is small is formed, a large one never is.

A large one is computed a block of rows at a time in every product, so that memory is that of one
block; derivatives compute the blocks again.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from ..core.checks import check_array, check_count, check_instance, check_real, show
from ..core.closure import trace
from ..core.mesh import vary
from ..core.vectors import matmul
from .geometry import AbstractGeometry, AbstractKernel, Columns, Dense, Scalar

ENTRIES = 2**22
"""Of a matrix, or of a block of its rows, that are held at once."""

_COORDINATES = 16
"""Up to this many, squared distances are added coordinate by coordinate: XLA's sums over so few
numbers take up to eight times as long on CPUs."""


def squared_euclidean(x: Float[Array, " d"], y: Float[Array, " d"]) -> Scalar:
    """|x - y|^2, by the differences: of far points no digits cancel."""
    return jnp.sum((x - y) ** 2)


class Points(AbstractGeometry):
    """c_ij = cost_fn(x_i, y_j).

    Attributes:
        cost_fn: `None`: the squared distance. What a function captures are leaves once `checked`,
            and a function is none: a plan goes through `jax.jit` and `jax.vmap`.
        block: rows that are computed at once; `None`: all.
    """

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    cost_fn: Callable[[Array, Array], Array] | None = None
    block: int | None = eqx.field(default=None, static=True)

    @classmethod
    def of(cls, x: Any, y: Any, cost_fn: Any, block: int | None) -> "Points":
        """The geometry, with a block that fits."""
        name = "EntropicTransport"
        x, y = check_array(name, "x", x), check_array(name, "y", y)
        check_instance(name, "cost_fn", cost_fn, Callable | None, "a function (x_i, y_j) -> cost")
        check_count(name, ("block",), block=block)
        for field, value in (("x", x), ("y", y)):
            if value.ndim != 2 or value.size == 0:
                raise ValueError(
                    f"EntropicTransport: `{field}` is {show(value)}: it must have shape [any, "
                    "any], one point a row."
                )
        if block is None and x.shape[0] * y.shape[0] > ENTRIES:
            block = max(1, ENTRIES // max(x.shape[0], y.shape[0]))
        return cls(x, y, cost_fn, block)

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.y.shape[0]

    @property
    def dtype(self) -> Any:
        return self.x.dtype

    def transposed(self) -> "Points":
        fn = self.cost_fn
        return Points(self.y, self.x, None if fn is None else _Turned(fn), self.block)

    def checked(self) -> "Points":
        check_real("EntropicTransport", "x", self.x.dtype)
        if self.x.dtype != self.y.dtype:
            raise TypeError(
                f"EntropicTransport: `x` is {show(self.x)} and `y` is {show(self.y)}: give both in "
                "one precision."
            )
        if self.cost_fn is None:
            if self.x.shape[1] != self.y.shape[1]:
                raise ValueError(
                    f"EntropicTransport: `x` is {show(self.x)}, but `y` is {show(self.y)}: points "
                    "of one dimension are needed."
                )
            return self
        closed, out = trace(self.cost_fn, self.x[0], self.y[0])
        if getattr(out, "shape", None) != () or out.dtype != self.x.dtype:
            raise TypeError(
                f"EntropicTransport: `cost_fn` must return a scalar of the points' dtype; it "
                f"returns {out}."
            )
        return Points(self.x, self.y, closed, self.block)

    def between(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Scalar:
        """The cost of two points."""
        return squared_euclidean(x, y) if self.cost_fn is None else self.cost_fn(x, y)

    def costs(self, x: Float[Array, "k d"]) -> Float[Array, "k m"]:
        """From these points."""
        dim = x.shape[1]
        if self.cost_fn is None and dim <= _COORDINATES:
            gaps = (x[:, None, k] - self.y[:, k] for k in range(dim))
            return sum((gap * gap for gap in gaps), start=jnp.zeros((), x.dtype))
        return jax.vmap(lambda x: jax.vmap(lambda y: self.between(x, y))(self.y))(x)

    def kernel(self, g: Columns, live: Bool[Array, " m"], epsilon: Scalar) -> AbstractKernel:
        if self.block is None:
            return Dense(self.costs(self.x)).kernel(g, live, epsilon)
        arrays, rest = eqx.partition(self, eqx.is_array)
        fixed = eqx.combine(lax.stop_gradient(arrays), rest)

        def least(x: Array) -> Array:
            return jnp.min(jnp.where(live, fixed.costs(x) - g, jnp.inf), axis=1)

        return BlockKernel(over_blocks(least, self.block, fixed.x), self, g, epsilon)

    def expected(self, kernel, g, rows, columns, epsilon) -> Scalar:
        if self.block is None:
            return Dense(self.costs(self.x)).expected(kernel, g, rows, columns, epsilon)

        def weighted(x: Array, base: Array) -> Array:
            costs = self.costs(x)
            return matmul(costs * entries(costs, g, base, epsilon), columns)

        return jnp.sum(rows * over_blocks(weighted, self.block, self.x, kernel.base))

    def spread(self) -> Scalar:
        # Of at most 64 x 64 of the points: it only says where to begin.
        few = Points(self.x[:: max(1, self.shape[0] // 64)], self.y[:: max(1, self.shape[1] // 64)])
        costs = Points(few.x, few.y, self.cost_fn).costs(few.x)
        return jnp.mean(costs) - jnp.min(costs)

    def some(self, index: Array) -> Float[Array, "k m"]:
        return self.costs(self.x[index])


class _Turned(eqx.Module):
    """A cost with its arguments exchanged."""

    fn: Callable[[Array, Array], Array]

    def __call__(self, x: Array, y: Array) -> Array:
        return self.fn(y, x)


class BlockKernel(AbstractKernel):
    """K, a block of rows at a time."""

    geometry: Points
    g: Columns
    epsilon: Scalar

    def raised(self, shift):
        return BlockKernel(self.base - shift, self.geometry, self.g + shift, self.epsilon)

    def rows(self, columns):
        def part(x: Array, base: Array) -> Array:
            return matmul(self.part(x, base), columns)

        return over_blocks(part, self.block, self.geometry.x, self.base)

    def columns(self, rows):
        def part(x: Array, base: Array, rows: Array) -> Array:
            block = self.part(x, base)
            return matmul(block.T, rows) if rows.ndim > 1 else matmul(rows, block)

        return over_blocks(part, self.block, self.geometry.x, self.base, rows, summed=True)

    def scaled(self, rows, columns):
        def part(x: Array, base: Array, rows: Array) -> Array:
            return rows[:, None] * self.part(x, base) * columns

        return over_blocks(part, self.block, self.geometry.x, self.base, rows)

    def gram(self, rows):
        def part(x: Array, base: Array, rows: Array) -> Array:
            block = self.part(x, base)
            return matmul(block.T, rows[:, None] * block)

        return over_blocks(part, self.block, self.geometry.x, self.base, rows, summed=True)

    def through(self, columns, weigh, *data):
        """Both products from one pass: a block is computed once."""

        def part(x: Array, base: Array, *data: Array) -> tuple[Array, Array]:
            block = self.part(x, base)
            found = matmul(block, columns)
            return found, matmul(weigh(found, base, *data), block)

        return over_blocks(
            part, self.block, self.geometry.x, self.base, *data, summed=(False, True)
        )

    @property
    def block(self) -> int:
        assert self.geometry.block is not None
        return self.geometry.block

    def part(self, x: Float[Array, "k d"], base: Float[Array, " k"]) -> Float[Array, "k m"]:
        return entries(self.geometry.costs(x), self.g, base, self.epsilon)


def entries(costs: Array, g: Columns, base: Array, epsilon: Scalar) -> Array:
    """The rows of K that have these costs and this base."""
    limit = jnp.log(jnp.finfo(costs.dtype).max) / 2
    return jnp.exp(-jnp.maximum(((costs - g) - base[:, None]) / epsilon, -limit))


def _zeros(shape: jax.ShapeDtypeStruct) -> Array:
    """In a shard_map the first sum varies as those after it do."""
    axes: Any = shape.manual_axis_type
    return vary(jnp.zeros(shape.shape, shape.dtype), axes.varying if axes else frozenset())


def over_blocks(fn: Callable, block: int, *rows: Array, summed: Any = False) -> Any:
    """fn of blocks of rows, its results joined, or added up where `summed`; what derivatives need
    of a block is computed again."""
    size = rows[0].shape[0]
    block = min(block, size)
    count, left = divmod(size, block)
    # Every count-th row is in one block: of rows that are sharded each device has its part of all.
    main = [x[: count * block].reshape(block, count, *x.shape[1:]).swapaxes(0, 1) for x in rows]
    part = jax.checkpoint(fn)
    out = jax.eval_shape(fn, *(x[0] for x in main))
    single = not isinstance(out, tuple)
    adds = (summed,) if single else summed
    shapes = (out,) if single else out
    blank = tuple(_zeros(s) for s, add in zip(shapes, adds, strict=True) if add)

    def step(total: tuple, rows: list) -> tuple:
        found = part(*rows)
        found = (found,) if single else found
        new = [x for x, add in zip(found, adds, strict=True) if add]
        kept = tuple(x for x, add in zip(found, adds, strict=True) if not add)
        return tuple(t + x for t, x in zip(total, new, strict=True)), kept

    total, kept = lax.scan(step, blank, main)
    joined = [x.swapaxes(0, 1).reshape(-1, *x.shape[2:]) for x in kept]
    if left:
        total, rest = step(total, [x[count * block :] for x in rows])
        joined = [jnp.concatenate([x, y]) for x, y in zip(joined, rest, strict=True)]
    sums, lists = iter(total), iter(joined)
    results = tuple(next(sums) if add else next(lists) for add in adds)
    return results[0] if single else results
