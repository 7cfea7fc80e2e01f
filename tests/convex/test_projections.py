"""Sets and projections: oracles, properties that define a projection, ties, empty sets, batches.

The contract (`tests/projections.py`) has the derivatives; here is each set once.
"""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from projections import capped, l1_ball, polytope, shifted
from sklearn.isotonic import isotonic_regression

import jaxsolve as js
from jaxsolve import sets
from jaxsolve.convex.sets.intersection import IntersectionProjection

_ROWS = np.array([[1.0, 2.0, -1.0, 0.5, 0.0, 1.0], [0.0, 1.0, 1.0, -1.0, 2.0, 0.3]])
_SHARES = np.array([0.3, 0.5, 0.2])


def _array(x):
    return jnp.asarray(x, jnp.result_type(float))


def _even(x):
    return jnp.sum(x**2 * jnp.arange(1, 7, dtype=x.dtype)) - 2


CASES = {
    "box": (lambda: sets.Box(-0.5, 1.0), (6,)),
    "simplex": (lambda: sets.Simplex(1.3), (6,)),
    "capped": (lambda: sets.CappedSimplex(2.2, 0.9), (6,)),
    "l1": (lambda: sets.L1Ball(2.0), (6,)),
    "l2": (lambda: sets.L2Ball(1.5), (6,)),
    "linf": (lambda: sets.LinfBall(0.7), (6,)),
    "halfspace": (lambda: sets.Halfspace(_array(_ROWS[0]), -1.0), (6,)),
    "affine": (lambda: sets.Affine(_array(_ROWS), _array([1.0, -0.5])), (6,)),
    "polyhedron": (
        lambda: sets.Polyhedron(G=_array(_ROWS), h=_array([0.2, 0.4]), lower=-1.0, upper=2.0),
        (6,),
    ),
    "second-order": (sets.SecondOrderCone, (6,)),
    "semidefinite": (sets.PSDCone, (4, 4)),
    "birkhoff": (sets.Birkhoff, (4, 4)),
    "transport": (lambda: sets.TransportPolytope(_array(_SHARES), _array(_SHARES[::-1])), (3, 3)),
    "isotonic": (sets.Isotonic, (6,)),
    "one program": (
        lambda: sets.Intersection(sets.Box(-0.5, 1.0), sets.Simplex(1.0), sets.Isotonic()),
        (6,),
    ),
    "dykstra": (lambda: sets.Intersection(sets.L2Ball(1.5), sets.Box(lower=0.0)), (6,)),
    "sublevel": (lambda: sets.Sublevel(_even), (6,)),
}
CONVEX = list(CASES)
PERMUTED = ["box", "simplex", "capped", "l1", "l2", "linf"]
CASES["sparse"] = (lambda: sets.KSparse(3), (6,))


def marked(names):
    """The quadratic programs, which have a contract of their own, are left to the slow suite."""
    programs = ("polyhedron", "one program")
    return [pytest.param(n, marks=pytest.mark.slow) if n in programs else n for n in names]


@cache
def compiled(name):
    """Points -> projections and results, three at once."""

    def one(point):
        solution = js.solve(js.Projection(point, CASES[name][0]()), tolerance=1e-10, throw=False)
        return solution.value, solution.success

    return jax.jit(jax.vmap(one))


def points(name, seed, count=3):
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.1, 4.0)
    return jnp.asarray(size * rng.normal(size=(count, *CASES[name][1])))


def inner(a, b):
    return float(np.sum(np.asarray(a) * np.asarray(b)))


@pytest.mark.parametrize("name", marked(CONVEX))
def test_a_projection_is_one(name):
    """In the set (projected again, nothing moves), by the variational inequality the nearest
    point, and nonexpansive."""

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 10**6))
    def check(seed):
        with jax.enable_x64(True):
            p = points(name, seed)
            x, solved = compiled(name)(p)
            again, _ = compiled(name)(x)
        p = np.asarray(p)
        assert np.all(solved)
        size = 1 + np.abs(p).max()
        np.testing.assert_allclose(again, x, atol=1e-8 * size)
        (p, q, _), (x, y, c) = np.asarray(p), np.asarray(x)
        if name == "semidefinite":
            p, q = (p + p.T) / 2, (q + q.T) / 2
        assert inner(p - x, c - x) <= 1e-7 * size**2
        assert np.linalg.norm(x - y) <= np.linalg.norm(p - q) + 1e-7 * size

    check()


@pytest.mark.parametrize("name", PERMUTED)
def test_the_order_of_entries_does_not_matter(name):
    with jax.enable_x64(True):
        p = points(name, 3)
        order = np.random.default_rng(0).permutation(6)
        x, _ = compiled(name)(p)
        y, _ = compiled(name)(p[:, order])
    np.testing.assert_allclose(y, x[:, order], atol=1e-12)


@jax.jit
def summed(point, total, share):
    """Three sets at once: a program less."""
    return (
        sets.Simplex(total).project(point),
        sets.L1Ball(total).project(point),
        sets.CappedSimplex(share).project(point),
    )


def sorted_out(point, total, share):
    cap = np.ones_like(point)
    return (
        shifted(point, total),
        l1_ball({"point": point, "radius": total}),
        capped({"point": point, "cap": cap, "total": share}),
    )


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_against_sorting(n, dtype):
    """Simplex, l1 ball and capped simplex, of large and small numbers."""
    rng = np.random.default_rng(n)
    for scale, total in ((1.0, 1.0), (1e4, 3.0), (1e-3, 1.0), (1.0, 0.3 * n)):
        p = np.asarray(scale * rng.normal(size=n), dtype)
        total, share = np.asarray(total, dtype), np.asarray(min(total, 0.8 * n), dtype)
        expected = sorted_out(*(np.asarray(x, np.float64) for x in (p, total, share)))
        size = max(1.0, np.abs(p).max())
        for found, right in zip(summed(p, total, share), expected, strict=True):
            np.testing.assert_allclose(found, right, atol=50 * np.finfo(dtype).eps * size)


def test_numbers_of_all_sizes(dtype):
    """Newton's slow case, geometric numbers, and many equal ones, are exact too."""
    for p in (2.0 ** np.linspace(-30, 30, 900), np.ones(900), np.repeat([1.0, 2.0, 3.0], 300)):
        p = np.asarray(p, dtype)
        for total in (1e-3, 1.0, 800.0):
            total = np.asarray(total, dtype)
            expected = sorted_out(*(np.asarray(x, np.float64) for x in (p, total, total)))
            scale = max(1.0, float(p.max()))
            for found, right in zip(summed(p, total, total), expected, strict=True):
                np.testing.assert_allclose(found, right, atol=50 * np.finfo(dtype).eps * scale)


def test_a_long_single_precision_vector_sums_to_its_total():
    p = jnp.asarray(1e3 + np.random.default_rng(0).normal(size=100_000), jnp.float32)
    x = np.asarray(sets.Simplex(1.0).project(p), np.float64)
    assert abs(x.sum() - 1) < 1e-5
    x = np.asarray(sets.CappedSimplex(500.0).project(p), np.float64)
    assert abs(x.sum() - 500) < 5e-3


def test_against_optax(x64):
    p = jnp.asarray(np.random.default_rng(1).normal(size=50))
    theirs = optax.projections
    pairs = (
        (sets.Simplex(2.0), lambda p: theirs.projection_simplex(p, 2.0)),
        (sets.L1Ball(2.0), lambda p: theirs.projection_l1_ball(p, 2.0)),
        (sets.L2Ball(2.0), lambda p: theirs.projection_l2_ball(p, 2.0)),
        (sets.LinfBall(0.5), lambda p: theirs.projection_linf_ball(p, 0.5)),
        (sets.Box(-0.1, 0.3), lambda p: theirs.projection_box(p, -0.1, 0.3)),
        (sets.Halfspace(p[::-1], -1.0), lambda p: theirs.projection_halfspace(p, p[::-1], -1.0)),
    )
    both = jax.jit(lambda p: [(js.project(p, ours), other(p)) for ours, other in pairs])
    for found, expected in both(p):
        np.testing.assert_allclose(found, expected, atol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 30, 500])
def test_isotonic_against_scikit_learn(n, dtype):
    rng = np.random.default_rng(n)
    project = jax.jit(lambda p: js.project(p, sets.Isotonic()))
    for p in (
        rng.normal(size=n),
        np.linspace(0, 3, n) + 0.1 * rng.normal(size=n),
        np.linspace(3, 0, n),
        np.append(np.arange(n - 1.0), -1e3),
        np.round(rng.normal(size=n)),
    ):
        p = np.asarray(p, dtype)
        expected = isotonic_regression(np.asarray(p, np.float64))
        np.testing.assert_allclose(
            project(jnp.asarray(p)), expected, atol=50 * np.finfo(dtype).eps * np.abs(p).max()
        )


def test_transport_polytopes_against_clarabel(x64):
    rng = np.random.default_rng(0)
    for n, m, scale in ((4, 6, 1.0), (6, 4, 10.0)):
        p = scale * rng.normal(size=(n, m))
        rows, columns = rng.uniform(0.5, 1, n), rng.uniform(0.5, 1, m)
        rows, columns = rows / rows.sum(), columns / columns.sum()
        polytope_set = sets.TransportPolytope(jnp.asarray(rows), jnp.asarray(columns))
        solution = js.solve(js.Projection(jnp.asarray(p), polytope_set))
        np.testing.assert_allclose(solution.value, polytope(p, rows, columns), atol=1e-7)
        u, v = solution.dual.equality
        force = np.asarray(solution.value - p + u[:, None] + v)
        np.testing.assert_allclose(force, solution.dual.lower, atol=1e-12)
        assert abs(float(jnp.mean(v))) < 1e-12


_WIDE = [pytest.param(30, d, marks=pytest.mark.slow) for d in ("float64", "float32")]


@pytest.mark.parametrize(("size", "precision"), [(10, "float64"), *_WIDE])
def test_birkhoff(size, precision):
    """Sums are 1; far away in the direction of a permutation it is that permutation, with a zero
    derivative."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(precision == "float64"):
        eps = np.finfo(precision).eps

        @jax.jit
        def solved(p, cotangent):
            fn = lambda p: js.solve(js.Projection(p, sets.Birkhoff()), throw=False)
            value, pull, out = jax.vjp(lambda p: ((s := fn(p)).value, s.success), p, has_aux=True)
            return value, pull(cotangent)[0], out

        for scale in (0.01, 1.0, 100.0):
            p = np.asarray(scale * rng.normal(size=(size, size)), precision)
            x, _, success = solved(p, np.cos(p))
            assert bool(success)
            bound = (1e-4 if precision == "float32" else 1e-8) * 4 * max(1, scale)
            np.testing.assert_allclose(x.sum(0), 1, atol=bound)
            np.testing.assert_allclose(x.sum(1), 1, atol=bound)
        vertex = np.eye(size)[rng.permutation(size)]
        far = np.asarray(20 * vertex + 0.1 * rng.normal(size=(size, size)), precision)
        x, gradient, _ = solved(far, np.cos(far))
        np.testing.assert_allclose(x, vertex, atol=2000 * eps)
        np.testing.assert_allclose(gradient, 0, atol=eps**0.5)


@pytest.mark.slow
def test_an_empty_polyhedron_is_proved(x64):
    """Farkas: r = G'z - w is 0 and h'z - lower'w is below 0."""
    G, h = _array(np.ones((1, 3))), _array([-1.0])
    region = sets.Polyhedron(G=G, h=h, lower=0.0)
    solution = js.solve(js.Projection(jnp.ones(3), region), throw=False)
    assert solution.result == js.RESULTS.infeasible
    z, w = np.asarray(solution.dual.inequality), np.asarray(solution.dual.lower)
    assert z.min() >= 0 and w.min() >= 0 and z @ np.asarray(h) < 0
    np.testing.assert_allclose(z @ np.asarray(G) - w, 0, atol=1e-6 * z.max())


@pytest.mark.parametrize(
    "region",
    [
        sets.Simplex(-1.0),
        sets.L1Ball(-1.0),
        sets.L2Ball(-1.0),
        sets.LinfBall(-1.0),
        sets.CappedSimplex(7.0),
        sets.CappedSimplex(1.0, -0.5),
        sets.Box(1.0, 0.0),
        sets.Box(lower=np.inf),
        sets.Halfspace(np.zeros(6, np.float32), -1.0),
        sets.Halfspace(np.ones(6, np.float32), -np.inf),
        sets.Affine(np.ones((2, 6), np.float32), np.array([1.0, 2.0], np.float32)),
        sets.Affine(np.zeros((1, 6), np.float32), np.ones(1, np.float32)),
        sets.Affine(np.ones((1, 6), np.float32), np.full(1, np.inf, np.float32)),
    ],
    ids=lambda region: type(region).__name__,
)
def test_an_empty_set_says_so(region):
    p = jnp.arange(6.0)
    solution = js.solve(js.Projection(p, region), throw=False)
    assert solution.result == js.RESULTS.infeasible
    assert bool(jnp.all(jnp.isnan(solution.value)))
    assert bool(jnp.all(jnp.isnan(region.project(p))))
    gradient = jax.grad(lambda p: jnp.sum(js.project(p, region)))(p)
    assert bool(jnp.all(jnp.isnan(gradient)))
    with pytest.raises(js.SolveError, match="infeasible"):
        js.solve(js.Projection(p, region))


def test_dykstra_does_not_call_an_empty_intersection_solved(x64):
    """The normals grow with every round: measured against them any gap is small in the end."""
    apart = sets.Intersection(sets.L2Ball(1.0), sets.Box(2.0, 3.0))
    problem = js.Projection(jnp.ones(3), apart)
    solution = js.solve(problem, tolerance=1e-2, max_steps=300, throw=False)
    assert solution.result == js.RESULTS.max_steps_reached
    crossed = sets.Intersection(sets.L2Ball(1.0), sets.Box(0.5, 0.2))
    solution = js.solve(js.Projection(jnp.ones(3), crossed), throw=False)
    assert solution.result == js.RESULTS.infeasible


def test_caps_of_any_size():
    """Infinite caps leave the simplex, caps of 0 one point."""
    p = jnp.array([1.0, 0.8, -1.0])
    solution = js.solve(js.Projection(p, sets.CappedSimplex(1.0, jnp.inf)))
    np.testing.assert_allclose(solution.value, [0.6, 0.4, 0.0], rtol=1e-6)
    slope = jax.grad(lambda total: js.project(p, sets.CappedSimplex(total, jnp.inf))[0])(1.0)
    np.testing.assert_allclose(slope, 0.5, rtol=1e-6)
    np.testing.assert_array_equal(js.solve(js.Projection(p, sets.CappedSimplex(0.0, 0.0))).value, 0)


def test_sums_that_differ_leave_no_matrix(x64):
    polytope_set = sets.TransportPolytope(jnp.array([1.0, 1.0]), jnp.array([1.0, 0.5]))
    solution = js.solve(js.Projection(jnp.zeros((2, 2)), polytope_set), throw=False)
    assert solution.result == js.RESULTS.infeasible


@pytest.mark.parametrize("name", marked(CASES))
def test_a_lane_in_a_batch_is_the_lane_alone(name):
    """And NaN in one touches no other."""
    with jax.enable_x64(True):
        p = points(name, 5, count=3)
        bad = p.at[(1, *[0] * (p.ndim - 1))].set(jnp.nan)
        x, solved = compiled(name)(bad)
        alone, _ = compiled(name)(p)
    assert list(np.asarray(solved)) == [True, False, True]
    np.testing.assert_allclose(x[0], alone[0], atol=1e-9)
    np.testing.assert_allclose(x[2], alone[2], atol=1e-9)


TIES = {
    # Point, and the derivative of the sum of x cos(i), as the docs say it is.
    "box": (sets.Box(0.0, 1.0), [0.0, 1.0, 0.5], [1, 1, 1]),
    "linf": (sets.LinfBall(1.0), [-1.0, 1.0, 0.0], [1, 1, 1]),
    "l1 inside": (sets.L1Ball(2.0), [1.0, -1.0, 0.0], [1, 1, 1]),
    "l2 inside": (sets.L2Ball(2.0), [2.0, 0.0, 0.0], [1, 1, 1]),
    "simplex": (sets.Simplex(1.0), [1.0, 0.0, -1.0], [0, 0, 0]),
    "sparse": (sets.KSparse(1), [1.0, 1.0, -1.0], [1, 0, 0]),
    "halfspace": (sets.Halfspace(np.float32([1, 0, 0]), 1.0), [1.0, 2.0, 3.0], [1, 1, 1]),
}


@pytest.mark.parametrize("name", list(TIES))
def test_ties(name):
    """At the boundary of a pattern the derivative is the documented one, in both modes."""
    region, point, diagonal = TIES[name]
    fn = lambda p: js.project(p, region)
    point = jnp.asarray(point)
    for mode in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(mode(fn)(point), np.diag(diagonal), atol=1e-6)


def _systems(rng):
    """Matrices of full, of low and of no rank, more rows than columns, rows of all sizes."""
    full, low = rng.normal(size=(3, 6)), rng.normal(size=(5, 2)) @ rng.normal(size=(2, 6))
    twice = np.concatenate([full, full[1:2], 0 * full[:1]])
    return {
        "full": full,
        "twice": twice,
        "low": low,
        "tall": np.concatenate([low, low[::-1], low]),
        "square": rng.normal(size=(6, 6)) + 3 * np.eye(6),
        "sizes": np.array([[1e-9], [1.0], [1e9]]) * full,
        "zeros": 0 * full,
        "none": full[:0],
    }


def _solved(A, p, x0):
    """The projection of p on x0 + null(A), by an orthonormal basis of the null space."""
    scaled = A / np.where(A.any(1), np.abs(A).max(1, initial=0), 1)[:, None]
    _, values, right = np.linalg.svd(scaled)
    null = right[np.sum(values > 1e-9) :]
    return x0 + null.T @ (null @ (p - x0))


def test_linear_equations_of_any_rank(dtype):
    rng = np.random.default_rng(0)
    p, x0 = rng.normal(size=(2, 6))
    for name, A in _systems(rng).items():
        region = sets.Affine(jnp.asarray(A, dtype), jnp.asarray(A @ x0, dtype))
        solution = jax.jit(lambda p, s: js.solve(js.Projection(p, s), throw=False))(
            jnp.asarray(p, dtype), region
        )
        assert solution.result == js.RESULTS.successful, name
        bound = 500 * np.finfo(dtype).eps
        np.testing.assert_allclose(solution.value, _solved(A, p, x0), atol=bound, err_msg=name)


def test_the_derivative_keeps_the_rank(x64):
    """Dependent rows that move together: against differences of NumPy's projection. Where b alone
    would make them contradict, that of the least squares is meant."""
    rng = np.random.default_rng(1)
    p, x0, dp, dx = rng.normal(size=(4, 6))
    for name, A in _systems(rng).items():
        if name in ("tall", "zeros", "none"):
            continue
        left = (name != "sizes") * rng.normal(size=(A.shape[0], A.shape[0]))
        right = np.diag(np.cos(np.arange(6)))

        def at(t, A=A, left=left, right=right, side=False):
            moved = (np.eye(A.shape[0]) + t * left) @ A @ (np.eye(6) + t * right)
            start = x0 + t * dx
            return moved @ start if side else _solved(moved, p + t * dp, start)

        def fn(A, b, p):
            return js.project(p, sets.Affine(A, b))

        db = (at(1e-5, side=True) - at(-1e-5, side=True)) / 2e-5
        pushed = jax.jvp(fn, (A, A @ x0, p), (A @ right + left @ A, db, dp))[1]
        wanted = (at(1e-5) - at(-1e-5)) / 2e-5
        np.testing.assert_allclose(pushed, wanted, atol=1e-7, err_msg=name)
    A = jnp.ones((2, 3))
    slope = jax.jacrev(lambda b: js.project(jnp.ones(3), sets.Affine(A, b)))(jnp.ones(2))
    np.testing.assert_allclose(slope, np.full((3, 2), 1 / 6), atol=1e-14)


def test_rows_that_contradict_a_little():
    """Below the tolerance they do not; where rounding hides the proof, nothing is claimed."""
    A, p = jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0 + 1e-5]]), jnp.ones(3)
    for gap, result in (
        (1e-4, js.RESULTS.successful),
        (1e-3, js.RESULTS.stalled),
        (1e-1, js.RESULTS.infeasible),
    ):
        region = sets.Affine(A, jnp.array([1.0, 1.0 + gap]))
        found = js.solve(js.Projection(p, region), throw=False)
        assert found.result == result, gap


def test_equal_neighbours_are_one_block():
    jacobian = jax.jacrev(lambda p: js.project(p, sets.Isotonic()))(jnp.array([1.0, 1.0, 2.0]))
    np.testing.assert_allclose(jacobian, [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]], atol=1e-6)


def test_repeated_eigenvalues_have_a_derivative(x64):
    """Of the positive part at a multiple of the identity: the identity, on symmetric matrices."""
    tangent = _array(np.random.default_rng(0).normal(size=(3, 3)))
    symmetric = (tangent + tangent.T) / 2
    fn = lambda p: js.project(p, sets.PSDCone())
    _, pushed = jax.jvp(fn, (2 * jnp.eye(3),), (tangent,))
    np.testing.assert_allclose(pushed, symmetric, atol=1e-12)
    _, pushed = jax.jvp(fn, (-2 * jnp.eye(3),), (tangent,))
    np.testing.assert_allclose(pushed, 0, atol=1e-12)


def test_pytrees(x64):
    """Balls and k-sparse sets read a pytree as one vector; bounds have its structure."""
    tree = {"a": jnp.array([3.0, -1.0]), "b": jnp.array([[0.5], [2.0]])}
    flat = jnp.array([3.0, -1.0, 0.5, 2.0])
    for region in (sets.L1Ball(2.0), sets.KSparse(2)):
        found = js.project(tree, region)
        assert jax.tree.map(jnp.shape, found) == {"a": (2,), "b": (2, 1)}
        leaves = jnp.concatenate([x.ravel() for x in jax.tree.leaves(found)])
        np.testing.assert_allclose(leaves, js.project(flat, region), atol=1e-14)
    bounds = sets.Box(upper=jax.tree.map(jnp.ones_like, tree))
    assert float(js.project(tree, bounds)["b"][1, 0]) == 1.0


@pytest.mark.slow
def test_an_intersection_of_polyhedra_is_the_one_that_dykstra_finds(x64):
    p = points("box", 11)[0]
    parts = (sets.Box(-0.5, 1.0).fit(p), sets.Halfspace(_array(_ROWS[0]), -0.3).fit(p))
    rounds = js.solve(IntersectionProjection(p, parts), tolerance=1e-10)
    program = js.solve(js.Projection(p, sets.Intersection(*parts)))
    assert program.stats.steps < 20
    np.testing.assert_allclose(rounds.value, program.value, atol=1e-8)


def test_a_sublevel_set_is_differentiable_in_what_its_function_captures(x64):
    """x = p / |p| r for |x|^2 <= r^2: dx/dr = p / |p|."""
    p = jnp.array([3.0, 4.0])

    def nearest(radius):
        return js.project(p, sets.Sublevel(lambda w: jnp.sum(w**2) - radius**2))

    np.testing.assert_allclose(nearest(2.0), [1.2, 1.6], atol=1e-8)
    np.testing.assert_allclose(jax.jacfwd(nearest)(2.0), [0.6, 0.8], atol=1e-7)


def test_a_formula_is_compiled_without_a_queue(x64):
    """`project` of a batch is the formula: no loop for a box, one for a simplex, and no gathers."""
    for region, loops in ((sets.Box(0.0, 1.0), 0), (sets.Simplex(), 1)):
        fn = jax.jit(jax.vmap(lambda p, region=region: js.project(p, region)))
        text = fn.lower(jnp.zeros((512, 8))).as_text()
        assert text.count("stablehlo.while") == loops
        assert "gather" not in text


def test_new_data_do_not_retrace():
    traces = []

    @eqx.filter_jit
    def fn(point, region):
        traces.append(None)
        return js.project(point, region)

    for total in (1.0, 2.0, 3):
        fn(jnp.ones(4), sets.Simplex(total))
    assert len(traces) == 1


def test_a_layer_learns_its_set():
    layer = js.ProjectionLayer(sets.L2Ball(1.0))
    gradient = eqx.filter_grad(lambda layer: jnp.sum(layer(jnp.array([3.0, 4.0]))))(layer)
    np.testing.assert_allclose(gradient.set.radius, 1.4, rtol=1e-6)


@pytest.mark.parametrize(
    ("region", "point", "error", "match"),
    [
        (sets.Box(lower=jnp.zeros(2)), jnp.ones(3), ValueError, r"Box: `lower` is float32\[2\]"),
        (
            sets.Box(lower={"a": jnp.zeros(2), "b": jnp.zeros(3)}),
            {"a": jnp.ones(3), "b": jnp.ones(2)},
            ValueError,
            r"Box: `lower` is {'a': \[2\], 'b': \[3\]}, but `point` is {'a': \[3\], 'b': \[2\]}",
        ),
        (sets.L1Ball(), jnp.ones(0), ValueError, r"L1Ball: `point` must have an entry"),
        (sets.Simplex(), jnp.ones((2, 2)), ValueError, r"Simplex: `point` must be a vector"),
        (sets.Simplex(jnp.ones(2)), jnp.ones(3), ValueError, r"Simplex: `total` is float32\[2\]"),
        (sets.Simplex(), jnp.ones(3, int), TypeError, r"Simplex: `point` is int32\[3\]"),
        (sets.Simplex(np.float16(1)), jnp.ones(3), TypeError, "one precision"),
        (sets.Simplex(True), jnp.ones(3), TypeError, "Simplex: `total` has dtype bool"),  # pyright: ignore
        (sets.Simplex("f"), jnp.ones(3), TypeError, "Simplex: `total` must be an array; got 'f'"),  # pyright: ignore
        (sets.Polyhedron(G=jnp.ones((1, 2))), jnp.ones(2), TypeError, "`h` is None"),
        (sets.Affine(jnp.ones((1, 2)), jnp.ones(2)), jnp.ones(2), ValueError, "Affine: `b`"),
        (sets.Birkhoff(), jnp.ones((2, 3)), ValueError, "Birkhoff: `point` must be a square"),
        (
            sets.TransportPolytope(jnp.ones(2), jnp.ones(2)),
            jnp.ones((2, 3)),
            ValueError,
            "TransportPolytope: `columns`",
        ),
        (sets.PSDCone(), jnp.ones((2, 3)), ValueError, "PSDCone: `point`"),
        (sets.KSparse(4), jnp.ones(3), ValueError, "KSparse: `k` is 4"),
        (sets.Sublevel(lambda w: w), jnp.ones(3), TypeError, "Sublevel: `fn` must return"),
        (sets.Sublevel(1), jnp.ones(3), TypeError, "Sublevel: `fn` must be a function"),  # pyright: ignore
        ("a simplex", jnp.ones(3), TypeError, "`set` must be one of jaxsolve.sets"),
    ],
)
def test_errors_name_the_field(region, point, error, match):
    with pytest.raises(error, match=match):
        js.project(point, region)


@pytest.mark.parametrize("weight", ["a", "f"])
def test_a_weight_is_a_number(weight):
    with pytest.raises(TypeError, match=f"`weight` must be an array; got '{weight}'"):
        js.penalties.L1(weight)


@pytest.mark.filterwarnings("ignore:A JAX array is being set as static")
def test_a_traced_count_is_refused_by_name():
    with pytest.raises(TypeError, match="KSparse: `k` must be an int"):
        jax.jit(lambda k: js.project(jnp.ones(3), sets.KSparse(k)))(2)


def test_only_convex_sets_intersect():
    with pytest.raises(TypeError, match="KSparse, is not convex"):
        sets.Intersection(sets.Box(0.0), sets.KSparse(1))


def test_capped_thresholds_do_not_run_in_circles(x64):
    """At 480 Newton's method went to and fro between two pieces."""
    p = jnp.concatenate([points("capped", seed) for seed in range(480, 1480)])
    region = sets.CappedSimplex(2.2, 0.9)
    found = jax.vmap(lambda p: js.solve(js.Projection(p, region), throw=False))(p)
    assert bool(jnp.all(found.success))
    x = found.value
    np.testing.assert_allclose(jnp.sum(x, axis=1), 2.2, rtol=1e-12)
    assert float(jnp.min(x)) >= 0 and float(jnp.max(x)) <= 0.9


EMPTY = {
    "box": sets.Box(jnp.array([0.0, 1.0, 0.0]), 0.5),
    "l1": sets.L1Ball(-1.0),
    "l2": sets.L2Ball(-1.0),
    "linf": sets.LinfBall(-1.0),
    "halfspace": sets.Halfspace(jnp.zeros(3), -1.0),
    "simplex": sets.Simplex(-1.0),
    "capped": sets.CappedSimplex(4.0, jnp.ones(3)),
    "affine": sets.Affine(jnp.ones((2, 3)), jnp.array([1.0, 2.0])),
    "polyhedron": sets.Polyhedron(lower=1.0, upper=0.0),
    "intersection": sets.Intersection(sets.Box(1.0, 0.5), sets.L2Ball(1.0)),
}


@pytest.mark.parametrize("name", marked(EMPTY))
def test_an_empty_set_is_found_before_and_by_a_solve(name):
    empty, point = EMPTY[name], jnp.array([0.2, 0.3, -0.1])
    distance = lambda y, args: jnp.sum((y - args) ** 2)
    composite = js.Composite(distance, js.penalties.Indicator(empty), point)
    for problem, init in ((js.Projection(point, empty), None), (composite, point)):
        assert any("empty" in text or "infeasible" in text for text in js.check(problem))
        assert js.solve(problem, init=init, throw=False).result == js.RESULTS.infeasible
    for other in (sets.Box(), sets.CappedSimplex(1.5), sets.Polyhedron(lower=0.0), sets.L2Ball()):
        assert js.check(js.Projection(point, other)) == []
        assert js.check(js.Composite(distance, js.penalties.Indicator(other), point)) == []


@pytest.mark.slow
def test_a_polyhedron_without_points_is_infeasible_as_a_penalty():
    # No row contradicts itself: it takes a solve.
    empty = sets.Polyhedron(G=jnp.ones((1, 3)), h=-jnp.ones(1), lower=0.0)
    distance = lambda y, args: jnp.sum((y - args) ** 2)
    problem = js.Composite(distance, js.penalties.Indicator(empty), jnp.ones(3))
    assert js.solve(problem, init=jnp.ones(3), throw=False).result == js.RESULTS.infeasible
