"""The contract's checks fail where they must: one solver with one fault each."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsolve as js
from jaxsolve.testing import CHECKS, Case, Expected, check_solver

BY_NAME = {check.__name__: check for check in CHECKS}


class State(eqx.Module):
    y: jax.Array
    gradient: jax.Array


class Descent(js.AbstractSolver):
    """Steepest descent with a fixed step: right, and slow."""

    def init(self, problem, guess):
        return self.at(problem, guess.primal)

    def at(self, problem, y):
        return State(y, problem.optimality(js.Point(y)).primal)

    def step(self, problem, state):
        return self.at(problem, state.y - 0.4 * state.gradient)

    def measure(self, problem, state):
        return jnp.max(jnp.abs(state.gradient))

    def point(self, problem, state):
        return js.Point(state.y)


class Loud(Descent):
    def step(self, problem, state):
        jax.debug.callback(lambda: None)
        return super().step(problem, state)


class Coarse(Descent):
    def step(self, problem, state):
        new = super().step(problem, state)
        return State(jnp.eye(3, dtype=new.y.dtype) @ new.y, new.gradient)


class Wide(Descent):
    def step(self, problem, state):
        new = super().step(problem, state)
        return State(new.y.astype(jnp.float64).astype(new.y.dtype), new.gradient)


class Forgetful(Descent):
    def init(self, problem, guess):
        return self.at(problem, jnp.zeros_like(guess.primal))


class Blurred(Descent):
    """A lane's step depends on its neighbours where there are any: through a batch's mean."""

    def step(self, problem, state):
        @jax.custom_batching.custom_vmap
        def nudge(y):
            return y

        @nudge.def_vmap
        def rule(size, batched, y):
            return y + 1e-3 * jnp.mean(y), True

        return self.at(problem, nudge(state.y - 0.4 * state.gradient))


class Misstated(js.Minimise):
    """Its conditions are right at the solution and wrong in the data."""

    def optimality(self, point):
        return js.Point(
            jax.grad(lambda y: self.fn(y, jax.lax.stop_gradient(self.args)))(point.primal)
        )


def objective(y, data):
    return 0.5 * jnp.sum(data["weight"] * (y - data["shift"]) ** 2) + 0.01 * jnp.sum(y**4)


def gradient(data, y):
    return data["weight"] * (y - data["shift"]) + 0.04 * y**3


def solution(data):
    """Newton's method for each entry's cubic."""
    y = np.zeros(3)
    for _ in range(50):
        y = y - gradient(data, y) / (data["weight"] + 0.12 * y**2)
    return y


def descent(solver=Descent, **changes):
    settings = {
        "name": "descent",
        "solver": solver,
        "problem": lambda data: js.Minimise(objective, data),
        "draw": lambda rng: {"shift": rng.normal(size=3), "weight": rng.uniform(0.5, 2, size=3)},
        "init": lambda data: jnp.zeros_like(data["shift"]),
        "oracle": solution,
        "optimality": lambda data, y, dual: np.abs(gradient(data, y)).max(),
        "outcomes": {
            "nan": Expected({"shift": np.full(3, np.nan), "weight": np.ones(3)}, "nonfinite_input")
        },
    }
    return Case(**(settings | changes))


NO_DIVERGENCE = {"steep": Expected({"shift": np.ones(3), "weight": np.full(3, 9.0)}, "successful")}
FAULTS = [
    ("programs", "float64", descent(Loud)),
    ("programs", "float64", descent(Coarse)),
    ("programs", "float32", descent(Wide)),
    ("warm_start", "float64", descent(Forgetful)),
    ("transforms", "float64", descent(Blurred)),
    ("bad_lanes", "float64", descent(Blurred)),
    ("derivatives", "float64", descent(problem=lambda data: Misstated(objective, data))),
    (
        "retracing",
        "float64",
        descent(problem=lambda d: js.Minimise(lambda y, a: objective(y, a), d)),
    ),
    ("oracle", "float64", descent(oracle=lambda data: solution(data) + 1e-6)),
    ("optimality", "float64", descent(optimality=lambda d, y, _: np.abs(y - d["shift"]).max())),
    ("results", "float64", descent(outcomes=NO_DIVERGENCE)),
    (
        "invariance",
        "float64",
        descent(invariances={"none": lambda d, rng: (d, lambda y: y + 1e-6)}),
    ),
]


@pytest.mark.parametrize(
    ("name", "dtype", "case"), FAULTS, ids=[f"{i}-{n}" for i, (n, *_) in enumerate(FAULTS)]
)
def test_a_fault_is_found(name, dtype, case):
    with pytest.raises(AssertionError):
        BY_NAME[name](case, dtype)


@pytest.mark.slow
def test_a_right_solver_passes():
    check_solver(descent())


def test_exempt_checks_are_left_out():
    def never(*_):
        raise RuntimeError("must not be drawn")

    check_solver(descent(draw=never, exempt={check.__name__: "of no use here" for check in CHECKS}))
