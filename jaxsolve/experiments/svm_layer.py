"""Ten kernel machines as a layer of quadratic programs; kernel width and C learned through them.

For each class c against the rest, with signs s_i and K_ij = exp(-gamma |x_i - x_j|^2), the dual of
the support vector machine is, in units of C (t = alpha / C),

    minimise  C t'(ss' * K)t / 2 - 1't   subject to  s't = 0,  0 <= t <= 1.

Its multiplier of s't = 0 is the bias b, and f_c(x) = sum_i C t_i s_i K(x_i, x) + b. The ten
programs are a batch for `InteriorPoint`. The validation loss is the cross-entropy of
softmax(slope f(x)); Adam follows its gradient in log gamma, log C and log slope, through t and b.
The baselines are scikit-learn's `SVC` (one against one, its own way) and the same machines as here
(one against the rest), each with a grid search over gamma and C on the same validation examples.
"""

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ..convex import InteriorPoint, QuadraticProgram
from ..core.solution import RESULTS, Solution
from ..core.solve import solve
from . import plots
from .base import Experiment, Figure, Findings, Run
from .data import Examples, digits, splits
from .markdown import table

CLASSES = 10
JITTER = 1e-8
"""Added to the kernel's diagonal: equal images would make it singular."""


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment.

    Attributes:
        seeds: random splits, one after the other.
        steps: of Adam; each solves ten programs.
        learning_rate: Adam's, on the logarithms.
        gammas, costs: how many of each a grid search tries.
    """

    seeds: int = 3
    train: int = 150
    validation: int = 500
    test: int = 1000
    steps: int = 12
    learning_rate: float = 0.2
    gammas: int = 9
    costs: int = 6


class Split(NamedTuple):
    """The three parts."""

    train: Examples
    validation: Examples
    test: Examples


Logs = dict[str, Float[Array, ""]]


def kernel(
    left: Float[Array, "m n"], right: Float[Array, "k n"], gamma: Float[Array, ""]
) -> Float[Array, "m k"]:
    """exp(-gamma |x - z|^2) for all pairs of rows."""
    squares = jnp.sum(left**2, axis=1)[:, None] + jnp.sum(right**2, axis=1)
    products = jnp.matmul(left, right.T, precision="highest")
    return jnp.exp(-gamma * jnp.maximum(squares - 2 * products, 0.0))


def dual(
    gram: Float[Array, "m m"], signs: Float[Array, " m"], cost: Float[Array, ""]
) -> QuadraticProgram:
    """The dual of one machine, in units of C."""
    return QuadraticProgram(
        cost * signs[:, None] * gram * signs,
        -jnp.ones_like(signs),
        A=signs[None],
        b=jnp.zeros_like(signs[:1]),
        lower=0.0,
        upper=1.0,
    )


def scores(
    logs: Logs, train: Examples, *queries: Float[Array, "k n"]
) -> tuple[list[Float[Array, "k 10"]], Solution]:
    """f_c(x) of all queries for all classes, and how the ten programs went."""
    gamma, cost = jnp.exp(logs["gamma"]), jnp.exp(logs["C"])
    gram = kernel(train.x, train.x, gamma)
    gram = gram + JITTER * jnp.eye(len(gram), dtype=gram.dtype)
    one = jnp.ones_like(gram[0])
    signs = jnp.where(train.y == jnp.arange(CLASSES)[:, None], one, -one)
    found = jax.vmap(lambda s: solve(dual(gram, s, cost), InteriorPoint()))(signs)
    weights, bias = cost * found.value * signs, found.dual.equality[:, 0]
    values = [
        jnp.matmul(kernel(x, train.x, gamma), weights.T, precision="highest") + bias
        for x in queries
    ]
    return values, found


def validate(logs: Logs, split: Split) -> tuple[Array, PyTree]:
    """The validation loss; all else is for the record."""
    (ours, test), found = scores(logs, split.train, split.validation.x, split.test.x)
    loss = _cross_entropy(jnp.exp(logs["slope"]) * ours, split.validation.y)
    record = {
        "validation": loss,
        "validation_error": jnp.mean(jnp.argmax(ours, axis=1) != split.validation.y),
        "error": jnp.mean(jnp.argmax(test, axis=1) != split.test.y),
        "steps": found.stats.steps,
        "solved": found.result == RESULTS.successful,
    }
    return loss, record


def _cross_entropy(logits: Float[Array, "m 10"], labels: Array) -> Float[Array, ""]:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def starting(split: Split) -> Logs:
    """scikit-learn's defaults: C = 1, gamma = 1 / (features x variance)."""
    x = np.asarray(split.train.x)
    gamma = -np.log(x.shape[1] * x.var())
    return {"gamma": jnp.asarray(gamma), "C": jnp.asarray(0.0), "slope": jnp.asarray(1.0)}


class Search(NamedTuple):
    """The outcome of scikit-learn's side on one split."""

    error: float
    gamma: float
    cost: float
    seconds: float


def grid_search(settings: Settings, split: Split, rest: bool) -> Search:
    """SVC with a grid search on the validation part; `rest`: one against the rest."""
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.svm import SVC

    begun = time.perf_counter()
    gammas, costs = np.logspace(-3, 1, settings.gammas), np.logspace(-2, 3, settings.costs)
    prefix = "estimator__" if rest else ""
    parts = [split.train, split.validation]
    x, y = (np.concatenate([np.asarray(getattr(part, field)) for part in parts]) for field in "xy")
    fold = np.repeat([-1, 0], [len(part.y) for part in parts])
    search = GridSearchCV(
        OneVsRestClassifier(SVC()) if rest else SVC(),
        {f"{prefix}gamma": gammas, f"{prefix}C": costs},
        cv=PredefinedSplit(fold),
        refit=False,
    ).fit(x, y)
    best: dict[str, Any] = {
        k.removeprefix("estimator__"): float(v) for k, v in search.best_params_.items()
    }
    # As ours: the machine that was chosen has seen the training part alone.
    machine = SVC(**best)
    machine = OneVsRestClassifier(machine) if rest else machine
    machine.fit(np.asarray(split.train.x), np.asarray(split.train.y))
    found: Any = machine.predict(np.asarray(split.test.x))
    wrong: np.ndarray = found != np.asarray(split.test.y)
    return Search(float(wrong.mean()), best["gamma"], best["C"], time.perf_counter() - begun)


def run(settings: Settings, run: Run) -> Findings:
    """All seeds, both baselines, and the derivative beside finite differences."""
    sizes = (settings.train, settings.validation, settings.test)
    parts = splits(run.seed, settings.seeds, sizes, digits())
    everything = [
        Split(*(Examples(jnp.asarray(p.x[k], float), jnp.asarray(p.y[k])) for p in parts))
        for k in range(settings.seeds)
    ]
    adam = optax.adam(settings.learning_rate)
    gradient = jax.value_and_grad(validate, has_aux=True)
    gradient = run.compile("gradient", gradient, starting(everything[0]), everything[0])
    learned, searches = [], []
    for k, split in enumerate(everything):

        def step(i: int, state: Any, split: Split = split) -> tuple[Any, dict[str, Array]]:
            logs, moments = state
            (_, record), slopes = gradient(logs, split)
            # A derivative is NaN where a program was not solved: that step is not made.
            slopes = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0.0), slopes)
            change, moments = adam.update(slopes, moments)
            moved = jax.tree.map(jnp.add, logs, change)
            return (moved, moments), record | {f"log_{n}": x for n, x in logs.items()}

        logs = starting(split)
        start = (logs, adam.init(logs))
        _, records, seconds = run.loop(f"split {k + 1}: Adam", start, step, settings.steps)
        learned.append((records, seconds))
        searches.append([grid_search(settings, split, rest) for rest in (False, True)])
    mismatch = _mismatch(gradient, everything[0])
    return _findings(settings, learned, searches, mismatch)


def _mismatch(gradient: Any, split: Split) -> float:
    """The derivative in log gamma and log C at the start against central differences: the largest
    relative difference."""
    logs, worst = starting(split), 0.0
    _, slopes = gradient(logs, split)
    for name in ("gamma", "C"):
        ends = [gradient(logs | {name: logs[name] + h}, split)[0][0] for h in (1e-4, -1e-4)]
        measured = float(ends[0] - ends[1]) / 2e-4
        worst = max(worst, abs(float(slopes[name]) - measured) / abs(measured))
    return worst


def _findings(settings: Settings, learned: Any, searches: Any, mismatch: float) -> Findings:
    best = [int(records["validation"].argmin()) for records, _ in learned]
    ours = np.array([r["error"][k] for (r, _), k in zip(learned, best, strict=True)])
    default = np.array([r["error"][0] for r, _ in learned])
    seconds = float(np.mean([s for _, s in learned]))
    theirs = np.array([[s.error for s in pair] for pair in searches])
    times = np.mean([[s.seconds for s in pair] for pair in searches], axis=0)
    tried = settings.gammas * settings.costs
    method = "ten duals as QPs, gamma and C by gradient"
    names = ("SVC (one against one), grid search", "SVC one against the rest, grid search")
    figures = []
    for k, name in enumerate(names):
        source = f"scikit-learn {name}, {tried} settings, same run, mean of {len(ours)} splits"
        figures.append(
            Figure("test accuracy", 100 * float(1 - ours.mean()), "%", method,
                   100 * float(1 - theirs[:, k].mean()), "higher", source)
        )  # fmt: skip
        figures.append(
            Figure("time a split", seconds, "s", method, float(times[k]), "lower", source)
        )
    figures.append(
        Figure("gradient's relative difference to central differences", mismatch, "", method,
               None, "lower", "central differences of step 1e-4, first split")
    )  # fmt: skip
    rows = []
    for k, ((records, spent), pair) in enumerate(zip(learned, searches, strict=True)):
        at = best[k]
        rows.append([
            f"split {k + 1}",
            f"{100 * (1 - ours[k]):.1f}",
            *(f"{100 * (1 - s.error):.1f}" for s in pair),
            f"{100 * (1 - default[k]):.1f}",
            f"{np.exp(records['log_gamma'][at]):.3g} / {np.exp(records['log_C'][at]):.3g}",
            *(f"{s.gamma:.3g} / {s.cost:.3g}" for s in pair),
            f"{spent:.1f}",
            *(f"{s.seconds:.1f}" for s in pair),
        ])  # fmt: skip
    header = ("test accuracy, %", "ours", "SVC", "SVC, rest", "ours, default gamma, C",
              "gamma / C: ours", "SVC", "SVC, rest",
              "seconds: ours", "SVC", "SVC, rest")  # fmt: skip
    return Findings(
        tuple(figures), _text(settings, learned, theirs, ours, table(header, rows), mismatch),
        {"validation-loss-and-test-error": _plot(learned, searches)},
    )  # fmt: skip


def _text(settings: Settings, learned: Any, theirs: Any, ours: Any, rows: str, mismatch: float):
    solved = np.concatenate([r["solved"].ravel() for r, _ in learned])
    steps = np.concatenate([r["steps"].ravel() for r, _ in learned])
    gaps = 100 * (theirs - ours[:, None])
    points = 100 / settings.test
    return f"""\
Digits: {settings.train} training, {settings.validation} validation, {settings.test} test examples,
{len(ours)} random splits. "SVC" is scikit-learn's, one against one; "SVC, rest" is one against the
rest, as ours; both with grid search. "gamma / C" are those chosen. One test
example is {points:.2g} points of accuracy.

{rows}

- Accuracy of ours minus that of SVC: {_signed(gaps[:, 0])} points; minus that of the same machines
  one against the rest: {_signed(gaps[:, 1])} points (mean, and each split).
- Ours costs {10 * settings.steps} programs of {settings.train} variables a split, each with its
  derivative; a grid search fits {settings.gammas * settings.costs} classifiers with libsvm, whose
  method for exactly this dual (SMO) is faster than any dense interior point. What the gradient
  buys is that it has no grid: its cost hardly grows with the number of parameters.
- The derivative in log gamma and log C agrees with central differences to
  {mismatch:.1e} (relative).
- {solved.sum()} of {solved.size} programs met the tolerance, in {np.median(steps):.0f} steps
  (median), {steps.max()} at most.
"""


def _signed(gaps: Float[np.ndarray, " k"]) -> str:
    return f"{gaps.mean():+.2f} ({', '.join(f'{gap:+.1f}' for gap in gaps)})"


def _plot(learned: Any, searches: Any) -> Any:
    figure, (loss, error) = plots.axes(2, width=5.0)
    colours = (plots.OURS, plots.SECOND, plots.THIRD, plots.FIRST, plots.SOFT)
    for k, ((records, _), pair) in enumerate(zip(learned, searches, strict=True)):
        colour = colours[k % len(colours)]
        count = np.arange(1, len(records["validation"]) + 1)
        loss.plot(count, records["validation"], color=colour, label=f"split {k + 1}")
        label = "ours" if k == 0 else None
        error.plot(count, 100 * records["error"], color=colour, label=label)
        for search, style, name in zip(pair, ("--", ":"), ("SVC", "SVC, rest"), strict=True):
            label = f"{name}, grid search" if k == 0 else None
            error.axhline(
                100 * search.error, color=colour, linestyle=style, linewidth=1, label=label
            )
    loss.set(title="validation loss", xlabel="step of Adam")
    error.set(title="test error, % (a colour a split)", xlabel="step of Adam")
    for one in (loss, error):
        one.legend(frameon=False, fontsize=8.5)
    return figure


EXPERIMENT = Experiment(
    name="svm-layer",
    summary="Ten kernel machines as a batch of QPs, width and C learned through them, against SVC.",
    dtype="float64",
    run=run,
    quick=Settings(),
    full=Settings(seeds=5, train=400, steps=40),
)
