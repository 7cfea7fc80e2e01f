# %% [markdown]
# # One problem inside of another
#
# A ridge regression has a weight for its penalty, chosen by what the fit does on other data. With one weight for
# each feature a grid is hopeless; a bilevel problem is not. Here x are log-weights, and y is the fit.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes

import jaxsolve as js

jax.config.update("jax_enable_x64", True)
raw = load_diabetes()
features = (raw.data - raw.data.mean(0)) / raw.data.std(0)
targets = (raw.target - raw.target.mean()) / raw.target.std()
order = np.random.default_rng(0).permutation(len(targets))
parts = {"training": order[:60], "validation": order[60:250], "test": order[250:]}
data = {name: (jnp.asarray(features[i]), jnp.asarray(targets[i])) for name, i in parts.items()}


def error(y, part):
    return 0.5 * jnp.mean((part[0] @ y - part[1]) ** 2)


def upper(x, y, args):
    return error(y, args["validation"]) + 1e-4 * jnp.sum(x**2)


def lower(x, y, args):
    return error(y, args["training"]) + 0.5 * jnp.sum(jnp.exp(x) * y**2)


# %% [markdown]
# ## Solve it
#
# The default solver descends along hypergradients, the derivatives of the upper level at the lower level's solution.
# The verdict is recomputed: the lower level's conditions, the adjoint system, the hypergradient.

# %%
start = (jnp.full(10, -2.0), jnp.zeros(10))
solution = js.solve(js.Bilevel(upper, lower, data), init=start)
x, y = solution.value
print(solution.summary())

plain = jnp.linalg.lstsq(*data["training"])[0]


@jax.vmap
def grid(weight):
    ridge = lambda y, w: error(y, data["training"]) + 0.5 * jnp.exp(w) * jnp.sum(y**2)
    return js.solve(js.Minimise(ridge, weight), init=jnp.zeros(10)).value


one = min(grid(jnp.linspace(-6.0, 2.0, 17)), key=lambda y: error(y, data["validation"]))
for name, fit in (("no penalty", plain), ("one weight", one), ("a weight each", y)):
    print(
        f"{name:14s} validation {error(fit, data['validation']):.4f}  test {error(fit, data['test']):.4f}"
    )
assert error(y, data["validation"]) < error(one, data["validation"])

# %% [markdown]
# ## One hypergradient at a time
#
# For loops of your own there is `hypergradient`. It agrees with central differences.

# %%
problem = js.Bilevel(upper, lower, data)
found = js.hypergradient(problem, start, tolerance=1e-12)


def value(x):
    return js.hypergradient(problem, (x, start[1]), tolerance=1e-12).value


steps = 1e-4 * jnp.eye(10)
numeric = jnp.stack([(value(start[0] + e) - value(start[0] - e)) / 2e-4 for e in steps])
print("largest difference", float(jnp.abs(found.gradient - numeric).max()))
assert jnp.allclose(found.gradient, numeric, atol=1e-7)

# %% [markdown]
# ## A third level
#
# The solution has a derivative in its data: how does each feature's weight move when the validation targets are
# shrunk? No loop is differentiated.


# %%
def log_weights(shrink):
    inputs, outputs = data["validation"]
    changed = data | {"validation": (inputs, shrink * outputs)}
    return js.solve(js.Bilevel(upper, lower, changed), init=(x, y)).value[0]


rates = jax.jacfwd(log_weights)(1.0)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
axes[0].bar(raw.feature_names, np.asarray(x))
axes[0].set_title("log-weight of each feature")
axes[1].bar(raw.feature_names, np.asarray(rates))
axes[1].set_title("its derivative in the validation targets' size")
figure.tight_layout()

# %% [markdown]
# ## Constraints that join the levels
#
# Where the lower level is only convex, or shares constraints with the upper one, `LVHBA` needs first derivatives
# alone. It ends near the solution (`approximate`); `Polished` ends at it. Here the lower level is flat: it fixes the
# sum of y, and the upper level chooses among all of its solutions. Where it is as flat as that, a short proximal
# term (`gamma1`) keeps the method's inner point near.


# %%
def leader(x, y, args):
    return jnp.sum((x - 1.0) ** 2) + jnp.sum((y - args) ** 2)


def follower(x, y, args):
    return 0.0 * jnp.sum(y)


def balance(x, y, args):
    return jnp.sum(x) + jnp.sum(y)


problem = js.Bilevel(leader, follower, jnp.array([1.0, 2.0, 3.0]), coupling_equality=balance)
first = (jnp.zeros(3), jnp.zeros(3))
rough = js.solve(problem, js.LVHBA(gamma1=1.0), first)
exact = js.solve(problem, js.Polished(js.LVHBA(gamma1=1.0)), first)
print("LVHBA   ", np.round(rough.value[1], 4), "gap", float(rough.state.gap))
print("Polished", np.round(exact.value[1], 4), "successful", bool(exact.success))
# Both variables move by the same amount, that which the sum asks for.
assert jnp.allclose(exact.value[1], jnp.array([1.0, 2.0, 3.0]) - 1.5)
