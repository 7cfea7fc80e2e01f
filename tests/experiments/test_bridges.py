"""The scores of `light-sb`, and a run of it at tiny sizes."""

import json

import jax
import numpy as np
import pytest
import scipy.linalg

import jaxsolve as js
from jaxsolve.experiments import carry_out, digit_translation, known_bridges, light_sb as experiment


def test_styles_of_bars():
    """An upright bar, and one whose columns follow its rows."""
    upright, diagonal = np.zeros((2, 28, 28))
    upright[4:24, 13:15] = 1.0
    diagonal[np.arange(5, 23), np.arange(5, 23)] = 0.5
    found = digit_translation.styles(np.stack([upright, diagonal]).reshape(2, -1))
    np.testing.assert_allclose(found[:, 0], [0.0, 1.0], atol=1e-12)
    np.testing.assert_allclose(found[:, 1], [40.0, 9.0])
    np.testing.assert_allclose(found[0, 2:], [0.5, np.arange(20).std()])
    np.testing.assert_allclose(found[1, 2:], np.arange(18).std())


@pytest.mark.slow
def test_the_score_by_draws_is_scipys(x64):
    """The published recipe: sample moments, and scipy's root of a matrix."""
    benchmark = js.gaussian_mixture_benchmark(3, 1.0, jax.random.key(0))
    other = js.gaussian_mixture_benchmark(3, 1.0, jax.random.key(1)).bridge
    key, count = jax.random.key(2), 5
    found = known_bridges.conditional_uvp(benchmark, other, key, count)
    distances = []
    for own, x in zip(jax.random.split(key, count), benchmark.inputs[:count], strict=True):
        true = benchmark.bridge.conditional(x)
        y = np.asarray(other.conditional(x).sample(own, (known_bridges.DRAWS,)))
        C, D = np.cov(y.T), np.asarray(true.covariance)
        half = np.real(np.asarray(scipy.linalg.sqrtm(C)))
        mixed = np.trace(np.real(np.asarray(scipy.linalg.sqrtm(half @ D @ half))))
        away = y.mean(axis=0) - np.asarray(true.mean)
        distances.append(0.5 * away @ away + 0.5 * np.trace(C) + 0.5 * np.trace(D) - mixed)
    expected = 100 * np.mean(distances) / (0.5 * float(benchmark.variance))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_every_class_has_as_many_held_images():
    train, held = digit_translation.mnist(3)
    np.testing.assert_array_equal(np.bincount(held.y), 150)
    np.testing.assert_array_equal(np.bincount(train.y), 350)
    rows = np.concatenate([np.asarray(train.x), np.asarray(held.x)]).sum(axis=1)
    again = np.concatenate([np.asarray(p.x) for p in digit_translation.mnist(4)]).sum(axis=1)
    np.testing.assert_allclose(np.sort(rows), np.sort(again))
    assert not np.array_equal(rows, again)


@pytest.mark.slow
def test_a_run_leaves_its_figures(tmp_path):
    settings = experiment.Settings(
        roll_points=400, roll_components=20, pairs=((3, 8),), latent=8, epochs=15,
        digit_components=2, draws=2,
        known=known_bridges.Sizes(
            cells=((2, 1.0),), points=1000, inputs=20, matched=((2, 1.0),), batch=32, steps=50
        ),
    )  # fmt: skip
    carry_out(experiment.EXPERIMENT, tmp_path, settings=settings)
    folder = tmp_path / "light-sb"
    figures = json.loads((folder / "figures.json").read_text())["figures"]
    found = {f["name"]: f for f in figures}
    assert all(f["value"] is not None and f["baseline"] is not None for f in figures)
    moved = found["digits: distance of a latent to its translation"]
    assert moved["value"] < 0.9 * moved["baseline"]
    assert found["digits: recognised as the target class"]["value"] > 50
    roll = found["swiss roll, epsilon 0.1: energy distance to a held-out sample"]
    assert roll["value"] < roll["baseline"]
    assert "nan" not in (folder / "table.md").read_text()
    assert {p.name for p in folder.glob("*.png")} == {"swiss_roll.png", "digits.png"}
