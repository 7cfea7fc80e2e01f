"""Bilevel problems whose solutions are known in closed form, which is derived beside each.

A: merely convex lower level, one coupling row. B: strongly convex, 90 coupling rows, and 90 of the
upper level of which half are 0. C: as A with another objective, and a row that need not be affine.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxsolve as js
from jaxsolve import sets


class Toy(NamedTuple):
    problem: Any
    init: Any
    x: Any = None
    y: Any = None


def _objective_a(x, y, args):
    x, y = x / args["length"], [part / args["length"] for part in y]
    return args["upper"] * 0.5 * (jnp.sum((x - y[1]) ** 2) + jnp.sum((y[0] - 1) ** 2))


def _lower_a(x, y, args):
    x, y = x / args["length"], [part / args["length"] for part in y]
    return args["scale"] * (0.5 * jnp.sum(y[0] ** 2) - jnp.sum(x * y[0]) + jnp.sum(y[1]))


def _coupling_a(x, y, args):
    return args["row"] * (jnp.sum(x) + jnp.sum(y[0]) + jnp.sum(y[1])) / args["length"]


def toy_a(n, scale=1.0, row=1.0, length=1.0, upper=1.0):
    """Lower: lam = -1, y1 = x + e, y2 any vector of sum -2 e'x - n; upper: y2 = -2 x - e, so that
    3 (3 x + 1) + x = 0.

    Args:
        scale, upper: what the objectives are multiplied by; row: the constraint.
        length: the unit of x and y.
    """
    numbers = {"scale": scale, "row": row, "length": length, "upper": upper}
    args = {name: jnp.asarray(value) for name, value in numbers.items()}
    e = length * jnp.ones(n)
    return Toy(
        js.Bilevel(_objective_a, _lower_a, args, coupling_equality=_coupling_a),
        (10 * e, [10 * e, 10 * e]),
        -0.3 * e,
        jnp.concatenate([0.7 * e, -0.4 * e]),
    )


def toy_b(n=100, seed=0, as_set=True):
    """y(x) = (I - A+ A) x - A+ H x, B x = 0.

    Args:
        as_set: whether B x = 0 is the set X, or among the coupling constraints.
    """
    rng = np.random.default_rng(seed)
    p, half = (9 * n) // 10, (9 * n) // 20
    A, H = rng.uniform(size=(2, p, n))
    B = np.zeros((p, n))
    B[:half] = rng.uniform(size=(half, n))
    c, d = rng.uniform(size=(2, n))
    data = [jnp.asarray(part, jnp.result_type(float)) for part in (A, H, c, d, B)]

    def objective(x, y, args):
        return jnp.sin(args[2] @ x + args[3] @ y) + jnp.log(jnp.sum((x + y) ** 2) + 1)

    def lower(x, y, args):
        return 0.5 * jnp.sum((x - y) ** 2)

    def coupling(x, y, args):
        rows = args[0] @ y + args[1] @ x
        return rows if as_set else (rows, args[4] @ x)

    upper_set = sets.Affine(data[4], jnp.zeros(p, data[4].dtype)) if as_set else None
    problem = js.Bilevel(objective, lower, data, coupling_equality=coupling, upper_set=upper_set)
    e = jnp.ones(n, data[0].dtype)
    inverse = np.linalg.pinv(A)
    response = np.eye(n) - inverse @ A - inverse @ H
    return Toy(problem, (10 * e, 10 * e), y=lambda x: response @ np.asarray(x, float))


def toy_c(n, power):
    """x = e, y1 = 2 e, y2 = -3 e, lam = -1."""

    def objective(x, y, args):
        return jnp.sum((y[0] - 2) * (x - 1)) + jnp.sum((y[1] + 3) ** 2)

    def lower(x, y, args):
        return 0.5 * jnp.sum(y[0] ** 2) - jnp.sum(x * y[0]) + jnp.sum(y[1])

    def coupling(x, y, args):
        return jnp.sum(x**power) + jnp.sum(y[0]) + jnp.sum(y[1])

    e = jnp.ones(n)
    mean = (0 * e, [e, e])
    return Toy(
        js.Bilevel(objective, lower, coupling_equality=coupling),
        mean,
        e,
        jnp.concatenate([2 * e, -3 * e]),
    )


def relative(found, wanted):
    found = np.concatenate([np.asarray(leaf, float) for leaf in found])
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
