"""Stochastic bilevel methods on quadratic problems, whose hypergradients NumPy knows."""

from dataclasses import replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bilevel_data import quadratics

import jaxsolve as js
from jaxsolve.bilevel.bilevel import Bilevel
from jaxsolve.bilevel.bome import BOME
from jaxsolve.bilevel.f2sa import F2SA
from jaxsolve.bilevel.loops import lower_pieces, upper_pieces
from jaxsolve.bilevel.pzobo import PZOBO
from jaxsolve.bilevel.saba import SABA
from jaxsolve.bilevel.soba import SOBA
from jaxsolve.bilevel.stoc_bio import StocBiO
from jaxsolve.bilevel.stochastic import StochasticBilevel

METHODS = {
    "SOBA": SOBA(0.5, 0.5, steps=60),
    "SABA": SABA(0.3, 0.5, steps=60),
    "StocBiO": StocBiO(0.3, 0.5, inner_steps=3, neumann_terms=3, steps=60),
    "F2SA": F2SA(0.3, 0.5, inner_steps=3, steps=60),
    "BOME": BOME(0.3, 0.5, inner_steps=3, steps=60),
    "PZOBO": PZOBO(0.1, 0.5, inner_steps=3, directions=3, steps=60),
}
ALL = [pytest.param(n, marks=() if n == "SOBA" else pytest.mark.slow) for n in METHODS]


def start(dtype=jnp.float64):
    return jnp.zeros(3, dtype), jnp.zeros(5, dtype)


def squared(exact, solution):
    """|grad h(x)|^2, the lower level solved exactly."""
    return float(np.sum(exact.gradient(solution.value[0]) ** 2))


# --- the batches -----------------------------------------------------------------------------


@pytest.mark.fast
@pytest.mark.parametrize("batch_size", [4, 7])
def test_blocks_hold_every_sample_once(x64, batch_size):
    """Their pieces, each with its share of the samples, have the mean of all data; 7 divides
    neither 22 nor 24."""
    problem, exact = quadratics((22, 24), batch_size=batch_size)
    sampled, _ = problem.prepare(start())
    rng = np.random.default_rng(1)
    x, y, v = (jnp.asarray(rng.normal(size=n)) for n in (3, 5, 5))

    def mean(level, pieces):
        size, batch = sampled.sizes[level], sampled.batch_sizes[level]
        counts = [min(batch, size - i * batch) for i in range(sampled.blocks[level])]
        assert sum(counts) == size
        of = jax.jit(lambda i: sampled.on_block(level, i, pieces))
        parts = [jax.tree.map(lambda p, c=c: c / size * p, of(i)) for i, c in enumerate(counts)]
        return jax.tree.map(lambda *p: sum(p), *parts)

    upper = mean(0, lambda p: upper_pieces(p, x, y))
    lower = mean(1, lambda p: lower_pieces(p, x, y, v))
    np.testing.assert_allclose(upper.upper, exact.q @ x + exact.r @ y + exact.s, atol=1e-12)
    np.testing.assert_allclose(upper.lower, exact.p @ y + exact.r.T @ x + exact.t, atol=1e-12)
    np.testing.assert_allclose(lower.gradient, exact.a @ y + exact.b @ x + exact.c, atol=1e-12)
    np.testing.assert_allclose(lower.product, exact.a @ v, atol=1e-12)
    np.testing.assert_allclose(lower.cross, exact.b.T @ v, atol=1e-12)


@pytest.mark.fast
def test_a_batch_of_all_data_is_all_data():
    """No sample is drawn twice; a level that has more than a batch is still drawn from."""
    level = lambda x, y, batch, args: jnp.mean(batch) + 0 * jnp.sum(x * y)
    data = np.arange(5.0) ** 2, np.arange(9.0) ** 2
    problem = js.StochasticBilevel(level, level, *map(jnp.asarray, data), batch_size=6)
    sampled, (x, y) = problem.prepare((jnp.ones(1), jnp.ones(1)))
    batches = [sampled.sample(jax.random.key(i)) for i in range(5)]
    assert [float(batch.objective(x, y)) for batch in batches] == [data[0].mean()] * 5
    assert len({float(batch.inner(x, y)) for batch in batches}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SOBA", "SABA"])
def test_directions_are_right_on_average(x64, name):
    """Over 20,000 keys, and 5 standard errors; SABA's from a memory that is of another point."""
    problem, exact = quadratics((22, 24), batch_size=7)
    sampled, value = problem.prepare(start())
    solver = METHODS[name]
    rng = np.random.default_rng(2)
    x, y, v = (jnp.asarray(rng.normal(size=n)) for n in (3, 5, 5))
    state = solver.init(sampled, js.Guess(value))
    memory = v if isinstance(solver, SOBA) else eqx.tree_at(lambda m: m.adjoint, state.memory, v)
    state = eqx.tree_at(lambda s: (s.primal, s.memory), state, ((x, y), memory))

    @jax.jit
    def directions(key):
        move = solver.move(sampled, state, solver.rates(state), key)
        after = move.memory if isinstance(solver, SOBA) else move.memory.adjoint
        rate = solver.rates(state).lower
        return move.direction, (y - move.lower) / rate, (v - after) / rate

    found = jax.vmap(directions)(jax.random.split(jax.random.key(0), 20_000))
    expected = (
        exact.q @ x + exact.r @ y + exact.s + exact.b.T @ v,
        exact.a @ y + exact.b @ x + exact.c,
        exact.a @ v + exact.p @ y + exact.r.T @ x + exact.t,
    )
    for draws, mean in zip(found, expected, strict=True):
        error = np.std(draws, axis=0) / np.sqrt(20_000)
        assert np.all(error > 1e-6)
        assert np.all(np.abs(np.mean(draws, axis=0) - mean) <= 5 * error)


# --- where they end --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch_size, decay", [(5, 0.5), pytest.param(4, 0.0, marks=pytest.mark.slow)]
)
def test_saba_reaches_the_solution_and_soba_does_not(x64, batch_size, decay):
    """Constant steps; 5 divides neither 22 nor 24, 4 only 24."""
    problem, exact = quadratics((22, 24), batch_size=batch_size)
    saba = js.solve(problem, SABA(0.1, 0.3, steps=2000), start())
    assert saba.result == js.RESULTS.successful
    assert squared(exact, saba) <= 1e-12
    np.testing.assert_allclose(saba.value[0], exact.solution(), atol=1e-7)
    steps = int(saba.stats.steps)
    assert steps < 1000
    soba = js.solve(problem, SOBA(0.1, 0.3, decay=decay, steps=steps), start())
    assert soba.result == js.RESULTS.approximate
    assert squared(exact, soba) > 1e3 * squared(exact, saba)
    assert squared(exact, soba) < 0.2 * np.sum(exact.gradient(np.zeros(3)) ** 2)


@pytest.mark.slow
def test_residual_is_that_of_all_data(x64):
    problem, exact = quadratics()
    for name in ("SOBA", "StocBiO"):
        solution = js.solve(problem, METHODS[name], start())
        x, y = solution.value
        found = solution.stats.residual
        lower = np.abs(exact.a @ y + exact.b @ x + exact.c).max()
        np.testing.assert_allclose(found.primal, lower, rtol=1e-9)
        gradient, system = exact.gradient(x, y), np.zeros(5)
        if name == "SOBA":
            # It has a v of its own, which is judged with (x, y).
            v = np.asarray(solution.dual.adjoint.primal)
            slope = exact.p @ y + exact.r.T @ x + exact.t
            gradient = gradient + exact.b.T @ (v + np.linalg.solve(exact.a, slope))
            system = exact.a @ v + slope
        size = np.abs(np.concatenate([gradient, system])).max()
        np.testing.assert_allclose(found.dual, size, rtol=1e-6)


@pytest.mark.slow
def test_default_solver_and_the_loop_end_at_the_tolerance(x64):
    problem, exact = quadratics()
    solution = js.solve(problem, init=start(), tolerance=1e-6, record=3)
    assert solution.success
    assert solution.history is not None and solution.history[-1] <= 1e-7
    assert np.abs(exact.gradient(solution.value[0])).max() < 1e-5


@pytest.mark.slow
def test_soba_with_all_data_follows_the_gradient_flow(x64):
    """x(t) = x* + exp(-t h'') (x(0) - x*), to first order in the step."""
    problem, exact = quadratics()
    values, vectors = np.linalg.eigh(exact.hessian())
    x = np.array([1.0, -1.0, 0.5])
    flow = vectors @ (np.exp(-values) * (vectors.T @ (x - exact.solution())))
    init = jnp.asarray(x), jnp.asarray(exact.best(x))
    errors = []
    for steps in (500, 1000):
        # v is found first: at a step of the upper level that moves nothing.
        still = js.solve(problem.full, SOBA(1e-30, 0.9, decay=0.0, steps=200), init)
        ready = eqx.tree_at(lambda s: s.state.count, still, jnp.zeros_like(still.state.count))
        found = js.solve(problem.full, SOBA(1 / steps, 0.9, decay=0.0, steps=steps), ready)
        errors.append(np.abs(np.asarray(found.value[0]) - exact.solution() - flow).max())
    assert errors[1] < 2e-3
    assert 1.8 < errors[0] / errors[1] < 2.2


# --- biases ----------------------------------------------------------------------------------


def first_direction(problem, solver, init, key=None):
    """Of the first step."""
    state: Any = js.solve(problem, solver, init, key=key, max_steps=1, throw=False).state
    return state.gradient


@pytest.mark.slow
def test_neumann_series_is_truncated(x64):
    """At y(x) the error is J' (I - b H)^K H^{-1} grad_y F."""
    problem, exact = quadratics()
    x = np.array([1.0, -1.0, 0.5])
    init = jnp.asarray(x), jnp.asarray(exact.best(x))
    slope = exact.p @ init[1] + exact.r.T @ x + exact.t
    left = np.eye(5) - 0.7 * exact.a
    for terms in (1, 6):
        solver = StocBiO(0.1, 0.7, inner_steps=2, neumann_terms=terms)
        missed = np.linalg.matrix_power(left, terms) @ np.linalg.solve(exact.a, slope)
        found = first_direction(problem.full, solver, init)
        np.testing.assert_allclose(found, exact.gradient(x) + exact.b.T @ missed, atol=1e-12)


def test_bias_of_f2sa_falls_as_one_over_the_penalty(x64):
    problem, exact = quadratics()
    errors = []
    for penalty in (50.0, 100.0):
        settled = partial(F2SA, growth=0.0, upper_decay=0.0, lower_decay=0.0, steps=200)
        solver = settled(0.3, 1.0, penalty=jnp.asarray(penalty))
        solution = js.solve(problem.full, solver, start())
        assert solution.stats.residual.primal < 1e-10
        errors.append(np.linalg.norm(solution.value[0] - exact.solution()))
    assert 1.9 < errors[0] / errors[1] < 2.1
    assert errors[1] < 0.05


@pytest.mark.slow
def test_penalty_of_f2sa_grows(x64):
    problem, exact = quadratics()
    solver = F2SA(0.3, 1.0, penalty=2.0, growth=0.5, growth_decay=6 / 7, steps=100)
    found = js.solve(problem.full, solver, start()).state.memory.penalty
    expected = 2 + np.sum(0.5 * np.arange(1, 101.0) ** (-6 / 7))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    better = js.solve(problem.full, F2SA(0.3, 1.0, growth=1.0, growth_decay=0.0), start())
    assert squared(exact, better) < 1e-4


def test_pzobo_has_the_smoothed_response():
    """y(x) = sin x after one step: on average u (sin(x + mu u) - sin x) / mu is
    exp(-mu^2 / 2) cos x (Stein)."""
    problem = Bilevel(
        lambda x, y, args: y[0], lambda x, y, args: 0.5 * y[0] ** 2 - jnp.sin(x[0]) * y[0]
    )
    init = jnp.array([0.7], jnp.float32), jnp.zeros(1, jnp.float32)
    for mu in (1.0, 0.1):
        solver = PZOBO(0.1, 1.0, radius=mu, directions=400_000, inner_steps=1)
        found = first_direction(problem, solver, init)[0]
        # The standard error is below 2 / sqrt(400,000).
        assert abs(float(found) - np.exp(-(mu**2) / 2) * np.cos(0.7)) < 0.012


@pytest.mark.slow
def test_pzobo_has_the_response_of_its_descent(x64):
    """After T steps from a fixed y: -(I - (I - b H)^T) H^{-1} J, exactly, for f is quadratic."""
    problem, exact = quadratics()
    x, y = np.array([1.0, -1.0, 0.5]), np.zeros(5)
    left = np.linalg.matrix_power(np.eye(5) - 0.7 * exact.a, 3)
    end = exact.best(x) + left @ (y - exact.best(x))
    slope = exact.p @ end + exact.r.T @ x + exact.t
    response = -exact.b.T @ np.linalg.solve(exact.a, (np.eye(5) - left) @ slope)
    solver = PZOBO(0.1, 0.7, directions=400_000, inner_steps=3)
    found = first_direction(problem.full, solver, (jnp.asarray(x), jnp.asarray(y)))
    # Of u u'r the standard deviation is at most 2 |r|.
    error = 5 * 2 * np.linalg.norm(response) / np.sqrt(400_000)
    wanted = exact.q @ x + exact.r @ end + exact.s + response
    assert error < 0.05 * np.linalg.norm(response)
    np.testing.assert_allclose(found, wanted, atol=error)


@pytest.mark.slow
def test_bome_reaches_a_stationary_point(x64):
    problem, exact = quadratics()
    solver = BOME(0.5, 0.5, decay=0.75, steps=2000)
    solution = js.solve(problem.full, solver, start())
    before = np.sum(exact.gradient(np.zeros(3)) ** 2)
    assert squared(exact, solution) < 1e-3 * before
    assert solution.stats.residual.primal < 1e-2
    # At the lower level's solution the multiplier is a quotient of zeros.
    flat = Bilevel(lambda x, y, args: jnp.sum(x**2), lambda x, y, args: jnp.sum(y**2))
    found = first_direction(flat, BOME(), (jnp.ones(2), jnp.zeros(2)))
    np.testing.assert_allclose(found, [2, 2])


# --- the frame -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_solve_in_two_parts(x64, name, tmp_path):
    """The first one through a file."""
    problem, _ = quadratics((22, 24), batch_size=5)
    solver, key = METHODS[name], jax.random.key(3)
    whole = js.solve(problem, solver, start(), key=key)
    assert whole.result == js.RESULTS.approximate
    assert int(whole.stats.steps) == 60
    part = js.solve(problem, solver, start(), key=key, max_steps=25, throw=False)
    assert part.result == js.RESULTS.max_steps_reached
    arrays, rest = eqx.partition(part, eqx.is_array)
    eqx.tree_serialise_leaves(tmp_path / "part.eqx", arrays)
    loaded = eqx.combine(eqx.tree_deserialise_leaves(tmp_path / "part.eqx", arrays), rest)
    resumed = js.solve(problem, solver, loaded)
    assert int(resumed.stats.steps) == 35
    for a, b in zip(jax.tree.leaves(resumed.value), jax.tree.leaves(whole.value), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_seeds_batched_are_seeds_alone(x64, name):
    problem, _ = quadratics((22, 24), batch_size=5)
    keys = jax.random.split(jax.random.key(4), 3)
    run = jax.jit(lambda key: js.solve(problem, METHODS[name], start(), key=key).value)
    alone = [run(key) for key in keys]
    assert not np.allclose(alone[0][0], alone[1][0], atol=1e-6) or name == "SABA"
    for i, value in enumerate(jax.vmap(run)(keys)):
        np.testing.assert_allclose(value, [a[i] for a in alone], atol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_single_precision_is_kept(name):
    with jax.numpy_dtype_promotion("strict"):
        problem, exact = quadratics((22, 24), batch_size=5, dtype=np.float32)
        solution = js.solve(problem, METHODS[name], start(jnp.float32))
    for leaf in jax.tree.leaves(eqx.filter(solution, eqx.is_inexact_array)):
        assert leaf.dtype == jnp.float32
    assert squared(exact, solution) < np.sum(exact.gradient(np.zeros(3)) ** 2)


@pytest.mark.slow
def test_saba_in_single_precision_does_not_drift():
    """The mean of the memory is carried from step to step: 50,000 of them."""
    problem, exact = quadratics(dtype=np.float32)
    solver = SABA(0.1, 0.3, steps=50_000)
    solution = js.solve(problem, solver, start(jnp.float32), tolerance=1e-12)
    assert int(solution.stats.steps) == 50_000
    assert squared(exact, solution) < 1e-10


@pytest.mark.slow
def test_step_sizes_are_data(x64):
    problem, exact = quadratics()

    def end(rate):
        return js.solve(problem, SABA(rate, 2 * rate, steps=100), start()).value[0]

    rates = jnp.array([0.01, 0.05, 0.2])
    ends = jax.vmap(end)(rates)
    errors = [np.linalg.norm(e - exact.solution()) for e in ends]
    assert errors[0] > errors[1] > errors[2]
    np.testing.assert_allclose(ends[1], end(0.05), atol=1e-12)


def test_variables_are_pytrees_and_sets_are_kept(x64):
    """x in a box: x = P(x - grad h(x))."""
    problem, exact = quadratics()
    full = problem.full
    split = lambda x: {"a": x[:1], "b": x[1:]}
    join = lambda x: jnp.concatenate([x["a"], x["b"]])
    bound = jnp.abs(jnp.asarray(exact.solution())) / 2
    boxed = Bilevel(
        lambda x, y, args: full.upper(join(x), y[0], args),
        lambda x, y, args: full.lower(join(x), y[0], args),
        full.args,
        upper_set=js.sets.Box(split(-bound), split(bound)),
    )
    init = split(jnp.zeros(3)), [jnp.zeros(5)]
    solution = js.solve(boxed, SABA(0.3, 0.5, steps=1000), init)
    assert solution.success
    x = np.asarray(join(solution.value[0]))
    np.testing.assert_allclose(
        x, np.clip(x - exact.gradient(x), -np.asarray(bound), bound), atol=1e-7
    )
    assert np.abs(exact.gradient(x)).max() > 1e-2


def test_batches_keep_x_in_its_set(x64):
    """SABA's noise goes to zero with the steps, so that x ends at x = P(x - grad h(x))."""
    problem, exact = quadratics((22, 24), batch_size=7)
    bound = np.abs(exact.solution()) / 2
    box = js.sets.Box(jnp.asarray(-bound), jnp.asarray(bound))
    boxed = replace(problem, upper_set=box)
    solution = js.solve(boxed, SABA(0.1, 0.2, steps=2000), start())
    x = np.asarray(solution.value[0])
    assert np.all(np.abs(x) <= bound) and np.abs(exact.gradient(x)).max() > 1e-2
    np.testing.assert_allclose(x, np.clip(x - exact.gradient(x), -bound, bound), atol=1e-6)


@pytest.mark.slow
def test_a_lost_iterate_says_so(x64):
    problem, _ = quadratics()
    solution = js.solve(problem, SOBA(0.1, 1e6, steps=500), start(), throw=False)
    assert solution.result == js.RESULTS.nonfinite_state
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(solution.value))


@pytest.mark.fast
def test_refusals():
    free = lambda x, y, args: jnp.sum((x - y) ** 2)
    init = jnp.zeros(2), jnp.zeros(2)
    rows = lambda x, y, args: y - x
    problems = {
        "coupling": Bilevel(free, free, coupling=rows),
        "coupling_equality": Bilevel(free, free, coupling_equality=rows),
        "lower_set": Bilevel(free, free, lower_set=js.sets.Box(jnp.zeros(2), jnp.ones(2))),
    }
    for solver in METHODS.values():
        for field, problem in problems.items():
            with pytest.raises(TypeError, match=f"cannot honour `{field}`"):
                js.solve(problem, solver, init)
        with pytest.raises(TypeError, match="solves Bilevel, not Minimise"):
            js.solve(js.Minimise(lambda y, args: jnp.sum(y**2)), solver, init[0])
    settings = {
        SOBA: ("steps", "at least 1"),
        SABA: ("upper_step_size", "positive"),
        F2SA: ("inner_steps", "at least 1"),
        StocBiO: ("neumann_terms", "at least 1"),
        PZOBO: ("radius", "positive"),
        BOME: ("barrier", "positive"),
    }
    for kind, (setting, least) in settings.items():
        with pytest.raises(ValueError, match=f"{kind.__name__}: `{setting}` must be {least}"):
            kind(**{setting: 0})


@pytest.mark.fast
def test_data_that_do_not_fit():
    mean = lambda x, y, batch, args: jnp.mean(batch @ y) + jnp.sum(x)
    data, init = jnp.ones((6, 2)), (jnp.zeros(2), jnp.zeros(2))
    make = partial(StochasticBilevel, mean, mean)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        js.solve(make(data, data, batch_size=0), METHODS["SOBA"], init)
    with pytest.raises(ValueError, match=r"`lower_data\[1\]` is float32\[5\]"):
        js.solve(make(data, (data, jnp.ones(5)), batch_size=2), METHODS["SOBA"], init)
    with pytest.raises(ValueError, match="holds no samples"):
        js.solve(make(data[:0], data, batch_size=2), METHODS["SOBA"], init)


def test_a_solve_that_has_ended_is_a_start_for_other_data():
    """Of a method of a set number of steps: it makes them again, on the new problem."""
    loss = lambda x, y, batch, args: jnp.mean((batch - y) ** 2) + (x - y) ** 2
    follow = lambda x, y, batch, args: jnp.mean((batch - y) ** 2) + (y - x) ** 2
    rng = np.random.default_rng(0)
    problem = lambda mean: js.StochasticBilevel(
        loss,
        follow,
        jnp.asarray(mean + rng.normal(size=20), jnp.float32),
        jnp.asarray(mean + rng.normal(size=20), jnp.float32),
        batch_size=5,
    )
    start = jnp.zeros(()), jnp.zeros(())
    solver = js.SOBA(steps=300, upper_step_size=0.1, lower_step_size=0.1)
    first = js.solve(problem(0.0), solver, start)
    other = problem(5.0)
    again = js.solve(other, solver, first)
    assert int(again.stats.steps) == 300
    alone = js.solve(other, solver, start)
    np.testing.assert_allclose(again.value[0], alone.value[0], atol=0.3)
    assert float(again.value[0]) > 3.0
