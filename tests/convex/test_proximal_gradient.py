"""`Composite` and `ProximalGradient` against scikit-learn, SciPy, and differences of answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import ElasticNet, Lasso

import jaxsolve as js
from jaxsolve import penalties, sets


def fit(y, args):
    return 0.5 * jnp.sum((jnp.matmul(args[0], y, precision="highest") - args[1]) ** 2)


def regression(m, n, seed=0, shared=0.5):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(m, n)) + shared * rng.normal(size=(m, 1))
    truth = np.where(np.arange(n) < n // 10 + 2, rng.normal(size=n), 0)
    return X, X @ truth + 0.1 * rng.normal(size=m)


@pytest.mark.parametrize(
    ("solver", "bits"), [(js.ProximalGradient(), 1e3), (js.BlockCoordinateDescent(), 1e5)]
)
def test_last_bits_of_the_data_change_last_bits_of_the_answer(solver, bits, x64):
    """No choice of a step falls to rounding: where values do not tell lengths apart, the same one
    is taken. 200 regressions, each with 10 others whose entries are an epsilon away."""
    rng = np.random.default_rng(3)
    X, b = rng.normal(size=(200, 9, 6)), 2 * rng.normal(size=(200, 9))
    weight = rng.uniform(0.5, 2, size=(200, 6))
    problem = lambda X, b, w: js.Composite(fit, penalties.L1(w), (X, b))
    one = lambda *data: js.solve(problem(*data), solver, init=jnp.zeros(6), throw=False)
    solve = jax.jit(jax.vmap(one))
    base = solve(X, b, weight)
    assert bool(jnp.all(base.success))
    eps = np.finfo(float).eps
    for _ in range(10):
        near = [x * (1 + eps * rng.integers(-1, 2, size=x.shape)) for x in (X, b, weight)]
        found = solve(*near)
        np.testing.assert_array_equal(found.stats.steps, base.stats.steps)
        np.testing.assert_allclose(found.value, base.value, rtol=0, atol=bits * eps)


@pytest.mark.parametrize("m, n", [(60, 20), (60, 200)])
def test_lasso_paths_of_a_batch(m, n, x64):
    """Dense Newton steps, and conjugate gradients; sparse, dense and empty solutions in a batch."""
    X, b = regression(m, n)
    weights = np.abs(X.T @ b).max() * np.array([1.01, 0.9, 0.3, 0.1, 0.02])
    problem = lambda w: js.Composite(fit, penalties.L1(w), (X, b))
    solve = jax.jit(jax.vmap(lambda w: js.solve(problem(w), init=jnp.zeros(n), throw=False)))
    found = solve(jnp.asarray(weights))
    assert bool(jnp.all(found.success))
    assert int(jnp.max(found.stats.steps)) < 150
    for lane, weight in enumerate(weights):
        model = Lasso(alpha=weight / m, fit_intercept=False, tol=1e-14, max_iter=100_000)
        expected = model.fit(X, b).coef_
        np.testing.assert_allclose(found.value[lane], expected, atol=1e-8)
        np.testing.assert_array_equal(found.value[lane] != 0, expected != 0)


def test_derivatives_of_an_elastic_net_against_scikit_learn(x64):
    """In both weights and the data, by central differences of coordinate descent."""
    X, b = regression(40, 12)
    parts = {"weight": 2.0, "ridge": 3.0, "b": b}
    cotangent = np.cos(np.arange(12))

    def ours(parts):
        penalty = penalties.ElasticNet(parts["weight"], parts["ridge"])
        problem = js.Composite(fit, penalty, (X, parts["b"]))
        return jnp.sum(cotangent * js.solve(problem, init=jnp.zeros(12)).value)

    def theirs(parts):
        total = parts["weight"] + parts["ridge"]
        model = ElasticNet(
            alpha=total / 40,
            l1_ratio=parts["weight"] / total,
            fit_intercept=False,
            tol=1e-15,
            max_iter=100_000,
        )
        return cotangent @ model.fit(X, parts["b"]).coef_

    np.testing.assert_allclose(jax.jit(ours)(parts), theirs(parts), rtol=1e-8)
    slopes = jax.jit(jax.grad(ours))(parts)
    for name, step in (("weight", 1e-4), ("ridge", 1e-4), ("b", 1e-4 * np.sin(np.arange(40)))):
        ends = [theirs(parts | {name: parts[name] + side * step}) for side in (1, -1)]
        measured = (ends[0] - ends[1]) / 2
        np.testing.assert_allclose(np.sum(slopes[name] * step), measured, rtol=1e-6)


def test_the_derivative_of_a_large_problem_is_matrix_free(x64):
    n = 600
    X, b = regression(80, n)
    w = 0.2 * np.abs(X.T @ b).max()

    def total(w):
        problem = js.Composite(fit, penalties.L1(w), (X, b))
        return jnp.sum(js.solve(problem, init=jnp.zeros(n)).value ** 2)

    gradient = jax.jit(jax.grad(total))
    assert f"[{n},{n}]" not in str(jax.make_jaxpr(gradient)(w))
    squares = []
    for side in (1, -1):
        model = Lasso(alpha=(w + side * 1e-4) / 80, fit_intercept=False, tol=1e-15, max_iter=10**5)
        squares.append(np.sum(model.fit(X, b).coef_ ** 2))
    np.testing.assert_allclose(gradient(w), (squares[0] - squares[1]) / 2e-4, rtol=1e-5)


def test_logistic_with_a_free_intercept_in_a_pytree(dtype, strict):
    """An unpenalised leaf; the optimum by SciPy on the signs that were found."""
    X, b = regression(50, 8)
    X, b = jnp.asarray(X, dtype), jnp.asarray(np.sign(b + 1.0), dtype)

    def loss(y, args):
        scores = jnp.matmul(args[0], y["w"], precision="highest") + y["c"]
        return jnp.sum(jnp.logaddexp(jnp.zeros_like(scores), -args[1] * scores))

    zero = jnp.zeros((), dtype)
    penalty = penalties.L1({"w": jnp.asarray(2.0, dtype), "c": zero})
    problem = js.Composite(loss, penalty, (X, b))
    found = js.solve(problem, init={"w": jnp.zeros(8, dtype), "c": zero})
    w, c = (np.asarray(found.value[k], float) for k in ("w", "c"))
    assert 0 < (w == 0).sum() < 8
    signs, X64, b64 = np.sign(w), np.asarray(X, float), np.asarray(b, float)

    def stationary(v):
        full = np.zeros(8)
        full[signs != 0] = v[:-1]
        pull = -b64 / (1 + np.exp(b64 * (X64 @ full + v[-1])))
        return np.append((X64.T @ pull + 2 * signs)[signs != 0], pull.sum())

    expected = scipy.optimize.root(stationary, np.append(w[signs != 0], c), tol=1e-14).x
    atol = {"float64": 1e-8, "float32": 1e-3}[dtype.name]
    np.testing.assert_allclose(np.append(w[signs != 0], c), expected, atol=atol)
    pull = -b64 / (1 + np.exp(b64 * (X64 @ w + c)))
    assert np.abs(X64.T @ pull)[signs == 0].max() < 2


def test_a_low_rank_matrix_is_completed(x64):
    """The optimality conditions of the nuclear norm: the gradient is -w U V' on the range, and of
    spectral norm at most w beyond it."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(8, 2)) @ rng.normal(size=(2, 6))
    seen, w = rng.uniform(size=truth.shape) < 0.7, 0.5
    problem = js.Composite(
        lambda y, _: 0.5 * jnp.sum(jnp.where(seen, y - truth, 0) ** 2), penalties.Nuclear(w)
    )
    found = js.solve(problem, init=jnp.zeros(truth.shape))
    y = np.asarray(found.value)
    left, values, right = np.linalg.svd(y, full_matrices=False)
    rank = int((values > 1e-7).sum())
    assert rank < 6
    force = -np.where(seen, y - truth, 0) / w
    aligned = left[:, :rank] @ right[:rank]
    np.testing.assert_allclose(left[:, :rank].T @ (force - aligned), 0, atol=1e-6)
    assert np.linalg.norm(force - aligned, 2) < 1


@pytest.mark.parametrize("name", ["box", "simplex", "ball"])
def test_constraints_as_penalties_against_scipy(name, x64):
    X, b = regression(12, 5)
    chosen = {
        "box": sets.Box(-0.2, jnp.asarray(0.3)),
        "simplex": sets.Simplex(),
        "ball": sets.L2Ball(0.5),
    }[name]
    constraints, bounds = [], None
    if name == "box":
        bounds = [(-0.2, 0.3)] * 5
    if name == "simplex":
        constraints, bounds = [{"type": "eq", "fun": lambda y: y.sum() - 1}], [(0, None)] * 5
    if name == "ball":
        constraints = [{"type": "ineq", "fun": lambda y: 0.25 - y @ y}]
    problem = js.Composite(fit, penalties.Indicator(chosen), (X, b))
    found = js.solve(problem, init=jnp.ones(5))
    expected = scipy.optimize.minimize(
        lambda y: 0.5 * np.sum((X @ y - b) ** 2), np.full(5, 0.2), jac=lambda y: X.T @ (X @ y - b),
        bounds=bounds, constraints=constraints, method="SLSQP", options={"ftol": 1e-15},
    ).x  # fmt: skip
    np.testing.assert_allclose(found.value, expected, atol=1e-6)


def test_bad_problems_are_refused():
    X, b = (jnp.asarray(v, jnp.float32) for v in regression(5, 3))
    with pytest.raises(TypeError, match="Composite needs `init`"):
        js.solve(js.Composite(fit, penalties.L1(1.0), (X, b)))
    with pytest.raises(TypeError, match="`penalty` must be one of jaxsolve.penalties"):
        js.solve(js.Composite(fit, 1.0, (X, b)), init=jnp.zeros(3))  # pyright: ignore
    with pytest.raises(ValueError, match=r"`weight` is float32\[2\], but `init` is float32\[3\]"):
        js.solve(js.Composite(fit, penalties.L1(jnp.ones(2)), (X, b)), init=jnp.zeros(3))
    with pytest.raises(TypeError, match="must return a real scalar"):
        js.solve(js.Composite(lambda y, _: y, penalties.L1(1.0)), init=jnp.zeros(3))
    with pytest.raises(TypeError, match="ProximalGradient solves Composite, not Minimise"):
        js.solve(js.Minimise(fit, (X, b)), js.ProximalGradient(), init=jnp.zeros(3))
    with pytest.raises(TypeError, match="LBFGS solves Minimise or LeastSquares, not Composite"):
        problem = js.Composite(fit, penalties.L1(1.0), (X, b))
        js.solve(problem, js.LBFGS(), init=jnp.zeros(3))  # pyright: ignore[reportArgumentType]
