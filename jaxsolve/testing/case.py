"""What the contract needs to know of a solver: problems, data, an oracle outside the library."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.problem import AbstractProblem
from ..core.solution import RESULTS, Solution
from ..core.solve import solve

Data = Any
"""A pytree of NumPy float64 arrays: what a problem is made from, and differentiated in."""


@dataclass(frozen=True)
class Expected:
    """Data with the result that they must lead to."""

    data: Data
    result: str


@dataclass(frozen=True)
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
        certificate: (data, value, dual, result) -> whether they prove the result, in NumPy.
        invariances: (data, generator) -> (other data, map of the value): the same problem otherwise
            written.
        condition: error of the value over the residual, at most, on drawn data.
        tolerance: by dtype name; asked of the solver.
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
    certificate: Callable[[Data, Any, Any, str], bool] | None = None
    invariances: dict[str, Callable] = field(default_factory=dict)
    condition: float = 10.0
    tolerance: dict[str, float] = field(default_factory=lambda: {"float32": 1e-5, "float64": 1e-10})
    warm_steps: int = 2
    exempt: dict[str, str] = field(default_factory=dict)

    def solution(self, data: Data, **settings: Any) -> Solution:
        """Solve for data of JAX arrays (or tracers); nothing is raised."""
        settings.setdefault("tolerance", self.tolerance[jax.tree.leaves(data)[0].dtype.name])
        init = settings.pop("start", None)
        init = self.init(data) if init is None else init
        return solve(self.problem(data), self.solver(), init, throw=False, **settings)

    @cached_property
    def lane(self) -> Callable[[Data], tuple]:
        """data -> (value, dual, result code), compiled once a dtype."""
        return jax.jit(self.outcome)

    def outcome(self, data: Data) -> tuple:
        solution = self.solution(data)
        return solution.value, solution.dual, jnp.asarray(solution.result._value)

    def batch(self, dtype: str, mixed: bool = True) -> Data:
        """Six lanes stacked: regular ones, and among them those that must fail, where there are."""
        lanes = [self.draw(np.random.default_rng(seed)) for seed in range(6)]
        if mixed:
            shape = jax.tree.map(np.shape, lanes[0])
            others = [e.data for e in self.outcomes.values()]
            others = [d for d in others if jax.tree.map(np.shape, d) == shape][:3]
            for place, data in zip((1, 3, 4), others, strict=False):
                lanes[place] = data
        return jax.tree.map(lambda *x: jnp.asarray(np.stack(x), dtype), *lanes)


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
