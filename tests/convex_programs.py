"""Quadratic programs of one shape, and what NumPy and Clarabel say of them."""

from pathlib import Path

import clarabel
import jax.numpy as jnp
import numpy as np
import scipy.sparse

FIELDS = ("P", "q", "A", "b", "G", "h", "lower", "upper")
SIZE, EQUALITIES, ROWS = 5, 2, 4
MAROS_MESZAROS = Path(__file__).parent / "data" / "maros_meszaros"


def regular(seed: int) -> dict[str, np.ndarray]:
    """A strictly convex program with an interior point."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(SIZE, SIZE))
    inside = rng.uniform(-0.5, 0.5, SIZE)
    A, G = rng.normal(size=(EQUALITIES, SIZE)), rng.normal(size=(ROWS, SIZE))
    return {
        "P": root @ root.T / SIZE + 0.1 * np.eye(SIZE),
        "q": rng.normal(size=SIZE),
        "A": A,
        "b": A @ inside,
        "G": G,
        "h": G @ inside + rng.uniform(0.1, 1, ROWS),
        "lower": np.full(SIZE, -1.0),
        "upper": np.full(SIZE, 1.0),
    }


def outcomes() -> dict[str, tuple[dict[str, np.ndarray], str]]:
    """Name -> data of the same shape, and the result that it must have."""
    base, infinite = regular(100), np.full(SIZE, np.inf)
    e = np.eye(SIZE)

    def case(result, **changes):
        return {**base, **changes}, result

    contradiction = np.array([-3.0, -3.0, *base["h"][2:]])
    nan = base["q"].copy()
    nan[2] = np.nan
    fixed = base["lower"].copy()
    fixed[1] = 0.25
    inside = np.linalg.lstsq(base["A"], base["b"], rcond=None)[0]
    direction = np.linalg.svd(base["A"])[2][-1]
    return {
        "regular": case("successful"),
        "linear": case("successful", P=np.zeros((SIZE, SIZE))),
        "open": case("successful", h=np.full(ROWS, np.inf), lower=-infinite, upper=infinite),
        "redundant": case(
            "successful", A=np.stack([base["A"][0]] * 2), b=np.stack([base["b"][0]] * 2)
        ),
        "duplicated rows": case(
            "successful",
            G=np.concatenate([base["G"][:2]] * 2),
            h=np.concatenate([base["h"][:2]] * 2),
        ),
        "fixed": case(
            "successful",
            b=base["A"] @ (0.25 * e[1]),
            lower=fixed,
            upper=np.where(e[1], fixed, 1.0),
            h=base["G"] @ (0.25 * e[1]) + 0.5,
        ),
        "far": case("successful", q=1e3 * base["q"], lower=-infinite, h=1e2 * np.abs(base["h"])),
        "contradicting rows": case(
            "infeasible", G=np.stack([e[0], -e[0], *base["G"][2:]]), h=contradiction
        ),
        "contradicting equalities": case(
            "infeasible", A=np.stack([base["A"][0]] * 2), b=np.array([0.1, 0.2])
        ),
        "bounds against equalities": case("infeasible", b=base["b"] + 50.0),
        "crossed": case("infeasible", lower=base["upper"] + e[3]),
        "unbounded": case(
            "unbounded",
            P=np.zeros((SIZE, SIZE)),
            q=-direction,
            G=np.zeros((ROWS, SIZE)),
            b=base["A"] @ inside,
            h=np.ones(ROWS),
            lower=-infinite,
            upper=infinite,
        ),
        "indefinite": case("nonconvex", P=base["P"] - 3 * np.outer(direction, direction)),
        "nan": case("nonfinite_input", q=nan),
        "infinite row": case("nonfinite_input", h=np.where(np.arange(ROWS) == 0, -np.inf, 1.0)),
    }


def residual(data, x, dual) -> float:
    """The largest violation of the optimality conditions, in NumPy float64."""
    x = np.asarray(x, np.float64)
    y, z, low, high = (np.asarray(part, np.float64) for part in dual)
    with np.errstate(invalid="ignore"):
        pairs = [
            np.minimum(z, data["h"] - data["G"] @ x),
            np.minimum(low, x - data["lower"]),
            np.minimum(high, data["upper"] - x),
        ]
    gradient = data["P"] @ x + data["q"] + data["A"].T @ y + data["G"].T @ z - low + high
    parts = [gradient, data["A"] @ x - data["b"], *pairs]
    return max(float(np.max(np.abs(part))) for part in parts)


def farkas(data, dual) -> tuple[float, float]:
    """|A'y + G'z - w_l + w_u| and b'y + h'z - lower'w_l + upper'w_u: must be 0, and negative."""
    y, z, low, high = (np.asarray(part, np.float64) for part in dual)
    assert min(z.min(), low.min(), high.min()) >= 0
    for weight, side in ((z, data["h"]), (low, data["lower"]), (high, data["upper"])):
        assert (weight[~np.isfinite(side)] == 0).all()
    finite = lambda side: np.where(np.isfinite(side), side, 0)
    total = data["A"].T @ y + data["G"].T @ z - low + high
    value = data["b"] @ y + finite(data["h"]) @ z
    value += -finite(data["lower"]) @ low + finite(data["upper"]) @ high
    return float(np.max(np.abs(total))), float(value)


def by_clarabel(data) -> np.ndarray:
    """The solution by another solver."""
    rows = [data["G"], -np.eye(SIZE), np.eye(SIZE)]
    sides = [data["h"], -data["lower"], data["upper"]]
    G, h = np.concatenate(rows), np.concatenate(sides)
    kept = np.isfinite(h)
    stacked = scipy.sparse.csc_matrix(np.concatenate([data["A"], G[kept]]))
    side = np.concatenate([data["b"], h[kept]])
    cones = [clarabel.ZeroConeT(len(data["b"])), clarabel.NonnegativeConeT(int(kept.sum()))]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    P = scipy.sparse.csc_matrix(np.triu(data["P"]))
    found = clarabel.DefaultSolver(P, data["q"], stacked, side, cones, settings).solve()
    assert str(found.status) in ("Solved", "AlmostSolved")
    return np.array(found.x)


def active_set_gradient(data, x, dual, cotangent) -> np.ndarray:
    """The derivative of cotangent'x in q, from the equations of the active set in NumPy."""
    z, low, high = (np.asarray(part, np.float64) for part in (dual[1], dual[2], dual[3]))
    x, e = np.asarray(x, np.float64), np.eye(SIZE)
    rows = [
        data["A"],
        data["G"][z > data["h"] - data["G"] @ x],
        e[low > x - data["lower"]],
        e[high > data["upper"] - x],
    ]
    E = np.concatenate(rows)
    system = np.block([[data["P"], E.T], [E, np.zeros((len(E), len(E)))]])
    return -np.linalg.solve(system, np.concatenate([cotangent, np.zeros(len(E))]))[:SIZE]


def stacked(many, dtype):
    """Fields with a leading axis."""
    return {f: jnp.asarray(np.stack([data[f] for data in many]), dtype) for f in FIELDS}


def maros_meszaros(name: str):
    """P, q, A, l, u, r and the optimal value."""
    data = np.load(MAROS_MESZAROS / f"{name}.npz")
    n, m = int(data["n"]), int(data["m"])
    matrices = []
    for field, shape in (("P", (n, n)), ("A", (m, n))):
        parts = (data[f"{field}_{part}"] for part in ("data", "indices", "indptr"))
        matrices.append(scipy.sparse.csc_matrix(tuple(parts), shape).toarray())
    P, A = matrices
    return P, data["q"], A, data["l"], data["u"], float(data["r"]), float(data["objective"])
