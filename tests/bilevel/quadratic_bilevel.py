"""A quadratic bilevel problem whose every quantity is known.

    F = |y - d|^2 / 2 + x'Dx / 2,   f = y'Hy / 2 - y'(Bx + c),   y(x) = H^{-1}(Bx + c)

so that the hypergradient is Dx + B'v with v = H^{-1}(y(x) - d).
"""

import jax.numpy as jnp
import numpy as np

UPPER, LOWER = 3, 6


def quadratic(seed=0):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(LOWER, LOWER)))[0]
    curvatures = np.linspace(0.5, 2.0, LOWER)
    return {
        "H": turn @ np.diag(curvatures) @ turn.T,
        "B": rng.normal(size=(LOWER, UPPER)),
        "c": rng.normal(size=LOWER),
        "d": rng.normal(size=LOWER),
        "D": 0.3 * np.eye(UPPER),
    }


def upper(x, y, data):
    return 0.5 * jnp.sum((y - data["d"]) ** 2) + 0.5 * x @ data["D"] @ x


def lower(x, y, data):
    return 0.5 * y @ data["H"] @ y - y @ (data["B"] @ x + data["c"])


def fit(data, x):
    return np.linalg.solve(data["H"], data["B"] @ x + data["c"])


def with_adjoint(data, x, inverse):
    """The hypergradient with an inverse of H that a method uses."""
    return data["D"] @ x + data["B"].T @ inverse @ (fit(data, x) - data["d"])


def solved(data):
    """x, y of the bilevel problem."""
    inverse = np.linalg.inv(data["H"])
    M, q = inverse @ data["B"], inverse @ data["c"] - data["d"]
    x = np.linalg.solve(M.T @ M + data["D"], -M.T @ q)
    return x, fit(data, x)


def arrays(data, dtype):
    return {name: jnp.asarray(value, dtype) for name, value in data.items()}


DATA = quadratic()
