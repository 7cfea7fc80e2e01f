"""LevenbergMarquardt, against published minima, SciPy and closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from functions import FUNCTIONS
from jax.test_util import check_grads

import jaxsolve as js
from jaxsolve.smooth import QR, Gram, LeastSquares, LevenbergMarquardt

SOLVERS = {"gram": LevenbergMarquardt(Gram()), "qr": LevenbergMarquardt(QR())}
pytestmark = pytest.mark.usefixtures("strict")


@pytest.fixture(params=SOLVERS)
def solver(request):
    return SOLVERS[request.param]


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_reaches_a_published_minimum(solver, name, dtype):
    function = FUNCTIONS[name]
    problem = LeastSquares(lambda x, _: function.residuals(x))
    tolerance = {"float64": 1e-8, "float32": 1e-4}[dtype.name]
    if name in ("jennrich-sampson", "brown-dennis"):
        tolerance *= 100  # columns of J of size 1e2 to 1e3: the gradient's last bits
    out = js.solve(problem, solver, jnp.asarray(function.start, dtype), tolerance=tolerance)
    assert out.value.dtype == dtype
    value = float(jnp.sum(function.residuals(out.value) ** 2))
    close = 1e-5 if dtype == "float64" else 1e-3
    assert any(abs(value - m) <= close * max(m, 1e-4) + close**2 for m in function.minima)
    assert int(out.stats.steps) <= 1.25 * evaluations_of_minpack(function) + 10


def evaluations_of_minpack(function):
    """What MINPACK's Levenberg-Marquardt needs, to the last bits."""
    with jax.enable_x64(True):
        fn, jacobian = jax.jit(function.residuals), jax.jit(jax.jacobian(function.residuals))
        start, eps = np.asarray(function.start), 1e-14
        settings = {"ftol": eps, "xtol": eps, "gtol": eps, "maxfev": 1000, "full_output": True}
        return scipy.optimize.leastsq(fn, start, Dfun=jacobian, **settings)[2]["nfev"]


def test_powell_singular_takes_a_dozen_steps(solver):
    function = FUNCTIONS["powell singular"]
    with jax.enable_x64(True):
        problem = LeastSquares(lambda x, _: function.residuals(x))
        out = js.solve(problem, solver, jnp.asarray(function.start))
        assert int(out.stats.steps) <= 20


def test_a_linear_fit_is_that_of_lstsq(solver):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        # Columns of sizes 1e-4 to 1e4: the weights take the units away.
        matrix = rng.normal(size=(40, 9)) * np.logspace(-4, 4, 9)
        target = rng.normal(size=40)
        problem = LeastSquares(lambda x, a: a[0] @ x - a[1], (matrix, target))
        out = js.solve(problem, solver, jnp.zeros(9), tolerance=1e-9)
        expected = np.linalg.lstsq(matrix, target, rcond=None)[0]
        np.testing.assert_allclose(out.value, expected, rtol=1e-4)


def test_a_column_that_almost_vanishes_at_the_start_is_no_end(solver):
    """Powell's badly scaled function, far off: the derivative exp(-100) gave the first step a
    length of 1e39, and sixteen shorter ones were not short enough."""

    def fn(x, _):
        return jnp.stack([1e4 * x[0] * x[1] - 1, jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001])

    with jax.enable_x64(True):
        out = js.solve(LeastSquares(fn), solver, jnp.asarray([0.0, 100.0]), throw=False)
        assert np.sum(np.square(fn(out.value, None))) < 1.1e-8


def test_columns_that_were_large_are_undone(solver):
    """Brown's almost linear function from 50: the damping stood at its floor for 300 steps."""

    def fn(x, _):
        return jnp.concatenate([x[:-1] + jnp.sum(x) - 11, jnp.prod(x)[None] - 1])

    with jax.enable_x64(True):
        out = js.solve(LeastSquares(fn), solver, jnp.full(10, 50.0), max_steps=200)
        np.testing.assert_allclose(fn(out.value, None), 0, atol=1e-7)


@pytest.mark.parametrize("solver", [LevenbergMarquardt(), js.LBFGS(), js.Scipy("trf")])
def test_squares_that_overflow_are_no_success(solver):
    """A finite gradient over their infinite norm was 0: solved, before the first step."""
    problem = LeastSquares(lambda x, _: jnp.stack([x * 1e-10 - 1e20, x - 1.0]))
    out = js.solve(problem, solver, jnp.asarray(0.5, jnp.float32), throw=False)
    assert not out.success


def test_fewer_residuals_than_variables(solver, dtype):
    problem = LeastSquares(lambda x, _: jnp.stack([jnp.sum(x) - 1, jnp.sum(x * x) - 2]))
    out = js.solve(problem, solver, jnp.asarray([1.0, 2.0, 3.0], dtype))
    np.testing.assert_allclose(np.sum(out.value), 1, atol=1e-4)
    np.testing.assert_allclose(np.sum(np.square(out.value)), 2, atol=1e-4)


def test_variables_and_residuals_are_pytrees(solver):
    init = {"a": jnp.ones((2, 2)), "b": jnp.zeros(())}
    fn = lambda y, t: [y["a"] @ y["a"] - t, (y["b"] - 3.0, y["a"][0, 1])]
    out = js.solve(LeastSquares(fn, jnp.diag(jnp.asarray([4.0, 9.0]))), solver, init)
    assert jax.tree.structure(out.value) == jax.tree.structure(init)
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(out.value["a"])).max(), 3, atol=1e-3)
    np.testing.assert_allclose(out.value["b"], 3, atol=1e-4)


@pytest.mark.parametrize(
    "fn, start, expected",
    [
        (jnp.log, (1e-4, 5.0, 300.0), 1.0),
        (lambda x: jnp.sqrt(x) - 2, (0.1, 50.0), 4.0),
        (lambda x: jnp.where(jnp.sum(x * x) > 9, jnp.nan, x**3 - 1), (-0.5, 2.5), 1.0),
    ],
    ids=["logarithm", "root", "circle"],
)
def test_nan_regions(solver, fn, start, expected, dtype):
    problem = LeastSquares(lambda x, _: fn(x))
    out = js.solve(problem, solver, jnp.asarray(start, dtype))
    np.testing.assert_allclose(out.value, expected, rtol=1e-3)


def test_no_solution_is_no_success_and_no_nan(solver):
    problem = LeastSquares(lambda x, _: jnp.exp(-x) + jnp.abs(x - 1))
    out = js.solve(problem, solver, jnp.asarray([0.1, 3.0]), throw=False)
    assert np.all(np.isfinite(out.value))
    assert int(out.stats.steps) < 200


@pytest.mark.parametrize("name", ["wood", "bard", "osborne 1"])
def test_measure_is_the_residual(solver, name, dtype):
    function = FUNCTIONS[name]
    problem = LeastSquares(lambda x, _: function.residuals(x))
    problem, primal = problem.prepare(jnp.asarray(function.start, dtype))
    state = solver.init(problem, js.Guess(primal))
    step = eqx.filter_jit(solver.step)
    for _ in range(6):
        residual = problem.residual(solver.point(problem, state))
        error = abs(solver.measure(problem, state) - residual.relative)
        # The gradient is a sum of products as large as the columns of J.
        assert error <= 100 * jnp.finfo(dtype).eps * max(float(jnp.max(state.weights)), 1.0)
        state = step(problem, state)


def fit_data(lanes=48):
    """a exp(-b t) + c with noise: easy and hard starts."""
    rng = np.random.default_rng(4)
    t = np.linspace(0, 4, 25)
    truth = np.stack([rng.uniform(1, 5, lanes), rng.uniform(0.3, 3, lanes), rng.normal(size=lanes)])
    y = truth[0][:, None] * np.exp(-truth[1][:, None] * t) + truth[2][:, None]
    y = y + 0.02 * rng.normal(size=y.shape)
    return t, y, rng.uniform(0.1, 2, (lanes, 3))


def curve(x, args):
    t, y = args
    return x[0] * jnp.exp(-x[1] * t) + x[2] - y


def test_a_batch_of_exponential_fits_is_that_of_scipy(solver, dtype):
    t, y, starts = fit_data()

    def run(y, start):
        problem = LeastSquares(curve, (jnp.asarray(t, dtype), y))
        out = js.solve(problem, solver, start, throw=False)
        return out.value, out.success, out.stats.steps

    values, success, steps = jax.vmap(run)(jnp.asarray(y, dtype), jnp.asarray(starts, dtype))
    assert bool(jnp.all(success))
    assert int(jnp.max(steps)) <= 60
    for i in range(0, len(y), 7):
        args = (t, y[i])
        expected = scipy.optimize.least_squares(
            lambda x, args=args: np.asarray(x[0] * np.exp(-x[1] * t) + x[2] - args[1]),
            values[i],
            xtol=1e-14,
            gtol=1e-14,
            ftol=1e-14,
        )
        np.testing.assert_allclose(values[i], expected.x, rtol=2e-3 if dtype == "float32" else 1e-6)
        alone = run(jnp.asarray(y[i], dtype), jnp.asarray(starts[i], dtype))
        np.testing.assert_allclose(alone[0], values[i], rtol=1e4 * float(jnp.finfo(dtype).eps))


def test_a_warm_start_ends_at_once(solver):
    function = FUNCTIONS["kowalik-osborne"]
    with jax.enable_x64(True):
        scaled = lambda x, a: a * function.residuals(x) - 1e-3 * a
        problem = lambda a: LeastSquares(scaled, a)
        cold = js.solve(problem(1.0), solver, jnp.asarray(function.start))
        assert int(js.solve(problem(1.0), solver, cold).stats.steps) == 0
        assert int(js.solve(problem(1.001), solver, cold).stats.steps) <= 5


def test_gradients_of_the_solution_in_both_modes(solver):
    with jax.enable_x64(True):
        t, y, starts = fit_data(1)

        def solution(y):
            problem = LeastSquares(curve, (jnp.asarray(t), y))
            return js.solve(problem, solver, jnp.asarray(starts[0]), tolerance=1e-10).value

        check_grads(jax.jit(solution), (jnp.asarray(y[0]),), order=1, modes=("fwd", "rev"))


def test_the_preconditioner_inverts_the_gauss_newton_matrix(solver):
    function = FUNCTIONS["bard"]
    with jax.enable_x64(True):
        problem = LeastSquares(lambda x, _: function.residuals(x))
        out = js.solve(problem, solver, jnp.asarray(function.start))
        jacobian = jax.jacobian(function.residuals)(out.value)
        inverse = solver.preconditioner(problem, out.state)
        vector = jnp.asarray([1.0, -2.0, 0.5])
        found = inverse.solve(js.Point(vector)).primal
        expected = np.linalg.solve(jacobian.T @ jacobian, vector)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
