"""Keys of random draws that a state can hold: two numbers, which files can hold too."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32


def first_key(key: Any) -> UInt32[Array, "2"]:
    """A key as numbers; the same one where none is given."""
    return jax.random.bits(jax.random.key(0) if key is None else key, (2,), jnp.uint32)


def next_keys(key: UInt32[Array, "2"], number: int) -> tuple[UInt32[Array, "2"], Array]:
    """The next key, and keys for this step."""
    found = jax.random.split(jax.random.wrap_key_data(key, impl="threefry2x32"), number + 1)
    return jax.random.key_data(found[0]), found[1:]
