"""Entropic barycentres as cases of the contract, with Bregman projections in NumPy as oracle."""

import numpy as np
from scipy.special import logsumexp

import jaxsolve as js
from jaxsolve.testing import Case, Degenerate, Expected

_K, _N, _M = 2, 4, 3


class Written(js.Barycentre):
    """Its value is written out: the barycentre, the plans and the potentials."""

    def prepare(self, init):
        return super().prepare(None)

    def restore(self, value):
        found = super().restore(value)
        return (found.barycentre, found.matrices, *found.potentials)

    def stationary(self, value, solved):
        return value


def barycentre(costs, measures, weights, epsilon):
    """(b, matrices, f, g), in logarithms, to the last digits; each g_k has mean 0."""
    w = weights / weights.sum()
    size = costs.shape[2]
    g = np.zeros((w.size, size))
    with np.errstate(divide="ignore"):
        la = np.log(measures)
    for _ in range(100_000):
        f = -epsilon * logsumexp((g[:, None] - costs) / epsilon - np.log(size), axis=2)
        sums = logsumexp((f[:, :, None] + g[:, None] - costs) / epsilon + la[:, :, None], axis=1)
        change = epsilon * (w @ sums - sums)
        g = g + change
        if np.abs(change).max() < 1e-15 * max(1, np.abs(g).max()):
            break
    middle = g.mean(axis=1, keepdims=True)
    f, g = f + middle, g - middle
    matrices = np.exp((f[:, :, None] + g[:, None] - costs) / epsilon) * measures[:, :, None] / size
    return matrices[0].sum(0), matrices, f, g


def _draw(rng):
    return {
        "cost": rng.uniform(size=(_K, _N, _M)),
        "measures": rng.uniform(0.5, 1.5, size=(_K, _N)),
        "weights": rng.uniform(0.5, 1.5, size=_K),
        "epsilon": rng.uniform(0.2, 0.5),
    }


def _measures(data):
    """Of total 1, whatever the data."""
    a = data["measures"]
    return a * (1 / a.sum(axis=1))[:, None]


def _gap(data, value):
    """The sums of the plans, and that they are those of the potentials."""
    b, matrices, f, g = value
    a, epsilon = _measures(data), float(data["epsilon"])
    w = data["weights"] / data["weights"].sum()
    made = np.exp((f[:, :, None] + g[:, None] - data["cost"]) / epsilon) * a[:, :, None] / _M
    sums = np.abs(matrices.sum(2) - a).sum() + np.abs(matrices.sum(1) - b).sum()
    return max(sums / a.sum(), np.abs(made - matrices).max() / matrices.max(), np.abs(w @ g).max())


def _with(**changes):
    return {**_draw(np.random.default_rng(5)), **changes}


def _permuted(data, rng):
    """Another order of the measures."""
    other = {**data, **{k: data[k][::-1] for k in ("cost", "measures", "weights")}}

    def undone(value):
        parts = np.split(np.asarray(value), np.cumsum([_M, _K * _N * _M, _K * _N]))
        return np.concatenate([parts[0], *(p.reshape(_K, -1)[::-1].ravel() for p in parts[1:])])

    return other, undone


_EMPTY = np.array([[0.7, 0.0, 1.1, 0.4], [0.5, 0.6, 0.8, 0.3]])

BARYCENTRES = [
    Case(
        name="BregmanProjections",
        solver=js.BregmanProjections,
        problem=lambda data: Written(
            data["cost"], _measures(data), data["weights"], epsilon=data["epsilon"]
        ),
        draw=_draw,
        oracle=lambda data: barycentre(
            data["cost"], _measures(data), data["weights"], float(data["epsilon"])
        ),
        optimality=lambda data, value, dual: _gap(data, value),
        outcomes={
            "nan": Expected(_with(cost=np.full((_K, _N, _M), np.nan)), "nonfinite_input"),
            "negative": Expected(_with(weights=np.array([1.0, -0.2])), "infeasible"),
            "negative epsilon": Expected(_with(epsilon=np.array(-0.3)), "nonconvex"),
            "no weight": Expected(_with(measures=_EMPTY), "successful"),
            "not looked at": Expected(_with(weights=np.array([1.0, 0.0])), "successful"),
        },
        certificate=lambda data, value, dual, result: data["weights"].min() < 0,
        degenerate={"no weight": Degenerate(_with(measures=_EMPTY), "finite")},
        invariances={"permutation": _permuted},
        condition=30.0,
    )
]
