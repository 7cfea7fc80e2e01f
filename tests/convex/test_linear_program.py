"""Linear programs against HiGHS: values, multipliers, certificates, derivatives, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

import jaxsolve as js

N, P, M = 5, 2, 4


def draw(seed):
    """Feasible and bounded: a point inside, and a multiplier of every bound."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.2, 0.8, size=N)
    A, G = rng.normal(size=(P, N)), rng.normal(size=(M, N))
    return {
        "c": rng.normal(size=N),
        "A": A,
        "b": A @ x,
        "G": G,
        "h": G @ x + rng.uniform(0.1, 0.5, size=M),
        "lower": np.zeros(N),
        "upper": np.ones(N),
    }


def highs(data):
    bounds = np.stack([data["lower"], data["upper"]], axis=1)
    return linprog(data["c"], data["G"], data["h"], data["A"], data["b"], bounds)


def problem(data):
    fields = {k: v for k, v in data.items() if k != "c"}
    return js.LinearProgram(data["c"], **fields)


def stacked(many, dtype):
    return {k: jnp.asarray(np.stack([d[k] for d in many]), dtype) for k in many[0]}


def test_values_and_multipliers_of_a_batch(dtype, strict):
    many = [draw(seed) for seed in range(20)]
    batch = stacked(many, dtype)
    found = jax.jit(jax.vmap(lambda d: js.solve(problem(d), throw=False)))(batch)
    within = {"float64": 1e-9, "float32": 1e-4}[dtype.name]
    assert found.value.dtype == dtype
    assert bool(jnp.all(found.success))
    for lane, data in enumerate(many):
        expected = highs(data)
        np.testing.assert_allclose(found.value[lane], expected.x, atol=within)
        # HiGHS gives the change of the least cost with the side of a row: ours with signs.
        dual = jax.tree.map(lambda x, lane=lane: x[lane], found.dual)
        np.testing.assert_allclose(dual.equality, -expected.eqlin.marginals, atol=10 * within)
        np.testing.assert_allclose(dual.inequality, -expected.ineqlin.marginals, atol=10 * within)
        np.testing.assert_allclose(dual.lower, expected.lower.marginals, atol=10 * within)
        np.testing.assert_allclose(dual.upper, -expected.upper.marginals, atol=10 * within)


def test_bad_lanes_are_proved_in_one_batch(x64):
    good, empty, open_, lost = draw(0), draw(1), draw(2), draw(3)
    empty = empty | {"b": empty["A"] @ np.full(N, 3.0), "A": np.abs(empty["A"])}
    empty["b"] = empty["A"].sum(axis=1) + 1.0
    ray = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    open_ = open_ | {
        "A": np.array([[1.0, -1.0, 0, 0, 0], [0, 0, 1.0, 0, 0]]),
        "G": -np.abs(open_["G"]),
        "upper": np.full(N, np.inf),
        "c": -ray,
        "b": np.array([0.0, 0.5]),
    }
    lost = lost | {"c": np.full(N, np.nan)}
    batch = stacked([good, empty, open_, lost], jnp.float64)
    found = jax.jit(jax.vmap(lambda d: js.solve(problem(d), throw=False)))(batch)
    codes = [int(x) for x in found.result._value]
    names = ["successful", "infeasible", "unbounded", "nonfinite_input"]
    assert codes == [int(getattr(js.RESULTS, n)._value) for n in names]
    np.testing.assert_allclose(found.value[0], highs(good).x, atol=1e-9)
    y, z = np.asarray(found.dual.equality[1]), np.asarray(found.dual.inequality[1])
    below, above = np.asarray(found.dual.lower[1]), np.asarray(found.dual.upper[1])
    assert min(z.min(), below.min(), above.min()) >= 0
    rest = empty["A"].T @ y + empty["G"].T @ z - below + above
    gap = empty["b"] @ y + empty["h"] @ z - empty["lower"] @ below + empty["upper"] @ above
    assert gap < 0 and np.abs(rest).max() <= 1e-6 * -gap
    direction = np.asarray(found.value[2])
    assert open_["c"] @ direction < 0
    assert np.abs(open_["A"] @ direction).max() <= 1e-6 * -(open_["c"] @ direction)


def test_derivatives_against_differences_of_highs(x64):
    data = draw(4)
    given = {k: jnp.asarray(v) for k, v in data.items()}

    def cost(moved):
        return given["c"] @ js.solve(problem({**given, **moved})).value

    sides = {k: given[k] for k in ("b", "h")}
    gradient = jax.jit(jax.grad(cost))(sides)
    pushed = jax.jit(lambda s, t: jax.jvp(cost, (s,), (t,))[1])
    for name, size in (("b", P), ("h", M)):
        for i in range(size):
            step = np.zeros(size)
            step[i] = 1e-6
            up, down = (highs(data | {name: data[name] + s * step}).fun for s in (1, -1))
            np.testing.assert_allclose(gradient[name][i], (up - down) / 2e-6, atol=1e-6)
    tangent = jax.tree.map(jnp.ones_like, sides)
    total = sum(float(jnp.sum(g)) for g in gradient.values())
    np.testing.assert_allclose(pushed(sides, tangent), total, atol=1e-9)


def test_a_vertex_does_not_move_with_its_costs(x64):
    data = {k: jnp.asarray(v) for k, v in draw(5).items()}
    moved = jax.jacrev(lambda c: js.solve(problem({**data, "c": c})).value)(data["c"])
    np.testing.assert_allclose(moved, 0, atol=1e-9)


def test_errors_name_the_field():
    with pytest.raises(ValueError, match=r"LinearProgram: `A` is .*\[1, 2\], but `c` is .*\[3\]"):
        js.solve(js.LinearProgram(jnp.ones(3), A=jnp.ones((1, 2)), b=jnp.ones(1)))
    with pytest.raises(ValueError, match=r"LinearProgram: `c` is .*\[3, 1\]"):
        js.solve(js.LinearProgram(jnp.ones((3, 1)), lower=0.0))
    with pytest.raises(TypeError, match="`G` is given, but `h` is None"):
        js.solve(js.LinearProgram(jnp.ones(3), G=jnp.ones((1, 3))))


def test_check_says_it_in_words():
    found = js.check(js.LinearProgram(jnp.ones(2), lower=jnp.ones(2), upper=jnp.zeros(2)))
    assert any("`lower` is above `upper`" in text for text in found)


def test_lists_are_arrays():
    solution = js.solve(js.LinearProgram([1.0, 2.0], A=[[1.0, 1.0]], b=[1.0], lower=0.0))
    np.testing.assert_allclose(solution.value, [1.0, 0.0], atol=1e-4)
