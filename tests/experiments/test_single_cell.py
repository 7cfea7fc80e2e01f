"""The score of `single-cell`, and a run on made-up cells: the real ones are elsewhere."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from jaxsolve.experiments import carry_out, single_cell as experiment


def test_energy_distance_is_scipys():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 3)), 0.5 + rng.normal(size=(260, 3))
    expected = cdist(x, y).mean() - 0.5 * pdist(x).mean() - 0.5 * pdist(y).mean()
    with jax.enable_x64(True):
        found = experiment.energy_distance(jnp.asarray(x), jnp.asarray(y))
    # A point's distance to itself is the root of its rounding.
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_cells_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="cite_pca_50.npz"):
        experiment.load(str(tmp_path))


@pytest.mark.slow
def test_a_run_leaves_its_figures(tmp_path):
    rng = np.random.default_rng(0)
    days = {f"day_{d}": d * np.ones(3) + rng.normal(size=(200 + d, 3)) for d in (2, 3, 4, 7)}
    np.savez(tmp_path / experiment.FILE, **days)
    settings = experiment.Settings(seeds=2, components=2, steps=50, folder=str(tmp_path))
    carry_out(experiment.EXPERIMENT, tmp_path, settings=settings)
    figures = json.loads((tmp_path / "single-cell" / "figures.json").read_text())["figures"]
    found = {f["name"]: f for f in figures}
    assert all(f["value"] is not None and f["baseline"] is not None for f in figures)
    assert found["the same, beside straight lines"]["value"] < 0.2
