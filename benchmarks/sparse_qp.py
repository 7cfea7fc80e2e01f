"""A sparse quadratic program: `OperatorSplitting` on BCOO matrices beside OSQP's C code.

    python benchmarks/sparse_qp.py [--variables N] [--rows M] [--density D] [--skip-osqp]

Both are asked for the same tolerance (1e-8, absolute and relative). Times are of a second call;
OSQP's are its own figures, of setup and solve. The derivative is a gradient in q, by MINRES.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCOO

import jaxsolve as js

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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variables", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--density", type=float, default=1e-3)
    parser.add_argument("--skip-osqp", action="store_true")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print("| P | solver | seconds | steps | residual | gradient, seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
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
        print(
            f"| {name} | jaxsolve | {seconds:.2f} | {int(found.stats.steps)} | {residual:.1e} | "
            f"{slope:.2f} |"
        )
        if options.skip_osqp:
            continue
        import osqp

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
        print(f"| {name} | OSQP | {total:.2f} | {info.iter} | {info.status} | |", flush=True)


if __name__ == "__main__":
    main()
