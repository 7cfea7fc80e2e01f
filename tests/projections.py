"""Projections as cases of the contract, with oracles in NumPy, SciPy and Clarabel."""

from typing import Any

import clarabel
import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse

import jaxsolve as js
from jaxsolve import sets
from jaxsolve.testing import Case, Degenerate, Expected

_N = 5


def shifted(point, total):
    """The simplex by sorting."""
    order = -np.sort(-point)
    means = (np.cumsum(order) - total) / np.arange(1, point.size + 1)
    return np.maximum(point - means[np.flatnonzero(order > means)[-1]], 0)


def simplex(data):
    return shifted(data["point"], float(data["total"]))


def l1_ball(data):
    point, radius = data["point"], float(data["radius"])
    if np.abs(point).sum() <= radius:
        return point
    return np.sign(point) * shifted(np.abs(point), radius)


def capped(data):
    """By bisection, then the mean of what is free."""
    point, cap, total = data["point"], data["cap"], float(data["total"])
    excess = lambda tau: np.clip(point - tau, 0, cap).sum() - total
    tau = scipy.optimize.brentq(excess, point.min() - cap.max() - 1, point.max() + 1, xtol=1e-15)
    return np.clip(point - tau, 0, cap)


def polytope(point, rows, columns):
    """The transport polytope as one sparse program."""
    n, m = point.shape
    sums = [np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))[:-1], -np.eye(n * m)]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-13
    solution = clarabel.DefaultSolver(
        scipy.sparse.identity(n * m, format="csc"),
        -point.ravel(),
        scipy.sparse.csc_matrix(np.concatenate(sums)),
        np.concatenate([rows, columns[:-1], np.zeros(n * m)]),
        [clarabel.ZeroConeT(n + m - 1), clarabel.NonnegativeConeT(n * m)],
        settings,
    ).solve()
    return np.array(solution.x).reshape(n, m)


def normal_cone(point, value, inside, best):
    """The variational inequality: value is in the set, and <point - value, c - value> <= 0 for the
    c of the set that makes it largest."""
    gap = best - np.sum((point - value) * value)
    return max(inside, gap / max(1.0, np.abs(point).max()))


def _simplex_gap(data, value, dual):
    total = float(data["total"])
    inside = max(-value.min(), abs(value.sum() - total))
    return normal_cone(data["point"], value, inside, total * (data["point"] - value).max())


def _l1_gap(data, value, dual):
    radius = float(data["radius"])
    inside = max(np.abs(value).sum() - radius, 0)
    return normal_cone(data["point"], value, inside, radius * np.abs(data["point"] - value).max())


def _capped_gap(data, value, dual):
    cap, total = data["cap"], float(data["total"])
    pull = data["point"] - value
    left, best = total, 0.0
    for i in np.argsort(-pull):
        take = min(cap[i], left)
        best, left = best + take * pull[i], left - take
    inside = max(-value.min(), (value - cap).max(), abs(value.sum() - total))
    return normal_cone(data["point"], value, inside, best)


def _strict(draw, solve):
    """Data whose solution is away from the boundary of its pattern."""

    def drawn(rng):
        while True:
            data = draw(rng)
            value = solve(data)
            if regular(data, value):
                return data

    return drawn


def regular(data, value):
    """No entry near a bound that it does not hold."""
    free = np.abs(value[np.abs(value) > 1e-9])
    return free.size > 1 and free.min() > 0.05 and free.size < value.size


def _draw_simplex(rng):
    return {"point": rng.normal(size=_N), "total": rng.uniform(0.5, 2.0)}


def _draw_l1(rng):
    return {"point": 2 * rng.normal(size=_N), "radius": rng.uniform(0.5, 2.0)}


def _draw_capped(rng):
    return {
        "point": 2 * rng.normal(size=_N),
        "cap": rng.uniform(0.5, 1.0, size=_N),
        "total": rng.uniform(0.8, 1.5),
    }


def _permuted(data, rng):
    order = rng.permutation(_N)
    other = {k: v[order] if np.ndim(v) else v for k, v in data.items()}
    return other, lambda x: x[np.argsort(order)]


def _moved(data, rng):
    """Along the normal of the simplex nothing changes."""
    return {**data, "point": data["point"] + rng.normal()}, lambda x: x


_POINT = np.array([1.0, 0.2, -0.3, 0.4, -2.0])


def _empty(data, value, dual, result):
    """That a size is negative, or that equal rows have two sides, is all the proof there is."""
    if "A" in data:
        return bool(np.array_equal(data["A"][0], data["A"][1]) and data["b"][0] != data["b"][1])
    return min(np.min(data[k]) for k in ("total", "radius", "rows") if k in data) < 0


# --- Transport polytopes ------------------------------------------------------------------------


def _marginals(data):
    return data["rows"] / data["rows"].sum(), data["columns"] / data["columns"].sum()


def _transport(data):
    return polytope(data["point"], *_marginals(data))


def _connected(mask):
    n, m = mask.shape
    graph = np.block([[np.zeros((n, n)), mask], [mask.T, np.zeros((m, m))]])
    return scipy.sparse.csgraph.connected_components(graph)[0] == 1


def _draw_transport(rng):
    while True:
        data = {
            "point": 0.3 * rng.normal(size=(3, 4)),
            "rows": rng.uniform(0.5, 1.0, size=3),
            "columns": rng.uniform(0.5, 1.0, size=4),
        }
        value = _transport(data)
        held = value < 1e-9
        if held.any() and value[~held].min() > 0.01 and _connected(~held):
            return data


def _transport_gap(data, value, dual):
    rows, columns = _marginals(data)
    u, v = dual.equality
    slack = u[:, None] + v - data["point"]
    return max(
        np.abs(value.sum(1) - rows).max(),
        np.abs(value.sum(0) - columns).max(),
        np.abs(np.minimum(value, value + slack)).max(),
    )


def _transport_problem(data):
    rows, columns = data["rows"], data["columns"]
    polytope = sets.TransportPolytope(rows / jnp.sum(rows), columns / jnp.sum(columns))
    return js.Projection(data["point"], polytope)


def _transposed_lanes(data, rng):
    """Other orders of rows and columns."""
    first, second = rng.permutation(3), rng.permutation(4)
    other = {
        "point": data["point"][first][:, second],
        "rows": data["rows"][first],
        "columns": data["columns"][second],
    }
    return other, lambda x: x.reshape(3, 4)[np.argsort(first)][:, np.argsort(second)]


# --- Linear equations -----------------------------------------------------------------------------


def _equations(data):
    """Three rows, and the sum of two of them."""
    A, b = data["A"], data["b"]
    return np.concatenate([A, A[:1] + A[1:2]]), np.concatenate([b, b[:1] + b[1:2]])


def _affine_problem(data):
    A, b = data["A"], data["b"]
    rows = jnp.concatenate([A, A[:1] + A[1:2]])
    return js.Projection(data["point"], sets.Affine(rows, jnp.append(b, b[0] + b[1])))


def _affine(data):
    A, b = _equations(data)
    return data["point"] - np.linalg.lstsq(A, A @ data["point"] - b, rcond=1e-12)[0]


def _affine_gap(data, value, dual):
    A, b = _equations(data)
    pull = data["point"] - value
    multiplier = np.linalg.lstsq(A.T, pull, rcond=1e-12)[0]
    return max(np.abs(A @ value - b).max(), np.abs(pull - A.T @ multiplier).max())


def _draw_affine(rng):
    A = rng.normal(size=(3, _N))
    return {"point": rng.normal(size=_N), "A": A, "b": A @ rng.normal(size=_N)}


def _affine_permuted(data, rng):
    order = rng.permutation(_N)
    other = {**data, "point": data["point"][order], "A": data["A"][:, order]}
    return other, lambda x: x[np.argsort(order)]


def _rows_scaled(data, rng):
    size = 10.0 ** rng.uniform(-2, 2, size=3)
    return {**data, "A": size[:, None] * data["A"], "b": size * data["b"]}, lambda x: x


_APART = {"A": np.concatenate([np.ones((2, _N)), np.eye(1, _N)]), "b": np.array([1.0, 2.0, 0.0])}


_CROWDED = {"rows": np.array([1.0, -0.2, 1.0]), "columns": np.ones(4)}


# --- Intersections, sublevel sets, semidefinite matrices --------------------------------------


def _orthant_ball(data):
    """A cone and a ball around its tip: one after the other."""
    positive = np.maximum(data["point"], 0)
    return positive * min(1, float(data["radius"]) / np.linalg.norm(positive))


def _ball_gap(data, value, dual):
    radius = float(data["radius"])
    inside = max(np.linalg.norm(value) - radius, -value.min())
    best = radius * np.linalg.norm(np.maximum(data["point"] - value, 0))
    return normal_cone(data["point"], value, inside, best)


def _ellipse(data):
    point, axes = data["point"], data["axes"]
    at = lambda z: point / (1 + 2 * z * axes)
    if axes @ point**2 <= 1:
        return point
    z = scipy.optimize.brentq(lambda z: axes @ at(z) ** 2 - 1, 0, 1e4, xtol=1e-15, rtol=1e-15)
    return at(z)


def _ellipse_gap(data, value, dual):
    z, slope = float(dual.inequality), 2 * data["axes"] * value
    level = data["axes"] @ value**2 - 1
    stationary = np.abs(value - data["point"] + z * slope).max()
    return max(stationary / max(1, np.abs(data["point"]).max()), abs(min(z, -level)))


class _Level(eqx.Module):
    """A module: its array is data, and new data are no new function."""

    axes: Any

    def __call__(self, w):
        return jnp.sum(self.axes * w**2) - 1


def _ellipse_problem(data):
    return js.Projection(data["point"], sets.Sublevel(_Level(data["axes"])))


def _draw_matrix(rng):
    while True:
        matrix = rng.normal(size=(3, 3))
        values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
        if np.abs(values).min() > 0.2 and values[0] < 0 < values[-1]:
            return {"point": matrix}


def _semidefinite(data):
    values, vectors = np.linalg.eigh((data["point"] + data["point"].T) / 2)
    return (vectors * np.maximum(values, 0)) @ vectors.T


def _semidefinite_gap(data, value, dual):
    slack = value - (data["point"] + data["point"].T) / 2
    lowest = min(np.linalg.eigvalsh(value)[0], np.linalg.eigvalsh(slack)[0])
    return max(-lowest, np.abs(value @ slack).max())


def _projection(name, problem, draw, oracle, optimality, **more):
    return Case(
        name=f"Projection-{name}",
        solver=lambda: None,
        problem=problem,
        draw=draw,
        oracle=oracle,
        optimality=optimality,
        certificate=_empty,
        **more,
    )


def _nan(data):
    point = np.array(data["point"])
    point.flat[1] = np.nan
    return Expected({**data, "point": point}, "nonfinite_input")


def _outcomes(draw, **others):
    return {"nan": _nan(draw(np.random.default_rng(7)))} | others


_TIED = np.array([0.5, 0.5, -0.5, -1.0, -2.0])

PROJECTIONS = [
    _projection(
        "simplex",
        lambda data: js.Projection(data["point"], sets.Simplex(data["total"])),
        _strict(_draw_simplex, simplex),
        simplex,
        _simplex_gap,
        outcomes=_outcomes(
            _draw_simplex,
            empty=Expected({"point": _POINT, "total": -1.0}, "infeasible"),
            origin=Expected({"point": _POINT, "total": 0.0}, "successful"),
        ),
        degenerate={
            # The third entry is 0 without a force.
            "touching": Degenerate({"point": _TIED, "total": 2.0}, "finite"),
            "origin": Degenerate({"point": _TIED, "total": 0.0}, "finite"),
        },
        invariances={"permutation": _permuted, "shift": _moved},
    ),
    _projection(
        "l1-ball",
        lambda data: js.Projection(data["point"], sets.L1Ball(data["radius"])),
        _strict(_draw_l1, l1_ball),
        l1_ball,
        _l1_gap,
        outcomes=_outcomes(
            _draw_l1,
            empty=Expected({"point": _POINT, "radius": -1.0}, "infeasible"),
            inside=Expected({"point": _POINT, "radius": 9.0}, "successful"),
            origin=Expected({"point": _POINT, "radius": 0.0}, "successful"),
        ),
        degenerate={
            "boundary": Degenerate({"point": _TIED, "radius": np.abs(_TIED).sum()}, "finite"),
            "zeros": Degenerate({"point": np.zeros(_N), "radius": 0.0}, "finite"),
        },
        invariances={"permutation": _permuted},
    ),
    _projection(
        "capped-simplex",
        lambda data: js.Projection(data["point"], sets.CappedSimplex(data["total"], data["cap"])),
        _strict(_draw_capped, capped),
        capped,
        _capped_gap,
        outcomes=_outcomes(
            _draw_capped,
            empty=Expected({"point": _POINT, "cap": np.ones(_N), "total": -0.5}, "infeasible"),
            full=Expected({"point": _POINT, "cap": np.ones(_N), "total": 5.0}, "successful"),
            integral=Expected({"point": _POINT, "cap": np.ones(_N), "total": 0.0}, "successful"),
        ),
        invariances={"permutation": _permuted, "shift": _moved},
    ),
    _projection(
        "affine",
        _affine_problem,
        _draw_affine,
        _affine,
        _affine_gap,
        outcomes=_outcomes(
            _draw_affine,
            empty=Expected({"point": _POINT, **_APART}, "infeasible"),
            anywhere=Expected(
                {"point": _POINT, "A": np.zeros((3, _N)), "b": np.zeros(3)}, "successful"
            ),
        ),
        degenerate={
            "twice": Degenerate(
                {"point": _POINT, **_APART, "b": np.array([1.0, 1.0, 0.0])}, "finite"
            )
        },
        invariances={"permutation": _affine_permuted, "row scaling": _rows_scaled},
        condition=30.0,
    ),
    _projection(
        "semidefinite",
        lambda data: js.Projection(data["point"], sets.PSDCone()),
        _draw_matrix,
        _semidefinite,
        _semidefinite_gap,
        outcomes=_outcomes(_draw_matrix),
        # An eigenvalue that is repeated, and one that is 0.
        degenerate={"identity": Degenerate({"point": np.diag([1.0, 1.0, 0.0])}, "finite")},
    ),
    _projection(
        "transport",
        _transport_problem,
        _draw_transport,
        _transport,
        _transport_gap,
        outcomes=_outcomes(
            _draw_transport,
            negative=Expected({"point": np.zeros((3, 4)), **_CROWDED}, "infeasible"),
        ),
        # Positive entries in three components.
        degenerate={
            "components": Degenerate(
                {
                    "point": 9 * np.eye(3, 4),
                    "rows": np.array([1.0, 1.0, 2.0]),
                    "columns": np.array([1.0, 1.0, 1.0, 1.0]),
                },
                "finite",
            )
        },
        invariances={"permutation": _transposed_lanes},
        condition=30.0,
    ),
    _projection(
        "intersection",
        lambda data: js.Projection(
            data["point"], sets.Intersection(sets.L2Ball(data["radius"]), sets.Box(lower=0.0))
        ),
        _strict(_draw_l1, _orthant_ball),
        _orthant_ball,
        _ball_gap,
        outcomes=_outcomes(_draw_l1),
        invariances={"permutation": _permuted},
    ),
    _projection(
        "sublevel",
        _ellipse_problem,
        lambda rng: {
            "point": rng.uniform(1.0, 2.0, size=_N) * rng.choice([-1, 1], size=_N),
            "axes": rng.uniform(0.5, 3.0, size=_N),
        },
        _ellipse,
        _ellipse_gap,
        outcomes=_outcomes(
            lambda rng: {"point": _POINT, "axes": np.ones(_N)},
            inside=Expected({"point": 0.1 * _POINT, "axes": np.ones(_N)}, "successful"),
        ),
        invariances={"permutation": _permuted},
    ),
]
"""Each set's own solver (`solver=None`)."""
