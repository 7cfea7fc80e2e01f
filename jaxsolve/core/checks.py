"""Errors a user can act on: each names the argument, the pytree path and both shapes."""

from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from .problem import AbstractProblem
from .solution import is_traced


def show(tree: PyTree) -> str:
    """Dtype and shape of every leaf."""
    if hasattr(tree, "shape"):
        return f"{tree.dtype}{list(tree.shape)}"
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree))


def check_problem(problem: Any) -> None:
    """Raise unless `problem` is one."""
    if not isinstance(problem, AbstractProblem):
        raise TypeError(
            "`problem` must be a jaxsolve problem (QuadraticProgram, Minimise, Root, ...); got "
            f"{type(problem).__name__}. A function fn(y, args) becomes one by Minimise(fn, args)."
        )


def check_limits(tolerance: Any, max_steps: Any, record: Any) -> None:
    """Raise where a setting has the wrong type, or a concrete one the wrong sign."""
    if tolerance is not None and not is_traced(tolerance):
        if not isinstance(tolerance, Real) and jnp.ndim(tolerance) != 0:
            raise TypeError(f"`tolerance` must be a scalar; got shape {jnp.shape(tolerance)}.")
        if not float(tolerance) > 0:
            raise ValueError(f"`tolerance` must be positive; got {tolerance}.")
    if max_steps is not None and not is_traced(max_steps):
        if not jnp.issubdtype(jnp.result_type(max_steps), jnp.integer):
            raise TypeError(f"`max_steps` must be an integer; got {max_steps!r}.")
        if int(max_steps) < 0:
            raise ValueError(f"`max_steps` must not be negative; got {max_steps}.")
    if not isinstance(record, int) or isinstance(record, bool) or record < 0:
        raise TypeError(f"`record` must be a static integer, at least 0; got {record!r}.")


def check(problem: AbstractProblem) -> list[str]:
    """What can be said of a problem's data before solving it, in words. Eager, not for traced code.

    Shapes and dtypes raise, as `solve` would; NaN fields, crossed bounds, ranks, definiteness and
    scaling are findings.

    Returns:
        One sentence a finding; empty when there is nothing to say.
    """
    check_problem(problem)
    if is_traced(problem):
        raise TypeError("`check` reads the data: call it outside jit, grad and vmap.")
    findings = []
    for path, leaf in jtu.tree_flatten_with_path(eqx.filter(problem, eqx.is_inexact_array))[0]:
        if bool(jnp.any(jnp.isnan(leaf))):
            findings.append(f"`{jtu.keystr(path).lstrip('.')}` holds NaN.")
    return findings + problem.describe()
