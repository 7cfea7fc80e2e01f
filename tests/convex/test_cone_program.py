"""`ConeProgram`: what it refuses, its conditions and its certificates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cone_programs import planted

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
        ({"G": G[:, :1], "h": H, "cones": [js.Zero(3)]}, ValueError, ("`G`", "`q`", "[3, 1]")),
        ({"A": np.ones((1, 2), int), "b": H[:1]}, TypeError, ("`A`", "int")),
    ],
)
def test_bad_fields_are_named(fields, error, words):
    with pytest.raises(error) as caught:
        js.solve(js.ConeProgram(None, Q, **fields))
    for word in words:
        assert word in str(caught.value)


def test_other_solvers_refuse_a_cone_program():
    problem = js.ConeProgram(None, Q, G=G, h=H, cones=[js.SecondOrder(3)])
    with pytest.raises(TypeError, match="ConeProgram"):
        js.solve(problem, js.Scipy("SLSQP"), jnp.zeros(2))


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
