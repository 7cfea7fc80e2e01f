"""Sketched least squares, against numpy.linalg.lstsq, planted solutions and the guarantee."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads

import jaxsolve as js
from jaxsolve.smooth.sketches import walsh_hadamard

pytestmark = pytest.mark.usefixtures("strict")


def residuals(x, args):
    return jnp.matmul(args[0], x, precision="highest") - args[1]


def tall(condition=1.0, size=1.0, shape=(2000, 30), seed=0):
    """A of a condition number, b of a distance from its range, and the solution planted there."""
    rng = np.random.default_rng(seed)
    m, n = shape
    left, _ = np.linalg.qr(rng.normal(size=(m, n)))
    right, _ = np.linalg.qr(rng.normal(size=(n, n)))
    matrix = left * np.logspace(0, -np.log10(condition), n) @ right.T
    truth, away = rng.normal(size=n), rng.normal(size=m)
    away -= left @ (left.T @ away)
    away -= left @ (left.T @ away)
    return matrix, matrix @ truth + size * away / np.linalg.norm(away), truth


def problem(matrix, target, dtype="float64"):
    return js.LeastSquares(residuals, (jnp.asarray(matrix, dtype), jnp.asarray(target, dtype)))


def exact(solver, matrix, target, **settings):
    start = jnp.zeros(matrix.shape[1], settings.pop("dtype", "float64"))
    return js.solve(problem(matrix, target, start.dtype), solver, start, **settings)


# --- The sketches --------------------------------------------------------------------------------


def test_the_transform_is_hadamards():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(32, 3))
        np.testing.assert_allclose(walsh_hadamard(x), scipy.linalg.hadamard(32) @ x, rtol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("sketch", [js.SRHT(8), js.GaussianSketch(8), js.CountSketch(8)])
def test_a_sketch_is_linear_and_an_isometry_on_average(sketch, x64):
    identity = jnp.eye(11)

    def gram(key):
        rows = sketch.draw(key, 11, identity.dtype)(identity)
        return rows.T @ rows

    keys = jax.random.split(jax.random.key(0), 4000)
    grams = np.asarray(jax.lax.map(jax.jit(gram), keys, batch_size=500))
    error = grams.std(axis=0) / np.sqrt(len(keys))
    assert np.all(np.abs(grams.mean(axis=0) - np.eye(11)) <= 5 * error + 1e-12)
    drawn = sketch.draw(jax.random.key(1), 11, identity.dtype)
    x = jax.random.normal(jax.random.key(2), (11, 2))
    np.testing.assert_allclose(drawn(x), drawn(identity) @ x, atol=1e-12)


def test_rows_of_an_srht_are_orthogonal(x64):
    rows = js.SRHT(16).draw(jax.random.key(0), 32, jnp.dtype(float))(jnp.eye(32))
    np.testing.assert_allclose(rows @ rows.T, 2 * np.eye(16), atol=1e-13)


# --- Sketch and solve ----------------------------------------------------------------------------

_SPIKES, _COLUMNS = 16, 64


def spread(sketch, lanes, shape=(8192, _COLUMNS)):
    """sqrt(d) |x' - x*|_inf on the hard instance, whose |A^+| and |A x* - b| are 1."""
    rng = np.random.default_rng(1)
    target = np.zeros(shape[0])
    places = rng.choice(np.arange(shape[1], shape[0]), _SPIKES, replace=False)
    target[places] = rng.choice([-1.0, 1.0], _SPIKES) / _SPIKES**0.5
    hard = problem(np.eye(*shape), target)

    def error(key):
        start = jnp.zeros(shape[1])
        found = js.solve(hard, js.SketchedLeastSquares(sketch), start, key=key)
        return jnp.max(jnp.abs(found.value)) * shape[1] ** 0.5

    keys = jax.random.split(jax.random.key(0), lanes)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(error, keys))(keys))


@pytest.mark.parametrize("rows", [512, pytest.param(1024, marks=pytest.mark.slow)])
def test_dense_sketches_spread_the_error_and_a_sparse_one_does_not(rows, x64):
    predicted = np.sqrt(2 * np.log(_COLUMNS) * _COLUMNS / (rows - _COLUMNS))
    lanes = 5 if rows == 512 else 20
    srht, count = spread(js.SRHT(rows), lanes), spread(js.CountSketch(rows), lanes)
    assert abs(np.median(srht) / predicted - 1) <= 0.35
    assert np.quantile(srht, 0.9) < 1.5 * predicted
    # A spike of b that falls in the row of a column is that coordinate's error: sqrt(d/k) = 2.
    np.testing.assert_allclose(np.median(count), np.sqrt(_COLUMNS / _SPIKES), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [512, 1024, 2048])
def test_a_gaussian_sketch_has_the_error_that_is_predicted(rows, x64):
    predicted = np.sqrt(2 * np.log(_COLUMNS) * _COLUMNS / (rows - _COLUMNS))
    for sketch, lanes in ((js.GaussianSketch(rows), 7), (js.SRHT(rows), 40)):
        assert abs(np.median(spread(sketch, lanes)) / predicted - 1) <= 0.35


@pytest.mark.slow
def test_the_estimate_is_that_of_the_sketched_system(x64):
    matrix, target, _ = tall(100.0)
    key = jax.random.key(5)
    found = exact(js.SketchedLeastSquares(js.SRHT(120)), matrix, target, key=key)
    drawn = js.SRHT(120).draw(key, len(target), jnp.dtype(float))
    small, right = drawn(matrix), drawn(target[:, None])[:, 0]
    np.testing.assert_allclose(found.value, np.linalg.lstsq(small, right)[0], rtol=1e-9)
    assert found.result == js.RESULTS.approximate and not found.success
    gradient = matrix.T @ (matrix @ np.asarray(found.value) - target)
    np.testing.assert_allclose(found.stats.residual.dual, np.abs(gradient).max(), rtol=1e-9)


@pytest.mark.slow
def test_the_estimate_follows_its_key_and_its_derivative_is_its_own(x64):
    matrix, target, _ = tall(10.0, shape=(40, 3))
    solver = js.SketchedLeastSquares(js.SRHT(16))

    def estimate(matrix, target, key):
        return js.solve(problem(matrix, target), solver, jnp.zeros(3), key=key).value

    one = jax.jit(lambda *a: estimate(*a, jax.random.key(1)))
    data = jnp.asarray(matrix), jnp.asarray(target)
    check_grads(one, data, order=1, modes=("fwd", "rev"), eps=1e-6)
    keys = jax.random.split(jax.random.key(2), 3)
    found = jax.vmap(estimate, in_axes=(None, None, 0))(jnp.asarray(matrix), target, keys)
    assert np.ptp(found, axis=0).min() > 1e-3
    np.testing.assert_allclose(found[1], estimate(matrix, target, keys[1]), rtol=1e-12)


# --- Sketch and precondition ---------------------------------------------------------------------

_SKETCHES = [js.SRHT(240), js.CountSketch(240), js.GaussianSketch(240)]


@pytest.mark.parametrize("sketch", _SKETCHES[:1])
def test_full_accuracy_and_steps_do_not_depend_on_the_condition_number(sketch, x64):
    solver, steps = js.SketchPreconditionedCG(sketch), {}
    for condition in (1.0, 1e3, 1e6):
        matrix, target, truth = tall(condition)
        found = exact(solver, matrix, target)
        assert found.success
        steps[condition] = int(found.stats.steps)
        # To the tolerance in what A sees of the error.
        assert np.linalg.norm(matrix @ (found.value - truth)) <= 1.2e-8 * np.linalg.norm(target)
    assert max(steps.values()) - min(steps.values()) <= 2 and max(steps.values()) <= 20


@pytest.mark.parametrize("sketch", [pytest.param(s, marks=pytest.mark.slow) for s in _SKETCHES])
@pytest.mark.parametrize("size", [1.0, 1e-3, 0.0])
def test_as_accurate_as_lstsq_at_a_condition_number_of_1e6(sketch, size, x64):
    matrix, target, truth = tall(1e6, size)
    found = exact(js.SketchPreconditionedCG(sketch), matrix, target, tolerance=1e-14, throw=False)
    theirs = np.linalg.lstsq(matrix, target)[0]
    # What rounding of the data alone does to the solution.
    floor = 2.2e-16 * (1e6 * np.linalg.norm(truth) + 1e12 * size)
    error, other = (np.linalg.norm(x - truth) for x in (found.value, theirs))
    assert error <= 10 * max(other, floor)


@pytest.mark.slow
def test_float32_to_its_own_precision():
    matrix, target, truth = tall(1e2)
    solver = js.SketchPreconditionedCG(js.SRHT(240))
    found = exact(solver, matrix, target, dtype="float32", tolerance=1e-5)
    assert found.value.dtype == jnp.float32 and found.success
    assert np.linalg.norm(matrix @ (found.value - truth)) <= 1e-4 * np.linalg.norm(target)


@pytest.mark.slow
def test_columns_that_depend_on_each_other(x64):
    matrix, target, _ = tall(10.0)
    matrix = np.concatenate([matrix, matrix[:, :3] @ np.ones((3, 2))], axis=1)
    found = exact(js.SketchPreconditionedCG(js.SRHT(240)), matrix, target)
    theirs = np.linalg.lstsq(matrix, target)[0]
    assert found.success
    np.testing.assert_allclose(matrix @ found.value, matrix @ theirs, atol=1e-7)


@pytest.mark.slow
def test_a_warm_start_is_kept_and_a_batch_is_lane_by_lane(x64):
    matrix, target, _ = tall(1e3)
    solver = js.SketchPreconditionedCG(js.SRHT(240))
    cold = exact(solver, matrix, target, tolerance=1e-9)
    again = js.solve(problem(matrix, target), solver, cold, key=jax.random.key(9))
    assert int(again.stats.steps) == 0
    keys = jax.random.split(jax.random.key(0), 3)
    targets = np.stack([target, 2 * target, target[::-1]])

    def one(target, key):
        return js.solve(problem(matrix, target), solver, jnp.zeros(30), key=key).value

    found = jax.vmap(one)(jnp.asarray(targets), keys)
    for k in range(3):
        theirs = np.linalg.lstsq(matrix, targets[k])[0]
        error = np.linalg.norm(matrix @ (found[k] - theirs))
        assert error <= 1.2e-8 * np.linalg.norm(targets[k])


@pytest.mark.slow
def test_variables_and_residuals_are_pytrees(x64):
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(50, 4)), rng.normal(size=(50, 2))
    target = rng.normal(size=50)

    def fn(y, args):
        return {"a": args[0] @ y["u"] + args[1] @ y["v"] - args[2], "b": 0.1 * y["u"]}

    data = tuple(map(jnp.asarray, (first, second, target)))
    start = {"u": jnp.zeros(4), "v": jnp.zeros(2)}
    solver = js.SketchPreconditionedCG(js.SRHT(32))
    found = js.solve(js.LeastSquares(fn, data), solver, start, tolerance=1e-12).value
    whole = np.block([[first, second], [0.1 * np.eye(4), np.zeros((4, 2))]])
    theirs = np.linalg.lstsq(whole, np.append(target, np.zeros(4)))[0]
    np.testing.assert_allclose(np.append(found["u"], found["v"]), theirs, rtol=1e-9)


# --- What is refused -----------------------------------------------------------------------------

_SOLVERS = [js.SketchedLeastSquares, js.SketchPreconditionedCG]


@pytest.mark.parametrize("kind", _SOLVERS)
@pytest.mark.parametrize(
    "fn", [lambda x, _: x**3, lambda x, _: jax.nn.relu(x), lambda x, _: jnp.where(x > 0, x, 2 * x)]
)
def test_other_than_linear_residuals_are_refused(kind, fn):
    with pytest.raises(TypeError, match=f"{kind.__name__} solves linear"):
        js.solve(js.LeastSquares(fn), kind(js.SRHT(4)), jnp.ones(4))


@pytest.mark.slow
@pytest.mark.parametrize("kind", _SOLVERS)
def test_rounded_residuals_are_no_success(kind):
    steep = js.LeastSquares(lambda x, a: a @ (x + jnp.round(x)) - 1.0, jnp.eye(9, 3) + 0.1)
    found = js.solve(steep, kind(js.SRHT(8)), jnp.full(3, 5.0), throw=False)
    assert found.result == js.RESULTS.stalled


@pytest.mark.slow
@pytest.mark.parametrize(
    "fn",
    [
        lambda x, _: jax.lax.scan(lambda c, a: (c + a * x, c), x, jnp.arange(1.0, 4.0))[1].ravel(),
        lambda x, _: jax.jit(jnp.cumsum)(x) - 1,
        lambda x, _: jax.lax.map(lambda a: a * x - 1, jnp.arange(1.0, 4.0)),
    ],
    ids=["scan", "jit", "map"],
)
def test_programs_of_linear_residuals_are_seen_through(fn):
    found = js.solve(js.LeastSquares(fn), js.SketchPreconditionedCG(js.SRHT(4)), jnp.zeros(4))
    assert found.success


@pytest.mark.parametrize("kind", _SOLVERS)
def test_sketches_of_other_sizes_are_refused(kind):
    short = js.LeastSquares(residuals, (jnp.ones((9, 4)), jnp.ones(9)))
    with pytest.raises(ValueError, match="4 variables"):
        js.solve(short, kind(js.SRHT(3)), jnp.zeros(4))
    with pytest.raises(ValueError, match="padded to 16"):
        js.solve(short, kind(js.SRHT(17)), jnp.zeros(4))
    with pytest.raises(TypeError, match=f"{kind.__name__} solves LeastSquares, not Root"):
        js.solve(js.Root(lambda x, _: x), kind(js.SRHT(8)), jnp.zeros(4))
