"""Stochastic bilevel methods: `python -m benchmarks.bilevel_simulated`.

Two problems in the form of a public benchmark of bilevel solvers, in float64:

- simulated: the means of 1024 quadratic functions for each level, 100 variables in each; the
  curvature of a sample lies between 0.1 and 1, its mixed derivatives have norm 0.1;
- logistic: 5000 training and 5000 validation samples of 22 features (a tenth of the labels
  positive, as in ijcnn1), the log-loss on validation samples over a penalty exp(x_j) y_j^2 / 2 for
  each feature.

Every method starts at the same point and is stopped at checkpoints, where |grad h(x)|^2 is found
exactly: the lower level by Newton's method, the adjoint by a factorisation. The clock is the CPU
time of the process and stands while that is done; compilation is left out. Batches are of 64
samples of either level. Step sizes are the best of a coarse grid (factors of four) at another seed
(100), those of `simulated` at 40 variables: curvatures do not depend on their number.

Beside ours: descent along jaxopt's implicit derivative of its L-BFGS, all data a step.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsolve import RESULTS, solve
from jaxsolve.bilevel.bome import BOME
from jaxsolve.bilevel.f2sa import F2SA
from jaxsolve.bilevel.hypergradient_descent import HypergradientDescent
from jaxsolve.bilevel.pzobo import PZOBO
from jaxsolve.bilevel.saba import SABA
from jaxsolve.bilevel.soba import SOBA
from jaxsolve.bilevel.stoc_bio import StocBiO
from jaxsolve.bilevel.stochastic import StochasticBilevel

from .side_by_side import RESULTS as FOLDER, figure, markdown, number, write

RATES = {
    "simulated": {
        "SABA": (0.4, 0.3), "SOBA": (0.1, 0.3), "StocBiO": (0.1, 0.8), "F2SA": (0.4, 0.3),
        "PZOBO": (0.03, 0.8), "BOME": (0.4, 0.8), "jaxopt": 1.5,
    },
    "logistic": {
        "SABA": (16.0, 0.5), "SOBA": (256.0, 0.5), "StocBiO": (256.0, 0.1), "F2SA": (256.0, 0.5),
        "PZOBO": (64.0, 0.1), "BOME": (64.0, 0.5), "jaxopt": 64.0,
    },
}  # fmt: skip
"""Step sizes of x and y (of x alone for jaxopt)."""
GOALS = (1e-3, 1e-4, 1e-6, 1e-8, 1e-10)
BATCH = 64


class Task(NamedTuple):
    """A problem, where it is started, and |grad h|^2 by (x, y near the lower solution)."""

    name: str
    problem: StochasticBilevel
    init: tuple[Any, Any]
    newton_steps: int


def squared_gradient(task: Task) -> Callable[[Any, Any], float]:
    """|grad h(x)|^2, from a y to start at."""

    # Data as arguments: of constants, XLA would form the means while it compiles.
    @eqx.filter_jit
    def found(full, x, y):
        slope = jax.grad(full.inner, argnums=1)
        curvature = lambda y: jax.hessian(full.inner, argnums=1)(x, y)
        newton = lambda _, y: y - jnp.linalg.solve(curvature(y), slope(x, y))
        y = jax.lax.fori_loop(0, task.newton_steps, newton, y)
        first, second = jax.grad(full.objective, argnums=(0, 1))(x, y)
        v = -jnp.linalg.solve(curvature(y), second)
        total = first + jax.vjp(lambda x: slope(x, y), x)[1](v)[0]
        return jnp.sum(total**2)

    return lambda x, y: float(found(task.problem.full, x, task.init[1] if y is None else y))


# --- the problems ----------------------------------------------------------------------------


def quadratic_lower(x, y, batch, args):
    a, b, c = batch
    both = 0.5 * jnp.einsum("i,nij,j->n", y, a, y) + jnp.einsum("i,nij,j->n", y, b, x)
    return jnp.mean(both + c @ y)


def quadratic_upper(x, y, batch, args):
    p, q, r, s, t = batch
    both = jnp.einsum("i,nij,j->n", y, p, y) + jnp.einsum("i,nij,j->n", x, q, x)
    return jnp.mean(0.5 * both + jnp.einsum("i,nij,j->n", x, r, y) + s @ x + t @ y)


def simulated(seed: int, samples: int = 1024, dim: int = 100) -> Task:
    rng = np.random.default_rng(seed)

    def definite(low: float, high: float) -> np.ndarray:
        basis = np.linalg.qr(rng.normal(size=(samples, dim, dim)))[0]
        values = rng.uniform(low, high, size=(samples, dim))
        return np.einsum("nij,nj,nkj->nik", basis, values, basis)

    def cross() -> np.ndarray:
        found = rng.normal(size=(samples, dim, dim)) + rng.normal(size=(dim, dim))
        return 0.1 * found / np.linalg.norm(found, 2, axis=(1, 2))[:, None, None]

    def linear() -> np.ndarray:
        return rng.normal(size=(samples, dim)) + rng.normal(size=dim)

    lower_data = definite(0.1, 1.0), cross(), linear()
    upper_data = definite(0.1, 1.0), definite(0.1, 1.0), cross(), linear(), linear()
    as_arrays = lambda data: tuple(jnp.asarray(a) for a in data)
    problem = StochasticBilevel(
        quadratic_upper, quadratic_lower, as_arrays(upper_data), as_arrays(lower_data),
        batch_size=BATCH,
    )  # fmt: skip
    return Task("simulated", problem, (jnp.zeros(dim), jnp.zeros(dim)), 1)


def log_loss(y, batch):
    features, signs = batch
    return jnp.mean(jax.nn.softplus(-signs * jnp.matmul(features, y, precision="highest")))


def logistic_lower(x, y, batch, args):
    return log_loss(y, batch) + 0.5 * jnp.sum(jnp.exp(x) * y**2)


def logistic_upper(x, y, batch, args):
    return log_loss(y, batch)


def logistic(seed: int, samples: int = 5000, features: int = 22) -> Task:
    rng = np.random.default_rng(seed)
    mixing = np.eye(features) + 0.3 * rng.normal(size=(features, features)) / np.sqrt(features)
    truth = 2 * rng.normal(size=features) * (rng.uniform(size=features) < 0.7)

    def draw() -> tuple[Any, Any]:
        x = rng.normal(size=(samples, features)) @ mixing
        x[:, -1] = 1.0
        scores = x @ truth + rng.logistic(size=samples)
        signs = np.where(scores > np.quantile(scores, 0.9), 1.0, -1.0)
        return jnp.asarray(x), jnp.asarray(signs)

    problem = StochasticBilevel(logistic_upper, logistic_lower, draw(), draw(), batch_size=BATCH)
    return Task("logistic", problem, (jnp.zeros(features), jnp.zeros(features)), 30)


# --- the methods -----------------------------------------------------------------------------


class Method(NamedTuple):
    """A solver, and after how many steps it is looked at."""

    solver: Any
    checkpoints: tuple[int, ...]


def geometric(first: int, last: int, count: int = 14) -> tuple[int, ...]:
    return tuple(int(c) for c in np.unique(np.geomspace(first, last, count).round()))


def methods(task: str, longest: int) -> dict[str, Method]:
    """With the step sizes found for the task; a step of the last five has inner ones."""
    single, double = geometric(100, longest), geometric(20, longest // 10)
    steps = 2**31 - 1
    rates = RATES[task]
    penalised = F2SA(*rates["F2SA"], steps=steps)
    return {
        "SABA": Method(SABA(*rates["SABA"], steps=steps), single),
        "SOBA": Method(SOBA(*rates["SOBA"], steps=steps), single),
        "StocBiO": Method(StocBiO(*rates["StocBiO"], steps=steps), double),
        "F2SA": Method(penalised, double),
        "PZOBO": Method(PZOBO(*rates["PZOBO"], steps=steps), double),
        "BOME": Method(BOME(*rates["BOME"], steps=steps), double),
        "HypergradientDescent": Method(HypergradientDescent(), (1, 2, 3, 5, 8, 12, 20, 30, 50)),
    }


Curve = list[tuple[int, float, float]]
"""Steps, CPU seconds, |grad h|^2."""


def curve(task: Task, method: Method, goodness: Callable, seed: int) -> Curve:
    """Solves that go on from each other; the first two, untimed, compile."""
    key = jax.random.key(seed)

    def run(init: Any, steps: int) -> Any:
        found = solve(task.problem, method.solver, init, key=key, tolerance=1e-13,
                      max_steps=steps, throw=False)  # fmt: skip
        return jax.block_until_ready(found)

    run(run(task.init, 1), 1)
    found, seconds, done = task.init, 0.0, 0
    points = [(0, 0.0, goodness(*task.init))]
    for checkpoint in method.checkpoints:
        begun = time.process_time()
        found = run(found, checkpoint - done)
        seconds += time.process_time() - begun
        done = checkpoint
        points.append((done, seconds, goodness(*found.value)))
        if found.result == RESULTS.successful or found.result == RESULTS.nonfinite_state:
            break
    return points


def peer(task: Task, rate: float) -> Curve:
    """Gradient descent on x along jaxopt's implicit derivative; y is warm-started."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jaxopt
    full = task.problem.full
    lower = lambda y, x, data: full.lower(x, y, data)
    inner = jaxopt.LBFGS(lower, tol=1e-9, maxiter=200, implicit_diff=True)

    def value(x, y, data):
        y = inner.run(y, x, data).params
        return full.upper(x, y, data), y

    @jax.jit
    def step(x, y, data):
        gradient, y = jax.grad(value, has_aux=True)(x, y, data)
        return x - rate * gradient, y

    goodness = squared_gradient(task)
    jax.block_until_ready(step(*task.init, full.args))
    (x, y), seconds, done = task.init, 0.0, 0
    points = [(0, 0.0, goodness(*task.init))]
    for checkpoint in geometric(1, 400):
        begun = time.process_time()
        for _ in range(checkpoint - done):
            x, y = jax.block_until_ready(step(x, y, full.args))
        seconds += time.process_time() - begun
        done = checkpoint
        points.append((done, seconds, goodness(x, y)))
        if points[-1][2] < 1e-20:
            break
    return points


def reached(points: Curve, goal: float) -> tuple[int, float] | None:
    """Steps and seconds at the first checkpoint from which on the goal is met."""
    found = None
    for steps, seconds, value in reversed(points):
        if not value <= goal:
            break
        found = steps, seconds
    return found


def plot(curves: dict[str, dict[str, Curve]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(drawing)
    axes: Any = drawing.subplots(1, 2)
    for axis, (task, found) in zip(axes, curves.items(), strict=True):
        for name, points in found.items():
            line = "--" if name.startswith("jaxopt") else "-"
            _, seconds, values = zip(*points[1:], strict=True)
            axis.loglog(seconds, np.maximum(values, 1e-24), line, marker=".", label=name)
        axis.set(title=task, xlabel="CPU seconds", ylabel="squared norm of grad h")
    axes[0].legend(frameon=False, fontsize=7.5)
    drawing.savefig(FOLDER / "bilevel_simulated.png", dpi=144)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20_000, help="of the single loops")
    settings = parser.parse_args()
    begun, figures, curves, text = time.perf_counter(), [], {}, []
    for task in (simulated(settings.seed), logistic(settings.seed)):
        goodness = squared_gradient(task)
        found = {}
        for name, method in methods(task.name, settings.steps).items():
            found[name] = curve(task, method, goodness, settings.seed)
            print(task.name, name, [f"{v:.1e}" for _, _, v in found[name]], flush=True)
        found["jaxopt, gradient descent"] = peer(task, RATES[task.name]["jaxopt"])
        curves[task.name] = found
        rows = []
        for name, points in found.items():
            hits = [reached(points, goal) for goal in GOALS]
            cells = ["-" if h is None else f"{number(h[1])} ({h[0]})" for h in hits]
            each = 1e6 * points[-1][1] / points[-1][0]
            rows.append([name, f"{points[-1][2]:.1e}", f"{points[-1][0]}", number(each), *cells])
        slow = reached(found["SOBA"], 1e-6)
        other = reached(found["jaxopt, gradient descent"], 1e-6)
        for name, points in found.items():
            hit = reached(points, 1e-6)
            if hit is None or name.startswith("jaxopt"):
                continue
            base = slow if name == "SABA" else other
            source = "SOBA, same run" if name == "SABA" else "jaxopt, same run"
            figures.append(
                figure(f"{task.name}: CPU time to |grad h|^2 <= 1e-6", hit[1], "s CPU", name,
                       None if base is None else base[1], source=source)
            )  # fmt: skip
        header = ["method", "last", "steps", "us a step",
                  *(f"to {g:.0e}: s (steps)" for g in GOALS)]  # fmt: skip
        text.append(f"{task.name}: |grad h|^2 at the start {found['SABA'][0][2]:.1e}\n")
        text.append(markdown(header, rows))
    table = "\n".join(
        ["Squared norm of the exact grad h. Seconds are CPU time of the process, without "
         "compilation, to the first checkpoint from which on the goal is met.\n", *text]
    )  # fmt: skip
    print(table)
    write("bilevel_simulated", figures, table, seconds=time.perf_counter() - begun,
          dtype="float64", packages=("jaxsolve", "jax", "jaxopt", "numpy"),
          seed=settings.seed)  # fmt: skip
    plot(curves)


if __name__ == "__main__":
    main()
