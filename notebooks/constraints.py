# %% [markdown]
# # Constraints: sets, cones, penalties
#
# Three ways to say what a solution must obey: it lies in a set, its slack lies in a cone, or it pays for what it
# does. Each is a problem, and its solution a differentiable function of the data.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from sklearn.datasets import load_diabetes

import jaxsolve as js
from jaxsolve import penalties, sets

# %% [markdown]
# ## In a set
#
# The nearest point of the simplex has zeros, and its derivative says which entries still move.

# %%
scores = jnp.array([0.9, 0.6, 0.1, -0.4])
print("projection ", jnp.round(js.project(scores, sets.Simplex()), 3))
print(jnp.round(jax.jacrev(lambda s: js.project(s, sets.Simplex()))(scores), 2))

# %% [markdown]
# Sets without a formula are solved for: here the points of a box whose mean is given.

# %%
budget = sets.Intersection(
    sets.Box(0.0, 1.0), sets.Affine(jnp.full((1, 4), 0.25), jnp.array([0.5]))
)
inside = js.project(scores, budget)
print("projection ", jnp.round(inside, 3), "mean", float(jnp.mean(inside)))
assert abs(float(jnp.mean(inside)) - 0.5) < 1e-3

# %% [markdown]
# ## In a cone
#
# A portfolio whose risk |F'x| must not exceed a level r is a second-order cone program: (r, F'x) lies in the cone.
# The multiplier of the cone's first row is what a little more risk is worth.

# %%
n, k = 6, 3
factor = 0.2 * jax.random.normal(jax.random.key(1), (n, k)) + 0.1
gain = jnp.linspace(0.02, 0.12, n)


def portfolio(risk):
    G = jnp.concatenate([-jnp.eye(n), jnp.zeros((1, n)), -factor.T])
    h = jnp.concatenate([jnp.zeros(n), jnp.reshape(risk, (1,)), jnp.zeros(k)])
    problem = js.ConeProgram(
        None,
        -gain,
        A=jnp.ones((1, n)),
        b=jnp.ones(1),
        G=G,
        h=h,
        cones=[js.Nonnegative(n), js.SecondOrder(1 + k)],
    )
    return js.solve(problem, throw=False)


solution = portfolio(0.2)
print("mix        ", jnp.round(solution.value, 3))
print("risk       ", float(jnp.linalg.norm(factor.T @ solution.value)))
worth = jax.grad(lambda r: gain @ portfolio(r).value)(0.2)
print("worth      ", float(worth), "multiplier", float(solution.dual.inequality[n]))
assert jnp.allclose(worth, solution.dual.inequality[n], rtol=2e-2)

# %% [markdown]
# A whole frontier is one batch. Levels that no mix can keep end as `infeasible`, each with its proof, and do not
# touch the others. One level is so near the least risk of all that float32 can prove neither: it is `stalled`.

# %%
levels = jnp.linspace(0.0, 0.4, 33)
frontier = jax.vmap(portfolio)(levels)
good = frontier.success
print(frontier.summary().splitlines()[0])
plt.plot(levels[good], (frontier.value @ gain)[good], ".-")
plt.xlabel("risk")
plt.ylabel("return")
# %% [markdown]
# ## For a price
#
# `Composite` adds a penalty to a smooth function. The lasso, on real data: every weight of the penalty is a lane,
# and entries leave the model one by one.

# %%
X, y = load_diabetes(return_X_y=True)
X = jnp.asarray((X - X.mean(0)) / X.std(0), jnp.float32)
y = jnp.asarray((y - y.mean()) / y.std(), jnp.float32)


def misfit(beta, data):
    return 0.5 * jnp.mean((data[0] @ beta - data[1]) ** 2)


def lasso(weight):
    problem = js.Composite(misfit, penalties.L1(weight), (X, y))
    return js.solve(problem, init=jnp.zeros(10), throw=False).value


weights = jnp.geomspace(1e-3, 0.6, 40)
path = jax.vmap(lasso)(weights)
plt.figure()
plt.semilogx(weights, path)
plt.xlabel("weight of the penalty")
plt.ylabel("coefficients")
print("entries    ", jnp.sum(path != 0, axis=1)[::8])
assert int(jnp.sum(path[-1] != 0)) == 0
