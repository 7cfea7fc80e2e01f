"""Bilevel problems whose levels are means over data, for solvers that look at batches of them.

F(x, y) = mean over upper data,   f(x, y) = mean over lower data
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
from jaxtyping import Array, Int, PyTree

from ..convex.sets.base import AbstractSet
from ..core.adjoint import AbstractAdjoint, Detached
from ..core.checks import check_count, check_instance, count_samples
from ..core.problem import AbstractProblem, Structure
from ..core.solution import Point, Residual
from .bilevel import Bilevel, Pair

if TYPE_CHECKING:
    from ..core.solver import AbstractSolver


class StochasticBilevel(AbstractProblem):
    """minimise the mean of upper(x, y, batch, args), where y minimises that of lower(x, y, ...).

    Example:
        ```python
        loss = lambda x, y, batch, args: jnp.mean((batch[0] @ y - batch[1]) ** 2)
        ridge = lambda x, y, batch, args: loss(x, y, batch, args) + jnp.sum(jnp.exp(x) * y**2)
        keys = jax.random.split(jax.random.key(0))
        data = [(jax.random.normal(k, (64, 3)), jnp.ones(64)) for k in keys]
        problem = StochasticBilevel(loss, ridge, data[0], data[1], batch_size=16)
        solve(problem, SOBA(steps=50), init=(jnp.zeros(3), jnp.zeros(3)))
        ```

    Both functions are means over the samples of their batch (the first axis of each array), and are
    called with batches and, once at the end for the verdict, with all data: the point is judged as
    that of a `Bilevel`, by the exact hypergradient. Deterministic solvers take all data each step.

    Args:
        upper: F of a batch (x, y, batch, args), a real scalar.
        lower: f of a batch, likewise.
        upper_data, lower_data: pytrees of arrays, samples along their first axes.
        args: more data, any pytree, that is not cut into batches.
        batch_size: samples in a batch, of either data (all, where there are fewer).
        upper_set: X, one of `jaxsolve.sets`: where x has to be.
    """

    upper: Callable[[PyTree, PyTree, PyTree, PyTree], Any]
    lower: Callable[[PyTree, PyTree, PyTree, PyTree], Any]
    upper_data: PyTree[Array]
    lower_data: PyTree[Array]
    args: PyTree = None
    batch_size: int = eqx.field(kw_only=True, static=True)
    upper_set: AbstractSet | None = eqx.field(default=None, kw_only=True)

    def __check_init__(self):
        check_count("StochasticBilevel", batch_size=self.batch_size)
        wanted = "a function of (x, y, batch, args)"
        for field in ("upper", "lower"):
            check_instance("StochasticBilevel", field, getattr(self, field), Callable, wanted)

    @property
    def full(self) -> Bilevel:
        """The problem on all data."""
        return self._on(self.upper_data, self.lower_data)

    def _on(self, upper_data: PyTree, lower_data: PyTree) -> Bilevel:
        args = (upper_data, lower_data, self.args)
        return Bilevel(
            _OnData(self.upper, 0), _OnData(self.lower, 1), args, upper_set=self.upper_set
        )

    @property
    def structure(self) -> Structure:
        return self.full.structure

    def optimality(self, point: Point) -> Point:
        return self.full.optimality(point)

    def residual(self, point: Point) -> Residual:
        return self.full.residual(point)

    def describe(self) -> list[str]:
        return self.full.describe()

    def default_solver(self) -> "AbstractSolver":
        from .saba import SABA

        return SABA()

    def default_adjoint(self) -> AbstractAdjoint:
        return Detached()

    def prepare(self, init: PyTree | None) -> tuple["SampledBilevel", Pair]:
        count = partial(count_samples, "StochasticBilevel")
        sizes = (count("upper_data", self.upper_data), count("lower_data", self.lower_data))
        take = lambda data, size: jax.tree.map(lambda x: x[: min(self.batch_size, size)], data)
        part = self._on(take(self.upper_data, sizes[0]), take(self.lower_data, sizes[1]))
        full, value = self.full.prepare(init)
        part, _ = part.prepare(init)
        left = [size % self.batch_size for size in sizes]
        tail = None
        if any(left):
            # Of a level whose data the batches divide, any rows will do: they are not read.
            last = lambda data, rows: jax.tree.map(lambda x: x[-rows:] if rows else x[:1], data)
            tail = self._on(last(self.upper_data, left[0]), last(self.lower_data, left[1]))
            tail, _ = tail.prepare(init)
        sampled = SampledBilevel(
            full.upper,
            full.lower,
            full.args,
            upper_set=full.upper_set,
            part=part,
            tail=tail,
            sizes=sizes,
        )
        return sampled, value


class SampledBilevel(Bilevel):
    """What solvers see of a `StochasticBilevel`: the problem on all data, and on batches.

    Attributes:
        part: the problem on the first batches; others replace its data.
        tail: the problem on the samples that whole batches leave over, `None` where they do not.
        sizes: samples of the upper and of the lower data.
    """

    part: Bilevel = eqx.field(kw_only=True)
    tail: Bilevel | None = eqx.field(kw_only=True)
    sizes: tuple[int, int] = eqx.field(kw_only=True, static=True)

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """Samples in a batch of each level."""
        return tuple(jax.tree.leaves(self.part.args[i])[0].shape[0] for i in (0, 1))  # pyright: ignore[reportReturnType]

    def sample(self, key: Array) -> Bilevel:
        """The problem on random batches, drawn with replacement, each level's alone; on all data of
        a level that is no larger than a batch."""
        draws = zip(jax.random.split(key), self.args[:2], self.batch_sizes, self.sizes, strict=True)
        data = [
            full if batch == size else _rows(full, jax.random.randint(own, (batch,), 0, size))
            for own, full, batch, size in draws
        ]
        return eqx.tree_at(lambda p: p.args, self.part, (*data, self.args[2]))

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks of each level's data, in their order: of the size of a batch, but for the last."""
        return tuple(  # pyright: ignore[reportReturnType]
            -(-size // batch) for size, batch in zip(self.sizes, self.batch_sizes, strict=True)
        )

    def on_block(
        self, level: int, block: Int[Array, ""], fn: Callable[[Bilevel], PyTree]
    ) -> PyTree:
        """`fn` of the problem on one block of the upper (0) or lower (1) data; the other level's
        data mean nothing there."""
        size, batch = self.sizes[level], self.batch_sizes[level]

        def on(part: Bilevel, start: Any, rows: int) -> PyTree:
            cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows)
            data = list(part.args)
            data[level] = jax.tree.map(cut, self.args[level])
            return fn(eqx.tree_at(lambda p: p.args, part, tuple(data)))

        whole = lambda: on(self.part, block * batch, batch)
        left, tail = size % batch, self.tail
        if left == 0 or tail is None:
            return whole()
        return jax.lax.cond(block < size // batch, whole, lambda: on(tail, size - left, left))

    def default_adjoint(self) -> AbstractAdjoint:
        return Detached()

    def default_solver(self) -> "AbstractSolver":
        from .saba import SABA

        return SABA()


class _OnData(eqx.Module):
    """A function of (x, y, batch, args) as one of (x, y, args)."""

    fn: Callable
    place: int = eqx.field(static=True)

    def __call__(self, x: PyTree, y: PyTree, args: PyTree) -> Any:
        return self.fn(x, y, args[self.place], args[2])


def _rows(data: PyTree[Array], rows: Int[Array, " b"]) -> PyTree[Array]:
    return jax.tree.map(lambda x: x[rows], data)
