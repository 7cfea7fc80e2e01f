"""A line search as a state machine: one trial a step, so that no lane of a batch waits for another.

The trial is accepted by the strong Wolfe conditions or, where the objective no longer resolves the
decrease, by the approximate ones of Hager and Zhang (2005), which look at slopes alone. A trial
with a value that is not finite is too long.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Scalar = Float[Array, ""]

_DECREASE = 1e-4
_CURVATURE = 0.9
_TRIALS = 25


class Search(eqx.Module):
    """The interval that holds an acceptable step size, and the next one to try.

    Attributes:
        step_size: to be tried next.
        low: the longest step size known to be too short, with the value and slope there.
        high: the shortest one known to be too long, infinite at first; its slope is NaN where
            nothing finite was found.
        settled: the next trial, at `low`, is to be accepted as it is.
        trials: made so far.
    """

    step_size: Scalar
    low: Scalar
    low_value: Scalar
    low_slope: Scalar
    high: Scalar
    high_value: Scalar
    high_slope: Scalar
    settled: Bool[Array, ""]
    trials: Int[Array, ""]


def start(step_size: Scalar, value: Scalar, slope: Scalar) -> Search:
    """A search from a point with this value along a direction with this (negative) slope."""
    zero = jnp.zeros_like(value)
    unknown = jnp.full_like(value, jnp.nan)
    return Search(
        step_size=step_size,
        low=zero,
        low_value=value,
        low_slope=slope,
        high=jnp.full_like(value, jnp.inf),
        high_value=unknown,
        high_slope=unknown,
        settled=zero > 1,
        trials=jnp.zeros_like(value, jnp.int32),
    )


def advance(
    search: Search,
    origin_value: Scalar,
    origin_slope: Scalar,
    value: Scalar,
    slope: Scalar,
    resolution: Scalar,
) -> tuple[Bool[Array, ""], Bool[Array, ""], Search]:
    """Judge the trial at `search.step_size` and choose the next.

    Args:
        search: the interval so far.
        origin_value, origin_slope: at step size 0.
        value, slope: at the trial; may be NaN or Inf.
        resolution: the differences of value that may be rounding.

    Returns:
        Whether the trial is accepted, whether the search has failed, and the next state.
    """
    trial = search.step_size
    finite = jnp.isfinite(value) & jnp.isfinite(slope)
    flat = jnp.abs(slope) <= -_CURVATURE * origin_slope
    lower = value <= origin_value + _DECREASE * trial * origin_slope
    # Hager-Zhang (4.1): Wolfe's conditions of the quadratic interpolant, in slopes alone.
    near = (value <= origin_value + resolution) & (slope <= (2 * _DECREASE - 1) * origin_slope)
    near = near & (slope >= _CURVATURE * origin_slope)
    accepted = finite & ((lower & flat) | near | search.settled)

    long = ~finite | (slope >= 0) | ~(lower | (value <= origin_value + resolution))
    unknown = jnp.full_like(value, jnp.nan)
    low = jnp.where(long, search.low, trial)
    low_value = jnp.where(long, search.low_value, value)
    low_slope = jnp.where(long, search.low_slope, slope)
    high = jnp.where(long, trial, search.high)
    high_value = jnp.where(long, jnp.where(finite, value, unknown), search.high_value)
    high_slope = jnp.where(long, jnp.where(finite, slope, unknown), search.high_slope)

    trials = search.trials + 1
    inside = _inside(low, low_value, low_slope, high, high_value, high_slope, trials, resolution)
    beyond = _beyond(search.low, search.low_slope, trial, slope)
    step_size = jnp.where(jnp.isinf(high), beyond, inside)

    narrow = (high - low) <= 4 * jnp.finfo(high.dtype).eps * high
    spent = (trials >= _TRIALS) | narrow
    settled = spent & (low > 0) & ~search.settled
    failed = ~accepted & spent & ~settled
    after = Search(
        step_size=jnp.where(settled, low, step_size),
        low=low,
        low_value=low_value,
        low_slope=low_slope,
        high=high,
        high_value=high_value,
        high_slope=high_slope,
        settled=settled,
        trials=trials,
    )
    return accepted, failed, after


def _inside(low, low_value, low_slope, high, high_value, high_slope, trials, resolution) -> Scalar:
    """The next trial in a bracket: cubic, secant where values do not resolve, or bisection."""
    # What is not known is replaced before it is computed with: else its derivative is NaN.
    high = jnp.where(jnp.isfinite(high) & (high > low), high, 2 * low + 1)
    width = high - low
    known = jnp.isfinite(high_slope)
    high_value = jnp.where(known, high_value, low_value)
    high_slope = jnp.where(known, high_slope, -low_slope)
    rise = high_slope - low_slope
    rises = high_slope > 0
    secant = low - low_slope * width / jnp.where(rises, rise, 1)
    # The minimiser of the cubic (Nocedal and Wright, 3.59).
    a = low_slope + high_slope - 3 * (high_value - low_value) / width
    square = a * a - low_slope * high_slope
    positive = square > 0
    b = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
    bottom = rise + 2 * b
    cubic = high - width * (high_slope + b - a) / jnp.where(bottom != 0, bottom, 1)
    resolved = (jnp.abs(high_value - low_value) > 10 * resolution) & (square >= 0)
    guess = jnp.where(resolved, cubic, secant)
    # Nothing finite out there: come down fast, the scale may be off by many orders.
    middle = low + jnp.where(known, 0.5 * width, 0.1 * width)
    good = known & jnp.where(resolved, bottom != 0, rises) & jnp.isfinite(guess) & (trials % 4 != 0)
    return jnp.clip(jnp.where(good, guess, middle), low + 0.05 * width, high - 0.05 * width)


def _beyond(low, low_slope, trial, slope) -> Scalar:
    """The next trial when all so far were too short: the secant's, 2 to 10 times longer."""
    rises = slope > low_slope
    slope = jnp.where(rises, slope, low_slope + 1)
    guess = trial - slope * (trial - low) / (slope - low_slope)
    guess = jnp.where(rises & jnp.isfinite(guess), guess, 10 * trial)
    return jnp.clip(guess, 2 * trial, 10 * trial)
