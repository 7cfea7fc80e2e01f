"""The shortest-path benchmark of decision-focused learning, at a small size."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.csgraph

from jaxsolve.experiments import carry_out, decision as experiment

SMALL = replace(
    experiment.EXPERIMENT.quick,
    seeds=2,
    train=16,
    test=20,
    degrees=(1, 8),
    noises=(0.5,),
    steps=2,
    batch=4,
    spo_steps=3,
    checks=2,
)


def flow(costs):
    """The shortest path by HiGHS."""
    arcs = experiment.ARCS
    found = scipy.optimize.linprog(costs, A_eq=arcs.balance, b_eq=arcs.supply, bounds=(0, 1))
    return found.x


def test_paths_are_those_of_a_linear_program(x64):
    costs = np.random.default_rng(0).normal(0.3, 1.0, (12, experiment.COUNT))
    paths = np.asarray(jax.jit(experiment.shortest)(costs))
    np.testing.assert_array_equal(np.sort(np.unique(paths)), [0, 1])
    np.testing.assert_allclose(paths, [flow(c) for c in costs], atol=1e-9)


def test_the_grid_is_the_published_one():
    assert experiment.COUNT == 40
    # 70 paths, and all of eight arcs.
    steps = np.zeros((25, 25))
    for arc in range(40):
        column = experiment.ARCS.balance[:, arc]
        head = np.flatnonzero(column == -1)
        steps[np.flatnonzero(column == 1)[0], head[0] if len(head) else 24] = 1
    assert np.linalg.matrix_power(steps, 8)[0, 24] == 70
    assert scipy.sparse.csgraph.shortest_path(steps)[0, 24] == 8


def test_costs_are_the_published_ones():
    settings = replace(SMALL, seeds=400, degrees=(1, 4), noises=(0.0, 0.5))
    with jax.enable_x64(True):
        cells, examples = experiment.generate(settings, 0, 8)
    assert cells == [(1, 0.0), (4, 0.0), (1, 0.5), (4, 0.5)]
    c = np.asarray(examples.c)
    line = 3.5 * c[0] - 1 - 3
    # (B x)_j / sqrt(5) is a sum of five coins times normals: variance 1/2, mean 0.
    assert abs(line.mean()) < 0.02 and abs(line.var() - 0.5) < 0.02
    np.testing.assert_allclose(3.5**4 * c[1], (line + 3) ** 4 + 1, rtol=1e-9)
    ratio = c[2] / c[0]
    assert 0.5 <= ratio.min() < 0.51 and 1.49 < ratio.max() <= 1.5


def test_regret_is_that_of_the_chosen_paths(x64):
    _, examples = experiment.generate(SMALL, 0, 6)
    weights = experiment.least_squares(examples)
    found = np.asarray(experiment.regret(weights, examples))
    c, x, w = (np.asarray(v) for v in (examples.c, examples.x, weights))
    for k in range(2):
        predicted = x[1] @ w[k, 1]
        np.testing.assert_allclose(w[k, 1], np.linalg.lstsq(x[1], c[k, 1])[0], atol=1e-8)
        paid = sum(a @ flow(b) for a, b in zip(c[k, 1], predicted, strict=True))
        best = sum(a @ flow(a) for a in c[k, 1])
        np.testing.assert_allclose(found[k, 1], paid / best - 1, atol=1e-9)


@pytest.mark.slow
def test_the_subgradient_of_spo_plus_is_below_the_loss(x64):
    """Convex, and above the regret: z(c) = c'w(c), loss = -z(2p - c) + 2 p'w(c) - z(c)."""
    _, examples = experiment.generate(SMALL, 0, 8)
    best = experiment.shortest(examples.c)

    def loss(weights):
        predicted = experiment.predict(weights, examples.x)
        turned = 2 * predicted - examples.c
        least = jnp.sum(turned * experiment.shortest(turned))
        total = 2 * jnp.sum(predicted * best) - least - jnp.sum(examples.c * best)
        return total / examples.x.shape[1]

    start = experiment.least_squares(examples)
    slope = jax.grad(experiment.spo_plus)(start, examples, best)
    keys = jax.random.split(jax.random.key(0), 20)
    for key in keys:
        other = start + 0.3 * jax.random.normal(key, start.shape)
        assert loss(other) >= loss(start) + jnp.sum(slope * (other - start)) - 1e-9
        paths = experiment.shortest(experiment.predict(other, examples.x))
        regret = jnp.sum(examples.c * (paths - best)) / examples.x.shape[1]
        assert loss(other) >= regret - 1e-9


@pytest.mark.slow
def test_the_smooth_decision_and_its_derivative(x64):
    rng = np.random.default_rng(3)
    arcs, gamma = experiment.ARCS, 0.7
    decide = jax.jit(lambda c: experiment.decision(c, gamma))
    # A far shorter path, whose balance rows are dependent, and costs that are all alike.
    for costs in (rng.uniform(0.5, 4.0, 40), rng.uniform(1.0, 1.2, 40)):
        found = decide(costs)
        theirs = scipy.optimize.minimize(
            lambda y, c=costs: c @ y + gamma / 2 * y @ y,
            np.full(40, 0.2),
            jac=lambda y, c=costs: c + gamma * y,
            bounds=[(0, 1)] * 40,
            constraints={
                "type": "eq",
                "fun": lambda y: arcs.balance @ y - arcs.supply,
                "jac": lambda y: arcs.balance,
            },
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 1000},
        ).x
        np.testing.assert_allclose(found, theirs, atol=1e-5)
        way, weights = rng.normal(size=40), rng.normal(size=40)
        slope = jax.grad(lambda c, w=weights: jnp.sum(w * decide(c)))(jnp.asarray(costs))
        ends = [weights @ np.asarray(decide(costs + s * 1e-4 * way)) for s in (1, -1)]
        np.testing.assert_allclose(slope @ way, (ends[0] - ends[1]) / 2e-4, atol=1e-3)


@pytest.mark.slow
def test_a_run_leaves_its_figures(tmp_path):
    carry_out(experiment.EXPERIMENT, tmp_path, settings=SMALL)
    folder = tmp_path / "decision"
    figures = json.loads((folder / "figures.json").read_text())["figures"]
    assert len(figures) == 1 + 2 * 2
    for figure in figures:
        assert figure["value"] is not None and figure["baseline"] is not None
    assert figures[0]["value"] <= figures[0]["baseline"]
    assert "nan" not in (folder / "table.md").read_text()
    assert list(folder.glob("*.png"))
