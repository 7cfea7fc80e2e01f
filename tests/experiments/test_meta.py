"""Few-shot sinusoids, at a small size."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxsolve.experiments import carry_out, meta as experiment

SMALL = replace(experiment.EXPERIMENT.quick, seeds=1, tasks=3, steps=2, test=4, points=20)


def test_tasks_are_the_published_ones():
    keys = jax.random.split(jax.random.key(0), 500)
    tasks = jax.vmap(partial(experiment.draw, shots=10, points=90))(keys)
    x, y = np.asarray(tasks.query.x), np.asarray(tasks.query.y)
    assert tasks.support.x.shape == (500, 10, 1)
    assert -5 <= x.min() < -4.9 and 4.9 < x.max() <= 5
    largest = np.abs(y).max(axis=(1, 2))
    assert largest.max() <= 5 and abs(largest.mean() - 2.55) < 0.2
    # y^2 + (dy / dx)^2 = a^2 has no phase in it: three points say what a and b are.
    for k in range(3):
        columns = np.concatenate([np.sin(x[k]), np.cos(x[k])], axis=1)
        parts, left, *_ = np.linalg.lstsq(columns, y[k], rcond=None)
        assert left.max() < 1e-8
        assert 0 <= np.arctan2(parts[1, 0], parts[0, 0]) <= np.pi


@pytest.mark.slow
def test_the_implicit_derivative_is_that_of_the_adapted_error(x64):
    key = jax.random.key(3)
    task = experiment.draw(key, 10, 10)
    start = experiment.network(key)
    flat, unravel = ravel_pytree(start)

    def after(flat):
        found = experiment.adapt(unravel(flat), task.support, 1.0, 1e-10)
        return experiment.error(found.value, task.query)

    slope = jax.grad(after)(flat)
    size = jnp.linalg.norm(slope)
    move = 1e-4 * slope / size
    numeric = (after(flat + move) - after(flat - move)) / 2e-4
    np.testing.assert_allclose(size, numeric, rtol=1e-6)


@pytest.mark.slow
def test_a_run_leaves_its_figures(tmp_path):
    carry_out(experiment.EXPERIMENT, tmp_path, settings=SMALL)
    record = json.loads((tmp_path / "meta" / "figures.json").read_text())
    assert len(record["figures"]) == 4 * len(experiment.WAYS)
    assert all(f["value"] is not None for f in record["figures"])
