"""Entropic transport as cases of the contract, with Sinkhorn's method in NumPy as oracle."""

import numpy as np
from scipy.special import logsumexp

import jaxsolve as js
from jaxsolve.testing import Case, Degenerate, Expected

_N, _M = 4, 3


class Written(js.EntropicTransport):
    """Its value is the plan's matrix and potentials: what every representation agrees on."""

    def prepare(self, init):
        return super().prepare(None)

    def restore(self, value):
        plan = super().restore(value)
        return (plan.matrix, *plan.potentials)

    def stationary(self, value, solved):
        return value


def sinkhorn(cost, a, b, epsilon, tau=None):
    """(matrix, f, g), in logarithms, to the last digits; <b, g> = 0 where sums are held."""
    share = 1.0 if tau is None else tau / (tau + epsilon)
    f, g = np.zeros(a.size), np.zeros(b.size)
    with np.errstate(divide="ignore"):
        la, lb = np.log(a), np.log(b)
    for _ in range(100_000):
        f = -share * epsilon * logsumexp((g - cost) / epsilon + lb, axis=1)
        new = -share * epsilon * logsumexp((f[:, None] - cost) / epsilon + la[:, None], axis=0)
        change, g = np.abs(new - g).max(), new
        if change < 1e-15 * max(1, np.abs(g).max()):
            break
    if tau is None:
        middle = b @ g / b.sum()
        f, g = f + middle, g - middle
    return a[:, None] * b * np.exp((f[:, None] + g - cost) / epsilon), f, g


def _draw(rng):
    return {
        "cost": rng.uniform(size=(_N, _M)),
        "a": rng.uniform(0.5, 1.5, size=_N),
        "b": rng.uniform(0.5, 1.5, size=_M),
        "epsilon": rng.uniform(0.2, 0.5),
    }


def _weights(data):
    """Of one total, whatever the data."""
    return data["a"], data["b"] * (data["a"].sum() / data["b"].sum())


def _problem(data, tau):
    a, b = _weights(data)
    return Written(data["cost"], a, b, epsilon=data["epsilon"], tau=tau)


def _oracle(data, tau):
    a, b = _weights(data)
    return sinkhorn(data["cost"], a, b, float(data["epsilon"]), tau)


def _gap(data, value, tau):
    """The sums, and that the matrix is that of the potentials."""
    matrix, f, g = value
    a, b = _weights(data)
    epsilon = float(data["epsilon"])
    made = a[:, None] * b * np.exp((f[:, None] + g - data["cost"]) / epsilon)
    share = (1, 1) if tau is None else (np.exp(-f / tau), np.exp(-g / tau))
    sums = np.abs(matrix.sum(1) - a * share[0]).sum() + np.abs(matrix.sum(0) - b * share[1]).sum()
    return max(sums / a.sum(), np.abs(made - matrix).max() / matrix.max())


def _with(**changes):
    return {**_draw(np.random.default_rng(5)), **changes}


def _split(value):
    matrix, f, g = np.split(np.asarray(value), np.cumsum([value.size - _N - _M, _N]))
    return matrix.reshape(_N, _M), f, g


def _permuted(data, rng):
    order, back = rng.permutation(_N), None
    back = np.argsort(order)
    other = {**data, "cost": data["cost"][order], "a": data["a"][order]}

    def undone(value):
        matrix, f, g = _split(value)
        return np.concatenate([matrix[back].ravel(), f[back], g])

    return other, undone


def _shifted(data, rng):
    """A number for each row, added to its costs, is added to its potential."""
    shift = rng.normal(size=_N)

    def undone(value):
        matrix, f, g = _split(value)
        return np.concatenate([matrix.ravel(), f - shift, g])

    return {**data, "cost": data["cost"] + shift[:, None]}, undone


_EMPTY = np.array([0.7, 0.0, 1.1, 0.4])


def transport(name, solver, tau=None, condition=30.0, **more):
    return Case(
        name=name,
        solver=solver,
        problem=lambda data: _problem(data, tau),
        draw=_draw,
        oracle=lambda data: _oracle(data, tau),
        optimality=lambda data, value, dual: _gap(data, value, tau),
        outcomes={
            "nan": Expected(_with(cost=np.full((_N, _M), np.nan)), "nonfinite_input"),
            "negative weight": Expected(_with(a=np.array([1.0, -0.1, 1.0, 1.0])), "infeasible"),
            "negative epsilon": Expected(_with(epsilon=np.array(-0.3)), "nonconvex"),
            "no weight": Expected(_with(a=_EMPTY), "successful"),
        },
        certificate=lambda data, value, dual, result: data["a"].min() < 0,
        degenerate={
            "no weight": Degenerate(_with(a=_EMPTY, b=np.array([0.5, 0.0, 0.8])), "finite")
        },
        invariances={"permutation": _permuted} | ({} if tau else {"shift": _shifted}),
        condition=condition,
        **more,
    )


TRANSPORT = [
    transport("Sinkhorn", js.Sinkhorn),
    transport("SinkhornNewton", js.SinkhornNewton),
]
TRANSPORT_VARIANTS = [transport("Sinkhorn-unbalanced", js.Sinkhorn, 0.8, condition=100.0)]
