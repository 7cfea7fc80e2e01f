# %% [markdown]
# # Derivatives: which adjoint when
#
# *What is differentiated with respect to what?* The solution, with respect to the problem's data: fields, `args`,
# and arrays that a function closes over. Not with respect to the initial point or a solver's settings.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import jaxsolve as js
from jaxsolve import linear

# %% [markdown]
# ## The implicit function theorem
#
# A solution z of F(z, t) = 0 moves with t by dz/dt = -(dF/dz)^-1 dF/dt. Here F = y^3 + y - t, so that
# dy/dt = 1 / (3 y^2 + 1).


# %%
def root(t, **how):
    return js.solve(js.Root(lambda y, t: y**3 + y - t, t), init=jnp.array(1.5), **how).value


y = root(2.0)
print("y            ", float(y))
print("forward      ", float(jax.jvp(root, (2.0,), (1.0,))[1]))
print("reverse      ", float(jax.grad(root)(2.0)), "exact", float(1 / (3 * y**2 + 1)))
print("second order ", float(jax.hessian(root)(2.0)), "exact", float(-6 * y / (3 * y**2 + 1) ** 3))
assert jnp.allclose(jax.hessian(root)(2.0), -6 * y / (3 * y**2 + 1) ** 3, rtol=1e-3)

# %% [markdown]
# ## It does not depend on the solver
#
# Each solver finds the same root, and none of them is differentiated.

# %%
for solver in (js.Newton(), js.Broyden()):
    derivative = jax.grad(lambda t: root(t, solver=solver))(2.0)
    print(type(solver).__name__, round(float(derivative), 4))
    assert jnp.allclose(derivative, 0.25, rtol=1e-2)

# %% [markdown]
# ## The others
#
# - `OneStep()`: the derivative of one more step. As good as the solution for solvers that converge superlinearly.
# - `Unrolled(steps)`: through the first `steps` steps. The derivative of a *truncated* search.
# - `Detached()`: none.

# %%
for adjoint in (js.Implicit(), js.OneStep(), js.Unrolled(steps=20), js.Detached()):
    derivative = jax.grad(lambda t: root(t, adjoint=adjoint))(2.0)
    print(f"{type(adjoint).__name__:10}", float(derivative))

# %% [markdown]
# ## Active constraints
#
# Projecting on a box: the solution follows its data until a bound holds it. At the kink there is no derivative, and
# before it the loss cannot feel the bound that comes. `Smoothed(kappa)` can, at a price: it is the derivative of
# another point, that of the central path at `kappa`.


# %%
def clipped(q, adjoint):
    problem = js.QuadraticProgram(jnp.eye(1), -jnp.reshape(q, (1,)), upper=1.0)
    return js.solve(problem, adjoint=adjoint).value[0]


q = jnp.linspace(-1.0, 3.0, 41)
for adjoint, label in (
    (js.Implicit(), "exact"),
    (js.Implicit(degenerate=js.Smoothed(1e-1)), "kappa = 1e-1"),
    (js.Implicit(degenerate=js.Smoothed(1e-3)), "kappa = 1e-3"),
):
    slope = jax.vmap(jax.grad(lambda q: clipped(q, adjoint)))(q)
    plt.plot(q, slope, label=label)
plt.xlabel("q")
plt.ylabel("derivative of the projection")
plt.legend()

# %% [markdown]
# ## Large problems: a linear solver that forms no matrix
#
# Ten thousand variables: the Hessian would have a hundred million entries. Conjugate gradients need products only.

# %%
size = 10_000
scale = jnp.linspace(1.0, 3.0, size)


def fitted(t):
    def cost(y, t):
        return jnp.sum(scale * (y - jnp.tanh(t)) ** 2) + 0.1 * jnp.sum((y[1:] - y[:-1]) ** 2)

    adjoint = js.Implicit(linear_solver=linear.ConjugateGradient())
    return jnp.mean(js.solve(js.Minimise(cost, t), init=jnp.zeros(size), adjoint=adjoint).value)


print(float(jax.grad(fitted)(0.5)), float(1 - jnp.tanh(0.5) ** 2))
assert jnp.allclose(jax.grad(fitted)(0.5), 1 - jnp.tanh(0.5) ** 2, rtol=1e-2)

# %% [markdown]
# ## NaN rather than wrong
#
# A lane that failed has no derivative. It is NaN, alone.

# %%
starts = jnp.array([2.0, jnp.nan, 3.0])
print(jax.vmap(jax.grad(lambda t: root(t, throw=False)))(starts))

# %% [markdown]
# `check_derivative` says how well the linear system behind a derivative can be solved:

# %%
problem = js.Root(lambda y, t: y**3 + y - t, jnp.array(2.0))
print(float(js.check_derivative(problem, js.solve(problem, init=jnp.array(1.5)))))
