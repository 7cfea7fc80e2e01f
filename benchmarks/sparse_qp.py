"""A sparse quadratic program: `OperatorSplitting` on BCOO matrices beside OSQP's C code.

    taskset -c 0 python -m benchmarks.sparse_qp [--variables N] [--rows M] [--density D]

Both are asked for the same tolerance (1e-8, absolute and relative). Times are of a second call;
OSQP's are its own figures, of setup and solve. The derivative is a gradient in q, by MINRES.
"""

import argparse
import importlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCOO

import jaxsolve as js

from .side_by_side import figure, markdown, number, write

TOLERANCE = 1e-8


def programs(n: int, m: int, density: float):
    """Name -> P, q, G, h: a diagonally dominant P, and one that is a product FF'."""
    rng = np.random.default_rng(0)

    def random(rows, columns, part):
        return scipy.sparse.random(
            rows, columns, density=part, random_state=rng, data_rvs=rng.standard_normal
        )

    half = random(n, n, density / 2)
    dominant = half + half.T
    dominant += scipy.sparse.diags(np.asarray(abs(dominant).sum(1)).ravel() + 1e-2)
    factor = random(n, n, density)
    for name, P in (
        ("diagonally dominant", dominant),
        ("FF' + 0.01", factor @ factor.T + 1e-2 * scipy.sparse.eye(n)),
    ):
        G = random(m, n, density)
        h = G @ rng.normal(size=n) + rng.uniform(0, 1, m)
        yield name, P.tocsc(), rng.normal(size=n), G.tocsc(), h


def bcoo(matrix) -> BCOO:
    matrix = matrix.tocsr().tocoo()
    places = np.stack([matrix.row, matrix.col], axis=1).astype(np.int32)
    return BCOO((jnp.asarray(matrix.data), jnp.asarray(places)), shape=matrix.shape)


def second_call(fn, *args):
    """Seconds, and the result."""
    jax.block_until_ready(fn(*args))
    start = time.perf_counter()
    out = jax.block_until_ready(fn(*args))
    return time.perf_counter() - start, out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variables", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--density", type=float, default=1e-3)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    start, rows, figures = time.perf_counter(), [], []
    for name, P, q, G, h in programs(options.variables, options.rows, options.density):
        sparse_P, sparse_G = bcoo(P), bcoo(G)

        @jax.jit
        def solve(q, h, P=sparse_P, G=sparse_G):
            problem = js.QuadraticProgram(P, q, G=G, h=h)
            return js.solve(problem, tolerance=TOLERANCE, throw=False)

        data = jnp.asarray(q), jnp.asarray(h)
        seconds, found = second_call(solve, *data)
        slope, _ = second_call(
            jax.jit(jax.grad(lambda q, h, solve=solve: jnp.sum(solve(q, h).value ** 2))), *data
        )
        residual = float(found.stats.residual.relative)
        rows.append([name, "jaxsolve", number(seconds), str(int(found.stats.steps))])
        rows[-1] += [number(residual), number(slope)]
        osqp = importlib.import_module("osqp")
        solver = osqp.OSQP()
        solver.setup(
            scipy.sparse.triu(P).tocsc(),
            q,
            G,
            np.full(h.size, -np.inf),
            h,
            verbose=False,
            eps_abs=TOLERANCE,
            eps_rel=TOLERANCE,
            max_iter=100_000,
            polishing=False,
        )
        info = solver.solve().info
        total = info.setup_time + info.solve_time
        rows.append([name, "OSQP", number(total), str(info.iter), info.status, "-"])
        figures += [
            figure(f"{name}: a solve", seconds, "s", "jaxsolve", total),
            figure(f"{name}: solve and gradient", slope, "s", "jaxsolve"),
            figure(f"{name}: a solve", total, "s", "OSQP"),
        ]
    header = ["P", "solver", "seconds", "steps", "residual", "with the gradient, seconds"]
    size = f"{options.variables} variables, {options.rows} rows, density {options.density}, float64"
    text = "# A sparse quadratic program\n\n" + (__doc__ or "").split("\n\n")[2]
    table = f"{text}\n{size}.\n\n{markdown(header, rows)}"
    seconds = time.perf_counter() - start
    packages = ("jaxsolve", "jax", "osqp")
    write("sparse_qp", figures, table, seconds=seconds, dtype="float64", packages=packages)
    print(table)


if __name__ == "__main__":
    main()
