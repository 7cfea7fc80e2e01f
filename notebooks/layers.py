# %% [markdown]
# # A problem as a layer
#
# A network gives scores; a layer turns them into something that obeys rules: a distribution with few entries, an
# order, a plan within a budget. The rules are a quadratic program, and the network learns *through* it.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import jaxsolve as js

# %% [markdown]
# ## The sparse softmax
#
# The point of the simplex that is nearest to the scores. Unlike the softmax it can be exactly zero.

# %%
n = 4
sparsemax = js.SolverLayer(
    lambda s: js.QuadraticProgram(jnp.eye(n), -s, A=jnp.ones((1, n)), b=jnp.ones(1), lower=0.0)
)
scores = jnp.array([1.0, 0.8, 0.1, -1.0])
print(jnp.round(sparsemax(scores), 3), jnp.round(jax.nn.softmax(scores), 3))
print(jnp.round(jax.jacrev(sparsemax)(scores), 3))

# %% [markdown]
# ## Learning through it
#
# A mixture of four linear experts, of which each input belongs to exactly one. The gate is a network with the
# layer on top.


# %%
class Mixture(eqx.Module):
    gate: eqx.nn.MLP
    experts: jax.Array
    choose: js.SolverLayer

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.gate = eqx.nn.MLP(2, n, 16, 1, activation=jnp.tanh, key=one)
        self.experts = jax.random.normal(two, (n, 2))
        self.choose = sparsemax

    def __call__(self, x):
        weights = self.choose(self.gate(x))
        return weights @ (self.experts @ x), weights


def target(x):
    """One of four linear functions, by the quadrant."""
    truth = jnp.array([[1.0, 1.0], [-2.0, 1.0], [1.0, -2.0], [-1.0, -1.0]])
    return truth[2 * (x[0] > 0).astype(int) + (x[1] > 0)] @ x


x = jax.random.normal(jax.random.key(1), (256, 2))
y = jax.vmap(target)(x)
model = Mixture(jax.random.key(2))
optimiser = optax.adam(2e-2)
state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))


@eqx.filter_value_and_grad
def loss(model):
    return jnp.mean((jax.vmap(model)(x)[0] - y) ** 2)


@eqx.filter_jit
def update(model, state):
    value, gradient = loss(model)
    change, state = optimiser.update(gradient, state)
    return eqx.apply_updates(model, change), state, value


losses = []
for _ in range(150):
    model, state, value = update(model, state)
    losses.append(float(value))
print(losses[0], "->", losses[-1])
assert losses[-1] < 0.3 * losses[0]

# %% [markdown]
# Most inputs end with fewer experts than there are: the zeros are exact.

# %%
weights = jax.vmap(model)(x)[1]
print("experts in use:", float(jnp.mean(jnp.sum(weights > 1e-4, axis=1))))

# %% [markdown]
# ## `QPLayer`, and flax
#
# `QPLayer` takes the fields of a quadratic program as its inputs, all of them differentiable. In flax it is called
# like any function: there is no wrapper.

# %%
from flax import nnx


class Allocate(nnx.Module):
    def __init__(self, rngs):
        self.score = nnx.Linear(2, n, rngs=rngs)
        self.cap = nnx.Param(jnp.array(0.6))

    def __call__(self, x):
        def plan(s):
            return js.QPLayer()(
                jnp.eye(n), -s, A=jnp.ones((1, n)), b=jnp.ones(1), lower=0.0, upper=self.cap[...]
            )

        return jax.vmap(plan)(self.score(x))


module = Allocate(nnx.Rngs(0))
gradient = nnx.grad(lambda m: jnp.mean((m(x)[:, 0] - 1.0) ** 2))(module)
print("gradient of the cap:", float(gradient["cap"][...]))
assert jnp.isfinite(gradient["cap"][...])
