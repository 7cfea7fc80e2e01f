# %% [markdown]
# # A first solve
#
# We choose a portfolio: the mix of assets of least variance for a wanted return. It is a quadratic program,
# and everything that one may want to ask of it is a question to one function.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import jaxsolve as js

n = 8
factors = jax.random.normal(jax.random.key(0), (n, 3))
covariance = 0.02 * factors @ factors.T + 0.01 * jnp.eye(n)
returns = jnp.linspace(0.02, 0.16, n)

# %% [markdown]
# ## A problem is data
#
# minimise x'Px/2 + q'x subject to Ax = b, Gx <= h, lower <= x <= upper. What is absent is `None`.


# %%
def portfolio(wanted):
    return js.QuadraticProgram(
        covariance,
        jnp.zeros(n),
        A=jnp.ones((1, n)),
        b=jnp.ones(1),  # all money is spent
        G=-returns[None],
        h=-jnp.reshape(wanted, (1,)),  # the return is at least what is wanted
        lower=0.0,  # nothing is sold short
        upper=0.5,
    )


problem = portfolio(0.10)
solution = js.solve(problem)
print(solution.summary())

# %% [markdown]
# `summary()` shows the residual by which success was judged: it is recomputed from the data at the point that is
# returned. The value and the multipliers:

# %%
print("mix       ", jnp.round(solution.value, 3))
print("of return ", jnp.round(solution.dual.inequality, 4))
print("at 0      ", jnp.round(solution.dual.lower, 4))

# %% [markdown]
# ## A multiplier is a price
#
# The multiplier of the wanted return says how much the objective grows with it. The derivative says the same,
# and nothing was unrolled to get it.


# %%
def risk(wanted):
    x = js.solve(portfolio(wanted)).value
    return x @ covariance @ x / 2


print(float(jax.grad(risk)(0.10)), float(solution.dual.inequality[0]))
assert jnp.allclose(jax.grad(risk)(0.10), solution.dual.inequality[0], rtol=1e-2)

# %% [markdown]
# ## A whole frontier at once
#
# `vmap` solves for a hundred wanted returns. One of them cannot be had: that lane says so, and the others do not
# notice.

# %%
wanted = jnp.linspace(0.02, 0.16, 100)
frontier = jax.jit(jax.vmap(lambda w: js.solve(portfolio(w), throw=False)))(wanted)
print(frontier.summary())

# %%
variance = jax.vmap(lambda x: x @ covariance @ x)(frontier.value)
good = frontier.success
plt.plot(jnp.sqrt(variance[good]), wanted[good])
plt.xlabel("standard deviation")
plt.ylabel("return")
plt.title("the efficient frontier")

# %% [markdown]
# ## When it cannot be done
#
# More than the best half-and-half mix can give: `infeasible`, with multipliers that prove it.

# %%
impossible = js.solve(portfolio(0.2), throw=False)
print(impossible.summary().splitlines()[0])
assert impossible.result == js.RESULTS.infeasible

# %% [markdown]
# With `throw=True`, the default, the same is an exception that says what to do:

# %%
try:
    js.solve(portfolio(0.2))
except js.SolveError as error:
    print(error)
