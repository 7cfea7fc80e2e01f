"""LVHBA, BiCGAFFA and MEHA: published tables, closed forms, and an iteration written in NumPy."""

from dataclasses import replace

import clarabel
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from toys import relative, toy_a, toy_b, toy_c

import jaxsolve as js
from jaxsolve import sets
from jaxsolve.bilevel.bic_gaffa import BiCGAFFA
from jaxsolve.bilevel.coupled_set import coupled_set
from jaxsolve.bilevel.coupling import affine_rows
from jaxsolve.bilevel.lvhba import LVHBA
from jaxsolve.bilevel.meha import MEHA
from jaxsolve.bilevel.suggest_steps import suggest_steps
from jaxsolve.bilevel.value_function import Functions


def with_arrays(kind, **settings):
    """A solver whose settings are arrays: other values are no other program."""
    solver = kind(**settings)
    named = {name: jnp.asarray(value) for name, value in vars(solver).items() if value is not None}
    return replace(solver, **named)


def error(toy, solver):
    x, _ = js.solve(toy.problem, solver, toy.init).value
    return relative([x], toy.x)


def last_weight(solver):
    return float(solver.penalty * solver.steps**solver.exponent)


def bias_a(solver, scale=1.0, length=1.0, upper=1.0):
    """The relative error in x of the penalised toy A at the last weight.

    On the constraint y = (x + 1 + d, -2 x - 1 - d) an entry, f - v is k d^2 / 2, k = g / (g + 2)
    with g = gamma1 in the units of the toy. Then F / c + f - v is least at d = 0.2 / (0.4 + c k),
    x = -0.3 - 0.4 d, with c and f - v in those units too.
    """
    steepness = scale / float(solver.unit)
    gamma = float(solver.gamma1) * steepness / length**2
    weight = last_weight(solver) * steepness / upper
    return 0.4 / 0.3 * 0.2 / (0.4 + weight * gamma / (gamma + 2))


def moreau(solver, curvature):
    """1 / (1 + c k), k = gamma1 / (1 + gamma1): for F = a ((x - 2)^2 + y^2) / 2, f = (x - y)^2 / 2
    in its unit, F / c + f - v = F / c + k f is least at x - 1 = 1 / (1 + 2 c k / a) = 1 - y."""
    gamma = float(solver.gamma1)
    return 1 / (1 + 2 * last_weight(solver) / curvature * gamma / (1 + gamma))


# gamma1, gamma2, exponent, steps, relative error in x; then what the defaults must reach.
TABLE = [
    (2, 1, 0.30, 3_000, 8.4e-2),
    (2, 1, 0.30, 30_000, 4.5e-2),
    (2, 1, 0.49, 30_000, 6.7e-3),
    (10, 1, 0.49, 30_000, 4.1e-3),
    (10, 10, 0.30, 5_000, 4.6e-2),
]


@pytest.mark.parametrize("gamma1, gamma2, exponent, steps, published", TABLE)
def test_toy_a_reaches_the_table(x64, gamma1, gamma2, exponent, steps, published):
    solver = with_arrays(
        LVHBA, gamma1=float(gamma1), gamma2=float(gamma2), exponent=exponent, steps=steps
    )
    assert error(toy_a(100), solver) <= 1.1 * published


@pytest.mark.parametrize("steps, goal", [(3_000, 5e-2), (30_000, 5e-3)])
def test_the_defaults_on_toy_a(x64, steps, goal):
    toy = toy_a(100)
    solution = js.solve(toy.problem, with_arrays(LVHBA, steps=steps), toy.init)
    assert solution.result == js.RESULTS.approximate
    assert solution.stats.steps == steps
    assert relative([solution.value[0]], toy.x) <= goal
    assert relative(solution.value[1], toy.y) <= goal
    np.testing.assert_allclose(solution.dual.equality, -1, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("steps, goal", [(3_000, 5e-2), (30_000, 5e-3)])
def test_the_defaults_on_a_larger_toy_a(x64, steps, goal):
    assert error(toy_a(1000), with_arrays(LVHBA, steps=steps)) <= goal
    row = with_arrays(LVHBA, gamma1=2.0, exponent=0.3, steps=5_000)
    assert error(toy_a(1000), row) <= 1.1 * 7.4e-2


@pytest.mark.slow
def test_errors_are_those_of_the_last_weight_and_the_gap_falls(x64):
    toy = toy_a(100)
    gaps = []
    for steps in (1_000, 4_000, 16_000):
        solver = with_arrays(LVHBA, steps=steps)
        solution = js.solve(toy.problem, solver, toy.init)
        np.testing.assert_allclose(relative([solution.value[0]], toy.x), bias_a(solver), rtol=0.05)
        gaps.append(float(solution.state.gap))
    # f - v is of second order in the error.
    np.testing.assert_allclose(np.array(gaps[:-1]) / gaps[1:], 4 ** (2 * 0.49), rtol=0.15)


def numpy_lvhba(n, steps):
    """The method on toy A with its row of norm 1, written out: (x, y1, y2), gap, penalised."""
    unit = np.sqrt(3 * n)
    x, y, t = (np.full(size * n, 10.0) for size in (1, 2, 2))
    both = np.concatenate([x, y])
    both -= both.mean()
    x, y = both[:n], both[n:]
    t, u, z = y.copy(), 0.0, 0.0
    for k in range(steps):
        c = 0.5 * (k + 1) ** 0.49
        slope = np.concatenate([t[:n] - x, np.ones(n)])
        dt = slope + u / unit + (t - y) / 10
        du = (x.sum() + t.sum()) / unit - (u - z)
        t, u = t - 0.3 * dt, np.clip(u + 0.3 * du, -1e3, 1e3)
        dx = (x - y[n:]) / c - y[:n] + t[:n] - u / unit
        dy = np.concatenate([(y[:n] - 1) / c + y[:n] - x, (y[n:] - x) / c + 1]) - (y - t) / 10
        f = lambda v, x=x: 0.5 * v[:n] @ v[:n] - x @ v[:n] + v[n:].sum()
        saddle = f(t) + u * (x.sum() + t.sum()) / unit
        gap = f(y) - saddle - (t - y) @ (t - y) / 20 + (u - z) ** 2 / 2
        new = both - 0.05 * np.concatenate([dx, dy])
        new -= new.mean()
        moved = np.abs(new - both).max() / 0.05
        both, old = new, z
        x, y, z = both[:n], both[n:], np.clip(z + (u - z), -1e3, 1e3)
        penalised = c * max(moved, abs(z - old))
    return both, gap, penalised


@pytest.mark.fast
def test_the_iteration_is_the_one_of_the_paper(x64):
    toy = toy_a(8)
    solver = with_arrays(LVHBA, steps=40)
    # So early x and y still go down F together.
    solution = js.solve(toy.problem, solver, toy.init, throw=False)
    both, gap, penalised = numpy_lvhba(8, 40)
    x, y = solution.value
    np.testing.assert_allclose(np.concatenate([x, *y]), both, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(solution.state.gap, gap, rtol=1e-8)
    np.testing.assert_allclose(solution.state.penalised, penalised, rtol=1e-8)


@pytest.mark.slow
def test_rows_may_be_scaled_and_repeated(x64):
    toy = toy_a(20)
    rows = lambda x, y, args: [1e3 * (jnp.sum(x) + jnp.sum(y[0]) + jnp.sum(y[1]))] * 2
    other = eqx.tree_at(lambda p: p.coupling_equality, toy.problem, rows)
    one = js.solve(toy.problem, LVHBA(steps=200), toy.init)
    two = js.solve(other, LVHBA(steps=200), toy.init)
    np.testing.assert_allclose(two.value[0], one.value[0], atol=1e-10)
    # Together they do the work of the one.
    np.testing.assert_allclose(sum(two.dual.equality) * 1e3, one.dual.equality, rtol=1e-8)


@pytest.mark.slow
def test_batched_and_alone_are_equal(dtype):
    toy = toy_a(8)
    starts = jnp.asarray([1.0, -3.0, 20.0], dtype)
    scaled = lambda s: jax.tree.map(lambda v: (s * v).astype(dtype), toy.init)
    run = lambda s: js.solve(toy.problem, with_arrays(LVHBA, steps=300), scaled(s))
    many = jax.jit(jax.vmap(run))(starts)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves((many.value, many.state.gap)))
    tolerance = 1e-12 if dtype == "float64" else 2e-5
    for i, start in enumerate(starts):
        alone = run(start)
        for a, b in zip(jax.tree.leaves(many.value), jax.tree.leaves(alone.value), strict=True):
            np.testing.assert_allclose(a[i], b, atol=tolerance)
    assert (many.result == js.RESULTS.approximate).all()


@pytest.mark.slow
def test_float32(strict):
    toy = toy_a(100)
    solution = js.solve(toy.problem, LVHBA(), toy.init)
    np.testing.assert_allclose(relative([solution.value[0]], toy.x), bias_a(LVHBA()), rtol=0.05)
    leaves = jax.tree.leaves(solution.state)
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in leaves)


@pytest.mark.slow
def test_a_solve_that_was_cut_goes_on(x64):
    toy = toy_a(8)
    whole = js.solve(toy.problem, with_arrays(LVHBA, steps=100), toy.init)
    part = js.solve(toy.problem, with_arrays(LVHBA, steps=100), toy.init, max_steps=30, throw=False)
    assert part.result == js.RESULTS.max_steps_reached
    rest = js.solve(toy.problem, with_arrays(LVHBA, steps=100), part)
    assert rest.stats.steps == 70
    np.testing.assert_allclose(rest.value[0], whole.value[0], rtol=1e-12)
    more = js.solve(toy.problem, with_arrays(LVHBA, steps=100), whole)
    assert more.stats.steps == 100 and more.state.gap < whole.state.gap


# --- the coupled set -------------------------------------------------------------------------


def nearest(point, equalities, inequalities, bounds):
    """By Clarabel: rows (A, b) with A w = b, (G, h) with G w <= h, and (lower, upper)."""
    size = point.size
    rows = [equalities[0], inequalities[0], np.eye(size), -np.eye(size)]
    sides = [equalities[1], inequalities[1], bounds[1], -bounds[0]]
    cones = [
        clarabel.ZeroConeT(len(equalities[1])),
        clarabel.NonnegativeConeT(len(inequalities[1]) + 2 * size),
    ]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    solver = clarabel.DefaultSolver(
        scipy.sparse.csc_matrix(np.eye(size)),
        -point,
        scipy.sparse.csc_matrix(np.concatenate(rows)),
        np.concatenate(sides),
        cones,
        settings,
    )
    return np.array(solver.solve().x)


@pytest.mark.parametrize("bounded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_projection_on_the_coupled_set(x64, bounded):
    rng = np.random.default_rng(1)
    n, m, p, q = 4, 5, 2, 6
    A, G = rng.normal(size=(p, n + m)), 5 * rng.normal(size=(q, n + m))
    inside = rng.uniform(-0.5, 0.5, n + m)
    b, h = A @ inside, G @ inside + rng.uniform(0, 1, q)
    # A row that depends on the others.
    A, b = np.concatenate([A, [A[0] - A[1]]]), np.append(b, b[0] - b[1])
    problem = js.Bilevel(
        lambda x, y, args: jnp.sum(x),
        lambda x, y, args: jnp.sum(y**2),
        coupling=lambda x, y, args: G @ jnp.concatenate([x, y]) - h,
        coupling_equality=lambda x, y, args: A @ jnp.concatenate([x, y]) - b,
        upper_set=sets.Box(-0.6, 0.6) if bounded else None,
    )
    problem, primal = problem.prepare((jnp.zeros(n), jnp.zeros(m)))
    rows = affine_rows(problem, primal)
    region = coupled_set(problem, primal, rows)
    functions = Functions(problem, rows, primal, 1.0)
    project = jax.jit(lambda w: region.project(functions, w))
    size = np.full(n + m, 1e3)
    if bounded:
        size[:n] = 0.6
    for scale in (0.1, 3.0):
        point = scale * rng.normal(size=n + m)
        found, later = project(jnp.asarray(point))
        wanted = nearest(point, (A, b), (G, h), (-size, size))
        np.testing.assert_allclose(found, wanted, atol=1e-7)
        # From its own multipliers it is there at once.
        again, _ = later.project(functions, jnp.asarray(point))
        np.testing.assert_allclose(again, wanted, atol=1e-7)


def numpy_bic_gaffa(x, y, steps):
    """The method on the next test's problem, written out for its rows of norm 1, (y - x) / 2^(1/2):
    x, y and the multiplier of 2 (y - x)."""
    root = np.sqrt(2)
    t, u, z = y, 0 * x, 0 * x
    for k in range(steps):
        c = 0.5 * (k + 1) ** 0.49
        t = t - 0.3 * (2 * (t - 4) + z / root + (t - y) / 10)
        u = np.maximum(z + (y - x) / root, 0)
        dx = 2 * (x - 1) / c - (u - z) / root
        dy = 2 * (y - 2) / c + 2 * (y - 4) + u / root - (y - t) / 10
        z = np.clip(z - 0.05 * (u - z - (t - x) / root), 0, 1e3)
        x, y = np.clip(x - 0.05 * dx, 0, 3), y - 0.05 * dy
    return x, y, u / (2 * root)


@pytest.mark.slow
def test_inequalities_and_a_set(x64):
    """y(x) = min(x, 4): x = 3 / 2, lam = 2 (4 - x), with the row doubled lam / 2."""
    problem = js.Bilevel(
        lambda x, y, args: jnp.sum((x - 1) ** 2 + (y - 2) ** 2),
        lambda x, y, args: jnp.sum((y - 4) ** 2),
        coupling=lambda x, y, args: 2 * (y - x),
        upper_set=sets.Box(0.0, 3.0),
    )
    init = (jnp.array([3.0, 0.0]), jnp.array([0.0, 0.0]))
    # Where the projection keeps the constraint there is no bias.
    solution = js.solve(problem, LVHBA(), init)
    x, y = solution.value
    np.testing.assert_allclose(x, 1.5, atol=1e-5)
    np.testing.assert_allclose(y, 1.5, atol=1e-5)
    np.testing.assert_allclose(solution.dual.inequality, 2.5, atol=5e-5)
    other = js.solve(problem, BiCGAFFA(steps=3_000), init)
    x, y, lam = numpy_bic_gaffa(*(np.asarray(part) for part in init), 3_000)
    np.testing.assert_allclose(other.value[0], x, rtol=1e-9)
    np.testing.assert_allclose(other.value[1], y, rtol=1e-9)
    np.testing.assert_allclose(other.dual.inequality, lam, rtol=1e-9)
    # With gamma2 = 1 and these rows the point of a weight c has c (y - x) = 4 (x - 1) = 4 (2 - y),
    # from which the iteration is less and less far, as c moves ever slower.
    apart = []
    for steps in (3_000, 30_000, 300_000):
        x, y, _ = numpy_bic_gaffa(*(np.asarray(part) for part in init), steps)
        gap = 2 / (last_weight(BiCGAFFA(steps=steps)) + 2)
        apart.append(np.max(np.abs([x - 1.5 + gap / 2, y - 1.5 - gap / 2])) / gap)
    assert apart[0] > 3 * apart[1] > 9 * apart[2]
    bound = eqx.tree_at(lambda p: p.upper_set, problem, sets.Box(0.0, 1.0))
    x, y = js.solve(bound, LVHBA(), init).value
    np.testing.assert_allclose(x, 1.0, atol=1e-12)
    np.testing.assert_allclose(y, 1.0, atol=1e-5)


CONFLICTS = {
    "coupling": lambda x, y, args: jnp.stack([x[0] + y[0] + 1, 1 - x[0] - y[0]]),
    "coupling_equality": lambda x, y, args: jnp.stack([x[0] + y[0] + 1, x[0] + y[0] - 1]),
}


@pytest.mark.parametrize("field", CONFLICTS)
@pytest.mark.parametrize("solver", [LVHBA(), BiCGAFFA()], ids=lambda s: type(s).__name__)
def test_constraints_that_contradict_each_other_are_no_bias(field, solver):
    """x + y at most -1 and at least 1: f - v is small at points that are between."""
    problem = js.Bilevel(
        lambda x, y, args: jnp.sum((y - 1) ** 2 + x**2),
        lambda x, y, args: jnp.sum((y - x) ** 2),
        **{field: CONFLICTS[field]},
    )
    solution = js.solve(problem, solver, (jnp.zeros(1), jnp.zeros(1)), throw=False)
    assert solution.result == js.RESULTS.stalled


@pytest.mark.slow
def test_a_projection_of_the_users_own(x64):
    toy = toy_a(10)

    def project(x, y):
        mean = (jnp.sum(x) + jnp.sum(y[0]) + jnp.sum(y[1])) / 30
        return jax.tree.map(lambda v: v - mean, (x, y))

    one = js.solve(toy.problem, with_arrays(LVHBA, steps=100), toy.init)
    two = js.solve(toy.problem, LVHBA(steps=100, projection=project), toy.init)
    np.testing.assert_allclose(two.value[0], one.value[0], rtol=1e-10)
    np.testing.assert_allclose(two.dual.equality, one.dual.equality, rtol=1e-10)


def test_slower_multipliers_damp_flat_lower_levels(x64):
    """The row lies in directions in which f is flat; x, y and mu by the normal equations of
    F subject to the lower level's conditions."""
    rng = np.random.default_rng(0)
    flat, seeds = np.diag([1.0, 0.5, 0.0, 0.0]), 8
    rows = np.concatenate([0.3 * rng.normal(size=(seeds, 2)), rng.normal(size=(seeds, 2))], axis=1)
    data = rows, 0.3 * rng.normal(size=(seeds, 2)), rng.normal(size=(seeds, 4, 2))
    goals = rng.normal(size=(seeds, 6))
    upper = lambda x, y, args: 0.5 * jnp.sum((jnp.concatenate([x, y]) - args[3]) ** 2)
    lower = lambda x, y, args: 0.5 * y @ flat @ y - y @ flat @ args[2] @ x
    balance = lambda x, y, args: args[0] @ y + args[1] @ x - 1

    @jax.jit
    @jax.vmap
    def found(args):
        problem = js.Bilevel(upper, lower, args, coupling_equality=balance)
        solver = LVHBA(multiplier_step_size=0.3)
        return js.solve(problem, solver, (jnp.zeros(2), jnp.zeros(4)), throw=False)

    solution = found(tuple(map(jnp.asarray, (*data, goals))))
    assert bool(jnp.all(solution.result == js.RESULTS.approximate))
    for i, (row, own, mixed, goal) in enumerate(zip(*data, goals, strict=True)):
        conditions = np.zeros((5, 7))
        conditions[:4, :2], conditions[:4, 2:6], conditions[:4, 6] = -flat @ mixed, flat, row
        conditions[4, :2], conditions[4, 2:6] = own, row
        weights = np.diag([1.0] * 6 + [0.0])
        system = np.block([[weights, conditions.T], [conditions, np.zeros((5, 5))]])
        right = np.concatenate([goal, np.zeros(5), [1.0]])
        best = np.linalg.lstsq(system, right, rcond=1e-11)[0]
        np.testing.assert_allclose(solution.value[0][i], best[:2], atol=0.15)
        np.testing.assert_allclose(solution.value[1][i], best[2:6], atol=0.15)


@pytest.mark.slow
def test_toy_b_alone_stays_at_the_bias(x64):
    """With d = y - y(x), A d = 0, f - v is k |d|^2 / 2, k = gamma1 / (1 + gamma1), so that
    c k d = -P grad_y F, P the projection on A d = 0."""
    toy = toy_b()
    A, H, c, d, B = (np.asarray(part) for part in toy.problem.args)
    for steps in (3_000, 30_000):
        solver = with_arrays(LVHBA, steps=steps)
        x, y = (np.asarray(part) for part in js.solve(toy.problem, solver, toy.init).value)
        assert np.abs(A @ y + H @ x).max() < 1e-8
        assert np.abs(B @ x).max() < 1e-8
        slope = np.cos(c @ x + d @ y) * d + 2 * (x + y) / (np.sum((x + y) ** 2) + 1)
        slope -= np.linalg.pinv(A) @ (A @ slope)
        gamma = float(solver.gamma1)
        bias = np.linalg.norm(slope) * (1 + gamma) / gamma / last_weight(solver)
        np.testing.assert_allclose(np.linalg.norm(y - toy.y(x)), bias, rtol=0.1)


# --- without a projection, without coupling ----------------------------------------------------


@pytest.mark.parametrize("power", [1, 3])
@pytest.mark.parametrize("n", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_toy_c(x64, n, power):
    toy = toy_c(n, power)
    solution = js.solve(toy.problem, BiCGAFFA(), toy.init)
    assert solution.result == js.RESULTS.approximate
    assert relative([solution.value[0]], toy.x) < 1e-3
    assert relative(solution.value[1], toy.y) < 1e-3
    np.testing.assert_allclose(solution.dual.equality, -1, rtol=1e-3)


def test_moreau_envelope(x64):
    """y1 = x, y2 is free: x = 1, y = (1, 3)."""
    problem = js.Bilevel(
        lambda x, y, args: (x - 2) ** 2 + y[0] ** 2 + (y[1] - 3) ** 2,
        lambda x, y, args: 0.5 * (y[0] - x) ** 2,
    )
    for steps in (1_000, 10_000):
        solver = with_arrays(MEHA, steps=steps)
        x, y = js.solve(problem, solver, (jnp.array(0.0), jnp.zeros(2))).value
        bias = moreau(solver, 2)
        np.testing.assert_allclose([x - 1, 1 - y[0]], bias, rtol=0.05)
        np.testing.assert_allclose(y[1], 3, atol=1e-5)
    # With sets: y1 <= 0.5 leaves x = 2, and y2 <= 2.
    held = eqx.tree_at(
        lambda p: p.lower_set,
        problem,
        sets.Box(-jnp.inf, jnp.array([0.5, 2.0])),
        is_leaf=lambda v: v is None,
    )
    x, y = js.solve(held, MEHA(), (jnp.array(0.0), jnp.zeros(2))).value
    np.testing.assert_allclose(jnp.array([x, *y]), [2.0, 0.5, 2.0], atol=1e-5)


# --- step sizes, refusals ------------------------------------------------------------------------

BAD = [{name: value} for name in ("scale", "length", "upper") for value in (1e2, 1e-2)]


@pytest.mark.slow
@pytest.mark.parametrize("units", BAD, ids=str)
def test_suggested_steps_do_not_depend_on_units(x64, units):
    toy = toy_a(100, **units)
    solver = suggest_steps(toy.problem, toy.init)
    error = relative([js.solve(toy.problem, solver, toy.init).value[0]], toy.x)
    np.testing.assert_allclose(error, bias_a(solver, **units), rtol=0.05)
    plain, _ = js.solve(toy.problem, with_arrays(LVHBA), toy.init, throw=False).value
    assert not np.abs(plain - toy.x).max() < 0.3 * np.abs(toy.x).max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BiCGAFFA, MEHA])
def test_suggested_steps_of_other_methods(x64, kind):
    problem = js.Bilevel(
        lambda x, y, args: 1e-3 * jnp.sum((x - 2) ** 2 + y**2),
        lambda x, y, args: 1e4 * jnp.sum((y - x) ** 2),
    )
    init = (jnp.zeros(3), jnp.ones(3))
    solver = suggest_steps(problem, init, kind())
    x, _ = js.solve(problem, solver, init).value
    np.testing.assert_allclose(x - 1, moreau(solver, 2e-3), rtol=0.05)


@pytest.mark.fast
def test_refusals():
    toy = toy_c(4, 3)
    with pytest.raises(TypeError, match=r"BiCGAFFA\(\).*projection"):
        js.solve(toy.problem, LVHBA(), toy.init)
    with pytest.raises(TypeError, match="MEHA cannot honour `coupling_equality` of Bilevel"):
        js.solve(toy.problem, MEHA(), toy.init)
    for kind in (LVHBA, BiCGAFFA, MEHA):
        with pytest.raises(TypeError, match="solves Bilevel"):
            js.solve(js.Minimise(lambda y, args: jnp.sum(y**2)), kind(), jnp.ones(2))
    with pytest.raises(TypeError, match=r"a pair \(x, y\)"):
        js.solve(toy.problem, BiCGAFFA(), jnp.ones(3))


@pytest.mark.slow
def test_a_lost_iterate_is_reported(x64):
    toy = toy_a(5)
    solution = js.solve(toy.problem, LVHBA(step_size=1e3), toy.init, throw=False)
    assert solution.result == js.RESULTS.nonfinite_state
    assert np.isfinite(solution.value[0]).all()
