"""Light bridges in the contract: two components, two dimensions, and their equations in NumPy."""

import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special
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


def _slopes(data, log_a, r, log_s, p, q):
    """The derivatives of sum p log c - sum q log v by log a, r and log S."""
    x, y, eps, s = data["x0"], data["x1"], data["epsilon"], np.exp(log_s)
    away = y[:, None] - r
    P = p[:, None] * scipy.special.softmax(_terms(data, log_a, r, log_s), axis=1)
    Q = q[:, None] * scipy.special.softmax(_parts(y, eps, log_a, r, log_s), axis=1)
    centres = P.T @ x / eps - np.einsum("jk,jkd->kd", Q, away) / (eps * s)
    spread = P.T @ x**2 * s - np.einsum("jk,jkd->kd", Q, away**2) / s
    spread = spread / (2 * eps) + 0.5 * Q.sum(axis=0)[:, None]
    return P.sum(axis=0) - Q.sum(axis=0), centres, spread


def _terms(data, log_a, r, log_s):
    """The logarithms of the terms of c."""
    x = data["x0"]
    return log_a + (0.5 * x**2 @ np.exp(log_s).T + x @ r.T) / data["epsilon"]


def _parts(y, eps, log_a, r, log_s):
    """Those of v, less the constant of the densities."""
    away = y[:, None] - r
    variances = eps * np.exp(log_s)
    return log_a - 0.5 * np.sum(away**2 / variances + np.log(variances), axis=2)


def _equations(data, log_a, r, log_s):
    """The gradient of L (Korotin et al. 2024) by the weights of the components at each point, and
    the gauge in the place of the first weight's."""
    p, q = (np.full(len(data[n]), 1 / len(data[n])) for n in ("x0", "x1"))
    weights, centres, spread = _slopes(data, log_a, r, log_s, p, q)
    weights[0] = logsumexp(log_a)
    return weights, centres, spread


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


def _draw_unbalanced(rng):
    """Two groups at both ends, and what it costs to leave some out."""
    sources = np.concatenate(
        [_SHIFT + 0.7 * rng.normal(size=(7, 2)), -_SHIFT + 0.8 * rng.normal(size=(9, 2))]
    )
    return _draw(rng) | {"x0": sources, "tau": np.asarray(rng.uniform(2, 4))}


def _start_unbalanced(data):
    bridge = _start(data)
    x0 = data["x0"]
    source = js.GaussianMixture(
        bridge.log_weights, jnp.stack([jnp.mean(x0[:7], axis=0), jnp.mean(x0[7:], axis=0)]),
        bridge.shape, bridge.epsilon, bridge.family,
    )  # fmt: skip
    return js.UnbalancedLightBridge(bridge, source, jnp.ones_like(bridge.epsilon))


def _marginals(data, log_a, r, log_s, log_b, mu, log_t):
    """log A and log B of Gazdieva et al. (2024), and how their means weigh the points."""
    x, y, eps, tau = data["x0"], data["x1"], data["epsilon"], data["tau"]
    constant = np.log(2 * np.pi)  # Half of it for each of two dimensions.
    log_u = logsumexp(_parts(x, eps, log_b, mu, log_t), axis=1) - constant
    log_v = logsumexp(_parts(y, eps, log_a, r, log_s), axis=1) - constant
    phi = eps * (log_u - logsumexp(_terms(data, log_a, r, log_s), axis=1)) + 0.5 * np.sum(x**2, 1)
    psi = eps * log_v + 0.5 * np.sum(y**2, axis=1)
    means = [logsumexp(-z / tau) - np.log(z.size) for z in (phi, psi)]
    return *means, scipy.special.softmax(-phi / tau), scipy.special.softmax(-psi / tau)


def _unbalanced_equations(data, log_a, r, log_s, log_b, mu, log_t):
    """The gradient of their dual function, its multiple of v and the mass minimised out."""
    _, _, p, q = _marginals(data, log_a, r, log_s, log_b, mu, log_t)
    weights, centres, spread = _slopes(data, log_a, r, log_s, p, q)
    weights[0] = logsumexp(log_a)
    x, variances = data["x0"], data["epsilon"] * np.exp(log_t)
    R = p[:, None] * scipy.special.softmax(_parts(x, data["epsilon"], log_b, mu, log_t), axis=1)
    away = x[:, None] - mu
    own = np.exp(log_b) - R.sum(axis=0)
    moved = -np.einsum("ik,ikd->kd", R, away) / variances
    widened = 0.5 * (R.sum(axis=0)[:, None] - np.einsum("ik,ikd->kd", R, away**2) / variances)
    own[0] = logsumexp(log_b)
    return weights, centres, spread, own, moved, widened


def _mass(data, *parts):
    first, second, _, _ = _marginals(data, *parts)
    return np.exp(data["tau"] / (2 * data["tau"] + data["epsilon"]) * (first + second))


def _unflat(z):
    sides = np.split(z, 2)
    return [part for s in sides for part in (s[:2], s[2:6].reshape(2, 2), s[6:].reshape(2, 2))]


def _oracle_unbalanced(data):
    start = _start_unbalanced({k: jnp.asarray(v) for k, v in data.items()})
    u, v = start.source, start.bridge
    z = _flat([v.log_weights, v.centres, v.shape, u.log_weights, u.means, u.shape]).astype(float)

    def fn(z):
        return _flat(_unbalanced_equations(data, *_unflat(z)))

    for _ in range(3000):
        slopes = fn(z)
        slopes[0], slopes[10] = -slopes[1], -slopes[11]
        z = z - 0.2 * slopes
        z[:2] -= logsumexp(z[:2])
        z[10:12] -= logsumexp(z[10:12])
    parts = _unflat(scipy.optimize.root(fn, z, tol=1e-14).x)
    eps = data["epsilon"]
    return [*parts[:3], eps, *parts[3:], eps, _mass(data, *parts)]


def _violation_unbalanced(data, value, dual):
    v, u = value.bridge, value.source
    parts = v.log_weights, v.centres, v.shape, u.log_weights, u.means, u.shape
    off = max(np.abs(part).max() for part in _unbalanced_equations(data, *parts))
    return max(off, np.abs(value.mass - _mass(data, *parts)))


def _turned_unbalanced(data, rng):
    """Axes in another order."""
    other, turned = _turned(data, rng)
    return other, lambda z: np.concatenate([turned(z[:11]), turned(z[11:22]), z[22:]])


def _problem_unbalanced(data):
    return js.SchrodingerBridge(data["x0"], data["x1"], epsilon=data["epsilon"], tau=data["tau"])


_UNBALANCED = _draw_unbalanced(np.random.default_rng(7))

BRIDGE_VARIANTS = [
    Case(
        name="LightSB-unbalanced",
        solver=lambda: js.LightSB(2),
        problem=_problem_unbalanced,
        draw=_draw_unbalanced,
        init=_start_unbalanced,
        oracle=_oracle_unbalanced,
        optimality=_violation_unbalanced,
        outcomes={
            "nan": Expected(_UNBALANCED | {"x1": np.full((17, 2), np.nan)}, "nonfinite_input"),
            "no cost": Expected(_UNBALANCED | {"tau": np.asarray(-1.0)}, "nonfinite_input"),
        },
        invariances={"order of axes": _turned_unbalanced},
        condition=100.0,
    )
]
