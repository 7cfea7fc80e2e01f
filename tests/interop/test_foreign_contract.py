"""What holds for foreign solvers as a kind: refusals, results, second derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
import scipy.optimize

import jaxsolve as js
from jaxsolve.convex import QuadraticProgram
from jaxsolve.interop import Jaxopt, Optimistix
from jaxsolve.smooth.problems import FixedPoint, Minimise, Root

from .problems import DATA, minimise, second_derivative


def bowl(y, a):
    return jnp.sum((y - a) ** 2)


def test_a_second_derivative_is_exact(x64):
    a = jnp.asarray(DATA)

    def value(a):
        return js.solve(minimise(a), optx.BFGS(1e-3, 1e-3), jnp.zeros_like(a)).value.sum()

    hessian = jax.jit(jax.hessian(value))(a)
    np.testing.assert_allclose(hessian, np.diag(second_derivative(a)), atol=1e-5)


def test_the_gradient_decides_and_not_the_step(x64):
    """With its own tolerances optimistix would stop far from the solution."""
    a = jnp.asarray(DATA)
    own = optx.minimise(lambda y, _: minimise(a)(y), optx.BFGS(0.5, 0.5), jnp.zeros(3), throw=False)
    assert float(jnp.max(jnp.abs(jax.grad(minimise(a))(own.value)))) > 1e-4
    found = js.solve(minimise(a), optx.BFGS(0.5, 0.5), jnp.zeros(3))
    assert float(jnp.max(jnp.abs(jax.grad(minimise(a))(found.value)))) <= 1e-8


def test_a_solver_that_can_do_no_more_is_stalled():
    found = js.solve(Minimise(bowl, jnp.ones(2)), optax.set_to_zero(), jnp.zeros(2), throw=False)
    assert bool(found.result == js.RESULTS.stalled)
    assert int(found.stats.steps) < 200


def test_options_of_optimistix_reach_the_solver(x64):
    solver = Optimistix(optx.Bisection(1e-10, 1e-10), {"lower": 0.0, "upper": 3.0})
    solve = lambda a: js.solve(Root(lambda y, a: y**2 - a, a), solver, jnp.array(1.0), throw=False)
    found = jax.vmap(solve)(jnp.array([2.0, 16.0]))
    # The second root lies outside of the interval: its lane alone is refused success.
    assert found.success.tolist() == [True, False]
    np.testing.assert_allclose(found.value[0], np.sqrt(2), atol=1e-8)


@pytest.mark.parametrize(
    ("problem", "solver", "said"),
    [
        (Root(lambda y, a: y - a, jnp.ones(2)), optax.adam(0.1), "root"),
        (Minimise(bowl, jnp.ones(2)), optx.Newton(1e-3, 1e-3), "minimise"),
        (Minimise(bowl, jnp.ones(2)), optx.LevenbergMarquardt(1e-3, 1e-3), "minimise"),
        (FixedPoint(lambda y, a: a, jnp.ones(2)), optax.lbfgs(), "fixed_point"),
        (Root(lambda y, a: y - a, jnp.ones(2)), optx.Bisection(1e-3, 1e-3), "`lower`"),
        (
            Root(lambda y, a: y - a, jnp.ones(2)),
            Optimistix(optx.Bisection(1e-3, 1e-3), {"lower": 0.0}),
            "`upper`",
        ),
        (QuadraticProgram(jnp.eye(2), jnp.ones(2), upper=0.5), optax.adam(0.1), "`upper`"),
        (
            QuadraticProgram(jnp.eye(2), jnp.ones(2), A=jnp.ones((1, 2)), b=jnp.ones(1)),
            optx.BFGS(1e-3, 1e-3),
            "`equality`",
        ),
    ],
)
def test_refuses_at_trace_time_and_names_the_field(problem, solver, said):
    with pytest.raises(TypeError, match=said):
        jax.eval_shape(lambda: js.solve(problem, solver, jnp.ones(2)).value)


def test_jaxopt_takes_a_class_and_no_function():
    jaxopt = pytest.importorskip("jaxopt")
    with pytest.raises(TypeError, match="owns a function"):
        Jaxopt(jaxopt.LBFGS(fun=lambda y: y))
    for setting in ("fun", "tol", "implicit_diff"):
        with pytest.raises(TypeError, match=f"`{setting}`"):
            Jaxopt(jaxopt.LBFGS, **{setting: None})
    with pytest.raises(TypeError, match="OSQP"):
        Jaxopt(jaxopt.OSQP)


@pytest.mark.parametrize("name", ["GaussNewton", "LevenbergMarquardt"])
def test_jaxopts_least_squares_take_any_pytree(name, x64):
    solver = Jaxopt(getattr(pytest.importorskip("jaxopt"), name))
    a = {"u": np.array([0.7, -0.4]), "v": (np.array([[1.3]]),)}

    def residuals(y, a):
        return {"cubic": jax.tree.map(lambda y, a: y + y**3 - a, y, a), "sum": y["u"] - y["v"][0]}

    def gradient(flat, a):
        (u, v), (p, q) = (flat[:2], flat[2]), (a["u"], a["v"][0][0, 0])
        du = (u + u**3 - p) * (1 + 3 * u**2) + u - v
        return np.append(du, (v + v**3 - q) * (1 + 3 * v**2) - np.sum(u - v))

    found = js.solve(js.LeastSquares(residuals, a), solver, jax.tree.map(jnp.zeros_like, a)).value
    assert found["v"][0].shape == (1, 1)
    exact = scipy.optimize.root(gradient, np.zeros(3), args=(a,), tol=1e-12).x
    np.testing.assert_allclose(np.append(found["u"], found["v"][0]), exact, atol=1e-7)


@pytest.mark.slow
def test_jaxopt_within_bounds(x64):
    jaxopt = pytest.importorskip("jaxopt")
    q = jnp.array([-3.0, 0.5, 2.0])
    for solver in (Jaxopt(jaxopt.LBFGSB), Jaxopt(jaxopt.ProjectedGradient)):

        def solve(q, solver=solver):
            problem = QuadraticProgram(jnp.eye(3), q, lower=-1.0, upper=1.0)
            return js.solve(problem, solver).value

        np.testing.assert_allclose(solve(q), [1.0, -0.5, -1.0], atol=1e-7)
        slope = jax.jit(jax.jacrev(solve))(q)
        np.testing.assert_allclose(slope, np.diag([0.0, -1.0, 0.0]), atol=1e-7)
    with pytest.raises(TypeError, match="`lower`"):
        js.solve(QuadraticProgram(jnp.eye(3), q, upper=1.0), Jaxopt(jaxopt.LBFGSB))


def test_one_step_of_a_solver_that_proposes_points_is_refused():
    problem = Minimise(bowl, jnp.ones(2))
    with pytest.raises(TypeError, match="OneStep"):
        js.solve(problem, optx.BFGS(1e-3, 1e-3), jnp.zeros(2), adjoint=js.OneStep())
