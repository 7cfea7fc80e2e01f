"""What the data of a quadratic or cone program say before a solve, in words. Eager, in NumPy."""

from typing import Any

import numpy as np

_SPREAD = 1e6


def describe(problem: Any) -> list[str]:
    """One sentence a finding; shapes and dtypes raise as in `solve`."""
    prepared = problem.prepare(None)[0]
    data = {
        name: None if value is None else np.asarray(value, dtype=np.float64)
        for name, value in ((f, getattr(prepared, f, None)) for f in _FIELDS)
    }
    found = _infinite(data, hasattr(problem, "lower"))
    if problem.P is not None:
        found = _asymmetric(np.asarray(problem.P, dtype=np.float64)) + found
    if found and any("NaN" in text or "infinite" in text for text in found):
        return found
    return found + _bounds(data) + _ranks(data) + _curvature(data) + _scaling(data)


_FIELDS = ("P", "q", "A", "b", "G", "h", "lower", "upper")


def _asymmetric(P: np.ndarray) -> list[str]:
    gap = np.max(np.abs(P - P.T), initial=0.0)
    if gap > 1e-6 * np.max(np.abs(P), initial=0.0):
        return [f"`P` is not symmetric (by {gap:.1e}): it is read as (P + P')/2."]
    return []


def _infinite(data: dict, bounded: bool) -> list[str]:
    """`bounded`: rows of G are inequalities, not of cones."""
    found = []
    for name, value in data.items():
        if value is None:
            continue
        if np.isnan(value).any():
            found.append(f"`{name}` holds NaN at {_where(np.isnan(value))}.")
        wrong = {
            "h": np.isneginf(value) if bounded else np.isinf(value),
            "lower": np.isposinf(value),
            "upper": np.isneginf(value),
        }.get(name, np.isinf(value))
        if wrong.any():
            found.append(f"`{name}` is infinite at {_where(wrong)}, where it must be finite.")
    return found


def _bounds(data: dict) -> list[str]:
    lower, upper = data["lower"], data["upper"]
    if lower is None or upper is None:
        return []
    found = []
    if (lower > upper).any():
        found.append(f"`lower` is above `upper` at {_where(lower > upper)}: infeasible.")
    if (lower == upper).any():
        found.append(f"`lower` equals `upper` at {_where(lower == upper)}: fixed variables.")
    return found


def _ranks(data: dict) -> list[str]:
    A, b = data["A"], data["b"]
    if A is None:
        return []
    rank = np.linalg.matrix_rank(A)
    if rank == A.shape[0]:
        return []
    wide = np.linalg.matrix_rank(np.column_stack([A, b]))
    if wide > rank:
        return [f"`A` has rank {rank} and {A.shape[0]} rows, and `b` contradicts it: infeasible."]
    return [
        f"`A` has rank {rank} and {A.shape[0]} rows: redundant equalities, whose multipliers are "
        "not unique."
    ]


def _curvature(data: dict) -> list[str]:
    P, A = data["P"], data["A"]
    if P is None:
        return []
    basis = np.eye(P.shape[0])
    if A is not None:
        _, values, right = np.linalg.svd(A)
        rank = int((values > 1e-10 * values.max(initial=0.0)).sum())
        basis = right[rank:].T
    if basis.shape[1] == 0:
        return []
    values = np.linalg.eigvalsh(basis.T @ P @ basis)
    size = max(np.max(np.abs(values)), np.max(np.abs(P)))
    where = "" if A is None else " on the null space of `A`"
    if values[0] < -1e-9 * size:
        return [
            f"`P` is indefinite{where} (eigenvalue {values[0]:.2e}): the problem is not convex."
        ]
    if size == 0:
        return []
    flat = int((values <= 1e-10 * size).sum())
    if flat:
        return [
            f"`P` is singular{where} ({flat} of {values.size} eigenvalues are 0): the solution may "
            "not be unique, and without constraints it may not exist."
        ]
    return []


def _scaling(data: dict) -> list[str]:
    found = []
    for name in ("P", "A", "G"):
        value = data[name]
        if value is None:
            continue
        sizes = np.max(np.abs(value), axis=1)
        if (sizes == 0).any() and name != "P":
            found.append(f"`{name}` has rows of zeros at {_where(sizes == 0)}.")
        sizes = sizes[sizes > 0]
        if sizes.size and sizes.max() > _SPREAD * sizes.min():
            found.append(
                f"`{name}` is badly scaled: the largest entries of its rows range from "
                f"{sizes.min():.1e} to {sizes.max():.1e}."
            )
    return found


def _where(mask: np.ndarray) -> str:
    places = [tuple(int(i) for i in place) for place in np.argwhere(mask)[:3]]
    shown = ", ".join(str(list(p)) if len(p) > 1 else str(*p) for p in places)
    return shown + (", ..." if int(mask.sum()) > 3 else "")
