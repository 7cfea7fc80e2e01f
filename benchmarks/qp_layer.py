"""Quadratic programs as a layer: forward and backward, one and many, against the peers.

    minimise  x'Px/2 + q'x   subject to   Ax = b,  Gx <= h

Random dense, strictly convex programs with n variables, n/2 equalities and n inequalities,
float64 at a KKT residual of 1e-8 (ours) and float32 at 1e-4. Each peer runs at its default
settings; its row says what residual it reached (the largest violation over all lanes, in NumPy
float64, the same for all). The backward pass is the gradient of c'x in q; its error is against
the KKT equations of the active set in NumPy, relative, the median of the first lanes at which the
gradient is not zero. Times are medians of seven interleaved turns, a problem; compile time apart.
ProxQP and Clarabel solve one problem after the other.

    python -m benchmarks.qp_layer [--full] [--only n] [--dtype float32]
"""

import argparse
import importlib
import importlib.util
import json
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxsolve as js

from .side_by_side import RESULTS, Timing, figure, interleaved, markdown, number, write

OURS, BASELINE = "jaxsolve", "qpax"
FIELDS = ("P", "q", "A", "b", "G", "h")
GOAL = {"float64": 1e-8, "float32": 1e-4}
CELLS = ((10, 512), (50, 64), (200, 8))
FULL = ((10, 1), (10, 64), (50, 1), (50, 512), (100, 1), (100, 64), (200, 1), (200, 64))
CHECKED = 8
HOST_LANES = 8
"""Problems that a solver on the host is timed on: it has no batches."""


def draw(n: int, lanes: int, dtype) -> tuple:
    """P, q, A, b, G, h with a leading axis."""
    out = []
    for seed in range(lanes):
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(n, n))
        P, q = root @ root.T / n + 0.1 * np.eye(n), rng.normal(size=n)
        inside, A = rng.normal(size=n), rng.normal(size=(n // 2, n))
        G = rng.normal(size=(n, n))
        out.append((P, q, A, A @ inside, G, G @ inside + rng.uniform(size=n)))
    return tuple(jnp.asarray(np.stack(x), dtype) for x in zip(*out, strict=True))


def ours(P, q, A, b, G, h):
    solution = js.solve(js.QuadraticProgram(P, q, A=A, b=b, G=G, h=h), throw=False)
    dual = solution.dual
    return solution.value, dual.equality, dual.inequality


def by_qpax(qpax, P, q, A, b, G, h, tight=False):
    more = {"solver_tol": 1e-8} if tight else {}
    x, _, z, y, _, _ = qpax.solve_qp(P, q, A, b, G, h, **more)
    return x, y, z


def by_qpax_gradient(qpax, c, P, q, A, b, G, h):
    return c @ qpax.solve_qp_primal(P, q, A, b, G, h)


def by_osqp(jaxopt, P, q, A, b, G, h):
    found = jaxopt.OSQP().run(params_obj=(P, q), params_eq=(A, b), params_ineq=(G, h)).params
    return found.primal, found.dual_eq, found.dual_ineq


def by_box_osqp(jaxopt, P, q, A, b, G, h):
    rows = jnp.concatenate([A, G])
    bounds = (
        jnp.concatenate([b, jnp.full_like(h, -jnp.inf)]),
        jnp.concatenate([b, h]),
    )
    found = jaxopt.BoxOSQP().run(params_obj=(P, q), params_eq=rows, params_ineq=bounds).params
    z = found.dual_eq
    return found.primal[0], z[: b.size], z[b.size :]


def by_mpax(mpax, P, q, A, b, G, h):
    # Two-sided infinite bounds; mpax takes Gx >= h.
    free = jnp.full_like(q, jnp.inf)
    program = mpax.create_qp(P, q, A, b, -G, -h, -free, free)
    # Tighter in float32 it never ends.
    eps = 1e-6 if q.dtype == jnp.float64 else 1e-4
    found = mpax.raPDHG(eps_abs=eps, eps_rel=eps).optimize(program)
    y = found.dual_solution
    return found.primal_solution, -y[: b.size], y[b.size :]


def jax_peers() -> dict:
    """Name -> (solution of one problem, c'x of one problem or None); absent ones say so."""
    peers = {OURS: (ours, lambda c, *d: c @ ours(*d)[0])}
    absent = {}
    try:
        qpax = importlib.import_module("qpax")
        primal = partial(by_qpax_gradient, qpax)
        peers["qpax"] = (partial(by_qpax, qpax), primal)
        peers["qpax, tolerance 1e-8"] = (partial(by_qpax, qpax, tight=True), None)
    except ImportError:
        absent["qpax"] = "not installed"
    try:
        jaxopt = importlib.import_module("jaxopt")
        for name, fn in (("jaxopt OSQP", by_osqp), ("jaxopt BoxOSQP", by_box_osqp)):
            solve = partial(fn, jaxopt)
            peers[name] = (solve, lambda c, *d, solve=solve: c @ solve(*d)[0])
    except ImportError:
        absent["jaxopt"] = "not installed"
    try:
        mpax = importlib.import_module("mpax")
        peers["mpax raPDHG"] = (partial(by_mpax, mpax), None)
    except ImportError:
        absent["mpax"] = "not installed"
    return peers, absent


def host_peers(n: int, dtype) -> tuple[dict, dict]:
    """Name -> solution of one problem on the host."""
    peers, absent = {}, {}
    try:
        qpsolvers = importlib.import_module("qpsolvers")
        for name in ("proxqp", "clarabel"):
            if name in qpsolvers.available_solvers:
                peers[f"{name} (qpsolvers)"] = partial(by_qpsolvers, qpsolvers, name)
            else:
                absent[f"{name} (qpsolvers)"] = "not installed"
    except ImportError:
        absent["proxqp, clarabel (qpsolvers)"] = "not installed"
    try:
        layers = importlib.import_module("cvxpylayers.jax")
        peers["cvxpylayers"] = cvxpylayer(layers, importlib.import_module("cvxpy"), n)
    except ImportError:
        absent["cvxpylayers"] = "not installed"
    return peers, absent


def by_qpsolvers(qpsolvers, name, P, q, A, b, G, h):
    found = qpsolvers.solve_problem(qpsolvers.Problem(P, q, G, h, A, b), solver=name)
    return found.x, found.y, found.z


def cvxpylayer(layers, cvxpy, n):
    """The layer with P as a Cholesky factor, as its rules ask."""
    x, root, q = cvxpy.Variable(n), cvxpy.Parameter((n, n)), cvxpy.Parameter(n)
    A, b = cvxpy.Parameter((n // 2, n)), cvxpy.Parameter(n // 2)
    G, h = cvxpy.Parameter((n, n)), cvxpy.Parameter(n)
    objective = cvxpy.Minimize(0.5 * cvxpy.sum_squares(root @ x) + q @ x)
    program = cvxpy.Problem(objective, [A @ x == b, G @ x <= h])
    layer = layers.CvxpyLayer(program, parameters=[root, q, A, b, G, h], variables=[x])

    def solve(P, q, A, b, G, h):
        return np.asarray(layer(np.linalg.cholesky(P).T, q, A, b, G, h)[0]), None, None

    return solve


def kkt(data, x, y, z) -> float:
    """The largest violation of the optimality conditions, min(z, slack) for complementarity."""
    P, q, A, b, G, h = data
    if y is None:
        rows = np.concatenate([A, G[(h - G @ x) < 1e-4]])
        dual = np.linalg.lstsq(rows.T, -(P @ x + q), rcond=None)[0]
        y, z = dual[: len(b)], np.zeros(len(h))
        z[(h - G @ x) < 1e-4] = dual[len(b) :]
    parts = [P @ x + q + A.T @ y + G.T @ z, A @ x - b, np.minimum(z, h - G @ x)]
    worst = max(float(np.max(np.abs(part))) for part in parts)
    return worst if np.isfinite(worst) else np.inf


def reference(data, x, z, c) -> np.ndarray:
    """d c'x / dq from the equations of the active set."""
    P, _, A, _, G, h = data
    rows = np.concatenate([A, G[z > h - G @ x]])
    zeros = np.zeros((len(rows), len(rows)))
    system = np.block([[P, rows.T], [rows, zeros]])
    return -np.linalg.solve(system, np.concatenate([c, np.zeros(len(rows))]))[: len(x)]


def cell(n: int, lanes: int, dtype) -> tuple[list, list]:
    """One size: rows of the table, figures."""
    name = f"n = {n}, batch {lanes}, {np.dtype(dtype).name}"
    print(name, flush=True)
    data = draw(n, lanes, dtype)
    wide = [np.asarray(x, np.float64) for x in data]
    c = np.random.default_rng(1).normal(size=n)
    peers, absent = jax_peers()
    forward, backward, compiled = {}, {}, {}
    for peer, (solve, value) in peers.items():
        forward[peer] = compile_call(compiled, (peer, "forward"), jax.vmap(solve), *data)
        if value is not None:
            gradient = jax.vmap(
                jax.value_and_grad(partial(value, jnp.asarray(c, dtype)), argnums=1)
            )
            backward[peer] = compile_call(compiled, (peer, "both"), gradient, *data)
    timed = interleaved(forward)
    both = interleaved(backward)
    hosts, missing = host_peers(n, dtype) if dtype == np.float64 else ({}, {})
    count = min(lanes, HOST_LANES)
    for peer, solve in hosts.items():
        call = lambda solve=solve: [solve(*(x[i] for x in wide)) for i in range(count)]
        timed |= interleaved({peer: call}, turns=3)
    exact = _reference_gradients(wide, timed.get(OURS), c)
    rows, figures = [], []
    baseline = timed.get(BASELINE)
    for peer, entry in timed.items():
        if isinstance(entry, str):
            rows.append([name, peer, entry, *["-"] * 7])
            continue
        per = entry.milliseconds / (count if peer in hosts else lanes)
        worst = _worst(wide, entry, peer in hosts)
        gradient = both.get(peer)
        twice, error = None, None
        if isinstance(gradient, Timing):
            twice = gradient.milliseconds / lanes
            error = _gradient_error(gradient, exact)
        faster = None
        if isinstance(baseline, Timing):
            faster = baseline.milliseconds / lanes / per
        compile_seconds = compiled.get((peer, "forward"))
        rows.append(
            [name, peer, number(1e3 * per), number(faster), number(worst)]
            + [number(None if twice is None else 1e3 * twice)]
            + [number(None if twice is None else twice / per), number(error)]
            + [number(compile_seconds), number(compiled.get((peer, "both")))]
        )
        beat = baseline.milliseconds / lanes * 1e3 if isinstance(baseline, Timing) else None
        figures.append(figure(f"{name}: forward", 1e3 * per, "us a problem", peer, beat))
        figures.append(figure(f"{name}: residual", worst, "max norm", peer, GOAL[_dtype(dtype)]))
        if twice is not None:
            figures.append(figure(f"{name}: both over forward", twice / per, "ratio", peer, 1.2))
            figures.append(figure(f"{name}: gradient error", error, "relative", peer, 1e-6))
        if compile_seconds is not None:
            first = compiled.get((BASELINE, "forward"))
            figures.append(figure(f"{name}: compile", compile_seconds, "s", peer, first))
    rows += [[name, peer, why, *["-"] * 7] for peer, why in {**absent, **missing}.items()]
    return rows, figures


def compile_call(compiled, key, fn, *data):
    """A call of the compiled function; its compile time is kept apart."""
    start = time.perf_counter()
    try:
        program = jax.jit(fn).lower(*data).compile()
    except Exception as error:
        text = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"

        def fail():
            raise RuntimeError(text)

        return fail
    compiled[key] = time.perf_counter() - start
    return lambda: program(*data)


def _dtype(dtype) -> str:
    return np.dtype(dtype).name


def _lane(out, i, host):
    found = out[i] if host else [x[i] for x in out]
    return [None if x is None else np.asarray(x, np.float64) for x in found]


def _worst(wide, entry, host) -> float:
    count = len(entry.out) if host else wide[1].shape[0]
    return max(
        kkt([x[i] for x in wide], *_lane(entry.out, i, host))
        for i in range(count)
        if _lane(entry.out, i, host)[0] is not None
    )


def _reference_gradients(wide, entry, c):
    if not isinstance(entry, Timing):
        return {}
    exact = {}
    for i in range(min(CHECKED, wide[1].shape[0])):
        x, _, z = _lane(entry.out, i, False)
        gradient = reference([v[i] for v in wide], x, z, c)
        if np.abs(gradient).max() > 1e-6:
            exact[i] = gradient
    return exact


def _gradient_error(entry, exact) -> float | None:
    found = np.asarray(entry.out[1], np.float64)
    errors = [np.abs(found[i] - g).max() / np.abs(g).max() for i, g in exact.items()]
    return float(np.median(errors)) if errors else None


def plot(figures) -> None:
    """Forward times by size, one panel a cell."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = list(dict.fromkeys(f["name"].split(":")[0] for f in figures))
    wide = 4
    tall = -(-len(labels) // wide)
    fig, axes = plt.subplots(
        tall, wide, figsize=(4 * wide, 2.6 * tall), layout="constrained", squeeze=False
    )
    for ax in axes.flat[len(labels) :]:
        ax.set_axis_off()
    for ax, label in zip(axes.flat, labels, strict=False):
        entries = [f for f in figures if f["name"] == f"{label}: forward"]
        names = [f["method"] for f in entries]
        colors = ["tab:blue" if name == OURS else "tab:grey" for name in names]
        ax.barh(range(len(names)), [f["value"] for f in entries], color=colors)
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.set_xlabel("forward, us a problem")
        ax.set_title(label, fontsize=10)
    fig.savefig(RESULTS / "qp_layer.png", dpi=120)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true", help="all sizes and batches")
    parser.add_argument("--only", type=int, default=None, help="this number of variables alone")
    parser.add_argument("--dtype", choices=("float64", "float32"), help="this one alone")
    options = parser.parse_args()
    start = time.perf_counter()
    rows, figures = [], []
    cells = CELLS + (FULL if options.full else ())
    for dtype in (np.float64, np.float32):
        with jax.enable_x64(dtype == np.float64):
            for n, lanes in cells:
                others = options.only not in (None, n) or options.dtype not in (None, _dtype(dtype))
                if others or (dtype == np.float32 and lanes == 1):
                    continue
                more_rows, more_figures = cell(n, lanes, dtype)
                rows, figures = rows + more_rows, figures + more_figures
                save(rows, figures, time.perf_counter() - start, options.full)
    print((RESULTS / "qp_layer.md").read_text())


def save(rows, figures, seconds: float, full: bool) -> None:
    """What has been measured so far, beside cells of earlier runs that this one has not reached."""
    rows, figures = earlier(rows, figures)
    rows = sorted(rows, key=_order)
    header = ["problem", "method", "forward us", "qpax's over it", "worst residual", "both us"]
    header += ["both over forward", "gradient error", "compile s", "compile both s"]
    text = "# Quadratic programs as a layer\n\n" + __doc__.split("\n\n", 1)[1].rsplit("\n\n", 1)[0]
    packages = ("jaxsolve", "jax", *(p for p in ("qpax", "jaxopt", "mpax") if _installed(p)))
    write(
        "qp_layer",
        figures,
        text + "\n\n" + markdown(header, rows),
        seconds=seconds,
        dtype="float64 and float32",
        packages=packages,
        full=full,
    )
    plot(figures)


def earlier(rows, figures) -> tuple[list, list]:
    """With the cells of the last results that were not measured anew: a cell is of one run."""
    table, record = RESULTS / "qp_layer.md", RESULTS / "qp_layer.json"
    if not record.exists():
        return rows, figures
    new = {row[0] for row in rows}
    lines = [line.strip("| ").split(" | ") for line in table.read_text().splitlines()]
    kept = [line for line in lines if line[0].startswith("n = ") and line[0] not in new]
    old = json.loads(record.read_text())["figures"]
    return rows + kept, figures + [f for f in old if f["name"].split(":")[0] not in new]


def _order(row: list) -> tuple:
    """float64 first, then by size; a cell's methods stay in their order."""
    size, batch, dtype = (part.split()[-1] for part in row[0].split(", "))
    return dtype != "float64", int(size), int(batch)


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


if __name__ == "__main__":
    main()
