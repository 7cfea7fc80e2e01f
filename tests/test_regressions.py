"""One test for each defect that was found, for ever. Each says what went wrong.

Defects of published libraries that this one was built to avoid are among them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import jaxsolve as js
from jaxsolve import RESULTS

P = np.diag([2.0, 1.0, 3.0])


def program(q, rows, right):
    return js.QuadraticProgram(jnp.asarray(P), q, G=jnp.asarray(rows), h=jnp.asarray(right))


def test_a_row_that_is_there_twice_does_not_change_the_derivative(x64):
    """An LU of the singular system was finite and wrong: 1.62 for 0.475."""
    q = jnp.array([-4.0, -1.0, 0.5])
    row = np.array([[1.0, 1.0, 1.0]])

    def jacobian(copies):
        rows, right = np.repeat(row, copies, 0), np.full(copies, 0.5)
        return jax.jacrev(lambda q: js.solve(program(q, rows, right)).value)(q)

    inverse = np.linalg.inv(P)
    normal = inverse @ row[0]
    exact = -inverse + np.outer(normal, normal) / (row[0] @ normal)
    for copies in (1, 2):
        np.testing.assert_allclose(jacobian(copies), exact, atol=1e-8)


def test_a_tangent_that_a_singular_system_cannot_follow_is_zero(x64):
    """Its least-squares solution is 0; judged against J'b, which is rounding, it was NaN."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    matrix = jnp.asarray(basis[:, :2] @ np.diag([2.0, 1.0]) @ basis[:, :2].T)
    fn = lambda y, a: jnp.matmul(matrix, y, precision="highest") - a
    value = lambda a: js.solve(js.Root(fn, a), js.Broyden(), jnp.zeros(3)).value
    for tangent, exact in (
        (basis[:, 2], np.zeros(3)),
        (basis[:, 0] + basis[:, 2], basis[:, 0] / 2),
    ):
        found = jax.jvp(value, (jnp.zeros(3),), (jnp.asarray(tangent),))[1]
        np.testing.assert_allclose(found, exact, atol=1e-12)


def test_integer_labels_are_data(x64):
    """The derivative rule closed over the labels' tracers: an error under vmap of grad."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(12, 2)))
    labels = jnp.asarray(np.random.default_rng(1).integers(0, 3, size=(4, 12)))

    def loss(w, args):
        labels, weight = args
        scores = jnp.matmul(x, w, precision="highest")
        picked = jnp.take_along_axis(scores, labels[:, None], 1)[:, 0]
        fit = jnp.mean(jax.nn.logsumexp(scores, axis=1) - picked)
        return fit + weight * jnp.sum(w**2)

    def size(weight, labels):
        solution = js.solve(js.Minimise(loss, (labels, weight)), init=jnp.zeros((2, 3)))
        return jnp.sum(solution.value**2)

    found = jax.vmap(jax.grad(size), (None, 0))(jnp.array(0.1), labels)
    numeric = jax.vmap(lambda l: size(0.1 + 1e-5, l) - size(0.1 - 1e-5, l))(labels) / 2e-5
    np.testing.assert_allclose(found, numeric, rtol=1e-4)


def test_newton_moves_an_equation_that_is_almost_flat(x64):
    """Regularisation by one number for all columns left small columns where they were."""
    scales = jnp.array([1e4, 1e-4])
    fn = lambda y, a: jnp.tanh(y - a) * scales + 1e-3 * scales * (y - a)
    solution = js.solve(js.Root(fn, jnp.array([3.0, -2.0])), js.Newton(), jnp.zeros(2))
    np.testing.assert_allclose(solution.value, [3.0, -2.0], atol=1e-3)


def test_a_float32_point_with_a_large_gradient_is_no_success():
    """A solver's own word was taken: success at a gradient of 0.46, where the step was small."""
    rosenbrock = lambda y, _: 100 * (y[1] - y[0] ** 2) ** 2 + (1 - y[0]) ** 2
    start = jnp.array([-1.2, 1.0])
    for solver in (optx.BFGS(rtol=1e-1, atol=1e-1), js.LBFGS(), js.TrustRegionNewton()):
        found = js.solve(js.Minimise(rosenbrock), solver, start, throw=False, max_steps=200)
        gradient = jax.grad(rosenbrock)(found.value, None)
        assert not bool(found.success) or float(jnp.max(jnp.abs(gradient))) <= 2e-4


def test_the_objective_may_be_blurred_by_cancellation():
    """Line searches that looked at values alone stalled in float32 next to a large constant."""
    fn = lambda y, a: 1e4 + jnp.sum((y - a) ** 2)
    target = jnp.array([0.3, -0.2, 0.1])
    for solver in (js.LBFGS(), js.TrustRegionNewton()):
        found = js.solve(js.Minimise(fn, target), solver, jnp.zeros(3), tolerance=1e-5)
        np.testing.assert_allclose(found.value, target, atol=1e-5)


def test_one_singular_lane_neither_raises_nor_spreads(x64):
    """One singular lane of a vmapped gradient raised for the batch, or made all of it NaN."""

    def value(a):
        return js.solve(
            js.Root(lambda y, a: a * y - 1.0, a), js.Newton(), jnp.ones(()), throw=False
        )

    a = jnp.array([2.0, 0.0, 4.0])
    found = jax.vmap(value)(a)
    np.testing.assert_array_equal(found.success, [True, False, True])
    gradient = jax.vmap(jax.grad(lambda a: value(a).value))(a)
    np.testing.assert_allclose(gradient[jnp.array([0, 2])], [-0.25, -1 / 16], rtol=1e-8)
    assert np.isnan(gradient[1])


def test_a_direct_multiplier_of_the_wrong_sign_is_not_a_solution(x64):
    """The product dual * slack is zero at a point whose multiplier has the wrong sign."""
    problem = program(jnp.array([1.0, 0.0, 0.0]), [[-1.0, 0.0, 0.0]], [0.0])
    # At x = 0 the constraint is active; pushing the other way needs z = 1 > 0: it is a solution.
    right = js.Point(jnp.zeros(3), js.Dual(inequality=jnp.array([1.0])))
    assert float(problem.residual(right).relative) <= 1e-12
    other = program(jnp.array([-1.0, 0.0, 0.0]), [[-1.0, 0.0, 0.0]], [0.0])
    wrong = js.Point(jnp.zeros(3), js.Dual(inequality=jnp.array([-1.0])))
    assert float(other.residual(wrong).relative) >= 0.1


def test_multipliers_of_a_host_solver_are_recovered(x64):
    """With zero duals the gradient through a constrained host solve was wrong."""
    rows, right = np.array([[1.0, 1.0, 1.0]]), np.array([0.5])
    q = jnp.array([-4.0, -1.0, 0.5])

    def value(q, solver):
        return js.solve(program(q, rows, right), solver, jnp.zeros(3), tolerance=1e-6).value

    ours = jax.jacrev(lambda q: value(q, js.InteriorPoint()))(q)
    theirs = jax.jacrev(lambda q: value(q, js.Scipy("SLSQP")))(q)
    np.testing.assert_allclose(theirs, ours, atol=1e-6)


def test_infinite_bounds_are_bounds_and_nan_is_not(x64):
    inf = jnp.full(3, jnp.inf)
    free = js.QuadraticProgram(jnp.asarray(P), jnp.ones(3), lower=-inf, upper=inf)
    np.testing.assert_allclose(js.solve(free).value, -1 / np.diag(P), rtol=1e-8)
    gradient = jax.grad(
        lambda q: js.solve(
            js.QuadraticProgram(jnp.asarray(P), q, lower=-inf, upper=inf)
        ).value.sum()
    )(jnp.ones(3))
    np.testing.assert_allclose(gradient, -1 / np.diag(P), rtol=1e-8)
    bad = js.QuadraticProgram(jnp.asarray(P), jnp.ones(3), lower=inf * jnp.nan, upper=inf)
    assert js.solve(bad, throw=False).result == RESULTS.nonfinite_input


def test_a_second_derivative_at_a_failed_lane_is_nan_alone(x64):
    a = jnp.array([1.0, jnp.nan, 2.0])
    value = lambda a: (
        js.solve(
            js.Root(lambda y, a: y**3 + y - a, a), js.Newton(), jnp.ones(()), throw=False
        ).value
    )
    found = jax.vmap(jax.hessian(value))(a)
    assert np.isfinite(found[jnp.array([0, 2])]).all() and np.isnan(found[1])


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_hessian_inside_shard_map(check_vma, x64, auto_mesh):
    """The unit vectors of a Jacobian are literals: they did not vary over the mesh."""
    spec = jax.sharding.PartitionSpec("lanes")
    value = lambda a: (
        js.solve(
            js.Minimise(lambda y, a: jnp.sum(y**4) + jnp.sum((y - a) ** 2), a),
            js.LBFGS(),
            jnp.zeros_like(a),
            tolerance=1e-10,
        ).value
    )
    each = jax.vmap(jax.hessian(lambda a: jnp.sum(value(a) ** 2)))
    sharded = jax.shard_map(
        each, mesh=auto_mesh, in_specs=spec, out_specs=spec, check_vma=check_vma
    )
    data = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)))
    np.testing.assert_allclose(jax.jit(sharded)(data), jax.jit(each)(data), atol=1e-8)
