"""What cannot be solved is refused by an error that names it: each of these ended in a message of
JAX's own, or was accepted and gave the answer of another problem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsolve as js

COST, SIX, FIVE = np.arange(30.0).reshape(6, 5) / 30, np.full(6, 1 / 6), np.full(5, 1 / 5)
X, Y = COST[:, :2], COST[:4, 2:4]


def transport(*args, solver=None, epsilon=0.1, **fields):
    return js.solve(js.EntropicTransport(*args, epsilon=epsilon, **fields), solver)


def points(x=X, y=Y, **fields):
    return js.solve(js.EntropicTransport.from_points(x, y, epsilon=0.1, **fields))


def grid(shape, *weights, **fields):
    return js.solve(js.EntropicTransport.from_grid(shape, *weights, epsilon=0.1, **fields))


def means(measures, cost=COST, **fields):
    return js.solve(js.Barycentre(cost, measures, epsilon=0.1, **fields))


def bridge(solver=None, x0=X, x1=Y, **fields):
    return js.solve(js.SchrodingerBridge(x0, x1, **({"epsilon": 1.0} | fields)), solver)


def light(method, *args):
    family = js.Diagonal()
    shape = family.from_diagonal(jnp.ones((2, 3)))
    one = js.LightBridge(jnp.zeros(2), jnp.ones((2, 3)), shape, jnp.ones(()), family)
    return getattr(one, method)(*args)


KEY = jax.random.key(0)


def known(dim=2, epsilon=1.0, key=KEY, **fields):
    return js.gaussian_mixture_benchmark(dim, epsilon, key, **fields)


HALF = jnp.bfloat16
BATCH = np.ones((2, 3))  # of as many points as the bridge has components
BAD = {
    "cost": (lambda: transport("a"), TypeError, "`cost`"),
    "half": (lambda: transport(jnp.asarray(COST, HALF)), TypeError, "`cost` has dtype bfloat16"),
    "half x": (
        lambda: points(jnp.asarray(X, HALF), jnp.asarray(Y, HALF)), TypeError, "`x` has dtype"
    ),
    "half costs": (
        lambda: grid((2, 3), SIX, costs=(jnp.ones((2, 2), HALF), jnp.ones((3, 3), HALF))),
        TypeError, "`costs` has dtype bfloat16"
    ),
    "half x0": (lambda: bridge(x0=jnp.asarray(X, HALF)), TypeError, "`x0` has dtype"),
    "a": (lambda: transport(COST, "u"), TypeError, "`a`"),
    "epsilon": (lambda: transport(COST, epsilon="a"), TypeError, "`epsilon`"),
    "no epsilon": (lambda: transport(COST, epsilon=None), TypeError, "`epsilon`"),
    "complex epsilon": (lambda: transport(COST, epsilon=1j), TypeError, "`epsilon`"),
    "bool epsilon": (lambda: transport(COST, epsilon=True), TypeError, "`epsilon`"),
    "tau": (lambda: transport(COST, tau="ab"), TypeError, "`tau`"),
    "key": (lambda: js.solve(js.EntropicTransport(COST, epsilon=1.0), key=3), TypeError, "`key`"),
    "x": (lambda: points(None), TypeError, "`x`"),
    "cost_fn": (lambda: points(cost_fn="squares"), TypeError, "`cost_fn`"),
    "block 0": (lambda: points(block=0), ValueError, "`block`"),
    "block -1": (lambda: points(block=-1), ValueError, "`block`"),
    "block 1.5": (lambda: points(block=1.5), TypeError, "`block`"),
    "shape 6": (lambda: grid(6, SIX), TypeError, "`shape`"),
    "costs": (lambda: grid((2, 3), SIX, costs=("a", "b")), TypeError, "`costs`"),
    "grid a": (lambda: grid((2, 3), SIX.reshape(3, 2)), ValueError, r"`a` .* \[2, 3\]"),
    "grid b": (
        lambda: grid((2, 3), SIX, SIX.reshape(3, 2)), ValueError, r"`b` .* \[2, 3\]"
    ),
    "whole a": (lambda: grid((2, 3), np.ones(6, int)), TypeError, "`a`"),
    "rank": (lambda: transport(COST, solver=js.LowRankSinkhorn(1.5)), TypeError, "`rank`"),
    "no rank": (lambda: js.LowRankSinkhorn(None), TypeError, "`rank`"),
    "vector": (lambda: transport(COST).value.apply("a"), TypeError, "`vector`"),
    "count": (lambda: transport(COST).value.sample(KEY, -1), ValueError, "`count`"),
    "mapped batch": (lambda: points().value.to_map()(X), ValueError, "vmap"),
    "measures": (lambda: means("a"), TypeError, "`measures`"),
    "no cost": (lambda: means(SIX[None], None), TypeError, "`cost`"),
    "grid measures": (
        lambda: js.Barycentre.from_grid((2, 3), SIX.reshape(1, 3, 2), epsilon=0.1),
        ValueError,
        r"`measures` .* \[any, 2, 3\]",
    ),
    "x0": (lambda: bridge(x0="a"), TypeError, "`x0`"),
    "bridge epsilon": (lambda: bridge(epsilon="a"), TypeError, "`epsilon`"),
    "bridge tau": (lambda: bridge(tau=(1.0, 2.0)), TypeError, "`tau`"),
    "components": (lambda: js.LightSB("a"), TypeError, "`components`"),
    "covariance": (lambda: js.LightSB(1, js.Full), TypeError, "`covariance`"),
    "minimiser": (lambda: js.LightSB(1, minimiser="bfgs"), TypeError, "`minimiser`"),
    "optimiser": (lambda: js.MinibatchLightSB(1, optimiser="adam"), TypeError, "`optimiser`"),
    "batch_size": (lambda: js.MinibatchLightSB(1, batch_size=0), ValueError, "`batch_size`"),
    "steps": (lambda: js.LightSBM(1, steps=0), ValueError, "`steps`"),
    "coupling": (lambda: js.LightSBM(1, coupling="a"), TypeError, "`coupling`"),
    "one pair": (
        lambda: bridge(js.LightSBM(1, coupling=lambda key, x0, x1: (x0[:1], x1[:1]), steps=1)),
        ValueError,
        "`coupling`",
    ),
    "dim": (lambda: known(dim=2.5), TypeError, "`dim`"),
    "known epsilon": (lambda: known(epsilon="a"), TypeError, "`epsilon`"),
    "infinite epsilon": (
        lambda: known(epsilon=float("inf")),
        ValueError,
        "`epsilon` must be finite; got inf",
    ),
    "known key": (lambda: known(key=None), TypeError, "`key` must be a key of jax.random"),
    "known covariance": (lambda: known(covariance="full"), TypeError, "`covariance`"),
    "drift": (lambda: light("drift", BATCH, 0.5), ValueError, "drift: `x` .*vmap"),
    "conditional": (lambda: light("conditional", BATCH), ValueError, "`x` .*vmap"),
    "log_potential": (lambda: light("log_potential", np.ones(1)), ValueError, "`y`"),
    "log_normaliser": (lambda: light("log_normaliser", np.ones(1)), ValueError, "`x`"),
    "log_likelihood": (lambda: light("log_likelihood", BATCH[0], BATCH), ValueError, "`y`"),
    "sample_path": (lambda: light("sample_path", KEY, BATCH, [0.5]), ValueError, "`x` .*vmap"),
    "log_prob": (
        lambda: light("conditional", BATCH[0]).log_prob(BATCH), ValueError, "`y` .*vmap"
    ),
}  # fmt: skip


@pytest.mark.parametrize("call, error, words", BAD.values(), ids=BAD)
def test_what_is_refused_is_named(call, error, words, x64):
    with pytest.raises(error, match=words):
        call()
