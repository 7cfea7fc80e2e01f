"""What `scipy.optimize` is called with. Everything here runs on the host, in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_BOUNDS = ("lower", "upper")

MINIMISERS = {
    "Nelder-Mead": _BOUNDS,
    "Powell": _BOUNDS,
    "CG": (),
    "BFGS": (),
    "Newton-CG": (),
    "L-BFGS-B": _BOUNDS,
    "TNC": _BOUNDS,
    "COBYLA": (*_BOUNDS, "inequality"),
    "COBYQA": (*_BOUNDS, "inequality", "equality"),
    "SLSQP": (*_BOUNDS, "inequality", "equality"),
    "trust-constr": (*_BOUNDS, "inequality", "equality"),
    "dogleg": (),
    "trust-ncg": (),
    "trust-krylov": (),
    "trust-exact": (),
}
"""Methods of `minimize`, with the constraints that each honours."""

ROOTS = (
    "hybr lm broyden1 broyden2 anderson linearmixing diagbroyden excitingmixing krylov df-sane"
).split()
LEAST_SQUARES = {"trf": _BOUNDS, "dogbox": _BOUNDS, "lm": ()}

_GRADIENT_FREE = ("Nelder-Mead", "Powell", "COBYLA", "COBYQA")
_PRODUCTS = ("Newton-CG", "trust-ncg", "trust-krylov", "trust-constr")
_HESSIANS = ("dogleg", "trust-exact")


class Host:
    """A problem as NumPy functions of a float64 vector.

    Args:
        functions: of the problem's data and a flat point.
        compiled: their compiled programs by name, kept from run to run.
        data: the problem's arrays.
        start: the point to start from.
    """

    def __init__(self, functions: Any, compiled: dict[str, Callable], data: Any, start: np.ndarray):
        self.functions, self.compiled, self.data = functions, compiled, data
        self.dtype = start.dtype
        self.start = start.astype(np.float64)
        self.eps = float(np.finfo(start.dtype).eps)
        self.tight = self.eps**0.75
        """About what the dtype can resolve of a gradient."""

    def of(self, name: str, fn: Callable) -> Callable:
        """`fn(data, x, ...)`, compiled once for all runs as `name`."""
        compiled = self.compiled.setdefault(name, jax.jit(fn))

        def call(x: np.ndarray, *more: np.ndarray) -> Any:
            given = [np.asarray(v, self.dtype) for v in (x, *more)]
            out = compiled(self.data, *given)
            return jax.tree.map(lambda v: np.asarray(v, np.float64), out)

        return call

    def bounds(self) -> tuple[np.ndarray, np.ndarray] | None:
        if self.functions.bounds is None:
            return None
        compiled = self.compiled.setdefault("bounds", jax.jit(self.functions.bounds))
        lower, upper = compiled(self.data)
        return np.asarray(lower, np.float64), np.asarray(upper, np.float64)


def _optimize() -> Any:
    from scipy import optimize

    return optimize


def minimise(method: str, options: dict[str, Any], host: Host) -> np.ndarray:
    optimize = _optimize()
    fn = host.functions.objective
    given: dict[str, Any] = {}
    if method in _GRADIENT_FREE:
        function = host.of("objective", fn)
    else:
        function = host.of("value and gradient", jax.value_and_grad(fn, argnums=1))
        given["jac"] = True
    if method in _PRODUCTS:
        given["hessp"] = host.of(
            "Hessian product",
            lambda data, x, v: jax.jvp(lambda y: jax.grad(fn, argnums=1)(data, y), (x,), (v,))[1],
        )
    if method in _HESSIANS:
        given["hess"] = host.of("Hessian", jax.hessian(fn, argnums=1))
    bounds = host.bounds()
    start = host.start
    if bounds is not None:
        given["bounds"] = optimize.Bounds(*bounds)
        start = np.clip(start, *bounds)
    constraints = _constraints(method, host)
    if constraints:
        given["constraints"] = constraints
    given["options"] = {**_options(method, host), **options}
    return optimize.minimize(function, start, method=method, **given).x


def _options(method: str, host: Host) -> dict[str, Any]:
    """Tolerances as tight as the dtype allows, under the name that each method has for them."""
    tight, eps, n = host.tight, host.eps, host.start.size
    barrier = host.functions.inequality is not None or host.functions.bounds is not None
    return {
        "Nelder-Mead": {"xatol": tight, "fatol": tight, "maxfev": 2000 * n},
        "Powell": {"xtol": tight, "ftol": eps},
        "Newton-CG": {"xtol": eps},
        "L-BFGS-B": {"gtol": tight, "ftol": 0.0},
        "TNC": {"gtol": 0.0, "ftol": 0.0, "xtol": eps},
        "COBYLA": {"tol": tight},
        "COBYQA": {"final_tr_radius": tight},
        "SLSQP": {"ftol": eps},
        # With inequalities `gtol` is met long before the barrier is gone.
        "trust-constr": {"gtol": 0.0, "xtol": tight, "barrier_tol": tight}
        if barrier
        else {"gtol": tight, "xtol": eps},
        # Its inner solver returns NaN at a gradient that is zero to rounding.
        "trust-krylov": {"gtol": eps**0.6},
    }.get(method, {"gtol": tight})


def _constraints(method: str, host: Host) -> list[Any]:
    """Equalities and inequalities, in the form that the method wants."""
    optimize = _optimize()
    found: list[Any] = []
    for name, sign in (("equality", 0.0), ("inequality", -np.inf)):
        fn = getattr(host.functions, name)
        if fn is None:
            continue
        # A row without effect (-inf <= 0) must be a number to SciPy.
        value = host.of(name, lambda data, x, fn=fn: jnp.maximum(fn(data, x), -1e12))
        jacobian = host.of(f"{name} Jacobian", jax.jacobian(fn, argnums=1))
        if method == "SLSQP" or method == "COBYLA":
            # Their inequalities are at least 0, ours at most.
            kind, factor = ("eq", 1.0) if name == "equality" else ("ineq", -1.0)
            found.append(
                {
                    "type": kind,
                    "fun": lambda x, f=value, s=factor: s * f(x),
                    "jac": lambda x, f=jacobian, s=factor: s * f(x),
                }
            )
            continue

        def curvature(data: Any, x: Any, v: Any, fn: Any = fn) -> Any:
            return jax.hessian(lambda y: jnp.vdot(v, fn(data, y)))(x)

        hessian = host.of(f"{name} Hessian", curvature)
        found.append(optimize.NonlinearConstraint(value, sign, 0.0, jac=jacobian, hess=hessian))
    return found


def root(method: str, options: dict[str, Any], host: Host) -> np.ndarray:
    optimize = _optimize()
    fn = host.functions.residuals
    given: dict[str, Any] = {}
    if method in ("hybr", "lm"):
        given["jac"] = host.of("Jacobian", jax.jacobian(fn, argnums=1))
    tight, eps = host.tight, host.eps
    defaults = {
        "hybr": {"xtol": eps},
        "lm": {"xtol": eps, "ftol": eps, "gtol": 0.0},
        "df-sane": {"fatol": tight, "ftol": 0.0},
        # Its difference quotients must be wide enough for the function's own precision.
        "krylov": {"fatol": tight, "jac_options": {"rdiff": eps**0.5}},
    }.get(method, {"fatol": tight})
    options = {**defaults, **options}
    function = host.of("residuals", fn)
    return optimize.root(function, host.start, method=method, options=options, **given).x


def least_squares(method: str, options: dict[str, Any], host: Host) -> np.ndarray:
    optimize = _optimize()
    fn = host.functions.residuals
    # SciPy refuses tolerances below float64's own resolution.
    tight = max(host.tight, 4 * np.finfo(np.float64).eps)
    given: dict[str, Any] = {"xtol": tight, "ftol": tight, "gtol": tight}
    start, bounds = host.start, host.bounds()
    if bounds is not None:
        start = np.clip(start, *bounds)
        given["bounds"] = bounds
    function = host.of("residuals", fn)
    jacobian = host.of("Jacobian", jax.jacobian(fn, argnums=1))
    given = {**given, **options}
    return optimize.least_squares(function, start, jac=jacobian, method=method, **given).x
