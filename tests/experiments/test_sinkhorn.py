"""A small run of `sinkhorn`, and its plain method against NumPy."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transport_plans import sinkhorn

from jaxsolve.experiments import carry_out, sinkhorn as experiment


def test_the_plain_method_is_that_of_numpy(x64, monkeypatch):
    monkeypatch.setattr(experiment, "ETA", 20.0)
    rng = np.random.default_rng(0)
    costs, a, b = rng.uniform(size=(6, 5)), np.full(6, 1 / 6), np.full(5, 1 / 5)
    fn = experiment.plain(5000, 1e-13)
    g, errors, count = jax.jit(fn)(*map(jnp.asarray, (costs, a, b)))
    expected = sinkhorn(costs, a, b, 1 / 20.0)[2]
    np.testing.assert_allclose(g - np.mean(g), expected, atol=1e-10)
    assert errors[count - 1] <= 1e-13 < errors[count - 2]


@pytest.mark.slow
def test_a_run_leaves_its_figures(tmp_path):
    settings = replace(experiment.EXPERIMENT.quick, points=40, plain=20)
    carry_out(experiment.EXPERIMENT, tmp_path, settings=settings)
    folder = tmp_path / "sinkhorn"
    figures = json.loads((folder / "figures.json").read_text())["figures"]
    # Steps of Newton's method are none where it stalls.
    assert all(f["value"] is not None or f["name"].endswith("steps") for f in figures)
    assert len(figures) == 9 and all(f["baseline"] is not None for f in figures)
    assert {p.name for p in folder.glob("*.png")} == {"plans.png", "errors.png"}
