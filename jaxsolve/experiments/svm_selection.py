"""A weight for each training example of a support vector machine, chosen on validation examples.

    lower   w, b, s = argmin |w|^2 / 2 + sum_i exp(C_i) s_i^2 / 2
                      subject to  1 - s_i - y_i (w'a_i + b) <= 0           (training examples i)
    upper   minimise over C  mean over validation of phi(y_j (w'a_j + b) / |w|),
            phi(m) = leaky_relu_0.01(2 sigmoid(-5 m) - 1)

as Yao, Yu, Zeng, Zhang (2024) state it. LV-HBA takes it as it is. The implicit gradient solves the
lower level, a `QuadraticProgram`, by `InteriorPoint` at every step. The penalty puts rho / 2 of the
squared constraints into the objective, which is left to `MEHA`. The grid has one C for all.

The projection of LV-HBA only clips C. Else it is s_i = max(s_i, 1 - y_i (w'a_i + b)) at the (w, b)
of least |(w, b) - (w0, b0)|^2 + sum_i max(0, 1 - s_i - y_i (w'a_i + b))^2: Newton's method on
d + 1 unknowns, finite (Mangasarian, 2002), O(n d^2) an iteration.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ..bilevel.bilevel import Bilevel
from ..bilevel.lvhba import LVHBA
from ..bilevel.meha import MEHA
from ..convex import InteriorPoint, QuadraticProgram
from ..convex.sets import Box
from ..core.solve import solve
from ..core.vectors import matmul
from . import plots
from .base import Experiment, Figure, Findings, Run
from .data import Examples, splits
from .markdown import table
from .statistics import paired

_NEWTON_STEPS = 4

Machine = dict[str, Array]

BOUNDS = (-10.0, 1.0)
"""Of C, for all methods."""


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment.

    Attributes:
        train, validation: examples of each data set; the rest is for the test.
        doublings, steps: of LV-HBA and the penalty: `steps`, twice as many, and so on.
        solves: of the implicit gradient, and of the grid.
        start: C at the start of all but the grid, which covers its bounds.
        penalty: of LV-HBA and MEHA.
        learning_rate: Adam's, for the implicit gradient.
        rho: of the penalty.
    """

    splits: int = 2
    train: int = 150
    validation: int = 120
    doublings: int = 4
    steps: int = 500
    solves: int = 20
    start: float = 0.0
    penalty: float = 50.0
    learning_rate: float = 0.2
    rho: float = 10.0


class Split(NamedTuple):
    """The three parts of one division; labels are -1 and 1."""

    train: Examples
    validation: Examples
    test: Examples


class Data(NamedTuple):
    """A split, the unit of w and b, and the weight of a penalty."""

    split: Split
    unit: Float[Array, ""]
    rho: Float[Array, ""]


def data(split: Split, rho: float) -> Data:
    """With the fourth root of the norm of the training examples as unit: between variables that
    the constraints hold alike, and those that f does."""
    unit = jnp.linalg.norm(_rows(split.train), 2) ** 0.25
    return Data(split, unit, jnp.asarray(rho, unit.dtype))


def datasets() -> dict[str, Examples]:
    """Breast cancer, and diabetes with the progression split at its median; standardised."""
    from sklearn.datasets import load_breast_cancer, load_diabetes

    found = {}
    for name, load in (("breast cancer", load_breast_cancer), ("diabetes", load_diabetes)):
        bunch: Any = load()
        x, y = bunch["data"], bunch["target"]
        sign = np.where(y > (0.5 if name == "breast cancer" else np.median(y)), 1, -1)
        scaled: Any = (x - x.mean(axis=0)) / x.std(axis=0)
        found[name] = Examples(scaled, sign.astype(np.int32))  # pyright: ignore[reportArgumentType]
    return found


def margins(machine: Machine, examples: Examples) -> Float[Array, " m"]:
    """y_i (w'a_i + b)."""
    scores = matmul(examples.x, machine["w"]) + machine["b"]
    return scores * examples.y.astype(scores.dtype)


def loss(machine: Machine, examples: Examples) -> Float[Array, ""]:
    """The mean of phi."""
    scaled = margins(machine, examples) / jnp.sqrt(jnp.sum(machine["w"] ** 2) + 1e-12)
    return jnp.mean(jax.nn.leaky_relu(2 * jax.nn.sigmoid(-5 * scaled) - 1, 0.01))


def accuracy(machine: Machine, examples: Examples) -> Float[Array, ""]:
    return jnp.mean(margins(machine, examples) > 0)


def in_units(y: Machine, unit: Array) -> Machine:
    """w and b of variables that are `unit` times as large."""
    return {"w": y["w"] / unit, "b": y["b"] / unit, "s": y["s"]}


def upper(x: Array, y: Machine, args: Data) -> Float[Array, ""]:
    """F."""
    return loss(in_units(y, args.unit), args.split.validation)


def lower(x: Array, y: Machine, args: Data) -> Float[Array, ""]:
    """f."""
    w = in_units(y, args.unit)["w"]
    return 0.5 * jnp.sum(w**2) + 0.5 * jnp.sum(jnp.exp(x) * y["s"] ** 2)


def coupling(x: Array, y: Machine, args: Data) -> Float[Array, " n"]:
    """g."""
    return 1 - y["s"] - margins(in_units(y, args.unit), args.split.train)


def penalised(x: Array, y: Machine, args: Data) -> Float[Array, ""]:
    """f with the constraints as a penalty."""
    excess = jnp.maximum(coupling(x, y, args), 0)
    return lower(x, y, args) + 0.5 * args.rho * jnp.sum(excess**2)


class Projection(eqx.Module):
    """P_C; `rows` are y_i (a_i, 1) in the units of (w, b)."""

    rows: Float[Array, "n d+1"]

    def __call__(self, x: Array, y: Machine) -> tuple[Array, Machine]:
        first = jnp.append(y["w"], y["b"])
        short = 1 - y["s"]

        def newton(_: Array, v: Array) -> Array:
            active = short - matmul(self.rows, v) > 0
            own = jnp.where(active[:, None], self.rows, 0)
            side = first + matmul(short, own)
            return jnp.linalg.solve(jnp.eye(v.size, dtype=v.dtype) + matmul(own.T, own), side)

        v = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, first)
        slack = jnp.maximum(y["s"], 1 - matmul(self.rows, v))
        return jnp.clip(x, *BOUNDS), {"w": v[:-1], "b": v[-1], "s": slack}


def projection(args: Data) -> Projection:
    """That of a problem."""
    return Projection(_rows(args.split.train) / args.unit)


def _rows(examples: Examples) -> Float[Array, "n d+1"]:
    """y_i (a_i, 1)."""
    ones = jnp.ones_like(examples.x[:, :1])
    rows = jnp.concatenate([examples.x, ones], axis=1)
    return rows * examples.y[:, None].astype(rows.dtype)


def trained(x: Float[Array, " n"], split: Split, tolerance: float = 1e-8) -> Machine:
    """The lower level's solution, differentiable in C."""
    examples = split.train
    count, size = examples.x.shape
    signs = examples.y.astype(x.dtype)
    weights = jnp.concatenate([jnp.ones(size, x.dtype), jnp.zeros(1, x.dtype), jnp.exp(x)])
    rows = jnp.concatenate([examples.x, jnp.ones((count, 1), x.dtype)], axis=1)
    rows = jnp.concatenate([-signs[:, None] * rows, -jnp.eye(count, dtype=x.dtype)], axis=1)
    program = QuadraticProgram(
        jnp.diag(weights), jnp.zeros_like(weights), G=rows, h=-jnp.ones_like(x)
    )
    found = solve(program, InteriorPoint(), tolerance=tolerance, max_steps=100, throw=False).value
    return {"w": found[:size], "b": found[size], "s": found[size + 1 :]}


METHODS = {
    "lvhba": "LV-HBA",
    "implicit": "implicit gradient, Adam",
    "penalty": "penalty, MEHA",
    "grid": "grid search, one C",
}


class Outcome(NamedTuple):
    """What a method leaves, a row each of its records and a column a split.

    Attributes:
        value: F(x, y(x)), the lower level solved to 1e-8.
        accuracy: on the test examples.
        gap: f - v, of the methods that have one.
        seconds: of the method's own steps; solving the lower level to judge it is apart.
    """

    value: Float[np.ndarray, "r k"]
    accuracy: Float[np.ndarray, "r k"]
    gap: Float[np.ndarray, "r k"] | None
    seconds: float

    def chosen(self, field: str) -> Float[np.ndarray, " k"]:
        """At the record with the least F, split by split."""
        return getattr(self, field)[self.value.argmin(axis=0), np.arange(self.value.shape[1])]


class Selection:
    """All methods on one data set."""

    def __init__(self, settings: Settings, run: Run, name: str, examples: Examples):
        rest = len(examples.y) - settings.train - settings.validation
        sizes = (settings.train, settings.validation, rest)
        found = splits(run.seed, settings.splits, sizes, examples)
        self.split = Split(*(jax.tree.map(jnp.asarray, part) for part in found))
        self.settings, self.run, self.name = settings, run, name
        self.overlap = rest / (settings.train + settings.validation)
        self.logs = jnp.full((settings.splits, settings.train), settings.start)

        def judge(logs: Array, split: Split) -> tuple[Array, Array]:
            machine = trained(logs, split)
            return loss(machine, split.validation), accuracy(machine, split.test)

        def slope(logs: Array, split: Split) -> Array:
            return jax.grad(lambda x: judge(x, split)[0])(logs)

        self.judge = run.compile(f"judge ({name})", jax.vmap(judge), self.logs, self.split)
        self.slope = run.compile(f"gradient ({name})", jax.vmap(slope), self.logs, self.split)

    def outcome(self, method: str) -> Outcome:
        """Run one method of `METHODS`."""
        stage = f"{METHODS[method]} ({self.name})"
        if method in ("lvhba", "penalty"):
            found = self._single_loop(method, stage)
        else:
            optimiser = optax.adam(self.settings.learning_rate)
            start = (self.logs, optimiser.init(self.logs))
            step = self._adam(optimiser) if method == "implicit" else self._grid
            found = self.run.loop(stage, start, step, self.settings.solves)
        _, records, seconds = found
        judged = [jax.device_get(self.judge(logs, self.split)) for logs in records["logs"]]
        value, right = (np.stack(part) for part in zip(*judged, strict=True))
        return Outcome(value, right, records.get("gap"), seconds)

    def _single_loop(self, method: str, stage: str) -> Any:
        """The single-loop methods, anew with twice the steps each time."""
        settings = self.settings

        def find(logs: Array, machine: Machine, split: Split, steps: Array) -> tuple[Array, Array]:
            args = data(split, settings.rho)
            common = {"step_size": 0.2, "penalty": settings.penalty, "steps": steps}
            if method == "lvhba":
                problem = Bilevel(upper, lower, args, coupling=coupling)
                solver = LVHBA(projection=projection(args), **common)
            else:
                problem = Bilevel(upper, penalised, args, upper_set=Box(*BOUNDS))
                solver = MEHA(unit=settings.rho, **common)
            solution = solve(problem, solver, (logs, machine), throw=False)
            return solution.value[0], solution.state.gap

        shape = self.logs.shape
        machine = {
            "w": jnp.zeros((shape[0], self.split.train.x.shape[-1])),
            "b": jnp.zeros(shape[0]),
            "s": jnp.ones(shape),
        }
        start = (self.logs, machine, self.split)
        run = jax.vmap(find, in_axes=(0, 0, 0, None))
        compiled = self.run.compile(stage, run, *start, jnp.asarray(0, jnp.int32))

        def step(i: int, state: Array) -> tuple[Array, dict[str, Array]]:
            steps = jnp.asarray(settings.steps * 2**i, jnp.int32)
            logs, gap = compiled(*start, steps)
            return logs, {"logs": logs, "gap": gap}

        return self.run.loop(stage, self.logs, step, settings.doublings)

    def _adam(self, optimiser: optax.GradientTransformation) -> Any:
        def step(i: int, state: Any) -> tuple[Any, dict[str, Array]]:
            logs, moments = state
            slope = self.slope(logs, self.split)
            # The derivative of a lane that was not solved is NaN: it makes no step.
            change, moments = optimiser.update(jnp.where(jnp.isfinite(slope), slope, 0), moments)
            new = jnp.clip(logs + change, *BOUNDS)  # pyright: ignore[reportOperatorIssue]
            return (new, moments), {"logs": new}

        return step

    def _grid(self, i: int, state: Any) -> tuple[Any, dict[str, Array]]:
        ends = np.linspace(*BOUNDS, self.settings.solves)
        logs = jnp.full_like(self.logs, ends[i])
        self.judge(logs, self.split)
        return state, {"logs": logs}


def run(settings: Settings, run: Run) -> Findings:
    """All methods on both data sets."""
    figures, text, drawn = [], [_INTRODUCTION.format(**vars(settings), bounds=BOUNDS)], {}
    for place, (name, examples) in enumerate(datasets().items(), start=1):
        selection = Selection(settings, run, name, examples)
        outcomes = {method: selection.outcome(method) for method in METHODS}
        figures += _figures(name, outcomes)
        text.append(_text(name, outcomes, selection.overlap))
        drawn[f"{place}-{name.replace(' ', '-')}"] = _plot(outcomes)
    return Findings(tuple(figures), "\n\n".join(text) + "\n", drawn)


_INTRODUCTION = """\
A support vector machine with a weight exp(C_i) for each of {train} training examples, C between
{bounds[0]:g} and {bounds[1]:g}; {validation} validation examples choose C, all others are the test.
{splits} random splits. Diabetes is progression above or below its median. LV-HBA and the penalty
make {steps} steps, twice as many, and so on, {doublings} times; the implicit gradient and the grid
solve the lower level {solves} times. Of its records each method takes the C with the least
hyper-objective, F with the lower level solved to 1e-8. Differences are to the grid, paired by
split, with an interval corrected for their overlap (Nadeau and Bengio, 2003)."""


def _figures(name: str, outcomes: dict[str, Outcome]) -> list[Figure]:
    figures, grid, source = [], outcomes["grid"], "grid search, same run"
    for method in ("lvhba", "implicit", "penalty"):
        ours, title = outcomes[method], METHODS[method]
        values = [float(x.chosen("value").mean()) for x in (ours, grid)]
        rights = [100 * float(x.chosen("accuracy").mean()) for x in (ours, grid)]
        times = [x.seconds for x in (ours, grid)]
        figures += [
            Figure(f"hyper-objective, {name}", values[0], "", title, values[1], "lower", source),
            Figure(f"test accuracy, {name}", rights[0], "%", title, rights[1], "higher", source),
            Figure(f"time, {name}", times[0], "s", title, times[1], "lower", source),
        ]
    return figures


def _text(name: str, outcomes: dict[str, Outcome], overlap: float) -> str:
    rows, grid = [], outcomes["grid"]
    for method, out in outcomes.items():
        same = method == "grid"
        pair = (out.chosen("accuracy"), grid.chosen("accuracy"))
        rows.append([
            METHODS[method],
            f"{out.chosen('value').mean():.4f}",
            f"{out.value[-1].mean():.4f}",
            f"{100 * pair[0].mean():.2f}",
            "-" if same else paired(*pair, overlap).text(100),
            "-" if out.gap is None else f"{out.gap[-1].mean():.2e}",
            f"{out.seconds:.1f}",
        ])  # fmt: skip
    header = ("method", "hyper-objective", "the last one's", "test accuracy, %", "difference",
              "gap f - v at the end", "seconds")  # fmt: skip
    return f"# {name.capitalize()}\n\n{table(header, rows)}"


def _plot(outcomes: dict[str, Outcome]) -> Any:
    figure, (left, right) = plots.axes(2)
    colours = dict(zip(METHODS, (plots.OURS, plots.FIRST, plots.SECOND, plots.SOFT), strict=True))
    for method, out in outcomes.items():
        if method == "grid":
            least = out.value.min(axis=0).mean()
            left.axhline(least, color=colours[method], ls=":", label="grid search, best")
            continue
        share = np.arange(1, len(out.value) + 1) / len(out.value)
        left.plot(share, out.value.mean(axis=1), color=colours[method], label=METHODS[method])
        if out.gap is not None:
            right.plot(share, np.abs(out.gap).mean(axis=1), color=colours[method])
    left.set(xlabel="share of the records", title="hyper-objective, mean over splits")
    left.legend(frameon=False, fontsize=8)
    right.set(xlabel="share of the records", title="|f - v|, mean over splits", yscale="log")
    return figure


EXPERIMENT = Experiment(
    name="svm-selection",
    summary="A weight for each example of a support vector machine: LV-HBA against three others.",
    dtype="float64",
    run=run,
    quick=Settings(),
    full=Settings(splits=10, doublings=6, steps=1_000, solves=100),
)
