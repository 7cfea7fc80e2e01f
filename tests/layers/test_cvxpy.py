"""Problems written in cvxpy: values against Clarabel, derivatives against its differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsolve as js

cvxpy = pytest.importorskip("cvxpy")

TIGHT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}
N = 3


def quadratic():
    x, S, b = cvxpy.Variable(N), cvxpy.Parameter((N, N)), cvxpy.Parameter(2)
    A = np.random.default_rng(3).normal(size=(2, N))
    objective = cvxpy.Minimize(cvxpy.sum_squares(S @ x) / 2)
    return cvxpy.Problem(objective, [A @ x == b, x >= -0.2]), [S, b], [x]


def linear():
    x, t, c = cvxpy.Variable(N, nonneg=True), cvxpy.Variable(), cvxpy.Parameter(N)
    objective = cvxpy.Minimize(c @ x + t)
    return cvxpy.Problem(objective, [cvxpy.sum(x) == 1, x <= 0.7, t >= x[0] - x[1]]), [c], [x, t]


def second_order():
    x, c = cvxpy.Variable(N), cvxpy.Parameter(N)
    return cvxpy.Problem(cvxpy.Minimize(c @ x), [cvxpy.norm(x) <= 1, x[0] >= -0.1]), [c], [x]


def semidefinite():
    X, C = cvxpy.Variable((N, N), symmetric=True), cvxpy.Parameter((N, N))
    objective = cvxpy.Minimize(cvxpy.trace(C @ X) + cvxpy.sum_squares(X))
    return cvxpy.Problem(objective, [cvxpy.trace(X) == 1, X >> 0]), [C], [X]


def exponential():
    x, c = cvxpy.Variable(N), cvxpy.Parameter(N)
    objective = cvxpy.Maximize(cvxpy.sum(cvxpy.entr(x)) - c @ x)
    return cvxpy.Problem(objective, [cvxpy.sum(x) == 1]), [c], [x]


# Of each: the canonical form's type, and how exactly Clarabel's point can be had.
FAMILIES = {
    "quadratic": (quadratic, js.QuadraticProgram, 1e-7),
    "linear": (linear, js.QuadraticProgram, 1e-7),
    "second_order": (second_order, js.ConeProgram, 1e-7),
    "semidefinite": (semidefinite, js.ConeProgram, 1e-6),
    "exponential": (exponential, js.ConeProgram, 1e-5),
}


def draw(parameters, seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=p.shape) for p in parameters]


def by_clarabel(problem, parameters, variables, values):
    for parameter, value in zip(parameters, values, strict=True):
        parameter.value = value
    problem.solve(solver=cvxpy.CLARABEL, **TIGHT)
    return [np.asarray(v.value) for v in variables]


_SLOW = ("semidefinite", "exponential")


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[pytest.mark.slow] * (f in _SLOW)) for f in FAMILIES]
)
def test_values_and_derivatives(family, x64):
    make, kind, within = FAMILIES[family]
    problem, parameters, variables = make()
    layer = js.from_cvxpy(problem, parameters, variables)
    values = [jnp.asarray(v) for v in draw(parameters, 0)]
    if family == "semidefinite":
        values = [v + v.T for v in values]
    assert isinstance(layer.problem(*values), kind)
    tangents = [jnp.asarray(v) for v in draw(parameters, 1)]
    if family == "semidefinite":
        tangents = [v + v.T for v in tangents]
    found, pushed = jax.jit(lambda v, t: jax.jvp(layer, v, t))(tuple(values), tuple(tangents))
    expected = by_clarabel(problem, parameters, variables, [np.asarray(v) for v in values])
    for x, y, variable in zip(found, expected, variables, strict=True):
        assert x.shape == variable.shape
        np.testing.assert_allclose(x, y, atol=within)
    step = 1e-3
    ends = [
        by_clarabel(
            problem,
            parameters,
            variables,
            [np.asarray(v + sign * step * t) for v, t in zip(values, tangents, strict=True)],
        )
        for sign in (1, -1)
    ]
    for push, up, down in zip(pushed, *ends, strict=True):
        difference = (up - down) / (2 * step)
        np.testing.assert_allclose(push, difference, atol=2e-4 * (1 + np.abs(difference).max()))


def test_a_batch_is_the_lanes(x64):
    problem, parameters, variables = second_order()
    layer = js.from_cvxpy(problem, parameters, variables)
    costs = jnp.asarray(np.stack([draw(parameters, seed)[0] for seed in range(4)]))
    together = jax.jit(jax.vmap(layer))(costs)[0]
    for cost, x in zip(costs, together, strict=True):
        expected = by_clarabel(problem, parameters, variables, [np.asarray(cost)])[0]
        np.testing.assert_allclose(x, expected, atol=1e-7)


def test_large_problems_are_sparse():
    n = 1200
    x, c = cvxpy.Variable(n), cvxpy.Parameter(n)
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(x) + c @ x), [x >= 0])
    made = js.from_cvxpy(problem, [c], [x]).problem(jnp.ones(n))
    assert not isinstance(made.G, jax.Array)
    assert made.G.shape == (n, n)


def test_what_is_refused_is_named():
    x, a, b = cvxpy.Variable(2), cvxpy.Parameter(2, name="a"), cvxpy.Parameter(2, name="b")
    whole = cvxpy.Variable(2, integer=True)
    other = cvxpy.Variable(2)
    symmetric = cvxpy.Parameter((2, 2), symmetric=True, name="S")
    objective = cvxpy.Minimize(cvxpy.sum_squares(x - a))
    simple = cvxpy.Problem(objective, [x >= b])
    with pytest.raises(ValueError, match=r"must be all of the problem's own.*'a', 'b'"):
        js.from_cvxpy(simple, [a], [x])
    with pytest.raises(ValueError, match="each once"):
        js.from_cvxpy(simple, [a, b, b], [x])
    with pytest.raises(ValueError, match="`variables` must be"):
        js.from_cvxpy(simple, [a, b], [other])
    with pytest.raises(ValueError, match="not DPP"):
        js.from_cvxpy(cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(x)), [a @ b * x >= 1]), [a, b], [x])
    with pytest.raises(ValueError, match="integer"):
        mixed = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(whole - a)))
        js.from_cvxpy(mixed, [a], [whole])
    with pytest.raises(ValueError, match="`S` has the attribute symmetric"):
        shaped = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(symmetric @ x - 1)))
        js.from_cvxpy(shaped, [symmetric], [x])
    layer = js.from_cvxpy(simple, [a, b], [x])
    with pytest.raises(TypeError, match=r"float16.*float32.*one precision"):
        layer(jnp.ones(2), jnp.ones(2, jnp.float16))
    with pytest.raises(TypeError, match="must be a cvxpy.Problem; got int"):
        js.from_cvxpy(3, [], [])
    with pytest.raises(TypeError, match="2 parameters were declared, 1 are given"):
        layer(jnp.ones(2))
    with pytest.raises(ValueError, match=r"parameters\[1\].*\[3\].*shape \[2\]"):
        layer(jnp.ones(2), jnp.ones(3))
