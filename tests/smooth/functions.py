"""Test functions of More, Garbow and Hillstrom (1981), with their published starts and minima.

All are sums of squares: `residuals(x)`, whose squared norm is `minimum` at a minimiser. Data of the
least-squares fits are those of the paper.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Function(NamedTuple):
    """`minima`: published least values of ||r||^2, the global one first."""

    residuals: Callable
    start: tuple[float, ...]
    minima: tuple[float, ...]


def rosenbrock(x):
    return jnp.concatenate([10 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])


def freudenstein_roth(x):
    return jnp.stack(
        [
            -13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1],
            -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1],
        ]
    )


def powell_singular(x):
    return jnp.stack(
        [
            x[0] + 10 * x[1],
            5**0.5 * (x[2] - x[3]),
            (x[1] - 2 * x[2]) ** 2,
            10**0.5 * (x[0] - x[3]) ** 2,
        ]
    )


def beale(x):
    targets = jnp.asarray([1.5, 2.25, 2.625], x.dtype)
    return targets - x[0] * (1 - jnp.stack([x[1], x[1] ** 2, x[1] ** 3]))


def helical_valley(x):
    angle = jnp.arctan2(x[1], x[0]) / (2 * np.pi)
    return jnp.stack([10 * (x[2] - 10 * angle), 10 * (jnp.hypot(x[0], x[1]) - 1), x[2]])


def wood(x):
    return jnp.stack(
        [
            10 * (x[1] - x[0] ** 2),
            1 - x[0],
            90**0.5 * (x[3] - x[2] ** 2),
            1 - x[2],
            10**0.5 * (x[1] + x[3] - 2),
            (x[1] - x[3]) / 10**0.5,
        ]
    )


def bard(x):
    y = [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39]
    u = jnp.arange(1, 16, dtype=x.dtype)
    v = 16 - u
    return jnp.asarray(y, x.dtype) - (x[0] + u / (v * x[1] + jnp.minimum(u, v) * x[2]))


def kowalik_osborne(x):
    y = [0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246]
    u = [4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625]
    y, u = jnp.asarray(y, x.dtype), jnp.asarray(u, x.dtype)
    return y - x[0] * (u * u + u * x[1]) / (u * u + u * x[2] + x[3])


def brown_dennis(x):
    t = jnp.arange(1, 21, dtype=x.dtype) / 5
    first = x[0] + t * x[1] - jnp.exp(t)
    second = x[2] + x[3] * jnp.sin(t) - jnp.cos(t)
    return first**2 + second**2


def jennrich_sampson(x):
    i = jnp.arange(1, 11, dtype=x.dtype)
    return 2 + 2 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1]))


def osborne_1(x):
    y = """.844 .908 .932 .936 .925 .908 .881 .850 .818 .784 .751 .718 .685 .658 .628 .603 .580 .558
    .538 .522 .506 .490 .478 .467 .457 .448 .438 .431 .424 .420 .414 .411 .406"""
    t = 10 * jnp.arange(33, dtype=x.dtype)
    fit = x[0] + x[1] * jnp.exp(-t * x[3]) + x[2] * jnp.exp(-t * x[4])
    return jnp.asarray([float(v) for v in y.split()], x.dtype) - fit


def broyden_tridiagonal(x):
    left = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
    right = jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])
    return (3 - 2 * x) * x - left - 2 * right + 1


def discrete_boundary_value(x):
    h = 1 / (x.size + 1)
    t = h * jnp.arange(1, x.size + 1, dtype=x.dtype)
    left = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
    right = jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])
    return 2 * x - left - right + h**2 * (x + t + 1) ** 3 / 2


def brown_almost_linear(x):
    return jnp.concatenate([x[:-1] + jnp.sum(x) - (x.size + 1), jnp.prod(x)[None] - 1])


def powell_badly_scaled(x):
    return jnp.stack([1e4 * x[0] * x[1] - 1, jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001])


FUNCTIONS = {
    "rosenbrock": Function(rosenbrock, (-1.2, 1.0), (0.0,)),
    "extended rosenbrock": Function(rosenbrock, (-1.2, 1.0) * 10, (0.0,)),
    "freudenstein-roth": Function(freudenstein_roth, (0.5, -2.0), (0.0, 48.9842)),
    "powell singular": Function(powell_singular, (3.0, -1.0, 0.0, 1.0), (0.0,)),
    "beale": Function(beale, (1.0, 1.0), (0.0,)),
    "helical valley": Function(helical_valley, (-1.0, 0.0, 0.0), (0.0,)),
    "wood": Function(wood, (-3.0, -1.0, -3.0, -1.0), (0.0,)),
    "bard": Function(bard, (1.0, 1.0, 1.0), (8.21487e-3,)),
    "kowalik-osborne": Function(kowalik_osborne, (0.25, 0.39, 0.415, 0.39), (3.07505e-4,)),
    "brown-dennis": Function(brown_dennis, (25.0, 5.0, -5.0, -1.0), (85822.2,)),
    "jennrich-sampson": Function(jennrich_sampson, (0.3, 0.4), (124.362,)),
    "osborne 1": Function(osborne_1, (0.5, 1.5, -1.0, 0.01, 0.02), (5.46489e-5,)),
}

ROOTS = {
    "rosenbrock": Function(
        lambda x: jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]]), (-1.2, 1.0), (0.0,)
    ),
    "powell singular": FUNCTIONS["powell singular"],
    "powell badly scaled": Function(powell_badly_scaled, (0.0, 1.0), (0.0,)),
    "helical valley": FUNCTIONS["helical valley"],
    "broyden tridiagonal": Function(broyden_tridiagonal, (-1.0,) * 20, (0.0,)),
    "discrete boundary value": Function(discrete_boundary_value, (-0.1,) * 20, (0.0,)),
    "brown almost-linear": Function(brown_almost_linear, (0.5,) * 10, (0.0,)),
}
