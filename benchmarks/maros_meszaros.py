"""The Maros-Meszaros problems with at most 700 variables, at default settings, in float64.

    minimise  x'Px/2 + q'x + r   subject to   l <= Ax <= u

The objective error is |f - reference| / max(1, |reference|). The residual, the same for all
methods, is the largest violation of l <= Ax <= u over max(1, |Ax|); ours is besides judged by its
recomputed KKT residual, each part over the largest term in it (qpbenchmark's are absolute). A
problem counts as solved at 1e-6 in both (2e-5 in the objective of QSTAIR, QSCAGR7 and QGROW7, whose
references are no better). Nothing is set for a single problem. In float32 1e-3 is asked of both, at
the default tolerance of 1e-4; what is not reached is given with the solver's own verdict.

Peers, through qpsolvers but for mpax: Clarabel at its defaults, ProxQP at eps_abs 1e-8, qpax at its
defaults, jaxopt's OSQP at tol 1e-6, mpax's raPDHG at 1e-6 and at most 50 000 iterations. A call may
take 15 s. Seconds are of CPU time, of a second call, each method in a process of its own.

    taskset -c 0 python -m benchmarks.maros_meszaros
"""

import importlib
import multiprocessing
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

import jaxsolve as js

from .side_by_side import figure, markdown, number, write

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "maros_meszaros"
LOOSE = ("QSTAIR", "QSCAGR7", "QGROW7")
SECONDS = 15.0
OURS, SINGLE = "jaxsolve", "jaxsolve, float32"


class Program(NamedTuple):
    P: np.ndarray
    q: np.ndarray
    A: np.ndarray
    l: np.ndarray
    u: np.ndarray
    r: float
    objective: float


class Found(NamedTuple):
    """A solution and the seconds it took; of ours the KKT residual, steps and verdict."""

    x: np.ndarray
    seconds: float
    residual: float = 0.0
    steps: int = 0
    verdict: str = "successful"


def load(path: Path) -> Program:
    data = np.load(path)
    n, m = int(data["n"]), int(data["m"])

    def dense(field, shape):
        parts = tuple(data[f"{field}_{part}"] for part in ("data", "indices", "indptr"))
        return scipy.sparse.csc_matrix(parts, shape).toarray()

    ends = float(data["r"]), float(data["objective"])
    return Program(dense("P", (n, n)), data["q"], dense("A", (m, n)), data["l"], data["u"], *ends)


def by_us(program: Program) -> Found:
    problem = js.QuadraticProgram.from_two_sided(*(jnp.asarray(x) for x in program[:5]))
    solution, seconds = timed(lambda: js.solve(problem, throw=False))
    stats = solution.stats
    verdict = solution.summary().split()[1]
    x = np.asarray(solution.value, np.float64)
    return Found(x, seconds, float(stats.residual.relative), int(stats.steps), verdict)


def one_sided(program: Program) -> list[tuple[np.ndarray, np.ndarray]]:
    """(G, h) of Gx <= h, and (A, b) of the equalities."""
    equal = program.l == program.u
    above, below = np.isfinite(program.u) & ~equal, np.isfinite(program.l) & ~equal
    rows = np.concatenate([program.A[above], -program.A[below]])
    ends = np.concatenate([program.u[above], -program.l[below]])
    return [(rows, ends), (program.A[equal], program.u[equal])]


def by_qpsolvers(solver: str, **settings):
    def solve(program: Program) -> Found:
        qpsolvers = importlib.import_module("qpsolvers")

        sides = one_sided(program)
        ends = sides[0][1]
        matrices = [program.P, *(rows for rows, _ in sides)]
        if solver == "clarabel":
            matrices = [scipy.sparse.csc_matrix(x) for x in matrices]
        problem = qpsolvers.Problem(
            matrices[0],
            program.q,
            *((matrices[1], sides[0][1]) if len(ends) else (None, None)),
            *((matrices[2], sides[1][1]) if len(sides[1][1]) else (None, None)),
        )
        call = lambda: qpsolvers.solve_problem(problem, solver, **settings)
        found, seconds = timed(call)
        if found.x is None:
            raise RuntimeError("no solution")
        return Found(np.asarray(found.x), seconds)

    return solve


def by_mpax(program: Program) -> Found:
    mpax = importlib.import_module("mpax")

    # mpax takes Gx >= h.
    (rows, ends), equalities = one_sided(program)
    free = np.full(program.q.size, np.inf)
    parts = (program.P, program.q, *equalities, -rows, -ends, -free, free)
    made = mpax.create_qp(*(jnp.asarray(x) for x in parts), use_sparse_matrix=False)
    method = mpax.raPDHG(eps_abs=1e-6, eps_rel=1e-6, iteration_limit=50_000)
    found, seconds = timed(lambda: method.optimize(made))
    return Found(np.asarray(found.primal_solution), seconds)


def timed(call):
    """The second call's result, and how long it took."""
    jax.block_until_ready(jax.tree.leaves(call()))
    start = time.process_time()
    out = call()
    jax.block_until_ready(jax.tree.leaves(out))
    return out, time.process_time() - start


METHODS = {
    OURS: by_us,
    SINGLE: by_us,
    "Clarabel": by_qpsolvers("clarabel"),
    "ProxQP": by_qpsolvers("proxqp", eps_abs=1e-8),
    "qpax": by_qpsolvers("qpax"),
    "jaxopt OSQP": by_qpsolvers("jaxopt_osqp", tol=1e-6),
    "mpax": by_mpax,
}


def work(jobs, answers) -> None:
    """Solve what comes until None does."""
    for name, path in iter(jobs.get, None):
        jax.config.update("jax_enable_x64", name != SINGLE)
        try:
            answers.put(METHODS[name](load(path)))
        except Exception as error:
            answers.put(f"{type(error).__name__}: {error}")


class Worker:
    """A process for calls that may have to be cut short."""

    def __init__(self) -> None:
        self.process = None

    def __call__(self, name: str, path: Path) -> Found | str:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.jobs, self.answers = context.Queue(), context.Queue()
            self.process = context.Process(target=work, args=(self.jobs, self.answers), daemon=True)
            self.process.start()
        self.jobs.put((name, path))
        try:
            # Two calls, compilation, and the start of the process.
            return self.answers.get(timeout=2 * SECONDS + 30)
        except Exception:
            self.process.kill()
            self.process = None
            return f"over {SECONDS:.0f} s"


def judge(name: str, method: str, program: Program, found: Found) -> tuple[float, float, bool]:
    """Objective error, residual and whether that is solved."""
    asked = 1e-3 if method == SINGLE else 1e-6
    x = found.x
    value = float(x @ program.P @ x / 2 + program.q @ x + program.r)
    error = abs(value - program.objective) / max(1.0, abs(program.objective))
    row = program.A @ x
    outside = np.maximum(np.maximum(program.l - row, row - program.u), 0).max()
    residual = max(float(outside) / max(1.0, float(np.abs(row).max())), found.residual)
    loose = max(asked, 2e-5) if name in LOOSE else asked
    return error, residual, bool(error <= loose and residual <= asked)


def main() -> None:
    start = time.perf_counter()
    workers = {method: Worker() for method in METHODS}
    rows, figures = [], []
    solved = dict.fromkeys(METHODS, 0)
    for path in sorted(FOLDER.glob("*.npz")):
        name, program = path.stem, load(path)
        row = [name, str(program.q.size), str(program.l.size)]
        for method, worker in workers.items():
            found = worker(method, path)
            if isinstance(found, str):
                print(name, method, found[:100], flush=True)
                row += ["-"] * (4 if method == OURS else 2)
                continue
            error, residual, good = judge(name, method, program, found)
            solved[method] += good
            mark = number(error) if good else f"**{number(max(error, residual))}**"
            mark += "" if found.verdict == "successful" else f" {found.verdict}"
            if method == OURS:
                row += [mark, number(residual), str(found.steps), number(found.seconds)]
            else:
                row += [mark, number(found.seconds)]
            for kind, value, unit in (
                ("objective error", error, "relative"),
                ("residual", residual, "relative"),
                ("seconds", found.seconds, "s"),
            ):
                figures.append(figure(f"{name}: {kind}", value, unit, method))
        rows.append(row)
        print(*row, flush=True)
        save(rows, figures, solved, time.perf_counter() - start)


def save(rows, figures, solved: dict[str, int], seconds: float) -> None:
    """What has been solved so far: a run that is cut short leaves its problems."""
    others = max(n for name, n in solved.items() if name != OURS)
    totals = [
        figure("solved", n, "problems", name, others if name == OURS else None, better="higher")
        for name, n in solved.items()
    ]
    header = ["problem", "n", "m", "objective error", "residual", "steps", "s"]
    header += [h for name in METHODS if name != OURS for h in (name, "s")]
    counts = ", ".join(f"{name} {n}" for name, n in solved.items())
    text = "# Maros-Meszaros\n\n" + (__doc__ or "").split("\n\n", 1)[1].rsplit("\n\n", 1)[0]
    write(
        "maros_meszaros",
        [*figures, *totals],
        f"{text}\n\nSolved, of {len(rows)}: {counts}. In bold what is not: the larger of objective "
        "error and residual.\n\n" + markdown(header, rows),
        seconds=seconds,
        dtype="float64",
        packages=("jaxsolve", "jax", "clarabel", "proxsuite", "qpax", "jaxopt", "mpax"),
    )


if __name__ == "__main__":
    main()
