"""A program with as many steps as its data say, and the same by hand in NumPy."""

import jax
import jax.extend.core as jec
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsolve.core.loop import Lockstep, Program, Refill, run
from jaxsolve.core.progress import Call

SERVICES = pytest.mark.parametrize("heavy", [False, True], ids=["all slots", "picked slots"])
"""A service of all slots, and of some: where `init` is heavy beside a step."""

WIDTHS = [Refill(width=1), Refill(width=3), Refill(width=8), Refill(), Lockstep()]


def counted(lanes=Refill(), wrap=lambda data: data, light=False, heavy=False, **options):
    """A run of `data["count"]` steps of y <- cos(y) + slope y / 4, and a count of them; `heavy`:
    `init` does a hundred times as much."""

    def init(data):
        y = jnp.sin(data["start"])
        y = y + 0 * jnp.sum(jnp.full(100, y)) if heavy else y
        return {"steps": jnp.zeros_like(data["count"]), "y": y}, data["count"] <= 0

    def step(data, carry):
        y = jnp.cos(carry["y"]) + data["slope"] * carry["y"] / 4
        steps = carry["steps"] + 1
        return {"steps": steps, "y": y}, steps >= data["count"]

    def finish(data, carry):
        return {"steps": carry["steps"], "y": jnp.arctan(carry["y"])}

    program = Program(init, step, finish, lambda carry: carry["y"], light)
    return lambda data: run(program, wrap(data), lanes=lanes, **options)


def by_hand(data):
    """The same in NumPy float64, lane by lane."""
    data = {name: np.asarray(x) for name, x in data.items()}
    shape = np.broadcast_shapes(*(x.shape for x in data.values()))
    count, start, slope = (
        np.broadcast_to(data[n], shape).ravel() for n in ("count", "start", "slope")
    )
    out = []
    for number, y, a in zip(count, np.sin(np.float64(start)), slope, strict=True):
        for _ in range(max(number, 0)):
            y = np.cos(y) + np.float64(a) * y / 4
        out.append(np.arctan(y))
    return {"steps": np.maximum(count, 0).reshape(shape), "y": np.reshape(out, shape)}


def batch_of(size, seed=0, dtype=jnp.float32):
    """Counts with many easy lanes, some hard ones, and some that are done before the first step."""
    rng = np.random.default_rng(seed)
    count = rng.integers(0, 6, size)
    count[rng.random(size) < 0.1] = 60
    return {
        "count": jnp.asarray(count, jnp.int32),
        "start": jnp.asarray(rng.normal(size=size), dtype),
        "slope": jnp.asarray(rng.uniform(-1, 1, size), dtype),
    }


def assert_equal(found, wanted):
    np.testing.assert_array_equal(found["steps"], wanted["steps"])
    eps = jnp.finfo(found["y"].dtype).eps
    np.testing.assert_allclose(found["y"], wanted["y"], rtol=100 * eps, atol=100 * eps)


def equations(jaxpr):
    """All equations of a jaxpr, those of the programs inside it included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jec.jaxprs_in_params(eqn.params):
            yield from equations(sub)


def equations_of(fn, name, *args):
    """Where a primitive stands in the program of `fn`."""
    program = jax.make_jaxpr(fn)(*args).jaxpr
    return [eqn for eqn in equations(program) if eqn.primitive.name == name]


def count_of(fn, name, *args):
    """How often a primitive stands in the program of `fn`."""
    return len(equations_of(fn, name, *args))


def recorder(calls):
    """Progress that appends (step, worst, left, lanes) to `calls`."""
    return Call(lambda *call: calls.append(call))
