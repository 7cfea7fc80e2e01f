"""Settings of the methods of the value function from the curvature of a problem.

They are those that serve where f has curvature 1 in y and F / c_0 curvature 4: the first is what
`unit` makes of f, the second fixes c_0 = |F''| / 4, and alpha = 0.3 / (4 + |f''|) follows. The rows
of the constraints have norm 1 as they are (`coupling.py`).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..core.vectors import norm, positive, ravel
from .bilevel import Bilevel, Pair
from .coupling import spectral_norm
from .lvhba import LVHBA
from .stochastic import StochasticBilevel
from .value_function import AbstractValueFunction, Functions, check_value_function

Vector = Float[Array, " n"]
Scalar = Float[Array, ""]

_Solver = TypeVar("_Solver", bound=AbstractValueFunction)

_AROUND = 4
_UPPER = 4.0
_STEP = 0.3


def suggest_steps(problem: PyTree, init: PyTree, solver: _Solver = LVHBA()) -> _Solver:
    """A solver with step sizes, penalty, bound and unit that suit a problem.

    For objectives of another size than 1, or variables in small or large units, for which the
    defaults go astray or hardly move. It is not for x and y in units that are far from each other:
    one step size is for both.

    Example:
        ```python
        fit = lambda x, y, args: 1e3 * jnp.sum((y - 1.0) ** 2)
        lower = lambda x, y, args: 1e4 * jnp.sum((y - x) ** 2)
        problem, init = Bilevel(fit, lower), (jnp.zeros(2), jnp.zeros(2))
        solve(problem, suggest_steps(problem, init, MEHA()), init).value
        ```

    Curvatures are estimated by power steps on products with second derivatives, at `init` and at
    four random points around it, and the largest taken.

    Args:
        problem: a `Bilevel`.
        init: a guess (x, y) of usual size.
        solver: `LVHBA(...)`, `BiCGAFFA(...)` or `MEHA(...)`; what is not suggested is kept.

    Raises:
        TypeError: `problem` is no bilevel problem, or `solver` another one.

    Returns:
        The solver; its new settings are arrays, so that others are no new program.
    """
    if not isinstance(problem, Bilevel | StochasticBilevel):
        raise TypeError(f"suggest_steps takes a Bilevel, not {type(problem).__name__}.")
    check_value_function("suggest_steps", solver)
    problem, value = problem.prepare(init)
    upper, joint, own, slope = _curvatures(problem, value)
    unit = positive(jnp.where(own > 0, own, joint))
    settings = {
        "unit": unit,
        "penalty": positive(upper) / _UPPER,
        "step_size": _STEP / (_UPPER + joint / unit),
    }
    if hasattr(solver, "bound"):
        settings["bound"] = 100 * (1 + slope / unit)
    return replace(solver, **settings)


@eqx.filter_jit
def _curvatures(problem: Bilevel, value: Pair) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """The largest norms of F'', f'', f'' in y, and grad f."""
    functions = Functions(problem, None, value, 1.0)
    both = ravel(value)
    spread = norm(both) / jnp.sqrt(jnp.asarray(both.size, both.dtype))
    shape = (_AROUND, both.size)
    points = both + spread * jax.random.normal(jax.random.key(0), shape, both.dtype)
    points = jnp.concatenate([both[None], points])

    def lower(w: Vector) -> Scalar:
        return functions.lagrangian(*functions.split(w))

    def at(w: Vector) -> tuple[Scalar, Scalar, Scalar, Scalar]:
        x, y = functions.split(w)
        own = _curvature(lambda y: functions.lagrangian(x, y), y)
        return _curvature(functions.upper, w), _curvature(lower, w), own, norm(jax.grad(lower)(w))

    return jax.tree.map(jnp.nanmax, jax.lax.map(at, points))


def _curvature(fn: Callable[[Vector], Scalar], at: Vector) -> Scalar:
    """The norm of a Hessian; 0 of none."""
    product = lambda v: jax.jvp(jax.grad(fn), (at,), (v,))[1]
    start = jnp.cos(jnp.arange(at.size, dtype=at.dtype))
    flat = norm(product(start)) == 0
    return jnp.where(flat, 0.0, spectral_norm(product, product, at))
