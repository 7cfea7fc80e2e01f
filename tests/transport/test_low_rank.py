"""Plans of low rank: their sums, what bounds their cost, and products with costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsolve as js
from jaxsolve.transport.cost_products import cost_product


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def points(seed=0, n=60, m=40):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 2)), 0.5 * rng.normal(size=(m, 2)) + 1
    a, b = rng.uniform(0.5, 1.5, size=n), rng.uniform(0.5, 1.5, size=m)
    return tuple(jnp.asarray(z) for z in (x, y, a / a.sum(), b / b.sum()))


def squares(x, y):
    return np.sum((np.asarray(x)[:, None] - np.asarray(y)) ** 2, axis=2)


def checked(plan, cost, a, b, epsilon):
    """Sums, products and costs of a plan in NumPy; F, <c, p> + epsilon KL(p | a b')."""
    matrix = np.asarray(plan.matrix)
    assert (matrix >= 0).all()
    assert np.abs(matrix.sum(axis=1) - a).sum() < 1e-6
    assert np.abs(matrix.sum(axis=0) - b).sum() < 1e-6
    vector = np.linspace(-1, 1, b.size)
    np.testing.assert_allclose(plan.apply(jnp.asarray(vector)), matrix @ vector, atol=1e-12)
    two = np.stack([np.cos(np.arange(a.size)), np.ones(a.size)], axis=1)
    np.testing.assert_allclose(plan.apply(jnp.asarray(two), 0), matrix.T @ two, atol=1e-12)
    for axis, given in ((1, vector), (0, two)):
        turned = matrix if axis else matrix.T
        sums = turned.sum(axis=1)[:, None]
        means = (turned @ given.reshape(len(given), -1))[sums[:, 0] > 0] / sums[sums[:, 0] > 0]
        found = plan.mean(jnp.asarray(given), axis)
        assert np.isfinite(found).all()
        found = np.asarray(found).reshape(len(turned), -1)[sums[:, 0] > 0]
        np.testing.assert_allclose(found, means, atol=1e-6)
    linear = np.sum(matrix * cost)
    np.testing.assert_allclose(plan.transport_cost, linear, rtol=1e-10)
    live = matrix > 0
    ratio = np.where(live, matrix, 1) / np.where(live, np.outer(a, b), 1)
    return float(plan.cost), linear + epsilon * np.sum(matrix * np.log(ratio))


@pytest.mark.parametrize("mass", [0.3, 2.0])
def test_the_bound_holds_for_any_total_weight(mass):
    rng = np.random.default_rng(0)
    cost, a, b = rng.uniform(size=(6, 5)), np.full(6, mass / 6), np.full(5, mass / 5)
    problem = js.EntropicTransport(jnp.asarray(cost), jnp.asarray(a), jnp.asarray(b), epsilon=0.1)
    plan = js.solve(problem, js.LowRankSinkhorn(5)).value
    p = np.asarray(plan.matrix)
    kl = np.sum(p * np.log(p / np.outer(a, b))) - p.sum() + mass**2
    value = np.sum(p * cost) + 0.1 * kl
    assert float(js.solve(problem).value.cost) <= value <= float(plan.cost)
    np.testing.assert_allclose(plan.cost, value, rtol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "low", "high"), [(40, 0.0, 0.005), (2, 0.2, 1.0)])
def test_a_larger_rank_comes_nearer_to_the_plan(rank, low, high):
    """From above, whatever the rank: the dense optimum is a lower bound."""
    x, y, a, b = points()
    problem = js.EntropicTransport.from_points(x, y, a, b, epsilon=0.05)
    best = float(js.solve(problem).value.cost)
    solution = js.solve(problem, js.LowRankSinkhorn(rank), tolerance=1e-7)
    assert solution.result == js.RESULTS.approximate
    assert solution.stats.residual.primal < 1e-6
    plan = solution.value
    assert np.linalg.matrix_rank(plan.matrix, tol=1e-9) <= rank
    bound, value = checked(plan, squares(x, y), np.asarray(a), np.asarray(b), 0.05)
    assert best <= value <= bound
    assert low <= bound / best - 1 < high


@pytest.mark.slow
def test_rank_one_is_the_independent_plan_and_sides_may_be_exchanged():
    x, y, a, b = points()
    for first, second, p, q in ((x, y, a, b), (y, x, b, a)):
        problem = js.EntropicTransport.from_points(first, second, p, q, epsilon=0.5)
        plan = js.solve(problem, js.LowRankSinkhorn(1)).value
        np.testing.assert_allclose(plan.matrix, np.outer(p, q), atol=1e-14)
        three = js.solve(problem, js.LowRankSinkhorn(3)).value
        assert three.shape == (first.shape[0], second.shape[0])
        checked(three, squares(first, second), np.asarray(p), np.asarray(q), 0.5)
        assert float(three.cost) < float(plan.cost)
        rows, columns = three.sample(jax.random.key(0), 20_000)
        drawn = np.zeros(three.shape)
        np.add.at(drawn, (np.asarray(rows), np.asarray(columns)), 1 / 20_000)
        # The counts are multinomial: the largest of 2400 deviations is some four of its own.
        deviation = np.sqrt(np.asarray(three.matrix) / 20_000)
        assert np.all(np.abs(drawn - np.asarray(three.matrix)) <= 6 * deviation + 1 / 20_000)


@pytest.mark.slow
def test_points_matrices_and_weights_of_zero():
    x, y, a, b = points()
    a = jnp.where(jnp.arange(a.size) % 7 == 0, 0, a)
    a = a / jnp.sum(a)
    by_points = js.EntropicTransport.from_points(x, y, a, b, epsilon=0.1)
    by_matrix = js.EntropicTransport(jnp.asarray(squares(x, y)), a, b, epsilon=0.1)
    plans = [
        js.solve(p, js.LowRankSinkhorn(4), max_steps=20, throw=False).value
        for p in (by_points, by_matrix)
    ]
    np.testing.assert_allclose(plans[0].matrix, plans[1].matrix, atol=1e-9)
    checked(plans[0], squares(x, y), np.asarray(a), np.asarray(b), 0.1)
    assert float(jnp.max(jnp.where(a == 0, jnp.sum(plans[0].matrix, axis=1), 0))) == 0


@pytest.mark.slow
def test_single_precision_and_lanes():
    x, y, a, b = (z.astype(jnp.float32) for z in points())
    shifts = jnp.array([0.0, 0.5, 1.0], jnp.float32)

    def fit(shift):
        problem = js.EntropicTransport.from_points(x, y + shift, a, b, epsilon=0.2)
        found = js.solve(problem, js.LowRankSinkhorn(5), max_steps=50, throw=False)
        return found.value.cost, found.stats.residual.primal

    costs, errors = jax.vmap(fit)(shifts)
    assert costs.dtype == jnp.float32 and float(errors.max()) < 1e-5
    np.testing.assert_allclose(costs, [fit(s)[0] for s in shifts], rtol=1e-3)


@pytest.mark.slow
def test_the_derivative_of_the_cost_is_that_at_the_plan():
    """In the points: finite differences at fixed factors, and of solving again from them."""
    x, y, a, b = points(n=20, m=15)
    rank, epsilon = 4, 0.5
    start = js.solve(
        js.EntropicTransport.from_points(x, y, a, b, epsilon=epsilon), js.LowRankSinkhorn(rank),
        tolerance=1e-12, max_steps=20_000, throw=False,
    ).value  # fmt: skip

    def cost(shift):
        problem = js.EntropicTransport.from_points(x * (1 + shift), y, a, b, epsilon=epsilon)
        found = js.solve(
            problem, js.LowRankSinkhorn(rank), start, tolerance=1e-12, max_steps=20_000, throw=False
        )
        return found.value.cost

    h = 1e-2
    again = (cost(h) - cost(-h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(cost)(0.0), again, rtol=1e-2)


def test_products_with_costs_are_those_of_the_matrix():
    x, y, _, _ = points(n=7, m=5)
    rng = np.random.default_rng(1)
    columns = jnp.asarray(rng.normal(size=(5, 3)))
    far = js.EntropicTransport.from_points(x + 50, y + 50, epsilon=1.0).geometry
    np.testing.assert_allclose(cost_product(far, columns), squares(x, y) @ columns, atol=1e-10)

    def distance(x, y):
        return jnp.sqrt(jnp.sum((x - y) ** 2))

    other = js.EntropicTransport.from_points(x, y, epsilon=1.0, cost_fn=distance, block=3).geometry
    np.testing.assert_allclose(
        cost_product(other, columns), np.sqrt(squares(x, y)) @ columns, atol=1e-12
    )
    costs = tuple(jnp.asarray(rng.uniform(size=s)) for s in ((2, 3), (4, 2), (3, 2)))
    grid = js.EntropicTransport.from_grid((2, 4, 3), epsilon=1.0, costs=costs).geometry
    shapes = (2, 1, 1, 3, 1, 1), (1, 4, 1, 1, 2, 1), (1, 1, 3, 1, 1, 2)
    parts = [np.asarray(c).reshape(shape) for c, shape in zip(costs, shapes, strict=True)]
    whole = (parts[0] + parts[1] + parts[2]).reshape(24, 12)
    some = jnp.asarray(rng.normal(size=(12, 2)))
    np.testing.assert_allclose(cost_product(grid, some), whole @ some, atol=1e-12)


def test_what_does_not_fit_is_named():
    x, y, a, b = points(n=6, m=5)
    problem = js.EntropicTransport.from_points(x, y, epsilon=0.1)
    with pytest.raises(ValueError, match="rank"):
        js.solve(problem, js.LowRankSinkhorn(0))
    with pytest.raises(TypeError, match="tau"):
        js.solve(
            js.EntropicTransport.from_points(x, y, epsilon=0.1, tau=1.0), js.LowRankSinkhorn(2)
        )
    with pytest.raises(TypeError, match="LowRankPlan"):
        js.solve(problem, js.LowRankSinkhorn(2), x)

    def through(epsilon):
        moved = js.EntropicTransport.from_points(x, y, epsilon=epsilon)
        solver = js.LowRankSinkhorn(2)
        return js.solve(moved, solver, adjoint=js.Implicit(), throw=False).value.cost

    with pytest.raises(TypeError, match="Detached"):
        jax.grad(through)(0.1)
    negative = js.EntropicTransport.from_points(x, y, a.at[0].set(-0.1), b, epsilon=0.1)
    found = js.solve(negative, js.LowRankSinkhorn(2), throw=False)
    assert found.result == js.RESULTS.infeasible
    broken = js.EntropicTransport.from_points(x.at[0, 0].set(jnp.nan), y, epsilon=0.1)
    found = js.solve(broken, js.LowRankSinkhorn(2), throw=False)
    assert found.result == js.RESULTS.nonfinite_input


def test_the_derivative_in_weights_is_none(x64):
    """It was that of factors that stay, whose sums are then others: 0.44 for 0.54."""
    x, y, a, b = map(jnp.asarray, points(n=6, m=5))

    def cost(a, y):
        problem = js.EntropicTransport.from_points(x, y, a, b, epsilon=0.5)
        return js.solve(problem, js.LowRankSinkhorn(2), throw=False).value.cost

    in_a, in_y = jax.grad(cost, (0, 1))(a, y)
    assert np.isnan(in_a).all() and np.isfinite(in_y).all()
