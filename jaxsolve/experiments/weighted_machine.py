"""A support vector machine with a weight for each training example, as a bilevel problem.

    lower   w, b, s = argmin |w|^2 / 2 + sum_i exp(C_i) s_i^2 / 2
                      subject to  1 - s_i - y_i (w'a_i + b) <= 0           (training examples i)
    upper   minimise over C  mean over validation of phi(y_j (w'a_j + b) / |w|),
            phi(m) = leaky_relu_0.01(2 sigmoid(-5 m) - 1)

as Yao, Yu, Zeng, Zhang (2024) state it; labels are -1 and 1. With A the rows y_i (a_i, 1) and
L L' = I + A'A, methods of the value function have v = L'(w, b) in place of (w, b), and C / reach in
place of C: neither f nor the constraints are then steep in v, however nearly dependent the features
are. With B = A L'^-1, the projection on the constraints is C clipped and
s_i = max(s_i, 1 - (B v)_i) at the v of least |v - v0|^2 + sum_i max(0, 1 - s_i - (B v)_i)^2:
Newton's method on d + 1 unknowns, finite (Mangasarian, 2002), O(n d^2) an iteration.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..convex import InteriorPoint, QuadraticProgram
from ..core.solve import solve
from ..core.vectors import matmul
from .data import Examples

_NEWTON_STEPS = 4

Machine = dict[str, Array]
Variables = dict[str, Array]

BOUNDS = (-10.0, 1.0)
"""Of C, for all methods."""


class Split(NamedTuple):
    """The three parts of one division; labels are -1 and 1."""

    train: Examples
    validation: Examples
    test: Examples


class Data(NamedTuple):
    """A split with L'^-1, the unit of C, and the weight of a penalty."""

    split: Split
    back: Float[Array, "d+1 d+1"]
    reach: Float[Array, ""]
    rho: Float[Array, ""]

    def logs(self, x: Array) -> Array:
        """C."""
        return self.reach * x

    def machine(self, y: Variables) -> Machine:
        """w, b and s."""
        own = matmul(self.back, y["v"])
        return {"w": own[:-1], "b": own[-1], "s": y["s"]}


def data(split: Split, reach: float, rho: float) -> Data:
    rows = _rows(split.train)
    eye = jnp.eye(rows.shape[1], dtype=rows.dtype)
    factor = jnp.linalg.cholesky(eye + matmul(rows.T, rows))
    back = jax.scipy.linalg.solve_triangular(factor, eye, lower=True).T
    numbers = (jnp.asarray(x, rows.dtype) for x in (reach, rho))
    return Data(split, back, *numbers)


def variables(logs: Array, machine: Machine, args: Data) -> tuple[Array, Variables]:
    """(x, y) of C and a machine."""
    own = jnp.append(machine["w"], machine["b"])
    return logs / args.reach, {"v": jnp.linalg.solve(args.back, own), "s": machine["s"]}


def margins(machine: Machine, examples: Examples) -> Float[Array, " m"]:
    """y_i (w'a_i + b)."""
    scores = matmul(examples.x, machine["w"]) + machine["b"]
    return scores * examples.y.astype(scores.dtype)


def loss(machine: Machine, examples: Examples) -> Float[Array, ""]:
    """The mean of phi."""
    scaled = margins(machine, examples) / jnp.sqrt(jnp.sum(machine["w"] ** 2) + 1e-12)
    return jnp.mean(jax.nn.leaky_relu(2 * jax.nn.sigmoid(-5 * scaled) - 1, 0.01))


def accuracy(machine: Machine, examples: Examples) -> Float[Array, ""]:
    return jnp.mean(margins(machine, examples) > 0)


def upper(x: Array, y: Variables, args: Data) -> Float[Array, ""]:
    """F."""
    return loss(args.machine(y), args.split.validation)


def lower(x: Array, y: Variables, args: Data) -> Float[Array, ""]:
    """f."""
    w = args.machine(y)["w"]
    return 0.5 * jnp.sum(w**2) + 0.5 * jnp.sum(jnp.exp(args.logs(x)) * y["s"] ** 2)


def coupling(x: Array, y: Variables, args: Data) -> Float[Array, " n"]:
    """The constraints."""
    return 1 - y["s"] - margins(args.machine(y), args.split.train)


def penalised(x: Array, y: Variables, args: Data) -> Float[Array, ""]:
    """f with the constraints as a penalty."""
    excess = jnp.maximum(coupling(x, y, args), 0)
    return lower(x, y, args) + 0.5 * args.rho * jnp.sum(excess**2)


class Projection(eqx.Module):
    """P_C; `rows` are B, `low` and `high` the bounds of x."""

    rows: Float[Array, "n d+1"]
    low: Float[Array, ""]
    high: Float[Array, ""]

    def __call__(self, x: Array, y: Variables) -> tuple[Array, Variables]:
        short = 1 - y["s"]

        def newton(v: Array, _: None) -> tuple[Array, None]:
            active = short - matmul(self.rows, v) > 0
            own = jnp.where(active[:, None], self.rows, 0)
            side = y["v"] + matmul(short, own)
            square = jnp.eye(v.size, dtype=v.dtype) + matmul(own.T, own)
            return jnp.linalg.solve(square, side), None

        v, _ = jax.lax.scan(newton, y["v"], length=_NEWTON_STEPS)
        slack = jnp.maximum(y["s"], 1 - matmul(self.rows, v))
        return jnp.clip(x, self.low, self.high), {"v": v, "s": slack}


def projection(args: Data) -> Projection:
    """That of a problem."""
    rows = matmul(_rows(args.split.train), args.back)
    return Projection(rows, *(bound / args.reach for bound in BOUNDS))


def _rows(examples: Examples) -> Float[Array, "n d+1"]:
    """y_i (a_i, 1)."""
    ones = jnp.ones_like(examples.x[:, :1])
    rows = jnp.concatenate([examples.x, ones], axis=1)
    return rows * examples.y[:, None].astype(rows.dtype)


def trained(x: Float[Array, " n"], split: Split, tolerance: float = 1e-8) -> Machine:
    """The lower level's solution, differentiable in C."""
    examples = split.train
    count, size = examples.x.shape
    signs = examples.y.astype(x.dtype)
    weights = jnp.concatenate([jnp.ones(size, x.dtype), jnp.zeros(1, x.dtype), jnp.exp(x)])
    rows = jnp.concatenate([examples.x, jnp.ones((count, 1), x.dtype)], axis=1)
    rows = jnp.concatenate([-signs[:, None] * rows, -jnp.eye(count, dtype=x.dtype)], axis=1)
    program = QuadraticProgram(
        jnp.diag(weights), jnp.zeros_like(weights), G=rows, h=-jnp.ones_like(x)
    )
    found = solve(program, InteriorPoint(), tolerance=tolerance, max_steps=100, throw=False).value
    return {"w": found[:size], "b": found[size], "s": found[size + 1 :]}
