"""Projections: simplex, l1 ball, polyhedra, Birkhoff polytope, isotonic cone, against the peers.

Forward and backward (the gradient of a weighted sum of squares of the projection). Each is checked:
the error is the largest distance from ours, which is measured by its own residual; a peer that
reaches less is listed with what it reaches, at its default settings; on polyhedra also with
jaxopt's OSQP at a tolerance of 1e-8 and up to 40 000 iterations.

    taskset -c 0 python -m benchmarks.projections [--full]
"""

import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsolve as js
from jaxsolve import sets

from .side_by_side import Timing, figure, interleaved, markdown, number, write

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import jaxopt

OURS = "jaxsolve"


def simplices(n):
    """Simplex, and an l1 ball in which a third of the entries stay."""
    radius = 0.1 * n

    def theirs(p):
        # optax's branches have two dtypes where the radius is a Python number under x64.
        return optax.projections.projection_l1_ball(p, jnp.asarray(radius, p.dtype))

    return {
        "simplex": {
            OURS: lambda p: js.project(p, sets.Simplex(1.0)),
            "optax": optax.projections.projection_simplex,
            "jaxopt": jaxopt.projection.projection_simplex,
        },
        "l1 ball": {
            OURS: lambda p: js.project(p, sets.L1Ball(radius)),
            "optax": theirs,
            "jaxopt": lambda p: jaxopt.projection.projection_l1_ball(p, radius),
        },
    }


def polyhedron(n, dtype):
    """x >= 0, n / 5 equalities, n / 2 inequalities, around a point that is inside."""
    rng = np.random.default_rng(n)
    inside = rng.uniform(0.1, 1.0, n)
    A, G = rng.normal(size=(n // 5, n)), rng.normal(size=(n // 2, n))
    b, h = A @ inside, G @ inside + rng.uniform(0.0, 0.5, n // 2)
    A, b, G, h = (jnp.asarray(x, dtype) for x in (A, b, G, h))
    rows = jnp.concatenate([G, -jnp.eye(n, dtype=dtype)])
    right = jnp.concatenate([h, jnp.zeros(n, dtype)])
    tight = jaxopt.OSQP(tol=1e-8, maxiter=40_000)

    def precisely(p):
        cost = (jnp.eye(n, dtype=dtype), -p)
        return tight.run(params_obj=cost, params_eq=(A, b), params_ineq=(rows, right)).params.primal

    return {
        OURS: lambda p: js.project(p, sets.Polyhedron(A=A, b=b, G=G, h=h, lower=0.0)),
        "jaxopt": lambda p: jaxopt.projection.projection_polyhedron(
            p, (A, b, rows, right), check_feasible=False
        ),
        "jaxopt, 1e-8": precisely,
    }


def birkhoff():
    return {
        OURS: lambda p: js.project(p, sets.Birkhoff()),
        "jaxopt": jaxopt.projection.projection_birkhoff,
    }


def isotonic():
    return {OURS: lambda p: js.project(p, sets.Isotonic()), "scikit-learn": None}


def isotonic_on_host(p):
    from sklearn.isotonic import isotonic_regression

    rows = np.atleast_2d(np.asarray(p))
    return lambda: jnp.asarray(np.stack([isotonic_regression(r) for r in rows]).reshape(p.shape))


def cell(name, methods, points, turns=7):
    """One row a method: forward and backward, and the distance from ours."""
    batch = points.ndim > 1 and not name.startswith("Birkhoff") or points.ndim > 2
    over = jax.vmap if batch else lambda f: f
    weight = jnp.cos(jnp.arange(points[0].size if batch else points.size, dtype=points.dtype))
    calls = {}
    for method, fn in methods.items():
        if fn is None:
            calls[f"f {method}"] = isotonic_on_host(points)
            continue

        def loss(p, fn=fn):
            return jnp.sum(weight * fn(p).ravel() ** 2)

        forward, backward = jax.jit(over(fn)), jax.jit(over(jax.grad(loss)))
        calls[f"f {method}"] = lambda forward=forward: forward(points)
        calls[f"b {method}"] = lambda backward=backward: backward(points)
    timings = interleaved(calls, turns)
    ours = timings[f"f {OURS}"]
    peers = [t.cpu for m in methods if m != OURS and isinstance(t := timings[f"f {m}"], Timing)]
    label = f"{name}, {points.dtype.name}"
    rows, figures = [], []
    for method in methods:
        t, back = timings[f"f {method}"], timings.get(f"b {method}")
        if not isinstance(t, Timing):
            rows.append([label, method, t, "-", "-", "-", "-"])
            continue
        far = float(jnp.max(jnp.abs(t.out - ours.out))) if isinstance(ours, Timing) else None
        backward = back.cpu if isinstance(back, Timing) and bool(jnp.any(back.out != 0)) else None
        ratio = t.cpu / ours.cpu if isinstance(ours, Timing) else None
        cells = [t.cpu, ratio, backward, far, t.first_seconds]
        rows.append([label, method, *map(number, cells)])
        if backward is None and isinstance(back, Timing):
            rows[-1][4] = "derivative is 0"
        figures.append(
            figure(
                f"{label}: forward",
                t.cpu,
                "CPU ms",
                method,
                min(peers) if method == OURS and peers else None,
            )
        )
        if backward:
            figures.append(figure(f"{label}: backward", backward, "CPU ms", method))
    return rows, figures


def cells(full, dtype):
    """(name, methods, points)"""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    lengths = (1_000, 10_000, 100_000, 1_000_000) if full else (1_000, 100_000)
    for n in lengths:
        for name, methods in simplices(n).items():
            yield f"{name} n = {n}", methods, draw(n)
    for n in (1_000, 10_000) if full else (1_000,):
        for name, methods in simplices(n).items():
            yield f"{name} n = {n}, 1000 lanes", methods, draw(1000, n)
    if dtype == np.float64:
        for n in (10, 50) if not full else (10, 50, 200):
            yield f"polyhedron n = {n}", polyhedron(n, dtype), 2 * draw(n)
        yield "polyhedron n = 20, 256 lanes", polyhedron(20, dtype), 2 * draw(256, 20)
        for n in (30, 100):
            yield f"Birkhoff {n} x {n}", birkhoff(), draw(n, n)
        for n in (10, 100, 1000, 10_000) if full else (10, 1000):
            yield f"isotonic n = {n}", isotonic(), jnp.asarray(np.linspace(0, 3, n)) + draw(n)
        yield "isotonic n = 100, 1000 lanes", isotonic(), draw(1000, 100)


def main() -> None:
    full = "--full" in sys.argv
    start = time.perf_counter()
    rows, figures = [], []
    for dtype in (np.float64, np.float32):
        with jax.enable_x64(dtype == np.float64):
            for name, methods, points in cells(full, dtype):
                new, found = cell(name, methods, points)
                print(markdown([""] * 7, new), flush=True)
                rows += new
                figures += found
    header = ["projection", "method", "forward (CPU ms)", "over ours", "backward (CPU ms)"]
    header += ["distance from ours", "first call (s)"]
    table = markdown(header, rows)
    write(
        "projections",
        figures,
        table,
        seconds=time.perf_counter() - start,
        dtype="float64, float32",
        packages=("jaxsolve", "jax", "jaxopt", "optax", "scikit-learn"),
        full=full,
    )


if __name__ == "__main__":
    main()
