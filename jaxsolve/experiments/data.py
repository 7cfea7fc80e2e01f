"""The data that ships with scikit-learn, in the shape that experiments use."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int


class Examples(NamedTuple):
    """Labelled images, one a row: NumPy arrays as they come from here."""

    x: Float[Array, "m n"]
    y: Int[Array, " m"]


def digits() -> Examples:
    """1797 handwritten digits of 8 x 8 pixels, between 0 and 1, float32."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    x: Any = (bunch["data"] / 16).astype(np.float32)
    return Examples(x, bunch["target"].astype(np.int32))


def splits(seed: int, count: int, sizes: tuple[int, ...], examples: Examples) -> list[Examples]:
    """Random disjoint parts of the data, `count` times: each part with a first axis of splits.

    Split k is the same whatever `count` is.
    """
    if sum(sizes) > len(examples.y):
        raise ValueError(f"parts of {sizes} do not fit into {len(examples.y)} examples")
    orders = [np.random.default_rng((seed, k)).permutation(len(examples.y)) for k in range(count)]
    ends = np.cumsum((0, *sizes))
    places = [np.stack([o[i:j] for o in orders]) for i, j in zip(ends[:-1], ends[1:], strict=True)]
    return [Examples(examples.x[place], examples.y[place]) for place in places]
