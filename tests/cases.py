"""Every registered solver, once: a family of problems, data, and an oracle that is not ours."""

import clarabel
import cone_programs
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import optimistix as optx
import scipy.optimize
import scipy.sparse
from barycentres import BARYCENTRES
from bilevel_problems import APPROXIMATE as APPROXIMATE_BILEVEL, BILEVEL
from bridges import BRIDGE_VARIANTS, BRIDGES
from projections import PROJECTIONS
from sklearn.linear_model import Lasso
from transport_plans import TRANSPORT, TRANSPORT_VARIANTS

import jaxsolve as js
from jaxsolve.testing import Case, Degenerate, Expected

# --- Smooth families ---------------------------------------------------------------------------


def _draw(rng):
    return {"shift": rng.normal(size=3), "weight": rng.uniform(0.5, 2.0, size=3)}


_HARD = {"shift": np.array([40.0, -30.0, 2.0]), "weight": np.array([0.5, 2.0, 1.0])}
_NAN = {"shift": np.array([1.0, np.nan, 0.0]), "weight": np.ones(3)}
_SMOOTH_OUTCOMES = {"hard": Expected(_HARD, "successful"), "nan": Expected(_NAN, "nonfinite_input")}


# Solutions at 0, found at once: a singular Hessian, Jacobian of the equations, of the map.
_FLAT = {"valley": Degenerate({"shift": np.zeros(3), "weight": np.zeros(3)}, "finite")}
_SINGULAR = {"fold": Degenerate({"shift": np.zeros(3), "weight": np.full(3, -0.9)}, "finite")}
_UNIT = {"unit slope": Degenerate({"shift": np.zeros(3), "weight": np.full(3, 1.5)}, "finite")}


def _permuted(data, rng):
    order = rng.permutation(3)
    return {k: v[order] for k, v in data.items()}, lambda y: y[np.argsort(order)]


def _objective(y, data):
    spring = 0.5 * jnp.sum(data["weight"] * (y - data["shift"]) ** 2)
    return spring + 0.025 * jnp.sum(y**4) + 0.5 * jnp.sum(y) ** 2


def _gradient(data, y):
    return data["weight"] * (y - data["shift"]) + 0.1 * y**3 + np.sum(y)


def _root(fn, start):
    found = scipy.optimize.root(fn, start, tol=1e-14)
    return found.x


def minimise(name, solver, **more):
    return Case(
        name=name,
        solver=solver,
        problem=lambda data: js.Minimise(_objective, data),
        draw=_draw,
        init=lambda data: jnp.zeros_like(data["shift"]),
        oracle=lambda data: _root(lambda y: _gradient(data, y), np.zeros(3)),
        optimality=lambda data, y, dual: np.abs(_gradient(data, y)).max(),
        outcomes=_SMOOTH_OUTCOMES,
        degenerate=_FLAT,
        invariances={"permutation": _permuted},
        **more,
    )


def _equations(y, data):
    return 0.1 * y**3 + data["weight"] * y + 0.3 * jnp.sin(jnp.sum(y)) - data["shift"]


def _equations_numpy(data, y):
    return 0.1 * y**3 + data["weight"] * y + 0.3 * np.sin(np.sum(y)) - data["shift"]


def root(name, solver, **more):
    return Case(
        name=name,
        solver=solver,
        problem=lambda data: js.Root(_equations, data),
        draw=_draw,
        init=lambda data: jnp.zeros_like(data["shift"]),
        oracle=lambda data: _root(lambda y: _equations_numpy(data, y), np.zeros(3)),
        optimality=lambda data, y, dual: np.abs(_equations_numpy(data, y)).max(),
        outcomes={"nan": Expected(_NAN, "nonfinite_input")},
        degenerate=_SINGULAR,
        invariances={"permutation": _permuted},
        **more,
    )


def _map(y, data):
    return 0.4 * jnp.sin(data["weight"] * y + jnp.mean(y)) + data["shift"]


def _map_numpy(data, y):
    return 0.4 * np.sin(data["weight"] * y + np.mean(y)) + data["shift"]


def fixed_point(name, solver, **more):
    return Case(
        name=name,
        solver=solver,
        problem=lambda data: js.FixedPoint(_map, data),
        draw=_draw,
        init=lambda data: jnp.zeros_like(data["shift"]),
        oracle=lambda data: _root(lambda y: y - _map_numpy(data, y), data["shift"]),
        optimality=lambda data, y, dual: (
            np.abs(y - _map_numpy(data, y)).max() / max(1.0, np.abs(y).max())
        ),
        outcomes={"nan": Expected(_NAN, "nonfinite_input")},
        degenerate=_UNIT,
        invariances={"permutation": _permuted},
        **more,
    )


_TIMES = np.linspace(0.0, 3.0, 8)


def _decay(rng):
    truth = np.array([rng.uniform(1, 3), rng.uniform(0.3, 1.5)])
    return {"seen": truth[0] * np.exp(-truth[1] * _TIMES) + 0.05 * rng.normal(size=8)}


def _misfit(y, data):
    times = jnp.asarray(_TIMES, data["seen"].dtype)
    return y["height"] * jnp.exp(-y["rate"] * times) - data["seen"]


def _misfit_numpy(data, y):
    return y[0] * np.exp(-y[1] * _TIMES) - data["seen"]


def _misfit_jacobian(y):
    decay = np.exp(-y[1] * _TIMES)
    return np.stack([decay, -y[0] * _TIMES * decay], axis=1)


def _misfit_gradient(data, value, dual):
    y = np.array([float(value["height"]), float(value["rate"])])
    residuals = _misfit_numpy(data, y)
    size = max(1.0, np.sqrt(residuals @ residuals))
    return np.abs(_misfit_jacobian(y).T @ residuals).max() / size


def least_squares(name, solver, **more):
    nan = {"seen": np.where(_TIMES > 2, np.nan, 1.0)}
    return Case(
        name=name,
        solver=solver,
        problem=lambda data: js.LeastSquares(_misfit, data),
        draw=_decay,
        init=lambda data: {
            "height": jnp.ones_like(data["seen"][0]),
            "rate": jnp.ones_like(data["seen"][0]),
        },
        oracle=lambda data: (
            scipy.optimize.least_squares(
                lambda y: _misfit_numpy(data, y),
                np.ones(2),
                _misfit_jacobian,
                xtol=1e-15,
                ftol=1e-15,
                gtol=1e-15,
            ).x
        ),
        optimality=_misfit_gradient,
        outcomes={"nan": Expected(nan, "nonfinite_input")},
        **more,
    )


def _tall(rng):
    matrix = rng.normal(size=(24, 3))
    return {"A": matrix, "b": matrix @ rng.normal(size=3) + 0.5 * rng.normal(size=24)}


def _linear_residuals(y, data):
    return jnp.matmul(data["A"], y, precision="highest") - data["b"]


def _normal(data, y, dual):
    residuals = data["A"] @ y - data["b"]
    return np.abs(data["A"].T @ residuals).max() / max(1.0, np.linalg.norm(residuals))


def _permuted_columns(data, rng):
    order = rng.permutation(3)
    return data | {"A": data["A"][:, order]}, lambda y: y[np.argsort(order)]


def _turned_rows(data, rng):
    turn = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    return {"A": turn @ data["A"], "b": turn @ data["b"]}, lambda y: y


def linear_fit(name, solver, **more):
    base = _tall(np.random.default_rng(7))
    twice = base | {"A": base["A"][:, [0, 1, 1]]}
    return Case(
        name=name,
        solver=solver,
        problem=lambda data: js.LeastSquares(_linear_residuals, data),
        draw=_tall,
        init=lambda data: jnp.zeros_like(data["A"][0]),
        oracle=lambda data: np.linalg.lstsq(data["A"], data["b"])[0],
        optimality=_normal,
        outcomes={
            "nan": Expected(base | {"b": np.full(24, np.nan)}, "nonfinite_input"),
            "columns of other units": Expected(
                base | {"A": base["A"] * np.array([1e-3, 1.0, 5.0])}, "successful"
            ),
            "a column twice": Expected(twice, "successful"),
            "no residuals left": Expected(base | {"b": base["A"] @ np.ones(3)}, "successful"),
        },
        degenerate={"twice": Degenerate(twice, "finite")},
        invariances={"permutation": _permuted_columns, "rotation": _turned_rows},
        **more,
    )


# --- Quadratic programs ------------------------------------------------------------------------

_N, _P, _M = 4, 1, 3
_FIELDS = ("A", "b", "G", "h", "lower", "upper")


def _program(data):
    return js.QuadraticProgram(data["P"], data["q"], **{k: data[k] for k in _FIELDS if k in data})


def _filled(data):
    """The data with all fields: no rows, and infinite bounds, for those that are absent."""
    n = data["q"].size
    none, inf = {"A": np.zeros((0, n)), "b": np.zeros(0)}, np.full(n, np.inf)
    none |= {"G": np.zeros((0, n)), "h": np.zeros(0), "lower": -inf, "upper": inf}
    return none | data


def _clarabel(data):
    data = _filled(data)
    n = data["q"].size
    low, high = np.isfinite(data["lower"]), np.isfinite(data["upper"])
    rows = [data["A"], data["G"], -np.eye(n)[low], np.eye(n)[high]]
    right = [data["b"], data["h"], -data["lower"][low], data["upper"][high]]
    counts = [data["b"].size, data["h"].size + int(low.sum() + high.sum())]
    cones = [c(n) for c, n in zip(_CONES, counts, strict=True) if n]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    solution = clarabel.DefaultSolver(
        scipy.sparse.csc_matrix(np.triu((data["P"] + data["P"].T) / 2)),
        data["q"],
        scipy.sparse.csc_matrix(np.concatenate(rows)),
        np.concatenate(right),
        cones,
        settings,
    ).solve()
    return np.array(solution.x), np.array(solution.z), np.array(solution.s)


_CONES = (clarabel.ZeroConeT, clarabel.NonnegativeConeT)


def _program_data(rng, keep=_FIELDS):
    """Strictly convex, with active and inactive constraints and strict complementarity."""
    while True:
        factor = rng.normal(size=(_N, _N))
        x = rng.normal(size=_N)
        A, G = rng.normal(size=(_P, _N)), rng.normal(size=(_M, _N))
        data = {
            "P": factor @ factor.T + np.eye(_N),
            "q": 3 * rng.normal(size=_N),
            "A": A,
            "b": A @ x,
            "G": G,
            "h": G @ x + rng.uniform(0.1, 0.5, size=_M),
            "lower": x - rng.uniform(0.2, 1.0, size=_N),
            "upper": x + rng.uniform(0.2, 1.0, size=_N),
        }
        data = {k: v for k, v in data.items() if k in ("P", "q", *keep)}
        if "h" not in data and "lower" not in data:
            return data
        _, z, s = _clarabel(data)
        equalities = _P if "b" in data else 0
        z, s = z[equalities:], s[equalities:]
        if np.maximum(z, s).min() > 0.05 and 0 < (z > s).sum() < _N - equalities:
            return data


def _kkt(data, x, dual):
    """The natural residuals, over 1 + the largest term (at most 1 is asked of each)."""
    data = _filled(data)
    zeros = js.Dual(np.zeros_like(data["b"]), np.zeros_like(data["h"]), 0 * x, 0 * x)
    names = ("equality", "inequality", "lower", "upper")
    given = {k: getattr(dual, k) for k in names if getattr(dual, k) is not None}
    y, z, below, above = ({k: getattr(zeros, k) for k in names} | given).values()
    P = (data["P"] + data["P"].T) / 2
    terms = [P @ x, data["q"], y @ data["A"], z @ data["G"], -below, above]
    size = 1 + max(np.abs(t).max() for t in terms)
    slack = [data["h"] - data["G"] @ x, x - data["lower"], data["upper"] - x]
    pairs = zip((z, below, above), slack, strict=True)
    natural = max(np.abs(np.minimum(w, s)).max(initial=0) for w, s in pairs)
    equality = np.abs(data["A"] @ x - data["b"]).max(initial=0)
    return max(np.abs(sum(terms)).max() / size, equality, natural)


def _proves(data, value, dual, result):
    if result == "infeasible":
        weights = [dual.inequality, dual.lower, dual.upper]
        if min(w.min() for w in weights) < 0:
            return False
        right = [data["h"], -data["lower"], data["upper"]]
        if any(np.any((w > 0) & ~np.isfinite(r)) for w, r in zip(weights, right, strict=True)):
            return False
        finite = [np.where(w > 0, r, 0.0) for w, r in zip(weights, right, strict=True)]
        gap = data["b"] @ dual.equality + sum(w @ r for w, r in zip(weights, finite, strict=True))
        combined = dual.equality @ data["A"] + dual.inequality @ data["G"] - dual.lower + dual.upper
        return gap < 0 and np.abs(combined).max() <= 1e-3 * -gap
    descent = data["q"] @ value
    bad = [
        np.abs(data["P"] @ value).max(),
        np.abs(data["A"] @ value).max(),
        (data["G"] @ value).max(),
        np.where(np.isfinite(data["lower"]), -value, 0).max(),
        np.where(np.isfinite(data["upper"]), value, 0).max(),
    ]
    return descent < 0 and max(bad) <= 1e-3 * -descent


def _with(**changes):
    data = _program_data(np.random.default_rng(7))
    return {**data, **changes}


def _outcomes():
    base = _with()
    inf = np.full(_N, np.inf)
    flat_row = np.ones((1, _N))
    duplicated = base["G"].copy()
    duplicated[1] = duplicated[0]
    fixed = base["lower"].copy()
    fixed_upper = base["upper"].copy()
    fixed[0] = fixed_upper[0] = (fixed[0] + fixed_upper[0]) / 2
    start = (base["lower"] + base["upper"]) / 2
    start[0] = fixed[0]
    crossed = base["lower"].copy()
    crossed[2] = base["upper"][2] + 1.0
    return {
        "infeasible": Expected(
            _with(A=flat_row, b=np.array([base["upper"].sum() + 5.0])), "infeasible"
        ),
        "unbounded": Expected(
            _with(
                P=np.zeros((_N, _N)),
                q=-np.ones(_N),
                A=np.array([[1.0, -1.0, 0.0, 0.0]]),
                b=np.zeros(1),
                G=-np.abs(base["G"]),
                h=np.ones(_M),
                lower=np.zeros(_N),
                upper=inf,
            ),
            "unbounded",
        ),
        "nan": Expected(_with(q=np.array([0.0, np.nan, 1.0, 0.0])), "nonfinite_input"),
        "nonconvex": Expected(_with(P=-np.eye(_N)), "nonconvex"),
        "crossed bounds": Expected(_with(lower=crossed), "infeasible"),
        "no constraint binds": Expected(
            _with(h=np.full(_M, np.inf), lower=-inf, upper=inf), "successful"
        ),
        "redundant rows": Expected(
            _with(G=duplicated, h=np.array([base["h"][0], base["h"][0], base["h"][2]])),
            "successful",
        ),
        "fixed variable": Expected(
            _with(
                lower=fixed,
                upper=fixed_upper,
                b=base["A"] @ start,
                h=base["G"] @ start + 0.1,
            ),
            "successful",
        ),
    }


def _degenerate():
    """A constraint that touches the solution without a force, and one that is there twice."""
    wide = _with(lower=np.full(_N, -10.0), upper=np.full(_N, 10.0), h=np.full(_M, 10.0))
    touched = wide["h"].copy()
    touched[0] = wide["G"][0] @ _clarabel(wide)[0]
    twice = wide["G"].copy()
    twice[1] = twice[0]
    pushed = np.array([touched[0] - 0.3, touched[0] - 0.3, 10.0])
    return {
        "weakly active": Degenerate({**wide, "h": touched}, "finite"),
        "active twice": Degenerate({**wide, "G": twice, "h": pushed}, "finite"),
    }


def _permuted_program(data, rng):
    order = rng.permutation(_N)
    other = {
        **data,
        "P": data["P"][order][:, order],
        "q": data["q"][order],
        "A": data["A"][:, order],
        "G": data["G"][:, order],
        "lower": data["lower"][order],
        "upper": data["upper"][order],
    }
    return other, lambda x: x[np.argsort(order)]


def _scaled_rows(data, rng):
    rows, row = rng.uniform(0.1, 10.0, size=_M), rng.uniform(0.1, 10.0, size=_P)
    other = {
        **data,
        "G": rows[:, None] * data["G"],
        "h": rows * data["h"],
        "A": row[:, None] * data["A"],
        "b": row * data["b"],
    }
    return other, lambda x: x


def _longer(data, rng, row, right):
    return {**data, "G": np.concatenate([data["G"], row]), "h": np.append(data["h"], right)}


def _duplicated(data, rng):
    return _longer(data, rng, data["G"][:1], data["h"][0]), lambda x: x


def _inactive(data, rng):
    row = rng.normal(size=(1, _N))
    reach = np.abs(row[0]) @ np.maximum(np.abs(data["lower"]), np.abs(data["upper"]))
    return _longer(data, rng, row, reach + 1.0), lambda x: x


def quadratic_program(name, solver, **more):
    more.setdefault("outcomes", _outcomes())
    return Case(
        name=name,
        solver=solver,
        problem=_program,
        draw=_program_data,
        oracle=lambda data: _clarabel(data)[0],
        optimality=_kkt,
        degenerate=_degenerate(),
        certificate=_proves,
        invariances={
            "permutation": _permuted_program,
            "row scaling": _scaled_rows,
            "duplicated row": _duplicated,
            "inactive constraint": _inactive,
        },
        condition=30.0,
        **more,
    )


def partial_program(name, solver, *keep, **more):
    """A quadratic program without the other fields."""
    nan = _program_data(np.random.default_rng(7), keep) | {"q": np.full(_N, np.nan)}
    return Case(
        name=name,
        solver=solver,
        problem=_program,
        draw=lambda rng: _program_data(rng, keep),
        oracle=_stationary if not {"h", "lower"} & set(keep) else lambda d: _clarabel(d)[0],
        optimality=_kkt,
        outcomes={"nan": Expected(nan, "nonfinite_input")},
        condition=30.0,
        **more,
    )


def _stationary(data):
    """Without inequalities: one linear system."""
    data = _filled(data)
    A = data["A"]
    corner = np.zeros((A.shape[0], A.shape[0]))
    matrix = np.block([[data["P"], A.T], [A, corner]])
    return np.linalg.solve(matrix, np.append(-data["q"], data["b"]))[:_N]


# --- Composite problems --------------------------------------------------------------------------

_FEATURES = 6


def _regression(rng):
    """Coordinates that are 0 and some that are not, none of them close to changing sides."""
    while True:
        X = rng.normal(size=(9, _FEATURES))
        truth = np.array([2.0, -1.5, 1.0, 0.0, 0.0, 0.0])
        data = {
            "X": X,
            "b": X @ truth + 0.5 * rng.normal(size=9),
            "weight": rng.uniform(1.0, 4.0, size=_FEATURES),
        }
        y = _lasso(data)
        force = np.abs(X.T @ (X @ y - data["b"])) / data["weight"]
        zero = y == 0
        if 0 < zero.sum() < 5 and force[zero].max() < 0.9 and np.abs(y[~zero]).min() > 0.1:
            return data


def _fit(y, data):
    residuals = jnp.matmul(data["X"], y, precision="highest") - data["b"]
    return 0.5 * jnp.sum(residuals**2)


def _lasso(data):
    """Coordinate descent, in units of each weight."""
    X = data["X"] / data["weight"]
    model = Lasso(alpha=1 / len(X), fit_intercept=False, tol=1e-15, max_iter=100_000)
    return model.fit(X, data["b"]).coef_ / data["weight"]


def _shrunk(z, weight):
    return np.sign(z) * np.maximum(np.abs(z) - weight, 0)


def _natural(data, y, dual, prox=_shrunk):
    gradient = data["X"].T @ (data["X"] @ y - data["b"])
    residual = y - prox(y - gradient, data["weight"])
    return np.abs(residual).max() / max(1.0, np.abs(gradient).max())


def _grouped(rng):
    """Three groups of two, of which one or two are 0."""
    while True:
        data = _regression(rng) | {"weight": rng.uniform(3.0, 6.0, size=3)}
        y = _group_lasso(data)
        sizes = np.linalg.norm(y.reshape(3, 2), axis=1)
        gradient = (data["X"].T @ (data["X"] @ y - data["b"])).reshape(3, 2)
        force = np.linalg.norm(gradient, axis=1) / data["weight"]
        zero = sizes < 1e-8
        if 0 < zero.sum() < 3 and force[zero].max() < 0.9 and sizes[~zero].min() > 0.2:
            return data


def _group_lasso(data):
    """With t_g >= ||y_g||: |Xy - b|^2 / 2 + w't, a cone program."""
    n, groups = _FEATURES, 3
    P = np.zeros((n + groups, n + groups))
    P[:n, :n] = data["X"].T @ data["X"]
    q = np.concatenate([-data["X"].T @ data["b"], data["weight"]])
    rows = np.zeros((3 * groups, n + groups))
    for g in range(groups):
        rows[3 * g, n + g] = rows[3 * g + 1, 2 * g] = rows[3 * g + 2, 2 * g + 1] = -1
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-13
    solution = clarabel.DefaultSolver(
        scipy.sparse.csc_matrix(np.triu(P)),
        q,
        scipy.sparse.csc_matrix(rows),
        np.zeros(3 * groups),
        [clarabel.SecondOrderConeT(3)] * groups,
        settings,
    ).solve()
    y = np.array(solution.x)[:n]
    # A cone program's variables are good to the root of its gap: the rest by Newton.
    free = np.repeat(np.linalg.norm(y.reshape(3, 2), axis=1) > 1e-6, 2)

    def stationary(part):
        full = np.zeros(n)
        full[free] = part
        sizes = np.linalg.norm(full.reshape(3, 2), axis=1)
        pull = np.repeat(data["weight"] / np.maximum(sizes, 1e-300), 2) * full
        return (data["X"].T @ (data["X"] @ full - data["b"]) + pull)[free]

    out = np.zeros(n)
    out[free] = _root(stationary, y[free])
    return out


def _shrunk_groups(z, weight):
    z = z.reshape(3, 2)
    sizes = np.linalg.norm(z, axis=1)
    kept = np.maximum(1 - weight / np.maximum(sizes, 1e-300), 0)
    return (kept[:, None] * z).ravel()


def _permuted_features(data, rng):
    order = rng.permutation(_FEATURES)
    other = {"X": data["X"][:, order], "b": data["b"], "weight": data["weight"][order]}
    return other, lambda y: y[np.argsort(order)]


def _mirrored(data, rng):
    signs = rng.choice([-1.0, 1.0], size=_FEATURES)
    return data | {"X": data["X"] * signs}, lambda y: y * signs


def _odd_regressions():
    base = _regression(np.random.default_rng(7))
    square = np.eye(9)[:, :_FEATURES]
    kink = {"X": square, "b": np.full(9, 2.0), "weight": np.array([1.0, 2.0, 3.0, 1.0, 1.0, 1.0])}
    twice = base | {"X": np.concatenate([base["X"][:, :1], base["X"][:, :5]], axis=1)}
    infinite = np.where(np.arange(_FEATURES) == 0, np.inf, base["weight"])
    outcomes = {
        "hard": Expected(base | {"X": base["X"] * 10.0 ** -np.arange(6.0)}, "successful"),
        "nan": Expected(base | {"b": np.full(9, np.nan)}, "nonfinite_input"),
        "negative weight": Expected(base | {"weight": -base["weight"]}, "nonconvex"),
        "held at 0": Expected(base | {"weight": infinite}, "successful"),
        "no weight": Expected(base | {"weight": np.zeros(_FEATURES)}, "successful"),
    }
    return outcomes, {"kink": Degenerate(kink, "finite"), "twice": Degenerate(twice, "finite")}


def composite(name, solver, **more):
    outcomes, degenerate = _odd_regressions()
    return Case(
        name=name,
        solver=solver,
        problem=lambda data: js.Composite(_fit, js.penalties.L1(data["weight"]), data),
        draw=_regression,
        init=lambda data: jnp.zeros_like(data["weight"]),
        oracle=_lasso,
        optimality=_natural,
        outcomes=outcomes,
        degenerate=degenerate,
        invariances={"permutation": _permuted_features, "mirror": _mirrored},
        **more,
    )


_PAIRS = np.arange(_FEATURES) // 2


def grouped(name, solver, **more):
    nan = _grouped(np.random.default_rng(7)) | {"b": np.full(9, np.nan)}
    return Case(
        name=name,
        solver=solver,
        problem=lambda data: js.Composite(
            _fit, js.penalties.Group(data["weight"], labels=_PAIRS), data
        ),
        draw=_grouped,
        init=lambda data: jnp.zeros_like(data["X"][0]),
        oracle=_group_lasso,
        optimality=lambda data, y, dual: _natural(data, y, dual, _shrunk_groups),
        outcomes={"nan": Expected(nan, "nonfinite_input")},
        **more,
    )


# --- Cone programs -------------------------------------------------------------------------------

_CONES_HERE = (js.Nonnegative(2), js.SecondOrder(3), js.Zero(1))


def _cone_data(rng, cones=_CONES_HERE):
    """Strictly complementary, and such that Clarabel finds the planted solution."""
    while True:
        data, x = cone_programs.planted(rng, cones, _N + 2, _P)
        found, status = cone_programs.by_clarabel(data, cones)
        if status == "Solved" and np.abs(found - x).max() < 1e-9:
            return data


def _cone_with(**changes):
    return {**_cone_data(np.random.default_rng(7)), **changes}


def _cone_outcomes():
    base, n = _cone_with(), _N + 2
    none = base["G"].copy()
    none[2] = 0.0
    below = base["h"].copy()
    below[2] = -1.0
    twice, side = base["G"].copy(), base["h"].copy()
    twice[1], side[1] = twice[0], side[0]
    ray = np.ones(n)
    across = base["A"] - np.outer(base["A"] @ ray, ray) / n
    return {
        "infeasible": Expected(_cone_with(G=none, h=below), "infeasible"),
        "contradiction": Expected(
            _cone_with(
                G=np.concatenate([base["G"][:1], -base["G"][:1], base["G"][2:]]),
                h=np.array([-2.0, -2.0, *base["h"][2:]]),
            ),
            "infeasible",
        ),
        "unbounded": Expected(
            _cone_with(
                P=np.zeros((n, n)),
                q=-ray,
                A=across,
                b=np.zeros(_P),
                G=np.concatenate([-np.ones((3, n)), 0 * base["G"][3:]]),
                h=np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.0]),
            ),
            "unbounded",
        ),
        "nan": Expected(_cone_with(q=np.full(n, np.nan)), "nonfinite_input"),
        "nonconvex": Expected(_cone_with(P=-np.eye(n)), "nonconvex"),
        "redundant rows": Expected(_cone_with(G=twice, h=side), "successful"),
    }


def _cone_degenerate():
    """A row that touches the solution without a force: z of the first row is taken from q."""
    base = _cone_with()
    x = cone_programs.by_clarabel(base, _CONES_HERE)[0]
    touched = base["h"].copy()
    touched[1] = base["G"][1] @ x
    return {"weakly active": Degenerate({**base, "h": touched}, "finite")}


def _permuted_cones(data, rng):
    order = rng.permutation(_N + 2)
    other = {**data, "P": data["P"][order][:, order], "q": data["q"][order]}
    other |= {k: data[k][:, order] for k in ("A", "G")}
    return other, lambda x: x[np.argsort(order)]


def _scaled_cones(data, rng):
    """Rows of flat cones are scaled one by one, those of a curved cone together."""
    rows = rng.uniform(0.1, 10.0, size=6)
    rows[2:5] = rows[2]
    return {**data, "G": rows[:, None] * data["G"], "h": rows * data["h"]}, lambda x: x


def _turned_cones(data, rng):
    """The second-order cone is the same when its x is rotated."""
    turn = np.eye(6)
    turn[3:5, 3:5] = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    return {**data, "G": turn @ data["G"], "h": turn @ data["h"]}, lambda x: x


def cone_program(name, solver, cones=_CONES_HERE, **more):
    if cones is _CONES_HERE:
        more |= {
            "outcomes": _cone_outcomes(),
            "degenerate": _cone_degenerate(),
            "certificate": lambda *a: cone_programs.proves(cones, *a),
            "invariances": {
                "permutation": _permuted_cones,
                "row scaling": _scaled_cones,
                "rotation": _turned_cones,
            },
        }
    return Case(
        name=name,
        solver=solver,
        problem=lambda data: js.ConeProgram(
            data["P"],
            data["q"],
            **{k: data[k] for k in ("A", "b", "G", "h")},
            cones=cones,
        ),
        draw=lambda rng: _cone_data(rng, cones),
        oracle=lambda data: cone_programs.by_clarabel(data, cones)[0],
        optimality=lambda *a: cone_programs.violation(cones, *a),
        condition=30.0,
        **more,
    )


# --- The register --------------------------------------------------------------------------------

OURS = [
    minimise("LBFGS", js.LBFGS),
    minimise("TrustRegionNewton", js.TrustRegionNewton),
    least_squares("LevenbergMarquardt-Gram", js.LevenbergMarquardt),
    least_squares("LevenbergMarquardt-QR", lambda: js.LevenbergMarquardt(js.QR())),
    linear_fit("SketchPreconditionedCG", lambda: js.SketchPreconditionedCG(js.SRHT(rows=16))),
    root("Newton", js.Newton),
    root("Broyden", js.Broyden),
    fixed_point("Anderson", js.Anderson),
    quadratic_program("InteriorPoint", js.InteriorPoint),
    quadratic_program("ActiveSet", js.ActiveSet),
    composite("ProximalGradient", js.ProximalGradient),
    composite("BlockCoordinateDescent", js.BlockCoordinateDescent),
    quadratic_program("OperatorSplitting", js.OperatorSplitting),
    cone_program("InteriorPoint-cones", js.InteriorPoint),
    *BRIDGES,
    *TRANSPORT,
    *BARYCENTRES,
    *BILEVEL,
]

VARIANTS = [
    cone_program("OperatorSplitting-cones", js.OperatorSplitting),
    cone_program(
        "InteriorPoint-semidefinite",
        js.InteriorPoint,
        (js.PositiveSemidefinite(2), js.Nonnegative(2)),
    ),
    cone_program(
        "InteriorPoint-exponential", js.InteriorPoint, (js.Exponential(), js.Nonnegative(2))
    ),
    linear_fit(
        "SketchPreconditionedCG-count", lambda: js.SketchPreconditionedCG(js.CountSketch(rows=16))
    ),
    partial_program("ActiveSet-free", js.ActiveSet),
    partial_program("ActiveSet-rows", js.ActiveSet, "G", "h"),
    partial_program("ActiveSet-box", js.ActiveSet, "lower", "upper"),
    partial_program("InteriorPoint-free", js.InteriorPoint),
    partial_program("InteriorPoint-equalities", js.InteriorPoint, "A", "b"),
    partial_program("InteriorPoint-rows", js.InteriorPoint, "G", "h"),
    cone_program(
        "OperatorSplitting-semidefinite",
        js.OperatorSplitting,
        (js.PositiveSemidefinite(2), js.Nonnegative(2)),
    ),
    cone_program(
        "OperatorSplitting-exponential", js.OperatorSplitting, (js.Exponential(), js.Nonnegative(2))
    ),
    partial_program("OperatorSplitting-free", js.OperatorSplitting),
    partial_program("OperatorSplitting-equalities", js.OperatorSplitting, "A", "b"),
    partial_program("OperatorSplitting-box", js.OperatorSplitting, "lower", "upper"),
    partial_program("InteriorPoint-box", js.InteriorPoint, "lower", "upper"),
    grouped("ProximalGradient-group", js.ProximalGradient),
    grouped("BlockCoordinateDescent-group", js.BlockCoordinateDescent),
    *PROJECTIONS,
    *BRIDGE_VARIANTS,
    *TRANSPORT_VARIANTS,
]
"""Further problems of our solvers."""

APPROXIMATE = APPROXIMATE_BILEVEL | {
    "LightSBM", "LowRankSinkhorn", "MinibatchLightSB", "SketchedLeastSquares",
}  # fmt: skip
"""Methods which end at no solution of the problem: there is nothing for the contract to hold them
to (LowRankSinkhorn descends in factors, on an objective that is not convex, by steps that end where
they no longer pay: its sums are met, and its plan is that of its start). Tested in
test_minibatch.py, test_coupling.py and test_low_rank.py of transport/, smooth/test_sketched.py, and
bilevel/."""

_PRODUCTS = "the precision and dtypes inside its steps are not ours to choose"
_MESH = "optimistix's, optax's and jaxopt's loops fail inside shard_map in the versions installed"
_STATE = "it keeps no state of ours between solves"
_OWN_STOP = "its own step rule may need more than the hard start allows; tested in interop"
_HOST = {
    "programs": "SciPy works in float64 on the host, by a callback",
    "progress": "a host solver is a callback, and counts as one step",
    "devices": "shard_map and pmap cannot order callbacks of several devices on one host thread",
    "transforms": "SciPy's own iterations end by its own tests; agreement is tested in interop",
    "bad_lanes": "SciPy's own iterations end by its own tests; agreement is tested in interop",
    "warm_start": _STATE,
    "exported": "jax.export refuses programs with host callbacks",
    "results": "a host solver counts as one step, which is its limit of steps",
}
_COMPILED = {"programs": _PRODUCTS, "devices": _MESH, "warm_start": _STATE, "results": _OWN_STOP}
_FOREIGN = {"float32": 1e-4, "float64": 1e-8}

FOREIGN = [
    minimise(
        "optimistix-BFGS",
        lambda: optx.BFGS(rtol=1e-10, atol=1e-10),
        tolerance=_FOREIGN,
        exempt=_COMPILED,
    ),
    root(
        "optimistix-Newton",
        lambda: optx.Newton(rtol=1e-10, atol=1e-10),
        tolerance=_FOREIGN,
        exempt=_COMPILED,
    ),
    least_squares(
        "optimistix-LevenbergMarquardt",
        lambda: optx.LevenbergMarquardt(rtol=1e-10, atol=1e-10),
        tolerance=_FOREIGN,
        exempt=_COMPILED | {"exported": "its QR is a LAPACK call that jax.export refuses"},
    ),
    minimise("optax-lbfgs", optax.lbfgs, tolerance=_FOREIGN, exempt=_COMPILED),
    minimise("jaxopt-LBFGS", lambda: js.Jaxopt(jaxopt.LBFGS), tolerance=_FOREIGN, exempt=_COMPILED),
    minimise("SciPy-BFGS", lambda: js.Scipy("BFGS"), tolerance=_FOREIGN, exempt=_HOST),
    quadratic_program(
        "SciPy-SLSQP",
        lambda: js.Scipy("SLSQP"),
        tolerance={"float32": 1e-3, "float64": 1e-6},
        outcomes={},
        exempt=_HOST
        | {
            "degenerate": "its multipliers at degenerate points are the problem's least squares",
            "invariance": "SLSQP ends by its own tests, which are not invariant",
        },
    ),
]

CASES = OURS + VARIANTS + FOREIGN
