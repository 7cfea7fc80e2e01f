"""Cells between two days: the Schroedinger bridge predicts a day that it has not seen.

CITE-seq cells of days 2, 3, 4 and 7 in 50 principal components (the arrays of the experiment of
Light Schroedinger Bridge, Korotin et al. 2024). A bridge is fitted from day 2 to day 4 and scored
at day 3, and from day 3 to day 7 and scored at day 4: cells of the first day are moved to the time
of the day left out, and the score is the energy distance

    E|x - y| - E|x - x'| / 2 - E|y - y'| / 2

to the cells of that day, in the scale of the data. Before the fit all is divided by one number, the
mean standard deviation of the two days. Published: 2.31 +- 0.27, in 65 s on four cores, by 10,000
Adam steps; K = 10 and epsilon = 0.1 here as there.

The arrays are read from `data/single_cell/` or `../shared/data/single_cell/`: they are not ours to
pass on.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ..core.solution import Solution
from ..core.solve import solve
from ..core.vectors import matmul
from ..transport import LightBridge, LightSB, MinibatchLightSB, SchrodingerBridge
from . import plots
from .base import Experiment, Figure, Findings, Run
from .markdown import table

FILE = "cite_pca_50.npz"
FOLDERS = ("data/single_cell", "../shared/data/single_cell")
TASKS = ((2, 3, 4), (3, 4, 7))
"""First day, the day left out, last day."""

PUBLISHED, PUBLISHED_SECONDS = 2.31, 65.0
ADAM = optax.adam(1e-2)


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment.

    Attributes:
        seeds: fits of each task.
        tolerance: of the fit, relative to the size of its terms.
        steps: of Adam, for comparison.
        folder: of the arrays; empty: the usual ones.
    """

    seeds: int = 5
    components: int = 10
    epsilon: float = 0.1
    tolerance: float = 1e-3
    steps: int = 10_000
    folder: str = ""


class Task(NamedTuple):
    """Two days in units of `scale`, the cells in between, and when they were."""

    name: str
    first: Float[Array, "n d"]
    last: Float[Array, "m d"]
    between: Float[Array, "l d"]
    time: float
    scale: float


def load(folder: str = "") -> list[Task]:
    """Both tasks.

    Raises:
        FileNotFoundError: the arrays are not there; the message says where they come from.
    """
    places = [Path(f) / FILE for f in ((folder,) if folder else FOLDERS)]
    found = next((p for p in places if p.exists()), None)
    if found is None:
        raise FileNotFoundError(
            f"{FILE} (arrays day_2, day_3, day_4, day_7, a cell a row) is in none of "
            f"{', '.join(str(p.parent) for p in places)}; the principal components are in the "
            "repository of Light Schroedinger Bridge (ngushchin/LightSB)."
        )
    with np.load(found) as arrays:
        days = {day: arrays[f"day_{day}"].astype(np.float64) for day in (2, 3, 4, 7)}
    tasks = []
    for first, between, last in TASKS:
        scale = float(np.concatenate([days[first], days[last]]).std(axis=0).mean())
        tasks.append(
            Task(
                f"day {first} to {last}, scored at {between}",
                jnp.asarray(days[first] / scale),
                jnp.asarray(days[last] / scale),
                jnp.asarray(days[between] / scale),
                (between - first) / (last - first),
                scale,
            )
        )
    return tasks


def mean_distance(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, ""]:
    """The sum of |x_i - y_j| over n m, a block of rows at a time."""
    squares = jnp.sum(y * y, axis=1)

    def row(point: Float[Array, " d"]) -> Float[Array, ""]:
        gaps = jnp.sum(point * point) - 2 * matmul(y, point) + squares
        return jnp.sum(jnp.sqrt(jnp.maximum(gaps, 0)))

    return jnp.sum(jax.lax.map(row, x, batch_size=256)) / (x.shape[0] * y.shape[0])


@jax.jit
def energy_distance(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, ""]:
    """Of two samples, without bias: pairs of a point with itself are left out."""

    def within(z: Float[Array, "n d"]) -> Float[Array, ""]:
        return mean_distance(z, z) * z.shape[0] / (z.shape[0] - 1)

    return mean_distance(x, y) - 0.5 * within(x) - 0.5 * within(y)


def moved(bridge: LightBridge, key: Array, task: Task) -> Float[Array, "n d"]:
    """Cells of the first day at the time of the day left out: a draw of the bridge for each."""
    return _moved(bridge, key, task.first, jnp.asarray([task.time], task.first.dtype))


@eqx.filter_jit
def _moved(bridge, key, first, times):
    keys = jax.random.split(key, first.shape[0])
    return jax.vmap(lambda key, x: bridge.sample_path(key, x, times)[0])(keys, first)


def fit(settings: Settings, solver: Any, task: Task, seed: int) -> tuple[Solution, float]:
    """A solution, and the seconds that it took."""
    problem = SchrodingerBridge(task.first, task.last, epsilon=settings.epsilon)
    begun = time.perf_counter()
    key = jax.random.key(seed)
    found = solve(problem, solver, key=key, tolerance=settings.tolerance, throw=False)
    jax.block_until_ready(found.value)
    return found, time.perf_counter() - begun


def straight(task: Task, seed: int) -> Float[Array, "n d"]:
    """What needs no bridge: each cell on the straight line to a random one of the last day."""
    rows = jax.random.randint(jax.random.key(seed), task.first.shape[:1], 0, task.last.shape[0])
    return (1 - task.time) * task.first + task.time * task.last[rows]


def run(settings: Settings, run: Run) -> Findings:
    """All seeds of both tasks, and Adam's fit of one of them."""
    tasks = load(settings.folder)
    solver = LightSB(settings.components)
    scored = {}

    def step(i: int, state: Any) -> tuple[Any, dict[str, Array]]:
        record = {}
        for k, task in enumerate(tasks):
            seed = run.seed + i
            if i == 0:
                fit(settings, solver, task, seed)  # compiles
            found, seconds = fit(settings, solver, task, seed)
            key = jax.random.fold_in(jax.random.key(seed), 1)
            cells = moved(found.value, key, task)
            scored[k] = cells
            record |= {
                f"score {k}": task.scale * energy_distance(cells, task.between),
                f"seconds {k}": jnp.asarray(seconds),
                f"steps {k}": found.stats.steps,
                f"residual {k}": found.stats.residual.relative,
            }
        return state, record

    _, records, _ = run.loop("LightSB", jnp.zeros(()), step, settings.seeds)
    adam = MinibatchLightSB(settings.components, optimiser=ADAM, steps=settings.steps)
    theirs, lines, spent = [], [], 0.0
    for k, task in enumerate(tasks):
        found, seconds = fit(settings, adam, task, run.seed)
        spent += seconds
        cells = moved(found.value, jax.random.key(run.seed), task)
        theirs.append(task.scale * float(energy_distance(cells, task.between)))
        lines.append(task.scale * float(energy_distance(straight(task, run.seed), task.between)))
        if k not in scored:
            scored[k] = moved(
                fit(settings, solver, task, run.seed)[0].value, jax.random.key(0), task
            )
    return _findings(settings, tasks, records, theirs, spent, lines, scored)


def _findings(settings, tasks, records, theirs, spent, lines, scored) -> Findings:
    scores = np.stack([records[f"score {k}"] for k in range(2)], axis=1)
    seconds = records["seconds 0"] + records["seconds 1"]
    mean, spread = scores.mean(), scores.mean(axis=1).std()
    ours = f"LightSB({settings.components}), mean of {settings.seeds} seeds"
    figures = (
        Figure("energy distance at the day left out, mean of both tasks", mean, "", ours, PUBLISHED,
               "lower", "Light SB as published (2.31 +- 0.27)"),
        Figure("the same, beside Adam", mean, "", ours, float(np.mean(theirs)), "lower",
               f"MinibatchLightSB, {settings.steps} Adam steps of batch 128, same run"),
        Figure("the same, beside straight lines", mean, "", ours, float(np.mean(lines)), "lower",
               "each cell on the line to a random one of the last day, same run"),
        Figure("time of the two fits of a seed", float(np.mean(seconds)), "s", ours,
               PUBLISHED_SECONDS, "lower", "published, four cores; compilation apart"),
        Figure("the same, beside Adam's", float(np.mean(seconds)), "s", ours, spent, "lower",
               "MinibatchLightSB, same run, compilation included"),
    )  # fmt: skip
    rows = [
        [str(i), *(f"{s:.3f}" for s in scores[i]), f"{scores[i].mean():.3f}", f"{seconds[i]:.2f}",
         " / ".join(str(int(records[f"steps {k}"][i])) for k in range(2)),
         f"{max(records[f'residual {k}'][i] for k in range(2)):.1e}"]
        for i in range(settings.seeds)
    ]  # fmt: skip
    header = ("seed", *(task.name for task in tasks), "mean", "two fits, s", "steps", "residual")
    text = f"""\
{settings.components} components, epsilon {settings.epsilon:g}, all cells in every step, to a
relative residual of {settings.tolerance:g}. Energy distance in the scale of the data.

{table(header, rows)}

- Mean of the seeds {mean:.3f} (their spread {spread:.3f}); published {PUBLISHED} +- 0.27.
- Adam, {settings.steps} steps of batch 128 at rate 1e-2: {np.mean(theirs):.3f} in {spent:.1f} s
  with its compilation. Straight lines to random cells: {np.mean(lines):.3f}.
"""
    return Findings(figures, text, {"days": _plot(tasks, scored)})


def _plot(tasks: list[Task], scored: dict[int, Array]) -> Any:
    figure, axes = plots.axes(len(tasks), width=4.2)
    for k, (one, task) in enumerate(zip(axes, tasks, strict=True)):
        shown = ((task.first, plots.SOFT, "first day"), (task.between, plots.SECOND, "left out"),
                 (scored[k], plots.OURS, "bridge"))  # fmt: skip
        for points, colour, label in shown:
            cells = task.scale * np.asarray(points)[:1500]
            one.plot(cells[:, 0], cells[:, 1], ".", color=colour, markersize=1.5, label=label)
        one.set(title=task.name, xlabel="component 1", ylabel="component 2")
    axes[0].legend(frameon=False, fontsize=8, markerscale=4)
    return figure


EXPERIMENT = Experiment(
    name="single-cell",
    summary="Schroedinger bridges between days of cells, scored at a day that was left out",
    dtype="float64",
    run=run,
    quick=Settings(),
    full=Settings(seeds=10),
)
