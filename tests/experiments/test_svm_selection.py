"""Weights of a support vector machine's examples: its parts against SciPy, and a small run."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxsolve.experiments import (
    carry_out,
    svm_selection as experiment,
    weighted_machine as model,
)
from jaxsolve.experiments.data import Examples

SMALL = replace(
    experiment.EXPERIMENT.quick, splits=2, train=30, validation=30, doublings=4, steps=500, solves=4
)


def split(count=25, size=3, seed=0):
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(3):
        x = rng.normal(size=(count, size))
        y = np.where(x @ np.ones(size) + rng.normal(size=count) > 0, 1, -1)
        parts.append(Examples(jnp.asarray(x), jnp.asarray(y, jnp.int32)))
    return model.Split(*parts)


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
    machine = jax.jit(model.trained)(jnp.asarray(logs), parts)
    found = scipy.optimize.minimize(
        squares(logs, parts.train), np.zeros(4), jac=True, method="BFGS", options={"gtol": 1e-10}
    ).x
    np.testing.assert_allclose(jnp.append(machine["w"], machine["b"]), found, atol=1e-7)
    margins = np.asarray(model.margins(machine, parts.train))
    np.testing.assert_allclose(machine["s"], np.maximum(0, 1 - margins), atol=1e-7)

    def value(logs):
        return model.loss(model.trained(logs, parts), parts.validation)

    way = np.random.default_rng(2).normal(size=25)
    slope = jax.jit(jax.grad(value))(jnp.asarray(logs)) @ way
    both = [float(jax.jit(value)(jnp.asarray(logs + s * 1e-5 * way))) for s in (1, -1)]
    np.testing.assert_allclose(slope, (both[0] - both[1]) / 2e-5, rtol=1e-4)


def test_the_variables_and_the_projection(x64):
    parts = split()
    args = model.data(parts, 5.0, 1.0)
    project = jax.jit(lambda x, y: model.projection(args)(x, y))
    rng = np.random.default_rng(3)
    v = rng.normal(size=4)
    machine = {"w": jnp.asarray(v[:3]), "b": jnp.asarray(v[3]), "s": jnp.ones(25)}
    x, y = model.variables(jnp.full(25, 2.0), machine, args)
    np.testing.assert_allclose(args.logs(x), 2.0, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), args.machine(y), machine)
    signs = np.asarray(parts.train.y)[:, None]
    plain = signs * np.column_stack([np.asarray(parts.train.x), np.ones(25)])
    # |v|^2 = |(w, b)|^2 + |A (w, b)|^2: neither part is steep in v.
    np.testing.assert_allclose(y["v"] @ y["v"], v @ v + np.sum((plain @ v) ** 2), rtol=1e-9)
    rows = np.asarray(model.projection(args).rows)
    np.testing.assert_allclose(rows @ np.asarray(y["v"]), plain @ v, rtol=1e-9, atol=1e-12)
    for scale in (0.1, 3.0):
        x, v, s = rng.uniform(-20, 20, 25), scale * rng.normal(size=4), rng.normal(size=25)
        new, found = project(jnp.asarray(x), {"v": jnp.asarray(v), "s": jnp.asarray(s)})
        np.testing.assert_allclose(args.logs(new), np.clip(5 * x, *model.BOUNDS), rtol=1e-12)
        assert np.max(model.coupling(new, found, args)) < 1e-12
        # Without the slacks, a least-squares problem with squared hinges.
        fn = lambda u, v=v, s=s: np.sum((u - v) ** 2) + np.sum(np.maximum(0, 1 - s - rows @ u) ** 2)
        wanted = scipy.optimize.minimize(fn, v, method="BFGS", options={"gtol": 1e-9}).x
        np.testing.assert_allclose(found["v"], wanted, atol=1e-6)
        np.testing.assert_allclose(found["s"], np.maximum(s, 1 - rows @ wanted), atol=1e-6)


def test_a_method_that_diverged_has_no_numbers():
    value = np.array([[0.3, 0.4], [0.2, 0.5]])
    for last, diverged in ((0.01, 0), (-6.8e3, 1), (np.nan, 1)):
        out = experiment.Outcome(value, 1 - value, np.array([[0.01, 0.01], [0.01, last]]), 1.0)
        assert out.diverged == diverged
        assert np.isnan(out.chosen("value")).all() == bool(diverged)
        text = experiment._text("a", {"penalty": out, "grid": out._replace(gap=None)}, 1.0)
        assert ("diverged on 1 of 2 splits" in text) == bool(diverged)


def test_the_splits_of_the_tuning_are_not_reported(tmp_path):
    with pytest.raises(ValueError, match="seed 1234"):
        carry_out(experiment.EXPERIMENT, tmp_path, seed=experiment.TUNING_SEED, settings=SMALL)


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
    assert "diverged on" not in (folder / "table.md").read_text()
    # Whatever it is chosen by, the upper variable has moved.
    by = {(f["name"], f["method"]): f for f in figures}
    ours = by["hyper-objective, diabetes", "LV-HBA"]
    assert ours["value"] != ours["baseline"]
    assert "nan" not in (folder / "table.md").read_text()
    assert len(list(folder.glob("*.png"))) == 2
