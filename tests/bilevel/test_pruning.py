"""Pruning: exact masks, solvers beside NumPy, and supports that are known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsolve import RESULTS, solve
from jaxsolve.bilevel.bip import BiP
from jaxsolve.bilevel.fisher import MFACInverse
from jaxsolve.bilevel.magnitude import IterativeMagnitudePruning, MagnitudePruning
from jaxsolve.bilevel.masks import Channels, Filters, Unstructured, largest_of
from jaxsolve.bilevel.obs import OBS
from jaxsolve.bilevel.pruning import Pruning
from jaxsolve.core.adjoint import Implicit
from jaxsolve.core.solution import Guess, Point

fast, slow = pytest.mark.fast, pytest.mark.slow

BRIEF = {
    "bip": BiP(steps=4),
    "mfac": BiP(steps=4, linear_solver=MFACInverse(3)),
    "magnitude": MagnitudePruning(steps=4),
    "iterative": IterativeMagnitudePruning(steps=2),
    "obs": OBS(steps=2, recomputations=3, inverse=MFACInverse(4, 1e-3)),
}


def squares(params, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ params["w"][:, 0] + params["b"] - y) ** 2)


def regression(sparsity=0.85, count=250, size=20, seed=0, dtype=jnp.float32, **options):
    """Three of the features matter; the start is random."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, size))
    y = x[:, :3].sum(axis=1) + 0.5
    params = {"b": np.zeros(()), "w": 0.1 * rng.normal(size=(size, 1))}
    params, data = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, (x, y)))
    return Pruning(squares, params, data, sparsity=sparsity, batch_size=32, **options)


# --- masks -------------------------------------------------------------------------------------


def ranked(values, count):
    """The first `count` of a stable sort from the largest down."""
    chosen = np.zeros(len(values), bool)
    chosen[np.argsort(-values, kind="stable")[:count]] = True
    return chosen


@fast
def test_the_largest_are_those_of_a_sort(dtype):
    rng = np.random.default_rng(0)
    cases = [
        rng.normal(size=31),
        rng.integers(-2, 3, size=31).astype(float),
        np.array([0.0, -0.0, 1e-30, -1e-30, np.inf, -np.inf, 3.0, 3.0, -3.0, 0.0]),
        np.zeros(7),
    ]
    found = jax.jit(largest_of)
    for values in cases:
        values = values.astype(dtype)
        for count in range(len(values) + 1):
            chosen = found(jnp.asarray(values), jnp.asarray(count))
            np.testing.assert_array_equal(chosen, ranked(values, count))
    batch = np.stack([rng.normal(size=9) for _ in range(3)]).astype(dtype)
    chosen = jax.vmap(found, (0, None))(jnp.asarray(batch), jnp.asarray(4))
    np.testing.assert_array_equal(chosen, [ranked(row, 4) for row in batch])


def kernels():
    rng = np.random.default_rng(1)
    return [
        rng.normal(size=(3, 3, 4, 10)),
        rng.normal(size=(3, 3, 10, 5)),
        rng.normal(size=(12, 7)),
    ]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_unstructured_masks_have_one_threshold(sparsity):
    squares = [x**2 for x in kernels()]
    total = 360 + 450 + 84
    assert Unstructured().units([x.shape for x in squares]) == (total,)
    count = total - int(sparsity * total)
    masks = Unstructured().masks([jnp.asarray(x) for x in squares], jnp.array([count]))
    flat = np.concatenate([x.ravel() for x in squares]).astype(np.float32)
    np.testing.assert_array_equal(
        np.concatenate([np.asarray(m).ravel() for m in masks]), ranked(flat, count)
    )
    assert Unstructured().counts(masks).tolist() == [count]


@pytest.mark.parametrize(
    "structure, axis",
    [
        (Filters(), -1),
        pytest.param(Channels(), -2, marks=slow),
        pytest.param(Filters(0), 0, marks=slow),
    ],
)
def test_slices_are_kept_whole(structure, axis):
    squares = [x**2 for x in kernels()]
    units = structure.units([x.shape for x in squares])
    assert units == tuple(x.shape[axis] for x in squares)
    kept = np.array([n - int(0.6 * n) for n in units])
    masks = structure.masks([jnp.asarray(x) for x in squares], jnp.asarray(kept))
    assert structure.counts(masks).tolist() == kept.tolist()
    for x, mask, count in zip(squares, masks, kept, strict=True):
        norms = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).sum(axis=1)
        slices = np.moveaxis(np.asarray(mask), axis, 0).reshape(x.shape[axis], -1)
        expected = ranked(norms.astype(np.float32), count)
        np.testing.assert_array_equal(slices, np.repeat(expected[:, None], slices.shape[1], axis=1))


# --- the problem -------------------------------------------------------------------------------


@fast
def test_bad_input_is_named():
    data = (jnp.ones((6, 2)), jnp.ones(6))
    params = {"b": jnp.zeros(()), "w": jnp.ones((2, 1))}

    def build(**changes):
        given = {"loss": squares, "params": params, "data": data, "sparsity": 0.5} | changes
        return Pruning(**given)

    with pytest.raises(ValueError, match=r"`sparsity` must be a number in \[0, 1\); got 1.0"):
        build(sparsity=1.0)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1; got 0"):
        build(batch_size=0)
    with pytest.raises(TypeError, match=r"no array .*`params\['w'\]` is float32\[2\]"):
        build(params={"w": jnp.ones(2)})
    with pytest.raises(TypeError, match="Filters takes arrays of at least 3 axes"):
        build(structure=Filters())
    with pytest.raises(ValueError, match=r"`axis` is 3, but .* shape \[2, 1\]"):
        build(structure=Filters(3), prunable=lambda path, leaf: "w" in path)
    with pytest.raises(ValueError, match=r"`data\[1\]` is .*\[5\], but `data\[0\]` is .*\[6, 2\]"):
        build(data=(jnp.ones((6, 2)), jnp.ones(5)))
    with pytest.raises(TypeError, match=r"real scalar \(shape \(\)\), not float32\[6\]"):
        solve(build(loss=lambda p, b: b[0] @ p["w"][:, 0]))
    with pytest.raises(TypeError, match="pair"):
        solve(build(), init=params)
    with pytest.raises(ValueError, match=r"weights of `init` are .*\[3, 1\].* are .*\[2, 1\]"):
        wide = {"b": jnp.zeros(()), "w": jnp.ones((3, 1))}
        solve(build(loss=lambda p, b: jnp.sum(p["w"])), init=(wide, wide))
    with pytest.raises(ValueError, match=r"`rewind` is .*, but `params` are"):
        solve(build(), IterativeMagnitudePruning(2, rewind={"w": jnp.ones((2, 1))}))
    with pytest.raises(ValueError, match=r"`rate` must be in \(0, 1\); got 1.0"):
        IterativeMagnitudePruning(2, rate=1.0)
    with pytest.raises(TypeError, match="`linear_solver` has `block_size`"):
        solve(build(), BiP(2, linear_solver=MFACInverse(block_size=4)))
    with pytest.raises(TypeError, match="`inverse` has `gradients`"):
        solve(build(), OBS(2, inverse=MFACInverse(gradients=lambda x, y, args: y)))


@pytest.mark.parametrize("name", [n if n == "obs" else pytest.param(n, marks=slow) for n in BRIEF])
def test_a_value_is_a_pruned_network(name):
    """Counts are exact, pruned weights 0, and the residual is the gradient over all 250 samples,
    seven batches of 32 and the rest."""
    problem = regression(penalty=0.01)
    found = eqx.filter_jit(lambda p: solve(p, BRIEF[name]))(problem)
    assert found.result == RESULTS.approximate
    mask, params = found.value
    w, m = np.asarray(params["w"], np.float64), np.asarray(mask["w"])
    assert sorted(np.unique(m)) == [0, 1] and m.sum() == 3 and mask["b"] == 1
    np.testing.assert_array_equal(w[m == 0], 0)
    x, y = (np.asarray(a, np.float64) for a in problem.data)
    off = x @ w[:, 0] + float(params["b"]) - y
    slope = x.T @ off / 250 + 0.01 * w[:, 0]
    slope = np.append(m[:, 0] * slope, off.mean() + 0.01 * float(params["b"]))
    assert found.stats.residual.primal == 0
    np.testing.assert_allclose(found.stats.residual.dual, np.abs(slope).max(), rtol=1e-4)


def test_wrong_points_are_seen():
    prepared, (mask, params) = regression().prepare(None)
    residual = eqx.filter_jit(prepared.residual)

    def primal(mask, params):
        return float(residual(Point((mask, params))).primal)

    assert primal(mask, params) == 17
    right = {"b": mask["b"], "w": jnp.zeros_like(mask["w"]).at[:3].set(1)}
    outside = jnp.abs(params["w"][3:]).max()
    np.testing.assert_allclose(primal(right, params), outside)
    assert (
        primal({"b": mask["b"], "w": 0.5 * right["w"]}, jax.tree.map(jnp.zeros_like, params))
        == 0.25
    )


@fast
def test_no_derivative_is_claimed():
    def total(penalty, adjoint=None):
        return solve(regression(penalty=penalty), BRIEF["bip"], adjoint=adjoint).value[1]["w"].sum()

    assert jax.grad(total)(0.1) == 0.0
    with pytest.raises(TypeError, match="no optimality system"):
        total(0.1, Implicit())


@fast
def test_nan_in_the_data():
    problem = regression()
    x, y = problem.data
    spoilt = eqx.tree_at(lambda p: p.data, problem, (x.at[3, 2].set(jnp.nan), y))
    assert solve(spoilt, BRIEF["bip"], throw=False).result == RESULTS.nonfinite_input


def test_a_batch_of_all_data_is_all_data():
    data = jnp.arange(5.0)
    loss = lambda params, batch: jnp.mean(batch) * jnp.sum(params["w"])
    problem = Pruning(loss, {"w": jnp.ones((2, 2))}, data, sparsity=0.5, batch_size=7)
    prepared, _ = problem.prepare(None)
    np.testing.assert_array_equal(prepared.sample(jax.random.key(0)), data)


@slow
def test_leaves_that_are_pruned_can_be_chosen():
    params = {"a": jnp.ones((4, 3)), "b": jnp.ones((2, 5)), "c": jnp.ones(6), "act": jax.nn.relu}

    def loss(params, batch):
        parts = [jnp.sum((params[k] - 1) ** 2) for k in "abc"]
        return params["act"](sum(parts)) + 0 * jnp.mean(batch)

    problem = Pruning(loss, params, jnp.ones(5), sparsity=0.5,
                      prunable=lambda path, leaf: path in ("['a']", "['c']"))  # fmt: skip
    mask, found = solve(problem, BRIEF["magnitude"]).value
    assert int(mask["a"].sum() + mask["c"].sum()) == 9 and int(mask["b"].sum()) == 10
    assert found["act"] is jax.nn.relu


def test_another_sparsity_is_no_new_program():
    traces = []

    def counted(params, batch):
        traces.append(1)
        return squares(params, batch)

    base = regression()
    for sparsity, kept in ((0.85, 3), (0.5, 10)):
        before = len(traces)
        problem = Pruning(counted, base.params, base.data, sparsity=sparsity, batch_size=32)
        for name in ("bip", "iterative"):
            assert int(solve(problem, BRIEF[name]).value[0]["w"].sum()) == kept
    assert before > 0 and len(traces) == before


# --- the solvers -------------------------------------------------------------------------------


def quadratic(dtype):
    """One sample, so that every batch is the same one."""
    rng = np.random.default_rng(3)
    a, b, start = rng.normal(size=(6, 8)), rng.normal(size=6), rng.normal(size=(8, 1))

    def loss(params, batch):
        a, b = batch
        return 0.5 * jnp.mean(jnp.sum((a @ params["w"][:, 0] - b) ** 2, axis=-1))

    data = (jnp.asarray(a, dtype)[None], jnp.asarray(b, dtype)[None])
    problem = Pruning(loss, {"w": jnp.asarray(start, dtype)}, data, sparsity=0.5, penalty=0.1,
                      batch_size=4)  # fmt: skip
    return problem, (lambda z: a.T @ (a @ z - b)), start[:, 0]


@pytest.mark.parametrize(
    "kind", [pytest.param(0.0, marks=slow), 0.3, pytest.param(None, marks=slow), "mfac"]
)
def test_bip_is_its_recurrence(dtype, strict, kind):
    problem, gradient, theta = quadratic(dtype)
    gamma, rate, momentum, samples, damping, number = 0.1, 0.02, 0.9, 3, 0.2, 3
    score, velocity, held = np.abs(theta), np.zeros(8), []
    mask = ranked(score, 4)
    for _ in range(9):
        q = gradient(mask * theta)
        velocity = momentum * velocity + mask * q + gamma * theta
        theta = theta - rate * velocity
        held = [*held, mask * q][-number:]
        q = gradient(mask * theta)
        if kind == "mfac":
            rows = np.stack(held)
            fisher = (gamma + damping) * np.eye(8) + samples / len(held) * rows.T @ rows
            reply = np.linalg.solve(fisher, mask * q)
        else:
            reply = (1 / gamma if kind is None else kind) * mask * q
        score = score - 20 * rate * (theta - reply) * q
        mask = ranked(score, 4)
    # With 1/gamma the implicit term, which only raises scores of kept weights, holds the mask.
    assert np.array_equal(mask, ranked(np.abs(quadratic(dtype)[2]), 4)) == (kind is None)

    optimisers = optax.sgd(rate, momentum), optax.sgd(20 * rate)
    if kind == "mfac":
        inverse = MFACInverse(number, damping, samples)
        solver = BiP(9, *optimisers, linear_solver=inverse)
    else:
        solver = BiP(9, *optimisers, implicit_coef=kind)
    found = eqx.filter_jit(lambda p: solve(p, solver))(problem)
    close = 1e-10 if dtype == jnp.float64 else 2e-4
    np.testing.assert_array_equal(found.value[0]["w"][:, 0], mask)
    np.testing.assert_allclose(found.value[1]["w"][:, 0], mask * theta, rtol=close, atol=close)
    np.testing.assert_allclose(found.state.scores[0][:, 0], score, rtol=close, atol=close)
    assert found.value[1]["w"].dtype == dtype


def test_magnitude_pruning_is_its_recurrence(dtype, strict):
    problem, gradient, theta = quadratic(dtype)
    mask = ranked(theta**2, 4)
    theta = mask * theta
    for _ in range(5):
        theta = theta - 0.02 * mask * (gradient(theta) + 0.1 * theta)
    found = solve(problem, MagnitudePruning(5, optax.sgd(0.02)))
    np.testing.assert_array_equal(found.value[0]["w"][:, 0], mask)
    np.testing.assert_allclose(found.value[1]["w"][:, 0], theta, rtol=2e-5)


def test_rounds_prune_a_fifth_of_what_is_left():
    """From 60 weights to 12: 48, 39, 31, 25, 20, 16, 13, 12; masks are nested, each the largest of
    what was trained."""
    rng = np.random.default_rng(0)
    start = {"w": jnp.asarray(rng.normal(size=(60, 1)), jnp.float32)}
    goal = jnp.asarray(rng.normal(size=60), jnp.float32)

    def loss(params, batch):
        return 0.5 * jnp.sum((params["w"][:, 0] - goal) ** 2) + 0 * jnp.mean(batch)

    problem = Pruning(loss, start, jnp.ones(4), sparsity=0.8, penalty=0.0)
    solver = IterativeMagnitudePruning(2, optimiser=optax.sgd(0.3))
    w, left = np.asarray(start["w"][:, 0]), np.ones(60, bool)
    found = None
    for count in (48, 39, 31, 25, 20, 16, 13, 12):
        left = ranked(np.where(left, w**2, -1), count)
        w = left * w
        for _ in range(2):
            w = w - 0.3 * left * (w - np.asarray(goal))
        found = solve(problem, solver, found, max_steps=2, throw=False)
        np.testing.assert_array_equal(found.value[0]["w"][:, 0], left)
        np.testing.assert_allclose(found.value[1]["w"][:, 0], w, rtol=1e-4, atol=1e-6)
    assert found.result == RESULTS.approximate
    whole = solve(problem, solver, max_steps=100)
    assert whole.stats.steps == 16
    np.testing.assert_array_equal(whole.value[1]["w"], found.value[1]["w"])


@slow
def test_rewinding_goes_back_to_the_early_weights():
    problem = regression()
    early = jax.tree.map(lambda x: x + 7, problem.params)
    solver = IterativeMagnitudePruning(3, rewind=early, optimiser=optax.sgd(0.0))
    mask, params = solve(problem, solver).value
    np.testing.assert_array_equal(params["w"], mask["w"] * early["w"])
    assert params["b"] == 7


def test_obs_is_its_formula(x64):
    """One round, beside the dense inverse of the same gradients' Fisher matrix."""
    problem = regression(sparsity=0.4, dtype=jnp.float64)
    solver = OBS(1, recomputations=1, inverse=MFACInverse(40, 1e-2), optimiser=optax.sgd(0.0))
    prepared, (mask, params) = problem.prepare(None)
    state = solver.init(prepared, Guess((mask, params)))
    key = jax.random.key(5)
    rows = np.asarray(eqx.filter_jit(solver.fisher)(prepared, mask, params, key).rows[0])
    inverse = np.linalg.inv(1e-2 * np.eye(21) + 32 / 40 * rows.T @ rows)
    w = np.concatenate([[float(params["b"])], params["w"][:, 0]])
    score = w**2 / (2 * np.diag(inverse))
    kept = np.append(True, ranked(score[1:], 12))
    moved = w + inverse @ np.where(kept, 0, -w / np.diag(inverse))
    new, found = eqx.filter_jit(solver.prune)(prepared, state, jnp.asarray(0), key)
    np.testing.assert_array_equal(new["w"][:, 0], kept[1:])
    found = np.append(found["b"], found["w"][:, 0])
    np.testing.assert_allclose(found, kept * moved, rtol=1e-8, atol=1e-12)


@slow
def test_obs_counts_fall_by_equal_factors():
    solver = OBS(1, recomputations=4)
    prepared, _ = regression(size=160, sparsity=0.9375).prepare(None)
    counts = [int(solver.kept(prepared, jnp.asarray(i))[0]) for i in range(4)]
    assert counts == [80, 40, 20, 10]


@slow
def test_obs_sees_what_magnitudes_do_not():
    """Features of unequal scale at the least-squares fit: the smallest weights belong to the
    largest features. Without training after it, OBS at half of the weights loses far less."""
    rng = np.random.default_rng(0)
    scale = np.logspace(-1, 1, 20)
    x = rng.normal(size=(400, 20)) @ np.linalg.qr(rng.normal(size=(20, 20)))[0] * scale
    y = x @ (rng.normal(size=20) / scale) + 0.3 * rng.normal(size=400)
    fit = np.linalg.lstsq(np.c_[x, np.ones(400)], y)[0]
    params = {"b": jnp.asarray(fit[-1], jnp.float32), "w": jnp.asarray(fit[:20, None], jnp.float32)}
    data = (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    problem = Pruning(squares, params, data, sparsity=0.5, batch_size=8)
    still = optax.sgd(0.0)
    losses = [
        float(squares(solve(problem, s).value[1], data))
        for s in (
            OBS(1, inverse=MFACInverse(200, 1e-4), optimiser=still),
            MagnitudePruning(1, optimiser=still),
        )
    ]
    assert losses[0] < 0.5 * losses[1]


@slow
@pytest.mark.parametrize(
    "solver",
    [
        BiP(400),
        BiP(400, linear_solver=MFACInverse(16, damping=1.0)),
        IterativeMagnitudePruning(60),
        OBS(100),
    ],
    ids=["bip", "mfac", "iterative", "obs"],
)
def test_the_support_is_found(solver):
    """Three features of twenty, from weights of which others are among the three largest."""
    problem = regression(penalty=1e-6)
    hint = {"b": 0.0, "w": jnp.zeros((20, 1)).at[:3].set(0.4)}
    found = eqx.filter_jit(lambda p: solve(p, solver).value)
    for seed in (0, 2, 4):
        start = jax.tree.map(
            lambda x, s=seed: x + 0.2 * jax.random.normal(jax.random.key(s), jnp.shape(x)), hint
        )
        assert set(np.argsort(-np.abs(start["w"][:, 0]))[:3]) != {0, 1, 2}
        mask, params = found(eqx.tree_at(lambda p: p.params, problem, start))
        np.testing.assert_array_equal(np.flatnonzero(mask["w"]), [0, 1, 2])
        np.testing.assert_allclose(params["w"][:3, 0], 1.0, atol=0.02)


@slow
@pytest.mark.parametrize("name", ["mfac", "obs"])
def test_resumed_through_a_file(name, tmp_path):
    problem, key = regression(), jax.random.key(4)
    whole = solve(problem, BRIEF[name], key=key, max_steps=100)
    part = solve(problem, BRIEF[name], key=key, max_steps=2, throw=False)
    assert part.result == RESULTS.max_steps_reached
    arrays, rest = eqx.partition(part, eqx.is_array)
    eqx.tree_serialise_leaves(tmp_path / "part.eqx", arrays)
    loaded = eqx.combine(eqx.tree_deserialise_leaves(tmp_path / "part.eqx", arrays), rest)
    found = solve(problem, BRIEF[name], loaded)
    assert found.stats.steps == whole.stats.steps - 2
    np.testing.assert_array_equal(found.value[1]["w"], whole.value[1]["w"])


@slow
@pytest.mark.parametrize("name", ["mfac", "iterative", "obs"])
def test_a_batch_of_networks(name):
    problem = regression()
    starts = jax.tree.map(
        lambda x: 0.1 * jax.random.normal(jax.random.key(0), (3, *x.shape)), problem.params
    )
    run = lambda p: solve(eqx.tree_at(lambda q: q.params, problem, p), BRIEF[name]).value
    together = jax.jit(jax.vmap(run))(starts)
    for i in range(3):
        alone = run(jax.tree.map(lambda x, i=i: x[i], starts))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6)


@slow
@pytest.mark.parametrize("structure, axis", [(Filters(), 3), (Channels(), 2)])
@pytest.mark.parametrize("name", BRIEF)
def test_slices_of_a_convolution(name, structure, axis):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(40, 6, 6, 8)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 3, 40))
    params = {
        "conv": jnp.asarray(0.2 * rng.normal(size=(3, 3, 8, 10)), jnp.float32),
        "out": jnp.asarray(0.2 * rng.normal(size=(10, 3)), jnp.float32),
    }

    def loss(params, batch):
        x, y = batch
        names = ("NHWC", "HWIO", "NHWC")
        hidden = jax.lax.conv_general_dilated(x, params["conv"], (2, 2), "SAME", None, None, names)
        logits = jax.nn.relu(hidden).mean(axis=(1, 2)) @ params["out"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    problem = Pruning(loss, params, (x, y), sparsity=0.5, structure=structure, batch_size=16)
    found = solve(problem, BRIEF[name])
    mask = np.asarray(found.value[0]["conv"])
    kept = np.moveaxis(mask, axis, 0).reshape(mask.shape[axis], -1).mean(axis=1)
    assert sorted(np.unique(kept)) == [0, 1] and kept.sum() == mask.shape[axis] // 2
    assert np.all(found.value[0]["out"] == 1) and found.stats.residual.primal == 0
