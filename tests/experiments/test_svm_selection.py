"""Weights of a support vector machine's examples: its parts against SciPy, and a small run."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxsolve.experiments import carry_out, svm_selection as experiment
from jaxsolve.experiments.data import Examples

SMALL = replace(
    experiment.EXPERIMENT.quick, splits=2, train=30, validation=30, doublings=2, steps=200, solves=4
)


def split(count=25, size=3, seed=0):
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(3):
        x = rng.normal(size=(count, size))
        y = np.where(x @ np.ones(size) + rng.normal(size=count) > 0, 1, -1)
        parts.append(Examples(jnp.asarray(x), jnp.asarray(y, jnp.int32)))
    return experiment.Split(*parts)


def squares(logs, train):
    """The lower level without its slacks: |w|^2 / 2 + sum_i exp(C_i) max(0, 1 - m_i)^2 / 2."""
    x, y = np.asarray(train.x), np.asarray(train.y)

    def fn(v):
        left = np.maximum(0, 1 - y * (x @ v[:-1] + v[-1]))
        value = 0.5 * v[:-1] @ v[:-1] + 0.5 * np.exp(logs) @ left**2
        pull = -np.exp(logs) * left * y
        return value, np.append(v[:-1] + x.T @ pull, pull.sum())

    return fn


@pytest.mark.slow
def test_the_machine_is_the_least_of_squared_hinges(x64):
    parts = split()
    logs = np.random.default_rng(1).uniform(-3, 1, 25)
    machine = jax.jit(experiment.trained)(jnp.asarray(logs), parts)
    found = scipy.optimize.minimize(
        squares(logs, parts.train), np.zeros(4), jac=True, method="BFGS", options={"gtol": 1e-10}
    ).x
    np.testing.assert_allclose(jnp.append(machine["w"], machine["b"]), found, atol=1e-7)
    margins = np.asarray(experiment.margins(machine, parts.train))
    np.testing.assert_allclose(machine["s"], np.maximum(0, 1 - margins), atol=1e-7)

    def value(logs):
        return experiment.loss(experiment.trained(logs, parts), parts.validation)

    way = np.random.default_rng(2).normal(size=25)
    slope = jax.jit(jax.grad(value))(jnp.asarray(logs)) @ way
    both = [float(jax.jit(value)(jnp.asarray(logs + s * 1e-5 * way))) for s in (1, -1)]
    np.testing.assert_allclose(slope, (both[0] - both[1]) / 2e-5, rtol=1e-4)


def test_the_projection(x64):
    parts = split()
    args = experiment.data(parts, 1.0)
    project = jax.jit(lambda x, y: experiment.projection(args)(x, y))
    rng = np.random.default_rng(3)
    rows = np.asarray(experiment.projection(args).rows)
    for scale in (0.1, 3.0):
        x, v, s = rng.uniform(-20, 20, 25), scale * rng.normal(size=4), rng.normal(size=25)
        machine = {"w": jnp.asarray(v[:3]), "b": jnp.asarray(v[3]), "s": jnp.asarray(s)}
        logs, found = project(jnp.asarray(x), machine)
        np.testing.assert_array_equal(logs, np.clip(x, *experiment.BOUNDS))
        assert np.max(experiment.coupling(logs, found, args)) < 1e-12
        # Without the slacks, a least-squares problem with squared hinges.
        fn = lambda u, v=v, s=s: np.sum((u - v) ** 2) + np.sum(np.maximum(0, 1 - s - rows @ u) ** 2)
        wanted = scipy.optimize.minimize(fn, v, method="BFGS", options={"gtol": 1e-9}).x
        np.testing.assert_allclose(jnp.append(found["w"], found["b"]), wanted, atol=1e-6)
        np.testing.assert_allclose(found["s"], np.maximum(s, 1 - rows @ wanted), atol=1e-6)


def test_the_data():
    found = experiment.datasets()
    assert found["breast cancer"].x.shape == (569, 30)
    assert found["diabetes"].x.shape == (442, 10)
    assert abs(np.mean(found["diabetes"].y)) < 0.01
    for examples in found.values():
        np.testing.assert_allclose(examples.x.mean(axis=0), 0, atol=1e-12)
        assert set(np.unique(examples.y)) == {-1, 1}


@pytest.mark.slow
def test_a_run_leaves_its_figures(tmp_path):
    carry_out(experiment.EXPERIMENT, tmp_path, settings=SMALL)
    folder = tmp_path / "svm-selection"
    figures = json.loads((folder / "figures.json").read_text())["figures"]
    assert len(figures) == 2 * 3 * 3
    assert all(figure["value"] is not None for figure in figures)
    # Whatever it is chosen by, the upper variable has moved.
    by = {(f["name"], f["method"]): f for f in figures}
    ours = by["hyper-objective, diabetes", "LV-HBA"]
    assert ours["value"] != ours["baseline"]
    assert "nan" not in (folder / "table.md").read_text()
    assert len(list(folder.glob("*.png"))) == 2
