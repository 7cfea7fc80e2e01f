"""Light bridges in the contract: two components, two dimensions, and their equations in NumPy."""

import jax.numpy as jnp
import numpy as np
import scipy.optimize
from scipy.special import logsumexp

import jaxsolve as js
from jaxsolve.testing import Case, Expected

_SHIFT = np.array([1.5, -1.0])


def _draw(rng):
    """Two groups of target points, far enough from each other that neither takes the other's."""
    groups = np.concatenate(
        [-_SHIFT + 0.6 * rng.normal(size=(8, 2)), _SHIFT + rng.normal(size=(9, 2))]
    )
    return {
        "x0": rng.normal(size=(16, 2)),
        "x1": groups,
        "epsilon": np.asarray(rng.uniform(0.5, 1)),
    }


def _start(data):
    dtype = data["x0"].dtype
    centres = jnp.stack([jnp.mean(data["x1"][:8], axis=0), jnp.mean(data["x1"][8:], axis=0)])
    return js.LightBridge(
        jnp.full(2, -np.log(2.0), dtype), centres, jnp.full((2, 2), -0.5, dtype),
        jnp.asarray(data["epsilon"], dtype), js.Diagonal(),
    )  # fmt: skip


def _equations(data, log_a, r, log_s):
    """The gradient of L (Korotin et al. 2024) by the weights of the components at each point, and
    the gauge in the place of the first weight's."""
    x, y, eps, s = data["x0"], data["x1"], data["epsilon"], np.exp(log_s)
    terms = log_a + (0.5 * x**2 @ s.T + x @ r.T) / eps
    away = y[:, None] - r
    parts = log_a - 0.5 * np.sum(away**2 / (eps * s) + np.log(eps * s), axis=2)
    P = np.exp(terms - logsumexp(terms, axis=1, keepdims=True)) / len(x)
    Q = np.exp(parts - logsumexp(parts, axis=1, keepdims=True)) / len(y)
    weights = P.sum(axis=0) - Q.sum(axis=0)
    weights[0] = logsumexp(log_a)
    centres = P.T @ x / eps - np.einsum("jk,jkd->kd", Q, away) / (eps * s)
    spread = P.T @ x**2 * s - np.einsum("jk,jkd->kd", Q, away**2) / s
    return weights, centres, spread / (2 * eps) + 0.5 * Q.sum(axis=0)[:, None]


def _flat(parts):
    return np.concatenate([np.ravel(x) for x in parts])


def _oracle(data):
    def unflat(z):
        return z[:2], z[2:6].reshape(2, 2), z[6:].reshape(2, 2)

    start = _start({k: jnp.asarray(v) for k, v in data.items()})
    z = _flat([start.log_weights, start.centres, start.shape]).astype(float)

    def fn(z):
        return _flat(_equations(data, *unflat(z)))

    # Small steps down the gradient choose the minimiser, the root makes it exact.
    for _ in range(3000):
        slopes = fn(z)
        slopes[0] = -slopes[1]
        z = z - 0.2 * slopes
    z[:2] -= logsumexp(z[:2])
    found = scipy.optimize.root(fn, z, tol=1e-14).x
    return [*unflat(found), data["epsilon"]]


def _violation(data, value, dual):
    parts = _equations(data, value.log_weights, value.centres, value.shape)
    return max(np.abs(part).max() for part in parts)


def _turned(data, rng):
    """Axes in another order."""
    other = data | {"x0": data["x0"][:, ::-1].copy(), "x1": data["x1"][:, ::-1].copy()}
    return other, lambda z: np.concatenate([z[:2], z[[3, 2, 5, 4, 7, 6, 9, 8]], z[10:]])


def _moved(data, rng):
    """Targets elsewhere: the centres go with them, and the weights of the exponents do not."""
    move = rng.normal(size=2)
    shift = np.concatenate([np.zeros(2), move, move, np.zeros(5)])
    return data | {"x1": data["x1"] + move}, lambda z: z - shift


_BASE = _draw(np.random.default_rng(7))

BRIDGES = [
    Case(
        name="LightSB",
        solver=lambda: js.LightSB(2),
        problem=lambda data: js.SchrodingerBridge(data["x0"], data["x1"], epsilon=data["epsilon"]),
        draw=_draw,
        init=_start,
        oracle=_oracle,
        optimality=_violation,
        outcomes={
            "nan": Expected(_BASE | {"x0": np.full((16, 2), np.nan)}, "nonfinite_input"),
            "no diffusion": Expected(_BASE | {"epsilon": np.asarray(-1.0)}, "nonfinite_input"),
            "far": Expected(_BASE | {"x1": 30 + _BASE["x1"]}, "successful"),
        },
        invariances={"order of axes": _turned, "moved": _moved},
        condition=100.0,
    )
]
