"""Derivatives through the iterations, and of the smoothed point, against independent ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxsolve as js
from jaxsolve.convex.embedding import HomogeneousEmbedding

DATA = np.array([0.3, 1.2, -0.7])
P = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 1.5]])
ROWS = np.array([[1.0, 1.0, 0.0], [0.0, -1.0, 1.0]])
LIMITS = np.array([0.8, 2.0])


def coupled(y, a):
    return y + y**3 - a + 0.2 * jnp.roll(y, 1)


def program(a):
    """The first inequality is active, the second is not."""
    return js.QuadraticProgram(
        jnp.asarray(P, a.dtype), -a, G=jnp.asarray(ROWS, a.dtype), h=jnp.asarray(LIMITS, a.dtype)
    )


def minimise(a):
    return js.Minimise(lambda y, a: jnp.sum(y**2 / 2 + y**4 / 4 - a * y) + y[0] * y[1] / 9, a)


PROBLEMS = {
    "minimise": minimise,
    "least squares": lambda a: js.LeastSquares(coupled, a),
    "root": lambda a: js.Root(coupled, a),
    "fixed point": lambda a: js.FixedPoint(lambda y, a: y - coupled(y, a) / 6, a),
    "program": program,
    "equalities": lambda a: js.QuadraticProgram(P, -a, A=ROWS[:1], b=LIMITS[:1]),
}
SOLVERS = [
    ("minimise", js.LBFGS(), 30),
    ("minimise", js.TrustRegionNewton(), 40),
    ("least squares", js.LevenbergMarquardt(), 20),
    ("root", js.Newton(), 15),
    ("root", js.Broyden(), 25),
    ("fixed point", js.Anderson(), 40),
    ("program", js.InteriorPoint(), 20),
    ("program", js.ActiveSet(), 8),
    ("program", HomogeneousEmbedding(), 30),
    ("equalities", js.InteriorPoint(), 10),
]


QUICK = ("Newton-root", "InteriorPoint-equalities")


def unrolled(kind, solver, steps):
    name = f"{type(solver).__name__}-{kind}"
    marks = () if name in QUICK else pytest.mark.slow
    return pytest.param(kind, solver, steps, id=name, marks=marks)


@pytest.mark.parametrize("kind, solver, steps", [unrolled(*row) for row in SOLVERS])
def test_unrolled_value_and_derivative_are_those_of_the_solution(kind, solver, steps, x64):
    def solution(a, adjoint=None):
        init = None if kind in ("program", "equalities") else jnp.full_like(a, 0.1)
        return js.solve(PROBLEMS[kind](a), solver, init, adjoint=adjoint).value

    @jax.jit
    def both(a):
        unrolled = lambda a: solution(a, js.Unrolled(steps))
        exact = solution(a), jax.jacrev(solution)(a)
        return exact, (unrolled(a), jax.jacrev(unrolled)(a)), jax.jacfwd(unrolled)(a)

    (value, jacobian), (found, backward), forward = both(jnp.asarray(DATA))
    np.testing.assert_allclose(found, value, atol=1e-12)
    # The tolerance is 1e-8; an iteration's derivative lags behind the iteration.
    np.testing.assert_allclose(backward, jacobian, atol=2e-6)
    np.testing.assert_allclose(forward, jacobian, atol=2e-6)


def smoothed_point(a, kappa):
    """Of the KKT system with dual * slack = kappa, by SciPy, from the analytic centre outwards."""

    def system(point):
        x, z = point[:3], point[3:]
        return np.concatenate([P @ x - a + ROWS.T @ z, z * (LIMITS - ROWS @ x) - kappa])

    found = scipy.optimize.root(system, np.array([0.0, 0.0, 0.0, 0.5, 0.1]), tol=1e-14)
    x, z = found.x[:3], found.x[3:]
    assert np.max(np.abs(system(found.x))) < 1e-11
    assert np.all(z > 0) and np.all(LIMITS - ROWS @ x > 0)
    return x


@pytest.mark.parametrize("kappa", [1e-2, 0.3])
def test_smoothed_derivative_is_that_of_the_smoothed_point(kappa, x64):
    adjoint = js.Implicit(degenerate=js.Smoothed(kappa))

    def solution(a):
        return js.solve(program(a), adjoint=adjoint).value

    a, width = DATA, 1e-5
    differences = np.stack(
        [
            (smoothed_point(a + width * e, kappa) - smoothed_point(a - width * e, kappa))
            / (2 * width)
            for e in np.eye(3)
        ],
        axis=1,
    )
    value, *found = jax.jit(
        lambda a: (solution(a), jax.jacrev(solution)(a), jax.jacfwd(solution)(a))
    )(jnp.asarray(a))
    # The value stays the solution's own.
    assert abs(float(ROWS[0] @ np.asarray(value)) - LIMITS[0]) < 1e-8
    for jacobian in found:
        np.testing.assert_allclose(jacobian, differences, atol=1e-7)
