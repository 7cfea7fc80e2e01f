"""A regularisation weight for each feature, by the implicit gradient of the validation loss.

    inner   w(l) = argmin  cross-entropy(w; train) + sum_j exp(l_j) ||w_j||^2 / 2      (j: pixels)
    outer   minimise over l  cross-entropy(w(l); three quarters of validation)

The inner problem is a multinomial logistic regression on 8 x 8 digits, solved by `LBFGS`; the outer
one is left to Adam (optax), with d/dl from the implicit function theorem. All random splits are
lanes of one `vmap`. The baselines have one weight for all pixels, chosen on all validation examples
with the same number of inner solves: on a grid, and at random. Everything is judged on a
third part of each split. Bengio (2000), Pedregosa (2016).

With 64 weights to choose, validation examples are something that one overfits: Adam sees three
quarters of them, and the last quarter says where to stop. Two divisions of the data are reported:
few training and many validation examples, where weights are worth choosing, and thirds.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ..core.solution import RESULTS
from ..core.solve import solve
from ..smooth import LBFGS, Minimise
from . import plots
from .base import Experiment, Figure, Findings, Run
from .data import Examples, digits, splits
from .markdown import table
from .statistics import Difference, paired

CLASSES = 10
BIAS = 1e-4
"""The weight on the biases, the same for all methods: softmax does not see a shift of all ten."""


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment.

    Attributes:
        divisions: training and validation examples; the first is the main one.
        test: test examples.
        solves: inner solves a method and split.
        low, high: the range of the single weight, for grid and random search.
        start: the weight of every feature at Adam's start.
        tied: of Adam's solves, those before the features' weights part.
        learning_rate: Adam's, on the logarithms.
    """

    splits: int = 16
    divisions: tuple[tuple[int, int], ...] = ((100, 1098), (599, 599))
    test: int = 599
    solves: int = 40
    low: float = 1e-6
    high: float = 1.0
    start: float = 1e-3
    tied: int = 15
    learning_rate: float = 0.2


class Split(NamedTuple):
    """The three parts; the second in those that Adam sees and those that stop it."""

    train: Examples
    seen: Examples
    held: Examples
    test: Examples


Model = dict[str, Array]


def cross_entropy(model: Model, examples: Examples) -> Float[Array, ""]:
    logits = _logits(model, examples)
    own = jnp.take_along_axis(logits, examples.y[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - own)


def error(model: Model, examples: Examples) -> Float[Array, ""]:
    """The fraction of examples that are misclassified."""
    return jnp.mean(jnp.argmax(_logits(model, examples), axis=1) != examples.y)


def _logits(model: Model, examples: Examples) -> Float[Array, "m 10"]:
    return jnp.matmul(examples.x, model["matrix"], precision="highest") + model["bias"]


def penalised(model: Model, args: tuple[Float[Array, " n"], Examples]) -> Float[Array, ""]:
    """The inner objective; `args` are the log weights and the training examples."""
    log_weights, train = args
    squares = jnp.sum(model["matrix"] ** 2, axis=1)
    penalty = jnp.sum(jnp.exp(log_weights) * squares) + BIAS * jnp.sum(model["bias"] ** 2)
    return cross_entropy(model, train) + penalty / 2


def validate(log_weights: Float[Array, " n"], split: Split, guess: Model) -> tuple[Array, PyTree]:
    """The loss of the model that the weights lead to, on `split.seen`; all else is a record."""
    solution = solve(
        Minimise(penalised, (log_weights, split.train)), LBFGS(), guess, tolerance=1e-5
    )
    model = solution.value
    sizes = [len(part.y) for part in (split.seen, split.held)]
    losses = [cross_entropy(model, part) for part in (split.seen, split.held)]
    record = {
        "seen": losses[0],
        "held": losses[1],
        "validation": (sizes[0] * losses[0] + sizes[1] * losses[1]) / sum(sizes),
        "test": cross_entropy(model, split.test),
        "error": error(model, split.test),
        "steps": solution.stats.steps,
        "solved": solution.result == RESULTS.successful,
    }
    return losses[0], (model, record)


@jax.jit
@jax.vmap
def refit(
    log_weights: Float[Array, " n"], whole: Examples, test: Examples, guess: Model
) -> Float[Array, ""]:
    """Test error of the model trained on all examples but those of the test."""
    problem = Minimise(penalised, (log_weights, whole))
    return error(solve(problem, LBFGS(), guess, tolerance=1e-5).value, test)


class Outcome(NamedTuple):
    """One method on all splits: the solve that was chosen, and the way there.

    Attributes:
        test, error, validation: of the chosen solves, one a split.
        refit: test error after training on training and validation examples together.
        records: of all solves, axes (solves, splits).
        log_weights: the chosen ones.
        seconds: of all solves on all splits, compilation apart.
    """

    test: np.ndarray
    error: np.ndarray
    validation: np.ndarray
    refit: np.ndarray
    records: dict[str, np.ndarray]
    log_weights: np.ndarray
    seconds: float


METHODS = {
    "features": "implicit gradient, a weight a pixel",
    "single": "implicit gradient, one weight",
    "grid": "grid search, one weight",
    "random": "random search, one weight",
}


def choices(method: str, records: dict[str, np.ndarray]) -> np.ndarray:
    """By what one of a method's solves is chosen."""
    return records["held" if method == "features" else "validation"]


class Division:
    """All methods on one division of the data."""

    def __init__(self, settings: Settings, run: Run, parts: tuple[int, int]):
        held = parts[1] // 4
        sizes = (parts[0], parts[1] - held, held, settings.test)
        found = [
            jax.tree.map(jnp.asarray, x) for x in splits(run.seed, settings.splits, sizes, digits())
        ]
        self.settings, self.run, self.parts = settings, run, parts
        self.split = Split(*found)
        self.features = found[0].x.shape[-1]
        lanes = (settings.splits,)
        self.blank = {
            "matrix": jnp.zeros((*lanes, self.features, CLASSES)),
            "bias": jnp.zeros((*lanes, CLASSES)),
        }
        weights = jnp.zeros((*lanes, self.features))
        where = f"({parts[0]}/{parts[1]})"
        value = jax.vmap(validate)
        self.value = run.compile(f"solve {where}", value, weights, self.split, self.blank)
        gradient = jax.vmap(jax.value_and_grad(validate, has_aux=True))
        self.gradient = run.compile(f"gradient {where}", gradient, weights, self.split, self.blank)
        all_three = zip(*self.split[:3], strict=True)
        self.whole = Examples(*(jnp.concatenate(x, axis=1) for x in all_three))

    @property
    def overlap(self) -> float:
        """Test examples over those that a method learns from."""
        return self.settings.test / sum(self.parts)

    def outcome(self, method: str) -> Outcome:
        """Run one method of `METHODS`."""
        stage = f"{METHODS[method]} ({self.parts[0]}/{self.parts[1]})"
        settings = self.settings
        if method in ("features", "single"):
            logs = jnp.full((settings.splits, self.features), jnp.log(settings.start))
            start = (logs, self.adam.init(logs), self.blank)
            step = partial(self._descend, settings.solves if method == "single" else settings.tied)
        else:
            start, step = self.blank, partial(self._search, method)
        _, records, seconds = self.run.loop(stage, start, step, settings.solves)
        best = choices(method, records).argmin(axis=0)
        lanes = np.arange(settings.splits)
        chosen = {name: rows[best, lanes] for name, rows in records.items()}
        wide = jnp.asarray(chosen["log_weights"])
        again = refit(wide, self.whole, self.split.test, self.blank)
        return Outcome(
            chosen["test"],
            chosen["error"],
            chosen["validation"],
            np.asarray(again),
            records,
            np.asarray(wide),
            seconds,
        )

    @property
    def adam(self) -> optax.GradientTransformation:
        return optax.adam(self.settings.learning_rate)

    def _descend(self, tied: int, i: int, state: Any) -> tuple[Any, dict[str, Array]]:
        """One step of Adam: in the first `tied` ones all features have the same weight."""
        logs, moments, models = state
        (_, (models, record)), slopes = self.gradient(logs, self.split, models)
        # The derivative of a lane that was not solved is NaN: it makes no step.
        slopes = jnp.where(jnp.isfinite(slopes), slopes, 0.0)
        if i < tied:
            slopes = jnp.broadcast_to(jnp.sum(slopes, axis=1, keepdims=True), slopes.shape)
        if i == tied:
            moments = self.adam.init(logs)
        change, moments = self.adam.update(slopes, moments)
        return (logs + change, moments, models), record | {"log_weights": logs}

    def _search(self, method: str, i: int, models: Any) -> tuple[Any, dict[str, Array]]:
        """The i-th weight of the grid, from the largest on, or one drawn for each split."""
        settings = self.settings
        low, high = np.log(settings.low), np.log(settings.high)
        if method == "grid":
            fractions = np.full(settings.splits, 1 - i / max(settings.solves - 1, 1))
        else:
            fractions = np.random.default_rng((self.run.seed, 1, i)).uniform(size=settings.splits)
        logs = jnp.asarray(low + (high - low) * fractions[:, None], jnp.float32)
        logs = jnp.broadcast_to(logs, (len(logs), self.features))
        _, (models, record) = self.value(logs, self.split, models)
        return models, record | {"log_weights": logs}


def run(settings: Settings, run: Run) -> Findings:
    """All methods on all divisions."""
    found, overlaps = {}, {}
    for parts in settings.divisions:
        division = Division(settings, run, parts)
        found[parts] = {method: division.outcome(method) for method in METHODS}
        overlaps[parts] = division.overlap
    figures = [f for parts, outcomes in found.items() for f in _figures(settings, parts, outcomes)]
    text = [_INTRODUCTION.format(**vars(settings))]
    text += [_text(parts, outcomes, overlaps[parts]) for parts, outcomes in found.items()]
    drawn = {}
    for place, (parts, outcomes) in enumerate(found.items(), start=1):
        drawn[f"{place}-losses-{parts[0]}-training-{parts[1]}-validation-examples"] = _plot(
            outcomes, overlaps[parts]
        )
    first = next(iter(found.values()))
    drawn["9-weights-found-for-the-main-division"] = _maps(first["features"])
    return Findings(tuple(figures), "\n\n".join(text) + "\n", drawn)


_INTRODUCTION = """\
Handwritten digits (1797 of 8 x 8 pixels), {splits} random splits at once. Each method has {solves}
inner solves a split and takes the one with the least validation loss; the {test} test examples of a
split choose nothing. Searches over one weight range from {low:g} to {high:g}. Adam starts from
{start:g} with one weight; with a weight a pixel they part after {tied} solves, and a quarter of the
validation examples, which Adam does not see, chooses. Differences are to grid search, paired by
split, with a 95 % interval that is corrected for the overlap of random splits (Nadeau and Bengio,
2003: about three times as wide as the plain one)."""


def _figures(settings: Settings, parts: tuple[int, int], outcomes: dict[str, Outcome]):
    where = f"{parts[0]} training, {parts[1]} validation"
    ours = outcomes["features"]
    for name in ("grid", "random"):
        other = outcomes[name]
        source = f"{METHODS[name]}, {settings.solves} solves, same run"
        for title, unit, factor, field in (
            ("test error", "%", 100.0, "error"),
            ("test loss", "", 1.0, "test"),
        ):
            values = [factor * float(getattr(x, field).mean()) for x in (ours, other)]
            label = f"{title}, {where}"
            yield Figure(label, values[0], unit, METHODS["features"], values[1], "lower", source)
        if name == "grid":
            label = f"time of all solves, {where}"
            yield Figure(
                label, ours.seconds, "s", METHODS["features"], other.seconds, "lower", source
            )


def _text(parts: tuple[int, int], outcomes: dict[str, Outcome], overlap: float) -> str:
    grid, ours = outcomes["grid"], outcomes["features"]
    rows = []
    for method, title in METHODS.items():
        out = outcomes[method]
        same = method == "grid"
        rows.append([
            title,
            f"{100 * out.error.mean():.2f}",
            "-" if same else paired(out.error, grid.error, overlap).text(100),
            f"{out.test.mean():.4f}",
            "-" if same else paired(out.test, grid.test, overlap).text(digits=4),
            f"{out.validation.mean():.4f}",
            f"{100 * out.refit.mean():.2f}",
            f"{out.seconds:.1f}",
            f"{out.records['steps'].mean():.0f}",
        ])  # fmt: skip
    header = ("method", "test error, %", "difference", "test loss", "difference",
              "validation loss", "error after refit, %", "seconds", "steps")  # fmt: skip
    solved = np.concatenate([o.records["solved"].ravel() for o in outcomes.values()])
    errors, losses, again = (
        paired(getattr(ours, field), getattr(grid, field), overlap)
        for field in ("error", "test", "refit")
    )
    lanes = np.arange(len(ours.test))
    late = ours.records["seen"].argmin(axis=0)
    unstopped = {name: rows[late, lanes].mean() for name, rows in ours.records.items()}
    return f"""\
# {parts[0]} training and {parts[1]} validation examples

{table(header, rows)}

- Against grid search, a weight a pixel is **{errors.verdict()}** in test error and
  **{losses.verdict()}** in test loss, as far as the intervals say. Its test loss is lower in
  {np.sum(ours.test < grid.test)} of {len(lanes)} splits, its test error in
  {np.sum(ours.error < grid.error)} (equal in {np.sum(ours.error == grid.error)}).
- Why it has to be stopped: where the loss that Adam descends was least, it was
  {unstopped["seen"]:.4f} on the examples that Adam saw, {unstopped["held"]:.4f} on the held ones,
  {unstopped["test"]:.4f} on the test ones (error {100 * unstopped["error"]:.2f} %). So far do
  {ours.log_weights.shape[1]} weights overfit {parts[1]} examples; one weight does not.
- Refit: trained once more, with the weights found, on training and validation examples together;
  the difference to grid search in test error is then {again.text(100)} points.
- {solved.sum()} of {solved.size} inner solves met the tolerance. A solve with a gradient costs more
  than one without, and the smaller the weights, the more L-BFGS steps and conjugate gradients."""


def _plot(outcomes: dict[str, Outcome], overlap: float) -> Any:
    figure, (path, pairs) = plots.axes(2, width=5.0)
    colours = dict(zip(METHODS, (plots.OURS, plots.SECOND, plots.FIRST, plots.THIRD), strict=True))
    for method, out in outcomes.items():
        # The loss of what would be chosen after so many solves.
        judged = choices(method, out.records)
        lanes = np.arange(judged.shape[1])
        best = [judged[: i + 1].argmin(axis=0) for i in range(len(judged))]
        count = np.arange(1, len(best) + 1)
        means = [out.records["test"][k, lanes].mean() for k in best]
        path.plot(count, means, color=colours[method], label=METHODS[method], linewidth=1.7)
    for field, style in (("test", "--"), ("seen", ":")):
        means = outcomes["features"].records[field].mean(axis=1)
        label = {"test": "... without stopping", "seen": "... on the examples Adam sees"}[field]
        path.plot(count, means, style, color=plots.OURS, label=label, linewidth=1.3)
    heights = [o.test.mean() for o in outcomes.values()]
    path.set_ylim(0.85 * outcomes["features"].records["seen"].mean(axis=1).min(), 2 * max(heights))
    path.set(
        title="test loss of the choice so far, mean of the splits", xlabel="inner solves a split"
    )
    path.legend(frameon=False, fontsize=8.5)
    names = [name for name in METHODS if name != "grid"]
    for place, name in enumerate(names):
        gaps = 100 * (outcomes[name].error - outcomes["grid"].error)
        shift = np.linspace(-0.16, 0.16, len(gaps))
        pairs.scatter(
            place + shift, np.sort(gaps), s=14, color=colours[name], alpha=0.55, linewidths=0
        )
        mean, low, high = (100 * x for x in _bounds(outcomes, name, overlap))
        bars = np.array([[mean - low], [high - mean]])
        pairs.errorbar(
            [place + 0.27], [mean], yerr=bars, fmt="o", color=colours[name], capsize=4, markersize=5
        )
    pairs.axhline(0, color=plots.SOFT, linewidth=1)
    pairs.set_xticks(range(len(names)), [METHODS[n].replace(", ", ",\n") for n in names])
    pairs.set(title="test error minus grid search's, a dot a split", ylabel="points")
    return figure


def _bounds(outcomes: dict[str, Outcome], name: str, overlap: float) -> Difference:
    return paired(outcomes[name].error, outcomes["grid"].error, overlap)


def _maps(ours: Outcome) -> Any:
    figure, (weights, ink) = plots.axes(2, width=3.6, height=3.2)
    shades = weights.imshow(
        ours.log_weights.mean(axis=0).reshape(8, 8) / np.log(10), cmap="cividis"
    )
    figure.colorbar(shades, ax=weights, shrink=0.8)
    weights.set_title("log10 of the weight, mean")
    shades = ink.imshow(digits().x.std(axis=0).reshape(8, 8), cmap="cividis")
    figure.colorbar(shades, ax=ink, shrink=0.8)
    ink.set_title("standard deviation")
    for one in (weights, ink):
        one.grid(False)
        one.set_xticks([])
        one.set_yticks([])
    return figure


EXPERIMENT = Experiment(
    name="hyperparameters",
    summary="A regularisation weight for each pixel by implicit gradients, against grid search.",
    dtype="float32",
    run=run,
    quick=Settings(),
    full=Settings(
        splits=32, divisions=((100, 1098), (599, 599), (200, 998), (400, 798)), solves=100
    ),
)
