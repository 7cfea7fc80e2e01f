"""Problems written in cvxpy as layers: `from_cvxpy` against cvxpylayers, forward and backward.

cvxpylayers' own examples: the projection on the nonnegative orthant, the softmax as an entropy
maximisation, a quadratic program with equalities and bounds (as in OptNet), and a linear cost on a
ball with a bound (a second-order cone). float64, batches of 128, default settings of both. The
backward pass is the gradient of a weighted sum of the solutions in all parameters. The errors are
the largest distances from Clarabel's solutions at 1e-11 (first eight lanes); the gradients are
compared with cvxpylayers' at a tolerance of 1e-10. It cannot be jitted, and takes batches itself.

    taskset -c 0 python -m benchmarks.cvxpy_layers
"""

import importlib
import time

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np

import jaxsolve as js

from .side_by_side import Timing, figure, interleaved, markdown, number, write

OURS, PEER = "jaxsolve", "cvxpylayers"
BATCH, CHECKED, N = 128, 8, 10
TIGHT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}


def orthant():
    x, p = cp.Variable(N), cp.Parameter(N)
    return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), [p], x


def softmax():
    x, p = cp.Variable(N), cp.Parameter(N)
    objective = cp.Minimize(-p @ x - cp.sum(cp.entr(x)))
    return cp.Problem(objective, [cp.sum(x) == 1]), [p], x


def optnet():
    x, root, q, A, b = (
        cp.Variable(N),
        cp.Parameter((N, N)),
        cp.Parameter(N),
        cp.Parameter((3, N)),
        cp.Parameter(3),
    )
    objective = cp.Minimize(cp.sum_squares(root @ x) / 2 + q @ x)
    return cp.Problem(objective, [A @ x == b, x >= -1, x <= 1]), [root, q, A, b], x


def ball():
    x, c = cp.Variable(N), cp.Parameter(N)
    return cp.Problem(cp.Minimize(c @ x), [cp.norm(x) <= 1, x >= -0.3]), [c], x


EXAMPLES = {"orthant": orthant, "softmax": softmax, "OptNet": optnet, "ball": ball}


def draw(parameters) -> list[np.ndarray]:
    """A batch of values; sides of equalities that an x within the bounds meets."""
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(BATCH, *p.shape)) for p in parameters]
    if len(values) == 4:
        inside = rng.uniform(-0.8, 0.8, size=(BATCH, N, 1))
        values[3] = (values[2] @ inside)[..., 0]
    return values


def exact(problem, parameters, x, values) -> np.ndarray:
    """By Clarabel, the first lanes."""
    found = []
    for lane in range(CHECKED):
        for parameter, value in zip(parameters, values, strict=True):
            parameter.value = value[lane]
        problem.solve(solver=cp.CLARABEL, **TIGHT)
        found.append(x.value)
    return np.stack(found)


def row(name: str, make) -> tuple[list, list]:
    """One example: rows of the table, figures."""
    print(name, flush=True)
    problem, parameters, x = make()
    values = draw(parameters)
    inputs = [jnp.asarray(v) for v in values]
    weight = jnp.cos(jnp.arange(N, dtype=inputs[0].dtype))
    every = tuple(range(len(inputs)))

    layer = js.from_cvxpy(problem, parameters, [x])
    forward = {OURS: jax.jit(jax.vmap(lambda *p: layer(*p)[0]))}
    total = lambda *p: jnp.sum(jax.vmap(lambda *q: layer(*q)[0])(*p) @ weight)
    backward = {OURS: jax.jit(jax.grad(total, argnums=every))}
    peer = importlib.import_module("cvxpylayers.jax").CvxpyLayer(
        problem, parameters=parameters, variables=[x]
    )
    forward[PEER] = lambda *p: peer(*p)[0]
    backward[PEER] = jax.grad(lambda *p: jnp.sum(peer(*p)[0] @ weight), argnums=every)

    timed = interleaved({k: (lambda fn=fn: fn(*inputs)) for k, fn in forward.items()})
    both = interleaved({k: (lambda fn=fn: fn(*inputs)) for k, fn in backward.items()})
    expected = exact(problem, parameters, x, values)
    rows, figures = [], []
    ours, theirs = both[OURS], both[PEER]
    tight = lambda *p: jnp.sum(peer(*p, solver_args={"eps": 1e-10})[0] @ weight)
    gap = None
    if isinstance(ours, Timing):
        pairs = zip(ours.out, jax.grad(tight, argnums=every)(*inputs), strict=True)
        gap = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
    for method, entry in timed.items():
        if isinstance(entry, str):
            rows.append([name, method, entry, *["-"] * 4])
            continue
        twice = both[method].milliseconds if isinstance(both[method], Timing) else None
        error = float(np.abs(np.asarray(entry.out)[:CHECKED] - expected).max())
        rows.append(
            [name, method, number(entry.milliseconds), number(twice), number(error)]
            + [number(gap), number(entry.first_seconds)]
        )
        beat = timed[PEER].milliseconds if isinstance(timed[PEER], Timing) else None
        figures.append(figure(f"{name}: forward", entry.milliseconds, "ms", method, beat))
        beat = theirs.milliseconds if isinstance(theirs, Timing) else None
        figures.append(figure(f"{name}: backward", twice, "ms", method, beat))
        figures.append(figure(f"{name}: error", error, "max norm", method))
    figures.append(figure(f"{name}: gradients differ by", gap, "max norm", OURS, 1e-5))
    return rows, figures


def main() -> None:
    start = time.perf_counter()
    rows, figures = [], []
    with jax.enable_x64(True):
        for name, make in EXAMPLES.items():
            more_rows, more_figures = row(name, make)
            rows, figures = rows + more_rows, figures + more_figures
    header = ["example", "method", "forward ms", "backward ms", "error", "gradients differ by"]
    text = "# Problems written in cvxpy\n\n" + __doc__.split("\n\n", 1)[1].rsplit("\n\n", 1)[0]
    table = text + "\n\n" + markdown([*header, "first call s"], rows)
    write(
        "cvxpy_layers",
        figures,
        table,
        seconds=time.perf_counter() - start,
        dtype="float64",
        packages=("jaxsolve", "jax", "cvxpy", "cvxpylayers"),
    )
    print(table)


if __name__ == "__main__":
    main()
