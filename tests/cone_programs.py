"""Cone programs with a known solution, and what NumPy and Clarabel say of them."""

import clarabel
import numpy as np
import scipy.sparse

from jaxsolve.convex.cones import (
    Exponential,
    Nonnegative,
    PositiveSemidefinite,
    SecondOrder,
    Zero,
)

_CLARABEL = {
    Zero: lambda c: clarabel.ZeroConeT(c.n),
    Nonnegative: lambda c: clarabel.NonnegativeConeT(c.n),
    SecondOrder: lambda c: clarabel.SecondOrderConeT(c.n),
    PositiveSemidefinite: lambda c: clarabel.PSDTriangleConeT(c.n),
    Exponential: lambda c: clarabel.ExponentialConeT(),
}


def by_clarabel(data, cones):
    """The solution, and its status."""
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    kinds = [clarabel.ZeroConeT(data["b"].size)] + [_CLARABEL[type(c)](c) for c in cones]
    found = clarabel.DefaultSolver(
        scipy.sparse.csc_matrix(np.triu((data["P"] + data["P"].T) / 2)),
        data["q"],
        scipy.sparse.csc_matrix(np.concatenate([data["A"], data["G"]])),
        np.concatenate([data["b"], data["h"]]),
        kinds,
        settings,
    ).solve()
    return np.array(found.x), str(found.status)


def smat(v):
    """The matrix of a scaled lower triangle, row by row."""
    n = int(np.sqrt(2 * v.size))
    matrix = np.zeros((n, n))
    i, j = np.tril_indices(n)
    matrix[i, j] = matrix[j, i] = np.where(i == j, v, v / np.sqrt(2))
    return matrix


def svec(matrix):
    """The inverse of `smat`."""
    i, j = np.tril_indices(len(matrix))
    return np.where(i == j, 1, np.sqrt(2)) * matrix[i, j]


def outside(cone, v) -> float:
    """How far v is outside a cone: at most about its distance, 0 inside."""
    if isinstance(cone, Zero):
        return np.abs(v).max()
    if isinstance(cone, Nonnegative):
        return max(0.0, -v.min())
    if isinstance(cone, SecondOrder):
        return max(0.0, np.linalg.norm(v[1:]) - v[0])
    if isinstance(cone, PositiveSemidefinite):
        return max(0.0, -np.linalg.eigvalsh(smat(v))[0])
    x, y, z = v
    if y <= 0:
        return max(-y, x, -z, 0.0)
    # The excess of y e^(x/y) over z, over the size of its gradient.
    slope = np.exp(x / y)
    return max(0.0, y * slope - z) / np.sqrt(1 + slope**2 * (1 + (1 - x / y) ** 2))


def outside_dual(cone, v) -> float:
    """The same for the dual cone."""
    if isinstance(cone, Zero):
        return 0.0
    if not isinstance(cone, Exponential):
        return outside(cone, v)
    x, y, z = v
    if x >= 0:
        return max(x, -y, -z, 0.0)
    # w >= -u exp(v/u - 1)
    value, r = -x * np.exp(y / x - 1), y / x
    slope = np.exp(r - 1)
    return max(0.0, value - z) / np.sqrt(1 + slope**2 * (1 + (1 - r) ** 2))


def parts(cones, v):
    """(cone, its part of v)."""
    at = 0
    for cone in cones:
        yield cone, v[at : at + cone.rows]
        at += cone.rows


def violation(cones, data, x, dual) -> float:
    """The largest violation of the optimality conditions, over 1 + the largest term."""
    y, z = dual.equality, dual.inequality
    P = (data["P"] + data["P"].T) / 2
    terms = [P @ x, data["q"], y @ data["A"], z @ data["G"]]
    found = [np.abs(sum(terms)).max() / (1 + max(np.abs(t).max() for t in terms))]
    found.append(np.abs(data["A"] @ x - data["b"]).max())
    s = data["h"] - data["G"] @ x
    for (cone, own), (_, other) in zip(parts(cones, s), parts(cones, z), strict=True):
        size = 1 + np.abs(own).max() + np.abs(other).max()
        found += [outside(cone, own) / size, outside_dual(cone, other) / size]
        # s and z are each known to about the tolerance, their product to that times the sizes.
        found.append(abs(own @ other) / size**2)
    return max(found)


def proves(cones, data, value, dual, result) -> bool:
    """Whether a certificate holds, to 1e-3 of what it proves."""
    if result == "infeasible":
        z = dual.inequality
        if max(outside_dual(cone, own) for cone, own in parts(cones, z)) > 1e-6 * np.abs(z).max():
            return False
        gap = data["b"] @ dual.equality + data["h"] @ z
        rest = dual.equality @ data["A"] + z @ data["G"]
        return gap < 0 and np.abs(rest).max() <= 1e-3 * -gap
    descent = data["q"] @ value
    bad = [np.abs(data["P"] @ value).max(), np.abs(data["A"] @ value).max()]
    bad += [outside(cone, own) for cone, own in parts(cones, -data["G"] @ value)]
    return descent < 0 and max(bad) <= 1e-3 * -descent


def planted(rng, cones, n, p, quadratic=True):
    """Data whose solution is the returned x: s and z are projections of one vector."""
    m = sum(cone.rows for cone in cones)
    G, A = rng.normal(size=(m, n)), rng.normal(size=(p, n))
    pairs = [_pair(rng, cone) for cone in cones]
    s, z = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    x, y = rng.normal(size=n), rng.normal(size=p)
    root = rng.normal(size=(n, n))
    P = root @ root.T / n + 0.3 * np.eye(n) if quadratic else np.zeros((n, n))
    data = {
        "P": P,
        "q": -P @ x - A.T @ y - G.T @ z,
        "A": A,
        "b": A @ x,
        "G": G,
        "h": G @ x + s,
    }
    return data, x


def _pair(rng, cone):
    """A slack and a multiplier that are complementary, strictly, on a curved part of the cone."""
    zero = np.zeros(cone.rows)
    if isinstance(cone, Zero):
        return zero, rng.normal(size=cone.rows)
    if isinstance(cone, Nonnegative):
        size, active = rng.uniform(0.3, 2, size=cone.rows), np.arange(cone.rows) % 2 == 0
        return np.where(active, 0, size), np.where(active, size, 0)
    if isinstance(cone, SecondOrder):
        u = rng.normal(size=cone.rows - 1)
        u /= np.linalg.norm(u)
        first, second = rng.uniform(0.5, 2, size=2)
        return first * np.append(1, u), second * np.append(1, -u)
    if isinstance(cone, PositiveSemidefinite):
        vectors = np.linalg.qr(rng.normal(size=(cone.n, cone.n)))[0]
        values, own = rng.uniform(0.5, 2, size=cone.n), np.arange(cone.n) % 2 == 0
        first = (vectors * np.where(own, values, 0)) @ vectors.T
        return svec(first), svec((vectors * np.where(own, 0, values)) @ vectors.T)
    ratio, (first, second) = rng.uniform(-1, 1), rng.uniform(0.5, 2, size=2)
    s = first * np.array([ratio, 1, np.exp(ratio)])
    return s, second * np.array([-1, ratio - 1, np.exp(-ratio)])
