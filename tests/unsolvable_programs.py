"""Linear, quadratic and second-order cone programs without a solution, with the reason planted."""

import numpy as np

N, P, M = 8, 2, 15
CONES = (5, 4, 6)
"""Sizes of the second-order cones of the M rows; linear and quadratic programs have s >= 0."""
KINDS = ("linear", "quadratic", "cone")
REASONS = ("solvable", "infeasible", "unbounded", "both")


def generate(rng, kind: str, reason: str) -> dict:
    """Data P, q, A, b, G, h in float64.

    Solvable: x, s, y, z are drawn and q, b, h follow. Infeasible: A'y + G'z = 0 and b'y + h'z = -1.
    Unbounded: Pd = 0, Ad = 0, -Gd in K, q'd = -1. For "both" there is no feasible point either.
    """
    A, G = rng.normal(size=(P, N)), rng.normal(size=(M, N))
    s, z, k = (inside(rng, kind) for _ in range(3))
    x, y, d = rng.normal(size=N), rng.normal(size=P), rng.normal(size=N)
    root, flat = rng.normal(size=(N, N)) * (kind == "quadratic"), np.eye(N)
    if reason in ("unbounded", "both"):
        flat = np.eye(N) - np.outer(d, d) / (d @ d)
        root, A = root @ flat, A @ flat
        G = G @ flat - np.outer(k, d) / (d @ d)
    if reason == "infeasible":
        G -= np.outer(z, z @ G + y @ A) / (z @ z)
    if reason == "both":
        # A has no part along d, so that z'G has none either: k is orthogonal to z.
        k = opposite(z, kind)
        G = rng.normal(size=(M, N)) @ flat
        G -= np.outer(z, z @ G + y @ A) / (z @ z) + np.outer(k, d) / (d @ d)
    quadratic = root.T @ root / N
    q, b, h = -quadratic @ x - A.T @ y - G.T @ z, A @ x, G @ x + s
    if reason in ("infeasible", "both"):
        h -= z * (h @ z + b @ y + 1) / (z @ z)
    if reason in ("unbounded", "both"):
        q = rng.normal(size=N)
        q -= d * (q @ d + 1) / (d @ d)
    return {"P": quadratic, "q": q, "A": A, "b": b, "G": G, "h": h}


def inside(rng, kind: str) -> np.ndarray:
    """A vector in the cone, not near its boundary."""
    if kind != "cone":
        return rng.uniform(0.2, 1, size=M)
    parts = []
    for n in CONES:
        u = rng.normal(size=n - 1)
        parts += [[1.5 * np.linalg.norm(u) + 0.2], u]
    return np.concatenate(parts)


def opposite(z: np.ndarray, kind: str) -> np.ndarray:
    """A vector of the cone that is orthogonal to z, which loses the part that it needs to."""
    if kind != "cone":
        z[::2] = 0
        return np.where(z > 0, 0, 1.0)
    at, out = 0, np.zeros_like(z)
    for n in CONES:
        u = z[at + 1 : at + n]
        z[at] = np.linalg.norm(u)
        out[at : at + n] = np.append(z[at], -u)
        at += n
    return out


def distance(kind: str, v: np.ndarray) -> float:
    """How far v is outside the cone."""
    if kind != "cone":
        return max(0.0, -v.min())
    at, worst = 0, 0.0
    for n in CONES:
        worst = max(worst, np.linalg.norm(v[at + 1 : at + n]) - v[at])
        at += n
    return worst


def proves(kind: str, data: dict, result: str, value, dual, rtol: float) -> bool:
    """Whether a certificate holds, each condition to `rtol` of the gap that it proves."""
    if result == "infeasible":
        y, z = dual.equality, dual.inequality
        gap = -(data["b"] @ y + data["h"] @ z)
        wrong = max(np.abs(data["A"].T @ y + data["G"].T @ z).max(), distance(kind, z))
    else:
        gap = -data["q"] @ value
        flat = [np.abs(data["P"] @ value).max(), np.abs(data["A"] @ value).max()]
        wrong = max(*flat, distance(kind, -data["G"] @ value))
    return bool(gap > 0 and wrong <= rtol * gap)


def excess(kind: str, data: dict, x, y, z) -> np.ndarray:
    """The worst violation of the conditions, a number a problem (all have a leading axis)."""
    flat = np.einsum("bij,bj->bi", data["P"], x) + data["q"]
    flat += np.einsum("bij,bi->bj", data["A"], y) + np.einsum("bij,bi->bj", data["G"], z)
    gap = np.einsum("bij,bj->bi", data["A"], x) - data["b"]
    slack = data["h"] - np.einsum("bij,bj->bi", data["G"], x)
    worst = np.maximum(np.abs(flat).max(1), np.abs(gap).max(1))
    if kind != "cone":
        return np.maximum(worst, np.abs(np.minimum(slack, z)).max(1))
    at = 0
    for n in CONES:
        for v in (slack[:, at : at + n], z[:, at : at + n]):
            worst = np.maximum(worst, np.linalg.norm(v[:, 1:], axis=1) - v[:, 0])
        at += n
    return np.maximum(worst, np.abs(np.sum(slack * z, axis=1)))
