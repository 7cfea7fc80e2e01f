"""Fits by small batches: near the exact fit, resumable, and honest about what they are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsolve as js

ADAM = optax.adam(optax.cosine_decay_schedule(3e-2, 1500))


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def problem():
    rng = np.random.default_rng(0)
    x0 = rng.normal(size=(2000, 2))
    groups = np.where(rng.uniform(size=(2000, 1)) < 0.4, -2.0, 2.0)
    x1 = groups + 0.7 * rng.normal(size=(2000, 2))
    return js.SchrodingerBridge(jnp.asarray(x0), jnp.asarray(x1), epsilon=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [js.MinibatchLightSB, js.LightSBM])
def test_near_the_exact_fit_and_resumed(kind, tmp_path):
    """Both losses have the minimiser of L. A solve in two parts, the first one through a file, ends
    where the whole does."""
    exact = js.solve(problem(), js.LightSB(2)).value
    solver = kind(2, optimiser=ADAM, batch_size=256, steps=1500)
    key = jax.random.key(1)
    whole = js.solve(problem(), solver, key=key)
    assert whole.result == js.RESULTS.approximate
    assert 0 < float(whole.stats.residual.dual) < 0.1
    points = jnp.asarray(np.random.default_rng(1).normal(size=(50, 2)))
    means = [jax.vmap(lambda x, b=b: b.conditional(x).mean)(points) for b in (exact, whole.value)]
    assert float(jnp.abs(means[0] - means[1]).mean()) < 0.06

    part = js.solve(problem(), solver, key=key, max_steps=500, throw=False)
    assert part.result == js.RESULTS.max_steps_reached
    arrays, rest = eqx.partition(part, eqx.is_array)
    eqx.tree_serialise_leaves(tmp_path / "part.eqx", arrays)
    loaded = eqx.combine(eqx.tree_deserialise_leaves(tmp_path / "part.eqx", arrays), rest)
    resumed = js.solve(problem(), solver, loaded)
    assert int(resumed.stats.steps) == 1000
    np.testing.assert_allclose(resumed.value.centres, whole.value.centres, atol=1e-8)


def test_no_derivative_is_claimed():
    start = js.solve(problem(), js.LightSB(2)).value
    solver = js.MinibatchLightSB(2, steps=3)

    def scored(epsilon):
        data = problem()
        moved = js.SchrodingerBridge(data.x0, data.x1, epsilon=epsilon)
        return jnp.sum(js.solve(moved, solver, start).value.centres)

    # The unit of length and the means are the data's: what is left of the derivative is theirs.
    assert float(jax.grad(scored)(0.5)) == 0.0


@pytest.mark.parametrize("kind", [js.MinibatchLightSB, js.LightSBM])
def test_no_part_of_a_derivative_is_given_for_all_of_it(kind):
    """That of the points' means came through: 0.19 for what nobody had derived."""
    x0, x1 = problem().x0[:50], problem().x1[:40]
    solver = kind(1, steps=3, batch_size=8)

    def end(scale):
        found = js.solve(js.SchrodingerBridge(scale * x0, x1, epsilon=0.5), solver, throw=False)
        return found.value.conditional(x0[0]).mean[0]

    assert float(jax.jit(jax.grad(end))(1.0)) == 0.0
