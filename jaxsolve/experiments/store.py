"""The steps of a run that are already made, on disk: arrays in `.npz` files, never pickles."""

import hashlib
import json
import os
import re
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fingerprint(*parts: Any) -> str:
    """What a run depends on, as a short string: another setting never resumes this run."""
    text = json.dumps([str(part) for part in parts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write(path: Path, content: bytes) -> None:
    """Whole or not at all, whenever the process is stopped."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


class Store:
    """A folder of interrupted loops, and the clock over all sittings of a run.

    A folder that another run left behind (other settings, other versions) is emptied.
    """

    def __init__(self, folder: Path, mark: str):
        self.folder = folder
        self._begun = time.monotonic()
        self._earlier = 0.0
        clock = folder / "run.json"
        try:
            earlier = json.loads(clock.read_text())
            self._earlier = float(earlier["seconds"]) if earlier["mark"] == mark else -1.0
        except (OSError, ValueError, KeyError, TypeError):
            self._earlier = -1.0
        if self._earlier < 0:
            self._earlier = 0.0
            self.clear()
        self._mark = mark

    def elapsed(self) -> float:
        """Seconds spent on this run, interrupted sittings included as far as they were kept."""
        return self._earlier + time.monotonic() - self._begun

    def save(self, stage: str, done: int, state: Any, records: list[dict], seconds: float) -> None:
        """Keep a loop after `done` steps."""
        self.folder.mkdir(parents=True, exist_ok=True)
        leaves = jax.tree.leaves(state)
        arrays: dict[str, Any] = {f"state{i}": np.asarray(x) for i, x in enumerate(leaves)}
        arrays |= {f"record_{name}": x for name, x in self.stacked(records).items()}
        arrays["done"], arrays["seconds"] = np.asarray(done), np.asarray(seconds)
        path = self._path(stage)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(part, path)
        clock = {"mark": self._mark, "seconds": self.elapsed()}
        write(self.folder / "run.json", json.dumps(clock).encode())

    def load(self, stage: str, start: Any) -> tuple[int, Any, list[dict], float]:
        """The loop as it was kept, or its start."""
        fresh = 0, start, [], 0.0
        leaves, structure = jax.tree.flatten(start)
        try:
            with (
                self._path(stage).open("rb") as file,
                np.load(file, allow_pickle=False) as kept,
            ):
                found = [kept[f"state{i}"] for i in range(len(leaves))]
                shapes = [(np.shape(x), jnp.asarray(x).dtype) for x in leaves]
                if [(x.shape, x.dtype) for x in found] != shapes:
                    return fresh
                done, seconds = int(kept["done"]), float(kept["seconds"])
                names = [name for name in kept.files if name.startswith("record_")]
                rows = {name.removeprefix("record_"): kept[name] for name in names}
        except (OSError, KeyError, ValueError, zipfile.BadZipFile):
            return fresh
        records = [{name: row[i] for name, row in rows.items()} for i in range(done)]
        state = jax.tree.unflatten(structure, [jnp.asarray(x) for x in found])
        return done, state, records, seconds

    @staticmethod
    def stacked(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        """One array a name, the steps along its first axis."""
        names = records[0] if records else ()
        return {name: np.stack([np.asarray(row[name]) for row in records]) for name in names}

    def _path(self, stage: str) -> Path:
        return self.folder / (re.sub(r"[^a-z0-9]+", "-", stage.lower()).strip("-") + ".npz")

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
