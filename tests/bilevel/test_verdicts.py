"""What must not be called solved, and starts that come from other solves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsolve as js
from jaxsolve import sets


def pair():
    return jnp.zeros(2), jnp.zeros(2)


def near(x, y, args):
    return jnp.sum((y - 1) ** 2 + x**2)


def follow(x, y, args):
    return jnp.sum((y - x) ** 2)


def barrier(x, y, args):
    return 0.5 * y**2 - jnp.log(y - 1) - x * y


def row(x, y, args):
    return jnp.stack([x[0] - y[0] + 0.2])


def test_newtons_method_stays_where_the_lower_level_is_finite(x64):
    """y - 1 / (y - 1) = x: with grad F = 0 along it, by scipy's scalar minimiser."""
    from scipy.optimize import minimize_scalar

    def reduced(x):
        y = (x + 1 + np.sqrt((x + 1) ** 2 - 4 * (x - 1))) / 2
        return (y - 1.5) ** 2 + 0.1 * x**2

    best = minimize_scalar(reduced, bounds=(-2, 2), method="bounded", options={"xatol": 1e-10}).x
    problem = js.Bilevel(lambda x, y, args: (y - 1.5) ** 2 + 0.1 * x**2, barrier)
    for solver in (None, js.HypergradientDescent(lower_solver=js.LBFGS())):
        x, y = js.solve(problem, solver, (0.0, 5.0)).value
        assert y > 1
        np.testing.assert_allclose(x, best, atol=1e-6)


@pytest.mark.parametrize("level", ["upper", "lower"])
def test_a_level_that_is_nan_is_not_solved(level):
    """The gradient of log(a) in x and y is 0, whatever a is."""
    nan = {level: lambda x, y, args: (near if level == "upper" else follow)(x, y, args)
           + jnp.log(args)}  # fmt: skip
    levels = {"upper": near, "lower": follow} | nan
    problem = js.Bilevel(levels["upper"], levels["lower"], jnp.array(-1.0))
    found = js.solve(problem, init=pair(), throw=False)
    assert found.result not in (js.RESULTS.successful, js.RESULTS.approximate)


def test_a_function_that_is_nan_is_not_minimised():
    problem = js.Minimise(lambda y, a: jnp.sum(y**2) + jnp.log(a), jnp.array(-1.0))
    found = js.solve(problem, init=jnp.zeros(2), throw=False)
    assert found.result not in (js.RESULTS.successful, js.RESULTS.approximate)


def test_a_lower_level_at_a_saddle_is_nonconvex(x64):
    """cos y1 + cos y2 at (pi, 0): the adjoint has no part along y2."""
    problem = js.Bilevel(
        lambda x, y, args: jnp.sum((y[0] - 3) ** 2) + jnp.sum(x**2),
        lambda x, y, args: jnp.sum(jnp.cos(y)) + 0.1 * x[0] * y[0],
    )
    init = jnp.zeros(1), jnp.array([3.1, 0.0])
    found = js.solve(problem, init=init, throw=False)
    assert found.result == js.RESULTS.nonconvex


@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float64", "float32")])
def test_levels_of_two_dtypes_are_solved_to_the_coarser(x64, dtypes):
    """y = x + args, and of (y - 1)^2 + x^2 x = (1 - args) / 2."""
    init = tuple(jnp.zeros(2, dtype) for dtype in dtypes)
    shifted = lambda x, y, args: follow(x + args, y, args)

    def value(args):
        return js.solve(js.Bilevel(near, shifted, args), init=init).value

    args = jnp.array(0.3)
    x, y = value(args)
    assert (x.dtype, y.dtype) == dtypes
    np.testing.assert_allclose(x, 0.35, atol=1e-4)
    np.testing.assert_allclose(y, 0.65, atol=1e-4)
    np.testing.assert_allclose(jax.jacfwd(value)(args)[0], -0.5, atol=1e-3)
    gradient = js.hypergradient(js.Bilevel(near, shifted, args), init).gradient
    np.testing.assert_allclose(gradient, -1.4, atol=1e-3)


def test_a_value_that_was_too_low_is_looked_at_again(x64):
    """F(x, y(x)) = 0 at x = y(x), found with a lower level that was not solved well."""
    quartic = lambda x, y, args: jnp.sum(0.5 * (y - 1) ** 2 + 0.25 * y**4) + 0 * jnp.sum(x)
    problem = js.Bilevel(follow, quartic)
    x, y = js.solve(problem, init=(jnp.zeros(3), jnp.array([5.0, 4.0, -3.0]))).value
    root = np.roots([1, 0, 1, -1])
    np.testing.assert_allclose(x, root[np.isreal(root)].real[0] * np.ones(3), atol=1e-7)


@pytest.mark.parametrize("scale", [1e-2, 1e-3])
def test_y_follows_x_where_the_lower_level_is_flat(x64, scale):
    """Along curvatures `scale` a small residual of the lower level is a large error of y."""
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    H = turn @ np.diag([scale, 0.3, 2 * scale, 5 * scale]) @ turn.T
    B, c, d = rng.normal(size=(4, 3)), rng.normal(size=4), rng.normal(size=4)
    upper = lambda x, y, args: 0.5 * jnp.sum((y - d) ** 2) + 0.5 * jnp.sum(x**2)
    lower = lambda x, y, args: 0.5 * y @ H @ y - y @ (B @ x + c)
    M, q = np.linalg.solve(H, B), np.linalg.solve(H, c) - d
    best = np.linalg.solve(M.T @ M + np.eye(3), -M.T @ q)
    solution = js.solve(js.Bilevel(upper, lower), init=(jnp.zeros(3), jnp.zeros(4)), throw=False)
    assert solution.result == js.RESULTS.successful
    np.testing.assert_allclose(solution.value[0], best, rtol=0, atol=1e-7)


@pytest.mark.parametrize("limits", [(np.inf, 0.5), (np.inf, np.inf)], ids=["one", "none"])
@pytest.mark.parametrize("kind", [js.LVHBA, js.BiCGAFFA], ids=lambda kind: kind.__name__)
def test_infinite_limits_ask_for_nothing(x64, kind, limits):
    """y = min(x, limit) and (y - 2)^2 + (x - 1)^2: x = y = 3 / 2, or x = 1 and y the limit."""
    limit = jnp.array(limits)
    upper = lambda x, y, args: jnp.sum((y - 2) ** 2 + (x - 1) ** 2)
    coupling = lambda x, y, limit: y - limit

    def value(limit):
        problem = js.Bilevel(upper, follow, limit, coupling=coupling)
        return js.solve(problem, js.Polished(kind()), pair())

    solution = value(limit)
    bound = np.isfinite(limit)
    np.testing.assert_allclose(solution.value[0], np.where(bound, 1, 1.5), atol=1e-7)
    np.testing.assert_allclose(solution.value[1], np.where(bound, limit, 1.5), atol=1e-7)
    np.testing.assert_allclose(solution.dual.inequality, np.where(bound, 1, 0), atol=1e-7)
    slope = jax.jacrev(lambda limit: value(limit).value[1])(limit)
    np.testing.assert_allclose(slope, np.diag(bound), atol=1e-7)


@pytest.mark.parametrize("field", ["upper_set", "lower_set"])
def test_a_crossed_set_is_infeasible(field):
    crossed = sets.Box(jnp.array([0.0, 1.0]), 0.5)
    problem = js.Bilevel(near, follow, **{field: crossed})
    assert js.check(problem) == [f"`{field}` is empty: the data of Box leave no element."]
    assert js.check(js.Bilevel(near, follow, **{field: sets.Box(upper=1.0)})) == []
    for solver in (None, js.LVHBA(steps=10)):
        assert js.solve(problem, solver, pair(), throw=False).result == js.RESULTS.infeasible
    gradient = jax.grad(
        lambda end: js.solve(
            js.Bilevel(near, follow, **{field: sets.Box(jnp.array([0.0, 1.0]), end)}),
            init=pair(),
            throw=False,
        ).value[0].sum()
    )(0.5)  # fmt: skip
    assert np.isnan(gradient)


@pytest.mark.slow
def test_an_empty_polyhedron_is_infeasible():
    # x_0 + x_1 <= -1 and x >= 0: no row alone says so.
    empty = sets.Polyhedron(G=jnp.ones((1, 2)), h=-jnp.ones(1), lower=0.0)
    full = sets.Polyhedron(G=jnp.ones((1, 2)), h=jnp.ones(1), lower=0.0)
    found = js.solve(js.Bilevel(near, follow, upper_set=empty), None, pair(), throw=False)
    assert found.result == js.RESULTS.infeasible
    found = js.solve(js.Bilevel(near, follow, upper_set=full), None, pair(), throw=False)
    assert found.success


def test_a_crossed_set_of_samples_is_infeasible():
    level = lambda x, y, batch, args: follow(x, y, args) + jnp.mean(batch)
    data, crossed = jnp.ones((4, 2)), sets.Box(1.0, 0.5)
    problem = js.StochasticBilevel(level, level, data, data, batch_size=2, upper_set=crossed)
    assert "`upper_set` is empty" in js.check(problem)[0]
    found = js.solve(problem, js.SOBA(steps=10), pair(), throw=False)
    assert found.result == js.RESULTS.infeasible


UNBOUNDED = {
    "linear": lambda x, y, args: jnp.sum(x),
    "linear in y": lambda x, y, args: jnp.sum(y),
    "concave": lambda x, y, args: -jnp.sum(x**2),
}


@pytest.mark.parametrize("level", UNBOUNDED)
def test_an_upper_level_unbounded_below_is_not_solved(x64, level):
    """`stalled`, as `Minimise` says it: there is no proof of it from values."""
    problem = js.Bilevel(UNBOUNDED[level], follow)
    alone = js.Minimise(lambda y, args: UNBOUNDED[level](y, y, args))
    solvers = (None, js.LVHBA(), js.BiCGAFFA(), js.MEHA(), js.Polished(js.LVHBA()))
    found = [js.solve(problem, s, (jnp.ones(2), jnp.ones(2)), throw=False) for s in solvers]
    found.append(js.solve(alone, init=jnp.ones(2), throw=False))
    assert all(solution.result == js.RESULTS.stalled for solution in found)


def test_a_step_function_is_no_affine_constraint():
    """Its derivative does not depend on the point either; y - 0.6 <= 0 after rounding."""
    problem = js.Bilevel(
        lambda x, y, args: jnp.sum((y - 2) ** 2 + x**2),
        lambda x, y, args: jnp.sum((y - 2) ** 2) + 0 * jnp.sum(x),
        coupling=lambda x, y, args: jnp.round(y) - 0.6,
    )
    found = js.solve(problem, js.LVHBA(), pair(), throw=False)
    assert found.result == js.RESULTS.stalled


def test_starts_from_solutions_of_other_problems(x64):
    plain = js.Bilevel(near, follow)
    rows = {f: js.Bilevel(near, follow, **{f: row}) for f in ("coupling", "coupling_equality")}
    polished = js.Polished(js.LVHBA(steps=500))
    free = js.solve(plain, init=pair())
    bound = js.solve(rows["coupling"], polished, pair())
    again = js.solve(rows["coupling"], polished, free)
    np.testing.assert_allclose(again.value[1], bound.value[1], atol=1e-7)
    equal = js.solve(rows["coupling_equality"], polished, bound)
    x, y = equal.value
    np.testing.assert_allclose([x[0], y[0]], [0.4, 0.6], atol=1e-8)
    for solver in (js.Polished(js.MEHA(steps=500)), js.HypergradientDescent()):
        found = js.solve(plain, solver, bound)
        np.testing.assert_allclose(found.value[0], free.value[0], atol=1e-6)


@pytest.mark.parametrize(
    "optimiser", [optax.adam(0.1), optax.sgd(0.05, momentum=0.9)], ids=["adam", "sgd"]
)
def test_an_optax_descent_goes_on_where_it_was_cut(x64, optimiser):
    solver = js.HypergradientDescent(optimiser=optimiser)
    problem = js.Bilevel(near, follow)
    cut = lambda init, steps: js.solve(problem, solver, init, max_steps=steps, throw=False)
    whole, part = cut(pair(), 6), cut(pair(), 2)
    for _ in range(2):
        part = cut(part, 2)
    np.testing.assert_allclose(part.value[0], whole.value[0], rtol=1e-12)


def test_saba_stays_at_its_solution(x64):
    data = jnp.linspace(0.0, 1.0, 12)[:, None] * jnp.ones(2)
    problem = js.StochasticBilevel(
        lambda x, y, batch, args: jnp.mean((y - batch) ** 2) + 0.1 * jnp.sum((x - 1) ** 2),
        lambda x, y, batch, args: jnp.mean((y - x + 0.1 * batch) ** 2),
        data,
        data,
        batch_size=4,
    )
    found = js.solve(problem, js.SABA(0.1, 0.2, steps=5000), pair())
    assert found.success
    again = js.solve(problem, js.SABA(0.1, 0.2, steps=5000), found)
    assert again.success and again.stats.steps <= 2
    np.testing.assert_allclose(again.value[0], found.value[0], atol=1e-6)


@pytest.mark.fast
def test_settings_must_be_positive():
    for kind in (js.LVHBA, js.BiCGAFFA, js.MEHA):
        for name, least in {"step_size": "pos", "gamma1": "pos", "steps": "at least 1"}.items():
            with pytest.raises(ValueError, match=f"{kind.__name__}: `{name}` must be {least}"):
                kind(**{name: 0})


@pytest.mark.fast
def test_hypergradients_are_of_bilevel_problems():
    with pytest.raises(TypeError, match="hypergradient takes a Bilevel, not Minimise"):
        js.hypergradient(js.Minimise(lambda y, args: jnp.sum(y**2)), pair())
