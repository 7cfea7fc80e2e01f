"""A small run of `sinkhorn`, and its plain method against NumPy."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transport_plans import sinkhorn

import jaxsolve as js
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
@pytest.mark.parametrize("task", [0, 1, 2], ids=["squares", "distances", "assignment"])
def test_newton_solves_the_papers_problems_by_itself(task, x64):
    """In no more steps than the paper has, up to 35 of the assignment; the sums by NumPy, of the
    plan that the potentials make."""
    task = experiment.tasks(experiment.EXPERIMENT.quick, 1)[task]
    problem = js.EntropicTransport(*map(jnp.asarray, task[1:4]), epsilon=1 / experiment.ETA)
    solution = js.solve(problem, task.newton, tolerance=1e-12)
    state = solution.state
    assert bool(state.solved)
    assert int(state.warm + state.newton) <= max(task.published[0], 35)
    f, g = map(np.asarray, solution.value.potentials)
    plan = task.a[:, None] * task.b * np.exp((f[:, None] + g - task.costs) * experiment.ETA)
    missing = np.abs(plan.sum(1) - task.a).sum() + np.abs(plan.sum(0) - task.b).sum()
    assert missing < 4e-12


@pytest.mark.slow
def test_a_run_leaves_its_figures(tmp_path):
    settings = replace(experiment.EXPERIMENT.quick, points=40, plain=20)
    carry_out(experiment.EXPERIMENT, tmp_path, settings=settings)
    folder = tmp_path / "sinkhorn"
    figures = json.loads((folder / "figures.json").read_text())["figures"]
    # Steps of Newton's method are none where it stalls.
    assert all(f["value"] is not None for f in figures)
    assert len(figures) == 9 and all(f["baseline"] is not None for f in figures)
    assert {p.name for p in folder.glob("*.png")} == {"plans.png", "errors.png"}
