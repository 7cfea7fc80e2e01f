"""M-FAC beside NumPy: direct inverses, the paper's recursion, and its optimiser's recurrences."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsolve.bilevel.fisher import GradientWindow, MFACInverse, fisher_inverse
from jaxsolve.bilevel.mfac import mfac
from jaxsolve.core.linear import Operator
from jaxsolve.core.problem import Structure

fast = pytest.mark.fast


def fisher(gradients, damping, samples=1):
    g = np.asarray(gradients, np.float64)
    return damping * np.eye(g.shape[1]) + samples / len(g) * g.T @ g


def recursion(gradients, damping):
    """The static algorithm of the paper: a function x -> F^{-1} x, and the diagonal."""
    m = len(gradients)
    rows, denominators = [], []
    for g in gradients:
        v = g / damping
        for w, d in zip(rows, denominators, strict=True):
            v = v - w * (w @ g) / d
        rows.append(v)
        denominators.append(m + g @ v)
    v, d = np.stack(rows), np.array(denominators)
    return lambda x: x / damping - v.T @ ((v @ x) / d), 1 / damping - (v**2 / d[:, None]).sum(0)


def gradients(m=16, d=60, seed=0):
    return np.random.default_rng(seed).normal(size=(m, d))


@fast
@pytest.mark.parametrize("damping", [1.0, 1e-3])
def test_direct_and_recursive_inverse(dtype, strict, damping):
    g, x = gradients(), np.random.default_rng(1).normal(size=60)
    exact = fisher_inverse(jnp.asarray(g, dtype), damping)
    apply, diagonal = recursion(g, damping)
    direct = np.linalg.solve(fisher(g, damping), x)
    np.testing.assert_allclose(apply(x), direct, rtol=1e-8)
    close = 1e-10 if dtype == jnp.float64 else 1e-4
    found = eqx.filter_jit(exact)(jnp.asarray(x, dtype))
    assert found.dtype == dtype
    assert np.linalg.norm(found - direct) <= close * np.linalg.norm(direct)
    found = np.asarray(eqx.filter_jit(exact.diagonal)())
    assert np.abs(found - diagonal).max() <= close * diagonal.max()
    np.testing.assert_allclose(diagonal, np.diag(np.linalg.inv(fisher(g, damping))), rtol=1e-8)


@fast
@pytest.mark.parametrize("block_size", [None, 7])
def test_more_gradients_than_variables(dtype, strict, block_size):
    """F is well-conditioned, and 1 / delta far beyond what the precision holds."""
    g, x, damping = gradients(64, 20), np.random.default_rng(1).normal(size=20), 1e-8
    F = fisher(g, damping, 4)
    ends = np.arange(20) // (block_size or 20)
    direct = np.linalg.inv(np.where(ends[:, None] == ends, F, 0))
    inverse = fisher_inverse(jnp.asarray(g, dtype), damping, samples=4, block_size=block_size)
    close = 1e-12 if dtype == jnp.float64 else 4e-5
    np.testing.assert_allclose(inverse(jnp.asarray(x, dtype)), direct @ x, rtol=0, atol=close)
    np.testing.assert_allclose(inverse.diagonal(), np.diag(direct), rtol=10 * close)
    weights = np.linspace(-1, 1, 64)
    found = inverse.combined(jnp.asarray(weights, dtype))
    np.testing.assert_allclose(found, direct @ (g.T @ weights), rtol=0, atol=100 * close)


@pytest.mark.slow
def test_gradients_of_batches_are_scaled():
    """b times the covariance of means of b is that of single samples: b = 8 means of the rows of a
    large sample give F of the sample, to the noise of m = 2000 of them."""
    rng = np.random.default_rng(0)
    single = rng.normal(size=(16_000, 5)) * np.arange(1, 6)
    means = single.reshape(2000, 8, 5).mean(axis=1)
    x = rng.normal(size=5)
    found = fisher_inverse(jnp.asarray(means, jnp.float32), 0.5, samples=8)(jnp.asarray(x))
    direct = np.linalg.solve(fisher(single, 0.5), x)
    assert np.linalg.norm(found - direct) <= 0.05 * np.linalg.norm(direct)


def test_blocks(x64):
    g, x = gradients(d=50), np.random.default_rng(2).normal(size=50)
    dense = fisher(g, 0.1)
    for start in range(0, 50, 16):
        stop = min(start + 16, 50)
        dense[start:stop, :start] = dense[start:stop, stop:] = 0
    found = fisher_inverse(jnp.asarray(g), 0.1, block_size=16)
    np.testing.assert_allclose(found(jnp.asarray(x)), np.linalg.solve(dense, x), rtol=1e-9)
    np.testing.assert_allclose(found.diagonal(), np.diag(np.linalg.inv(dense)), rtol=1e-9)
    weights = np.random.default_rng(3).normal(size=16)
    found = found.combined(jnp.asarray(weights))
    np.testing.assert_allclose(found, np.linalg.solve(dense, g.T @ weights), rtol=1e-9)


@pytest.mark.parametrize(
    "spread", [1e-7, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.0, 1e-4, 1e-2))]
)
def test_collinear_gradients_in_float32(spread):
    """Rounding makes G G' + m delta I indefinite here. The inverse is positive definite (it may
    precondition conjugate gradients), exact outside the span, and in it no worse than blind: there
    the eigenvalues of both inverses lie between 0 and 1 / delta."""
    rng = np.random.default_rng(0)
    g = (rng.normal(size=300) + spread * rng.normal(size=(64, 300))).astype(np.float32)
    damping = 1e-6
    inverse = fisher_inverse(jnp.asarray(g), damping)
    matrix = np.asarray(jax.vmap(inverse)(jnp.eye(300)), np.float64) * damping
    assert np.linalg.eigvalsh((matrix + matrix.T) / 2).min() > -2e-6
    direct = np.linalg.inv(fisher(g, damping)) * damping
    span = np.linalg.svd(g.astype(float), full_matrices=True)[2]
    outside, along = span[64:], span[0]
    assert np.linalg.norm((matrix - direct) @ outside.T, 2) < 1e-3
    assert np.linalg.norm((matrix - direct) @ along) < 1e-3
    diagonal = np.asarray(inverse.diagonal()) * damping
    assert diagonal.min() > 0
    np.testing.assert_allclose(diagonal, np.diag(matrix), atol=1e-3)
    if spread <= 1e-7:
        # Where G has numerical rank one nothing cancels in the second form.
        weights = np.ones(64, np.float32)
        direct = np.linalg.solve(fisher(g, damping), g.T.astype(float) @ weights)
        found = np.asarray(inverse.combined(jnp.asarray(weights)))
        assert np.linalg.norm(found - direct) <= 1e-3 * np.linalg.norm(direct)


def test_window_in_a_scan(x64):
    rows, m = gradients(m=11, d=20), 4

    @jax.jit
    def run(rows):
        def step(window, g):
            window = window.push(g)
            return window, (window.newest(0.1, samples=2), window.inverse(0.1)(g))

        return jax.lax.scan(step, GradientWindow.empty(m, 20, rows.dtype), rows)

    window, (newest, inverse) = run(jnp.asarray(rows))
    for i in range(len(rows)):
        held = rows[max(0, i + 1 - m) : i + 1]
        direct = np.linalg.solve(fisher(held, 0.1, 2), rows[i])
        np.testing.assert_allclose(newest[i], direct, rtol=1e-9, atol=1e-12)
        direct = np.linalg.solve(fisher(held, 0.1), rows[i])
        np.testing.assert_allclose(inverse[i], direct, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(window.gram, window.rows @ window.rows.T, rtol=1e-12)


@fast
def test_bound_to_gradients(x64):
    """The flat order is that of `ravel_pytree`; a shift adds to the damping."""
    g = gradients(m=6, d=8)
    tree = {"b": jnp.asarray(g[:, :2]), "w": jnp.asarray(g[:, 2:]).reshape(6, 2, 3)}
    x = jnp.arange(8.0)
    operator = Operator(lambda v: v, lambda v: v, Structure())
    bound = MFACInverse(damping=0.1).bind(tree, shift=0.2)
    direct = np.linalg.solve(fisher(g, 0.3), x)
    np.testing.assert_allclose(bound.solve(operator, x), direct, rtol=1e-9)

    def taken(x, y, args):
        return jax.tree.map(lambda leaf: args * leaf, tree)

    found = MFACInverse(damping=0.1, gradients=taken).at(None, None, 2.0)
    np.testing.assert_allclose(found(x), np.linalg.solve(fisher(2 * g, 0.1), x), rtol=1e-9)


@fast
def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"`damping` must be positive; got 0"):
        MFACInverse(damping=0.0)
    with pytest.raises(TypeError, match="not bound to gradients"):
        MFACInverse().solve(Operator(lambda v: v, lambda v: v, Structure()), jnp.ones(3))
    with pytest.raises(TypeError, match="has no `gradients`"):
        MFACInverse().at(None, None)
    with pytest.raises(ValueError, match=r"\['b'\]` is float32\[5, 2\].*\['a'\]` is float32\[4\]"):
        MFACInverse().bind({"a": jnp.ones(4), "b": jnp.ones((5, 2))})
    with pytest.raises(ValueError, match=r"float32\[4\], but the gradients have 3"):
        MFACInverse().bind(jnp.ones((2, 3)))(jnp.ones(4))


def test_the_optimiser_is_its_recurrence(dtype):
    rng = np.random.default_rng(0)
    m, damping, momentum, decay, rate = 3, 1e-2, 0.9, 0.1, 0.05
    params = {"w": rng.normal(size=(2, 3)), "b": rng.normal(size=3)}
    steps = [{"w": rng.normal(size=(2, 3)), "b": rng.normal(size=3)} for _ in range(7)]

    def flat(tree):
        return np.concatenate([tree["b"].ravel(), tree["w"].ravel()])

    y, v, held = flat(params), np.zeros(9), []
    for g in steps:
        gradient = flat(g) + decay * y
        held = [*held, gradient][-m:]
        v = momentum * v + (1 - momentum) * np.linalg.solve(fisher(held, damping), gradient)
        y = y - rate * v

    # In a chain, with a rate that is a schedule, in one scan.
    optimiser = optax.chain(
        optax.identity(),
        mfac(lambda _: rate, m, damping, momentum=momentum, weight_decay=decay),
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    stacked = jax.tree.map(lambda *x: jnp.asarray(np.stack(x), dtype), *steps)

    def step(carry, g):
        params, state = carry
        change, state = optimiser.update(g, state, params)
        return (optax.apply_updates(params, change), state), None

    run = jax.jit(lambda p, s: jax.lax.scan(step, (p, optimiser.init(p)), s)[0][0])
    found = run(params, stacked)
    close = 1e-10 if dtype == jnp.float64 else 1e-4
    np.testing.assert_allclose(flat(found), y, rtol=close, atol=close)


@pytest.mark.slow
def test_the_optimiser_takes_curvature_away(x64):
    """Logistic regression whose features differ in scale by 100: in the same number of steps, each
    at its best rate, M-FAC is far below gradient descent."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(400, 10)) * np.logspace(-2, 0, 10))
    signs = jnp.sign(
        x @ jnp.asarray(rng.normal(size=10) / np.logspace(-2, 0, 10)) + rng.normal(size=400)
    )

    def loss(w, places):
        return jnp.mean(jax.nn.softplus(-signs[places] * (x[places] @ w)))

    def fit(optimiser):
        def step(carry, key):
            w, state = carry
            g = jax.grad(loss)(w, jax.random.randint(key, (32,), 0, 400))
            change, state = optimiser.update(g, state, w)
            return (w + change, state), None

        start = jnp.zeros(10)
        keys = jax.random.split(jax.random.key(0), 400)
        (w, _), _ = jax.lax.scan(step, (start, optimiser.init(start)), keys)
        return loss(w, jnp.arange(400))

    plain = min(float(jax.jit(lambda r=r: fit(optax.sgd(r)))()) for r in (0.1, 1.0, 10.0, 30.0))
    ours = min(
        float(jax.jit(lambda r=r: fit(mfac(r, 64, 1e-6, samples=32)))()) for r in (0.03, 0.1, 0.3)
    )
    assert ours < plain - 0.05
