"""Input that means nothing: an error before anything runs, which names the argument and both shapes
or types."""

import jax.numpy as jnp
import optax
import pytest

import jaxsolve as js
from jaxsolve import sets
from jaxsolve.bilevel.magnitude import MagnitudePruning
from jaxsolve.bilevel.suggest_steps import suggest_steps
from jaxsolve.linear import ConjugateGradient

pytestmark = pytest.mark.fast

PAIR = jnp.zeros(2), jnp.zeros(2)
NETWORK = {"w": jnp.ones((4, 3))}


def upper(x, y, args):
    return jnp.sum((y - 1) ** 2) + jnp.sum(x**2)


def lower(x, y, args):
    return jnp.sum((y - x) ** 2)


def apart(x, y, args):
    return x @ y["a"]


def solve(init=PAIR, solver=None, **fields):
    functions = {"upper": upper, "lower": lower} | fields
    return js.solve(js.Bilevel(**functions), solver, init)


def stochastic(**settings):
    level = lambda x, y, batch, args: lower(x, y, args) + jnp.mean(batch)
    data = jnp.ones((8, 2))
    return js.StochasticBilevel(level, level, data, data, **settings)


def pruning(sparsity=0.5, **settings):
    loss = lambda params, batch: jnp.mean((batch @ params["w"]) ** 2)
    return js.Pruning(loss, NETWORK, jnp.ones((8, 4)), sparsity=sparsity, **settings)


def prune(init):
    return js.solve(pruning(), js.BiP(steps=1), init)


def projecting(projection):
    solver = js.LVHBA(projection=projection)
    return solve(solver=solver, coupling=lambda x, y, args: x - y)


three = sets.Box(jnp.zeros(3), jnp.ones(3))
BAD = {
    "upper set": (
        lambda: solve(upper_set=three),
        r"Bilevel: `upper_set` does not fit `init\[0\]`, float32\[2\]: .*`lower` is float32\[3\]",
    ),
    "lower set": (
        lambda: solve(lower_set=three),
        r"Bilevel: `lower_set` does not fit `init\[1\]`, float32\[2\]: .*`lower` is float32\[3\]",
    ),
    "set class": (
        lambda: solve(upper_set=sets.Simplex),
        r"`upper_set` must be one of jaxsolve.sets; got the class Simplex",
    ),
    "function": (
        lambda: solve((jnp.zeros(2), {"a": jnp.zeros(3)}), upper=apart, lower=apart),
        r"`upper` cannot be called with x .* float32\[2\] and y .*\{'a': 'float32\[3\]'\}",
    ),
    "coupling": (
        lambda: solve(coupling=lambda x, y, args: x + jnp.ones(5)),
        r"`coupling` cannot be called with x .* float32\[2\] .*\(2,\), \(5,\)",
    ),
    "coupling array": (
        lambda: solve(coupling=jnp.ones(2)),
        r"`coupling` must be a function of \(x, y, args\); got float32\[2\]",
    ),
    "empty y": (
        lambda: solve((jnp.zeros(2), jnp.zeros(0))),
        r"Bilevel: `init\[1\]` has no entries: it is float32\[0\]",
    ),
    "empty x": (
        lambda: solve(({"a": jnp.zeros((0, 3))}, jnp.zeros(2))),
        r"Bilevel: `init\[0\]` has no entries: it is \{'a': 'float32\[0, 3\]'\}",
    ),
    "lower solver": (
        lambda: solve(solver=js.HypergradientDescent(lower_solver=js.LBFGS)),
        r"HypergradientDescent, `lower_solver`: .* got the class LBFGS",
    ),
    "optimiser": (
        lambda: solve(solver=js.HypergradientDescent(optimiser=0.1)),
        r"`optimiser` must be an optax transformation or LBFGS\(...\); got 0.1",
    ),
    "steps suggested": (
        lambda: suggest_steps(js.Bilevel(upper, lower), PAIR, js.HypergradientDescent()),
        r"suggest_steps: `solver` must be LVHBA.*; got HypergradientDescent",
    ),
    "steps suggested for": (
        lambda: suggest_steps(js.Minimise(lambda y, args: jnp.sum(y**2)), PAIR),
        r"suggest_steps takes a Bilevel, not Minimise",
    ),
    "polished": (lambda: js.Polished(js.LVHBA), r"`solver` must be LVHBA.*; got the class LVHBA"),
    "projection": (
        lambda: projecting(3.0),
        r"LVHBA: `projection` must be a function .*; got 3.0",
    ),
    "projected": (
        lambda: projecting(lambda x, y: (x[:1], y)),
        r"`projection\(x, y\)` .*\('float32\[2\]', .*; it returns \('float32\[1\]'",
    ),
    "step size": (lambda: js.MEHA(step_size="a"), r"MEHA: `step_size` must be a number; got 'a'"),
    "value steps": (lambda: js.LVHBA(steps=2.5), r"LVHBA: `steps` must be a whole number; got 2.5"),
    "loop steps": (lambda: js.SOBA(steps=2.5), r"SOBA: `steps` must be a whole number; got 2.5"),
    "inner steps": (
        lambda: js.BOME(inner_steps=2.5),
        r"BOME: `inner_steps` must be a whole number; got 2.5",
    ),
    "batch": (
        lambda: stochastic(batch_size=2.0),
        r"StochasticBilevel: `batch_size` must be a whole number; got 2.0",
    ),
    "batches": (
        lambda: stochastic(batch_size=(2, 4)),
        r"StochasticBilevel: `batch_size` must be a whole number; got tuple",
    ),
    "pruning batch": (
        lambda: pruning(batch_size=2.0),
        r"Pruning: `batch_size` must be a whole number; got 2.0",
    ),
    "sparsity": (lambda: pruning("0.5"), r"Pruning: `sparsity` must be a number; got '0.5'"),
    "sparsities": (
        lambda: pruning(jnp.ones(2)),
        r"Pruning: `sparsity` must be a number; got float32\[2\]",
    ),
    "penalty": (
        lambda: pruning(penalty=jnp.ones(2)),
        r"Pruning: `penalty` must be a number; got float32\[2\]",
    ),
    "structure": (
        lambda: pruning(structure=js.Filters),
        r"`structure` must be Unstructured\(\), .*; got the class Filters",
    ),
    "weights": (
        lambda: prune((NETWORK, {"v": jnp.ones((4, 3))})),
        r"weights of `init` are \{'v': .*, but `params` are \{'w': ",
    ),
    "weights' shape": (
        lambda: prune((NETWORK, {"w": jnp.ones((3, 3))})),
        r"weights of `init` are .*\[3, 3\].*, but `params` are .*\[4, 3\]",
    ),
    "no steps": (lambda: js.BiP(steps=0), r"BiP: `steps` must be at least 1; got 0"),
    "part of a step": (lambda: js.BiP(steps=1.5), r"BiP: `steps` must be a whole number; got 1.5"),
    "lower": (lambda: js.BiP(lower=0.1), r"BiP: `lower` must be an optax trans.*; got 0.1"),
    "upper": (
        lambda: js.BiP(upper=optax.sgd),
        r"BiP: `upper` must be an optax transformation or None; got function",
    ),
    "linear solver": (
        lambda: js.BiP(linear_solver=ConjugateGradient()),
        r"BiP: `linear_solver` must be MFACInverse.*; got ConjugateGradient",
    ),
    "training": (
        lambda: MagnitudePruning(optimiser=0.1),
        r"MagnitudePruning: `optimiser` must be an optax transformation or None; got 0.1",
    ),
    "rounds": (
        lambda: js.OBS(recomputations=1.5),
        r"OBS: `recomputations` must be a whole number; got 1.5",
    ),
    "inverse": (lambda: js.OBS(inverse=3), r"OBS: `inverse` must be MFACInverse.*; got 3"),
    "no steps given": (lambda: js.BiP(steps=None), "BiP: `steps` must be a whole number; got N"),
    "coefficient": (
        lambda: js.BiP(implicit_coef=float("nan")),
        "BiP: `implicit_coef` must be at least 0; got nan",
    ),
    "rate of a round": (
        lambda: js.IterativeMagnitudePruning(rate="a"),
        "IterativeMagnitudePruning: `rate` must be a number; got 'a'",
    ),
    "no upper level": (
        lambda: solve(upper=None),
        r"Bilevel: `upper` must be a function of \(x, y,",
    ),
    "no lower level": (
        lambda: js.StochasticBilevel(upper, None, jnp.ones(3), jnp.ones(3), batch_size=2),
        r"StochasticBilevel: `lower` must be a function of \(x, y, batch, args\); got NoneType",
    ),
    "a traced start": (
        lambda: js.solve(js.Bilevel(upper, lower), init=jnp.ones(2)),
        r"pair \(x, y\) of guesses; got float32\[2\]",
    ),
    "negative penalty": (
        lambda: pruning(penalty=-0.1),
        "Pruning: `penalty` must be at least 0; go",
    ),
    "NaN penalty": (lambda: pruning(penalty=float("nan")), "Pruning: `penalty` must be at least 0"),
    "no batch": (lambda: pruning(batch_size=None), "Pruning: `batch_size` must be a whole number"),
    "prunable": (lambda: pruning(prunable=3), r"Pruning: `prunable` must be a function of \(path,"),
    "axis": (
        lambda: pruning(structure=js.Filters(0.5), prunable=lambda path, array: True),
        "Filters: `axis` must be an integer; got 0.5",
    ),
    "momentum": (lambda: js.mfac(momentum=1.0), "mfac: `momentum` must be below 1; got 1.0"),
    "decay": (
        lambda: js.mfac(weight_decay=-1.0),
        "mfac: `weight_decay` must be at least 0; got -1",
    ),
    "learning rate": (
        lambda: js.mfac(learning_rate="a"),
        "mfac: `learning_rate` must be a number; got 'a'",
    ),
    "gradients of M-FAC": (
        lambda: js.MFACInverse(gradients=3),
        r"MFACInverse: `gradients` must be a function of \(x, y, args\) or None; got 3",
    ),
    "integers": (
        lambda: js.MFACInverse().bind({"a": jnp.ones((3, 2), int)}),
        r"M-FAC: `gradients\['a'\]` is int32\[3, 2\]; gradients are real",
    ),
    "hypergradient's tolerance": (
        lambda: js.hypergradient(js.Bilevel(upper, lower), PAIR, tolerance=-1.0),
        "`tolerance` must be positive; got -1.0",
    ),
    "hypergradient's adjoint": (
        lambda: js.hypergradient(js.Bilevel(upper, lower), PAIR, adjoint=js.Implicit()),
        r"hypergradient: `adjoint` must be Unrolled\(...\) or OneStep\(\); got Implicit",
    ),
    "decay of steps": (lambda: js.BOME(decay=-1.0), "BOME: `decay` must be at least 0; got -1.0"),
    "gradients": (lambda: js.mfac(number=2.5), r"mfac: `number` must be a whole number; got 2.5"),
    "window": (
        lambda: js.MFACInverse(number=True),
        r"MFACInverse: `number` must be a whole number; got True",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_before_anything_runs(name):
    call, words = BAD[name]
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def test_a_batch_of_settings_is_no_bad_input():
    js.SOBA(upper_step_size=jnp.array([0.1, 0.2]), steps=jnp.array([3, 4]))


def test_errors_of_the_users_own_stay_what_they_are():
    def own(x, y, args):
        raise ValueError("the third day is missing")

    with pytest.raises(ValueError, match="^the third day is missing"):
        solve(lower=own)
