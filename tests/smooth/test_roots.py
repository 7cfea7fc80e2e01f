"""Newton, Broyden and Anderson, against closed forms, SciPy and published problems."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from functions import FUNCTIONS, ROOTS

import jaxsolve as js
from jaxsolve.smooth import Anderson, Broyden, FixedPoint, Newton, Root
from jaxsolve.smooth.broyden import Jacobian, Multiple

SOLVERS = {
    "newton": Newton(),
    "broyden": Broyden(start=Jacobian()),
    "broyden, multiple": Broyden(start=Multiple()),
    "anderson": Anderson(),
}
MODES = (jax.jacfwd, jax.jacrev)
pytestmark = pytest.mark.usefixtures("strict")


@pytest.fixture(params=SOLVERS)
def solver(request):
    return SOLVERS[request.param]


@pytest.fixture(params=["newton", "broyden"])
def strong(request):
    return SOLVERS[request.param]


@pytest.mark.parametrize("name", ROOTS)
def test_finds_the_roots_of_published_systems(strong, name, dtype):
    function = ROOTS[name]
    problem = Root(lambda x, _: function.residuals(x))
    tolerance = {"float64": 1e-9, "float32": 1e-5}[dtype.name]
    start = jnp.asarray(function.start, dtype)
    out = js.solve(problem, strong, start, tolerance=tolerance)
    assert out.value.dtype == dtype
    with jax.enable_x64(True):
        wide = function.residuals(jnp.asarray(np.asarray(out.value, np.float64)))
    # float32 cannot hold a point closer to the root of the badly scaled systems than this.
    assert np.max(np.abs(wide)) <= (1e-8 if dtype == "float64" else 2e-3)
    if name == "brown almost-linear":
        expected = scipy.optimize.root(
            lambda x: np.concatenate([x[:-1] + np.sum(x) - 11, [np.prod(x) - 1]]),
            np.asarray(out.value, np.float64),
            tol=1e-12,
        )
        np.testing.assert_allclose(out.value, expected.x, atol=1e-4)


def test_newton_converges_quadratically():
    with jax.enable_x64(True):
        problem = Root(lambda x, a: x**3 - a, jnp.asarray([2.0, 5.0, 11.0]))
        out = js.solve(problem, Newton(), jnp.full(3, 2.0), tolerance=1e-12, record=20)
        np.testing.assert_allclose(out.value, np.cbrt([2.0, 5.0, 11.0]), rtol=1e-12)
        sizes = [float(x) for x in out.history if 1e-12 < x < 1]
        assert len(sizes) >= 3
        assert all(after <= 2 * before**2 for before, after in zip(sizes, sizes[1:], strict=False))


def test_large_systems_by_broyden_alone(dtype):
    n = 400
    function = ROOTS["broyden tridiagonal"]
    problem = Root(lambda x, _: function.residuals(x))
    init = jnp.full(n, -1.0, dtype)
    tolerance = {"float64": 1e-8, "float32": 1e-4}[dtype.name]
    assert isinstance(problem.prepare(init)[0].default_solver(), Broyden)
    out = js.solve(problem, None, init, tolerance=tolerance)
    expected = scipy.optimize.newton_krylov(
        lambda x: (3 - 2 * x) * x - np.append(0, x[:-1]) - 2 * np.append(x[1:], 0) + 1,
        -np.ones(n),
        f_tol=1e-10,
    )
    np.testing.assert_allclose(out.value, expected, atol=10 * tolerance)


@pytest.mark.parametrize(
    "fn, start",
    [
        (lambda x: jnp.arctan(x), (20.0, -3.0)),
        (lambda x: jnp.log(x), (1e-4, 5.0, 200.0)),
        (lambda x: jnp.where(jnp.abs(x) > 3, jnp.nan, jnp.tanh(2 * x)), (2.9, -2.0)),
        (lambda x: x**2, (1.0, 3.0)),
        (lambda x: jnp.stack([x[0] + x[1] - 2, 2 * (x[0] + x[1] - 2)]), (3.0, 9.0)),
        (lambda x: jnp.stack([jnp.exp(x[0]) - 1, x[0] + x[1] ** 3]), (5.0, -4.0)),
    ],
    ids=["arctangent", "logarithm", "nan beyond", "double root", "equal rows", "degenerate"],
)
def test_hard_starts(strong, fn, start, dtype):
    tolerance = {"float64": 1e-8, "float32": 1e-5}[dtype.name]
    problem = Root(lambda x, _: fn(x))
    out = js.solve(problem, strong, jnp.asarray(start, dtype), tolerance=tolerance)
    assert float(jnp.max(jnp.abs(fn(out.value)))) <= tolerance


@pytest.mark.parametrize("fn", [lambda x, _: x**2 + 1, lambda x, _: jnp.exp(x)])
def test_no_root_is_no_success_and_no_nan(solver, fn):
    out = js.solve(Root(fn), solver, jnp.asarray([3.0, -1.0]), tolerance=1e-12, throw=False)
    finite = np.all(np.isfinite(out.value))
    assert finite
    if bool(out.success):  # exp underflows to 0, and that is a root
        assert float(jnp.max(jnp.abs(fn(out.value, None)))) <= 1e-12
    assert int(out.stats.steps) < solver.step_limit


CONTRACTION = 0.9 * np.linalg.qr(np.random.default_rng(0).normal(size=(20, 20)))[0]


def test_affine_contractions(solver, dtype):
    matrix = jnp.asarray(CONTRACTION, dtype)
    problem = FixedPoint(lambda x, b: matrix @ x + b, jnp.ones(20, dtype))
    tolerance = {"float64": 1e-9, "float32": 1e-5}[dtype.name]
    out = js.solve(problem, solver, jnp.zeros(20, dtype), tolerance=tolerance)
    expected = np.linalg.solve(np.eye(20) - CONTRACTION, np.ones(20))
    np.testing.assert_allclose(out.value, expected, atol=1e3 * tolerance)


def test_anderson_solves_an_affine_map_in_as_many_steps_as_its_dimension():
    with jax.enable_x64(True):
        # Expansive (spectral radius 3): the plain iteration diverges.
        matrix = jnp.asarray(3 * CONTRACTION[:6, :6])
        problem = FixedPoint(lambda x, _: matrix @ x + 1)
        out = js.solve(problem, Anderson(memory=8), jnp.zeros(6))
        expected = np.linalg.solve(np.eye(6) - matrix, np.ones(6))
        np.testing.assert_allclose(out.value, expected, rtol=1e-6)
        assert int(out.stats.steps) <= 9


@pytest.mark.parametrize(
    "fn, start",
    [
        (jnp.cos, (0.5,)),
        (lambda x: jnp.exp(-x), (30.0, -3.0)),
        (lambda x: 0.5 * (x + 2 / x), (50.0, 0.1)),
        (lambda x: jnp.log(x) + 2, (3.1, 20.0)),
    ],
    ids=["cosine", "exponential", "square root", "logarithm"],
)
def test_fixed_points(solver, fn, start, dtype):
    tolerance = {"float64": 1e-8, "float32": 1e-5}[dtype.name]
    problem = FixedPoint(lambda x, _: fn(x))
    out = js.solve(problem, solver, jnp.asarray(start, dtype), tolerance=tolerance)
    error = jnp.abs(fn(out.value) - out.value) / jnp.maximum(jnp.max(jnp.abs(out.value)), 1)
    assert float(jnp.max(error)) <= tolerance


def test_variables_are_pytrees(solver):
    init = {"a": jnp.zeros((2, 2)), "b": (jnp.ones(()),)}
    fn = lambda y, _: {"a": jnp.tanh(0.5 * y["a"]) + 1, "b": (jnp.cos(y["b"][0]),)}
    out = js.solve(FixedPoint(fn), solver, init, tolerance=1e-5)
    assert jax.tree.structure(out.value) == jax.tree.structure(init)
    np.testing.assert_allclose(out.value["b"][0], 0.7390851, atol=1e-4)
    root = js.solve(Root(lambda y, _: jax.tree.map(jnp.subtract, y, fn(y, None))), solver, init)
    np.testing.assert_allclose(root.value["a"], out.value["a"], atol=1e-3)


@pytest.mark.parametrize("kind", [Root, FixedPoint])
def test_measure_is_the_residual(solver, kind, dtype):
    function = FUNCTIONS["helical valley"]
    problem = kind(lambda x, _: function.residuals(x))
    problem, primal = problem.prepare(jnp.asarray(function.start, dtype))
    state = solver.init(problem, js.Guess(primal))
    step = eqx.filter_jit(solver.step)
    for _ in range(6):
        residual = problem.residual(solver.point(problem, state)).relative
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(
            solver.measure(problem, state), residual, rtol=100 * eps, atol=100 * eps
        )
        state = step(problem, state)


def test_a_batch_equals_its_lanes(solver):
    starts = jnp.asarray([[0.5, 0.5], [0.7390851, 0.7390851], [9.0, -8.0], [jnp.nan, 0.0]])
    weights = jnp.asarray([1.0, 1.0, 0.9, 1.0])

    def run(weight, start):
        problem = FixedPoint(lambda x, a: jnp.cos(a * x), weight)
        out = js.solve(problem, solver, start, tolerance=1e-5, throw=False)
        return out.value, out.stats.steps, out.result._value

    one = jax.jit(run)
    batch = jax.jit(jax.vmap(run))(weights, starts)
    for i in range(4):
        value, _, result = one(weights[i], starts[i])
        np.testing.assert_allclose(batch[0][i], value, atol=1e-4)
        assert int(batch[2][i]) == int(result)
    assert int(batch[1][1]) == 0
    assert js.RESULTS.nonfinite_input._value == batch[2][3]


def test_a_warm_start_ends_at_once(solver):
    wave = lambda x, a: jnp.cos(a * x) + 0.1 * x[::-1]
    problem = lambda a: FixedPoint(wave, a)
    with jax.enable_x64(True):
        cold = js.solve(problem(1.0), solver, jnp.asarray([0.2, 0.9]))
        assert int(js.solve(problem(1.0), solver, cold).stats.steps) == 0
        assert int(js.solve(problem(1.0001), solver, cold).stats.steps) <= 4


def test_derivatives_of_the_solution_in_both_modes(solver):
    """To the second order, against those of four hundred plain iterations."""
    with jax.enable_x64(True):
        matrix = jnp.asarray(CONTRACTION[:4, :4])

        def step(x, b):
            return jnp.tanh(matrix @ x + b)

        def solution(b):
            return js.solve(FixedPoint(step, b), solver, jnp.zeros(4), tolerance=1e-12).value

        def iterated(b):
            return jax.lax.scan(lambda x, _: (step(x, b), None), jnp.zeros(4), length=400)[0]

        @jax.jit  # one program: the search is compiled once for all of them
        def derivatives(b):
            first = [jac(solution)(b) for jac in MODES]
            return first, [outer(inner(solution))(b) for outer in MODES for inner in MODES]

        b = jnp.linspace(-1, 1, 4)
        first, second = derivatives(b)
        for found in first:
            np.testing.assert_allclose(found, jax.jit(jax.jacfwd(iterated))(b), atol=1e-9)
        for found in second:
            expected = jax.jit(jax.jacfwd(jax.jacfwd(iterated)))(b)
            np.testing.assert_allclose(found, expected, atol=1e-9)


def test_newtons_factor_inverts_the_jacobian_and_its_transpose():
    function = FUNCTIONS["helical valley"]
    with jax.enable_x64(True):
        problem = Root(lambda x, _: function.residuals(x))
        out = js.solve(problem, Newton(), jnp.asarray(function.start))
        jacobian = np.asarray(jax.jacobian(function.residuals)(out.value))
        factor = Newton().preconditioner(problem, out.state)
        vector = jnp.asarray([1.0, 2.0, -1.0])
        np.testing.assert_allclose(
            factor.solve(js.Point(vector)).primal, np.linalg.solve(jacobian, vector), rtol=1e-6
        )
        np.testing.assert_allclose(
            factor.transpose_solve(js.Point(vector)).primal,
            np.linalg.solve(jacobian.T, vector),
            rtol=1e-6,
        )


def test_broydens_inverse_takes_the_last_change_to_the_last_step():
    from jaxsolve.smooth.broyden import Inverse

    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        jacobian = np.eye(5) + 0.2 * rng.normal(size=(5, 5))
        inverse = Inverse.empty(jnp.asarray(1.0), jnp.zeros(5), 8)
        dense = np.eye(5)
        for _ in range(5):
            step = rng.normal(size=5)
            change = jacobian @ step
            inverse = inverse.with_secant(jnp.asarray(step), jnp.asarray(change), jnp.array(True))
            image = dense @ change
            dense = dense + np.outer(step - image, step @ dense) / (step @ image)
            np.testing.assert_allclose(inverse.times(jnp.asarray(change)), step, rtol=1e-8)
        found = jax.vmap(inverse.times, out_axes=1)(jnp.eye(5))
        np.testing.assert_allclose(found, dense, rtol=1e-8, atol=1e-10)


def test_refuses_other_problems(solver):
    with pytest.raises(TypeError, match="not Minimise"):
        js.solve(js.smooth.Minimise(lambda x, _: jnp.sum(x**2)), solver, jnp.ones(2))
