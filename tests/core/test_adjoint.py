"""Derivatives through the iterations, and of the smoothed point, against independent ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxsolve as js
from jaxsolve.convex.embedding import HomogeneousEmbedding

DATA = np.array([0.3, 1.2, -0.7])
P = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 1.5]])
ROWS = np.array([[1.0, 1.0, 0.0], [0.0, -1.0, 1.0]])
LIMITS = np.array([0.8, 2.0])


def coupled(y, a):
    return y + y**3 - a + 0.2 * jnp.roll(y, 1)


def program(a):
    """The first inequality is active, the second is not."""
    return js.QuadraticProgram(
        jnp.asarray(P, a.dtype), -a, G=jnp.asarray(ROWS, a.dtype), h=jnp.asarray(LIMITS, a.dtype)
    )


def minimise(a):
    return js.Minimise(lambda y, a: jnp.sum(y**2 / 2 + y**4 / 4 - a * y) + y[0] * y[1] / 9, a)


PROBLEMS = {
    "minimise": minimise,
    "least squares": lambda a: js.LeastSquares(coupled, a),
    "root": lambda a: js.Root(coupled, a),
    "fixed point": lambda a: js.FixedPoint(lambda y, a: y - coupled(y, a) / 6, a),
    "program": program,
    "equalities": lambda a: js.QuadraticProgram(P, -a, A=ROWS[:1], b=LIMITS[:1]),
}
SOLVERS = [
    ("minimise", js.LBFGS(), 30),
    ("minimise", js.TrustRegionNewton(), 40),
    ("least squares", js.LevenbergMarquardt(), 20),
    ("root", js.Newton(), 15),
    ("root", js.Broyden(), 25),
    ("fixed point", js.Anderson(), 40),
    ("program", js.InteriorPoint(), 20),
    ("program", js.ActiveSet(), 8),
    ("program", HomogeneousEmbedding(), 30),
    ("equalities", js.InteriorPoint(), 10),
]


QUICK = ("Newton-root", "InteriorPoint-equalities")


def unrolled(kind, solver, steps):
    name = f"{type(solver).__name__}-{kind}"
    marks = () if name in QUICK else pytest.mark.slow
    return pytest.param(kind, solver, steps, id=name, marks=marks)


@pytest.mark.parametrize("kind, solver, steps", [unrolled(*row) for row in SOLVERS])
def test_unrolled_value_and_derivative_are_those_of_the_solution(kind, solver, steps, x64):
    def solution(a, adjoint=None):
        init = None if kind in ("program", "equalities") else jnp.full_like(a, 0.1)
        return js.solve(PROBLEMS[kind](a), solver, init, adjoint=adjoint).value

    @jax.jit
    def both(a):
        unrolled = lambda a: solution(a, js.Unrolled(steps))
        exact = solution(a), jax.jacrev(solution)(a)
        return exact, (unrolled(a), jax.jacrev(unrolled)(a)), jax.jacfwd(unrolled)(a)

    (value, jacobian), (found, backward), forward = both(jnp.asarray(DATA))
    np.testing.assert_allclose(found, value, atol=1e-12)
    # The tolerance is 1e-8; an iteration's derivative lags behind the iteration.
    np.testing.assert_allclose(backward, jacobian, atol=2e-6)
    np.testing.assert_allclose(forward, jacobian, atol=2e-6)


def smoothed_point(a, kappa):
    """Of the KKT system with dual * slack = kappa, by SciPy, from the analytic centre outwards."""

    def system(point):
        x, z = point[:3], point[3:]
        return np.concatenate([P @ x - a + ROWS.T @ z, z * (LIMITS - ROWS @ x) - kappa])

    found = scipy.optimize.root(system, np.array([0.0, 0.0, 0.0, 0.5, 0.1]), tol=1e-14)
    x, z = found.x[:3], found.x[3:]
    assert np.max(np.abs(system(found.x))) < 1e-11
    assert np.all(z > 0) and np.all(LIMITS - ROWS @ x > 0)
    return x


def test_unrolled_inside_shard_map(x64, auto_mesh):
    """What a scan carries from literals did not vary over the mesh."""
    problem = lambda a: js.LeastSquares(lambda y, a: y * y - a, a)
    f = lambda a: js.solve(problem(a), None, jnp.ones(()), adjoint=js.Unrolled(12, 3)).value
    spec = jax.sharding.PartitionSpec("lanes")
    both = jax.vmap(lambda a: (jax.grad(f)(a), jax.jacfwd(f)(a)))
    a = jnp.linspace(0.5, 2.0, 8)
    sharded = jax.shard_map(both, mesh=auto_mesh, in_specs=spec, out_specs=spec)
    for found in jax.jit(sharded)(a):
        np.testing.assert_allclose(found, 0.5 / np.sqrt(a), rtol=1e-8)


@pytest.mark.parametrize("kappa", [1e-2, 0.3])
def test_smoothed_derivative_is_that_of_the_smoothed_point(kappa, x64):
    adjoint = js.Implicit(degenerate=js.Smoothed(kappa))

    def solution(a):
        return js.solve(program(a), adjoint=adjoint).value

    a, width = DATA, 1e-5
    differences = np.stack(
        [
            (smoothed_point(a + width * e, kappa) - smoothed_point(a - width * e, kappa))
            / (2 * width)
            for e in np.eye(3)
        ],
        axis=1,
    )
    value, *found = jax.jit(
        lambda a: (solution(a), jax.jacrev(solution)(a), jax.jacfwd(solution)(a))
    )(jnp.asarray(a))
    # The value stays the solution's own.
    assert abs(float(ROWS[0] @ np.asarray(value)) - LIMITS[0]) < 1e-8
    for jacobian in found:
        np.testing.assert_allclose(jacobian, differences, atol=1e-7)


def cut(kind, data, steps):
    """A problem whose data have no derivative: a is clipped, b is below 0. Else
    y = clip(a) / (1 + relu(b)), where x = y of a bilevel problem."""
    first = lambda data: jnp.clip(data["a"], -1, 1)
    weight = lambda data: 1 + jnp.sum(jax.nn.relu(data["b"]))
    slope = lambda y, data: weight(data) * y - first(data)
    adjoint = None
    init = jnp.array([3.0, 2.0], data["a"].dtype)
    if kind == "minimise":
        fn = lambda y, data: weight(data) * jnp.sum(y**2) / 2 - jnp.sum(first(data) * y)
        problem = js.Minimise(fn, data)
    elif kind == "bilevel":
        lower = lambda x, y, data: jnp.sum(slope(y, data) ** 2)
        problem = js.Bilevel(lambda x, y, data: jnp.sum((x - y) ** 2), lower, data)
        init = init, init
    else:
        problem = js.Root(slope, data)
        adjoint = js.OneStep() if kind == "one step" else None
    solution = js.solve(problem, None, init, adjoint=adjoint, max_steps=steps, throw=False)
    return jax.tree.leaves(solution.value)[0]


@pytest.mark.parametrize(
    "kind", ["minimise", "root", "one step", pytest.param("bilevel", marks=pytest.mark.slow)]
)
def test_the_derivative_of_a_failed_solve_is_nan_in_all_data(kind, x64):
    bad = {"a": jnp.array([5.0, -7.0]), "b": jnp.array([-1.0])}
    good = {"a": jnp.array([0.5, 0.2]), "b": jnp.array([3.0])}
    lanes = jax.tree.map(lambda *x: jnp.stack(x), bad, good)
    steps = jnp.array([0, 100])
    # A cotangent whose entries sum to 0.
    value = lambda data, steps: cut(kind, data, steps) @ jnp.array([1.0, -1.0])
    transforms = {
        "reverse": jax.grad(value),
        "forward": jax.jacfwd(value),
        "second": jax.hessian(value),
    }
    # y1 - y2 = (a1 - a2) / (1 + b)
    first = {"a": np.array([0.25, -0.25]), "b": np.array([-0.3 / 16])}
    for name, transform in transforms.items():
        found = jax.jit(jax.vmap(transform))(lanes, steps)
        for leaf in jax.tree.leaves(found):
            assert np.isnan(leaf[0]).all(), name
            assert np.isfinite(leaf[1]).all(), name
        if name in ("reverse", "forward"):
            for key, wanted in first.items():
                np.testing.assert_allclose(found[key][1], wanted, atol=1e-9)
        if name == "second":
            np.testing.assert_allclose(found["b"]["b"][1], 0.6 / 64, atol=1e-9)
            np.testing.assert_allclose(found["a"]["b"][1][:, 0], [-1 / 16, 1 / 16], atol=1e-9)


def test_a_failed_lane_that_is_masked_leaves_shared_data_alone(x64):
    data = {"a": jnp.array([0.5, 0.2]), "b": jnp.array([3.0])}
    solved = jnp.array([False, True])

    def value(data):
        each = jax.vmap(lambda steps: cut("minimise", data, steps).sum())(jnp.array([0, 100]))
        return jnp.sum(jnp.where(solved, each, 0))

    for transform in (jax.grad, jax.jacfwd):
        found = jax.jit(transform(value))(data)
        np.testing.assert_allclose(found["a"], 0.25, atol=1e-9)
        np.testing.assert_allclose(found["b"], -0.7 / 16, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        pytest.param(kind, field, marks=[] if field == first else [pytest.mark.slow])
        for kind, first in (("quadratic", "P"), ("smoothed", "A"), ("cones", "h"))
        for field in ("P", "A", "h")
    ],
)
def test_nan_in_a_lane_of_a_program_stay_there(kind, field, x64):
    rng = np.random.default_rng(0)
    n, p, m = 12, 3, 8
    shared = {
        "P": np.eye(n),
        "q": rng.normal(size=n),
        "A": rng.normal(size=(p, n)),
        "b": np.zeros(p),
        "G": rng.normal(size=(m, n)),
        "h": np.ones(m),
    }
    shared = jax.tree.map(jnp.asarray, shared)
    own = jnp.zeros((3, *shared[field].shape)).at[1].set(jnp.nan)

    def one(data):
        P, q, rest = data["P"], data["q"], {k: data[k] for k in "AbGh"}
        if kind == "cones":
            problem = js.ConeProgram(P, q, **rest, cones=(js.Nonnegative(m),))
        else:
            problem = js.QuadraticProgram(P, q, **rest)
        degenerate = js.Smoothed(1e-3) if kind == "smoothed" else js.MinimumNorm()
        solution = js.solve(problem, adjoint=js.Implicit(degenerate=degenerate), throw=False)
        return jnp.where(solution.success, jnp.sum(solution.value**2), 0)

    def total(shared, own):
        return jnp.sum(jax.vmap(lambda x: one(shared | {field: shared[field] + x}))(own))

    slope = jax.jit(jax.grad(total))
    found, expected = slope(shared, own), slope(shared, own[::2])
    for name, want in expected.items():
        np.testing.assert_allclose(found[name], want, atol=1e-9, err_msg=name)


def test_data_that_stand_still_leave_a_failed_solve_alone(x64):
    data = {"a": jnp.array([5.0, -7.0]), "b": jnp.array([-1.0])}
    still = jax.tree.map(jnp.zeros_like, data)
    _, tangent = jax.jvp(lambda data: cut("minimise", data, 0), (data,), (still,))
    np.testing.assert_array_equal(tangent, 0)
