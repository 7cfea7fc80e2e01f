"""Polished: to full precision on the toys, also where the lower solution is not unique."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from toys import relative, toy_a, toy_b, toy_c

import jaxsolve as js
from jaxsolve.bilevel.bic_gaffa import BiCGAFFA
from jaxsolve.bilevel.lvhba import LVHBA
from jaxsolve.bilevel.meha import MEHA
from jaxsolve.bilevel.polished import Polished


@pytest.mark.parametrize("n", [10, *[pytest.param(n, marks=pytest.mark.slow) for n in (100, 1000)]])
def test_toy_a(dtype, n):
    toy = toy_a(n)
    # In float32 a sum of 3000 numbers is 1e-4 off.
    tolerance = 1e-3 if dtype == "float32" and n == 1000 else None
    solution = js.solve(toy.problem, Polished(LVHBA()), toy.init, tolerance=tolerance)
    assert solution.result == js.RESULTS.successful
    goal = 1e-10 if dtype == "float64" else 1e-6
    assert relative([solution.value[0]], toy.x) < goal
    assert relative(solution.value[1], toy.y) < goal
    np.testing.assert_allclose(solution.dual.equality, -1, rtol=1e-4)
    assert solution.state.gap > 0 and solution.state.penalised > 0
    leaves = [*jax.tree.leaves(solution.value), solution.state.gap]
    assert all(leaf.dtype == dtype for leaf in leaves)


@pytest.mark.slow
@pytest.mark.parametrize("as_set", [True, False])
def test_toy_b(x64, as_set):
    toy = toy_b(as_set=as_set)
    solution = js.solve(toy.problem, Polished(LVHBA()), toy.init)
    x, y = solution.value
    assert solution.result == js.RESULTS.successful
    assert np.linalg.norm(y - toy.y(x)) < 1e-10
    # A local minimum of F(x, y(x)) on B x = 0, by SciPy from there.
    c, d, B = (np.asarray(part) for part in toy.problem.args[2:])
    response = toy.y(np.eye(x.size))
    null = np.linalg.svd(B)[2][np.linalg.matrix_rank(B) :].T

    def value(free):
        at = null @ free
        return np.sin(c @ at + d @ (response @ at)) + np.log(np.sum((at + response @ at) ** 2) + 1)

    start = null.T @ np.asarray(x)
    found = scipy.optimize.minimize(value, start, method="BFGS", options={"gtol": 1e-8})
    assert value(start) <= found.fun + 1e-9


@pytest.mark.slow
def test_toy_b_in_float32():
    toy = toy_b(as_set=False)
    x, y = js.solve(toy.problem, Polished(LVHBA()), toy.init).value
    assert np.linalg.norm(y - toy.y(x)) < 1e-3


@pytest.mark.slow
def test_other_methods(x64):
    toy = toy_c(10, 3)
    solution = js.solve(toy.problem, Polished(BiCGAFFA(steps=300)), toy.init)
    assert solution.result == js.RESULTS.successful
    assert relative([solution.value[0]], toy.x) < 1e-8
    assert relative(solution.value[1], toy.y) < 1e-8
    problem = js.Bilevel(
        lambda x, y, args: jnp.cosh(x - 2) + jnp.cosh(y[0]) + (y[1] - 3) ** 2,
        lambda x, y, args: 0.5 * (y[0] - x) ** 2,
    )
    solution = js.solve(problem, Polished(MEHA()), (jnp.array(0.0), jnp.zeros(2)))
    assert solution.result == js.RESULTS.successful
    np.testing.assert_allclose(solution.value[0], 1, atol=1e-8)
    np.testing.assert_allclose(solution.value[1], [1, 3], atol=1e-8)


@pytest.mark.slow
def test_inequalities(x64):
    """y(x) = min(x, 4) in the first two entries, where x = 3/2; the third is free: x = 2, y = 1."""
    problem = js.Bilevel(
        lambda x, y, args: jnp.sum((x - jnp.array([1.0, 1.0, 2.0])) ** 2) + jnp.sum((y - 2) ** 2),
        lambda x, y, args: jnp.sum((y - jnp.array([4.0, 4.0, 1.0])) ** 2),
        coupling=lambda x, y, args: y - x,
    )
    solution = js.solve(problem, Polished(LVHBA()), (jnp.zeros(3), jnp.zeros(3)))
    assert solution.result == js.RESULTS.successful
    np.testing.assert_allclose(solution.value[0], [1.5, 1.5, 2.0], atol=1e-8)
    np.testing.assert_allclose(solution.value[1], [1.5, 1.5, 1.0], atol=1e-8)
    np.testing.assert_allclose(solution.dual.inequality, [5.0, 5.0, 0.0], atol=1e-7)


@pytest.mark.slow
def test_batched_alone_and_differentiated(x64):
    """With F's 1 as s: y1 = x + e, y2 = -2 x - e, 3 (3 x + 1) + x + 1 - s = 0 an entry."""
    toy = toy_a(5)

    def upper(x, y, s):
        return 0.5 * (jnp.sum((x - y[1]) ** 2) + jnp.sum((y[0] - s) ** 2))

    def fit(s):
        args = toy.problem.args
        lower = lambda x, y, _: toy.problem.lower(x, y, args)
        coupling = lambda x, y, _: toy.problem.coupling_equality(x, y, args)
        problem = js.Bilevel(upper, lower, s, coupling_equality=coupling)
        return js.solve(problem, Polished(LVHBA(steps=500)), toy.init).value[0]

    s = jnp.array([0.5, 1.0, 3.0])
    wanted = (s - 4) / 10
    found = jax.jit(jax.vmap(fit))(s)
    np.testing.assert_allclose(found, wanted[:, None] * jnp.ones(5), atol=1e-9)
    slope = jax.jit(jax.grad(lambda s: jnp.sum(fit(s))))(s[0])
    np.testing.assert_allclose(slope, 5 / 10, rtol=1e-8)


@pytest.mark.fast
def test_refusals():
    with pytest.raises(TypeError, match="`solver` must be LVHBA"):
        Polished(js.LBFGS())
    toy = toy_c(4, 3)
    with pytest.raises(TypeError, match="BiCGAFFA"):
        js.solve(toy.problem, Polished(LVHBA()), toy.init)
