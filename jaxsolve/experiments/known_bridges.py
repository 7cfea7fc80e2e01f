"""Fits of bridges that are known: `gaussian_mixture_benchmark`, scored cell by cell.

A cell is a dimension and an epsilon. `LightSB` on all points stands beside the fit that starts at
the truth, and in some cells beside what descends on small batches of the same points:

    MinibatchLightSB                   the loss L of a batch, as Light SB is published
    LightSBM                           drifts of pairs as they come
    LightSBM, MinibatchTransport       drifts of pairs drawn from the plan of the batch

Korotin, Gushchin and Burnaev (2024), Light Schroedinger Bridge; Gushchin, Kholkin, Burnaev and
Korotin (2024), Light and Optimal Schroedinger Bridge Matching. Their figures are of other pairs,
whose parameters are not published with a rule: reference levels, not baselines.
"""

import time
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ..core.solve import solve
from ..transport import (
    Diagonal,
    GaussianMixtureBenchmark,
    LightBridge,
    LightSB,
    LightSBM,
    MinibatchLightSB,
    MinibatchTransport,
    SchrodingerBridge,
    gaussian_mixture_benchmark,
)
from ..transport.gaussian_mixture import bures_wasserstein
from .base import Figure
from .markdown import table

DRAWS = 1000
"""Of each conditional plan, where it is scored by draws."""
_CELLS = [(dim, epsilon) for epsilon in (0.1, 1.0, 10.0) for dim in (2, 16, 64, 128)]


def _levels(*values: float) -> dict[tuple[int, float], float]:
    return dict(zip(_CELLS, values, strict=True))


PUBLISHED = _levels(0.03, 0.08, 0.28, 0.60, 0.05, 0.09, 0.24, 0.62, 0.07, 0.11, 0.21, 0.37)
"""cBW2-UVP of Light SB in its paper, per cent, on the paper's own pairs."""
METHODS = {
    "MinibatchLightSB": PUBLISHED,
    "LightSBM, independent":
        _levels(0.04, 0.18, 0.77, 1.66, 0.09, 0.18, 0.47, 1.2, 0.12, 0.19, 0.36, 0.71),
    "LightSBM, minibatch plan":
        _levels(0.02, 0.1, 0.56, 1.32, 0.09, 0.18, 0.46, 1.2, 0.13, 0.18, 0.36, 0.71),
}  # fmt: skip
"""What descends on small batches, and its published figures, on the same pairs as those above."""


@dataclass(frozen=True)
class Sizes:
    """Of this part.

    Attributes:
        cells: (dimension, epsilon) of the benchmark.
        points, components: of its fits.
        inputs: at which conditional plans are scored by draws.
        matched: of the cells, those in which small batches are tried.
        batch, steps: of these.
    """

    cells: tuple[tuple[int, float], ...] = ((2, 0.1), (2, 1.0), (2, 10.0), (16, 0.1), (16, 1.0),
                                            (16, 10.0))  # fmt: skip
    points: int = 10_000
    components: int = 5
    inputs: int = 100
    matched: tuple[tuple[int, float], ...] = ((16, 0.1),)
    batch: int = 128
    steps: int = 2000


FULL = Sizes(
    cells=tuple(_CELLS), points=40_000, inputs=1000, matched=tuple(_CELLS), batch=512, steps=10_000
)


class Cell(NamedTuple):
    """A pair of laws, and a fit of `LightSB`; scores in per cent.

    Attributes:
        exact: cBW2-UVP by exact moments.
        led: the same of the fit that starts at the truth: what the sample allows.
        drawn: cBW2-UVP as published, by draws of each conditional plan.
        floor: the same of draws of the true plan: what that score gives to a perfect answer.
        constant: of the constant map to the mean.
        kl: KL(pi* | pi).
    """

    exact: float
    led: float
    drawn: float
    floor: float
    constant: float
    kl: float
    seconds: float
    residual: float


class Matches(NamedTuple):
    """Fits by small batches, one for each of `METHODS`; `exact` and `kl` as in `Cell`."""

    exact: np.ndarray
    kl: np.ndarray
    seconds: np.ndarray


def scored(sizes: Sizes, dim: int, epsilon: float, seed: int) -> Cell:
    """One cell, by `LightSB`."""
    benchmark, problem, keys = _sampled(sizes, dim, epsilon, seed)
    found, seconds = _timed(problem, LightSB(sizes.components), seed)
    led = solve(problem, LightSB(5), benchmark.bridge, throw=False)
    by_draws = [
        float(conditional_uvp(benchmark, bridge, k, sizes.inputs))
        for bridge, k in ((found.value, keys[0]), (benchmark.bridge, keys[1]))
    ]
    return Cell(
        exact=float(benchmark.conditional_uvp(found.value)),
        led=float(benchmark.conditional_uvp(led.value)),
        drawn=by_draws[0],
        floor=by_draws[1],
        constant=float(_constant(benchmark, jnp.mean(problem.x1, axis=0))),
        kl=float(benchmark.kl(found.value, 20_000)),
        seconds=seconds,
        residual=float(found.stats.residual.relative),
    )


def matched(sizes: Sizes, dim: int, epsilon: float, seed: int) -> Matches:
    """One cell, by small batches. They start at clusters: trials, as `LightSB` makes them on the
    whole sample, would be fits by L already."""
    benchmark, problem, _ = _sampled(sizes, dim, epsilon, seed)
    settings: dict[str, Any] = {
        "batch_size": sizes.batch,
        "steps": sizes.steps,
        "starts": 1,
        "optimiser": _adam(sizes.steps),
    }
    solvers = (
        MinibatchLightSB(sizes.components, **settings),
        LightSBM(sizes.components, **settings),
        LightSBM(sizes.components, coupling=MinibatchTransport(epsilon), **settings),
    )
    fits = [_timed(problem, solver, seed) for solver in solvers]
    return Matches(
        exact=np.array([float(benchmark.conditional_uvp(f.value)) for f, _ in fits]),
        kl=np.array([float(benchmark.kl(f.value, 20_000)) for f, _ in fits]),
        seconds=np.array([seconds for _, seconds in fits]),
    )


@cache
def _adam(steps: int) -> optax.GradientTransformation:
    """Made once: another one is another program."""
    return optax.adam(optax.cosine_decay_schedule(1e-2, steps))


def _sampled(
    sizes: Sizes, dim: int, epsilon: float, seed: int
) -> tuple[GaussianMixtureBenchmark, SchrodingerBridge, Array]:
    """A pair of laws, samples of both, and two keys."""
    key = jax.random.key(seed)
    benchmark = gaussian_mixture_benchmark(dim, epsilon, key, covariance=Diagonal())
    keys = jax.random.split(jax.random.fold_in(key, 7), 4)
    x0 = benchmark.sample_source(keys[0], sizes.points)
    x1 = benchmark.sample_target(keys[1], sizes.points)
    return benchmark, SchrodingerBridge(x0, x1, epsilon=epsilon), keys[2:]


def _timed(problem: SchrodingerBridge, solver: Any, seed: int) -> tuple[Any, float]:
    """The solution, and seconds."""
    begun = time.perf_counter()
    found = solve(problem, solver, key=jax.random.key(seed), throw=False)
    jax.block_until_ready(found.value)
    return found, time.perf_counter() - begun


@eqx.filter_jit
def conditional_uvp(
    benchmark: GaussianMixtureBenchmark, bridge: LightBridge, key: Array, inputs: int
) -> Float[Array, ""]:
    """cBW2-UVP with the moments of `DRAWS` draws in the place of the bridge's own, as published."""

    def distance(pair: tuple[Array, Array]) -> Array:
        key, x = pair
        true = benchmark.bridge.conditional(x)
        y = bridge.conditional(x).sample(key, (DRAWS,))
        away = y - jnp.mean(y, axis=0)
        covariance = jnp.matmul(away.T, away, precision="highest") / (DRAWS - 1)
        return bures_wasserstein(jnp.mean(y, axis=0), covariance, true.mean, true.covariance)

    pairs = jax.random.split(key, inputs), benchmark.inputs[:inputs]
    return 100 * jnp.mean(jax.lax.map(distance, pairs)) / (0.5 * benchmark.variance)


@eqx.filter_jit
def _constant(benchmark: GaussianMixtureBenchmark, mean: Float[Array, " d"]) -> Float[Array, ""]:
    def distance(x: Array) -> Array:
        true = benchmark.bridge.conditional(x)
        return 0.5 * (jnp.sum((true.mean - mean) ** 2) + jnp.trace(true.covariance))

    distances = jax.lax.map(distance, benchmark.inputs, batch_size=50)
    return 100 * jnp.mean(distances) / (0.5 * benchmark.variance)


def cell_figures(sizes: Sizes, cells: dict[str, np.ndarray]) -> list[Figure]:
    """Of `LightSB`, beside twice the fit that starts at the truth."""
    ours = f"LightSB({sizes.components}), {sizes.points} points"
    return [
        Figure(f"benchmark, D = {dim}, epsilon = {epsilon:g}: cBW2-UVP", cells["exact"][k], "%",
               ours, 2 * cells["led"][k], "lower",
               "twice that of the fit that starts at the truth, same run")
        for k, (dim, epsilon) in enumerate(sizes.cells)
    ]  # fmt: skip


def cell_text(sizes: Sizes, cells: dict[str, np.ndarray]) -> str:
    """The table of `LightSB`."""
    header = ("D", "epsilon", "cBW2-UVP, exact", "from the truth", "by draws", "floor", "constant",
              "reference level", "KL", "fit, s", "residual")  # fmt: skip
    names = ("exact", "led", "drawn", "floor", "constant")
    rows = [
        [f"{dim}", f"{epsilon:g}", *(f"{cells[n][k]:.3g}" for n in names),
         f"{PUBLISHED[dim, epsilon]:g}" if (dim, epsilon) in PUBLISHED else "-",
         f"{cells['kl'][k]:.2g}", f"{cells['seconds'][k]:.1f}", f"{cells['residual'][k]:.0e}"]
        for k, (dim, epsilon) in enumerate(sizes.cells)
    ]  # fmt: skip
    return f"""\
## Benchmark with a known bridge

`gaussian_mixture_benchmark` with covariances along the axes, {sizes.points} points a sample,
{sizes.components} components. cBW2-UVP in per cent: by exact moments; of the fit that starts at
the truth (what the sample allows); by {DRAWS} draws at {sizes.inputs} inputs, the published way;
the floor, which that score gives to draws of the true plan; and of the constant map. The first fit
of a dimension compiles.

The reference level is what Light SB reaches in its paper on the paper's pairs. Those cannot be made
again, so that it is no baseline.

{table(header, rows)}
"""


def match_figures(sizes: Sizes, cells: dict[str, np.ndarray], matches: dict) -> list[Figure]:
    """Of `LightSB`, beside `LightSBM`."""
    each = f"{sizes.steps} steps of {sizes.batch} pairs, same points"
    return [
        Figure(f"benchmark, D = {dim}, epsilon = {epsilon:g}: cBW2-UVP beside {name}",
               cells["exact"][sizes.cells.index((dim, epsilon))], "%",
               f"LightSB({sizes.components}), {sizes.points} points", matches["exact"][k][m],
               "lower", each)
        for k, (dim, epsilon) in enumerate(sizes.matched)
        for m, name in enumerate(METHODS) if m > 0
    ]  # fmt: skip


def match_text(sizes: Sizes, cells: dict[str, np.ndarray], matches: dict) -> str:
    """The table of small batches."""
    rows = []
    for k, (dim, epsilon) in enumerate(sizes.matched):
        own = sizes.cells.index((dim, epsilon))
        found = [("LightSB, all points", PUBLISHED, cells["exact"][own], cells["kl"][own],
                  cells["seconds"][own])]  # fmt: skip
        for m, (name, published) in enumerate(METHODS.items()):
            found.append((name, published, *(matches[n][k][m] for n in Matches._fields)))
        rows += [
            [f"{dim}", f"{epsilon:g}", name, f"{exact:.3g}", f"{published[dim, epsilon]:g}",
             f"{kl:.2g}", f"{seconds:.1f}"]
            for name, published, exact, kl, seconds in found
        ]  # fmt: skip
    header = ("D", "epsilon", "method", "cBW2-UVP, exact", "reference level", "KL", "fit, s")
    return f"""\
### By small batches, and by matching drifts

The same points, by {sizes.steps} steps of Adam on batches of {sizes.batch} (a rate of 1e-2, with a
cosine to 0), from clusters: on the loss L of a batch, and by `LightSBM` on the drifts of pairs,
drawn independently or from the entropic plan of the batch. All three losses have the same
minimiser; what differs is the noise of their gradients. Times hold compilation.

{table(header, rows)}
"""
