"""A ranking layer trained end to end: images of digits put in order.

A small network gives each image a score. It is trained on batches whose order is known, and judged
by how well the scores of images that it has not seen order their digits: Spearman's and Kendall's
(tau-b) correlation of score and digit. Three losses train the same network from the same start on
the same batches:

    soft ranks     the squared differences of the scores' soft ranks (`SoftRank`) and the digits'
    pairs          log(1 + exp(s_j - s_i)), mean over pairs with a larger digit i (RankNet)
    regression     the squared difference of score and label

Labels come twice: the digit itself, and 2 to its power. To the first two losses these are the same,
for only the order counts.

Cuturi, Teboul and Vert (2019) for the ranks; Burges et al. (2005) for pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ..layers import SoftRank
from . import plots
from .base import Experiment, Figure, Findings, Run
from .data import digits, splits
from .markdown import table

LABELS = {"digit": lambda y: y, "2^digit": lambda y: 2.0**y}
"""What is known of an image."""


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment.

    Attributes:
        splits: random ones into images to train on, and to judge by.
        train: images to train on, of 1797.
        batch, steps: of Adam.
        rates: of Adam; each loss has the one that served it best.
        looks: times at which the held-out images are looked at.
        hidden: units of the one hidden layer.
        epsilon: of the soft ranks.
    """

    splits: int = 5
    train: int = 1000
    batch: int = 100
    steps: int = 600
    rates: tuple[float, ...] = (3e-3, 1e-2)
    looks: int = 20
    hidden: int = 32
    epsilon: float = 1e-2


Loss = Callable[[Float[Array, " n"], Float[Array, " n"]], Float[Array, ""]]


def losses(settings: Settings) -> dict[str, Loss]:
    """(scores, labels) -> what is made small."""
    layer = SoftRank(epsilon=settings.epsilon)

    def soft_ranks(scores: Array, labels: Array) -> Array:
        wanted = jax.scipy.stats.rankdata(labels).astype(scores.dtype)
        return jnp.mean((layer(scores) - wanted) ** 2) / scores.size**2

    def pairs(scores: Array, labels: Array) -> Array:
        larger = labels[:, None] > labels
        lost = jax.nn.softplus(scores - scores[:, None])
        return jnp.sum(jnp.where(larger, lost, 0)) / jnp.maximum(jnp.sum(larger), 1)

    def regression(scores: Array, labels: Array) -> Array:
        return jnp.mean((scores - labels) ** 2)

    return {"soft ranks": soft_ranks, "pairs": pairs, "regression": regression}


def trainer(settings: Settings, loss: Loss) -> Callable:
    """(images, labels, held-out images, key, rate) -> the scores of the latter at each look."""

    def fit(x: Array, labels: Array, held: Array, key: Array, rate: Array) -> Array:
        optimiser = optax.adam(rate)
        first, second = jax.random.split(key)
        network = eqx.nn.MLP(x.shape[1], "scalar", settings.hidden, 1, key=first)
        arrays, rest = eqx.partition(network, eqx.is_array)
        # One scale for all labels: the rate is then no reason for a difference.
        known = (labels - jnp.mean(labels)) / jnp.std(labels)

        def scores(arrays: Any, x: Array) -> Array:
            return jax.vmap(eqx.combine(arrays, rest))(x)

        def step(state: Any, key: Array) -> tuple[Any, None]:
            arrays, moments = state
            rows = jax.random.choice(key, x.shape[0], (settings.batch,), replace=False)
            slope = jax.grad(lambda w: loss(scores(w, x[rows]), known[rows]))(arrays)
            change, moments = optimiser.update(slope, moments)
            return (optax.apply_updates(arrays, change), moments), None

        def look(state: Any, keys: Array) -> tuple[Any, Array]:
            state, _ = jax.lax.scan(step, state, keys)
            return state, scores(state[0], held)

        each = max(1, settings.steps // settings.looks)
        keys = jax.random.split(second, (settings.looks, each))
        return jax.lax.scan(look, (arrays, optimiser.init(arrays)), keys)[1]

    return fit


class Found(NamedTuple):
    """The fits of one loss at its best rate.

    Attributes:
        values: Spearman's and Kendall's correlation of each split at each look.
        scores: of the held-out images.
        seconds: of a fit.
    """

    rate: float
    values: np.ndarray
    scores: np.ndarray
    seconds: float


def correlations(scores: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Spearman's and Kendall's."""
    from scipy import stats

    spearman: Any = stats.spearmanr(scores, y)
    kendall: Any = stats.kendalltau(scores, y)
    return float(spearman.statistic), float(kendall.statistic)


def run(settings: Settings, run: Run) -> Findings:
    """All losses on both labels, split by split."""
    examples = digits()
    sizes = (settings.train, len(examples.y) - settings.train)
    train, held = splits(run.seed, settings.splits, sizes, examples)
    known, found = np.asarray(held.y), {}
    for name, loss in losses(settings).items():
        for label, of in LABELS.items():
            if name != "regression" and label != "digit":
                continue
            data = [
                (jnp.asarray(train.x[i]), jnp.asarray(of(train.y[i].astype(np.float32))),
                 jnp.asarray(held.x[i]), jax.random.key(i), jnp.asarray(rate, jnp.float32))
                for rate in settings.rates
                for i in range(settings.splits)
            ]  # fmt: skip
            title = f"{name} of {label}" if name == "regression" else name
            fit = run.compile(title, trainer(settings, loss), *data[0])

            def step(i: int, state: Any, fit=fit, data=data) -> tuple[Any, dict[str, Any]]:
                return state, {"scores": fit(*data[i])}

            _, records, seconds = run.loop(title, jnp.zeros(()), step, len(data))
            scores = records["scores"].reshape(
                len(settings.rates), settings.splits, settings.looks, -1
            )
            values = np.array(
                [[[correlations(s, y) for s in looks] for looks, y in zip(one, known, strict=True)]
                 for one in scores]
            )  # fmt: skip
            best = int(np.argmax(values[:, :, -1, 0].mean(axis=1)))
            found[title] = Found(
                settings.rates[best], values[best], scores[best], seconds / len(data)
            )
    return _findings(settings, found, known)


def _findings(settings: Settings, found: dict[str, Found], y: np.ndarray) -> Findings:
    last = {name: one.values[:, -1] for name, one in found.items()}
    ours = last["soft ranks"].mean(axis=0)
    figures = tuple(
        Figure(f"{which} of held-out images, beside {name}", ours[k], "", "SoftRank",
               last[name].mean(axis=0)[k], "higher", f"{name}: same network, batches and steps")
        for name in list(found)[1:]
        for k, which in enumerate(("Spearman", "Kendall"))
    )  # fmt: skip
    rows = [
        [name, f"{one.rate:g}",
         *(f"{m:.4f} +- {s:.4f}"
           for m, s in zip(last[name].mean(axis=0), last[name].std(axis=0), strict=True)),
         f"{one.seconds:.2f}"]
        for name, one in found.items()
    ]  # fmt: skip
    text = f"""\
{settings.train} images to train on, {y.shape[1]} held out, {settings.splits} splits;
{settings.steps} steps of batch {settings.batch} by Adam, for each loss at the better of the rates
{" and ".join(f"{r:g}" for r in settings.rates)} (by the held-out images, for all alike); 64 pixels,
{settings.hidden} hidden units, one score. Soft ranks at epsilon {settings.epsilon:g}. The spread is
that of the splits. Soft ranks and pairs are the same for a digit and for 2 to its power.

{table(("loss", "rate", "Spearman", "Kendall", "seconds a fit"), rows)}
"""
    return Findings(figures, text, {"order": _plot(settings, found, y)})


def _plot(settings: Settings, found: dict[str, Found], y: np.ndarray) -> Any:
    figure, (left, right) = plots.axes(2)
    steps = (1 + np.arange(settings.looks)) * max(1, settings.steps // settings.looks)
    colours = (plots.OURS, plots.FIRST, plots.SECOND, plots.THIRD)
    for colour, (name, one) in zip(colours, found.items(), strict=True):
        means = one.values[:, :, 0].mean(axis=0)
        left.plot(steps, means, color=colour, label=name, linewidth=1.2)
    left.set(title="held-out images", xlabel="steps", ylabel="Spearman", ylim=(0.5, 1))
    left.legend(frameon=False, fontsize=8.5)
    scores = found["soft ranks"].scores[0, -1]
    place = np.argsort(np.argsort(scores)) / (scores.size - 1)
    shake = np.random.default_rng(0).uniform(-0.3, 0.3, size=scores.size)
    right.plot(y[0] + shake, place, ".", color=plots.OURS, markersize=2)
    right.set(title="order by soft ranks", xlabel="digit", ylabel="place by score")
    return figure


EXPERIMENT = Experiment(
    name="sorting",
    summary="Digits put in order by a network trained through soft ranks, beside other losses.",
    dtype="float32",
    run=run,
    quick=Settings(),
    full=Settings(splits=20, steps=2000),
)
