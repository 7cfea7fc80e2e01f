"""What residuals are judged against: the size of what was added up to form them.

Each field, and each cone, has its own: large rows in one excuse no violation of another.
"""

from functools import reduce
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.solution import Residual, Scale
from ..core.vectors import maxima, positive

_PUSHES = (("Px", "x"), ("A'y", "y"), ("G'z", "z"), ("w_l", "w_l"), ("w_u", "w_u"))
"""What is added up to the gradient, and whose size it grows with."""
_SIDES = ("b", "h", "lower", "upper")


def wide(dtype: Any) -> float:
    """How far off a point may lie, in sizes of the data, to be told from infinity: 1e6, in float32
    1e3. Certificates exclude what is nearer, and tolerances grow with the point no further."""
    return 1e6 if jnp.dtype(dtype) == jnp.float64 else 1e3


def sizes_of(terms: dict[str, Array]) -> dict[str, Float[Array, ""]]:
    """The largest entry of each term."""
    return dict(zip(terms, maxima([*terms.values()]), strict=True))


def finite_part(side: Float[Array, " m"] | float) -> Float[Array, " m"]:
    """Sides, 0 where one is infinite."""
    return jnp.where(jnp.isfinite(side), side, 0)


def counted(
    size: Float[Array, "..."], cause: Float[Array, ""], side: Float[Array, ""] | float = 0
) -> Float[Array, "..."]:
    """The size of a product with a factor of size `cause`, as a scale for residuals. Along a ray
    all residuals are small beside the products: beyond `wide` these count no more than there, but
    in any case up to `side`."""
    near = size * jnp.minimum(1, wide(size.dtype) / positive(cause))
    return jnp.maximum(near, jnp.minimum(size, side))


def dual_scale_of(size: dict[str, Float[Array, ""]]) -> Float[Array, ""]:
    """max(1, |Px|, |q|, |A'y|, |G'z|, |w|)."""
    pushes = [counted(size[term], size[cause]) for term, cause in _PUSHES if cause in size]
    return reduce(jnp.maximum, [size["q"], *pushes], jnp.ones_like(size["q"]))


def side_of(size: dict[str, Float[Array, ""]]) -> Float[Array, ""]:
    """The largest finite side."""
    sides = [size[name] for name in _SIDES if name in size]
    return reduce(jnp.maximum, sides, jnp.zeros_like(size["q"]))


def scale_of(
    size: Float[Array, ""], relative: Float[Array, ""], default: Float[Array, ""]
) -> Float[Array, ""]:
    """What `size` is divided by to be `relative`."""
    present = relative > 0
    return jnp.where(present, size / jnp.where(present, relative, 1), default)


def judged(parts: list[Array], widest: Float[Array, ""], dual_scale: Float[Array, ""]) -> Residual:
    """The residual of what is amiss and that over its scales, of the natural residual and that of
    slack and dual over theirs, and of the gradient."""
    primal, primal_relative, worst, relative, dual = maxima(parts)
    scale = jnp.maximum(widest, dual_scale)
    # Where the slack absorbs the dual, only the scaled one is not 0.
    worst = jnp.where(worst > 0, worst, relative * scale)
    scales = scale_of(primal, primal_relative, widest), dual_scale, scale_of(worst, relative, scale)
    return Residual(primal, dual, worst, Scale(*scales))
