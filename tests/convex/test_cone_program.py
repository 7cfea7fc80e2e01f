"""`ConeProgram`: what it refuses, its conditions and its certificates."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cone_programs import by_clarabel, outside, parts, planted

import jaxsolve as js

G, H, Q = np.ones((3, 2), "f4"), np.ones(3, "f4"), np.ones(2, "f4")


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"G": G}, TypeError, ("`G`", "`h` is None")),
        ({"G": G, "h": H}, ValueError, ("`cones`", "0 in all", "3")),
        ({"G": G, "h": H[:2], "cones": [js.Nonnegative(3)]}, ValueError, ("`h`", "[3]", "[2]")),
        ({"G": G, "h": H, "cones": [js.SecondOrder(2)]}, ValueError, ("[2]", "2 in all", "3")),
        ({"G": G, "h": H, "cones": ["soc"]}, TypeError, ("`cones`", "soc")),
        ({"G": G, "h": H, "cones": js.SecondOrder(3)}, TypeError, ("`cones`", "alone", "list")),
        ({"G": G, "h": H, "cones": 3}, TypeError, ("`cones`", "3", "list")),
        ({"G": G[:, :1], "h": H, "cones": [js.Zero(3)]}, ValueError, ("`G`", "`q`", "[3, 1]")),
        ({"A": np.ones((1, 2), int), "b": H[:1]}, TypeError, ("`A`", "int")),
    ],
)
def test_bad_fields_are_named(fields, error, words):
    with pytest.raises(error) as caught:
        js.solve(js.ConeProgram(None, Q, **fields))
    for word in words:
        assert word in str(caught.value)


def _problem(data, cones):
    fields = {k: jnp.asarray(data[k]) for k in ("A", "b", "G", "h")}
    return js.ConeProgram(jnp.asarray(data["P"]), jnp.asarray(data["q"]), cones=cones, **fields)


def test_nonnegative_rows_have_the_conditions_of_a_quadratic_program(x64):
    """min(z, s) in both, up to nothing."""
    cones = (js.Nonnegative(4),)
    data, _ = planted(np.random.default_rng(0), cones, 5, 1)
    rng = np.random.default_rng(1)
    point = js.Point(
        jnp.asarray(rng.normal(size=5)),
        js.Dual(jnp.asarray(rng.normal(size=1)), jnp.asarray(rng.normal(size=4))),
    )
    fields = {k: jnp.asarray(data[k]) for k in ("A", "b", "G", "h")}
    other = js.QuadraticProgram(jnp.asarray(data["P"]), jnp.asarray(data["q"]), **fields)
    found, expected = _problem(data, cones).optimality(point), other.optimality(point)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)


@pytest.mark.parametrize("solver", [js.InteriorPoint(), js.OperatorSplitting()])
def test_a_small_objective_is_minimised_as_well(solver):
    # In float32, with entries of 1e-6, any feasible point meets a tolerance of 1e-4.
    cones, rng = (js.Nonnegative(2), js.SecondOrder(4)), np.random.default_rng(0)
    many = [planted(rng, cones, 5, 1)[0] for _ in range(8)]
    names = ("P", "q", "A", "b", "G", "h")
    batch = {k: jnp.asarray(np.stack([data[k] for data in many]), jnp.float32) for k in names}
    batch |= {k: 1e-6 * batch[k] for k in ("P", "q")}
    run = jax.jit(jax.vmap(lambda data: js.solve(_problem(data, cones), solver, throw=False)))
    solution = run(batch)
    assert np.all(solution.success)
    for lane, data in enumerate(many):
        np.testing.assert_allclose(solution.value[lane], by_clarabel(data, cones)[0], atol=1e-2)


SCALED = (js.Nonnegative(2), js.SecondOrder(3), js.Nonnegative(3), js.SecondOrder(2))


def _with_large_rows(rng, factor):
    """Planted programs with the rows of one cone, or the equalities, multiplied."""
    data, x = planted(rng, SCALED, 6, 1)
    which, sizes = rng.integers(len(SCALED) + 1), [cone.rows for cone in SCALED]
    if which == len(SCALED):
        return data | {k: factor * data[k] for k in ("A", "b")}, x
    rows = np.repeat(np.arange(len(SCALED)) == which, sizes)
    scale = np.where(rows, factor, 1)
    return data | {"G": scale[:, None] * data["G"], "h": scale * data["h"]}, x


def _solved(many, cones, solver, dtype):
    batch = {k: jnp.asarray(np.stack([data[k] for data in many]), dtype) for k in many[0]}
    run = jax.jit(jax.vmap(lambda data: js.solve(_problem(data, cones), solver, throw=False)))
    return run(batch)


@pytest.mark.parametrize("solver", [js.InteriorPoint(), js.OperatorSplitting()])
def test_large_rows_excuse_no_other_cone(solver, dtype):
    # The large row is active in the second program, not in the first.
    factor, none = (1e6, 1e12)[dtype == "float64"], np.zeros((0, 3))
    rows = np.concatenate([np.ones((1, 3)), np.eye(3)])
    scale = np.array([factor, 1, 1, 1])
    many = [
        {
            "P": np.eye(3),
            "q": np.array([-3.0, -2, 1]),
            "A": none,
            "b": none[:, 0],
            "G": scale[:, None] * rows,
            "h": scale * np.array([side, 0.5, 0.5, 0.5]),
        }
        for side in (1, -1)
    ]
    cones = (js.Nonnegative(1), js.Nonnegative(3))
    found = _solved(many, cones, solver, dtype)
    assert np.all(found.success)
    # By hand: the bounds are active, and the row takes the rest.
    np.testing.assert_allclose(found.value, [[0.5, 0.5, -1], [0.5, 0.5, -2]], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [js.InteriorPoint(), js.OperatorSplitting()])
def test_large_rows_excuse_no_other_cone_of_five_hundred(solver, dtype):
    rng, factors = np.random.default_rng(0), (10.0 ** np.arange(2, 8), 10.0 ** np.arange(2, 14))
    factors = factors[dtype == "float64"]
    many, points = zip(
        *(_with_large_rows(rng, rng.choice(factors)) for _ in range(500)), strict=True
    )
    found = _solved(many, SCALED, solver, dtype)
    tolerance, most = ((1e-4, 0.02), (1e-8, 1e-5))[dtype == "float64"]
    for lane in np.flatnonzero(found.success):
        data, x = many[lane], np.asarray(found.value[lane], np.float64)
        row = data["G"] @ x
        for (cone, own), (_, side) in zip(
            parts(SCALED, data["h"] - row), parts(SCALED, data["h"]), strict=True
        ):
            size = max(1, np.abs(side).max(), np.abs(side - own).max())
            assert outside(cone, own) <= 2 * tolerance * size
        np.testing.assert_allclose(x, points[lane], atol=most)
    assert np.mean(found.success) >= 0.9


def test_certificates_are_checked_against_the_data(x64):
    """A Farkas certificate outside the dual cone proves nothing, nor a ray that leaves the cone."""
    h = jnp.array([-1.0, 0.0, 0.0])
    problem = js.ConeProgram(None, jnp.ones(2), G=jnp.zeros((3, 2)), h=h, cones=[js.SecondOrder(3)])
    apex = js.Point(jnp.zeros(2), js.Dual(inequality=jnp.array([1.0, 0.0, 0.0])))
    assert bool(problem.certificate(apex, js.RESULTS.infeasible))
    outside = js.Point(jnp.zeros(2), js.Dual(inequality=jnp.array([1.0, 2.0, 0.0])))
    assert not bool(problem.certificate(outside, js.RESULTS.infeasible))
    # (t, x) = (x_0, x_1, 0): along -(1, 1) the cone is left.
    G = jnp.array([[-1.0, 0.0], [0.0, -1.0], [0.0, 0.0]])
    open_ = js.ConeProgram(None, -jnp.ones(2), G=G, h=jnp.zeros(3), cones=[js.SecondOrder(3)])
    inside, leaves = jnp.array([1.0, 0.5]), jnp.array([1.0, 1.5])
    assert bool(open_.certificate(js.Point(inside, open_.zero_dual()), js.RESULTS.unbounded))
    assert not bool(open_.certificate(js.Point(leaves, open_.zero_dual()), js.RESULTS.unbounded))


@pytest.mark.parametrize("radius", [1.0, 1e4])
def test_exact_solutions_are_judged_as_such(radius):
    """Slacks that absorb their multipliers to the last digit leave a natural residual of 0."""
    G, h = jnp.concatenate([jnp.zeros((1, 2)), -jnp.eye(2)]), jnp.array([radius, 0.0, 0.0])
    costs = jnp.asarray(np.random.default_rng(0).normal(size=(500, 2)), jnp.float32)

    def furthest(q):
        problem = js.ConeProgram(None, q, G=G, h=h, cones=[js.SecondOrder(3)])
        return js.solve(problem, throw=False)

    found = jax.vmap(furthest)(costs)
    assert bool(jnp.all(found.success))
    expected = -radius * costs / jnp.linalg.norm(costs, axis=1, keepdims=True)
    np.testing.assert_allclose(found.value, expected, atol=2e-4 * radius)


def test_cones_without_rows_are_none(x64):
    cones = [js.Nonnegative(0), js.SecondOrder(3), js.Zero(0)]
    G, h = jnp.concatenate([jnp.zeros((1, 2)), -jnp.eye(2)]), jnp.array([1.0, 0.0, 0.0])
    for solver in (js.InteriorPoint(), js.OperatorSplitting()):
        problem = js.ConeProgram(None, jnp.array([-3.0, -4.0]), G=G, h=h, cones=cones)
        np.testing.assert_allclose(js.solve(problem, solver).value, [0.6, 0.8], atol=1e-7)


def test_without_rows_it_is_a_linear_system(x64):
    P = jnp.array([[2.0, 0.5], [0.5, 1.0]])
    found = js.solve(js.ConeProgram(P, jnp.ones(2))).value
    np.testing.assert_allclose(found, np.linalg.solve(P, -np.ones(2)), rtol=1e-10)


def _mixed_program(rng):
    """Equalities in A and in G, an active inequality of two, a tight cone and a slack one."""
    n = 5
    ball = np.concatenate([np.zeros((1, n)), -np.eye(n)])
    fields = {
        "A": np.ones((1, n)),
        "b": np.array([0.3]),
        "G": np.concatenate([np.eye(1, n), np.eye(2, n, 1), ball, ball]),
        "h": np.concatenate([[0.1], [-0.4, 9.0], [1.0], np.zeros(n), [50.0], np.zeros(n)]),
    }
    cones = [js.Zero(1), js.Nonnegative(2), js.SecondOrder(n + 1), js.SecondOrder(n + 1)]
    data = {k: jnp.asarray(v) for k, v in fields.items()}
    return js.ConeProgram(None, jnp.asarray(rng.normal(size=n)), **data, cones=cones)


@pytest.mark.slow
def test_a_foreign_solver_of_cones_gets_their_multipliers(x64):
    """SLSQP finds the point; multipliers and derivative are those of the interior point."""
    problem = _mixed_program(np.random.default_rng(3))

    def value(q, solver):
        changed = eqx.tree_at(lambda p: p.q, problem, q)
        return js.solve(changed, solver, tolerance=1e-6).value

    start = np.array([0.1, -0.5, 0.2, 0.3, 0.2])
    theirs = js.solve(problem, js.Scipy("SLSQP", ftol=1e-14), start, tolerance=1e-6)
    ours = js.solve(problem, js.InteriorPoint())
    assert theirs.result == js.RESULTS.successful
    np.testing.assert_allclose(theirs.value, ours.value, atol=1e-6)
    np.testing.assert_allclose(theirs.dual.equality, ours.dual.equality, atol=1e-5)
    np.testing.assert_allclose(theirs.dual.inequality, ours.dual.inequality, atol=1e-5)
    cotangent = jnp.cos(jnp.arange(5.0))
    slopes = [
        jax.grad(lambda q, s=s: cotangent @ value(q, s))(problem.q)
        for s in (js.Scipy("SLSQP", ftol=1e-14), js.InteriorPoint())
    ]
    np.testing.assert_allclose(*slopes, atol=1e-5)


def test_a_cone_that_is_no_function_is_named():
    rows = {"G": -jnp.eye(3), "h": jnp.ones(3)}
    problem = js.ConeProgram(None, jnp.ones(3), **rows, cones=[js.Exponential()])
    with pytest.raises(TypeError, match="`cones`, which holds Exponential"):
        js.solve(problem, js.Scipy("SLSQP"))


def test_the_data_of_a_cone_program_are_described():
    rows = {"G": jnp.diag(jnp.array([1.0, 1e-9, 0.0])), "h": jnp.ones(3)}
    say = " ".join(js.check(js.ConeProgram(None, jnp.ones(3), **rows, cones=[js.SecondOrder(3)])))
    assert "rows of zeros at 2" in say and "badly scaled" in say
    rows["h"] = jnp.array([1.0, jnp.inf, 1.0])
    say = js.check(js.ConeProgram(jnp.eye(3), jnp.ones(3), **rows, cones=[js.SecondOrder(3)]))
    assert say == ["`h` is infinite at 1, where it must be finite."]
