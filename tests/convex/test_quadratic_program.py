"""The problem itself: what it refuses, says of its data, and recovers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsolve as js
from tests import convex_programs as programs

EYE, ONES = jnp.eye(3), jnp.ones(3)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"P": jnp.ones((3, 2))}, ["`P`", "[3, 2]"]),
        ({"q": jnp.ones(4)}, ["`q`", "[4]", "`P`", "[3, 3]"]),
        ({"A": jnp.ones((2, 4)), "b": jnp.ones(2)}, ["`A`", "[2, 4]", "`q`", "[3]"]),
        ({"A": jnp.ones((2, 3)), "b": jnp.ones(3)}, ["`b`", "[3]", "`A`", "[2, 3]"]),
        ({"A": jnp.ones((2, 3))}, ["`A`", "`b`"]),
        ({"h": jnp.ones(2)}, ["`h`", "`G`"]),
        ({"G": jnp.ones((2, 3)), "h": jnp.ones((2, 1))}, ["`h`", "[2, 1]"]),
        ({"lower": jnp.ones(2)}, ["`lower`", "[2]"]),
        ({"q": jnp.ones(3, jnp.int32)}, ["`q`", "int32"]),
        ({"q": jnp.ones(3, jnp.complex64)}, ["`q`", "complex64"]),
        ({"P": None}, ["`P`"]),
        ({"upper": jnp.ones(3, jnp.float16)}, ["`upper`", "float16", "float32"]),
    ],
)
def test_misuse_names_the_field_and_the_shapes(fields, words):
    fields = {"P": EYE, "q": ONES, **fields}
    with pytest.raises((TypeError, ValueError)) as error:
        js.solve(js.QuadraticProgram(fields.pop("P"), fields.pop("q"), **fields))
    for word in words:
        assert word in str(error.value)


def test_an_init_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"`init` is float32\[2\]"):
        js.solve(js.QuadraticProgram(EYE, ONES), init=jnp.ones(2))


@pytest.mark.parametrize("solver", [js.ActiveSet(), js.InteriorPoint(), js.OperatorSplitting()])
def test_a_solution_of_other_constraints_is_refused_as_a_start(solver):
    other = js.solve(js.QuadraticProgram(EYE, ONES, lower=0.0))
    problem = js.QuadraticProgram(EYE, ONES, A=jnp.ones((1, 3)), b=jnp.ones(1))
    with pytest.raises(TypeError, match=r"`init` .* lower float32\[3\], .* equality float32\[1\]"):
        js.solve(problem, solver, other)
    np.testing.assert_allclose(js.solve(problem, solver, other.value).value, ONES / 3, atol=1e-4)


def test_check_says_what_is_wrong_in_words(x64):
    A = jnp.array([[1.0, 0, 0], [1.0, 0, 0]])
    say = lambda *args, **fields: " ".join(js.check(js.QuadraticProgram(*args, **fields)))
    eye, ones = jnp.eye(3), jnp.ones(3)
    assert say(eye, ones) == ""
    assert "rank 1" in say(eye, ones, A=A, b=jnp.zeros(2))
    assert "contradicts" in say(eye, ones, A=A, b=jnp.array([0.0, 1.0]))
    assert "indefinite" in say(-eye, ones)
    assert "`lower` is above `upper` at 1" in say(
        eye, ones, lower=jnp.array([0.0, 2, 0]), upper=ones
    )
    assert "`q` holds NaN" in say(eye, jnp.array([1.0, jnp.nan, 0]))
    assert "badly scaled" in say(eye, ones, G=jnp.diag(jnp.array([1.0, 1e9, 1])), h=ones)
    assert "not symmetric" in say(eye.at[0, 1].set(1.0), ones)


def test_multipliers_of_a_point_are_those_of_the_solution(x64):
    for seed in range(4):
        data = {k: jnp.asarray(v) for k, v in programs.regular(seed).items()}
        rest = {name: data[name] for name in programs.FIELDS[2:]}
        problem = js.QuadraticProgram(data["P"], data["q"], **rest)
        expected = programs.by_clarabel(data)
        prepared, _ = problem.prepare(None)
        dual = prepared.multipliers(jnp.asarray(expected))
        parts = [dual.equality, dual.inequality, dual.lower, dual.upper]
        assert programs.residual(data, expected, parts) <= 1e-5


@pytest.mark.slow
def test_two_sided_rows_become_equalities_and_inequalities(x64):
    A = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    l, u = jnp.array([0.1, -jnp.inf, -1.0, -jnp.inf]), jnp.array([0.1, 0.2, 1.0, jnp.inf])
    problem = js.QuadraticProgram.from_two_sided(jnp.eye(3), jnp.ones(3), A, l, u)
    assert problem.A.shape == (1, 3) and problem.G.shape == (3, 3)
    x = js.solve(problem).value
    traced = jax.jit(
        lambda l, u: js.solve(
            js.QuadraticProgram.from_two_sided(jnp.eye(3), jnp.ones(3), A, l, u), throw=False
        )
    )(l, u)
    assert bool(traced.success)
    np.testing.assert_allclose(traced.value, x, atol=1e-7)


def test_optimality_vanishes_and_its_smoothed_form_is_the_central_path(x64):
    data = {k: jnp.asarray(v) for k, v in programs.regular(1).items()}
    rest = {name: data[name] for name in programs.FIELDS[2:]}
    problem, _ = js.QuadraticProgram(data["P"], data["q"], **rest).prepare(None)
    solution = js.solve(problem)
    point = js.Point(solution.value, solution.dual)
    for leaf in jax.tree.leaves(problem.optimality(point)):
        assert float(jnp.max(jnp.abs(leaf))) <= 1e-9
    # A pair (z, s) with z s = kappa is a zero of the smoothed complementarity.
    kappa = 0.3
    slack = problem.h - problem.G @ jnp.zeros(5)
    dual = js.Dual(jnp.zeros(2), kappa / slack, kappa * jnp.ones(5), kappa * jnp.ones(5))
    smooth = problem.smoothed_optimality(js.Point(jnp.zeros(5), dual), jnp.asarray(kappa))
    np.testing.assert_allclose(smooth.dual.lower, 0, atol=1e-12)
    np.testing.assert_allclose(smooth.dual.upper, 0, atol=1e-12)


def test_prepared_data_do_not_retrace(x64):
    traces = []

    @jax.jit
    def value(q):
        traces.append(None)
        return js.solve(js.QuadraticProgram(jnp.eye(3), q, lower=0.0), throw=False).value

    value(jnp.ones(3))
    value(-jnp.ones(3))
    assert len(traces) == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32, jnp.complex64])
def test_a_dtype_that_nothing_factors_is_refused_by_name(dtype):
    one = jnp.ones(2, dtype)
    with pytest.raises(
        TypeError, match=r"QuadraticProgram: `q` has dtype \w+; give real .*float32"
    ):
        js.solve(js.QuadraticProgram(jnp.eye(2, dtype=dtype), one, lower=0 * one))
