"""The root of the sums that simplices and l1 balls share, without sorting.

    sum_i min(max(p_i - tau, 0), u_i) = total

The left side falls from sum u to 0, piecewise linear in tau. Newton's method on the piece at hand
ends in finitely many steps: at the root once the piece stays the same. A piece is told by how many
entries are above 0 and how many are at u, as both counts are monotone in tau. Without u the sum is
convex, and Newton's iterates rise from the left to the root (Michelot 1986, Condat 2016); with u a
bracket is kept, and halved where Newton's step leaves it.

A step is one pass over the entries. Sorting a million numbers takes some hundred of them on a CPU.
Sums are formed of what exceeds tau, so that in single precision no digits cancel.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core.loop import Lockstep, Program, run

Scalar = Float[Array, ""]

_LIMIT = 200
"""Steps after which a bracket of any two numbers is empty, with a margin."""


def simplex_threshold(values: Float[Array, " n"], total: Scalar) -> tuple[Scalar, Scalar]:
    """The largest value, and tau above it with sum max(values - largest - tau, 0) = total."""
    top = jnp.max(values)
    size = jnp.asarray(values.size, values.dtype)

    # No entry exceeds tau by more than total, nor all of them together by less.
    mean = jnp.sum(values - top) / size
    start = jnp.maximum(-total, mean - total / size)

    def init(data):
        values, top, total, start = data
        return (start, 0 * top - 1), start != start

    def step(data, carry):
        values, top, total, _ = data
        tau, count = carry
        excess = (values - top) - tau
        above = excess > 0
        found = jnp.sum(above, dtype=values.dtype)
        gap = jnp.sum(jnp.where(above, excess, 0)) - total
        new = tau + jnp.maximum(gap, 0) / jnp.maximum(found, 1)
        return (new, found), (found == count) | (new <= tau)

    program = Program(init, step, lambda _, carry: carry[0])
    return top, run(program, (values, top, total, start), lanes=Lockstep())


def capped_threshold(values: Float[Array, " n"], cap: Float[Array, " n"], total: Scalar) -> Scalar:
    """tau with sum min(max(values - tau, 0), cap) = total, where 0 <= total <= sum cap."""
    # Both are left of the root; the second also of caps that are infinite.
    low = jnp.maximum(jnp.min(values - cap), jnp.min(values) - total)
    high = jnp.max(values)

    def init(data):
        _, _, _, low, high = data
        none = 0 * low - 1
        tau = low + (high - low) / 2
        return (tau, low, high, none, none, jnp.zeros_like(low, jnp.int32)), tau != tau

    def step(data, carry):
        values, cap, total, _, _ = data
        tau, low, high, above, full, steps = carry
        excess = values - tau
        positive, capped = excess > 0, excess >= cap
        free = positive & ~capped
        gap = jnp.sum(jnp.clip(excess, 0, cap)) - total
        slope = jnp.sum(free, dtype=values.dtype)
        counts = jnp.sum(positive, dtype=values.dtype), jnp.sum(capped, dtype=values.dtype)
        same = (counts[0] == above) & (counts[1] == full)
        low, high = jnp.where(gap > 0, tau, low), jnp.where(gap > 0, high, tau)
        newton = tau + gap / jnp.maximum(slope, 1)
        # One end is tau; a step to the other one would come back.
        inside = (slope > 0) & jnp.where(gap > 0, newton < high, newton > low)
        middle = low + (high - low) / 2
        new = jnp.where(gap == 0, tau, jnp.where(inside, newton, middle))
        stuck = (middle <= low) | (middle >= high)
        # After Newton's step the same piece has the root; after a bisection it need not.
        counts = tuple(jnp.where(inside, count, -1) for count in counts)
        done = (gap == 0) | (same & (slope > 0)) | (stuck & ~inside) | (steps >= _LIMIT)
        return (new, low, high, *counts, steps + 1), done

    program = Program(init, step, lambda _, carry: carry[0])
    return run(program, (values, cap, total, low, high), lanes=Lockstep())
