"""What the contract needs to know of a solver: problems, data, an oracle outside the library."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.problem import AbstractProblem
from ..core.solution import RESULTS, Solution
from ..core.solve import solve

Data = Any
"""A pytree of NumPy float64 arrays: what a problem is made from, and differentiated in."""

LANES = 8
"""Lanes of a batch: one a device on a mesh of eight."""


@dataclass(frozen=True)
class Expected:
    """Data with the result that they must lead to."""

    data: Data
    result: str


@dataclass(frozen=True)
class Degenerate:
    """Data at whose solution the optimality system is singular, and what its derivative is there:
    `"finite"` (the least-squares derivative of minimum norm) or `"nan"`."""

    data: Data
    derivative: Literal["finite", "nan"]


@dataclass(frozen=True, eq=False)
class Case:
    """A solver on a family of problems.

    Attributes:
        solver: makes the solver.
        problem: data -> problem; differentiable in the data, traceable.
        draw: generator -> data of a regular problem (a solution where a derivative exists).
        init: data -> a guess, or `None` for problems that need none.
        oracle: data -> the value, by something that is not this library.
        optimality: (data, value, dual) -> the largest violation of the optimality conditions, in
            NumPy float64, relative to the problem's scale.
        outcomes: data that must end otherwise, or with success in spite of their looks.
        degenerate: data at which the derivative is not an ordinary one.
        certificate: (data, value, dual, result) -> whether they prove the result, in NumPy.
        invariances: (data, generator) -> (other data, map of the value): the same problem otherwise
            written.
        condition: error of the value over the residual, at most, on drawn data; also the factor of
            100 eps within which a lane alone and in a batch agree.
        tolerance: by dtype name; asked of the solver.
        warm_steps: steps allowed from a solution.
        exempt: names of checks that do not apply, each with the reason.
    """

    name: str
    solver: Callable[[], Any]
    problem: Callable[[Data], AbstractProblem]
    draw: Callable[[np.random.Generator], Data]
    oracle: Callable[[Data], Any]
    optimality: Callable[[Data, Any, Any], float]
    init: Callable[[Data], Any] = lambda data: None
    outcomes: dict[str, Expected] = field(default_factory=dict)
    degenerate: dict[str, Degenerate] = field(default_factory=dict)
    certificate: Callable[[Data, Any, Any, str], bool] | None = None
    invariances: dict[str, Callable] = field(default_factory=dict)
    condition: float = 10.0
    tolerance: dict[str, float] = field(default_factory=lambda: {"float32": 1e-5, "float64": 1e-10})
    warm_steps: int = 2
    exempt: dict[str, str] = field(default_factory=dict)

    @cached_property
    def made(self) -> Any:
        """The solver, made once: a function among its settings is then always the same one."""
        return self.solver()

    def solution(self, data: Data, **settings: Any) -> Solution:
        """Solve for data of JAX arrays (or tracers); nothing is raised."""
        settings.setdefault("tolerance", self.tolerance[jax.tree.leaves(data)[0].dtype.name])
        init = settings.pop("start", None)
        init = self.init(data) if init is None else init
        return solve(self.problem(data), self.made, init, throw=False, **settings)

    def outcome(self, data: Data) -> tuple:
        """data -> (value, dual, result code)."""
        solution = self.solution(data)
        return solution.value, solution.dual, jnp.asarray(solution.result._value)

    def value(self, data: Data) -> Float[Array, " n"]:
        """data -> the value as one vector: what the checks of derivatives differentiate."""
        leaves = jax.tree.leaves(self.solution(data).value)
        return jnp.concatenate([jnp.ravel(x) for x in leaves])

    def differentiated(self, data: Data) -> tuple:
        """data -> (value, dual, result code, gradient of a sum over the value)."""

        def total(data):
            out = self.outcome(data)
            leaves = [jnp.ravel(x) for x in jax.tree.leaves(out[0])]
            vector = jnp.concatenate(leaves)
            return jnp.sum(vector * weights(vector)), out

        gradient, out = jax.grad(total, has_aux=True)(data)
        return *out, gradient

    @cached_property
    def lane(self) -> Callable[[Data], tuple]:
        """`outcome`, compiled once a dtype."""
        return jax.jit(self.outcome)

    @cached_property
    def gradient(self) -> Callable[[Data], tuple]:
        """`differentiated`, compiled once a dtype."""
        return jax.jit(self.differentiated)

    @cached_property
    def gradients(self) -> Callable[[Data], tuple]:
        """`differentiated` of a batch, compiled once a dtype."""
        return jax.jit(jax.vmap(self.differentiated))

    def regular(self, dtype: str, seed: int = 0) -> Data:
        """Drawn data as JAX arrays."""
        return cast(self.draw(np.random.default_rng(seed)), dtype)

    def batch(self, dtype: str) -> Data:
        """Lanes stacked: regular ones, and among them those that must fail, where there are."""
        lanes = [self.draw(np.random.default_rng(seed)) for seed in range(LANES)]
        shape = jax.tree.map(np.shape, lanes[0])
        others = [e.data for e in self.outcomes.values()]
        others = [d for d in others if jax.tree.map(np.shape, d) == shape][: LANES - 3]
        for place, data in zip((1, 3, 4, 6, 7), others, strict=False):
            lanes[place] = data
        return jax.tree.map(lambda *x: jnp.asarray(np.stack(x), dtype), *lanes)


def weights(vector: Float[Array, " n"]) -> Float[Array, " n"]:
    """A cotangent without symmetries."""
    return jnp.cos(jnp.arange(vector.size, dtype=vector.dtype))


def cast(data: Data, dtype: str) -> Data:
    """Data as JAX arrays."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), data)


def flat(tree: Any) -> np.ndarray:
    """The leaves as one float64 vector."""
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def name_of(code: Any) -> str:
    """The name of a result code."""
    return next(n for n, item in RESULTS._name_to_item.items() if int(item._value) == int(code))
