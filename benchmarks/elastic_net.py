"""Elastic nets to six digits: a whole path with folds, and single problems, against the peers.

    minimise  |Xw - b|^2 / (2 m) + weight |w|_1 + ridge |w|^2 / 2

Diabetes (442 x 10): 20 penalties from the least that leaves no feature down to a thousandth of it
x 20 folds, weight = ridge, float64: 400 fits, vmapped in JAX, `enet_path` fold by fold (warm starts
along the path). (The experiment `sparse-features` has 2000.) Random data with correlated features:
one fit, weight a tenth of the largest and no ridge. A method is given the loosest of its tolerances
at which all coefficients are within 1e-6 of coordinate descent with tol 1e-14, relative to the
largest, or its tightest; its row says how far off it is then. The gradient is that of the sum of
squared weights in weight and ridge, forward pass included. jaxopt has at most 2000 steps; its
coordinate descent is given the column step sizes of its own objective, m times those that it takes
by default.

    taskset -c 0 python -m benchmarks.elastic_net
"""

import time
import warnings

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import enet_path

import jaxsolve as js

from .side_by_side import Timing, figure, interleaved, markdown, number, write

GOAL = 1e-6
STEPS = 2000
OURS = {
    "jaxsolve ProximalGradient": js.ProximalGradient(),
    "jaxsolve BlockCoordinateDescent": js.BlockCoordinateDescent(),
}
SCIKIT = "scikit-learn enet_path"
PEERS = ("jaxopt ProximalGradient", "jaxopt BlockCoordinateDescent")
TOLERANCES = {
    **dict.fromkeys(OURS, (1e-08, 1e-10, 1e-12)),
    SCIKIT: (1e-4, 1e-7, 1e-10),
    PEERS[0]: (1e-5, 1e-8),
    PEERS[1]: (1e-5, 1e-8),
}


def path():
    """Centred training parts of 20 folds, and 20 pairs (weight, ridge)."""
    x, b = load_diabetes(return_X_y=True)
    x, b = (x - x.mean(axis=0)) / x.std(axis=0), (b - b.mean()) / b.std()
    fold = np.random.default_rng(0).permutation(len(b)) % 20
    parts = []
    for k in range(20):
        rest = fold != k
        # Rows of zeros for what is left out, so that all parts have one shape.
        size = np.sqrt(len(b) / rest.sum())
        X, y = x - x[rest].mean(axis=0), b - b[rest].mean()
        parts.append((size * X * rest[:, None], size * y * rest))
    X, y = (np.stack(v) for v in zip(*parts, strict=True))
    total = np.logspace(0, -3, 20) * np.abs(x.T @ b).max() / len(b)
    return X, y, np.stack([total, total], axis=1)


def random(m, n):
    """One problem: features that share a factor, a tenth of them used."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(m, n)) + 0.5 * rng.normal(size=(m, 1))
    truth = np.where(np.arange(n) < n // 20, rng.normal(size=n), 0)
    y = X @ truth + 0.1 * rng.normal(size=m)
    weight = 0.1 * np.abs(X.T @ y).max() / m
    return X[None], y[None], np.array([[weight, 0.0]])


def squares(w, args):
    X, y = args
    return 0.5 * jnp.sum((jnp.matmul(X, w, precision="highest") - y) ** 2) / len(y)


class Columns(type(jaxopt.objective.least_squares)):
    def columnwise_lipschitz_const(self, data):
        return super().columnwise_lipschitz_const(data) / len(data[1])


def solver(method):
    """(X, y, pair, tolerance) -> weights of one fit."""
    if method in OURS:

        def run(X, y, pair, tolerance):
            penalty = js.penalties.ElasticNet(pair[0], pair[1])
            problem = js.Composite(squares, penalty, (X, y))
            start = jnp.zeros_like(X[0])
            chosen, limits = OURS[method], {"tolerance": tolerance, "throw": False}
            return js.solve(problem, chosen, start, **limits).value

        return run

    def run(X, y, pair, tolerance):
        start = jnp.zeros_like(X[0])
        # jaxopt's elastic net is weight (|w|_1 + ratio |w|^2 / 2).
        pair = (pair[0], pair[1] / pair[0])
        if method == PEERS[0]:
            found = jaxopt.ProximalGradient(
                lambda w, X, y: squares(w, (X, y)),
                jaxopt.prox.prox_elastic_net,
                tol=tolerance,
                maxiter=STEPS,
            )
            return found.run(start, pair, X, y).params
        found = jaxopt.BlockCoordinateDescent(
            Columns(),
            jaxopt.prox.prox_elastic_net,
            tol=tolerance,
            maxiter=STEPS,
        )
        return found.run(start, pair, (X, y)).params

    return run


def coordinate_descent(X, y, pairs, tol):
    out = []
    ratio, total = float(pairs[0, 0] / pairs[0].sum()), pairs.sum(axis=1)
    for fold in range(len(X)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = enet_path(
                X[fold], y[fold], l1_ratio=ratio, alphas=total, tol=tol, max_iter=200_000
            )
        out.append(found[1].T)
    return np.stack(out)


def cell(label, X, y, pairs):
    """One set of fits: rows and figures."""
    exact = coordinate_descent(X, y, pairs, 1e-14)
    size = np.abs(exact).max()
    data = tuple(jnp.asarray(v) for v in (X, y, pairs))

    def all_fits(method):
        one = jax.vmap(solver(method), (None, None, 0, None))
        return lambda X, y, pairs, tolerance: jax.vmap(one, (0, 0, None, None))(
            X, y, pairs, tolerance
        )

    def call(method, tolerance):
        if method == SCIKIT:
            return lambda: coordinate_descent(X, y, pairs, tolerance)
        # jaxopt's tolerances are part of its program.
        if method in OURS:
            compiled = jax.jit(all_fits(method))
            return lambda: compiled(*data, tolerance)
        compiled = jax.jit(lambda *data: all_fits(method)(*data, tolerance))
        return lambda: compiled(*data)

    def away(found):
        return float(np.abs(np.asarray(found) - exact).max() / size)

    calls, tolerances, first = {}, {}, {}
    for method in (*OURS, SCIKIT, *PEERS):
        for tolerance in TOLERANCES[method]:
            forward = call(method, tolerance)
            calls[method], tolerances[method] = forward, tolerance
            begun = time.perf_counter()
            error = away(forward())
            # With its compilation, which is over when the turns begin.
            first.setdefault(method, time.perf_counter() - begun)
            if error <= GOAL:
                break
    for method in (*OURS, *PEERS):

        def total(pairs, fits=all_fits(method), tolerance=tolerances[method]):
            return jnp.sum(fits(data[0], data[1], pairs, tolerance) ** 2)

        calls[f"gradient {method}"] = lambda fn=jax.jit(jax.grad(total)): fn(data[2])
    timings = interleaved(calls, turns=2)
    rows, figures = [], []
    there = [
        t.cpu
        for m in (SCIKIT, *PEERS)
        if isinstance(t := timings[m], Timing) and away(t.out) <= GOAL
    ]
    for method in (*OURS, SCIKIT, *PEERS):
        t, back = timings[method], timings.get(f"gradient {method}")
        if not isinstance(t, Timing):
            rows.append([label, method, "-", "-", str(t), "-", "-", "-"])
            continue
        baseline = min(there) if method in OURS and there else None
        both = back.cpu if isinstance(back, Timing) else None
        rows.append(
            [
                label,
                method,
                number(tolerances[method], 1),
                number(away(t.out), 2),
                number(t.cpu),
                number(t.milliseconds),
                number(both) if both else ("-" if back is None else "raises"),
                number(first[method], 2),
            ]
        )
        figures.append(figure(f"{label}: all fits", t.cpu, "CPU ms", method, baseline))
        figures.append(figure(f"{label}: worst coefficient", away(t.out), "", method, GOAL))
        if both:
            figures.append(figure(f"{label}: with the gradient", both, "CPU ms", method))
    return rows, figures


def main() -> None:
    start = time.perf_counter()
    rows, figures = [], []
    with jax.enable_x64(True):
        cells = {
            "diabetes, 400 fits": path(),
            "300 x 100": random(300, 100),
            "200 x 1000": random(200, 1000),
        }
        for label, (X, y, pairs) in cells.items():
            more_rows, more_figures = cell(label, X, y, pairs)
            rows += more_rows
            figures += more_figures
    header = ["problem", "method", "tolerance", "worst coefficient", "CPU ms", "on the clock"]
    header += ["with the gradient, CPU ms", "first call s"]
    text = "# Elastic nets\n\n" + __doc__.split("\n\n", 1)[1].rsplit("\n\n", 1)[0]
    text += "\n\n" + markdown(header, rows)
    packages = ("jaxsolve", "jax", "jaxopt", "scikit-learn")
    seconds = time.perf_counter() - start
    write("elastic_net", figures, text, seconds=seconds, dtype="float64", packages=packages)
    print(text)


if __name__ == "__main__":
    main()
