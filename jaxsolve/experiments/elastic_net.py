"""Elastic-net fits of all folds at one penalty: what `sparse_features` puts under `vmap`.

For each fold (the part that is left out) a model is fitted to the rest, with weights w of scaled
features, a free intercept c and l(.) the squares or the logistic loss,

    minimise  mean_i l(x_i'w + c, b_i) + alpha ||w||_1 + beta ||w||^2 / 2.

The cross-validation error is the mean loss on the parts left out.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..convex import Composite, ProximalGradient
from ..convex.penalties import ElasticNet
from ..core.solution import Solution
from ..core.solve import solve
from ..core.vectors import matmul

TOLERANCE = 1e-11


class Data(NamedTuple):
    """Features of mean 0 and variance 1, targets, and which examples each fold leaves out."""

    x: Float[Array, "m n"]
    b: Float[Array, " m"]
    left_out: Bool[Array, "k m"]


Logs = dict[str, Float[Array, ""]]


def squares(score: Array, target: Array) -> Array:
    """Half of the squared error."""
    return 0.5 * (score - target) ** 2


def logistic(score: Array, target: Array) -> Array:
    """log(1 + exp(-b s)) for b = -1 or 1."""
    return jnp.logaddexp(0.0, -target * score)


def load(name: str, folds: int, seed: int) -> Data:
    """`diabetes` or `breast_cancer`, in folds of almost equal size."""
    from sklearn import datasets

    bunch: Any = getattr(datasets, f"load_{name}")()
    x, b = np.asarray(bunch["data"], float), np.asarray(bunch["target"], float)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    b = 2 * b - 1 if name == "breast_cancer" else (b - b.mean()) / b.std()
    fold = np.random.default_rng((seed, len(b))).permutation(len(b)) % folds
    return Data(jnp.asarray(x), jnp.asarray(b), jnp.asarray(fold == np.arange(folds)[:, None]))


def fit_squares(data: Data, left_out: Bool[Array, " m"], penalty: ElasticNet) -> Solution:
    """A fit without the examples of a fold, from sums over the rest; the intercept is theirs."""
    weight = (~left_out).astype(data.x.dtype) / jnp.sum(~left_out)
    mean, level = matmul(weight, data.x), matmul(weight, data.b)
    centred = data.x - mean
    gram = matmul(centred.T, weight[:, None] * centred)
    linear = matmul(weight * (data.b - level), centred)
    problem = Composite(
        lambda w, args: jnp.sum(w * (0.5 * matmul(args[0], w) - args[1])), penalty, (gram, linear)
    )
    return solve(problem, ProximalGradient(), jnp.zeros_like(linear), tolerance=TOLERANCE)


def fit_logistic(data: Data, left_out: Bool[Array, " m"], penalty: ElasticNet) -> Solution:
    """The same for the logistic loss: the intercept is a variable that has no weight."""
    weight = (~left_out).astype(data.x.dtype) / jnp.sum(~left_out)

    def loss(y: dict[str, Array], args: Any) -> Array:
        data, weight = args
        return jnp.sum(weight * logistic(matmul(data.x, y["w"]) + y["c"], data.b))

    zero = jnp.zeros_like(penalty.weight)
    free = ElasticNet({"w": penalty.weight, "c": zero}, {"w": penalty.ridge, "c": zero})
    start = {"w": jnp.zeros_like(data.x[0]), "c": zero}
    problem = Composite(loss, free, (data, weight))
    return solve(problem, ProximalGradient(), start, tolerance=TOLERANCE)


class Task(NamedTuple):
    """One data set with its loss and how a fold is fitted."""

    name: str
    title: str
    loss: Any
    fit: Any

    def folds(self, data: Data, logs: Logs) -> tuple[Float[Array, ""], Solution]:
        """The cross-validation error at one penalty, and the fits of all folds."""
        penalty = ElasticNet(jnp.exp(logs["alpha"]), jnp.exp(logs["beta"]))
        found = jax.vmap(lambda left_out: self.fit(data, left_out, penalty))(data.left_out)
        w, c = self.parts(data, found.value)
        scores = matmul(w, data.x.T) + c[:, None]
        losses = jnp.where(data.left_out, self.loss(scores, data.b), 0.0)
        return jnp.sum(losses) / data.b.size, found

    def parts(self, data: Data, value: Any) -> tuple[Float[Array, "k n"], Float[Array, " k"]]:
        """Weights and intercepts of all folds."""
        if isinstance(value, dict):
            return value["w"], value["c"]
        weight = (~data.left_out).astype(data.x.dtype)
        weight = weight / jnp.sum(weight, axis=1, keepdims=True)
        mean, level = matmul(weight, data.x), matmul(weight, data.b)
        return value, level - jnp.sum(mean * value, axis=1)


DIABETES = Task("diabetes", "diabetes, squares", squares, fit_squares)
CANCER = Task("breast_cancer", "breast cancer, logistic", logistic, fit_logistic)


def largest(task: Task, data: Data) -> float:
    """The least alpha that leaves no feature, of all examples."""
    slope = data.b if task is DIABETES else 0.5 * (data.b - jnp.mean(data.b))
    return float(jnp.max(jnp.abs(matmul(slope, data.x)))) / data.b.size


def path(task: Task, data: Data, ratio: float, penalties: int, least: float) -> Logs:
    """log alpha and log beta along a path, from the least that leaves no feature down to `least`
    times that; `ratio` is alpha over their sum."""
    total = np.logspace(0, np.log10(least), penalties)
    total = total * largest(task, data) / max(ratio, 1e-3)
    return {"alpha": jnp.log(ratio * total), "beta": jnp.log((1 - ratio) * total)}


def errors(task: Task, data: Data, logs: Logs) -> tuple[Array, Array, Array, Array, Array]:
    """A whole path with all folds: errors, weights, intercepts, whether all met the tolerance, and
    the steps taken."""
    error, found = jax.vmap(lambda logs: task.folds(data, logs))(logs)
    w, c = jax.vmap(lambda value: task.parts(data, value))(found.value)
    return error, w, c, found.success, found.stats.steps
