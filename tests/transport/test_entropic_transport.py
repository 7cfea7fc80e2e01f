"""Entropic transport against closed forms, POT, NumPy and differences; what the contract lacks."""

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from scipy.linalg import sqrtm
from transport_plans import sinkhorn

import jaxsolve as js
from jaxsolve.transport.points import Points

SLOW = pytest.mark.slow

EPSILON = 0.1


def drawn(n=30, m=20, d=2, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), 0.5 * rng.normal(size=(m, d)) + 1
    a, b = rng.uniform(0.2, 1, size=n), rng.uniform(0.2, 1, size=m)
    return x, y, a / a.sum(), b / b.sum()


def squares(x, y):
    return ((x[:, None] - y) ** 2).sum(-1)


@pytest.mark.parametrize("wide", [False, True])
def test_plan_is_that_of_pot(x64, wide):
    x, y, a, b = drawn()
    if wide:
        x, y, a, b = y, x, b, a
    costs = squares(x, y)
    plan = js.solve(js.EntropicTransport(costs, a, b, epsilon=EPSILON), tolerance=1e-12).value
    expected = ot.sinkhorn(a, b, costs, EPSILON, stopThr=1e-14, numItermax=100_000)
    np.testing.assert_allclose(plan.matrix, expected, atol=1e-11)
    np.testing.assert_allclose(plan.transport_cost, np.sum(costs * expected), rtol=1e-9)
    entropy = np.sum(expected * np.log(expected / a[:, None] / b))
    np.testing.assert_allclose(plan.cost, np.sum(costs * expected) + EPSILON * entropy, rtol=1e-9)
    vector = np.cos(np.arange(b.size))
    np.testing.assert_allclose(plan.apply(jnp.asarray(vector)), expected @ vector, atol=1e-11)
    rows = np.cos(np.arange(a.size))
    np.testing.assert_allclose(plan.apply(jnp.asarray(rows), axis=0), rows @ expected, atol=1e-11)


def test_normal_distributions_have_their_closed_form(x64):
    """Janati, Muzellec, Peyre and Cuturi (2020): for |x - y|^2 and epsilon = 2 s^2 the plan between
    N(0, A) and N(0, B) has the cross covariance C below. In one dimension, on a fine grid."""
    first, second, epsilon = 0.8, 1.3, 0.5
    x = np.linspace(-7, 7, 400)
    a, b = (np.exp(-(x**2) / (2 * v)) for v in (first, second))
    problem = js.EntropicTransport(
        squares(x[:, None], x[:, None]), a / a.sum(), b / b.sum(), epsilon=epsilon
    )
    plan = js.solve(problem, tolerance=1e-10).value
    square = epsilon / 2
    root = np.real(sqrtm(np.array([[4 * first * second + square**2]])))[0, 0]
    np.testing.assert_allclose(x @ np.asarray(plan.matrix) @ x, (root - square) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [pytest.param({}, marks=pytest.mark.slow), {"block": 7}], ids=["whole", "blocks"]
)
def test_points_are_their_matrix(x64, options):
    x, y, a, b = map(jnp.asarray, drawn())
    weight = jnp.cos(jnp.arange(b.size, dtype=a.dtype))

    def value(problem):
        plan = js.solve(problem, tolerance=1e-12).value
        return plan.cost + jnp.sum(plan.apply(weight) ** 2) + plan.transport_cost

    def points(x, y):
        return value(js.EntropicTransport.from_points(x, y, a, b, epsilon=EPSILON, **options))

    def matrix(x, y):
        costs = jnp.sum((x[:, None] - y) ** 2, axis=-1)
        return value(js.EntropicTransport(costs, a, b, epsilon=EPSILON))

    found = jax.jit(jax.value_and_grad(points, (0, 1)))(x, y)
    expected = jax.jit(jax.value_and_grad(matrix, (0, 1)))(x, y)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-9), found, expected)


def test_blocks_hold_no_matrix():
    n = 50_000
    points = Points.of(jnp.zeros((n, 3)), jnp.ones((n, 3)), None, None)
    assert points.block is not None

    def step(x, y):
        kernel = Points(x, y, points.cost_fn, points.block).kernel(
            jnp.zeros(n), jnp.ones(n) > 0, jnp.asarray(0.1)
        )
        return kernel.through(jnp.ones(n), lambda found, base: 1 / found)

    memory = jax.jit(step).lower(points.x, points.y).compile().memory_analysis()
    assert memory is not None
    # The matrix would be 10 GB.
    assert memory.temp_size_in_bytes < 2e8


def test_a_grid_is_its_matrix(x64):
    shape, epsilon = (5, 7), 0.02
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.1, 1, size=shape), rng.uniform(0.1, 1, size=shape)
    a[0, 0] = b[2, 3] = 0
    a, b = a / a.sum(), b / b.sum()
    places = np.stack(np.meshgrid(*(np.linspace(0, 1, k) for k in shape), indexing="ij"), -1)
    flat = places.reshape(-1, 2)
    problem = js.EntropicTransport.from_grid(shape, jnp.asarray(a), jnp.asarray(b), epsilon=epsilon)
    plan = js.solve(problem, tolerance=1e-12).value
    expected = sinkhorn(squares(flat, flat), a.ravel(), b.ravel(), epsilon)[0]
    np.testing.assert_allclose(plan.matrix, expected, atol=1e-11)
    np.testing.assert_allclose(
        plan.transport_cost, np.sum(expected * squares(flat, flat)), rtol=1e-9
    )


def test_second_derivatives_in_points_are_differences_of_gradients(x64):
    x, y, a, b = map(jnp.asarray, drawn(6, 5))

    def cost(x):
        problem = js.EntropicTransport.from_points(x, y, a, b, epsilon=0.3)
        return js.solve(problem, tolerance=1e-12).value.cost

    gradient = jax.jit(jax.grad(cost))
    hessian = jax.jit(jax.hessian(cost))(x).reshape(x.size, x.size)
    steps = 1e-5 * np.eye(x.size).reshape(x.size, *x.shape)
    differences = [(gradient(x + s) - gradient(x - s)).ravel() / 2e-5 for s in steps]
    np.testing.assert_allclose(hessian, np.stack(differences), atol=1e-6)


@pytest.mark.slow
def test_zero_weights_take_no_part_and_have_derivatives(x64):
    x, y, a, b = drawn(8, 6)
    a[2] = b[3] = 0
    a, b = a / a.sum(), b / b.sum()
    costs = squares(x, y)

    def cost(costs, a, b):
        return js.solve(
            js.EntropicTransport(costs, a, b, epsilon=EPSILON), tolerance=1e-12
        ).value.cost

    args = tuple(map(jnp.asarray, (costs, a, b)))
    gradient = jax.jit(jax.grad(cost, (0, 1, 2)))(*args)
    plan, f, g = sinkhorn(costs, a, b, EPSILON)
    np.testing.assert_allclose(gradient[0], plan, atol=1e-10)
    # Up to the constant that the weights' total leaves open.
    for found, potential in ((gradient[1], f), (gradient[2], g)):
        np.testing.assert_allclose(found - found[0], potential - potential[0], atol=1e-8)


@pytest.mark.slow
def test_a_forbidden_pair_stays_empty(x64):
    costs = np.array([[0.0, 1.0], [1.0, np.inf]])
    solve = lambda c: js.solve(js.EntropicTransport(c, epsilon=1.0), tolerance=1e-10).value
    plan = solve(jnp.asarray(costs[:1]))
    assert np.isfinite(plan.matrix).all()
    wide = jnp.asarray([[0.0, 1.0, 2.0], [1.0, jnp.inf, 0.5]])
    plan = solve(wide)
    assert plan.matrix[1, 1] == 0
    assert np.isfinite(jax.grad(lambda c: solve(c).transport_cost)(wide)).all()


@pytest.mark.slow
def test_float32_meets_the_sums_at_small_epsilons():
    x, y, *_ = drawn(200, 200)
    costs = squares(x, y)
    costs = jnp.asarray(costs / costs.mean(), jnp.float32)
    for epsilon in (1e-2, 1e-3, 1e-4, 1e-5):
        plan = js.solve(js.EntropicTransport(costs, epsilon=epsilon)).value
        matrix = np.asarray(plan.matrix, np.float64)
        assert np.abs(matrix.sum(0) - 1 / 200).sum() + np.abs(matrix.sum(1) - 1 / 200).sum() < 2e-4


@pytest.mark.slow
def test_weight_that_goes_from_cluster_to_cluster(x64):
    """Found at large epsilons or never: a stage that let it pass left 4e-3 of it for ever."""
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 7.0]])
    x, y = (
        np.repeat(centres, counts, axis=0) + 0.1 * rng.normal(size=(300, 2))
        for counts in ((100, 100, 100), (101, 100, 99))
    )
    costs = squares(x, y)
    problem = js.EntropicTransport(costs / costs.mean(), epsilon=3e-4)
    assert bool(js.solve(problem, tolerance=1e-6, throw=False).success)


@pytest.mark.slow
def test_large_tau_holds_the_sums(x64):
    x, y, a, b = drawn(8, 6)
    fixed, loose = (
        js.solve(js.EntropicTransport(squares(x, y), a, b, epsilon=EPSILON, tau=t)).value.matrix
        for t in (None, 1e7)
    )
    np.testing.assert_allclose(fixed, loose, atol=1e-6)


def test_samples_and_map_follow_the_plan(x64):
    x, y, a, b = map(jnp.asarray, drawn(6, 5))
    plan = js.solve(js.EntropicTransport.from_points(x, y, a, b, epsilon=EPSILON)).value
    first, second = plan.sample(jax.random.key(0), 20_000)
    counts = np.zeros(plan.shape)
    np.add.at(counts, (np.asarray(first), np.asarray(second)), 1 / 20_000)
    np.testing.assert_allclose(counts, plan.matrix, atol=0.015)
    mean = plan.apply(y) / a[:, None]
    np.testing.assert_allclose(jax.vmap(plan.to_map())(x), mean, atol=1e-6)


@pytest.mark.slow
def test_the_random_assignment_of_the_paper(x64):
    costs = jnp.asarray(np.random.default_rng(0).uniform(size=(500, 500)))
    solver = js.SinkhornNewton()
    solution = js.solve(js.EntropicTransport(costs, epsilon=1 / 1200), solver, tolerance=1e-12)
    matrix = np.asarray(solution.value.matrix)
    assert np.abs(matrix.sum(0) - 1 / 500).sum() + np.abs(matrix.sum(1) - 1 / 500).sum() < 2e-12
    assert int(solution.stats.steps) <= 35


@pytest.mark.parametrize(
    "wrong, error, words",
    [
        ({"a": jnp.ones(3)}, ValueError, "`a` is float32"),
        ({"epsilon": jnp.ones(2)}, ValueError, "`epsilon` must be a scalar"),
        ({"b": jnp.ones(5, jnp.float16)}, TypeError, "one precision"),
        ({"cost": jnp.ones(4)}, ValueError, "`cost` is"),
        ({"tau": (1.0, 1.0, 1.0)}, ValueError, "`tau` must be a number or a pair"),
    ],
)
def test_wrong_fields_are_named(wrong, error, words):
    fields = {"cost": jnp.ones((4, 5)), "epsilon": 0.1} | wrong
    with pytest.raises(error, match=words):
        js.solve(js.EntropicTransport(fields.pop("cost"), **fields))


@pytest.mark.slow
def test_sharded_rows_stay_on_their_devices(auto_mesh):
    x, y, *_ = drawn(64, 32)
    costs = jnp.asarray(squares(x, y), jnp.float32)
    rows = jax.sharding.NamedSharding(auto_mesh, jax.sharding.PartitionSpec("lanes", None))
    solve = jax.jit(
        lambda c: js.solve(js.EntropicTransport(c, epsilon=0.5), throw=False).value.cost
    )
    text = solve.lower(jax.device_put(costs, rows)).compile().as_text()
    assert "all-reduce" in text and "f32[8,32]" in text
    np.testing.assert_allclose(solve(jax.device_put(costs, rows)), solve(costs), rtol=1e-5)


@pytest.mark.parametrize("block", [16, pytest.param(None, marks=SLOW)])
def test_sharded_points_stay_on_their_devices(block, x64, auto_mesh):
    """Blocks too are shared by all devices: no row goes to another, neither there nor back."""
    x, y, *_ = map(jnp.asarray, drawn(64, 24))
    rows = jax.sharding.NamedSharding(auto_mesh, jax.sharding.PartitionSpec("lanes", None))

    def cost(x):
        problem = js.EntropicTransport.from_points(x, y, epsilon=0.5, block=block)
        return js.solve(problem, throw=False).value.cost

    placed, both = jax.device_put(x, rows), jax.jit(jax.value_and_grad(cost))
    assert "all-gather" not in both.lower(placed).compile().as_text()
    (value, slope), (wanted, direction) = both(placed), jax.value_and_grad(cost)(x)
    assert slope.sharding.is_equivalent_to(rows, 2)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    np.testing.assert_allclose(slope, direction, atol=1e-12)


@pytest.mark.parametrize("block", [4, pytest.param(None, marks=SLOW)])
def test_lanes_on_devices_share_data(block, x64, auto_mesh):
    """Weights that are the same on all devices, beside points that are not: neither the factor of
    the derivative's preconditioner nor the sum over blocks was traced."""
    x, y, a, b = map(jnp.asarray, drawn(6, 5))

    def corner(scale):
        problem = js.EntropicTransport.from_points(scale * x, y, a, b, epsilon=1.0, block=block)
        return js.solve(problem, throw=False).value.matrix[0, 0]

    spec = jax.sharding.PartitionSpec("lanes")
    each, scales = jax.vmap(jax.value_and_grad(corner)), jnp.linspace(1.0, 1.4, auto_mesh.size)
    sharded = jax.jit(jax.shard_map(each, mesh=auto_mesh, in_specs=spec, out_specs=spec))
    value, slope = sharded(scales)
    np.testing.assert_allclose(value, [corner(s) for s in scales], rtol=1e-9)
    h = 1e-4
    np.testing.assert_allclose(
        slope[0], (corner(scales[0] + h) - corner(scales[0] - h)) / (2 * h), rtol=1e-5
    )


@pytest.mark.parametrize("solver", [js.Sinkhorn(), js.SinkhornNewton()], ids=["plain", "newton"])
def test_a_loose_tolerance_is_not_met_by_a_larger_epsilon(x64, solver):
    x, y, a, b = drawn()
    problem = js.EntropicTransport(squares(x, y), a, b, epsilon=1e-4)
    solution = js.solve(problem, solver, tolerance=2e-2, throw=False)
    assert bool(solution.success)
    sums = np.asarray(solution.value.matrix).sum(0)
    assert np.abs(sums - b).sum() <= 2e-2


@pytest.mark.parametrize(
    "offset, tau",
    [(30.0, (1.0, 1.0)), (1e3, (1e4, 1e4)), (1e3, (None, 1e3)), (1e3, (1e3, None))],
)
def test_a_constant_in_the_costs_changes_little_with_tau(offset, tau, x64):
    """The steps that moved the potentials by it, one after the other, ended before they were
    there; and a total of 1e-7 was called solved while it was wrong by a part of its own size."""
    rng = np.random.default_rng(0)
    cost, epsilon = rng.random((8, 6)), 1e-2
    a, b = np.full(8, 1 / 8), np.full(6, 1 / 6)
    left, right = tau
    problem = js.EntropicTransport(offset + cost, a, b, epsilon=epsilon, tau=tau)
    solution = js.solve(problem)
    assert int(solution.stats.steps) <= 20
    plan = np.asarray(solution.value.matrix)
    f, g = map(np.asarray, solution.value.potentials)
    kernel = a[:, None] * b * np.exp((f[:, None] + g - offset - cost) / epsilon)
    rows = a if left is None else a * np.exp(-f / left)
    columns = b if right is None else b * np.exp(-g / right)
    assert np.abs(plan - kernel).sum() < 1e-6 * plan.sum()
    assert np.abs(plan.sum(1) - rows).sum() < 1e-6 * plan.sum()
    assert np.abs(plan.sum(0) - columns).sum() < 1e-6 * plan.sum()


@pytest.mark.parametrize("tau", [(None, 1.0), pytest.param((1.0, 1.0), marks=SLOW), (1.0, None)])
def test_blocks_of_rows_are_the_matrix_with_tau(tau, x64):
    """The constant that is added to the potential made another kernel of the blocks, whose steps
    then ended at the limit."""
    x, y, a, b = drawn(6, 5)
    fields = {"epsilon": 0.2, "tau": tau}
    matrix = js.solve(js.EntropicTransport(10 + squares(x, y), a, b, **fields)).value.matrix
    cost_fn = lambda x, y: 10 + jnp.sum((x - y) ** 2)
    blocks = js.EntropicTransport.from_points(x, y, a, b, cost_fn=cost_fn, block=4, **fields)
    np.testing.assert_allclose(js.solve(blocks).value.matrix, matrix, rtol=1e-6)


@pytest.mark.parametrize("rows", [3, pytest.param(6, marks=SLOW)])
def test_what_a_cost_function_captures_has_its_derivative(rows, x64):
    """It is that of multiplied costs; the plan's was wrong, and the value's raised."""
    x, y, _, _ = drawn(rows, 5)

    def by_points(scale):
        cost_fn = lambda x, y: scale * jnp.sum((x - y) ** 2)
        return js.EntropicTransport.from_points(x, y, cost_fn=cost_fn, epsilon=EPSILON)

    def by_matrix(scale):
        return js.EntropicTransport(scale * squares(x, y), epsilon=EPSILON)

    def of(problem):
        return lambda scale: (lambda p: (p.matrix[0], p.cost))(js.solve(problem(scale)).value)

    found, wanted = (jax.jacrev(of(problem))(jnp.array(1.3)) for problem in (by_points, by_matrix))
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-6)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-6)


def test_plans_between_points_go_through_jit_and_vmap(x64):
    """They held the function of the costs, which no transformation takes."""
    x, y, _, _ = drawn(6, 5)
    apart = lambda x, y: jnp.sum(jnp.abs(x - y))

    def plan(x, cost_fn):
        problem = js.EntropicTransport.from_points(x, y, cost_fn=cost_fn, epsilon=EPSILON)
        return js.solve(problem, throw=False).value

    for cost_fn in (None, apart):
        plans = jax.jit(jax.vmap(lambda x, fn=cost_fn: plan(x, fn)))(np.stack([x, 2 * x]))
        costs = jax.vmap(lambda plan: plan.cost)(plans)
        np.testing.assert_allclose(costs[1], plan(2 * x, cost_fn).cost, rtol=1e-9)


@pytest.mark.parametrize("level", [-300.0, jnp.inf])
def test_tau_with_costs_of_any_sign_and_without_any_pair(level, x64):
    """A plan of any total is judged by it: exp(300 / 2.5) weighs 1e52, and Inf everywhere 0."""
    a, b, epsilon = jnp.full(4, 1 / 4), jnp.full(3, 1 / 3), 0.5
    problem = js.EntropicTransport(jnp.full((4, 3), level), a, b, epsilon=epsilon, tau=1.0)
    plan = js.solve(problem).value.matrix
    # All entries are p, the minimiser of level p + 0.5 p (log p - 1) + 2 p (log p - 1).
    np.testing.assert_allclose(plan.sum(), np.exp(-level / 2.5), rtol=1e-7)


def smooth_images(side=28):
    """Costs on a grid of pixels, and two smooth images of blobs."""
    places = np.stack(np.meshgrid(*[np.arange(side)] * 2, indexing="ij"), -1).reshape(-1, 2)
    places = places / (side - 1)

    def image(centre, width):
        first = np.exp(-np.sum((places - centre) ** 2, 1) / (2 * width**2))
        second = np.exp(-2 * np.sum((places - centre[::-1] + 0.2) ** 2, 1) / width**2)
        found = first + 0.3 * second + 1e-3
        return found / found.sum()

    images = image(np.array([0.3, 0.4]), 0.12), image(np.array([0.65, 0.6]), 0.18)
    return squares(places, places) / 2, *images


def random_assignment(n=500):
    return np.random.default_rng(0).uniform(size=(n, n)), np.full(n, 1 / n), np.full(n, 1 / n)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "steps"), [(random_assignment, 60), (smooth_images, 250)], ids=["random", "smooth"]
)
def test_newton_sparse_at_an_eta_of_5000(case, steps, x64):
    """Where the method as published ends at 6e-7, with an overflow, or at 1e-2: epsilon falls to
    1/5000 by stages, steps are capped, and entries are kept as they are needed."""
    costs, a, b = case()
    problem = js.EntropicTransport(*map(jnp.asarray, (costs, a, b)), epsilon=1 / 5000)
    solution = js.solve(problem, js.SinkhornNewton(), tolerance=1e-12, max_steps=steps)
    matrix = np.asarray(solution.value.matrix)
    assert np.abs(matrix.sum(0) - b).sum() + np.abs(matrix.sum(1) - a).sum() < 1e-12
