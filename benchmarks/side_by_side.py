"""What the comparisons share: interleaved timings, and one form of results.

Timings of a shared machine drift: all methods of a cell take turns, and the median of the turns is
kept. Beside the clock stands the CPU time of the process (all its threads), which on one idle core
is the same and on a shared machine leaves out the waiting. For it to mean that, pin the process to
one core: `taskset -c 0 python -m ...`.
"""

import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxsolve

RESULTS = Path(__file__).parent / "results"


class Timing(NamedTuple):
    """Milliseconds a call by the clock and of CPU time (medians), seconds of the first call, and
    its result."""

    milliseconds: float
    first_seconds: float
    out: Any
    cpu: float


def interleaved(calls: dict[str, Callable[[], Any]], turns: int = 7) -> dict[str, Timing | str]:
    """Time `calls` side by side; a call that raises is listed with its error's first line."""
    first: dict[str, float] = {}
    outs: dict[str, Any] = {}
    failed: dict[str, Timing | str] = {}
    for name, call in calls.items():
        start = time.perf_counter()
        try:
            outs[name] = jax.block_until_ready(call())
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
            continue
        first[name] = time.perf_counter() - start
    # As many calls a turn as fill 20 ms, so that a short call is not one tick of the clock.
    repeats, short = {}, set()
    for name in outs:
        start = time.perf_counter()
        jax.block_until_ready(calls[name]())
        seconds = time.perf_counter() - start
        repeats[name] = max(1, min(50, int(0.02 / max(seconds, 1e-6))))
        if seconds < 0.2:
            short.add(name)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in outs}
    for _ in range(turns):
        for name in outs:
            if name in short:
                # Untimed: the method before has left its own data in the caches.
                jax.block_until_ready(calls[name]())
            start = time.process_time(), time.perf_counter()
            for _ in range(repeats[name]):
                jax.block_until_ready(calls[name]())
            ends = time.process_time(), time.perf_counter()
            spent[name].append(
                tuple((b - a) / repeats[name] for a, b in zip(start, ends, strict=True))
            )
    timed = {}
    for name in outs:
        cpu, clock = 1e3 * np.median(spent[name], axis=0)
        timed[name] = Timing(float(clock), first[name], outs[name], float(cpu))
    return {name: timed.get(name, failed.get(name, "")) for name in calls}


def figure(
    name: str,
    value: float,
    unit: str,
    method: str,
    baseline: float | None = None,
    better: str = "lower",
    source: str = "measured in this run",
) -> dict:
    """One entry of `figures`; `baseline` is the figure to beat, of the same run."""
    return {
        "name": name,
        "value": None if value is None or not np.isfinite(value) else float(value),
        "unit": unit,
        "method": method,
        "baseline": baseline,
        "better": better,
        "source": source,
    }


def write(
    experiment: str,
    figures: list[dict],
    table: str,
    *,
    seconds: float,
    dtype: str,
    packages: tuple[str, ...],
    seed: int = 0,
    full: bool = False,
) -> None:
    """`results/EXPERIMENT.json` and `.md`."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    device = f"{jax.devices()[0].device_kind} ({platform.machine()}), {_cores()} cores"
    record = {
        "experiment": experiment,
        "seed": seed,
        "full": full,
        "seconds": round(seconds, 1),
        "device": device,
        "dtype": dtype,
        "versions": {name: _version(name) for name in packages},
        "figures": figures,
    }
    (RESULTS / f"{experiment}.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / f"{experiment}.md").write_text(table)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float | None, digits: int = 3) -> str:
    """A number of a table; a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "-"
    return f"{value:.{digits}g}"


def _version(name: str) -> str:
    # The library itself is run from the checkout.
    return jaxsolve.__version__ if name == "jaxsolve" else version(name)


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
