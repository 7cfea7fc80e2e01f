"""M-FAC as an optimiser: gradients times the inverse Fisher matrix of the last m of them.

    g <- grad + weight_decay y;    G <- the last m gradients, g included
    v <- momentum v + (1 - momentum) (delta I + c G'G)^{-1} g
    y <- y - learning_rate v

Frantar, Kurtic and Alistarh (2021). Since g is a row of G, the product is a combination of the
rows: one product G g for the new row of G G', one Cholesky factor of m x m, one product with G'.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..core.checks import check_count, check_not_negative, check_number, check_positive
from ..core.solution import is_traced
from .fisher import GradientWindow


class MFACState(NamedTuple):
    """The window, and the running mean of the directions."""

    window: GradientWindow
    mean: Float[Array, " d"]


def scale_by_mfac(
    number: int = 128, damping: float = 1e-5, *, momentum: float = 0.0, samples: int = 1
) -> optax.GradientTransformation:
    """The direction v of M-FAC, to be put in a chain of optax: `mfac` without decay and rate.

    Args:
        number: m. The window needs m times the memory of the gradients.
        damping: delta. A direction is at most 1 / delta times as long as the gradient.
        momentum: of the running mean of the directions.
        samples: b, over how many samples each gradient is a mean; 1, as in the paper, leaves the
            number of them in the damping and the rate.
    """
    check_count("mfac", number=number, samples=samples)
    check_positive("mfac", damping=damping)
    check_number("mfac", momentum=momentum)
    check_not_negative("mfac", momentum=momentum)
    if not is_traced(momentum) and momentum >= 1:
        raise ValueError(f"mfac: `momentum` must be below 1; got {momentum}.")

    def init(params: PyTree) -> Any:
        flat = ravel_pytree(params)[0]
        return MFACState(GradientWindow.empty(number, flat.size, flat.dtype), jnp.zeros_like(flat))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> Any:
        gradient, restore = ravel_pytree(updates)
        window = state.window.push(gradient.astype(state.mean.dtype))
        direction = window.newest(damping, samples=samples)
        mean = momentum * state.mean + (1 - momentum) * direction
        return restore(mean.astype(gradient.dtype)), MFACState(window, mean)

    return optax.GradientTransformation(init, update)


def mfac(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    number: int = 128,
    damping: float = 1e-5,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    samples: int = 1,
) -> optax.GradientTransformation:
    """M-FAC as an optax transformation.

    For noisy gradients of a few hundred thousand parameters, where a step may cost m times the
    memory of the gradients and O(m d + m^3). The first m steps know fewer gradients than m.

    Args:
        learning_rate: a number or a schedule of optax.
        number: m; the paper takes 1024, and 512 for its smallest network.
        damping: delta.
        momentum: of the running mean of the preconditioned directions.
        weight_decay: times the parameters, added to the gradient before it enters the window.
        samples: b, over how many samples each gradient is a mean.

    Example:
        ```python
        import jax, jax.numpy as jnp, optax
        from jaxsolve.bilevel.mfac import mfac

        fn = lambda y: (1 - y[0]) ** 2 + 10 * (y[1] - y[0] ** 2) ** 2
        optimiser = mfac(0.05, number=8, damping=1e-3)
        y = jnp.array([-1.0, 1.0])
        state = optimiser.init(y)
        for _ in range(3):
            change, state = optimiser.update(jax.grad(fn)(y), state, y)
            y = optax.apply_updates(y, change)
        ```
    """
    check_not_negative("mfac", weight_decay=weight_decay)
    if not callable(learning_rate):
        check_number("mfac", learning_rate=learning_rate)
    parts = [scale_by_mfac(number, damping, momentum=momentum, samples=samples)]
    if weight_decay:
        parts.insert(0, optax.add_decayed_weights(weight_decay))
    return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))
