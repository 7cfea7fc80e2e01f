"""Proximal operators against closed forms, solvers that are not ours, and differences."""

import clarabel
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.test_util import check_grads

import jaxsolve as js
from jaxsolve import penalties, sets

LABELS = np.array([0, 1, 0, 2, 1, 2])


def signal_oracle(z, weight):
    """Total variation by Clarabel: |x - z|^2 / 2 + w't with -t <= Dx <= t."""
    n = len(z)
    D = np.diff(np.eye(n), axis=0)
    P = scipy.sparse.block_diag([np.eye(n), np.zeros((n - 1, n - 1))], format="csc")
    rows = np.block([[D, -np.eye(n - 1)], [-D, -np.eye(n - 1)]])
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-13
    out = clarabel.DefaultSolver(
        P,
        np.concatenate([-z, np.broadcast_to(weight, n - 1)]),
        scipy.sparse.csc_matrix(rows),
        np.zeros(2 * n - 2),
        [clarabel.NonnegativeConeT(2 * n - 2)],
        settings,
    ).solve()
    return np.array(out.x)[:n]


def jump_conditions(x, z, weight):
    """How far x is from the prox of z: its dual variable, and where that must be at a bound."""
    dual = np.cumsum(x - z)
    jump = np.diff(x)
    scale = np.abs(z).max() + np.max(weight) + 1e-300
    free = np.abs(jump) <= 1e-9 * scale
    off = np.where(
        free, np.maximum(np.abs(dual[:-1]) - weight, 0), dual[:-1] - weight * np.sign(jump)
    )
    return max(np.abs(off).max(initial=0), abs(dual[-1])) / scale


CASES = {
    "l1": (lambda w: penalties.L1(w), (6,), (6,)),
    "elastic net": (lambda w: penalties.ElasticNet(w, 0.5 * w), (6,), (6,)),
    "group": (lambda w: penalties.Group(w, labels=LABELS), (3,), (6,)),
    "rows": (lambda w: penalties.Group(w), (4,), (4, 2)),
    "nuclear": (lambda w: penalties.Nuclear(w), (), (4, 3)),
    "wide": (lambda w: penalties.Nuclear(w), (), (2, 4)),
    "signal": (lambda w: penalties.TotalVariation(w), (7,), (8,)),
}


def drawn(name, seed=0):
    make, weights, shape = CASES[name]
    rng = np.random.default_rng(seed)
    size = 3.0 if name == "signal" else 1.0
    return make, size * rng.uniform(0.3, 0.9, size=weights), 2 * rng.normal(size=shape), 0.8


@pytest.mark.parametrize("name", CASES)
def test_the_prox_is_least(name, x64):
    """No small change of the result lowers h(y) + |y - z|^2 / (2 s), whatever its direction."""
    make, weight, z, step = drawn(name)
    penalty = make(jnp.asarray(weight))
    found = js.prox(penalty, jnp.asarray(z), step)
    objective = jax.jit(lambda y: penalty.value(y) + jnp.sum((y - z) ** 2) / (2 * step))
    least, rng = float(objective(found)), np.random.default_rng(1)
    assert np.isfinite(least)
    for size in (1e-1, 1e-3, 1e-5):
        for _ in range(50):
            move = size * rng.normal(size=z.shape)
            # Strongly convex with modulus 1 / s: this much higher at least.
            gain = np.sum(move**2) / (2 * step)
            assert float(objective(found + move)) >= least + gain - 1e-14
    remainder = penalty.remainder(jnp.asarray(z), jnp.asarray(step))
    np.testing.assert_allclose(remainder, z - np.asarray(found), atol=1e-14)


@pytest.mark.parametrize(
    "name",
    [n if n in ("group", "signal") else pytest.param(n, marks=pytest.mark.slow) for n in CASES],
)
def test_derivatives_in_point_weight_and_step(name, x64):
    make, weight, z, step = drawn(name)
    fn = jax.jit(lambda w, z, s: js.prox(make(w), z, s))
    args = (jnp.asarray(weight), jnp.asarray(z), jnp.asarray(step))
    check_grads(fn, args, order=2, modes=("fwd", "rev"), eps=1e-6, rtol=1e-4, atol=1e-5)
    # The Jacobian in the point is symmetric, its eigenvalues between 0 and 1.
    jacobian = np.asarray(jax.jacrev(fn, argnums=1)(*args)).reshape(z.size, z.size)
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-12)
    values = np.linalg.eigvalsh(jacobian)
    assert values.min() > -1e-12 and values.max() < 1 + 1e-12
    assert 0 < np.trace(jacobian) < z.size
    if make(args[0]).projects(args[1]):
        np.testing.assert_allclose(jacobian @ jacobian, jacobian, atol=1e-12)


def test_closed_forms(dtype, strict):
    z = jnp.asarray([3.0, -0.5, 1.0], dtype)
    np.testing.assert_array_equal(js.prox(penalties.L1(1.0), z), [2.0, 0.0, 0.0])
    np.testing.assert_array_equal(js.prox(penalties.ElasticNet(1.0, 3.0), z), [0.5, 0.0, 0.0])
    rows = jnp.asarray([[3.0, 4.0], [0.3, 0.4]], dtype)
    found = js.prox(penalties.Group(2.5), rows)
    np.testing.assert_allclose(found, [[1.5, 2.0], [0.0, 0.0]], rtol=1e-6)
    found = js.prox(penalties.Nuclear(1.0), jnp.diag(z))
    np.testing.assert_allclose(found, np.diag([2.0, 0.0, 0.0]), atol=1e-6)
    assert found.dtype == dtype
    tree = {"a": z, "b": rows}
    found = js.prox(penalties.L1({"a": jnp.asarray(9.0, dtype), "b": 0.0}), tree, 0.5)
    np.testing.assert_array_equal(found["a"], np.zeros(3))
    np.testing.assert_array_equal(found["b"], rows)


def test_infinite_weights_hold_and_zero_weights_leave():
    z = jnp.array([1.0, 2.0, 0.0])
    weight = jnp.array([jnp.inf, 0.0, 0.0])
    np.testing.assert_array_equal(js.prox(penalties.L1(weight), z), [0.0, 2.0, 0.0])
    assert float(penalties.L1(weight).value(jnp.array([0.0, 2.0, 1.0]))) == 0
    slopes = jax.jacrev(lambda z: js.prox(penalties.L1(weight), z))(z)
    # Free without a weight, also at 0.
    np.testing.assert_array_equal(slopes, np.diag([0.0, 1.0, 1.0]))
    slopes = jax.jacrev(lambda z: js.prox(penalties.Group(jnp.inf), z))(z)
    np.testing.assert_array_equal(slopes, np.zeros((3, 3)))


def test_derivatives_at_kinks_are_those_of_the_zero_side(x64):
    cases = {
        "l1": (penalties.L1(1.0), jnp.array([1.0, -1.0])),
        "group": (penalties.Group(5.0), jnp.array([[3.0, 4.0]])),
        "zero group": (penalties.Group(1.0), jnp.zeros((1, 2))),
        "nuclear": (penalties.Nuclear(1.0), jnp.eye(2)),
        "zero matrix": (penalties.Nuclear(1.0), jnp.zeros((2, 3))),
    }
    for name, (penalty, z) in cases.items():
        for order in (jax.jacfwd, jax.jacrev):
            slopes = order(lambda z, p=penalty: js.prox(p, z))(z)
            np.testing.assert_array_equal(slopes, 0 * slopes, err_msg=name)
    # Equal singular values beyond the kink: 1 - level / sigma on what turns, 1 on what stretches.
    slopes = jax.jacfwd(lambda z: js.prox(penalties.Nuclear(1.0), z))(2 * jnp.eye(2))
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    np.testing.assert_allclose(np.tensordot(slopes, turn), 0.5 * turn, atol=1e-14)
    np.testing.assert_allclose(np.tensordot(slopes, np.eye(2)), np.eye(2), atol=1e-14)


def test_signals_against_clarabel(x64):
    rng = np.random.default_rng(0)
    solve = jax.jit(lambda z, weight: js.prox(penalties.TotalVariation(weight), z))
    for n in (2, 40):
        z = np.cumsum(rng.normal(size=n))
        for size in (0.1, 1.0, 10.0):
            weight = size * rng.uniform(0, 2, size=n - 1)
            np.testing.assert_allclose(solve(z, weight), signal_oracle(z, weight), atol=1e-6)


def test_signals_end_exactly_in_a_batch(x64):
    """Noise, ramps, steps and small integers (all ties), by their optimality conditions."""
    rng, n = np.random.default_rng(0), 64
    place = np.arange(n)
    many = [rng.normal(size=n) for _ in range(100)]
    many += [np.cumsum(rng.normal(size=n)) for _ in range(100)]
    many += [rng.integers(-2, 3, size=n).astype(float) for _ in range(400)]
    many += [0.1 * place, 5 * np.sin(place / 5), np.zeros(n), 1e6 + 1.0 * (place > 9)]
    many = np.stack(many)
    solve = jax.jit(jax.vmap(lambda z, w: js.prox(penalties.TotalVariation(w), z), (0, None)))
    for weight in (0.0, 0.5, 1.0, 3.0, 50.0):
        found = np.asarray(solve(many, jnp.asarray(weight)))
        worst = max(jump_conditions(x, z, weight) for x, z in zip(found, many, strict=True))
        assert worst < 1e-12


def test_signals_in_float32():
    rng = np.random.default_rng(0)
    z = np.repeat(rng.normal(size=8), 32) + 0.1 * rng.normal(size=256)
    found = js.prox(penalties.TotalVariation(1.0), jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(found, signal_oracle(z, 1.0), atol=2e-5)
    assert len(np.unique(np.asarray(found))) < 30


def test_bad_input_is_refused():
    z = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"L1: `weight` is float32\[4\], but `point` is float32"):
        js.prox(penalties.L1(jnp.ones(4)), z)
    with pytest.raises(TypeError, match=r"must be one array or have the structure of `point`"):
        js.prox(penalties.L1({"a": 1.0, "b": 2.0}), z)
    with pytest.raises(TypeError, match="Cast them to one precision"):
        js.prox(penalties.L1(jnp.ones((), jnp.float16)), z)
    with pytest.raises(ValueError, match="the last two axes are the matrix"):
        js.prox(penalties.Nuclear(1.0), z[0])
    with pytest.raises(ValueError, match=r"`point` is float32\[0\], but a signal has"):
        js.prox(penalties.TotalVariation(1.0), jnp.zeros(0))
    with pytest.raises(ValueError, match=r"`labels` has shape \[6\]"):
        js.prox(penalties.Group(1.0, labels=LABELS), z)
    with pytest.raises(ValueError, match="`labels` must be integers"):
        penalties.Group(1.0, labels=[0.5])
    with pytest.raises(TypeError, match=r"`point\['a'\]` is int32\[3\]"):
        js.prox(penalties.L1(1.0), {"a": jnp.arange(3)})
    with pytest.raises(ValueError, match=r"`step_size` must be a scalar; got shape \(3,\)"):
        js.prox(penalties.L1(1.0), z, jnp.ones(3))
    with pytest.raises(TypeError, match="one of jaxsolve.penalties"):
        js.prox(lambda y: y, z)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`step_size` must not be negative; got -1"):
        js.prox(penalties.L1(1.0), z, -1.0)
    with pytest.raises(TypeError, match="`step_size` must be a number; got 'a'"):
        js.prox(penalties.L1(1.0), z, "a")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`penalty`, Group, has a negative weight"):
        js.prox(penalties.Group(-1.0), z)


def test_a_lane_without_a_prox_is_nan_alone():
    steps, weights = jnp.array([0.5, -0.5, 0.5]), jnp.array([1.0, 1.0, -1.0])
    for kind in (penalties.L1, penalties.Group, penalties.Nuclear):
        fn = lambda s, w: js.prox(kind(w), jnp.full((2, 2), 3.0), s)  # noqa: B023
        found = jax.jit(jax.vmap(fn))(steps, weights)
        np.testing.assert_array_equal(np.isnan(found).all((1, 2)), [False, True, True])
        assert np.isfinite(found[0]).all()


@pytest.mark.slow
def test_images_and_their_derivatives(x64):
    """By the dual: |u| <= w, and u along the gradient at length w wherever that is not 0."""
    rng, w = np.random.default_rng(0), 0.3
    z = np.kron(rng.normal(size=(2, 2)), np.ones((3, 3))) + 0.2 * rng.normal(size=(6, 6))
    solve = jax.jit(lambda w, z: js.prox(penalties.TotalVariation(w), z))
    found = np.asarray(solve(w, z))
    objective = jax.jit(
        lambda y: penalties.TotalVariation(w).value(y) + 0.5 * jnp.sum((y - z) ** 2)
    )
    least = float(objective(found))
    for size in (1e-1, 1e-3):
        for _ in range(50):
            move = size * rng.normal(size=z.shape)
            assert float(objective(found + move)) >= least + np.sum(move**2) / 2 - 1e-9
    # Along a line a signal, repeated, is the signal's own.
    signal = np.cumsum(rng.normal(size=6))
    wide = solve(w, np.tile(signal, (6, 1)))
    alone = js.prox(penalties.TotalVariation(w), jnp.asarray(signal))
    np.testing.assert_allclose(wide, np.tile(alone, (6, 1)), atol=1e-8)

    cotangent = jnp.cos(jnp.arange(36.0)).reshape(6, 6)
    total = jax.jit(lambda w, z: jnp.sum(cotangent * solve(w, z)))
    slopes = jax.jit(jax.grad(total, argnums=(0, 1)))(w, jnp.asarray(z))
    move, step = rng.normal(size=z.shape), 1e-5
    measured = (total(w, z + step * move) - total(w, z - step * move)) / (2 * step)
    np.testing.assert_allclose(np.sum(slopes[1] * move), measured, rtol=1e-4)
    measured = (total(w + step, z) - total(w - step, z)) / (2 * step)
    np.testing.assert_allclose(slopes[0], measured, rtol=1e-4)


def test_the_indicator_projects(x64):
    penalty = penalties.Indicator(sets.Box(-1.0, 0.5))
    z = jnp.array([2.0, -3.0, 0.1])
    for step in (0.1, 10.0):
        np.testing.assert_array_equal(js.prox(penalty, z, step), [0.5, -1.0, 0.1])
    assert float(penalty.value(z)) == np.inf
    assert float(penalty.value(js.prox(penalty, z))) == 0
    with pytest.raises(TypeError, match="`set` must be one of jaxsolve.sets"):
        js.prox(penalties.Indicator(1.0), z)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_nothing_is_least_on_an_empty_set(x64):
    """The end of a projection that failed is no element to minimise on."""
    nothing = sets.Polyhedron(G=jnp.ones((1, 3)), h=jnp.array([-1.0]), lower=0.0)
    for region in (sets.Box(1.0, 0.0), nothing):
        problem = js.Composite(lambda y, _: jnp.sum((y - 1) ** 2), penalties.Indicator(region))
        assert not js.solve(problem, init=jnp.zeros(3), throw=False).success
