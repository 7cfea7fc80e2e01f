"""A small run of `sorting`: what it leaves, and that training orders what was not seen."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from jaxsolve.experiments import carry_out, sorting as experiment


def test_correlations_are_scipys_with_ties():
    rng = np.random.default_rng(0)
    scores, y = rng.normal(size=50), rng.integers(5, size=50)
    found = experiment.correlations(scores, y)
    ranks = stats.rankdata(scores), stats.rankdata(y)
    np.testing.assert_allclose(found[0], np.corrcoef(*ranks)[0, 1])
    signs = [np.sign(v[:, None] - v) for v in (scores, y)]
    product = np.sum(signs[0] * signs[1])
    np.testing.assert_allclose(found[1], product / np.sqrt(np.prod([np.sum(s**2) for s in signs])))


@pytest.mark.slow
def test_a_run_leaves_its_figures(tmp_path):
    settings = replace(
        experiment.EXPERIMENT.quick,
        splits=2,
        train=300,
        batch=50,
        steps=200,
        looks=4,
        rates=(1e-2,),
    )
    carry_out(experiment.EXPERIMENT, tmp_path, settings=settings)
    figures = json.loads((tmp_path / "sorting" / "figures.json").read_text())["figures"]
    assert all(f["value"] is not None and f["baseline"] is not None for f in figures)
    # Scores of a network that was not trained have a correlation of at most 0.3 with the digit.
    assert figures[0]["value"] > 0.75
