"""Cyclic proximal coordinate descent, for quadratic losses.

    minimise f(y) + sum_b h_b(y_b),   f quadratic with Hessian H, g = grad f(y)

One block of coordinates after another (an entry, or a group of the penalty) makes a proximal step
with the curvature L_b of its own block (the largest eigenvalue of H_bb),

    y_b <- prox(y_b - g_b / L_b, 1 / L_b),   g <- g + H_:b (new y_b - old y_b),

so that g is kept up to date by columns of H ("covariance updates", Friedman, Hastie and Tibshirani
2010), and the examples are never seen again. After some passes their last points are extrapolated
(Anderson's acceleration, Bertrand and Massias 2021), where that lowers f + h.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core.checks import check_kind, check_real
from ..core.solution import RESULTS, Guess, Point
from ..core.solver import AbstractSolver
from ..core.vectors import dot, identity, largest, matmul, positive, ravel
from ..smooth.affine import is_affine
from ..smooth.forms import shaper
from .composite import Composite
from .penalties.base import Blocks

Scalar = Float[Array, ""]
Vector = Float[Array, " n"]
Entries = Float[Array, " N"]

_PASSES = 5
"""A step, and points that are extrapolated."""
_PATIENCE = 40
"""Steps without a smaller residual."""


class BlockCoordinateDescentState(eqx.Module):
    """A point after some passes, and where the next ones begin.

    Vectors are in the order of the blocks, which are filled up with zeros to one size.

    Attributes:
        primal: the point, whose blocks are all results of a prox.
        start: from where the next passes go.
        hessian: H.
        offset: grad f(0).
        curvature: L of each block.
        error, scale: `problem.residual` of the point, as `measured`.
        best: the smallest relative residual so far.
        idle: steps since it last fell.
    """

    primal: PyTree[Array]
    start: Entries
    hessian: Float[Array, "N N"]
    offset: Entries
    curvature: Float[Array, " blocks"]
    error: Scalar
    scale: Scalar
    best: Scalar
    idle: Int[Array, ""]


class BlockCoordinateDescent(AbstractSolver[Composite]):
    """Coordinate descent on the Gram matrix, with extrapolation: five passes a step.

    For `Composite` problems whose fn is quadratic in y (squares of linear residuals) and whose
    penalty is a sum over entries or groups: `L1`, `ElasticNet`, `Group`. Made for many examples and
    up to some hundred variables: the Hessian, which costs as many products as there are variables,
    is formed once, and a pass costs the square of their number.

    Friedman, Hastie and Tibshirani (2010); Bertrand and Massias (2021).

    Raises:
        TypeError: the gradient of `fn` is not affine in y; `penalty` is not of these.
    """

    step_limit: ClassVar[int] = 2000

    def refuse(self, problem: Composite) -> None:
        check_kind(self, problem, Composite)

    def init(self, problem: Composite, guess: Guess) -> BlockCoordinateDescentState:
        layout, vector = _Layout(problem, guess.primal), ravel(guess.primal)
        check_real("BlockCoordinateDescent", "init", vector.dtype)
        if not is_affine(jax.grad(problem.smooth), guess.primal):
            raise TypeError(
                "BlockCoordinateDescent: `fn` must be quadratic in y, but its second derivative "
                "depends on `y`. Use ProximalGradient()."
            )
        slope, curve = jax.linearize(
            jax.grad(lambda v: problem.smooth(layout.restore(v))), 0 * vector
        )
        natural = jax.vmap(curve)(identity(vector))
        hessian = layout.spread(layout.spread(natural).T)
        error, scale = problem.measured(guess.primal, layout.restore(slope + curve(vector)))
        return BlockCoordinateDescentState(
            primal=guess.primal,
            start=layout.spread(vector),
            hessian=hessian,
            offset=layout.spread(slope),
            curvature=layout.curvature(hessian),
            error=error,
            scale=scale,
            best=error / scale,
            idle=jnp.zeros_like(error, jnp.int32),
        )

    def step(
        self, problem: Composite, state: BlockCoordinateDescentState
    ) -> BlockCoordinateDescentState:
        layout, hessian = _Layout(problem, state.primal), state.hessian
        slope = state.offset + matmul(hessian, state.start)

        points, slopes = layout.cycles(hessian, state.curvature, state.start, slope)
        end, slope_there = points[-1], slopes[-1]
        moves = jnp.diff(points, axis=0, prepend=state.start[None])
        gram = matmul(moves, moves.T)
        little = 10 * jnp.finfo(gram.dtype).eps * positive(jnp.trace(gram))
        weights = jnp.linalg.solve(gram + little * identity(gram[0]), jnp.ones_like(gram[0]))
        weights = weights / jnp.sum(weights)
        ahead, slope_ahead = matmul(weights, points), matmul(weights, slopes)
        # f is quadratic: the difference of its values is this, without cancellation.
        change = dot(ahead - end, slope_ahead + slope_there) / 2
        penalty = layout.penalty(end)
        change = change + layout.penalty(ahead) - penalty
        # What rounding does not tell apart is not left to it.
        falls = change <= 10 * jnp.finfo(change.dtype).eps * penalty

        primal = layout.gather(end)
        error, scale = problem.measured(primal, layout.gather(slope_there))
        measure = error / scale
        gained = measure < 0.99 * state.best
        return BlockCoordinateDescentState(
            primal=primal,
            start=jnp.where(falls, ahead, end),
            hessian=hessian,
            offset=state.offset,
            curvature=state.curvature,
            error=error,
            scale=scale,
            best=jnp.where(gained, measure, state.best),
            idle=jnp.where(gained, 0, state.idle + 1),
        )

    def finish(
        self, problem: Composite, state: BlockCoordinateDescentState
    ) -> BlockCoordinateDescentState:
        """Some passes more, from the gradient that fn itself has at the point: that of the Gram
        matrix has lost what its large terms cancel."""
        layout, vector = _Layout(problem, state.primal), ravel(state.primal)
        slope = jax.grad(lambda v: problem.smooth(layout.restore(v)))(vector)
        start, slope = layout.spread(vector), layout.spread(slope)
        points, _ = layout.cycles(state.hessian, state.curvature, start, slope)
        return eqx.tree_at(lambda s: s.primal, state, layout.gather(points[-1]))

    def measure(self, problem: Composite, state: BlockCoordinateDescentState) -> Scalar:
        return state.error / state.scale

    def status(
        self, problem: Composite, state: BlockCoordinateDescentState, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        solved = self.measure(problem, state) <= tolerance
        concave = jnp.any(jnp.diagonal(state.hessian) < 0)
        stalled = RESULTS.where(solved, RESULTS.successful, RESULTS.stalled)
        result = RESULTS.where(concave, RESULTS.nonconvex, stalled)
        return solved | concave | (state.idle >= _PATIENCE), result

    def point(self, problem: Composite, state: BlockCoordinateDescentState) -> Point:
        return Point(state.primal)


class _Layout:
    """The coordinates of a problem block by block; `primal` gives the variable's structure."""

    def __init__(self, problem: Composite, primal: PyTree[Array]):
        blocks = problem.sharp.blocks(primal)
        if blocks is None:
            raise TypeError(
                "BlockCoordinateDescent: `penalty` must be a sum over coordinates or groups (L1, "
                f"ElasticNet, Group); {type(problem.penalty).__name__} is not. Use "
                "ProximalGradient()."
            )
        self.blocks: Blocks = blocks
        self.sharp, self.restore = problem.sharp, shaper(primal)
        self.size = sum(x.size for x in jax.tree.leaves(primal))
        self.order = blocks.order.ravel()
        self.back = np.argsort(self.order, kind="stable")[: self.size]
        self.plain = np.array_equal(self.order, np.arange(self.size))

    def spread(self, rows: Array) -> Array:
        """Rows (or entries) of coordinates in the order of the blocks, with zeros between."""
        if self.plain:
            return rows
        return jnp.take(rows, self.order, axis=0, mode="fill", fill_value=0)

    def gather(self, entries: Entries) -> PyTree[Array]:
        """The variable."""
        return self.restore(entries if self.plain else entries[self.back])

    def penalty(self, entries: Entries) -> Scalar:
        return self.sharp.inside(self.gather(entries)).astype(entries.dtype)

    def curvature(self, hessian: Float[Array, "N N"]) -> Float[Array, " blocks"]:
        """The largest eigenvalue of each diagonal block, the largest of all where it is 0."""
        count, width = self.blocks.order.shape
        if width == 1:
            found = jnp.diagonal(hessian)
        else:
            place = np.arange(count)
            own = hessian.reshape(count, width, count, width)[place, :, place]
            # An upper bound by more than the rounding of the eigenvalue.
            found = jnp.linalg.eigvalsh(own)[:, -1] * (1 + 10 * jnp.finfo(own.dtype).eps)
        return jnp.where(found > 0, found, positive(largest(found)))

    def cycles(
        self, hessian: Float[Array, "N N"], curvature: Vector, y: Entries, g: Entries
    ) -> tuple[Float[Array, "passes N"], Float[Array, "passes N"]]:
        """Some passes from a point with its gradient: points and gradients after each."""

        def record(at: tuple[Entries, Entries], _: None):
            after = self._cycle(hessian, curvature, *at)
            return after, after

        return lax.scan(record, (y, g), length=_PASSES)[1]

    def _cycle(
        self,
        hessian: Float[Array, "N N"],
        curvature: Float[Array, " blocks"],
        y: Entries,
        g: Entries,
    ) -> tuple[Entries, Entries]:
        """One pass over all blocks: the point and the gradient."""
        count, width = self.blocks.order.shape
        weights = self.blocks.weights.astype(y.dtype)
        # The carry is g alone: other arrays that are read and written would be copied each time.
        blocks = (
            jnp.arange(count, dtype=jnp.int32),
            y.reshape(count, width),
            hessian.reshape(count, width, y.size),
            weights,
            1 / curvature,
        )

        def update(g: Entries, block: Any) -> tuple[Entries, Array]:
            i, old, rows, weight, length = block
            own = lax.dynamic_slice_in_dim(g, i * width, width)
            new = self.blocks.prox(weight, old - length * own, length)
            return g + jnp.sum((new - old)[:, None] * rows, axis=0), new

        g, y = lax.scan(update, g, blocks)
        return y.ravel(), g
