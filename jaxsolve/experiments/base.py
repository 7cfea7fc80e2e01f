"""What an experiment is, and what a run of it leaves: `figures.json`, `table.md`, PNG plots.

    DIR/NAME/figures.json   {"experiment", "seed", "full", "seconds", "device", "dtype", "versions",
                             "figures": [{"name", "value", "unit", "method", "baseline", "better",
                                          "source"}]}
    DIR/NAME/table.md       the same for people, with what it means
    DIR/NAME/*.png          plots

While it runs, `DIR/NAME/unfinished/` holds the steps already made: a run that was interrupted goes
on from there when the same command is given again.
"""

import importlib
import json
import math
import os
import pkgutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from .store import Store, fingerprint, write

Progress = Callable[[str, int, int], None]
"""Told `(stage, done, total)` after each step of a stage."""


@dataclass(frozen=True)
class Figure:
    """One measured number, beside the one to beat.

    Attributes:
        name: what was measured.
        value: the measured number, `None` where there is none (it was not finite).
        unit: `""` for a pure number.
        method: by what it was reached.
        baseline: the number to beat, measured in the same run wherever that is possible.
        better: which direction is.
        source: what the baseline is, and where a published one comes from.
    """

    name: str
    value: float | None
    unit: str
    method: str
    baseline: float | None
    better: Literal["lower", "higher"]
    source: str

    @property
    def wins(self) -> bool | None:
        """Whether the value is at least as good as the baseline; `None` without one of the two."""
        if self.value is None or self.baseline is None:
            return None
        below = self.value <= self.baseline
        return below if self.better == "lower" else self.value >= self.baseline


@dataclass(frozen=True)
class Findings:
    """What an experiment returns.

    Attributes:
        figures: for `figures.json`.
        table: Markdown (headings, paragraphs, pipe tables): `table.md`.
        plots: matplotlib figures by file name, without `.png`.
    """

    figures: tuple[Figure, ...]
    table: str
    plots: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """The content of a `figures.json`."""

    experiment: str
    seed: int
    full: bool
    seconds: float
    device: str
    dtype: str
    versions: dict[str, str]
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Experiment:
    """A method on real data.

    Attributes:
        name: on the command line.
        summary: one line for `jaxsolve list`.
        dtype: the precision it computes in; set for the length of a run.
        run: `(settings, run) -> Findings`. Everything random follows from `run.seed`.
        quick, full: settings (a frozen dataclass of numbers) without and with `--full`.
        cpu_devices: how many the command line divides the CPU into.
    """

    name: str
    summary: str
    dtype: Literal["float32", "float64"]
    run: Callable[[Any, "Run"], Findings]
    quick: Any
    full: Any
    cpu_devices: int = 1


class Run:
    """One run in progress: its seed, its progress, and its resumable loops."""

    def __init__(self, seed: int, store: Store, progress: Progress):
        self.seed = seed
        self._store, self._progress = store, progress

    def compile(self, stage: str, fn: Callable, *args: Any) -> Callable:
        """`jax.jit(fn)` compiled for such arguments, so that no timed loop holds a compilation."""
        self._progress(f"compiling: {stage}", 0, 1)
        compiled = jax.jit(fn).lower(*args).compile()
        self._progress(f"compiling: {stage}", 1, 1)
        return compiled

    def loop(
        self,
        stage: str,
        start: Any,
        step: Callable[[int, Any], tuple[Any, dict[str, Any]]],
        steps: int,
    ) -> tuple[Any, dict[str, np.ndarray], float]:
        """`state, record = step(i, state)` for i = 0 ... steps - 1, with a bar; resumable.

        Args:
            stage: its name, unique in the experiment.
            start: the first state, any pytree of arrays.
            step: draws nothing that does not follow from the seed and i; a record is a flat
                dictionary of arrays.
            steps: how many.

        Returns:
            The last state, the records stacked along a new first axis (NumPy arrays), and the
            seconds spent in `step`, interrupted runs included.
        """
        done, state, records, seconds = self._store.load(stage, start)
        self._progress(stage, done, steps)
        kept = time.monotonic()
        try:
            for i in range(done, steps):
                begun = time.perf_counter()
                state, record = jax.block_until_ready(step(i, state))
                seconds += time.perf_counter() - begun
                records.append(record)
                done = i + 1
                self._progress(stage, done, steps)
                if done == steps or time.monotonic() - kept > 10:
                    self._store.save(stage, done, state, records, seconds)
                    kept = time.monotonic()
        except KeyboardInterrupt:
            self._store.save(stage, done, state, records, seconds)
            raise
        return state, self._store.stacked(records), seconds


def experiments() -> dict[str, Experiment]:
    """All experiments by name: the modules of this folder that define `EXPERIMENT`."""
    found = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        loaded = importlib.import_module(f"{__package__}.{module.name}")
        experiment = getattr(loaded, "EXPERIMENT", None)
        if isinstance(experiment, Experiment):
            found[experiment.name] = experiment
    return dict(sorted(found.items()))


def carry_out(
    experiment: Experiment,
    out: Path,
    *,
    seed: int = 0,
    full: bool = False,
    settings: Any = None,
    progress: Progress = lambda stage, done, total: None,
) -> Record:
    """Run an experiment and leave its files in `out/NAME`.

    Args:
        settings: in place of the experiment's own quick or full ones.
    """
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0; got {seed}.")
    if settings is None:
        settings = experiment.full if full else experiment.quick
    folder = out / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    versions = installed()
    store = Store(
        folder / "unfinished",
        fingerprint(experiment.name, seed, full, experiment.dtype, repr(settings), versions),
    )
    with jax.enable_x64(experiment.dtype == "float64"):
        findings = experiment.run(settings, Run(seed, store, progress))
    record = Record(
        experiment.name,
        seed,
        full,
        round(store.elapsed(), 3),
        device(),
        experiment.dtype,
        versions,
        tuple(_finite(figure) for figure in findings.figures),
    )
    _leave(folder, record, findings)
    store.clear()
    return record


def _leave(folder: Path, record: Record, findings: Findings) -> None:
    for old in folder.glob("*.png"):
        old.unlink()
    for name, plot in findings.plots.items():
        plot.savefig(folder / f"{name}.png", dpi=144)
    write(folder / "table.md", findings.table.encode())
    text = json.dumps(asdict(record), indent=2, allow_nan=False)
    write(folder / "figures.json", text.encode() + b"\n")


def _finite(figure: Figure) -> Figure:
    """With Python floats, and `None` for what JSON cannot hold."""

    def number(x: Any) -> float | None:
        return None if x is None or not math.isfinite(x) else float(x)

    return Figure(
        **{**asdict(figure), "value": number(figure.value), "baseline": number(figure.baseline)}
    )


def read_record(path: Path) -> Record:
    """The content of a `figures.json`.

    Raises:
        ValueError: it is not of the documented form; the message says where.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error
    fields = {"experiment": str, "seed": int, "full": bool, "seconds": (int, float),
              "device": str, "dtype": str, "versions": dict, "figures": list}  # fmt: skip
    _of_form(path, "", data, fields)
    number = (int, float, type(None))
    columns = {"name": str, "value": number, "unit": str, "method": str, "baseline": number,
               "better": str, "source": str}  # fmt: skip
    for i, figure in enumerate(data["figures"]):
        _of_form(path, f"figures[{i}]", figure, columns)
        if figure["better"] not in ("lower", "higher"):
            raise ValueError(f'{path}: figures[{i}]["better"] is neither "lower" nor "higher"')
    for name, version in data["versions"].items():
        if not isinstance(version, str):
            raise ValueError(f"{path}: the version of {name} is not a string")
    return Record(**{**data, "figures": tuple(Figure(**figure) for figure in data["figures"])})


def _of_form(path: Path, where: str, data: Any, fields: dict[str, Any]) -> None:
    place = f"{path}: {where or 'the file'}"
    if not isinstance(data, dict):
        raise ValueError(f"{place} is not an object")
    if set(data) != set(fields):
        raise ValueError(f"{place} has the keys {sorted(data)}, not {sorted(fields)}")
    for name, kind in fields.items():
        value = data[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{place}: {name!r} has the wrong type, {type(value).__name__}")


def installed() -> dict[str, str]:
    """The versions a result may depend on."""
    found = {}
    for name in ("jaxsolve", "jax", "jaxlib", "equinox", "optax", "numpy", "scikit-learn"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found


def device() -> str:
    """The hardware in words."""
    first = jax.devices()[0]
    if first.platform == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"CPU, {cores} cores"
    return f"{jax.device_count()} x {first.device_kind}"
