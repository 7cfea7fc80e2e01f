"""The two experiments at tiny sizes, against independent oracles."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsolve.experiments import carry_out, hyperparameters, svm_layer
from jaxsolve.experiments.data import Examples, digits, splits
from jaxsolve.experiments.statistics import paired

WEIGHTS = replace(
    hyperparameters.EXPERIMENT.quick,
    splits=2, divisions=((30, 40),), test=50, solves=4, tied=2,
)  # fmt: skip
MACHINES = replace(
    svm_layer.EXPERIMENT.quick,
    seeds=1, train=30, validation=40, test=50, steps=3, gammas=2, costs=2,
)  # fmt: skip


def left(folder, experiment):
    """What a run left, without what time it took."""
    data = json.loads((folder / experiment.name / "figures.json").read_text())
    return [f for f in data["figures"] if f["unit"] != "s"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment, settings",
    [(hyperparameters.EXPERIMENT, WEIGHTS), (svm_layer.EXPERIMENT, MACHINES)],
    ids=["hyperparameters", "svm-layer"],
)
def test_a_run_follows_from_its_seed(experiment, settings, tmp_path):
    found = []
    for place, seed in enumerate((1, 1, 2)):
        carry_out(experiment, tmp_path / str(place), seed=seed, settings=settings)
        found.append(left(tmp_path / str(place), experiment))
    assert found[0] == found[1] != found[2]
    for figure in found[0]:
        assert figure["value"] is not None and np.isfinite(figure["value"])
        assert figure["baseline"] is not None or "difference" in figure["name"]
        assert figure["source"]
    folder = tmp_path / "0" / experiment.name
    assert "nan" not in (folder / "table.md").read_text()
    assert list(folder.glob("*.png"))


def test_splits_are_disjoint_and_independent_of_their_number():
    numbered = Examples(np.arange(1797.0)[:, None], np.arange(1797))
    parts = splits(3, 4, (10, 20, 30), numbered)
    for k in range(4):
        drawn = np.concatenate([part.y[k] for part in parts])
        assert len(set(drawn)) == 60
    again = splits(3, 2, (10, 20, 30), numbered)
    assert all(np.array_equal(a.y, b.y[:2]) for a, b in zip(again, parts, strict=True))
    assert not np.array_equal(parts[0].y[0], splits(4, 1, (10,), numbered)[0].y[0])
    with pytest.raises(ValueError, match="do not fit"):
        splits(0, 1, (1000, 1000), numbered)


def test_the_interval_is_the_plain_one_without_overlap():
    from scipy.stats import ttest_rel

    random = np.random.default_rng(0)
    ours, theirs = random.normal(size=(2, 9))
    low, high = ttest_rel(ours, theirs).confidence_interval(0.95)
    found = paired(ours, theirs, overlap=0.0)
    np.testing.assert_allclose(found, ((ours - theirs).mean(), low, high), rtol=1e-12)
    wider = paired(ours, theirs, overlap=0.5)
    ratio = np.sqrt((1 / 9 + 0.5) * 9)
    np.testing.assert_allclose(wider.high - wider.mean, ratio * (high - found.mean), rtol=1e-12)


def test_logistic_regression_agrees_with_scikit_learn(x64):
    from sklearn.linear_model import LogisticRegression

    train, query = (
        Examples(jnp.asarray(p.x[0], float), jnp.asarray(p.y[0]))
        for p in splits(0, 1, (120, 50), digits())
    )
    weight = 1e-2
    split = hyperparameters.Split(train, query, query, query)
    blank = {"matrix": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}
    _, (model, _) = hyperparameters.validate(jnp.full(64, jnp.log(weight)), split, blank)
    # Our weight on the biases, as a constant feature whose size makes it the common one.
    size = np.sqrt(weight / hyperparameters.BIAS)
    x = np.hstack([train.x, np.full((120, 1), size)])
    oracle = LogisticRegression(
        C=1 / (weight * 120), tol=1e-10, max_iter=5000, fit_intercept=False
    ).fit(x, train.y)
    # A gradient of 1e-5, over the least curvature 1e-2 (1e-4 for the biases).
    np.testing.assert_allclose(model["matrix"].T, oracle.coef_[:, :-1], atol=1e-3)
    np.testing.assert_allclose(model["bias"], size * oracle.coef_[:, -1], atol=5e-3)


@pytest.mark.slow
def test_the_machines_agree_with_libsvm(x64):
    from sklearn.svm import SVC

    train, query = (
        Examples(jnp.asarray(p.x[0], float), jnp.asarray(p.y[0]))
        for p in splits(0, 1, (60, 30), digits())
    )
    gamma, cost = 0.05, 2.0
    logs = {"gamma": jnp.log(gamma), "C": jnp.log(cost), "slope": jnp.array(0.0)}
    (values,), solution = jax.jit(svm_layer.scores)(logs, train, query.x)
    assert bool(jnp.all(solution.success))
    for k in range(10):
        oracle = SVC(C=cost, gamma=gamma, tol=1e-8).fit(train.x, np.asarray(train.y) == k)
        found = oracle.decision_function(np.asarray(query.x))
        np.testing.assert_allclose(values[:, k], found, atol=1e-5)
