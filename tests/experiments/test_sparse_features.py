"""The paths of `sparse-features` against scikit-learn, at a small size."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsolve.experiments import carry_out, elastic_net, sparse_features as experiment

SMALL = replace(
    experiment.EXPERIMENT.quick, penalties=6, folds=3, ratios=2, steps=3, saga=1, least=1e-2
)


@pytest.fixture(scope="module")
def diabetes():
    with jax.enable_x64(True):
        data = elastic_net.load("diabetes", SMALL.folds, 0)
        logs = elastic_net.path(elastic_net.DIABETES, data, 0.5, SMALL.penalties, SMALL.least)
        fn = jax.jit(lambda data, logs: elastic_net.errors(elastic_net.DIABETES, data, logs))
        return data, logs, fn(data, logs)


def test_paths_and_errors_are_those_of_coordinate_descent(diabetes, x64):
    data, logs, (error, weights, _, solved, _) = diabetes
    exact = experiment.coordinate_descent(data, logs, 1e-14)
    assert bool(jnp.all(solved))
    np.testing.assert_allclose(weights, exact.weights, atol=1e-8)
    np.testing.assert_allclose(error, exact.error, rtol=1e-9)
    np.testing.assert_array_equal(np.asarray(weights) == 0, exact.weights == 0)
    assert 0 < (exact.weights == 0).mean() < 1


def test_folds_leave_each_example_out_once(diabetes):
    left_out = np.asarray(diabetes[0].left_out)
    np.testing.assert_array_equal(left_out.sum(axis=0), np.ones(442))
    assert left_out.sum(axis=1).min() >= 147


@pytest.mark.slow
def test_logistic_paths_are_those_of_saga(x64):
    task = elastic_net.CANCER
    data = elastic_net.load(task.name, 2, 0)
    logs = elastic_net.path(task, data, 0.5, 3, SMALL.least)
    found = jax.jit(lambda data, logs: elastic_net.errors(task, data, logs))(data, logs)
    assert bool(jnp.all(found[3]))
    theirs = experiment.saga(data, logs, [0, 1], 1e-10)
    np.testing.assert_allclose(found[1][:2, 0], theirs.weights[:, 0], atol=1e-6)


@pytest.mark.slow
def test_a_run_leaves_its_figures(tmp_path):
    carry_out(experiment.EXPERIMENT, tmp_path, settings=SMALL)
    folder = tmp_path / "sparse-features"
    figures = {f["name"]: f for f in json.loads((folder / "figures.json").read_text())["figures"]}
    for name, figure in figures.items():
        assert figure["value"] is not None and figure["baseline"] is not None, name
        if "difference" in name:
            assert figure["value"] <= figure["baseline"], name
    assert "nan" not in (folder / "table.md").read_text()
    assert list(folder.glob("*.png"))
