"""`OperatorSplitting` beyond the contract: all cones, sparse matrices, operators."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from cone_programs import planted, violation
from jax.experimental.sparse import BCOO

import jaxsolve as js

CONES = (js.PositiveSemidefinite(2), js.Exponential(), js.SecondOrder(3), js.Zero(1))


@pytest.mark.slow
def test_all_cones_in_one_problem(x64):
    data, x = planted(np.random.default_rng(0), CONES, 8, 1)
    fields = {k: jnp.asarray(data[k]) for k in ("A", "b", "G", "h")}
    problem = js.ConeProgram(jnp.asarray(data["P"]), jnp.asarray(data["q"]), cones=CONES, **fields)
    found = js.solve(problem)
    np.testing.assert_allclose(found.value, x, atol=1e-7)
    assert violation(CONES, data, np.asarray(found.value), found.dual) <= 1e-7


def sparse(seed=0, n=60, m=90):
    """A strictly convex program with a known solution, a third of its rows active."""
    rng = np.random.default_rng(seed)
    P = scipy.sparse.random(n, n, density=0.03, random_state=seed)
    P = P + P.T
    P = P + scipy.sparse.diags(np.asarray(abs(P).sum(1)).ravel() + 0.1)
    G = scipy.sparse.random(m, n, density=0.08, random_state=seed + 1, data_rvs=rng.standard_normal)
    x, active = rng.normal(size=n), np.arange(m) % 3 == 0
    # Else the solution has no derivative.
    assert np.linalg.matrix_rank(G.toarray()[active]) == active.sum()
    z = np.where(active, rng.uniform(0.2, 1, m), 0)
    h = G @ x + np.where(active, 0, rng.uniform(0.2, 1, m))
    return P.tocoo(), -P @ x - G.T @ z, G.tocoo(), h, x


def bcoo(matrix):
    places = np.stack([matrix.row, matrix.col], axis=1)
    return BCOO((jnp.asarray(matrix.data), jnp.asarray(places)), shape=matrix.shape)


@pytest.fixture(scope="module")
def program():
    return sparse()


def test_a_sparse_program_and_its_derivative_are_the_dense_ones(program, x64):
    P, q, G, h, x = program

    def total(values, P, G):
        q, h = values
        found = js.solve(js.QuadraticProgram(P, q, G=G, h=h), js.OperatorSplitting(), throw=False)
        return jnp.sum(found.value * jnp.cos(jnp.arange(x.size))), (found.value, found.success)

    values = (jnp.asarray(q), jnp.asarray(h))
    dense = jnp.asarray(P.toarray()), jnp.asarray(G.toarray())
    grad = jax.jit(jax.grad(total, has_aux=True))
    gradient, (value, success) = grad(values, bcoo(P), bcoo(G))
    assert bool(success)
    np.testing.assert_allclose(value, x, atol=1e-7)
    expected, _ = grad(values, *dense)
    for a, b in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_the_derivative_in_a_sparse_matrix_is_that_of_its_entries(program, x64):
    """Against differences, in an entry of P, of which (P + P')/2 is read, and one of G."""
    P, q, G, h, _ = program

    @jax.jit
    def total(first, second):
        P_, G_ = bcoo(P), bcoo(G)
        P_ = BCOO((first, P_.indices), shape=P_.shape)
        G_ = BCOO((second, G_.indices), shape=G_.shape)
        problem = js.QuadraticProgram(P_, jnp.asarray(q), G=G_, h=jnp.asarray(h))
        return jnp.sum(js.solve(problem, tolerance=1e-11, throw=False).value ** 2)

    data = jnp.asarray(P.data), jnp.asarray(G.data)
    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))(*data)
    rng = np.random.default_rng(0)
    change = [rng.normal(size=x.size) for x in data]
    ahead, back = (
        total(*(x + t * c for x, c in zip(data, change, strict=True))) for t in (1e-5, -1e-5)
    )
    slope = sum(float(g @ c) for g, c in zip(gradient, change, strict=True))
    np.testing.assert_allclose((ahead - back) / 2e-5, slope, rtol=1e-5)


def test_operators_are_products_alone(program, x64):
    P, q, G, h, x = program
    dense, rows = jnp.asarray(P.toarray()), jnp.asarray(G.toarray())
    like = jax.ShapeDtypeStruct((x.size,), jnp.float64)
    bend = lx.FunctionLinearOperator(lambda v: dense @ v, like, lx.symmetric_tag)
    problem = js.QuadraticProgram(
        bend, jnp.asarray(q), G=lx.MatrixLinearOperator(rows), h=jnp.asarray(h)
    )
    np.testing.assert_allclose(js.solve(problem, tolerance=1e-10).value, x, atol=1e-7)


def test_it_refuses_other_problems():
    with pytest.raises(TypeError, match="OperatorSplitting.*Minimise"):
        js.solve(js.Minimise(lambda y, _: jnp.sum(y**2)), js.OperatorSplitting(), jnp.ones(2))


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError)])
def test_a_number_of_iterations_that_is_none_is_named(count, error):
    problem = js.ConeProgram(jnp.eye(2), jnp.ones(2))
    with pytest.raises(error, match="OperatorSplitting: `iterations` must be"):
        js.solve(problem, js.OperatorSplitting(iterations=count))


@pytest.mark.slow
def test_a_guess_of_a_neighbour_saves_steps(x64):
    """The optimum of a problem whose data moved a little is found in a step or two."""
    data, _ = planted(np.random.default_rng(2), (js.SecondOrder(4),) * 3, 10, 2)
    fields = {k: jnp.asarray(data[k]) for k in ("A", "b", "G", "h")}

    def problem(shift):
        q = jnp.asarray(data["q"]) * (1 + shift)
        return js.ConeProgram(jnp.asarray(data["P"]), q, cones=(js.SecondOrder(4),) * 3, **fields)

    solver = js.OperatorSplitting(iterations=2)
    before = js.solve(problem(0.0), solver)
    cold, warm = js.solve(problem(1e-4), solver), js.solve(problem(1e-4), solver, before)
    np.testing.assert_allclose(warm.value, cold.value, atol=1e-6)
    assert int(warm.stats.steps) <= 2 < int(cold.stats.steps)
