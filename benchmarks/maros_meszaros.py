"""The Maros-Meszaros problems with at most 250 variables, at default settings, in float64.

    minimise  x'Px/2 + q'x + r   subject to   l <= Ax <= u

The objective error is |f - reference| / max(1, |reference|), the residual each part of the
recomputed KKT residual over its scale. A problem counts as solved at 1e-6 in both (2e-5 in the
objective of QSCAGR7, whose reference is no better). Nothing is set for a single problem.

    python -m benchmarks.maros_meszaros [FOLDER]
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

import jaxsolve as js

from .side_by_side import RESULTS, figure, markdown, number, write

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "maros_meszaros"


def load(path: Path):
    data = np.load(path)
    n, m = int(data["n"]), int(data["m"])

    def dense(field, shape):
        parts = tuple(data[f"{field}_{part}"] for part in ("data", "indices", "indptr"))
        return jnp.asarray(scipy.sparse.csc_matrix(parts, shape).toarray())

    fields = (jnp.asarray(data[name]) for name in ("q", "l", "u"))
    q, l, u = fields
    problem = js.QuadraticProgram.from_two_sided(dense("P", (n, n)), q, dense("A", (m, n)), l, u)
    return problem, n, m, float(data["r"]), float(data["objective"])


def main() -> None:
    start = time.perf_counter()
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    rows, figures, solved = [], [], 0
    paths = sorted(folder.glob("*.npz"))
    with jax.enable_x64(True):
        for path in paths:
            problem, n, m, r, objective = load(path)
            solution = js.solve(problem, throw=False)
            spent = []
            for _ in range(3):
                begin = time.perf_counter()
                jax.block_until_ready(js.solve(problem, throw=False).value)
                spent.append(time.perf_counter() - begin)
            value = float(problem.objective(solution.value)) + r
            error = abs(value - objective) / max(1.0, abs(objective))
            residual = float(solution.stats.residual.relative)
            loose = 2e-5 if path.stem == "QSCAGR7" else 1e-6
            good = bool(solution.success) and error <= loose and residual <= 1e-6
            solved += good
            seconds = float(np.median(spent))
            row = [path.stem, str(n), str(m), "yes" if good else "no", number(error)]
            rows.append([*row, number(residual), str(int(solution.stats.steps)), number(seconds)])
            print(*rows[-1], flush=True)
            name = path.stem
            figures += [
                figure(f"{name}: objective error", error, "relative", "jaxsolve", loose),
                figure(f"{name}: residual", residual, "relative", "jaxsolve", 1e-6),
                figure(f"{name}: steps", int(solution.stats.steps), "steps", "jaxsolve"),
                figure(f"{name}: seconds", seconds, "s", "jaxsolve"),
            ]
            save(rows, figures, solved, time.perf_counter() - start)
    print((RESULTS / "maros_meszaros.md").read_text())


def save(rows, figures, solved: int, seconds: float) -> None:
    """What has been solved so far: a run that is cut short leaves its problems."""
    total = figure("solved", solved, "problems", "jaxsolve", len(rows), better="higher")
    header = ["problem", "n", "m", "solved", "objective error", "residual", "steps", "seconds"]
    text = "# Maros-Meszaros\n\n" + __doc__.split("\n\n", 1)[1].rsplit("\n\n", 1)[0]
    write(
        "maros_meszaros",
        [*figures, total],
        f"{text}\n\nSolved: {solved} of {len(rows)}.\n\n" + markdown(header, rows),
        seconds=seconds,
        dtype="float64",
        packages=("jaxsolve", "jax", "scipy"),
    )


if __name__ == "__main__":
    main()
