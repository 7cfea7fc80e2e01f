"""Bilevel problems whose solutions are known: means of quadratic functions of both variables.

f = mean_i  y'A_i y / 2 + y'(B_i x + b_i)
F = mean_i  y'P_i y / 2 + x'Q_i x / 2 + x'R_i y + p_i'x + q_i'y
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsolve.bilevel.stochastic import StochasticBilevel


def lower(x, y, batch, args):
    a, b, c = batch
    quadratic = 0.5 * jnp.einsum("i,nij,j->n", y, a, y)
    return jnp.mean(quadratic + (jnp.einsum("nij,j->ni", b, x) + c) @ y)


def upper(x, y, batch, args):
    p, q, r, s, t = batch
    quadratic = jnp.einsum("i,nij,j->n", y, p, y) + jnp.einsum("i,nij,j->n", x, q, x)
    return jnp.mean(0.5 * quadratic + jnp.einsum("i,nij,j->n", x, r, y) + s @ x + t @ y)


class Exact(NamedTuple):
    """The mean functions in NumPy."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    p: np.ndarray
    q: np.ndarray
    r: np.ndarray
    s: np.ndarray
    t: np.ndarray

    def best(self, x):
        """y(x)."""
        return -np.linalg.solve(self.a, self.b @ np.asarray(x, np.float64) + self.c)

    def gradient(self, x, y=None):
        """grad h(x); at another y, the hypergradient formed there."""
        x = np.asarray(x, np.float64)
        y = self.best(x) if y is None else np.asarray(y, np.float64)
        v = -np.linalg.solve(self.a, self.p @ y + self.r.T @ x + self.t)
        return self.q @ x + self.r @ y + self.s + self.b.T @ v

    def hessian(self):
        """That of h."""
        zero = self.gradient(np.zeros(self.q.shape[0]))
        return np.stack([self.gradient(e) - zero for e in np.eye(self.q.shape[0])], axis=1)

    def solution(self):
        """The x at which grad h is 0."""
        return -np.linalg.solve(self.hessian(), self.gradient(np.zeros(self.q.shape[0])))


def quadratics(
    samples=(20, 24), dims=(3, 5), seed=0, noise=0.3, batch_size=4, dtype: type = np.float64
):
    """A `StochasticBilevel` whose samples differ, and its mean in NumPy.

    The curvatures of each sample of f are between 0.5 and 1.
    """
    rng = np.random.default_rng(seed)
    (n, m), (dx, dy) = samples, dims

    def definite(count, dim, low, high):
        basis = np.linalg.qr(rng.normal(size=(count, dim, dim)))[0]
        values = rng.uniform(low, high, size=(count, dim))
        return np.einsum("nij,nj,nkj->nik", basis, values, basis)

    def around(count, *shape):
        return rng.normal(size=shape) + noise * rng.normal(size=(count, *shape))

    lower_data = definite(m, dy, 0.5, 1.0), 0.3 * around(m, dy, dx), around(m, dy)
    upper_data = (
        definite(n, dy, 0.1, 0.5),
        definite(n, dx, 0.8, 1.2),
        0.1 * around(n, dx, dy),
        around(n, dx),
        around(n, dy),
    )
    lower_data, upper_data = (
        tuple(np.asarray(a, dtype) for a in data) for data in (lower_data, upper_data)
    )
    exact = Exact(*(a.astype(np.float64).mean(axis=0) for a in (*lower_data, *upper_data)))
    arrays = [tuple(jnp.asarray(a) for a in data) for data in (upper_data, lower_data)]
    return StochasticBilevel(upper, lower, *arrays, batch_size=batch_size), exact
