"""Predict costs so that decisions are good: the shortest-path benchmark of Elmachtoub and Grigas.

Smart "predict, then optimise" (2022), section 6.1: a grid of 5 x 5 nodes whose 40 arcs go right and
down, features x in R^5 of independent normals, a matrix B of fair coins for each seed, and costs

    c_j = [((B x)_j / sqrt(5) + 3)^degree + 1] eps_j,    eps_j uniform within 1 +- noise,

divided by 3.5^degree, as published code does. A linear predictor with an intercept learns c from x;
the higher the degree, the less it can. With w(c) the shortest path at costs c, exact by dynamic
programming, what counts is the regret of the path that the prediction chooses, c'w(chat) - c'w(c),
summed over test examples and divided by the sum of c'w(c).

- least squares: predict, then optimise.
- SPO+: the published surrogate, by its subgradient 2 (w(c) - w(2 chat - c)).
- implicit: c'y(chat) with the smooth decision y(chat), the solution of the quadratic program

      minimise  chat'y + gamma ||y||^2 / 2   subject to   a unit flow y >= 0,

  differentiated by the implicit function theorem. A step solves the programs of all cells, seeds
  and examples of its batch in one vmapped call.

The last two begin at least squares and end at their last step. Nothing is regularised (the paper
chooses a penalty by validation); step sizes and gamma were chosen on other seeds (1234).
"""

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ..convex import InteriorPoint, LinearProgram, QuadraticProgram
from ..core.adjoint import Implicit
from ..core.linear import NormalCG
from ..core.solve import solve
from ..core.vectors import matmul
from . import plots
from .base import Experiment, Figure, Findings, Run
from .markdown import table
from .statistics import Difference, paired

SIDE, FEATURES = 5, 5
METHODS = ("least squares", "SPO+", "implicit")

Numbers = Array | np.ndarray


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment.

    Attributes:
        train: training examples.
        larger: another number of them, 0 for none.
        steps, batch, learning_rate: of Adam on the implicit loss; the rate falls to 0.
        spo_steps, spo_learning_rate: of Adam on SPO+, all examples a step.
        smoothing: gamma, relative to the mean cost.
        checks: test examples whose linear program is solved beside the dynamic programme.
    """

    seeds: int = 10
    train: int = 100
    larger: int = 0
    test: int = 1000
    degrees: tuple[int, ...] = (1, 2, 4, 6, 8)
    noises: tuple[float, ...] = (0.0, 0.5)
    steps: int = 60
    batch: int = 25
    learning_rate: float = 0.05
    spo_steps: int = 300
    spo_learning_rate: float = 0.03
    smoothing: float = 1.0
    checks: int = 20


class Arcs(NamedTuple):
    """Of each node the arcs to the right and down, `None` at the border; and the flow's balance at
    all nodes but the last, which follows from them."""

    right: list[int | None]
    down: list[int | None]
    balance: Float[np.ndarray, "v e"]
    supply: Float[np.ndarray, " v"]


def grid(side: int) -> Arcs:
    """The arcs of a grid, node by node."""
    right: list[int | None] = []
    down: list[int | None] = []
    count, ends = 0, []
    for node in range(side * side):
        turns = (right, node % side < side - 1, 1), (down, node < side * (side - 1), side)
        for out, there, step in turns:
            out.append(count if there else None)
            if there:
                ends.append((node, node + step))
                count += 1
    balance = np.zeros((side * side, count))
    for arc, (tail, head) in enumerate(ends):
        balance[tail, arc], balance[head, arc] = 1.0, -1.0
    supply = np.zeros(side * side - 1)
    supply[0] = 1.0
    return Arcs(right, down, balance[:-1], supply)


ARCS = grid(SIDE)
COUNT = ARCS.balance.shape[1]


def shortest(costs: Float[Numbers, "*b e"]) -> Float[Array, "*b e"]:
    """The shortest path from the first node to the last, as a 0-1 vector of arcs; costs may be
    negative, for the grid has no cycles."""
    last = SIDE * SIDE - 1
    zero = jnp.zeros_like(costs[..., 0])
    left: list[Array] = [zero] * (last + 1)
    turns: list[Array] = [zero.astype(bool)] * (last + 1)
    for node in reversed(range(last)):
        ways = []
        for arc, step in ((ARCS.right[node], 1), (ARCS.down[node], SIDE)):
            ways.append(zero + jnp.inf if arc is None else costs[..., arc] + left[node + step])
        turns[node] = ways[1] < ways[0]
        left[node] = jnp.minimum(ways[0], ways[1])
    here: list[Array] = [zero + 1, *([zero] * last)]
    flow: list[Array] = [zero] * COUNT
    for node in range(last):
        for arc, step, taken in (
            (ARCS.right[node], 1, ~turns[node]),
            (ARCS.down[node], SIDE, turns[node]),
        ):
            if arc is not None:
                flow[arc] = jnp.where(taken, here[node], 0.0)
                here[node + step] = here[node + step] + flow[arc]
    return jnp.stack(flow, axis=-1)


def decision(costs: Float[Array, " e"], gamma: float | Array) -> Float[Array, " e"]:
    """The smooth decision y(costs).

    At a node that no flow passes the balance has no free arc, and its multiplier is not unique: the
    derivative's linear system is singular but consistent, which conjugate gradients solve as it is.
    """
    balance, supply = jnp.asarray(ARCS.balance), jnp.asarray(ARCS.supply)
    problem = QuadraticProgram(gamma * jnp.eye(COUNT), costs, A=balance, b=supply, lower=0.0)
    adjoint = Implicit(linear_solver=NormalCG())
    return solve(problem, InteriorPoint(), tolerance=1e-6, adjoint=adjoint).value


class Examples(NamedTuple):
    """Features with a leading 1, a seed along the first axis, and costs of each cell and seed.

    All of them are gigabytes at full size: NumPy's, of which parts are views.
    """

    x: Float[Numbers, "s n f"]
    c: Float[Numbers, "*k s n e"]

    def part(self, begin: int, end: int) -> "Examples":
        return Examples(self.x[:, begin:end], self.c[:, :, begin:end])


def generate(settings: Settings, seed: int, count: int) -> tuple[list[tuple[int, float]], Examples]:
    """The cells (degree, noise), and examples of all of them; B, x and the noise's quantiles of a
    seed are the same in all cells."""
    cells = [(d, w) for w in settings.noises for d in settings.degrees]
    xs = np.ones((settings.seeds, count, 1 + FEATURES))
    cs = np.empty((len(cells), settings.seeds, count, COUNT))
    for k in range(settings.seeds):
        rng = np.random.default_rng((seed, k))
        coins = rng.binomial(1, 0.5, (COUNT, FEATURES))
        x = rng.normal(size=(count, FEATURES))
        signs = rng.uniform(-1.0, 1.0, (count, COUNT))
        line = x @ coins.T / np.sqrt(FEATURES) + 3
        for cell, (d, w) in enumerate(cells):
            cs[cell, k] = (line**d + 1) / 3.5**d * (1 + w * signs)
        xs[k, :, 1:] = x
    return cells, Examples(xs, cs)


Weights = Float[Array, "*k s f e"]


def predict(weights: Weights, x: Float[Numbers, "s n f"]) -> Float[Array, "*k s n e"]:
    return matmul(jnp.asarray(x), weights)


def least_squares(examples: Examples) -> Weights:
    """The predictor of least squared error, cell by cell."""
    fit = jax.vmap(lambda x, c: jnp.linalg.lstsq(x, c)[0])
    return jax.vmap(lambda c: fit(examples.x, c))(examples.c)


def regret(weights: Weights, examples: Examples) -> Float[Array, "*k s"]:
    """Of the predicted paths, over the cost of the shortest ones."""
    c = examples.c
    paid = jnp.sum(c * shortest(predict(weights, examples.x)), axis=(-2, -1))
    return paid / jnp.sum(c * shortest(c), axis=(-2, -1)) - 1


def spo_plus(weights: Weights, examples: Examples, best: Array) -> Float[Array, ""]:
    """A function whose gradient is the subgradient of SPO+, the mean over examples; `best` are the
    shortest paths."""
    predicted = predict(weights, examples.x)
    pull = 2 * (best - shortest(jax.lax.stop_gradient(2 * predicted) - examples.c))
    return jnp.sum(predicted * pull) / examples.x.shape[1]


def smooth_cost(weights: Weights, examples: Examples, gamma: float | Array) -> Float[Array, ""]:
    """What the smooth decisions cost, the mean over examples."""
    predicted = predict(weights, examples.x)
    decide = jnp.vectorize(lambda c: decision(c, gamma), signature="(e)->(e)")
    return jnp.sum(examples.c * decide(predicted)) / examples.x.shape[1]


def learn(
    run: Run, title: str, slope: Any, data: Any, start: Weights, rate: float, steps: int
) -> tuple[Weights, float]:
    """Adam from `start` along `slope(i, weights, data)`, at a rate that falls to 0: the last step,
    and the seconds of all."""
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def advance(i: Array, state: Any, data: Any) -> Any:
        weights, moments = state
        # The derivative is NaN where a program was not solved: that predictor stays.
        change, moments = adam.update(jnp.nan_to_num(slope(i, weights, data)), moments)
        return weights + change, moments

    begin = (start, adam.init(start))
    compiled = run.compile(title, advance, jnp.asarray(0), begin, data)

    def step(i: int, state: Any) -> tuple[Any, dict[str, Array]]:
        return compiled(jnp.asarray(i), state, data), {}

    (weights, _), _, seconds = run.loop(title, begin, step, steps)
    return weights, seconds


class Found(NamedTuple):
    """Test regrets of one number of training examples, and the seconds of each method."""

    train: int
    regrets: dict[str, Float[np.ndarray, "k s"]]
    seconds: dict[str, float]


def compare(settings: Settings, run: Run, examples: Examples, test: Examples, train: int) -> Found:
    """The three methods on the first `train` examples."""
    fit = jax.tree.map(jnp.asarray, examples.part(0, train))
    begun = time.perf_counter()
    start = jax.block_until_ready(jax.jit(least_squares)(fit))
    found, seconds = {METHODS[0]: start}, {METHODS[0]: time.perf_counter() - begun}
    best = shortest(fit.c)
    spread = settings.smoothing * float(jnp.mean(fit.c))
    implicit = jax.grad(smooth_cost)

    def surrogate(i: Array, weights: Weights, data: tuple[Examples, Array]) -> Array:
        return jax.grad(spo_plus)(weights, *data)

    def batch(i: Array, weights: Weights, fit: Examples) -> Array:
        places = jax.random.choice(
            jax.random.fold_in(jax.random.key(run.seed), i), train, (settings.batch,), replace=False
        )
        return implicit(weights, Examples(fit.x[:, places], fit.c[:, :, places]), spread)

    ways = (
        (surrogate, (fit, best), settings.spo_learning_rate, settings.spo_steps),
        (batch, fit, settings.learning_rate, settings.steps),
    )
    for name, (slope, data, rate, steps) in zip(METHODS[1:], ways, strict=True):
        title = f"{name}, n = {train}"
        found[name], seconds[name] = learn(run, title, slope, data, start, rate, steps)
    measure = jax.jit(regret)
    regrets = {
        # Cell by cell: the test examples of all cells do not fit beside their paths.
        name: np.stack(
            [measure(w, Examples(test.x, c)) for w, c in zip(weights, test.c, strict=True)]
        )
        for name, weights in found.items()
    }
    return Found(train, regrets, seconds)


def gap(costs: Float[Numbers, "b e"]) -> float:
    """The largest relative difference of a linear program's value to the shortest path's."""

    def value(c: Array) -> Array:
        balance, supply = jnp.asarray(ARCS.balance), jnp.asarray(ARCS.supply)
        return jnp.sum(c * solve(LinearProgram(c, A=balance, b=supply, lower=0.0)).value)

    exact = jnp.sum(costs * shortest(costs), axis=-1)
    return float(jnp.max(jnp.abs(jax.vmap(value)(jnp.asarray(costs)) - exact) / exact))


def run(settings: Settings, run: Run) -> Findings:
    """All cells, with one number of training examples or two."""
    sizes = [n for n in (settings.train, settings.larger) if n]
    learning = max(sizes)
    cells, examples = generate(settings, run.seed, learning + settings.test)
    test = examples.part(learning, learning + settings.test)
    found = [compare(settings, run, examples, test, n) for n in sizes]
    away = gap(test.c[:, 0, : settings.checks].reshape(-1, COUNT))
    return _findings(settings, cells, found, away)


def _findings(settings: Settings, cells, found: list[Found], away: float) -> Findings:
    figures = [
        Figure("linear program beside dynamic programme, largest difference of the value", away,
               "", "LinearProgram, InteriorPoint", 1e-6, "lower", "the goal, relative")
    ]  # fmt: skip
    rows = []
    for one in found:
        base = one.regrets[METHODS[0]]
        for k, (degree, noise) in enumerate(cells):
            row = [str(one.train), str(degree), f"{noise:g}"]
            for name in METHODS:
                values = one.regrets[name][k]
                row.append(paired(values, np.zeros_like(values), 0.0).text(100).lstrip("+"))
                if name != METHODS[0]:
                    figures.append(
                        Figure(f"regret, n = {one.train}, degree {degree}, noise {noise:g}",
                               100 * float(values.mean()), "%", name,
                               100 * float(base[k].mean()), "lower",
                               f"least squares, mean of {settings.seeds} seeds, same run")
                    )  # fmt: skip
            for name in METHODS[1:]:
                gaps: Difference = paired(one.regrets[name][k], base[k], 0.0)
                row.append(f"{gaps.text(100)}, {gaps.verdict()}")
            rows.append(row)
    header = ["n", "degree", "noise", *(f"{name}, %" for name in METHODS)]
    header += [f"{name} - least squares" for name in METHODS[1:]]
    clock = "; ".join(
        f"n = {one.train}: " + ", ".join(f"{name} {s:.1f} s" for name, s in one.seconds.items())
        for one in found
    )
    programs = len(cells) * settings.seeds * settings.batch
    text = f"""\
Normalised regret on {settings.test} test examples, the mean of {settings.seeds} seeds (each its own
B and examples) with the 95 % interval of Student's t; the differences are paired by seed. All
{len(cells)} cells and {settings.seeds} seeds learn at once: a step of the implicit loss solves and
differentiates {programs} quadratic programs of {COUNT} variables in one call.

{table(header, rows)}

- Time, all cells together, compilation apart (but that of least squares): {clock}.
- SPO+ makes {settings.spo_steps} steps, each of all examples; the implicit loss {settings.steps}
  of {settings.batch} examples, with gamma {settings.smoothing:g} of the mean cost.
- The linear program of a path has the value of the dynamic programme to {away:.1e}.
- The paper's claim: where the costs are linear in the features (degree 1) least squares is hard to
  beat; the further they are from it, the more it pays to learn for the decision.
"""
    return Findings(tuple(figures), text, {"regret": _plot(settings, cells, found)})


def _plot(settings: Settings, cells, found: list[Found]) -> Any:
    figure, axes = plots.axes(len(found) * len(settings.noises))
    panels = [(one, noise) for one in found for noise in settings.noises]
    for axis, (one, noise) in zip(axes, panels, strict=True):
        places = [k for k, cell in enumerate(cells) if cell[1] == noise]
        colours = (plots.SOFT, plots.SECOND, plots.OURS)
        for shift, (name, colour) in enumerate(zip(METHODS, colours, strict=True)):
            values = one.regrets[name][places]
            spread = [paired(v, 0 * v, 0.0) for v in values]
            ends = 100 * np.array([[v.mean - v.low, v.high - v.mean] for v in spread]).T
            axis.errorbar(
                np.arange(len(places)) + 0.12 * (shift - 1), 100 * values.mean(axis=1), ends,
                fmt="o-", color=colour, label=name, markersize=4, linewidth=1.2, capsize=2,
            )  # fmt: skip
        axis.set_xticks(range(len(places)), [str(cells[k][0]) for k in places])
        axis.set(title=f"n = {one.train}, noise {noise:g}", xlabel="degree")
        axis.set_ylabel("normalised regret, %")
    axes[0].legend(frameon=False, fontsize=8.5)
    return figure


EXPERIMENT = Experiment(
    name="decision",
    summary="A predictor learned through the decision (SPO+, implicit) against least squares.",
    dtype="float64",
    run=run,
    quick=Settings(),
    full=Settings(seeds=50, larger=1000, test=10_000, steps=200, spo_steps=1000),
)
