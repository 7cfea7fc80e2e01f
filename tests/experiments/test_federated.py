"""Clients on a mesh, at a small size."""

import json
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxsolve.experiments import carry_out, federated as experiment

SMALL = replace(experiment.EXPERIMENT.quick, divisions=2, steps=50)


def mesh_of(count):
    kinds = (AxisType.Auto,)
    return jax.make_mesh(
        (count,), (experiment.AXIS,), devices=jax.devices()[:count], axis_types=kinds
    )


def given(index=0):
    division = experiment.divide(SMALL, 7, index)
    constants = jnp.asarray(SMALL.shrinkage), jnp.asarray(SMALL.prior)
    return division, experiment.Data(division.clients, division.validation, *constants)


def test_a_division_uses_each_example_once_and_flips_labels_of_three_clients(x64):
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    division, _ = given()
    parts = (division.clients, division.validation, division.test)
    x = np.concatenate([np.asarray(p.x).reshape(-1, 11) for p in parts])
    y = np.concatenate([np.asarray(p.y).ravel() for p in parts])
    assert x.shape == (569, 11) and np.all(x[:, -1] == 1) and len(np.unique(x, axis=0)) == 569
    order = np.random.default_rng([7, 0]).permutation(569)
    truth = 2.0 * data.target[order] - 1
    np.testing.assert_array_equal(y[320:], truth[320:])
    assert division.wrong.sum() == 3
    # Labels of a class are told by the first component alone in nine cases of ten.
    likely = np.sign(np.corrcoef(x[320:, 0], y[320:])[0, 1]) * np.sign(x[:320, 0])
    agree = (likely == y[:320]).reshape(8, 40).mean(axis=1)
    assert agree[~division.wrong].mean() > agree[division.wrong].mean() + 0.2


def test_equal_models_have_the_objective_of_one_model(x64):
    _, data = given()
    mesh = mesh_of(8)
    problem = experiment.federation(mesh, experiment.placed(mesh, data))
    alone = experiment.in_one_place(data)
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.uniform(0, 2, 8)), jnp.asarray(rng.normal(size=11))
    all_of = lambda y: jnp.broadcast_to(y, (8, 11))
    for field in ("lower", "upper"):
        together = lambda x, y, f=field: getattr(problem, f)(x, all_of(y), problem.args)
        single = lambda x, y, f=field: getattr(alone, f)(x, y, alone.args)
        ours = jax.jit(jax.value_and_grad(together, (0, 1)))(x, y)
        theirs = jax.value_and_grad(single, (0, 1))(x, y)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)
    apart = problem.coupling_equality(x, all_of(y), problem.args)
    np.testing.assert_allclose(apart, 0, atol=1e-14)


def test_eight_devices_find_what_one_finds_with_two_reductions_a_step(x64):
    _, data = given()
    values = {}
    for count in (1, 8):
        mesh = mesh_of(count)
        own = experiment.placed(mesh, data)
        compiled = jax.jit(partial(experiment.federate, SMALL, mesh)).lower(own).compile()
        values[count] = compiled(own).value
        if count == 8:
            moved = [
                len(re.findall(r"(?:all-\w+|collective-permute|reduce-scatter)\(", body))
                for name, body in re.findall(
                    r"\n%?(\S+) \([^\n]*\{\n(.*?)\n\}", compiled.as_text(), re.DOTALL
                )
                if "region" in name
            ]
            assert max(moved) == 2
    for a, b in zip(*(jax.tree.leaves(values[c]) for c in (1, 8)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    y = np.asarray(values[8][1])
    np.testing.assert_allclose(y, np.broadcast_to(y[0], y.shape), rtol=1e-12)


@pytest.mark.slow
def test_the_distance_from_the_solution_falls_with_the_steps(x64):
    division, data = given()
    best = experiment.models(division, data)[1]["in one place"]
    away = []
    for steps in (5000, 50_000):
        found = experiment.federate(replace(SMALL, steps=steps), mesh_of(1), data)
        y = jnp.mean(found.value[1], axis=0)
        away.append(float(jnp.linalg.norm(y - best) / jnp.linalg.norm(best)))
    # As 1 / c_k, which falls to a third.
    assert away[1] < 0.05 and away[1] < away[0] / 2


@pytest.mark.slow
def test_a_federated_run_leaves_its_figures(tmp_path):
    carry_out(experiment.EXPERIMENT, tmp_path, settings=SMALL)
    record = json.loads((tmp_path / "federated" / "figures.json").read_text())
    assert len(record["figures"]) == len(experiment.METHODS) + 2
    assert all(f["value"] is not None for f in record["figures"])
