# %% [markdown]
# # Writing your own solver
#
# A solver says how to begin, how to step, how far it is, and where. Here: Polyak's heavy ball for minimisation.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import jaxsolve as js


# %%
class State(eqx.Module):
    y: jax.Array
    velocity: jax.Array
    gradient: jax.Array


class HeavyBall(js.AbstractSolver[js.Minimise]):
    """Gradient descent with momentum, Polyak (1964)."""

    step_size: float = 0.1
    momentum: float = 0.8

    def refuse(self, problem):
        if not isinstance(problem, js.Minimise):
            raise TypeError(f"HeavyBall solves Minimise, not {type(problem).__name__}.")

    def init(self, problem, guess):
        y = guess.primal
        return State(y, jnp.zeros_like(y), jax.grad(problem)(y))

    def step(self, problem, state):
        velocity = self.momentum * state.velocity - self.step_size * state.gradient
        y = state.y + velocity
        return State(y, velocity, jax.grad(problem)(y))

    def measure(self, problem, state):
        return jnp.max(jnp.abs(state.gradient))

    def point(self, problem, state):
        return js.Point(state.y)


# %% [markdown]
# No loop, no derivative, no batching, no verdict: all of that is given.


# %%
def cost(y, a):
    return jnp.sum(jnp.log(jnp.cosh(y - a))) + 0.2 * jnp.sum(y**2) + 0.3 * y[0] * y[1]


def minimiser(a, solver=HeavyBall()):
    return js.solve(js.Minimise(cost, a), solver, init=jnp.zeros(2)).value


a = jnp.array([1.0, -0.5])
print("value     ", minimiser(a), minimiser(a, js.LBFGS()))
print("jacobian  ", jax.jacrev(minimiser)(a).ravel())
print("the other ", jax.jacfwd(lambda a: minimiser(a, js.LBFGS()))(a).ravel())
assert jnp.allclose(jax.jacrev(minimiser)(a), jax.jacfwd(minimiser)(a), atol=1e-3)

# %% [markdown]
# ## A batch is a queue
#
# The step counts of these lanes differ. No lane waits for the slowest.

# %%
many = jax.random.normal(jax.random.key(0), (500, 2)) * jnp.array([3.0, 0.5])
solve = jax.jit(
    jax.vmap(lambda a: js.solve(js.Minimise(cost, a), HeavyBall(), init=a, throw=False))
)
batch = solve(many)
print(batch.summary())
plt.hist(batch.stats.steps, bins=30)
plt.xlabel("steps")
plt.ylabel("lanes")

# %% [markdown]
# ## A solver's word is not enough
#
# This one claims to be done at once. The residual is recomputed, and the claim is not believed.


# %%
class Boaster(HeavyBall):
    def status(self, problem, state, tolerance):
        return jnp.array(True), js.RESULTS.successful


print(js.solve(js.Minimise(cost, a), Boaster(), init=jnp.ones(2), throw=False).summary())

# %% [markdown]
# ## Diverging
#
# A step that is too long: the iterate is lost, the last finite point is kept, and the result says so.

# %%
lost = js.solve(
    js.Minimise(lambda y, _: jnp.sum(y**4)),
    HeavyBall(step_size=10.0),
    init=jnp.ones(2),
    throw=False,
)
print(lost.summary().splitlines()[0])
assert lost.result == js.RESULTS.nonfinite_state
