"""Light Schroedinger Bridge on the regenerated benchmark: `python -m benchmarks.light_sb`.

Three tables, all in float64.

1. The speed of a fit. Adam as published (batches of 128, 10,000 steps, learning rate 1e-3, the
   parameters and the start of the paper: r_k at points of x1, S_k = 1) in one compiled scan, and
   `LightSB` on all points, to the loss on all points at which Adam ends, and on to stationarity.
2. cBW2-UVP in twelve cells, for three keys: `LightSB`, and the fit that starts at the truth.
   The published figures beside it are of other data (the paper's cannot be regenerated).
3. Recovery with 10^5 points: the divergence from the truth, and the error of the drift over t.
"""

import argparse
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsolve as js
from jaxsolve.transport.gaussian_mixture import GaussianMixtureBenchmark
from jaxsolve.transport.light_sb import LightSB

from .side_by_side import figure, interleaved, markdown, number, write

PUBLISHED = {
    (2, 0.1): 0.03, (16, 0.1): 0.08, (64, 0.1): 0.28, (128, 0.1): 0.60,
    (2, 1.0): 0.05, (16, 1.0): 0.09, (64, 1.0): 0.24, (128, 1.0): 0.62,
    (2, 10.0): 0.07, (16, 10.0): 0.11, (64, 10.0): 0.21, (128, 10.0): 0.37,
}  # fmt: skip
POINTS = {2: 100_000, 16: 50_000, 64: 40_000, 128: 40_000}
STEPS, BATCH = 10_000, 128


def pair(dim: int, epsilon: float, seed: int, points: int):
    """A benchmark with samples of it, each sample alone."""
    key = jax.random.key(seed)
    found = js.gaussian_mixture_benchmark(dim, epsilon, key, covariance=js.Diagonal())
    keys = jax.random.split(jax.random.fold_in(key, 7))
    x0, x1 = found.sample_source(keys[0], points), found.sample_target(keys[1], points)
    return found, js.SchrodingerBridge(x0, x1, epsilon=epsilon)


def loss(x0, x1, epsilon, parameters):
    """L as published, in log a / eps, r, log S."""
    raw, r, log_s = parameters
    log_a, s = raw / epsilon, jnp.exp(log_s)
    dot = partial(jnp.matmul, precision="highest")
    terms = log_a + (dot(0.5 * x0 * x0, s.T) + dot(x0, r.T)) / epsilon
    square = dot(0.5 * x1 * x1, (1 / s).T) - dot(x1, (r / s).T) + 0.5 * jnp.sum(r * r / s, axis=1)
    density = jnp.sum(log_s, axis=1) + x1.shape[1] * jnp.log(2 * jnp.pi * epsilon)
    parts = log_a - square / epsilon - 0.5 * density
    lse = jax.nn.logsumexp
    return jnp.mean(lse(terms, axis=1)) - jnp.mean(lse(parts, axis=1))


@partial(jax.jit, static_argnames=("components", "rate"))
def adam(x0, x1, epsilon, key, components: int, rate: float):
    """10,000 steps, and the loss on all points at their end."""
    optimiser = optax.adam(rate)
    first, second = jax.random.split(key)
    r = x1[jax.random.choice(first, x1.shape[0], (components,), replace=False)]
    raw = jnp.full(components, epsilon * -jnp.log(components))
    start = raw, r, jnp.zeros_like(r)

    def step(carry, key):
        parameters, moments = carry
        keys = jax.random.split(key)
        first = x0[jax.random.randint(keys[0], (BATCH,), 0, x0.shape[0])]
        second = x1[jax.random.randint(keys[1], (BATCH,), 0, x1.shape[0])]
        slope = jax.grad(lambda p: loss(first, second, epsilon, p))(parameters)
        changes, moments = optimiser.update(slope, moments)
        return (optax.apply_updates(parameters, changes), moments), None

    keys = jax.random.split(second, STEPS)
    (end, _), _ = jax.lax.scan(step, (start, optimiser.init(start)), keys)
    return loss(x0, x1, epsilon, end), end


def bridge_loss(problem: js.SchrodingerBridge, bridge: js.LightBridge):
    """L of a bridge."""
    raw = bridge.epsilon * bridge.log_weights
    return loss(problem.x0, problem.x1, bridge.epsilon, (raw, bridge.centres, bridge.shape))


def speed(figures: list, dim: int, epsilon: float, components: int, points: int) -> list[str]:
    """One row of the first table."""
    benchmark, problem = pair(dim, epsilon, 0, points)
    solver, key = LightSB(components), jax.random.key(1)
    end, parameters = adam(problem.x0, problem.x1, epsilon, key, components, 1e-3)

    def fit(steps: int | None = None):
        return js.solve(problem, solver, key=key, max_steps=steps, throw=False).value

    # The least number of steps at which the loss is Adam's, by bisection.
    low, high = 0, 400
    while low < high:
        middle = (low + high) // 2
        reached = float(bridge_loss(problem, fit(middle))) <= float(end)
        low, high = (low, middle) if reached else (middle + 1, high)
    calls: dict[str, Any] = {
        "adam": lambda: adam(problem.x0, problem.x1, epsilon, key, components, 1e-3),
        "to its loss": lambda: fit(low),
        "to the end": lambda: fit(),
    }
    timed: Any = interleaved(calls, turns=5)
    solution = js.solve(problem, solver, key=key, throw=False)
    raw, r, log_s = parameters
    theirs = js.LightBridge(raw / epsilon, r, log_s, jnp.asarray(epsilon), js.Diagonal())
    ratio = timed["adam"].cpu / timed["to its loss"].cpu
    name = f"D = {dim}, eps = {epsilon:g}, K = {components}, {points} points"
    figures.append(
        figure(f"{name}: time to Adam's loss", timed["to its loss"].cpu / 1e3, "s CPU", "LightSB",
               timed["adam"].cpu / 1e3, source="10,000 Adam steps of batch 128, same run")
    )  # fmt: skip
    return [
        name, number(timed["adam"].cpu / 1e3), number(timed["to its loss"].cpu / 1e3),
        number(ratio), str(low), number(timed["to the end"].cpu / 1e3),
        str(int(solution.stats.steps)), f"{float(solution.stats.residual.dual):.1e}",
        f"{float(end):.4f} / {float(bridge_loss(problem, solution.value)):.4f}",
        f"{number(float(benchmark.conditional_uvp(theirs)))} / "
        f"{number(float(benchmark.conditional_uvp(solution.value)))}",
    ]  # fmt: skip


def cell(figures: list, dim: int, epsilon: float, seeds: int, components: int) -> list[str]:
    """One row of the second table."""
    scores, led, divergences, seconds, worst = [], [], [], [], 0.0
    for seed in range(seeds):
        benchmark, problem = pair(dim, epsilon, seed, POINTS[dim])
        begun = time.perf_counter()
        solution = js.solve(problem, LightSB(components), throw=False)
        jax.block_until_ready(solution.value)
        seconds.append(time.perf_counter() - begun)
        worst = max(worst, float(solution.stats.residual.dual))
        scores.append(float(benchmark.conditional_uvp(solution.value)))
        divergences.append(float(benchmark.kl(solution.value, 20_000)))
        from_truth = js.solve(problem, LightSB(5), benchmark.bridge, throw=False)
        led.append(float(benchmark.conditional_uvp(from_truth.value)))
    figures.append(
        figure(f"cBW2-UVP, D = {dim}, eps = {epsilon:g}: worst ratio to the fit from the truth",
               float(np.max(np.divide(scores, led))), "", f"LightSB, {seeds} keys", 2.0,
               source="the goal")
    )  # fmt: skip
    each = " ".join(number(s) for s in scores)
    return [
        f"{dim}", f"{epsilon:g}", f"{POINTS[dim]}", each, " ".join(number(s) for s in led),
        number(PUBLISHED[dim, epsilon]), number(float(np.mean(divergences))),
        number(float(max(seconds))), f"{worst:.0e}",
    ]  # fmt: skip


def recovery(figures: list, dim: int, epsilon: float) -> list[str]:
    """One row of the third table."""
    benchmark, problem = pair(dim, epsilon, 0, 100_000)
    blind, led = (
        js.solve(problem, LightSB(5), init, throw=False).value for init in (None, benchmark.bridge)
    )
    divergences = [float(benchmark.kl(b)) for b in (blind, led)]
    path = float(benchmark.path_kl(blind))
    errors = [drift_error(benchmark, blind, t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    figures.append(
        figure(f"KL, D = {dim}, eps = {epsilon:g}, 10^5 points", divergences[0], "", "LightSB",
               1.5 * divergences[1], source="1.5 x that of the fit from the truth, same run")
    )  # fmt: skip
    return [f"{dim}", f"{epsilon:g}", *(number(d) for d in (*divergences, path)),
            " ".join(number(e, 2) for e in errors)]  # fmt: skip


def drift_error(benchmark: GaussianMixtureBenchmark, bridge: js.LightBridge, t: float) -> float:
    """The root mean square error of the drift at a time, over that of the drift itself."""
    zero = jnp.zeros((1, bridge.centres.shape[1]))
    still = js.LightBridge(zero[:, 0], zero, zero, bridge.epsilon, js.Diagonal())
    squares = [jnp.mean(benchmark.drift_errors(b, t, 20_000)) for b in (bridge, still)]
    return float(jnp.sqrt(squares[0] / squares[1]))


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--components", type=int, default=5)
    settings = parser.parse_args()
    begun, figures = time.perf_counter(), []
    first = [
        speed(figures, *case)
        for case in ((16, 1.0, 10, 10_000), (16, 0.1, 10, 10_000), (2, 1.0, 10, 10_000))
    ]
    cells = [(d, e) for e in (0.1, 1.0, 10.0) for d in (2, 16, 64, 128)]
    second = [cell(figures, *c, settings.seeds, settings.components) for c in cells]
    third = [recovery(figures, d, e) for d in (2, 16) for e in (0.1, 1.0, 10.0)]
    heads = (
        ["case", "Adam, s", "LightSB to its loss, s", "ratio", "steps", "to the end, s", "steps",
         "gradient", "loss, Adam / ours", "cBW2-UVP, Adam / ours"],
        ["D", "eps", "points", "cBW2-UVP, % (a key each)", "from the truth", "published (other "
         "data)", "KL, mean", "slowest fit, s (the first compiles)", "gradient, largest"],
        ["D", "eps", "KL", "from the truth", "by drifts (Girsanov)",
         "relative drift error at t = 0, 1/4, 1/2, 3/4, 1"],
    )  # fmt: skip
    text = "\n".join(
        [
            "Seconds are CPU time of the process, one core where it is pinned.\n",
            markdown(heads[0], first),
            markdown(heads[1], second),
            markdown(heads[2], third),
        ]
    )
    print(text)
    write("light_sb", figures, text, seconds=time.perf_counter() - begun, dtype="float64",
          packages=("jaxsolve", "jax", "optax"))  # fmt: skip


if __name__ == "__main__":
    main()
