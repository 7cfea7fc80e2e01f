"""`BlockCoordinateDescent` against scikit-learn and the conditions of a solution in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import ElasticNet, Lasso

import jaxsolve as js
from jaxsolve import penalties

SOLVER = js.BlockCoordinateDescent()


def fit(y, args):
    return 0.5 * jnp.sum((jnp.matmul(args[0], y, precision="highest") - args[1]) ** 2)


def regression(m, n, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(m, n)) + 0.5 * rng.normal(size=(m, 1))
    truth = np.where(np.arange(n) < n // 10 + 2, rng.normal(size=n), 0)
    return X, X @ truth + 0.1 * rng.normal(size=m)


@pytest.mark.parametrize("m, n", [(60, 20), (40, 90)])
def test_lasso_paths_of_a_batch(m, n, dtype):
    """Also with more features than examples; zeros are exact."""
    X, b = regression(m, n)
    weights = np.abs(X.T @ b).max() * np.array([1.01, 0.9, 0.3, 0.1, 0.02])
    data = tuple(jnp.asarray(v, dtype) for v in (X, b))

    @jax.jit
    @jax.vmap
    def solve(weight):
        problem = js.Composite(fit, penalties.L1(weight), data)
        return js.solve(problem, SOLVER, init=jnp.zeros(n, dtype), throw=False)

    found = solve(jnp.asarray(weights, dtype))
    assert bool(jnp.all(found.success))
    assert found.value.dtype == dtype
    bound = 1e-8 if dtype == "float64" else 1e-3
    for lane, weight in enumerate(weights):
        model = Lasso(alpha=weight / m, fit_intercept=False, tol=1e-14, max_iter=100_000)
        expected = model.fit(X, b).coef_
        np.testing.assert_allclose(found.value[lane], expected, atol=bound)
        if dtype == "float64":
            np.testing.assert_array_equal(found.value[lane] != 0, expected != 0)


def test_an_elastic_net_and_its_derivative(x64):
    """The derivative by central differences of scikit-learn's own coordinate descent."""
    X, b = regression(40, 12)

    def ours(pair):
        penalty = penalties.ElasticNet(pair[0], pair[1])
        problem = js.Composite(fit, penalty, (X, b))
        return js.solve(problem, SOLVER, init=jnp.zeros(12)).value

    def theirs(pair):
        total = pair[0] + pair[1]
        model = ElasticNet(
            alpha=total / 40,
            l1_ratio=pair[0] / total,
            fit_intercept=False,
            tol=1e-15,
            max_iter=100_000,
        )
        return model.fit(X, b).coef_

    pair = np.array([2.0, 3.0])
    np.testing.assert_allclose(ours(pair), theirs(pair), atol=1e-8)
    slope = jax.jacrev(ours)(jnp.asarray(pair))
    for k, step in enumerate(1e-5 * np.eye(2)):
        wanted = (theirs(pair + step) - theirs(pair - step)) / 2e-5
        np.testing.assert_allclose(slope[:, k], wanted, atol=1e-5)


def test_groups_of_several_sizes_in_a_pytree(x64):
    """One group has no weight, some are 0: the natural residual in NumPy."""
    X, b = regression(50, 12)
    labels = np.array([2, 0, 0, 1, 2, 2])
    weights = {"u": np.array([9.0, 30.0, 0.0]), "v": np.array([40.0, 5.0, 300.0])}
    penalty = penalties.Group(weights, labels=labels)

    def loss(y, args):
        return fit(jnp.concatenate([y["u"], y["v"]]), args)

    start = {"u": jnp.ones(6), "v": jnp.zeros(6)}
    found = js.solve(js.Composite(loss, penalty, (X, b)), SOLVER, start).value
    y = np.concatenate([found["u"], found["v"]])
    gradient = X.T @ (X @ y - b)
    zero = 0
    for at, name in ((0, "u"), (6, "v")):
        for k, weight in enumerate(weights[name]):
            place = at + np.flatnonzero(labels == k)
            z = y[place] - gradient[place]
            kept = max(1 - weight / np.linalg.norm(z), 0) * z
            np.testing.assert_allclose(y[place], kept, atol=1e-8 * np.abs(X.T @ b).max())
            zero += not y[place].any()
    assert 0 < zero < 6


def test_flat_directions_and_concave_ones(x64):
    """A feature of zeros is left out; twice the same feature has one sum; concave f is refused."""
    X, b = regression(30, 5)
    X = np.column_stack([X, 0 * X[:, 0], X[:, 0]])
    found = js.solve(js.Composite(fit, penalties.L1(1.0), (X, b)), SOLVER, jnp.ones(7))
    expected = Lasso(alpha=1 / 30, fit_intercept=False, tol=1e-15).fit(X[:, :5], b).coef_
    y = np.asarray(found.value)
    assert y[5] == 0
    np.testing.assert_allclose(y[:5] + y[6] * np.eye(5)[0], expected, atol=1e-7)
    concave = js.Composite(lambda y, args: -jnp.sum(y**2), penalties.L1(1.0))
    assert js.solve(concave, SOLVER, jnp.ones(2), throw=False).result == js.RESULTS.nonconvex


@pytest.mark.parametrize(
    ("fn", "penalty", "match"),
    [
        (lambda y, args: jnp.sum(jnp.exp(y)), penalties.L1(1.0), "`fn` must be quadratic"),
        (lambda y, args: jnp.sum(y**2), penalties.TotalVariation(1.0), "`penalty` must be a sum"),
    ],
)
def test_what_it_cannot_honour_is_named(fn, penalty, match):
    with pytest.raises(TypeError, match=match):
        js.solve(js.Composite(fn, penalty), SOLVER, jnp.ones(3))
