# %% [markdown]
# # Moving one sample to another
#
# Two samples and no pairs. Entropic transport finds the plan of least cost between them, a divergence says how far
# apart they are, and a Schroedinger bridge is a diffusion from the one to the other.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons

import jaxsolve as js

y = jnp.asarray(make_moons(300, noise=0.05, random_state=0)[0], jnp.float32)
x = jnp.array([0.5, 0.25]) + 0.4 * jax.random.normal(jax.random.key(0), (300, 2))

# %% [markdown]
# ## A plan
#
# Between points the costs are computed where they are needed; a plan is one potential, and its matrix is made
# when it is asked for. `to_map` moves points that were not in the sample.

# %%
problem = js.EntropicTransport.from_points(x, y, epsilon=0.02)
solution = js.solve(problem)
plan = solution.value
print(solution.summary())
print("cost        ", float(plan.cost), "of transport alone", float(plan.transport_cost))
moved = jax.vmap(plan.to_map())(x)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharex=True, sharey=True)
axes[0].quiver(*x.T, *(moved - x).T, angles="xy", scale_units="xy", scale=1, width=2e-3)
axes[0].plot(*y.T, ".", ms=3)
axes[0].set_title("x, and where its mass goes on average")

# %% [markdown]
# ## A distance to descend
#
# The cost of the best plan is not zero between equal samples; the Sinkhorn divergence is, and it is smooth. Its
# gradient needs no linear system. Points that follow it flow to the other sample.


# %%
@jax.jit
@jax.value_and_grad
def divergence(x):
    return js.sinkhorn_divergence(x, y, epsilon=0.05)


points, values = x, []
for _ in range(10):
    value, slope = divergence(points)
    points = points - 0.2 * len(points) * slope
    values.append(float(value))
print("divergence  ", np.round(values[::2], 4))
assert values[-1] < 0.1 * values[0]
axes[1].plot(*points.T, ".", ms=3)
axes[1].set_title("x after 10 steps down the divergence")
figure.tight_layout()

# %% [markdown]
# ## A bridge
#
# `LightSB` fits the diffusion of variance epsilon that is closest to a Brownian motion. Everything one asks of it
# is a formula: the law of the end of a path from any point, the drift at any time.

# %%
fit = js.solve(js.SchrodingerBridge(x, y, epsilon=0.05), js.LightSB(10), key=jax.random.key(1))
bridge = fit.value
print(fit.summary().splitlines()[0])
times = jnp.linspace(0.0, 1.0, 33)
starts = x[:12]
keys = jax.random.split(jax.random.key(2), len(starts))
paths = jax.vmap(lambda key, at: bridge.sample_path(key, at, times))(keys, starts)
plt.figure(figsize=(5, 3.5))
plt.plot(*y.T, ".", ms=3, color="0.7")
for path in paths:
    plt.plot(*path.T, lw=1)
plt.title("paths of the bridge")

# %% [markdown]
# The fit is a solution, and so a differentiable function of its samples: the mean end of a path moves along when
# the targets are moved, here by exactly as much.

# %%
at = x[0]


def end(shift):
    moved = js.SchrodingerBridge(x, y + shift, epsilon=0.05)
    return js.solve(moved, js.LightSB(10), init=bridge).value.conditional(at).mean


slope = jax.jacrev(end)(jnp.zeros(2))
print(slope)
assert jnp.allclose(slope, jnp.eye(2), atol=1e-3)
