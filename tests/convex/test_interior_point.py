"""Interior point, active set and their rescue against Clarabel and NumPy: good and bad lanes in one
batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import jaxsolve as js
from jaxsolve.convex import ActiveSet, HomogeneousEmbedding, InteriorPoint
from jaxsolve.convex.cones import AbstractCone
from tests import convex_programs as programs

SOLVERS = {
    "ActiveSet": ActiveSet(),
    "InteriorPoint": InteriorPoint(),
    "HomogeneousEmbedding": HomogeneousEmbedding(),
}


def problem(fields):
    rest = {name: fields[name] for name in programs.FIELDS[2:]}
    return js.QuadraticProgram(fields["P"], fields["q"], **rest)


def name_of(result):
    code = int(np.asarray(result._value))
    return next(n for n, item in js.RESULTS._name_to_item.items() if int(item._value) == code)


def duals(solution, lane=None):
    dual = solution.dual
    parts = (dual.equality, dual.inequality, dual.lower, dual.upper)
    return [np.asarray(p if lane is None else p[lane]) for p in parts]


def batch(many, solver, dtype):
    run = jax.jit(jax.vmap(lambda fields: js.solve(problem(fields), solver, throw=False)))
    return run(programs.stacked(many, dtype))


@pytest.mark.parametrize("solver", SOLVERS)
def test_outcomes_of_one_mixed_batch(solver, dtype, strict):
    cases = programs.outcomes()
    solution = batch([data for data, _ in cases.values()], SOLVERS[solver], dtype)
    goal = {"float32": 1e-4, "float64": 1e-8}[dtype.name]
    for lane, (name, (data, expected)) in enumerate(cases.items()):
        result = name_of(jax.tree.map(lambda x, lane=lane: x[lane], solution.result))
        assert result == expected, name
        dual, value = duals(solution, lane), np.asarray(solution.value[lane], np.float64)
        assert value.dtype == np.float64 and solution.value.dtype == dtype
        if result == "successful":
            # The size of what is added up in the gradient; 10 for the rounding of the data.
            scale = 10 * max(1.0, np.abs(data["q"]).max())
            assert programs.residual(data, value, dual) <= goal * scale, name
        if result == "infeasible":
            rest, gap = programs.farkas(data, dual)
            assert gap < 0 and rest <= -gap * {"float32": 1e-3, "float64": 1e-6}[dtype.name], name
        if result == "unbounded":
            small = {"float32": 1e-3, "float64": 1e-6}[dtype.name]
            assert data["q"] @ value < 0
            assert np.abs(data["A"] @ value).max() <= -small * (data["q"] @ value)


def test_what_is_left_is_the_factor_of_an_active_set(dtype):
    """An interior iterate's is of no use to the derivative: a system in all rows was solved in its
    place, in float32 in a lane in eight (n = 200)."""
    n = 50

    def drawn(seed):
        rng = np.random.default_rng(seed)
        root, q, inside = rng.normal(size=(n, n)), rng.normal(size=n), rng.normal(size=n)
        A, G = rng.normal(size=(n // 2, n)), rng.normal(size=(n, n))
        P, h = root @ root.T / n + 0.1 * np.eye(n), G @ inside + rng.uniform(size=n)
        return {"P": P, "q": q, "A": A, "b": A @ inside, "G": G, "h": h}

    # In float32 these end at an interior iterate.
    drawings = [drawn(seed) for seed in (35, 91, 92, 183, 194, 204)]
    many = jax.tree.map(lambda *x: jnp.asarray(np.stack(x), dtype), *drawings)
    run = lambda f: js.solve(js.QuadraticProgram(**f), InteriorPoint(), throw=False)
    solution = jax.jit(jax.vmap(run))(many)
    assert solution.success.all()
    assert (np.asarray(solution.state.weight > 0).sum(axis=1) <= n - n // 2).all()


def test_regular_programs_agree_with_clarabel(x64):
    many = [programs.regular(seed) for seed in range(15)]
    solution = batch(many, InteriorPoint(), jnp.float64)
    for lane, data in enumerate(many):
        assert programs.residual(data, solution.value[lane], duals(solution, lane)) <= 1e-8
        expected = programs.by_clarabel(data)
        np.testing.assert_allclose(solution.value[lane], expected, atol=1e-6)


@pytest.mark.parametrize("solver", ["ActiveSet", "InteriorPoint"])
def test_a_small_objective_is_minimised_as_well(solver):
    # In float32, with entries of 1e-6, any feasible point meets a tolerance of 1e-4.
    many = [programs.regular(seed) for seed in range(15)]
    small = [{**data, "P": 1e-6 * data["P"], "q": 1e-6 * data["q"]} for data in many]
    solution = batch(small, SOLVERS[solver], jnp.float32)
    assert np.all(solution.success)
    for lane, data in enumerate(many):
        expected = programs.by_clarabel(data)
        np.testing.assert_allclose(solution.value[lane], expected, atol=1e-3)


@pytest.mark.parametrize("solver", [*SOLVERS, "OperatorSplitting"])
def test_large_rows_excuse_no_violated_bound(solver):
    """Nor do they keep a solver from the solution, those of G beside small ones of A either."""
    many = [programs.regular(seed) for seed in range(15)]
    large = [
        {**d, **{name: 1e6 * d[name] for name in names}}
        for names in (("A", "b", "G", "h"), ("G", "h"))
        for d in many
    ]
    many = many * 2
    solution = batch(large, SOLVERS.get(solver, js.OperatorSplitting()), jnp.float32)
    assert np.all(solution.success)
    for lane in range(len(large)):
        x, data = np.asarray(solution.value[lane], np.float64), many[lane]
        assert np.all(x >= data["lower"] - 1e-3) and np.all(x <= data["upper"] + 1e-3)
        np.testing.assert_allclose(x, programs.by_clarabel(data), atol=1e-2)


@pytest.mark.parametrize(
    "solver",
    [pytest.param("ActiveSet", marks=pytest.mark.slow), "InteriorPoint", "HomogeneousEmbedding"],
)
def test_rows_of_zeros_say_nothing(solver, dtype):
    """0'x <= h changes no solution where h >= 0, not even the number of steps; h < 0 is proved."""
    many = [programs.regular(seed) for seed in range(9)]
    n = many[0]["q"].size

    def with_rows(data, sides):
        sides = np.asarray(sides, float)
        G = np.concatenate([data["G"], np.zeros((sides.size, n))])
        return data | {"G": G, "h": np.append(data["h"], sides)}

    usual = batch(many, SOLVERS[solver], dtype)
    idle = batch([with_rows(d, [0, 0, -0.0, 2, 0]) for d in many], SOLVERS[solver], dtype)
    assert np.all(usual.success) and np.all(idle.success)
    np.testing.assert_array_equal(idle.stats.steps, usual.stats.steps)
    for lane, data in enumerate(many):
        expected = programs.by_clarabel(data)
        np.testing.assert_allclose(
            idle.value[lane], expected, atol=(2e-3, 1e-6)[dtype == "float64"]
        )
    wrong = batch([with_rows(d, [0, 0, -1, 2, 0]) for d in many], SOLVERS[solver], dtype)
    for lane in range(len(many)):
        assert name_of(jax.tree.map(lambda x: x[lane], wrong.result)) == "infeasible"  # noqa: B023


def test_a_feasible_set_of_one_point_is_found(x64):
    """As many equalities as variables, and the rest active there: no interior, all multipliers."""
    rng, many = np.random.default_rng(0), []
    for _ in range(100):
        root, A, G = rng.normal(size=(3, 2)), rng.normal(size=(3, 3)), rng.normal(size=(2, 3))
        inside = rng.normal(size=3)
        spare = np.where(rng.random((2, 3)) < 0.5, 0, rng.random((2, 3)))
        bounds = {"lower": inside - spare[0], "upper": inside + 1}
        sides = {"b": A @ inside, "h": G @ inside + spare[1, :2]}
        P, q = root @ root.T, rng.normal(size=3)
        many.append({"P": P, "q": q, "A": A, "G": G, **sides, **bounds})
    solution = batch(many, InteriorPoint(), jnp.float64)
    assert np.all(solution.success)
    for lane, data in enumerate(many):
        expected = np.linalg.solve(data["A"], data["b"])
        np.testing.assert_allclose(solution.value[lane], expected, atol=1e-6)


def test_derivative_against_the_active_set(x64):
    many = [programs.regular(seed) for seed in range(15)]
    cotangent = np.random.default_rng(0).normal(size=programs.SIZE)
    fields = programs.stacked(many, jnp.float64)

    def value(q, rest):
        solution = js.solve(problem({**rest, "q": q}), throw=False)
        return jnp.asarray(cotangent) @ solution.value, solution

    gradient, solution = jax.jit(jax.vmap(jax.grad(value, has_aux=True)))(fields["q"], fields)
    for lane, data in enumerate(many):
        dual = duals(solution, lane)
        expected = programs.active_set_gradient(data, solution.value[lane], dual, cotangent)
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(gradient[lane], expected, atol=1e-6 * scale)


def test_derivative_in_every_field_is_the_finite_difference_of_clarabel(x64):
    data = programs.regular(3)
    cotangent = np.random.default_rng(1).normal(size=programs.SIZE)
    fields = {name: jnp.asarray(value) for name, value in data.items()}

    def value(fields):
        return jnp.asarray(cotangent) @ js.solve(problem(fields)).value

    gradient = jax.grad(value)(fields)
    rng = np.random.default_rng(2)
    for name in programs.FIELDS:
        direction = rng.normal(size=data[name].shape)
        if name == "P":
            direction = direction + direction.T
        step = 1e-5
        moved = [
            cotangent @ programs.by_clarabel({**data, name: data[name] + sign * step * direction})
            for sign in (1, -1)
        ]
        expected = (moved[0] - moved[1]) / (2 * step)
        found = float(np.sum(np.asarray(gradient[name]) * direction))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_lane_that_failed_has_a_nan_derivative_alone(x64):
    cases = programs.outcomes()
    names = ["regular", "nan", "contradicting rows", "linear", "fixed"]
    fields = programs.stacked([cases[name][0] for name in names], jnp.float64)

    def value(q, rest):
        return jnp.sum(js.solve(problem({**rest, "q": q}), throw=False).value)

    gradient = jax.vmap(jax.grad(value))(fields["q"], fields)
    failed = np.isnan(np.asarray(gradient)).any(axis=1)
    np.testing.assert_array_equal(failed, [False, True, True, False, False])


@pytest.mark.parametrize(("name", "most"), [("ActiveSet", 0), ("InteriorPoint", 2)])
def test_warm_start_ends_at_once(name, most, x64):
    solver = SOLVERS[name]
    data = {name: jnp.asarray(value) for name, value in programs.regular(4).items()}
    cold = js.solve(problem(data), solver)
    warm = js.solve(problem(data), solver, cold)
    assert int(warm.stats.steps) <= most < int(cold.stats.steps)
    np.testing.assert_allclose(warm.value, cold.value, atol=1e-9)
    moved = js.solve(problem({**data, "q": data["q"] * 1.3}), solver, cold)
    again = js.solve(problem({**data, "q": data["q"] * 1.3}), solver)
    np.testing.assert_allclose(moved.value, again.value, atol=1e-8)


def test_a_row_scaled_permuted_or_added_without_effect_changes_nothing(x64):
    data = programs.regular(5)
    plain = js.solve(problem({name: jnp.asarray(value) for name, value in data.items()}))
    order, scale = np.array([2, 0, 3, 1]), np.array([1e3, 1.0, 1e-2, 10.0])
    G, h = (data["G"] * scale[:, None])[order], (data["h"] * scale)[order]
    changed = {name: jnp.asarray(value) for name, value in {**data, "G": G, "h": h}.items()}
    np.testing.assert_allclose(js.solve(problem(changed)).value, plain.value, atol=1e-8)


@pytest.mark.parametrize("shape", ["one variable", "bounds", "equalities", "square"])
def test_programs_of_other_shapes(shape, x64):
    rng = np.random.default_rng(6)
    q = jnp.asarray(rng.normal(size=3))
    if shape == "one variable":
        solution = js.solve(js.QuadraticProgram(jnp.array([[2.0]]), jnp.array([4.0])))
        np.testing.assert_allclose(solution.value, [-2.0], atol=1e-10)
        assert solution.dual == js.Dual()
    if shape == "bounds":
        solution = js.solve(js.QuadraticProgram(jnp.eye(3), q, lower=0.0))
        np.testing.assert_allclose(solution.value, np.maximum(-q, 0), atol=1e-10)
        np.testing.assert_allclose(solution.dual.lower, np.maximum(q, 0), atol=1e-10)
    if shape == "equalities":
        A = jnp.asarray(rng.normal(size=(2, 3)))
        solution = js.solve(js.QuadraticProgram(jnp.eye(3), q, A=A, b=jnp.ones(2)))
        system = np.block([[np.eye(3), A.T], [A, np.zeros((2, 2))]])
        expected = np.linalg.solve(system, np.concatenate([-q, np.ones(2)]))
        np.testing.assert_allclose(solution.value, expected[:3], atol=1e-10)
        np.testing.assert_allclose(solution.dual.equality, expected[3:], atol=1e-10)
    if shape == "square":
        A = jnp.asarray(rng.normal(size=(3, 3)))
        solution = js.solve(js.QuadraticProgram(jnp.eye(3), q, A=A, b=jnp.ones(3)))
        np.testing.assert_allclose(solution.value, np.linalg.solve(A, np.ones(3)), atol=1e-8)


class Whole(AbstractCone):
    """R^3: a cone of a user's own, without a barrier."""

    rows = 3

    def project(self, v):
        return v

    def slope(self, v):
        raise AssertionError("not asked")


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_a_dense_solver_refuses_is_named(solver):
    rows = sparse.BCOO.fromdense(jnp.ones((1, 2)))
    with pytest.raises(TypeError, match=f"{solver} factors its matrices, but `G` is a BCOO"):
        program = js.QuadraticProgram(jnp.eye(2), jnp.ones(2), G=rows, h=jnp.ones(1))
        js.solve(program, SOLVERS[solver])
    curved = js.ConeProgram(None, jnp.ones(3), G=-jnp.eye(3), h=jnp.ones(3), cones=[Whole()])
    says = r"`cones\[0\]` is Whole" if solver == "InteriorPoint" else "got ConeProgram"
    with pytest.raises(TypeError, match=f"{solver} .*{says}"):
        js.solve(curved, SOLVERS[solver])
    with jax.enable_x64(True):
        assert type(curved.default_solver()) is js.OperatorSplitting
