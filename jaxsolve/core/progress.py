"""Progress of a running solve: a bar, a table, or the user's own callable. Off, nothing is traced.

The loop's body calls `report` after each step, once for a whole batch, with a step number that it
counts on the device: so one bar serves a batch, and it survives jit, vmap and grad. Inside
`shard_map` or `pmap` each device has a loop, and reports, of its own.

A solve cannot be interrupted from outside: while it runs, Python's main thread waits in compiled
code, and Ctrl-C is seen when the solve returns. What is raised in a callback does end it at once
(as `jax.errors.JaxRuntimeError` with the traceback in its text): that is how to stop a long run.
"""

import abc
import sys
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int


class AbstractProgress(eqx.Module):
    """Told after each step by the loop's body. `_show` runs on the host."""

    def report(
        self, step: Int[Array, ""], worst: Float[Array, ""], left: Int[Array, ""], lanes: int
    ) -> None:
        """Called in traced code.

        Args:
            step: 1 at the first step of a run.
            worst: the largest relative residual of the lanes that were stepped.
            left: lanes not done yet, the waiting ones included.
            lanes: the batch's size.
        """
        jax.debug.callback(self._call, step, worst, left, lanes)

    def _call(self, step: Any, worst: Any, left: Any, lanes: Any) -> None:
        self._show(int(step), float(worst), int(left), int(lanes))

    @abc.abstractmethod
    def _show(self, step: int, worst: float, left: int, lanes: int) -> None: ...


class _Clock:
    """When a line was last drawn; compared by identity."""

    shown = 0.0


class Bar(AbstractProgress):
    """One line, redrawn at most ten times a second: lanes done, step, worst residual."""

    clock: _Clock = eqx.field(static=True, default_factory=_Clock)

    def _show(self, step: int, worst: float, left: int, lanes: int) -> None:
        now = time.monotonic()
        if step > 1 and left > 0 and now - self.clock.shown < 0.1:
            return
        self.clock.shown = now
        filled = round(20 * (lanes - left) / lanes)
        bar = "#" * filled + "." * (20 - filled)
        text = f"\r[{bar}] step {step}, {left} of {lanes} left, worst residual {worst:.1e} "
        print(text, end="\n" if left == 0 else "", file=sys.stderr, flush=True)


class Table(AbstractProgress):
    """A line a step."""

    def _show(self, step: int, worst: float, left: int, lanes: int) -> None:
        if step == 1:
            print(f"{'step':>6} {'left':>6} {'worst residual':>15}", file=sys.stderr)
        print(f"{step:>6} {left:>6} {worst:>15.3e}", file=sys.stderr, flush=True)


class Call(AbstractProgress):
    """The user's own: `fn(step, worst, left, lanes)` after each step."""

    fn: Callable[[int, float, int, int], Any] = eqx.field(static=True)

    def _show(self, step: int, worst: float, left: int, lanes: int) -> None:
        self.fn(step, worst, left, lanes)


_BAR, _TABLE = Bar(), Table()


def as_progress(verbose: Any) -> AbstractProgress | None:
    """`False` -> None, `True` -> a bar, `"table"` -> a line a step, a callable -> called each step.

    Raises:
        TypeError: anything else.
    """
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
