"""What residuals are judged against: the size of what was added up to form them.

Each field, and each cone, has its own: large rows in one excuse no violation of another.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.vectors import largest, positive


def wide(dtype: Any) -> float:
    """How far off a point may lie, in sizes of the data, to be told from infinity: 1e6, in float32
    1e3. Certificates exclude what is nearer, and tolerances grow with the point no further."""
    return 1e6 if jnp.dtype(dtype) == jnp.float64 else 1e3


def counted(term: Float[Array, " m"], cause: Float[Array, " n"]) -> Float[Array, ""]:
    """The size of a product with `cause` as a scale for residuals. Along a ray all residuals are
    small beside the products: beyond `wide` these count no more than there."""
    return counted_sizes(largest(term), cause)


def counted_sizes(
    sizes: Float[Array, "..."],
    cause: Float[Array, " n"],
    sides: tuple[Float[Array, "..."] | float | None, ...] = (),
) -> Float[Array, "..."]:
    """The same of sizes of products, which count in any case up to the largest finite side."""
    near = sizes * jnp.minimum(1, wide(sizes.dtype) / positive(largest(cause)))
    finite = [jnp.ravel(jnp.where(jnp.isfinite(s), s, 0)) for s in sides if s is not None]
    if not finite:
        return near
    return jnp.maximum(near, jnp.minimum(sizes, largest(jnp.concatenate(finite))))


def largest_of(parts: list[Array], default: Float[Array, ""]) -> Float[Array, ""]:
    """The largest entry of all parts; `default` of none."""
    return largest(jnp.concatenate([jnp.ravel(x) for x in parts])) if parts else default


def scale_of(
    size: Float[Array, ""], relative: Float[Array, ""], default: Float[Array, ""]
) -> Float[Array, ""]:
    """What `size` is divided by to be `relative`."""
    present = relative > 0
    return jnp.where(present, size / jnp.where(present, relative, 1), default)
