"""Nonlinear least squares to a relative gradient of 1e-6: forward and backward, against the peers.

    minimise  ||r(y, a)||^2 / 2

Rosenbrock (2 and 20 variables), Powell's singular function, and fits of a exp(-b t) + c to noisy
data, one and a batch of 512 from random starts. The backward pass is the gradient of the solution's
squared norm in the data a. A peer is given the loosest tolerance of 1e-3, 1e-4, ... that reaches
||J'r|| <= 1e-6 max(1, ||r||) in the maximum norm on all lanes (its own stopping rule is another),
or its tightest, and is listed with the lanes that got there.

    taskset -c 0 python -m benchmarks.least_squares
"""

import time

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optimistix as optx
import scipy.optimize

import jaxsolve as js
from jaxsolve.smooth import QR, LeastSquares, LevenbergMarquardt

from .side_by_side import RESULTS, Timing, figure, interleaved, markdown, number, write

GOAL = {"float64": 1e-6, "float32": 1e-4}
STEPS = 500
OURS = "jaxsolve LM"
METHODS = (
    OURS,
    "jaxsolve LM (QR)",
    "optimistix LM",
    "optimistix Gauss-Newton",
    "optimistix Dogleg",
    "jaxopt LM",
)
SCIPY = "scipy lm"


def rosenbrock(y, a):
    """Minimum at y = 1 for a = 1."""
    return jnp.concatenate([10 * (y[1:] - y[:-1] ** 2), a - y[:-1]])


def powell(y, a):
    """Singular Jacobian at the minimum, 0 for a = 0."""
    y = y - a
    return jnp.stack(
        [
            y[0] + 10 * y[1],
            5**0.5 * (y[2] - y[3]),
            (y[1] - 2 * y[2]) ** 2,
            10**0.5 * (y[0] - y[3]) ** 2,
        ]
    )


def curve(y, a):
    """a exp(-b t) + c against the data."""
    t = jnp.linspace(0, 4, 25, dtype=y.dtype)
    return y[0] * jnp.exp(-y[1] * t) + y[2] - a


def cases(dtype):
    """Name -> (residuals, starts, data); a leading axis where it is a batch."""
    rng = np.random.default_rng(0)
    lanes = 512
    t = np.linspace(0, 4, 25)
    truth = np.stack([rng.uniform(1, 5, lanes), rng.uniform(0.3, 3, lanes), rng.normal(size=lanes)])
    y = truth[0][:, None] * np.exp(-truth[1][:, None] * t) + truth[2][:, None]
    y = jnp.asarray(y + 0.02 * rng.normal(size=y.shape), dtype)
    starts = jnp.asarray(rng.uniform(0.1, 3, (lanes, 3)), dtype)
    hard = lambda *x: jnp.asarray(x, dtype)
    return {
        "rosenbrock 2": (rosenbrock, hard(-1.2, 1.0), hard(1.0)),
        "rosenbrock 20": (rosenbrock, hard(*(-1.2, 1.0) * 10), jnp.ones(19, dtype)),
        "powell singular": (powell, hard(3.0, -1.0, 0.0, 1.0), hard(0.0)),
        "exponential fit": (curve, starts[0], y[0]),
        "512 exponential fits": (curve, starts, y),
    }


def solver(method, fn, tolerance):
    """(start, data) -> (solution, steps) of one problem."""
    if method.startswith("jaxsolve"):
        ours = LevenbergMarquardt(QR()) if "QR" in method else LevenbergMarquardt()

        def run(start, data):
            problem = LeastSquares(fn, data)
            out = js.solve(problem, ours, start, tolerance=tolerance, max_steps=STEPS, throw=False)
            return out.value, out.stats.steps

    elif method == "jaxopt LM":

        def run(start, data):
            lm = jaxopt.LevenbergMarquardt(
                fn,
                tol=tolerance,
                gtol=tolerance,
                xtol=0.0,
                maxiter=STEPS,
                solver="cholesky",
                materialize_jac=True,
            )
            out = lm.run(start, data)
            return out.params, out.state.iter_num

    else:
        kind = {
            "optimistix LM": optx.LevenbergMarquardt,
            "optimistix Gauss-Newton": optx.GaussNewton,
            "optimistix Dogleg": optx.Dogleg,
        }[method]

        def run(start, data):
            out = optx.least_squares(
                fn,
                kind(rtol=tolerance, atol=tolerance),
                start,
                data,
                max_steps=STEPS,
                throw=False,
            )
            return out.value, out.stats["num_steps"]

    return run


def scipy_run(fn, start, data, tolerance):
    """MINPACK's lm on the host, one problem, with compiled residuals and Jacobian."""
    residuals, jacobian = jax.jit(fn), jax.jit(jax.jacfwd(fn))

    def run():
        out = scipy.optimize.least_squares(
            lambda x: np.asarray(residuals(jnp.asarray(x, start.dtype), data), np.float64),
            np.asarray(start, np.float64),
            jac=lambda x: np.asarray(jacobian(jnp.asarray(x, start.dtype), data), np.float64),
            method="lm",
            xtol=tolerance,
            ftol=tolerance,
            gtol=tolerance,
        )
        return jnp.asarray(out.x, start.dtype), out.nfev

    return run


def relative_gradient(fn):
    """Of one problem: ||J'r||_inf / max(1, ||r||)."""

    def measure(y, data):
        residuals, pullback = jax.vjp(lambda y: fn(y, data), y)
        size = jnp.maximum(jnp.sqrt(jnp.sum(residuals**2)), 1)
        return jnp.max(jnp.abs(pullback(residuals)[0])) / size

    return measure


def cell(name, dtype):
    """One problem in one precision: rows of the table, and figures."""
    fn, start, data = cases(dtype)[name]
    batch = start.ndim == 2
    goal = GOAL[np.dtype(dtype).name]
    over = jax.vmap if batch else lambda f: f
    measure = jax.jit(over(relative_gradient(fn)))

    def there(y):
        return int(jnp.sum(measure(y, data) <= goal))

    lanes = len(start) if batch else 1
    names = METHODS if batch else (*METHODS, SCIPY)
    # The tolerance is an argument, so that the search for it compiles once.
    compiled = {
        m: jax.jit(lambda tolerance, start, data, m=m: over(solver(m, fn, tolerance))(start, data))
        for m in METHODS
    }

    def forward_call(method, tolerance):
        if method == SCIPY:
            return scipy_run(fn, start, data, tolerance)
        return lambda: compiled[method](jnp.asarray(tolerance, dtype), start, data)

    tolerances = {}
    for method in names:
        if method.startswith("jaxsolve"):
            tolerances[method] = goal
            continue
        best = -1
        for tolerance in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10):
            count = there(forward_call(method, tolerance)()[0])
            if count > best:
                best, tolerances[method] = count, tolerance
            if count == lanes:
                break

    def backward(method):
        run = over(solver(method, fn, tolerances[method]))
        return jax.jit(jax.grad(lambda data: jnp.sum(run(start, data)[0] ** 2)))

    calls = {}
    for m in names:
        calls[f"f {m}"] = forward_call(m, tolerances[m])
        if m != SCIPY:
            calls[f"b {m}"] = lambda run=backward(m): run(data)
    timings = interleaved(calls)

    label = f"{name}, {np.dtype(dtype).name}"
    forward = {m: timings[f"f {m}"] for m in names}
    solved = {m: there(t.out[0]) for m, t in forward.items() if isinstance(t, Timing)}
    peers = [forward[m].cpu for m in solved if "jaxsolve" not in m and solved[m] == lanes]
    rows, figures = [], []
    for m in names:
        t, back = forward[m], timings.get(f"b {m}")
        if not isinstance(t, Timing):
            rows.append([label, m, "-", "-", t, *["-"] * 5])
            continue
        steps = np.atleast_1d(np.asarray(t.out[1]))
        count = str(steps[0]) if len(steps) == 1 else f"{steps.min()} to {steps.max()}"
        worst = float(jnp.max(measure(t.out[0], data)))
        milliseconds = back.cpu if isinstance(back, Timing) else None
        rows.append(
            [
                label,
                m,
                number(tolerances[m], 1),
                count,
                number(t.cpu),
                number(t.milliseconds),
                f"{solved[m]}/{lanes}",
                number(worst, 2),
                number(milliseconds) if milliseconds else ("-" if back is None else "raises"),
                number(t.first_seconds, 2),
            ]
        )
        baseline = min(peers) if m == OURS and peers else None
        figures += [
            figure(f"{label}: forward", t.cpu, "CPU ms", m, baseline),
            figure(f"{label}: worst relative gradient", worst, "max norm", m, goal),
            figure(f"{label}: steps", float(steps.max()), "steps", m),
            figure(f"{label}: solved", solved[m], "lanes", m, better="higher"),
        ]
        if milliseconds:
            figures.append(figure(f"{label}: forward and backward", milliseconds, "CPU ms", m))
    return rows, figures


def plot(figures) -> None:
    """Forward times, problem by problem; hatched where not all lanes got there."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = list(dict.fromkeys(f["name"].split(":")[0] for f in figures))
    labels = [label for label in labels if label.endswith("float64")]
    find = {(f["name"], f["method"]): f["value"] for f in figures}
    fig, axes = plt.subplots(1, len(labels), figsize=(3 * len(labels), 3.4), layout="constrained")
    names = [*METHODS, SCIPY]
    for ax, label in zip(axes, labels, strict=True):
        lanes = 512 if "512" in label else 1
        for place, m in enumerate(names):
            value = find.get((f"{label}: forward", m))
            if value is None:
                continue
            all_there = find[(f"{label}: solved", m)] == lanes
            color = "tab:blue" if "jaxsolve" in m else "tab:grey"
            ax.barh(place, value, color=color, hatch=None if all_there else "///")
        ax.set_yticks(range(len(names)), names if ax is axes[0] else [])
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.set_xlabel("forward, CPU ms")
        ax.set_title(label.split(",")[0], fontsize=10)
    fig.savefig(RESULTS / "least_squares.png", dpi=120)
    plt.close(fig)


def main() -> None:
    start = time.perf_counter()
    rows, figures = [], []
    for dtype in (np.float64, np.float32):
        with jax.enable_x64(dtype == np.float64):
            # In float32 the two that tell methods apart.
            wide = dtype == np.float64
            for name in cases(dtype) if wide else ("powell singular", "512 exponential fits"):
                more_rows, more_figures = cell(name, dtype)
                rows += more_rows
                figures += more_figures
    header = ["problem", "method", "tolerance", "steps", "forward CPU ms", "on the clock", "solved"]
    header += ["worst relative gradient", "both CPU ms", "first forward s"]
    table = "# Nonlinear least squares\n\n" + __doc__.split("\n\n", 1)[1]
    table = (
        table.rsplit("\n\n", 1)[0]
        + "\n\n(float32, two problems: 1e-4.)\n\n"
        + markdown(header, rows)
    )
    packages = ("jaxsolve", "jax", "jaxopt", "optimistix", "scipy")
    write(
        "least_squares",
        figures,
        table,
        seconds=time.perf_counter() - start,
        dtype="float32 and float64",
        packages=packages,
    )
    plot(figures)
    print(table)


if __name__ == "__main__":
    main()
