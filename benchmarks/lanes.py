"""Lane refill against a plain vmapped `while_loop`, side by side in one run.

A step factors an n x n matrix: Newton's method, damped, on x'Ax / 2 + sum(log cosh x) - b'x. It
stops after the number of steps that is drawn for the lane, so that the work is known: equal counts,
geometric ones, or one lane in twenty that needs twenty times as many.

    python -m benchmarks.lanes [--quick]

Writes benchmarks/results/lanes.json, lanes.md and lanes.png. Each time is the median of seven
interleaved runs, by the clock and of CPU time: on a shared machine the second is the steadier one.
"""

import argparse
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsolve.core.loop import Program, Refill, run
from jaxsolve.core.vectors import largest, matmul

from .side_by_side import RESULTS, figure, interleaved, markdown, number, write

BATCHES = (2, 16, 128, 512, 4096)
SIZES = (3, 10, 30)
COUNTS = ("equal", "geometric", "one in 20")


def init(data):
    _, b, count = data
    return (jnp.zeros_like(b), largest(b), jnp.zeros_like(count)), count <= 0


def step(data, carry):
    A, b, count = data
    x, measure, steps = carry
    slope = jnp.tanh(x)
    gradient = matmul(A, x) + slope - b
    factor = lax.linalg.cholesky(A + jnp.diag(1 - slope * slope))
    half = lax.linalg.triangular_solve(factor, gradient[:, None], left_side=True, lower=True)
    move = lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)[
        :, 0
    ]
    damping = 1 / (1 + measure)
    measure = largest(gradient)
    return (x - damping * move, measure, steps + 1), steps + 1 >= count


def finish(data, carry):
    return carry


def ours(data):
    return jax.vmap(lambda lane: run(Program(init, step, finish), lane, lanes=Refill()))(data)


def plain(data):
    def one(lane):
        carry, _ = lax.while_loop(
            lambda loop: ~loop[1], lambda loop: step(lane, loop[0]), init(lane)
        )
        return finish(lane, carry)

    return jax.vmap(one)(data)


def draw(batch, n, counts, dtype, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(batch, n, n))
    A = root @ root.transpose(0, 2, 1) / n + np.eye(n)
    b = rng.normal(size=(batch, n))
    if counts == "equal":
        number = np.full(batch, 10)
    elif counts == "geometric":
        number = rng.geometric(0.1, batch)
    else:
        number = np.full(batch, 5)
        number[rng.permutation(batch)[: max(1, batch // 20)]] = 100
    return jnp.asarray(A, dtype), jnp.asarray(b, dtype), jnp.asarray(number, jnp.int32)


def compare(batch, n, counts, dtype, turns):
    """Timings of the plain loop and of ours, whose results are compared first."""
    data = draw(batch, n, counts, dtype)
    fns = {
        "plain": jax.jit(plain).lower(data).compile(),
        "ours": jax.jit(ours).lower(data).compile(),
    }
    timed = interleaved({name: lambda fn=fn: fn(data) for name, fn in fns.items()}, turns)
    close = 1000 * float(jnp.finfo(dtype).eps)
    for x, y in zip(timed["plain"].out, timed["ours"].out, strict=True):
        np.testing.assert_allclose(x, y, rtol=close, atol=close)
    return timed["plain"], timed["ours"]


def compile_seconds(batch, n, dtype, turns):
    """Median seconds to trace and compile the plain loop and ours, by the clock and of CPU time."""
    data = draw(batch, n, "equal", dtype)
    times = [[], []]
    for _ in range(turns):
        for fn, found in zip((plain, ours), times, strict=True):
            jax.clear_caches()
            clock, cpu = time.perf_counter(), time.process_time()
            jax.jit(lambda data, fn=fn: fn(data)).lower(data).compile()
            found.append((time.perf_counter() - clock, time.process_time() - cpu))
    return np.median(times, axis=1)


def plot(cells):
    """Speed-up over the plain loop by batch, a panel a size; CPU time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(SIZES), figsize=(11, 3.6), sharey=True)
    for n, panel in zip(SIZES, panels, strict=True):
        for counts, colour in zip(COUNTS, ("tab:gray", "tab:blue", "tab:red"), strict=True):
            for dtype, style in (("float64", "-"), ("float32", "--")):
                line = [(k[3], v[1]) for k, v in cells.items() if k[:3] == (dtype, n, counts)]
                if line:
                    panel.plot(*zip(*line, strict=True), style, color=colour, label=counts)
        panel.set(xscale="log", yscale="log", title=f"n = {n}", xlabel="batch")
        panel.axhline(1, color="black", linewidth=0.5)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("speed-up over a plain while_loop")
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    panels[0].legend(unique.values(), unique.keys(), title="solid: float64")
    figure.tight_layout()
    figure.savefig(RESULTS / "lanes.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two batches, float64, three turns")
    quick = parser.parse_args().quick
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)
    turns = 3 if quick else 7
    figures, rows, cells, start = [], [], {}, time.time()

    def add(name, unit, values):
        for kind, (base, value) in values.items():
            figures.append(figure(f"{name}: {kind}", value, unit, "jaxsolve Refill()", base))

    dtypes = ("float64",) if quick else ("float64", "float32")
    batches = (16, 512) if quick else BATCHES
    for dtype, n, counts, batch in itertools.product(dtypes, SIZES, COUNTS, batches):
        base, own = compare(batch, n, counts, jnp.dtype(dtype), turns)
        name = f"{dtype}, n = {n}, {counts}, batch {batch}"
        values = {
            "time": (base.milliseconds, own.milliseconds),
            "CPU time": (base.cpu, own.cpu),
        }
        add(name, "ms", values)
        ratios = [a / b for a, b in values.values()]
        cells[dtype, n, counts, batch] = ratios
        rows.append([dtype, str(n), counts, str(batch), number(base.milliseconds)])
        rows[-1] += [number(own.milliseconds), *(f"{ratio:.2f}x" for ratio in ratios)]
        print(f"{name}: {ratios[0]:.2f}x by the clock, {ratios[1]:.2f}x in CPU time", flush=True)
    header = ["dtype", "n", "steps", "batch", "plain, ms", "ours, ms", "speed-up", "in CPU time"]
    table = markdown(header, rows)
    rows = []
    for n, batch in itertools.product(SIZES, (16, 4096)):
        base, own = compile_seconds(batch, n, jnp.float64, turns)
        add(
            f"n = {n}, batch {batch}: compile",
            "s",
            {"time": (base[0], own[0]), "CPU time": (base[1], own[1])},
        )
        rows.append([str(n), str(batch), *(number(x) for x in (base[0], own[0]))])
        rows[-1] += [f"{own[i] / base[i]:.2f}x" for i in (0, 1)]
        print(f"n = {n}, batch {batch}: compile {own[1] / base[1]:.2f}x in CPU time", flush=True)
    header = ["n", "batch", "plain, s", "ours, s", "ratio", "in CPU time"]
    table += "\nTime to trace and compile:\n\n" + markdown(header, rows)
    if quick:
        print(table)
        return
    write(
        "lanes",
        figures,
        table,
        seconds=time.time() - start,
        dtype="float32 and float64",
        packages=("jaxsolve", "jax"),
        full=True,
    )
    plot(cells)


if __name__ == "__main__":
    main()
