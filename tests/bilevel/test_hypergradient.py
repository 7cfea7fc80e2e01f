"""Hypergradients and the descent along them, against the closed forms of a quadratic problem."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic_bilevel import DATA, LOWER, UPPER, arrays, fit, lower, solved, upper, with_adjoint

import jaxsolve as js

pytestmark = pytest.mark.usefixtures("x64")

X = np.array([0.4, -1.0, 0.7])
Y = fit(DATA, X)


def problem(data=DATA, dtype=jnp.float64):
    return js.Bilevel(upper, lower, arrays(data, dtype))


def evaluate(start=None, **settings):
    start = np.zeros(LOWER) if start is None else start
    settings.setdefault("tolerance", 1e-12)
    return js.hypergradient(problem(), (jnp.asarray(X), jnp.asarray(start)), **settings)


@pytest.mark.parametrize(
    "linear_solver",
    [
        None,
        js.linear.Dense(),
        js.linear.ConjugateGradient(rtol=1e-14),
        js.linear.NormalCG(rtol=1e-14),
        js.linear.GMRES(rtol=1e-14),
        js.linear.MINRES(rtol=1e-14),
        js.linear.ConjugateGradient(rtol=1e-14, preconditioner=js.linear.Nystroem(3, 0.5)),
    ],
    ids=lambda s: type(s).__name__,
)
def test_exact_methods(linear_solver):
    exact = with_adjoint(DATA, X, np.linalg.inv(DATA["H"]))
    # Newton's method preconditions with its factors; from the solution LBFGS() has nothing.
    for start, lower_solver in ((np.zeros(LOWER), js.Newton()), (Y, js.LBFGS())):
        found = evaluate(start, lower_solver=lower_solver, linear_solver=linear_solver)
        np.testing.assert_allclose(found.gradient, exact, rtol=0, atol=1e-10)
        np.testing.assert_allclose(found.lower.value, Y, rtol=0, atol=1e-10)


@pytest.mark.fast
def test_the_value_is_that_of_the_upper_level():
    np.testing.assert_allclose(evaluate().value, upper(X, Y, DATA), rtol=1e-12)


def test_iterative_differentiation_converges():
    found = evaluate(lower_solver=optax.sgd(0.5), adjoint=js.Unrolled(200))
    exact = with_adjoint(DATA, X, np.linalg.inv(DATA["H"]))
    np.testing.assert_allclose(found.gradient, exact, rtol=0, atol=1e-10)


# --- approximate methods: each with the inverse that theory says it uses ------------------------


def neumann(terms, step_size):
    """s sum_{i < k} (I - s H)^i."""
    power, total = np.eye(LOWER), np.zeros((LOWER, LOWER))
    for _ in range(terms):
        total, power = total + step_size * power, power @ (np.eye(LOWER) - step_size * DATA["H"])
    return total


@pytest.mark.parametrize("terms", [1, 3, 10])
def test_neumann(terms):
    found = evaluate(linear_solver=js.linear.Neumann(terms, 0.5))
    np.testing.assert_allclose(
        found.gradient, with_adjoint(DATA, X, neumann(terms, 0.5)), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_truncated_differentiation_is_the_neumann_series_at_the_solution(steps):
    """Shaban et al. (2019): the last k steps of a solve that is at its end."""
    found = evaluate(Y, lower_solver=optax.sgd(0.5), adjoint=js.Unrolled(steps))
    np.testing.assert_allclose(
        found.gradient, with_adjoint(DATA, X, neumann(steps, 0.5)), rtol=0, atol=1e-10
    )


def test_one_step():
    """Bolte, Pauwels and Vaiter (2023): a gradient step's derivative is the first term alone, a
    Newton step's exact; the error is at most the contraction factor."""
    gradient_step = evaluate(lower_solver=optax.sgd(0.5), adjoint=js.OneStep(), tolerance=1e-12)
    np.testing.assert_allclose(
        gradient_step.gradient, with_adjoint(DATA, X, neumann(1, 0.5)), rtol=0, atol=1e-10
    )
    exact = with_adjoint(DATA, X, np.linalg.inv(DATA["H"]))
    v = np.linalg.solve(DATA["H"], Y - DATA["d"])
    factor = np.linalg.norm(np.eye(LOWER) - 0.5 * DATA["H"], 2)
    bound = np.linalg.norm(DATA["B"], 2) * factor * np.linalg.norm(v)
    assert np.linalg.norm(gradient_step.gradient - exact) <= bound


@pytest.mark.parametrize("rank", [1, 3, LOWER])
def test_nystrom(rank):
    """With N the Nystrom approximation of rank k for this Omega, the inverse is (N + d I)^{-1}."""
    damping = 0.1
    normal = np.asarray(jax.random.normal(jax.random.key(0), (LOWER, rank), jnp.float64))
    basis = np.linalg.qr(normal)[0]
    products = DATA["H"] @ basis
    low_rank = products @ np.linalg.solve(basis.T @ products, products.T)
    inverse = np.linalg.inv(low_rank + damping * np.eye(LOWER))
    found = evaluate(linear_solver=js.linear.Nystroem(rank, damping))
    np.testing.assert_allclose(found.gradient, with_adjoint(DATA, X, inverse), rtol=0, atol=1e-9)


def test_nystrom_error_falls_with_damping_at_full_rank():
    exact = with_adjoint(DATA, X, np.linalg.inv(DATA["H"]))
    errors = []
    for damping in (1e-1, 1e-2, 1e-3):
        found = evaluate(linear_solver=js.linear.Nystroem(LOWER, damping))
        errors.append(np.abs(found.gradient - exact).max())
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.3)
    np.testing.assert_allclose(errors[1] / errors[2], 10, rtol=0.05)


def gradients(x, y, data):
    """Of samples whose Fisher matrix is H: the mean of g g' over the rows."""
    root = jnp.linalg.cholesky(data["H"])
    return jnp.sqrt(jnp.asarray(LOWER, y.dtype)) * root.T


def test_mfac_error_is_that_of_the_damping_where_fisher_and_hessian_agree():
    exact = with_adjoint(DATA, X, np.linalg.inv(DATA["H"]))
    errors = []
    for damping in (1e-2, 1e-3, 1e-4):
        inverse = np.linalg.inv(DATA["H"] + damping * np.eye(LOWER))
        method = js.MFACInverse(damping=damping, gradients=gradients)
        found = evaluate(linear_solver=method)
        np.testing.assert_allclose(
            found.gradient, with_adjoint(DATA, X, inverse), rtol=0, atol=1e-9
        )
        errors.append(np.abs(found.gradient - exact).max())
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.1)
    np.testing.assert_allclose(errors[1] / errors[2], 10, rtol=0.1)


def test_mfac_as_a_preconditioner_leaves_no_error():
    """A damping of a fifth of the largest curvature, and one product less than unknowns."""
    method = js.MFACInverse(damping=0.4, gradients=gradients)
    exact = with_adjoint(DATA, X, np.linalg.inv(DATA["H"]))
    preconditioned = js.linear.ConjugateGradient(rtol=1e-14, max_steps=5, preconditioner=method)
    plain = js.linear.ConjugateGradient(rtol=1e-14, max_steps=5)
    # Newton's method would precondition with its factors; from the solution LBFGS() has nothing.
    errors = [
        np.abs(evaluate(Y, lower_solver=js.LBFGS(), linear_solver=s).gradient - exact).max()
        for s in (preconditioned, plain)
    ]
    assert errors[0] < 0.1 * errors[1], errors
    found = evaluate(linear_solver=js.linear.ConjugateGradient(rtol=1e-14, preconditioner=method))
    np.testing.assert_allclose(found.gradient, exact, rtol=0, atol=1e-10)


# --- the descent --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [
        js.HypergradientDescent(),
        js.HypergradientDescent(lower_solver=js.TrustRegionNewton()),
        js.HypergradientDescent(optimiser=optax.adam(0.1), linear_solver=js.linear.NormalCG()),
    ],
    ids=["LBFGS", "Newton", "adam"],
)
def test_descent(solver):
    solution = js.solve(problem(), solver, (jnp.zeros(UPPER), jnp.zeros(LOWER)), tolerance=1e-9)
    x, y = solved(DATA)
    np.testing.assert_allclose(solution.value[0], x, rtol=0, atol=1e-7)
    np.testing.assert_allclose(solution.value[1], y, rtol=0, atol=1e-7)
    v = np.linalg.solve(DATA["H"], y - DATA["d"])
    np.testing.assert_allclose(solution.dual.adjoint.primal, -v, rtol=0, atol=1e-6)


def test_an_approximate_inverse_says_so():
    solver = js.HypergradientDescent(
        optimiser=optax.sgd(0.1), linear_solver=js.linear.Neumann(3, 0.5)
    )
    solution = js.solve(problem(), solver, (jnp.zeros(UPPER), jnp.zeros(LOWER)))
    assert solution.result == js.RESULTS.approximate
    inverse = neumann(3, 0.5)
    # Its end is where its own hypergradient is 0.
    x = np.asarray(solution.value[0])
    np.testing.assert_allclose(with_adjoint(DATA, x, inverse), 0, atol=1e-7)
    assert float(solution.stats.residual.dual) > 1e-2


def test_a_set_for_the_upper_variable():
    box = js.sets.Box(-0.2, 0.2)
    plain = problem()
    bounded = js.Bilevel(upper, lower, plain.args, upper_set=box)
    solution = js.solve(bounded, None, (jnp.zeros(UPPER), jnp.zeros(LOWER)))
    x = np.asarray(solution.value[0])
    slope = with_adjoint(DATA, x, np.linalg.inv(DATA["H"]))
    np.testing.assert_allclose(x, np.clip(x - slope, -0.2, 0.2), atol=1e-7)
    assert np.abs(x).max() == 0.2


def test_float32():
    solution = js.solve(
        problem(dtype=jnp.float32), None, (jnp.zeros(UPPER, "float32"), jnp.zeros(LOWER, "float32"))
    )
    assert solution.value[0].dtype == jnp.float32
    np.testing.assert_allclose(solution.value[0], solved(DATA)[0], atol=1e-3)


def test_a_stochastic_problem_is_solved_on_all_its_data():
    rng = np.random.default_rng(1)
    inputs, shift = rng.normal(size=(20, 3)), rng.normal(size=3)
    loss = lambda x, y, batch, args: 0.5 * jnp.mean((batch @ (y - args)) ** 2)
    ridge = lambda x, y, batch, args: (
        0.5 * jnp.mean((batch @ y - 1) ** 2) + 0.5 * y @ (jnp.exp(x) * y)
    )
    stochastic = js.StochasticBilevel(
        loss, ridge, jnp.asarray(inputs), jnp.asarray(inputs), jnp.asarray(shift), batch_size=5
    )
    start = jnp.zeros(3), jnp.zeros(3)
    found = js.hypergradient(stochastic, start, tolerance=1e-12).gradient

    def value(x):
        H = inputs.T @ inputs / 20 + np.diag(np.exp(x))
        y = np.linalg.solve(H, inputs.mean(0))
        return 0.5 * np.mean((inputs @ (y - shift)) ** 2)

    steps = 1e-5 * np.eye(3)
    numeric = [(value(e) - value(-e)) / 2e-5 for e in steps]
    np.testing.assert_allclose(found, numeric, atol=1e-8)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.fast
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: js.Bilevel(upper, lower, arrays(DATA, jnp.float64), coupling=lambda x, y, a: y),
            "`coupling`",
        ),
        (lambda: js.Bilevel(lambda x, y, a: y, lower, None), "`upper` must return a real scalar"),
        (
            lambda: js.Bilevel(upper, lower, arrays(DATA, jnp.float64), upper_set=3),
            "`upper_set` must be one of",
        ),
    ],
)
def test_refused_problems(make, words):
    with pytest.raises(TypeError, match=words):
        js.solve(make(), js.HypergradientDescent(), (jnp.zeros(UPPER), jnp.zeros(LOWER)))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (js.HypergradientDescent(linear_solver=js.linear.Neumann(3)), "optax transformation"),
        (js.HypergradientDescent(optimiser=3), "`optimiser` must be"),
        (
            js.HypergradientDescent(adjoint=js.Unrolled(3), linear_solver=js.linear.Dense()),
            "leave out `linear_solver`",
        ),
    ],
)
def test_refused_settings(solver, words):
    with pytest.raises(TypeError, match=words):
        js.solve(problem(), solver, (jnp.zeros(UPPER), jnp.zeros(LOWER)))


@pytest.mark.fast
def test_a_guess_is_a_pair():
    with pytest.raises(TypeError, match=r"a pair \(x, y\)"):
        js.solve(problem(), None, jnp.zeros(UPPER))


@pytest.mark.fast
def test_samples_must_agree():
    loss = lambda x, y, batch, args: jnp.mean(batch[0] * y)
    data = jnp.zeros((4, 2)), jnp.zeros(5)
    bad = js.StochasticBilevel(loss, loss, data, data, batch_size=2)
    with pytest.raises(ValueError, match=r"`upper_data\[1\]` is float64\[5\]"):
        js.solve(bad, js.HypergradientDescent(), (jnp.zeros(2), jnp.zeros(2)))


# --- what a review has found --------------------------------------------------------------------


def target(x, y, args):
    return jnp.sum((y - 1.0) ** 2) + jnp.sum((x - 2.0) ** 2)


def follow(x, y, args):
    return jnp.sum((y - x) ** 2)


def test_a_lone_number_is_a_variable():
    solution = js.solve(js.Bilevel(target, follow), init=(0.0, jnp.zeros(2)))
    np.testing.assert_allclose(solution.value[0], 4 / 3, atol=1e-7)


@pytest.mark.fast
def test_integers_are_no_variable():
    with pytest.raises(TypeError, match=r"`init\[0\]` has no floating-point array"):
        js.solve(js.Bilevel(target, follow), init=(jnp.zeros(2, int), jnp.zeros(2)))


def test_a_maximum_of_the_lower_level_is_no_solution():
    turned = js.Bilevel(target, lambda x, y, args: -follow(x, y, args))
    solution = js.solve(turned, init=(jnp.zeros(2), jnp.zeros(2)), throw=False)
    assert solution.result == js.RESULTS.nonconvex


def test_a_start_outside_of_the_set():
    bounded = js.Bilevel(target, follow, upper_set=js.sets.Box(1.6, 3.0))
    solution = js.solve(bounded, init=(jnp.zeros(2), jnp.zeros(2)))
    np.testing.assert_allclose(solution.value[0], 1.6)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (js.HypergradientDescent(adjoint=js.Detached()), "`adjoint` must be Unrolled"),
        (js.HypergradientDescent(linear_solver="cg"), "`linear_solver` must be a solver"),
    ],
)
def test_settings_that_are_none(solver, words):
    with pytest.raises(TypeError, match=words):
        js.solve(js.Bilevel(target, follow), solver, (jnp.zeros(2), jnp.zeros(2)))


@pytest.mark.fast
def test_a_level_is_a_function():
    with pytest.raises(TypeError, match="`upper` must be a function"):
        js.solve(js.Bilevel(3.0, follow), init=(jnp.zeros(2), jnp.zeros(2)))
