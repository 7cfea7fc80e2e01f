"""Batches of linear and of second-order cone programs: under vmap, against peers and loops of C.

512 programs of 50 variables, float64, default settings but where said. Linear: 10 equalities, 60
inequalities, 50 of the 70 active. Cones: 10 equalities, 20 inequalities, 10 second-order cones of 6
rows. Each has a planted strictly complementary solution. jaxopt solves linear programs by OSQP
(P = 0), mpax by PDHG at 1e-6; neither takes second-order cones, and both get the first 8 programs
only: a batch takes as long as its slowest lane. Clarabel and HiGHS are called in a Python loop with
matrices that were made before the clock starts. The error is the largest distance from the planted
optimal value, over 1 + |value|, of all programs; violation is that of the constraints.

    taskset -c 0 python -m benchmarks.cones
"""

import importlib
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

import jaxsolve as js

from .side_by_side import Timing, figure, interleaved, markdown, number, write

BATCH, SMALL, N, EQUALITIES, ROWS = 512, 8, 50, 10, 60
CONES = (js.Nonnegative(20), *[js.SecondOrder(6)] * 10)
OURS = "jaxsolve InteriorPoint"


def linear(rng) -> dict:
    """A vertex with as many active rows as variables, and positive multipliers."""
    A, G = rng.normal(size=(EQUALITIES, N)), rng.normal(size=(ROWS, N))
    x, y = rng.normal(size=N), rng.normal(size=EQUALITIES)
    active = np.arange(ROWS) < N - EQUALITIES
    z = np.where(active, rng.uniform(0.2, 1, ROWS), 0)
    h = G @ x + np.where(active, 0, rng.uniform(0.2, 1, ROWS))
    return {"q": -A.T @ y - G.T @ z, "A": A, "b": A @ x, "G": G, "h": h, "x": x}


def cones(rng) -> dict:
    """s and z on the boundary of each curved cone, opposite to each other."""
    s, z = [rng.uniform(0.2, 1, 20)], [rng.uniform(0.2, 1, 20)]
    s[0][:10], z[0][10:] = 0, 0
    for _ in CONES[1:]:
        u = rng.normal(size=5)
        u = u / np.linalg.norm(u)
        first, second = rng.uniform(0.5, 2, 2)
        s.append(first * np.append(1, u))
        z.append(second * np.append(1, -u))
    s, z = np.concatenate(s), np.concatenate(z)
    A, G = rng.normal(size=(EQUALITIES, N)), rng.normal(size=(s.size, N))
    x, y = rng.normal(size=N), rng.normal(size=EQUALITIES)
    return {"q": -A.T @ y - G.T @ z, "A": A, "b": A @ x, "G": G, "h": G @ x + s, "x": x}


def ours_linear(q, A, b, G, h):
    return js.solve(js.LinearProgram(q, A=A, b=b, G=G, h=h), throw=False).value


def ours_cones(q, A, b, G, h):
    return js.solve(js.ConeProgram(None, q, A=A, b=b, G=G, h=h, cones=CONES), throw=False).value


def by_splitting(q, A, b, G, h):
    problem = js.ConeProgram(None, q, A=A, b=b, G=G, h=h, cones=CONES)
    return js.solve(problem, js.OperatorSplitting(), throw=False).value


def by_osqp(jaxopt, q, A, b, G, h):
    solver = jaxopt.OSQP()
    P = jnp.zeros((N, N), q.dtype)
    return solver.run(params_obj=(P, q), params_eq=(A, b), params_ineq=(G, h)).params.primal


def by_mpax(mpax, q, A, b, G, h):
    # mpax takes Gx >= h.
    free = jnp.full_like(q, jnp.inf)
    program = mpax.create_lp(q, A, b, -G, -h, -free, free, use_sparse_matrix=False)
    return mpax.r2HPDHG(eps_abs=1e-6, eps_rel=1e-6).optimize(program).primal_solution


def by_clarabel(programs: list[dict], curved: bool):
    """A call that solves all, their matrices made."""
    clarabel = importlib.import_module("clarabel")
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    kinds = [clarabel.ZeroConeT(EQUALITIES)]
    if curved:
        kinds += [clarabel.NonnegativeConeT(20), *[clarabel.SecondOrderConeT(6)] * 10]
    else:
        kinds += [clarabel.NonnegativeConeT(ROWS)]
    P = scipy.sparse.csc_matrix((N, N))
    data = [
        (
            d["q"],
            scipy.sparse.csc_matrix(np.concatenate([d["A"], d["G"]])),
            np.concatenate([d["b"], d["h"]]),
        )
        for d in programs
    ]
    return lambda: np.stack(
        [clarabel.DefaultSolver(P, q, M, e, kinds, settings).solve().x for q, M, e in data]
    )


def by_highs(programs: list[dict]):
    """A call that solves all, their models made."""
    highspy = importlib.import_module("highspy")
    models = []
    for d in programs:
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = N, EQUALITIES + ROWS
        model.col_cost_ = d["q"]
        model.col_lower_, model.col_upper_ = np.full(N, -np.inf), np.full(N, np.inf)
        model.row_lower_ = np.concatenate([d["b"], np.full(ROWS, -np.inf)])
        model.row_upper_ = np.concatenate([d["b"], d["h"]])
        matrix = scipy.sparse.csc_matrix(np.concatenate([d["A"], d["G"]]))
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_, model.a_matrix_.index_ = matrix.indptr, matrix.indices
        model.a_matrix_.value_ = matrix.data
        models.append(model)
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)

    def solve(model):
        solver.passModel(model)
        solver.run()
        return solver.getSolution().col_value

    return lambda: np.stack([solve(model) for model in models])


def outside(curved: bool, slack: np.ndarray) -> np.ndarray:
    """How far slacks are outside the cone, a number a program."""
    if not curved:
        return np.maximum(0, -slack.min(1))
    worst, rest = np.maximum(0, -slack[:, :20].min(1)), slack[:, 20:].reshape(len(slack), 10, 6)
    curve = np.linalg.norm(rest[..., 1:], axis=-1) - rest[..., 0]
    return np.maximum(worst, curve.max(1))


def family(name: str, make, calls: dict, loops: dict, slow: dict) -> tuple[list, list]:
    """One kind of program: rows of the table, figures."""
    print(name, flush=True)
    rng, curved = np.random.default_rng(0), name == "cones"
    programs = [make(rng) for _ in range(BATCH)]
    data = {k: np.stack([d[k] for d in programs]) for k in programs[0]}
    inputs = [jnp.asarray(data[k]) for k in ("q", "A", "b", "G", "h")]
    sizes = {k: SMALL if k in slow else BATCH for k in (*calls, *slow, *loops)}
    run = {k: jax.jit(jax.vmap(fn)) for k, fn in (calls | slow).items()}
    run = {k: (lambda k=k, fn=fn: fn(*(x[: sizes[k]] for x in inputs))) for k, fn in run.items()}
    run |= {k: loop(programs) for k, loop in loops.items()}
    timed = interleaved(run, turns=3)
    rows, figures = [], []
    optimum = np.sum(data["q"] * data["x"], axis=1)
    each = {k: 1e3 * t.cpu / sizes[k] for k, t in timed.items() if isinstance(t, Timing)}
    for method, entry in timed.items():
        if isinstance(entry, str):
            rows.append([name, method, entry, *["-"] * 4])
            continue
        x = np.asarray(entry.out)
        own = {k: v[: len(x)] for k, v in data.items()}
        best = optimum[: len(x)]
        error = np.abs(np.sum(own["q"] * x, axis=1) - best) / (1 + np.abs(best))
        gap = np.abs(np.einsum("bij,bj->bi", own["A"], x) - own["b"]).max(1)
        slack = own["h"] - np.einsum("bij,bj->bi", own["G"], x)
        worst = np.maximum(gap, outside(curved, slack)).max()
        ratio = each[method] / each[OURS]
        rows.append(
            [name, method, number(each[method]), number(ratio), number(error.max()), number(worst)]
            + [number(entry.first_seconds)]
        )
        beat = min(t for k, t in each.items() if "jaxsolve" not in k) if method == OURS else None
        figures.append(figure(f"{name}: a program", each[method], "us", method, beat))
        figures.append(figure(f"{name}: error", float(error.max()), "relative", method))
        figures.append(figure(f"{name}: violation", float(worst), "max norm", method))
    return rows, figures


def main() -> None:
    start = time.perf_counter()
    jaxopt, mpax = (importlib.import_module(name) for name in ("jaxopt", "mpax"))
    with jax.enable_x64(True):
        rows, figures = family(
            "linear",
            linear,
            {OURS: ours_linear},
            {"Clarabel, loop": partial(by_clarabel, curved=False), "HiGHS, loop": by_highs},
            {"jaxopt OSQP": partial(by_osqp, jaxopt), "mpax r2HPDHG": partial(by_mpax, mpax)},
        )
        more_rows, more_figures = family(
            "cones",
            cones,
            {OURS: ours_cones, "jaxsolve OperatorSplitting": by_splitting},
            {"Clarabel, loop": partial(by_clarabel, curved=True)},
            {},
        )
    header = ["family", "method", "us a program (CPU)", "times ours", "error", "violation"]
    text = "# Batches of linear and cone programs\n\n" + (__doc__ or "").split("\n\n", 1)[1]
    table = text.rsplit("\n\n", 1)[0] + "\n\n"
    table += markdown([*header, "first call s"], rows + more_rows)
    write(
        "cones",
        figures + more_figures,
        table,
        seconds=time.perf_counter() - start,
        dtype="float64",
        packages=("jaxsolve", "jax", "jaxopt", "mpax", "clarabel", "highspy"),
    )
    print(table)


if __name__ == "__main__":
    main()
