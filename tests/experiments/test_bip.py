"""Pruning a convolutional network on MNIST, at a small size."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxsolve.bilevel.pruning import Pruning
from jaxsolve.experiments import bip as experiment, carry_out

SMALL = replace(
    experiment.EXPERIMENT.quick,
    seeds=1,
    train=320,
    sparsities=(0.5,),
    dense=10,
    epochs=1,
    gradients=2,
)


@pytest.mark.parametrize("size", [3, 5])
def test_convolutions_are_those_of_xla(size):
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, 12, 8, 3))
    kernel = jax.random.normal(keys[1], (size, size, 3, 4))
    pad = ((size - 1) // 2, size // 2)
    theirs = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(experiment.convolved(x, kernel), theirs, atol=1e-4)


@pytest.fixture(scope="module")
def images():
    return experiment.mnist()


def test_images_and_network(images):
    train, test = experiment.split(images, 3, 3000)
    assert train.x.shape == (3000, 28, 28, 1) and test.x.shape == (2000, 28, 28, 1)
    assert train.x.min() == 0 and train.x.max() == 1
    # All 5000 images, 500 of a class, each once.
    whole = np.concatenate([train.x, test.x]).reshape(5000, -1)
    assert len(np.unique(whole @ np.random.default_rng(0).normal(size=784))) >= 4990
    np.testing.assert_array_equal(np.sort(whole.sum(1)), np.sort(images.x.sum((1, 2, 3))))
    assert np.bincount(np.concatenate([train.y, test.y])).tolist() == [500] * 10
    network = jax.eval_shape(experiment.initial, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(network)) == 26_826
    assert jax.eval_shape(experiment.logits, network, test.x[:3]).shape == (3, 10)


def test_all_methods_prune_the_matrices_alone(images):
    train, _ = experiment.split(images, 0, 320)
    network = experiment.initial(jax.random.key(0))
    problem = Pruning(experiment.loss, network, train, sparsity=0.9)
    assert problem.units == (26_826 - 8 - 16 - 32 - 10,)
    assert int(problem.kept[0]) == 26_760 - 24_084


@pytest.mark.slow
def test_a_run_leaves_its_figures(tmp_path):
    carry_out(experiment.EXPERIMENT, tmp_path, settings=SMALL)
    folder = tmp_path / "bip"
    figures = json.loads((folder / "figures.json").read_text())["figures"]
    assert len(figures) == 6
    for figure in figures:
        assert figure["value"] is not None and figure["baseline"] is not None
        assert figure["value"] > (30 if figure["unit"] == "%" else 0)
    text = (folder / "table.md").read_text()
    assert "nan" not in text and all(name in text for name in experiment.methods(SMALL))
    assert list(folder.glob("*.png"))
