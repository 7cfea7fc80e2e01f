"""SciPy on the host: constraints, multipliers, and failures that stay in their lane."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsolve as js
from jaxsolve.convex import QuadraticProgram
from jaxsolve.interop import Scipy
from jaxsolve.smooth.problems import Minimise, Root


def program(q):
    """One equality, one active inequality, one active bound; by hand below."""
    dtype = q.dtype
    return QuadraticProgram(
        jnp.diag(jnp.array([2.0, 1.0, 4.0], dtype)),
        q,
        A=jnp.ones((1, 3), dtype),
        b=jnp.ones(1, dtype),
        G=jnp.array([[1.0, -1.0, 0.0]], dtype),
        h=jnp.array([0.25], dtype),
        lower=jnp.zeros(3, dtype),
    )


@pytest.mark.parametrize("method", ["SLSQP", "trust-constr"])
def test_quadratic_program_has_the_multipliers_and_derivatives_of_the_interior_point(method, x64):
    q = jnp.array([-3.0, -1.0, 2.0])

    def solve(q, solver):
        found = js.solve(program(q), solver, tolerance=1e-6)
        return found.value, found.dual

    value, dual = solve(q, Scipy(method))
    # x3 = 0 and x1 - x2 = 1/4 are active with x1 + x2 + x3 = 1: x = (5/8, 3/8, 0).
    np.testing.assert_allclose(value, [0.625, 0.375, 0.0], atol=1e-6)
    # Stationarity: 2 x1 - 3 + y + z = 0, x2 - 1 + y - z = 0, 2 + y - w = 0.
    y, z = 1.1875, 0.5625
    np.testing.assert_allclose(dual.equality, [y], atol=1e-5)
    np.testing.assert_allclose(dual.inequality, [z], atol=1e-5)
    np.testing.assert_allclose(dual.lower, [0.0, 0.0, 2 + y], atol=1e-5)

    weight = jnp.array([1.0, 2.0, -1.0])
    loss = lambda q, solver: (weight @ solve(q, solver)[0], solve(q, solver)[1].inequality[0])
    slope = jax.jacrev(loss)(q, Scipy(method))
    # All three are fixed by active constraints; dz/dq = (-1/2, 1/2, 0).
    np.testing.assert_allclose(slope[0], np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(slope[1], [-0.5, 0.5, 0.0], atol=1e-6)


def test_bounds_of_least_variables(x64):
    problem = lambda q: QuadraticProgram(jnp.eye(3), q, lower=-1.0, upper=1.0)
    q = jnp.array([-3.0, 0.5, 2.0])
    for solver in (Scipy("L-BFGS-B"), Scipy("TNC")):
        value = js.solve(problem(q), solver, tolerance=1e-7).value
        np.testing.assert_allclose(value, [1.0, -0.5, -1.0], atol=1e-6)
        slope = jax.jacrev(lambda q, s=solver: js.solve(problem(q), s, tolerance=1e-7).value)(q)
        np.testing.assert_allclose(slope, np.diag([0.0, -1.0, 0.0]), atol=1e-6)


def test_a_failure_on_the_host_is_a_result_of_its_lane_alone(x64):
    # No root in the second lane; NaN in the data of the third.
    fn = lambda y, a: y**2 + a
    a = jnp.array([-4.0, 1.0, jnp.nan])

    @jax.jit
    @jax.vmap
    def solve(a):
        found = js.solve(Root(fn, a), Scipy("krylov"), jnp.array(1.0), throw=False)
        return found.value, found.result

    value, result = solve(a)
    assert (result == js.RESULTS.successful).tolist() == [True, False, False]
    assert bool((result == js.RESULTS.nonfinite_input)[2])
    np.testing.assert_allclose(value[0], 2.0, atol=1e-6)


def test_an_exception_on_the_host_is_a_result():
    # COBYQA refuses the option's value with an exception of its own.
    solver = Scipy("BFGS", maxiter="many")
    problem = Minimise(lambda y, _: jnp.sum((y - 1.0) ** 4))
    found = js.solve(problem, solver, jnp.zeros(2), throw=False)
    assert bool(found.result == js.RESULTS.stalled)
    with pytest.raises(js.SolveError, match="stalled"):
        js.solve(problem, solver, jnp.zeros(2))


@pytest.mark.parametrize(
    ("method", "field"), [("BFGS", "equality"), ("COBYLA", "equality"), ("L-BFGS-B", "equality")]
)
def test_refuses_what_it_cannot_honour(method, field):
    with pytest.raises(TypeError, match=f"`{field}`"):
        js.solve(program(jnp.ones(3)), Scipy(method))


def test_refuses_adjoints_that_differentiate_steps():
    problem = Minimise(lambda y, _: jnp.sum(y**2))
    for adjoint in (js.OneStep(), js.Unrolled(3)):
        with pytest.raises(TypeError, match="host"):
            js.solve(problem, Scipy("BFGS"), jnp.ones(2), adjoint=adjoint)


def test_an_unknown_method_is_named():
    with pytest.raises(TypeError, match="bfgz"):
        Scipy("bfgz")
    assert Scipy("slsqp").method == "SLSQP"
