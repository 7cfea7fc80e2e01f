"""Bilevel problems as cases of the contract; the oracle is SciPy on conditions written in NumPy."""

import jax.numpy as jnp
import numpy as np
import scipy.optimize

import jaxsolve as js
from jaxsolve.testing import Case, Expected

_UPPER, _LOWER = 2, 3


def _curvature(factor, module=np):
    product = module.einsum("ki,kj->ij", factor, factor, **_precision(module))
    return product + module.eye(factor.shape[1], dtype=factor.dtype)


def _precision(module):
    return {} if module is np else {"precision": "highest"}


def _times(matrix, vector):
    return jnp.matmul(matrix, vector, precision="highest")


def _upper(x, y, data):
    return 0.5 * jnp.sum((y - data["d"]) ** 2) + 0.15 * jnp.sum(x**2)


def _lower(x, y, data):
    H = _curvature(data["factor"], jnp)
    spring = 0.5 * jnp.sum(y * _times(H, y)) + 0.025 * jnp.sum(y**4)
    return spring - jnp.sum(y * (_times(data["B"], x) + data["c"]))


def _draw(rng):
    return {
        "factor": 0.5 * rng.normal(size=(_LOWER, _LOWER)),
        "B": rng.normal(size=(_LOWER, _UPPER)),
        "c": rng.normal(size=_LOWER),
        "d": rng.normal(size=_LOWER),
    }


def _conditions(data, x, y, v):
    """The lower level's conditions, the adjoint system, the hypergradient."""
    H, cube = _curvature(data["factor"]), 0.1 * y**3
    lower = H @ y + cube - data["B"] @ x - data["c"]
    adjoint = y - data["d"] + (H + np.diag(0.3 * y**2)) @ v
    return lower, adjoint, 0.3 * x - data["B"].T @ v


def _oracle(data):
    def split(z):
        return z[:_UPPER], z[_UPPER : _UPPER + _LOWER], z[_UPPER + _LOWER :]

    def system(z):
        return np.concatenate(_conditions(data, *split(z)))

    start = np.zeros(_UPPER + 2 * _LOWER)
    found = scipy.optimize.root(system, start, tol=1e-14).x
    x, y, _ = split(found)
    return x, y


def _gap(data, value, dual):
    x, y = value
    lower, adjoint, slope = _conditions(data, x, y, dual.adjoint.primal)
    scale = max(1.0, np.abs(y - data["d"]).max(), np.abs(0.3 * x).max())
    return max(np.abs(lower).max(), np.abs(adjoint).max() / scale, np.abs(slope).max() / scale)


def _permuted(data, rng):
    """Another order of the lower variables."""
    order = rng.permutation(_LOWER)
    other = {
        "factor": data["factor"][:, order],
        "B": data["B"][order],
        "c": data["c"][order],
        "d": data["d"][order],
    }
    return other, lambda z: np.concatenate([z[:_UPPER], z[_UPPER:][np.argsort(order)]])


def bilevel(name, solver, **more):
    base = _draw(np.random.default_rng(3))
    far = base | {"c": np.array([40.0, -20.0, 5.0])}
    return Case(
        name=name,
        solver=solver,
        problem=lambda data: js.Bilevel(_upper, _lower, data),
        draw=_draw,
        init=lambda data: (jnp.zeros_like(data["B"][0]), jnp.zeros_like(data["c"])),
        oracle=_oracle,
        optimality=_gap,
        outcomes={
            "hard": Expected(far, "successful"),
            "nan": Expected(base | {"d": np.array([0.0, np.nan, 1.0])}, "nonfinite_input"),
        },
        invariances={"permutation": _permuted},
        **more,
    )


# --- a constraint that joins the levels -----------------------------------------------------------


def _coupled_upper(x, y, data):
    return 0.5 * jnp.sum((y - data["d"]) ** 2) + 0.5 * jnp.sum((x - data["a"]) ** 2)


def _coupled_lower(x, y, data):
    return 0.5 * jnp.sum(data["w"] * y**2) - jnp.sum(x * y)


def _balance(x, y, data):
    return jnp.sum(data["row"] * (x + 2 * y)) - data["level"]


def _coupled(data):
    return js.Bilevel(_coupled_upper, _coupled_lower, data, coupling_equality=_balance)


def _draw_coupled(rng):
    return {
        "w": rng.uniform(1.0, 3.0, size=2),
        "a": rng.normal(size=2),
        "d": rng.normal(size=2),
        "row": rng.uniform(0.5, 1.5, size=2),
        "level": rng.normal(),
    }


def _coupled_conditions(data, x, y, mu, v, k):
    """Of x, y, mu, and of the adjoint (v, k) of the lower level's two conditions."""
    w, row = data["w"], data["row"]
    return (
        w * y - x + 2 * mu * row,
        np.atleast_1d(row @ (x + 2 * y) - data["level"]),
        y - data["d"] + w * v + 2 * k * row,
        np.atleast_1d(2 * row @ v),
        x - data["a"] - v + k * row,
    )


def _coupled_oracle(data):
    def system(z):
        return np.concatenate(_coupled_conditions(data, z[:2], z[2:4], z[4], z[5:7], z[7]))

    # All of it is linear.
    offset = system(np.zeros(8))
    matrix = np.stack([system(e) - offset for e in np.eye(8)], axis=1)
    found = np.linalg.solve(matrix, -offset)
    return found[:2], found[2:4]


def _coupled_gap(data, value, dual):
    x, y = value
    parts = _coupled_conditions(
        data, x, y, dual.equality, dual.adjoint.primal, dual.adjoint.equality
    )
    scale = max(1.0, np.abs(y - data["d"]).max(), np.abs(x - data["a"]).max())
    first, rest = parts[:2], parts[2:]
    return max(*(np.abs(p).max() for p in first), *(np.abs(p).max() / scale for p in rest))


def coupled(name, solver, **more):
    base = _draw_coupled(np.random.default_rng(4))
    return Case(
        name=name,
        solver=solver,
        problem=_coupled,
        draw=_draw_coupled,
        init=lambda data: (jnp.zeros_like(data["a"]), jnp.zeros_like(data["d"])),
        oracle=_coupled_oracle,
        optimality=_coupled_gap,
        outcomes={
            "nan": Expected(base | {"d": np.array([np.nan, 1.0])}, "nonfinite_input"),
        },
        **more,
    )


BILEVEL = [
    bilevel("HypergradientDescent", js.HypergradientDescent),
    coupled("Polished", lambda: js.Polished(js.LVHBA(steps=200))),
]

APPROXIMATE = {
    "BOME", "BiCGAFFA", "F2SA", "LVHBA", "MEHA", "PZOBO", "SABA", "SOBA", "StocBiO",
    "BiP", "IterativeMagnitudePruning", "MagnitudePruning", "OBS",
}  # fmt: skip
"""Penalties, batches and masks: they end near a solution. Tested in bilevel/."""
