"""Linear least squares with many more rows than columns: sketches beside dense factorisations.

    minimise ||A x - b||,    A of condition number 1e6, b at the distance 1 from its range

float64. The error of the fit is ||A (x - x*)|| / ||b||, that of x is ||x - x*|| / ||x*||, both
against the solution that was planted. `SketchPreconditionedCG` is asked for a tolerance of 1e-8,
the default, and of 1e-12; sketches have 8 rows a column.

    taskset -c 0 python -m benchmarks.sketched
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

import jaxsolve as js

from .side_by_side import Timing, figure, interleaved, markdown, number, write

SHAPES = [(2**17, 100), (2**15, 400)]
CONDITION = 1e6
PEERS = ["jnp.linalg.lstsq", "QR by jnp.linalg.qr", "SciPy gelsd", "SciPy gelsy"]
OURS = "SketchPreconditionedCG, CountSketch, 1e-12"


def tall(m, n, seed=0):
    """A, b and the solution."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(m, n)))
    right, _ = np.linalg.qr(rng.normal(size=(n, n)))
    matrix = left * np.logspace(0, -np.log10(CONDITION), n) @ right.T
    truth, away = rng.normal(size=n), rng.normal(size=m)
    away -= left @ (left.T @ away)
    return matrix, matrix @ truth + away / np.linalg.norm(away), truth


def ours(solver, tolerance=None):
    """A compiled solve with a solver of the library: x and the steps taken."""

    def run(matrix, target):
        problem = js.LeastSquares(lambda x, a: a[0] @ x - a[1], (matrix, target))
        start = jnp.zeros_like(matrix[0])
        found = js.solve(problem, solver, start, tolerance=tolerance, throw=False)
        return found.value, found.stats.steps

    return jax.jit(run)


def by_qr(matrix, target):
    q, r = jnp.linalg.qr(matrix)
    return jax.scipy.linalg.solve_triangular(r, target @ q), 0


def by_cholesky(matrix, target):
    factor = jax.scipy.linalg.cho_factor(matrix.T @ matrix)
    return jax.scipy.linalg.cho_solve(factor, target @ matrix), 0


def methods(n):
    srht, count = js.SRHT(8 * n), js.CountSketch(8 * n)
    return {
        "SketchedLeastSquares, SRHT": ours(js.SketchedLeastSquares(srht)),
        "SketchPreconditionedCG, SRHT": ours(js.SketchPreconditionedCG(srht)),
        "SketchPreconditionedCG, SRHT, 1e-12": ours(js.SketchPreconditionedCG(srht), 1e-12),
        "SketchPreconditionedCG, CountSketch": ours(js.SketchPreconditionedCG(count)),
        OURS: ours(js.SketchPreconditionedCG(count), 1e-12),
        "Cholesky of A'A, jnp": jax.jit(by_cholesky),
        "jnp.linalg.lstsq": jax.jit(lambda A, b: (jnp.linalg.lstsq(A, b)[0], 0)),
        "QR by jnp.linalg.qr": jax.jit(by_qr),
        "SciPy gelsd": lambda A, b: (scipy.linalg.lstsq(A, b, lapack_driver="gelsd")[0], 0),
        "SciPy gelsy": lambda A, b: (scipy.linalg.lstsq(A, b, lapack_driver="gelsy")[0], 0),
    }


def cell(shape):
    """One size of problem: rows of the table and figures."""
    matrix, target, truth = tall(*shape)
    device = jnp.asarray(matrix), jnp.asarray(target)
    calls = {}
    for name, fn in methods(shape[1]).items():
        data = (matrix, target) if name.startswith("SciPy") else device
        calls[name] = lambda fn=fn, data=data: fn(*data)
    timed = interleaved(calls, turns=5)
    label = f"{shape[0]} x {shape[1]}"
    times = [t.cpu for t in (timed[peer] for peer in PEERS) if isinstance(t, Timing)]
    rows, figures = [], []
    for name, t in timed.items():
        if not isinstance(t, Timing):
            rows.append([label, name, t, *["-"] * 5])
            continue
        x, steps = np.asarray(t.out[0]), int(t.out[1])
        fit = np.linalg.norm(matrix @ (x - truth)) / np.linalg.norm(target)
        far = np.linalg.norm(x - truth) / np.linalg.norm(truth)
        rows.append(
            [
                label,
                name,
                number(t.cpu),
                number(t.milliseconds),
                str(steps) if steps else "-",
                number(fit, 2),
                number(far, 2),
                number(t.first_seconds, 2),
            ]
        )
        baseline = min(times) if name == OURS else None
        figures += [
            figure(f"{label}: time", t.cpu, "CPU ms", name, baseline),
            figure(f"{label}: error of the fit", fit, "of ||b||", name),
            figure(f"{label}: error of x", far, "of ||x||", name),
        ]
    return rows, figures


def main() -> None:
    begun = time.perf_counter()
    rows, figures = [], []
    with jax.enable_x64(True):
        for shape in SHAPES:
            more_rows, more_figures = cell(shape)
            rows += more_rows
            figures += more_figures
    header = ["A", "method", "CPU ms", "on the clock", "steps", "error of the fit", "error of x"]
    header += ["first call s"]
    table = "# Tall linear least squares\n\n" + __doc__.split("\n\n", 1)[1].rsplit("\n\n", 1)[0]
    table += "\n\n" + markdown(header, rows)
    write(
        "sketched",
        figures,
        table,
        seconds=time.perf_counter() - begun,
        dtype="float64",
        packages=("jaxsolve", "jax", "numpy", "scipy"),
    )
    print(table)


if __name__ == "__main__":
    main()
