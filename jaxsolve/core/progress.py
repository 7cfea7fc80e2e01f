"""Progress of a running solve: a bar, a table, or the user's own callable. Off, nothing is traced."""

import abc
import sys
import time
from collections.abc import Callable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int


class AbstractProgress(eqx.Module):
    """Told by the loop's body after each step, once for a whole batch."""

    def start(self, lanes: int) -> None:
        """Before the first step."""
        jax.debug.callback(self._start, lanes)

    def update(self, worst: Float[Array, ""], left: Int[Array, ""], lanes: int) -> None:
        """After a step: the worst live lane's relative residual, and the lanes left."""
        jax.debug.callback(self._update, worst, left, lanes)

    def stop(self, worst: Float[Array, ""]) -> None:
        """After the last step."""
        jax.debug.callback(self._stop, worst)

    @abc.abstractmethod
    def _start(self, lanes): ...

    @abc.abstractmethod
    def _update(self, worst, left, lanes): ...

    @abc.abstractmethod
    def _stop(self, worst): ...


class _Counter:
    """Steps and times of the run in progress. Host state: compared by identity, so a jit cache
    holds one per `verbose` setting, not one per call."""

    def __init__(self):
        self.steps, self.shown, self.first = 0, 0.0, 0.0


class Bar(AbstractProgress):
    """One line, redrawn at most ten times a second: lanes done, step, worst residual."""

    counter: _Counter = eqx.field(static=True, default_factory=_Counter)

    def _start(self, lanes):
        self.counter.__init__()

    def _update(self, worst, left, lanes):
        self.counter.steps += 1
        now = time.monotonic()
        if now - self.counter.shown < 0.1 and int(left) > 0:
            return
        self.counter.shown = now
        lanes, left = int(lanes), int(left)
        filled = round(20 * (lanes - left) / lanes)
        bar = "#" * filled + "." * (20 - filled)
        text = f"\r[{bar}] step {self.counter.steps}, {left} of {lanes} left, worst residual {float(worst):.1e} "
        print(text, end="", file=sys.stderr, flush=True)

    def _stop(self, worst):
        print(file=sys.stderr, flush=True)


class Table(AbstractProgress):
    """A line a step."""

    counter: _Counter = eqx.field(static=True, default_factory=_Counter)

    def _start(self, lanes):
        self.counter.__init__()
        print(f"{'step':>6} {'left':>6} {'worst residual':>15}", file=sys.stderr, flush=True)

    def _update(self, worst, left, lanes):
        self.counter.steps += 1
        line = f"{self.counter.steps:>6} {int(left):>6} {float(worst):>15.3e}"
        print(line, file=sys.stderr, flush=True)

    def _stop(self, worst):
        pass


class Call(AbstractProgress):
    """The user's own: `fn(step, worst, left, lanes)` after each step."""

    fn: Callable[[int, float, int, int], None] = eqx.field(static=True)
    counter: _Counter = eqx.field(static=True, default_factory=_Counter)

    def _start(self, lanes):
        self.counter.__init__()

    def _update(self, worst, left, lanes):
        self.counter.steps += 1
        self.fn(self.counter.steps, float(np.asarray(worst)), int(left), int(lanes))

    def _stop(self, worst):
        pass


_BAR, _TABLE = Bar(), Table()


def as_progress(verbose) -> AbstractProgress | None:
    """`False` -> None, `True` -> a bar, `"table"` -> a line a step, a callable -> called each step."""
    if verbose is False or verbose is None:
        return None
    if verbose is True:
        return _BAR
    if verbose == "table":
        return _TABLE
    if isinstance(verbose, AbstractProgress):
        return verbose
    if callable(verbose):
        return Call(verbose)
    raise TypeError(f'`verbose` must be False, True, "table" or a callable; got {verbose!r}.')
