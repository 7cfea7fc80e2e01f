"""Elastic-net paths on two data sets: whole paths at once, and the penalties by gradient.

The models of 20 folds and 100 penalties (`elastic_net.py`) are one vmapped call of
`ProximalGradient`. The derivative of the cross-validation error in log alpha and log beta goes
through every fit, and Adam follows it. The baselines are scikit-learn's: coordinate descent
(`enet_path`) fold by fold for the squares (diabetes), SAGA for the logistic loss (breast cancer),
and a grid search over both.
"""

import time
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from . import plots
from .base import Experiment, Figure, Findings, Run
from .elastic_net import CANCER, DIABETES, TOLERANCE, Data, Logs, Task, errors, load, path
from .markdown import table

DIFFERENCE = 1e-4
"""Of log alpha and log beta, for central differences of scikit-learn's own error."""


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment.

    Attributes:
        penalties: on a path, from the least that leaves no feature down to `least` times that.
        ratio: alpha / (alpha + beta) on the path.
        ratios: how many of them, evenly spaced, a grid search tries.
        steps, learning_rate: of Adam on the logarithms.
        saga: how many fits SAGA makes for comparison: all would take hours.
    """

    penalties: int = 100
    folds: int = 20
    least: float = 1e-3
    ratio: float = 0.5
    ratios: int = 10
    steps: int = 60
    learning_rate: float = 0.15
    saga: int = 3


class Theirs(NamedTuple):
    """scikit-learn's path with all folds."""

    error: Float[np.ndarray, " p"]
    weights: Float[np.ndarray, "p k n"]
    seconds: float


def coordinate_descent(data: Data, logs: Logs, tol: float) -> Theirs:
    """`enet_path`, fold by fold, each path from its sparse end on (warm starts)."""
    from sklearn.linear_model import enet_path

    x, b, left_out = (np.asarray(v) for v in data)
    fit: Any = enet_path
    alpha, beta = np.exp(np.asarray(logs["alpha"])), np.exp(np.asarray(logs["beta"]))
    total, ratio = alpha + beta, float((alpha / (alpha + beta))[0])
    begun, losses, weights = time.perf_counter(), np.zeros(len(total)), []
    for out in left_out:
        mean, level = x[~out].mean(axis=0), b[~out].mean()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, found, _ = fit(
                x[~out] - mean, b[~out] - level, l1_ratio=ratio, alphas=total, tol=tol,
                max_iter=100_000, precompute=True,
            )  # fmt: skip
        scores = (x[out] - mean) @ found + level
        losses = losses + np.sum(0.5 * (scores - b[out][:, None]) ** 2, axis=0)
        weights.append(found.T)
    return Theirs(losses / len(b), np.stack(weights, axis=1), time.perf_counter() - begun)


def saga(data: Data, logs: Logs, places: Any, tol: float) -> Theirs:
    """`LogisticRegression(solver="saga")` of the first fold at some places of a path."""
    from sklearn.linear_model import LogisticRegression

    x, b, out = np.asarray(data.x), np.asarray(data.b), np.asarray(data.left_out[0])
    begun, weights = time.perf_counter(), []
    for place in places:
        alpha, beta = (float(jnp.exp(logs[k][place])) for k in ("alpha", "beta"))
        total = alpha + beta
        model = LogisticRegression(
            solver="saga", l1_ratio=alpha / total, C=1 / (total * np.sum(~out)), tol=tol,
            max_iter=100_000, random_state=0,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weights.append(model.fit(x[~out], b[~out]).coef_)
    return Theirs(np.zeros(0), np.stack(weights), time.perf_counter() - begun)


class Descent(NamedTuple):
    """Adam's way over the logarithms."""

    records: dict[str, np.ndarray]
    seconds: float

    @property
    def best(self) -> int:
        return int(self.records["error"].argmin())


def descend(settings: Settings, run: Run, task: Task, data: Data, start: Logs) -> Descent:
    """Adam on the cross-validation error, from one penalty on."""
    adam = optax.adam(settings.learning_rate)
    value = jax.value_and_grad(lambda logs: task.folds(data, logs)[0])
    gradient = run.compile(f"{task.title}: gradient", value, start)

    def step(i: int, state: Any) -> tuple[Any, dict[str, Array]]:
        logs, moments = state
        error, slopes = gradient(logs)
        # The derivative is NaN where a fit was not solved: that step is not made.
        slopes = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0.0), slopes)
        change, moments = adam.update(slopes, moments)
        record = {"error": error, **logs}
        return (jax.tree.map(jnp.add, logs, change), moments), record

    begin = (start, adam.init(start))
    _, records, seconds = run.loop(f"{task.title}: Adam", begin, step, settings.steps)
    return Descent(records, seconds)


def slope_mismatch(data: Data, logs: Logs) -> float:
    """The derivative of the error in log alpha and log beta, against central differences of
    scikit-learn's own error: the largest difference, over the largest derivative."""
    slopes = jax.jit(jax.grad(lambda logs: DIABETES.folds(data, logs)[0]))(logs)
    gaps = []
    for name in ("alpha", "beta"):
        ends = []
        for side in (1, -1):
            moved = logs | {name: logs[name] + side * DIFFERENCE}
            one = jax.tree.map(lambda x: x[None], moved)
            ends.append(coordinate_descent(data, one, 1e-14).error[0])
        gaps.append(abs(float(slopes[name]) - (ends[0] - ends[1]) / (2 * DIFFERENCE)))
    return max(gaps) / max(abs(float(slopes[k])) for k in slopes)


class Found(NamedTuple):
    """What was measured on one data set."""

    task: Task
    features: int
    examples: int
    error: Float[np.ndarray, " p"]
    weights: Float[np.ndarray, "p k n"]
    solved: float
    steps: Float[np.ndarray, "p k"]
    seconds: float
    logs: Logs
    descent: Descent


def on(settings: Settings, run: Run, task: Task) -> tuple[Data, Found]:
    """The path and the descent on one data set."""
    data = load(task.name, settings.folds, run.seed)
    logs = path(task, data, settings.ratio, settings.penalties, settings.least)
    fn = run.compile(f"{task.title}: path", lambda data, logs: errors(task, data, logs), data, logs)
    jax.block_until_ready(fn(data, logs))
    begun = time.perf_counter()
    error, w, _, success, steps = jax.block_until_ready(fn(data, logs))
    seconds = time.perf_counter() - begun
    start = {k: v[settings.penalties // 3] for k, v in logs.items()}
    descent = descend(settings, run, task, data, start)
    found = Found(
        task, data.x.shape[1], data.b.size, np.asarray(error), np.asarray(w),
        float(jnp.mean(success)), np.asarray(steps), seconds, logs, descent,
    )  # fmt: skip
    return data, found


class Grid(NamedTuple):
    """A grid search by coordinate descent over whole paths at several ratios."""

    error: float
    alpha: float
    beta: float
    seconds: float


def grid_search(settings: Settings, data: Data) -> Grid:
    """scikit-learn's way to choose: all paths, the least cross-validation error."""
    begun, best = time.perf_counter(), (np.inf, 0.0, 0.0)
    for ratio in np.linspace(0.1, 1.0, settings.ratios):
        logs = path(DIABETES, data, float(min(ratio, 0.999)), settings.penalties, settings.least)
        error = coordinate_descent(data, logs, 1e-6).error
        k = int(error.argmin())
        alpha, beta = (float(np.exp(logs[name][k])) for name in ("alpha", "beta"))
        best = min(best, (float(error[k]), alpha, beta))
    return Grid(*best, seconds=time.perf_counter() - begun)


def run(settings: Settings, run: Run) -> Findings:
    """Both data sets, and what scikit-learn makes of them."""
    data, squares_found = on(settings, run, DIABETES)
    exact = coordinate_descent(data, squares_found.logs, 1e-13)
    usual = coordinate_descent(data, squares_found.logs, 1e-4)
    grid = grid_search(settings, data)
    middle = {k: v[settings.penalties // 2] for k, v in squares_found.logs.items()}
    mismatch = slope_mismatch(data, middle)
    cancer, logistic_found = on(settings, run, CANCER)
    places = np.linspace(0.1, 0.6, settings.saga) * settings.penalties
    places = places.astype(int)
    slow = saga(cancer, logistic_found.logs, places, 1e-10)
    return _findings(
        settings, squares_found, logistic_found, exact, usual, grid, mismatch, places, slow
    )


def _findings(settings, first: Found, second: Found, exact, usual, grid, mismatch, places, slow):
    away = float(np.abs(first.weights - exact.weights).max())
    loose = float(np.abs(usual.weights - exact.weights).max())
    far = float(np.abs(second.weights[places, 0] - slow.weights[:, 0]).max())
    fits = settings.penalties * settings.folds
    each = slow.seconds / len(places)
    ours = "one vmapped call of ProximalGradient"
    chosen = first.descent
    error = float(chosen.records["error"][chosen.best])
    figures = (
        Figure("diabetes: largest difference of a coefficient to coordinate descent", away, "",
               ours, 1e-6, "lower", "the goal; coordinate descent with tol 1e-13"),
        Figure(f"diabetes: {fits} fits", first.seconds, "s", ours, exact.seconds, "lower",
               "enet_path, fold by fold, tol 1e-13, same run"),
        Figure(f"diabetes: {fits} fits, beside the default accuracy", first.seconds, "s", ours,
               usual.seconds, "lower", "enet_path, fold by fold, tol 1e-4, same run"),
        Figure("breast cancer: largest difference of a coefficient to SAGA", far, "", ours, 1e-6,
               "lower", f"the goal; {len(places)} fits by SAGA, tol 1e-10"),
        Figure("breast cancer: time a fit", second.seconds / fits, "s", ours, each, "lower",
               f"SAGA, tol 1e-10, mean of {len(places)} fits, same run"),
        Figure("diabetes: derivative of the error, relative difference", mismatch, "", "implicit",
               1e-4, "lower", "central differences of coordinate descent's error, step 1e-4"),
        Figure("diabetes: cross-validation error of the choice", error, "", "Adam on log alpha, "
               "log beta", grid.error, "lower",
               f"grid of {settings.ratios} ratios x {settings.penalties} penalties, same run"),
        Figure("diabetes: time of the choice", chosen.seconds, "s", "Adam on log alpha, log beta",
               grid.seconds, "lower", "the same grid, by enet_path with tol 1e-6, same run"),
    )  # fmt: skip
    rows = []
    for found in (first, second):
        best = found.descent.best
        values = found.descent.records
        rows.append([
            found.task.title,
            f"{found.examples} x {found.features}",
            f"{found.seconds:.2f}",
            f"{found.steps.mean():.1f} ({found.steps.max()})",
            f"{100 * found.solved:.1f}",
            f"{found.error.min():.5f}",
            f"{values['error'][best]:.5f}",
            f"{np.exp(values['alpha'][best]):.3g} / {np.exp(values['beta'][best]):.3g}",
            f"{found.descent.seconds:.2f}",
        ])  # fmt: skip
    header = ("data, loss", "size", f"{fits} fits, s", "steps, mean (most)", "solved, %",
              "least error on the path", "error by gradient", "alpha / beta",
              "descent, s")  # fmt: skip
    text = f"""\
{settings.penalties} penalties (alpha = {settings.ratio:g} of their sum) x {settings.folds} folds,
each fit to a relative residual of {TOLERANCE:g}, all in one compiled call (compilation apart). The
error is the mean loss on the parts left out. Adam starts from a third of the path and makes
{settings.steps} steps, each {settings.folds} fits with their derivatives.

{table(header, rows)}

- Diabetes: coefficients agree with coordinate descent (tol 1e-13) to {away:.1e}; with its default
  tolerance it is itself {loose:.1e} off. {fits} fits took {first.seconds:.2f} s; `enet_path` took
  {exact.seconds:.2f} s (tol 1e-13) and {usual.seconds:.2f} s (tol 1e-4), fold by fold.
- Breast cancer: coefficients agree with SAGA (tol 1e-10) to {far:.1e} in {len(places)} fits, which
  took it {each:.2f} s each; ours {1e3 * second.seconds / fits:.2f} ms each.
- The derivative of the error agrees with central differences of coordinate descent's to
  {mismatch:.1e}.
- Choosing two penalties on diabetes: error {error:.6f} by gradient in {chosen.seconds:.2f} s;
  {grid.error:.6f} by a grid of {settings.ratios * settings.penalties} in {grid.seconds:.2f} s
  (alpha {grid.alpha:.3g}, beta {grid.beta:.3g}). The error is flat near its least and is not
  convex in the penalties: the gradient finds one of its valleys. A third penalty would cost it
  nothing, and the grid a factor of its size.
"""
    return Findings(figures, text, {"paths-and-errors": _plot(first, second)})


def _plot(first: Found, second: Found) -> Any:
    figure, axes = plots.axes(4, width=3.6)
    for (left, right), found in zip((axes[:2], axes[2:]), (first, second), strict=True):
        total = np.exp(np.asarray(found.logs["alpha"])) + np.exp(np.asarray(found.logs["beta"]))
        left.plot(total, found.weights.mean(axis=1), linewidth=1.1)
        left.set(title=f"{found.task.title}: weights, mean of folds", xlabel="alpha + beta")
        right.plot(total, found.error, color=plots.SECOND, label="path")
        values = found.descent.records
        there = np.exp(values["alpha"]) + np.exp(values["beta"])
        right.plot(there, values["error"], ".-", color=plots.OURS, label="Adam", linewidth=0.8)
        right.set(title="cross-validation error", xlabel="alpha + beta")
        right.legend(frameon=False, fontsize=8.5)
        for one in (left, right):
            one.set_xscale("log")
    return figure


EXPERIMENT = Experiment(
    name="sparse-features",
    summary="Elastic-net paths x folds in one call, penalties by gradient, against scikit-learn.",
    dtype="float64",
    run=run,
    quick=Settings(),
    full=Settings(steps=200, ratios=20, saga=10),
)
