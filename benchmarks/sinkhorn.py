"""Entropic transport: Sinkhorn and Sinkhorn-Newton-Sparse against OTT-JAX.

The case: 1000 points against 1000 in two dimensions, squared distances over their mean, equal
weights, float64, the sums met to 1e-6 of the weight. OTT runs at its defaults and with its options
(momentum, Anderson, scaling of epsilon). Then thirty problems (five costs, two kinds of weights,
three epsilons), gradients, 256 small problems under vmap, and random assignments.

    OPENBLAS_NUM_THREADS=1 taskset -c 0 python -m benchmarks.sinkhorn [--full]
    python -m benchmarks.sinkhorn --large [100000]
"""

import importlib
import resource
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ott.geometry import epsilon_scheduler, geometry, pointcloud
from ott.problems.linear import linear_problem
from ott.solvers.linear import acceleration, sinkhorn

import jaxsolve as js
from jaxsolve.transport.points import BlockKernel, Points

from .side_by_side import figure, markdown, number, write

TOLERANCE = 1e-6


def timed(fn, *args, repeats=3):
    """CPU milliseconds of the quickest call, without compilation, and the result."""
    compiled = jax.jit(fn).lower(*args).compile()
    best, out = np.inf, None
    for _ in range(repeats):
        start = time.process_time()
        out = jax.block_until_ready(compiled(*args))
        best = min(best, time.process_time() - start)
    return 1e3 * best, out


def points(n=1000, d=2):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d))
    y = 0.5 * rng.normal(size=(n, d)) + 1
    return x, y


def squares(x, y):
    costs = ((x[:, None] - y) ** 2).sum(-1)
    return costs / costs.mean()


def ours(costs, a, b, epsilon, solver=None, tolerance=TOLERANCE):
    problem = js.EntropicTransport(costs, a, b, epsilon=epsilon)
    return js.solve(problem, solver, tolerance=tolerance, throw=False)


def theirs(costs, epsilon, options, limit=20_000):
    spread = options.get("scaling")
    value: Any = epsilon
    if spread:
        value = epsilon_scheduler.Epsilon(target=epsilon, init=100.0, decay=0.9)
    settings: dict[str, Any] = {}
    if options.get("momentum"):
        settings["momentum"] = acceleration.Momentum(value=options["momentum"])
    if options.get("anderson"):
        settings["anderson"] = acceleration.AndersonAcceleration(memory=options["anderson"])
    solver = sinkhorn.Sinkhorn(threshold=TOLERANCE, max_iterations=limit, **settings)
    return solver(linear_problem.LinearProblem(geometry.Geometry(costs, epsilon=value)))


OPTIONS = {
    "OTT, defaults": {},
    "OTT, momentum 1.5": {"momentum": 1.5},
    "OTT, momentum 1.8": {"momentum": 1.8},
    "OTT, Anderson 5": {"anderson": 5},
    "OTT, scaling": {"scaling": True},
    "OTT, momentum 1.5, scaling": {"momentum": 1.5, "scaling": True},
    "OTT, momentum 1.8, scaling": {"momentum": 1.8, "scaling": True},
    "OTT, Anderson 5, scaling": {"anderson": 5, "scaling": True},
}


def the_case(full):
    """Ours and all of OTT's options, epsilon by epsilon."""
    costs = jnp.asarray(squares(*points()))
    rows, figures = [], []
    for epsilon in (1e-2, 3e-3, 1e-3, 3e-4):
        mine, out = timed(lambda c, e: ours(c, None, None, e), costs, jnp.asarray(epsilon))
        name = f"n = 1000, epsilon {epsilon:g}"
        error = float(out.stats.residual.primal)
        rows.append(
            [name, "Sinkhorn", number(mine), "1", str(int(out.state.products)), f"{error:.1e}"]
        )
        times = []
        chosen = OPTIONS if full else dict(list(OPTIONS.items())[: 3 if epsilon >= 1e-3 else 0])
        for method, options in chosen.items():
            if epsilon < 1e-3 and method == "OTT, defaults":
                continue
            spent, found = timed(lambda c, o=options, e=epsilon: theirs(c, e, o), costs, repeats=1)
            left = float(found.errors[found.errors > -1][-1])
            # OTT calls it convergence, too, where the error is infinite.
            good = bool(found.converged) and left <= TOLERANCE
            times += [(method, spent)] if good else []
            steps = str(int(found.n_iters))
            ratio = f"{spent / mine:.3g}" + ("" if good else " (not converged)")
            rows.append([name, method, number(spent), ratio, steps, f"{left:.1e}"])
            print(rows[-1], flush=True)
        default = dict(times).get("OTT, defaults")
        figures.append(
            figure(f"{name}: against OTT's defaults", mine, "CPU ms", "Sinkhorn", default)
        )
        if times:
            best = min(times, key=lambda t: t[1])
            figures.append(
                figure(f"{name}: against {best[0]}, its best", mine, "CPU ms", "Sinkhorn", best[1])
            )
    return rows, figures


def thirty(n=1000):
    """(name, costs, a, b, epsilon)"""
    rng = np.random.default_rng(0)
    x, y = points(n)
    far, near = points(n, 10)
    centres = 3 * rng.normal(size=(5, 2))
    left, right = (centres[rng.integers(5, size=n)] + 0.1 * rng.normal(size=(n, 2)) for _ in "xy")
    costs = {
        "squared distance": squares(x, y),
        "distance": np.sqrt(squares(x, y)),
        "uniform": rng.uniform(size=(n, n)),
        "squared distance, 10 dimensions": squares(far, near),
        "clusters": squares(left, right),
    }
    drawn = [rng.gamma(0.5, size=n) + 1e-8 for _ in "ab"]
    weights = {"equal": [np.full(n, 1 / n)] * 2, "gamma": [w / w.sum() for w in drawn]}
    for cost, matrix in costs.items():
        for kind, (a, b) in weights.items():
            for epsilon in (1e-2, 1e-3, 3e-4):
                yield f"{cost}, {kind} weights", matrix / matrix.mean(), a, b, epsilon


def robust():
    rows, figures, spent = [], [], []
    fn = jax.jit(ours)
    solved = 0
    for name, *data in thirty():
        args = [jnp.asarray(x) for x in data]
        jax.block_until_ready(fn(*args))
        start = time.process_time()
        out = jax.block_until_ready(fn(*args))
        spent.append(1e3 * (time.process_time() - start))
        good = bool(out.success)
        solved += good
        error = float(out.stats.residual.primal)
        products = str(int(out.state.products))
        rows.append(
            [
                f"{name}, epsilon {data[-1]:g}",
                "Sinkhorn",
                number(spent[-1]),
                "-",
                products,
                f"{error:.1e}",
            ]
        )
    figures.append(
        figure("30 problems: solved", solved, "", "Sinkhorn", 30, "higher", "all of them")
    )
    figures.append(
        figure("30 problems: slowest", max(spent), "CPU ms", "Sinkhorn", 500, source="the goal")
    )
    return rows, figures


def gradients():
    costs = jnp.asarray(squares(*points()))
    weight = jnp.asarray(np.random.default_rng(1).normal(size=costs.shape))
    rows, figures = [], []
    functions = {
        "cost": lambda plan: plan.cost,
        "plan": lambda plan: jnp.sum(weight * plan.matrix),
    }
    for epsilon in (1e-2, 1e-3, 3e-4):
        for name, of in functions.items():
            value = lambda c, e=epsilon, of=of: of(ours(c, None, None, e).value)
            forward, _ = timed(value, costs)
            both, _ = timed(jax.value_and_grad(value), costs)
            label = f"gradient of the {name}, epsilon {epsilon:g}"
            rows.append(
                [label, "Sinkhorn", number(both), f"{both / forward:.3g} of a solve", "-", "-"]
            )
            figures.append(
                figure(
                    label,
                    both / forward,
                    "solves, the solve included",
                    "Sinkhorn",
                    3.0,
                    source="the goal: twice the solve, and it",
                )
            )
    return rows, figures


def small():
    costs = jnp.asarray(np.stack([squares(*points_of(seed)) for seed in range(256)]))
    rows, figures = [], []
    mine, out = timed(jax.vmap(lambda c: ours(c, None, None, 1e-2)), costs)
    other, found = timed(jax.vmap(lambda c: theirs(c, 1e-2, {}, 2000)), costs, repeats=1)
    name = "256 problems of 64 x 64, epsilon 0.01"
    rows.append(
        [
            name,
            "Sinkhorn",
            number(mine),
            "1",
            str(int(out.state.products.max())),
            f"{int(out.success.sum())} solved",
        ]
    )
    rows.append(
        [
            name,
            "OTT, defaults",
            number(other),
            f"{other / mine:.3g}",
            str(int(found.n_iters.max())),
            f"{int(found.converged.sum())} solved",
        ]
    )
    figures.append(figure(name, mine, "CPU ms", "Sinkhorn", other))
    return rows, figures


def points_of(seed, n=64):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)), 0.5 * rng.normal(size=(n, 2)) + 1


def assignment(full):
    """The random assignment of the paper: n = 500, eta = 1200, the sums met to 1e-12."""
    costs = jnp.asarray(np.random.default_rng(0).uniform(size=(500, 500)))
    rows, figures = [], []
    name = "assignment, n = 500, eta = 1200"
    mine, out = timed(lambda c: ours(c, None, None, 1 / 1200, js.SinkhornNewton(), 1e-12), costs)
    fast, quick = timed(lambda c: ours(c, None, None, 1 / 1200, None, 1e-12), costs)
    spent, iterations = plain(costs, 1 / 1200, 1e-12, 60_000 if full else 2_000)
    error = float(out.stats.residual.primal)
    rows.append(
        [name, "SinkhornNewton", number(mine), "1", str(int(out.stats.steps)), f"{error:.1e}"]
    )
    error = float(quick.stats.residual.primal)
    rows.append(
        [
            name,
            "Sinkhorn",
            number(fast),
            f"{fast / mine:.2g}",
            str(int(quick.state.products)),
            f"{error:.1e}",
        ]
    )
    rows.append(
        [
            name,
            "plain, log domain" + ("" if full else ", 2000 steps"),
            number(spent),
            f"{spent / mine:.3g}",
            str(iterations[0]),
            f"{iterations[1]:.1e}",
        ]
    )
    figures.append(
        figure(
            f"{name}: steps",
            int(out.stats.steps),
            "",
            "SinkhornNewton",
            35,
            source="the goal; the paper has 29",
        )
    )
    figures.append(
        figure(
            f"{name}: time",
            mine,
            "CPU ms",
            "SinkhornNewton",
            spent,
            source="plain Sinkhorn in this run" + ("" if full else ", its first 2000 steps"),
        )
    )
    return rows, figures


def plain(costs, epsilon, tolerance, limit):
    """Sinkhorn's iterations in logarithms: CPU milliseconds, (steps, the error left)."""
    n = costs.shape[0]
    log = -jnp.log(n)

    def run(costs):
        def step(carry):
            g, _, count = carry
            f = -epsilon * (jax.nn.logsumexp((g - costs) / epsilon, axis=1) + log)
            new = -epsilon * (jax.nn.logsumexp((f[:, None] - costs) / epsilon, axis=0) + log)
            return new, jnp.mean(jnp.abs(jnp.expm1((g - new) / epsilon))), count + 1

        start = (jnp.zeros(n), jnp.asarray(jnp.inf), 0)
        return jax.lax.while_loop(lambda c: (c[1] > tolerance) & (c[2] < limit), step, start)

    spent, (_, error, count) = timed(run, costs, repeats=1)
    return spent, (int(count), float(error))


def large(n):
    """One iteration between n and n points in three dimensions, whose costs are never written out.

    Ours makes the kernel anew in each step, and repeats the product with it: both are timed. OTT
    computes the costs for each of its two passes, `batch_size` rows at a time. float32.
    """
    # OTT 0.6 asks jax.interpreters for a name that newer versions of JAX keep elsewhere.
    batching: Any = importlib.import_module("jax.interpreters.batching")
    if "is_vmappable" not in vars(batching):
        batching.is_vmappable = importlib.import_module(
            "jax._src.interpreters.batching"
        ).is_vmappable
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for _ in "xy")
    a, g = jnp.full(n, 1 / n, jnp.float32), jnp.zeros(n, jnp.float32)
    epsilon = jnp.asarray(0.1, jnp.float32)
    live = jnp.ones(n, bool)

    # Arguments, as in a solve: XLA treats constants otherwise.
    def kernel(x, y, g, live):
        return Points.of(x, y, None, None).kernel(g, live, epsilon).base

    def product(x, y, g, base):
        made = BlockKernel(base, Points.of(x, y, None, None), g, epsilon)
        return made.through(a, lambda found, _: a[0] / found)

    def iteration(x, y, g):
        cloud = pointcloud.PointCloud(x, y, epsilon=0.1, batch_size=1024)
        f = cloud.update_potential(g, g, jnp.log(a), axis=1)
        return f, cloud.update_potential(f, g, jnp.log(a), axis=0)

    rows, spent, memory = [], {}, {}
    base = jax.jit(kernel)(x, y, g, live)
    for name, fn, args in (
        ("Sinkhorn, a kernel", kernel, (x, y, g, live)),
        ("Sinkhorn, a product", product, (x, y, g, base)),
        ("OTT, an iteration", iteration, (x, y, g)),
    ):
        compiled = jax.jit(fn).lower(*args).compile()
        analysis: Any = compiled.memory_analysis()
        memory[name] = analysis.temp_size_in_bytes / 2**20
        start, wall = time.process_time(), time.perf_counter()
        jax.block_until_ready(compiled(*args))
        spent[name] = 1e3 * (time.process_time() - start)
        wall = time.perf_counter() - wall
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        rows.append(
            [f"n = {n}, 3 dimensions", name, number(spent[name]), f"{wall:.3g}",
             f"{memory[name]:.3g}", f"{peak:.4g}"]
        )  # fmt: skip
        print(rows[-1], flush=True)
    ours_, theirs_ = spent["Sinkhorn, a product"], spent["OTT, an iteration"]
    both = ours_ + spent["Sinkhorn, a kernel"]
    name = f"n = {n}, 3 dimensions"
    used = max(v for k, v in memory.items() if k.startswith("Sinkhorn"))
    figures = [
        figure(f"{name}: a product", ours_, "CPU ms", "Sinkhorn", theirs_),
        figure(f"{name}: a kernel and a product", both, "CPU ms", "Sinkhorn", theirs_),
        figure(f"{name}: memory beside the data", used, "MiB", "Sinkhorn",
               memory["OTT, an iteration"]),
    ]  # fmt: skip
    return rows, figures


def main_large(n) -> None:
    start = time.perf_counter()
    rows, figures = large(n)
    write(
        "sinkhorn_large",
        figures,
        markdown(
            ["problem", "method", "CPU ms", "s", "MiB beside the data", "peak RSS, MiB"], rows
        ),
        seconds=time.perf_counter() - start,
        dtype="float32",
        packages=("jaxsolve", "jax", "ott-jax"),
        full=True,
    )


def main() -> None:
    full = "--full" in sys.argv
    if "--large" in sys.argv:
        return main_large(int(sys.argv[-1]) if sys.argv[-1].isdigit() else 100_000)
    jax.config.update("jax_enable_x64", True)
    start = time.perf_counter()
    rows, figures = [], []
    for part in (lambda: the_case(full), robust, gradients, small, lambda: assignment(full)):
        new, found = part()
        print(markdown([""] * 6, new), flush=True)
        rows += new
        figures += found
    header = ["problem", "method", "CPU ms", "over ours", "steps", "error"]
    write(
        "sinkhorn",
        figures,
        markdown(header, rows),
        seconds=time.perf_counter() - start,
        dtype="float64",
        packages=("jaxsolve", "jax", "ott-jax"),
        full=full,
    )


if __name__ == "__main__":
    main()
