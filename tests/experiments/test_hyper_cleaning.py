"""Hyper-cleaning: what is wrong, what is measured, and that a run leaves its figures."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jaxsolve.experiments import carry_out, hyper_cleaning as experiment
from jaxsolve.experiments.data import Examples

SMALL = replace(
    experiment.EXPERIMENT.quick, rates=(0.5, 0.9), seeds=2, train=300, validation=200, steps=20
)


@pytest.mark.fast
def test_area_under_the_curve():
    """Beside scikit-learn, with ties."""
    rng = np.random.default_rng(0)
    wrong = rng.uniform(size=200) < 0.3
    x = np.round(rng.normal(size=200) - wrong, 1).astype(np.float32)
    found = jax.jit(experiment.auc)(jnp.asarray(x), jnp.asarray(wrong))
    np.testing.assert_allclose(found, roc_auc_score(wrong, -x), rtol=1e-6)


@pytest.mark.slow
def test_labels_are_replaced_uniformly():
    lanes = experiment.tasks((3, 4), (0.5,), (3000, 1000))
    assert lanes.train.x.shape == (2, 3000, 784) and lanes.test.x.shape == (2, 1000, 784)
    wrong = np.asarray(lanes.wrong)
    # A tenth of the replaced labels are drawn right.
    assert abs(wrong.mean() - 0.45) < 4 * np.sqrt(0.45 * 0.55 / wrong.size)
    x = np.asarray(lanes.train.x)
    np.testing.assert_allclose(x.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(np.sqrt(np.mean(x**2, axis=(1, 2))), 2, rtol=1e-4)
    given = np.asarray(lanes.train.y)[wrong]
    assert np.bincount(given, minlength=10).min() > 0.8 * len(given) / 10
    # The parts hold different images, and their labels are untouched: a fit on them generalises.
    parts = [np.asarray(e.x[0]) for e in (lanes.train, lanes.validation, lanes.test)]
    rows = {row.tobytes() for part in parts for row in part}
    assert len(rows) > 4990


def test_objectives_are_those_of_numpy(x64):
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=6), rng.normal(size=(4, 10))
    examples = Examples(jnp.asarray(rng.normal(size=(6, 4))), jnp.asarray(rng.integers(0, 10, 6)))
    scores = np.asarray(examples.x) @ z
    each = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(6), np.asarray(examples.y)]
    found = experiment.upper(x, jnp.asarray(z), examples, None)
    np.testing.assert_allclose(found, each.mean(), rtol=1e-12)
    places = jnp.array([2, 0])
    batch = places, jax.tree.map(lambda a: a[places], examples)
    weights = 1 / (1 + np.exp(-x))
    wanted = (weights[2] * each[2] + weights[0] * each[0]) / 2 + 0.2 * np.sum(z**2)
    found = experiment.lower(jnp.asarray(x), jnp.asarray(z), batch, None)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.slow
def test_a_run_leaves_its_figures(tmp_path):
    carry_out(experiment.EXPERIMENT, tmp_path, settings=SMALL)
    folder = tmp_path / "hyper-cleaning"
    figures = json.loads((folder / "figures.json").read_text())["figures"]
    assert len(figures) == 2 * 2 * 6 + 5
    for figure in figures:
        assert figure["value"] is not None and figure["baseline"] is not None
    scores = [f["value"] for f in figures if f["name"].startswith("AUC") and f["method"] == "SABA"]
    assert len(scores) == 2 and min(scores) > 0.7
    assert "nan" not in (folder / "table.md").read_text()
    assert list(folder.glob("*.png"))


@pytest.mark.slow
def test_wrong_labels_are_found_at_a_third_seed():
    """The goals, by the default solver."""
    lanes = experiment.tasks((50,), (0.5,), (3000, 1000))
    task = jax.tree.map(lambda a: a[0], lanes)
    method = experiment.methods(1500)["SABA"]
    found = experiment.measured(method, 64, task, jax.random.key(1))
    clean = experiment.baselines(task)["test"][experiment.BASELINES.index("clean part")]
    assert float(found["auc"]) > 0.95
    # One image is 0.1 point: the goal, of five seeds' mean, with two standard errors of a split.
    assert float(found["test"]) < float(clean) + 0.01 + 2 * 0.007
