# %% [markdown]
# # Leaving jaxopt
#
# jaxopt is no longer maintained. Here is what stands in the place of what, each run beside the original.
#
# | jaxopt | jaxsolve |
# | --- | --- |
# | `LBFGS(fun).run(init, *args)` | `solve(Minimise(fun, args), LBFGS(), init)` |
# | `LevenbergMarquardt(residual_fun).run(...)` | `solve(LeastSquares(fun, args), init=...)` |
# | `AndersonAcceleration(fixed_point_fun)` | `solve(FixedPoint(fun, args), init=...)` |
# | `Broyden(fun)`, `ScipyRootFinding` | `solve(Root(fun, args), Broyden(), init)` |
# | `OSQP().run(params_obj=(Q, c), params_eq=(A, b), params_ineq=(G, h))` | `solve(QuadraticProgram(Q, c, A=A, b=b, G=G, h=h))` |
# | `BoxOSQP`, `BoxCDQP` | `QuadraticProgram(..., lower=, upper=)`, `QuadraticProgram.from_two_sided` |
# | `ScipyMinimize(method=...)` | `solve(problem, Scipy(method), init)` |
# | `implicit_diff=True`, `unroll=True` | `adjoint=Implicit()`, `adjoint=Unrolled(steps)` |
# | `implicit_diff_solve=` | `Implicit(linear_solver=...)` |
# | `@custom_root(optimality_fun)` | a problem of yours with `optimality` |
# | `state.error`, `state.iter_num` | `solution.stats.residual`, `solution.stats.steps` |
# | `params, state = ...` | `solution.value`, `solution.dual`, `solution.result` |
# | `maxiter`, `tol` | `max_steps`, `tolerance` (follows the dtype) |

# %%
import warnings

import jax
import jax.numpy as jnp

import jaxsolve as js

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # jaxopt announces its end at import
    import jaxopt

# %% [markdown]
# ## Minimising a function


# %%
def cost(y, a):
    return jnp.sum((y - a) ** 2) + 0.1 * jnp.sum(y**4)


a, start = jnp.array([1.0, 2.0]), jnp.zeros(2)

before = jaxopt.LBFGS(cost).run(start, a).params
after = js.solve(js.Minimise(cost, a), init=start).value
print(before, after)
assert jnp.allclose(before, after, atol=1e-3)

# %% [markdown]
# The derivative: the same in reverse mode, and forward mode exists now.


# %%
def old(a):
    return jaxopt.LBFGS(cost).run(start, a).params


def new(a):
    return js.solve(js.Minimise(cost, a), init=start).value


print(jax.jacrev(old)(a).diagonal(), jax.jacrev(new)(a).diagonal(), jax.jacfwd(new)(a).diagonal())
try:
    jax.jacfwd(old)(a)
except TypeError as error:
    print("jaxopt, forward mode:", str(error)[:60], "...")

# %% [markdown]
# ## A quadratic program

# %%
n = 12
key = jax.random.split(jax.random.key(0), 3)
root = jax.random.normal(key[0], (n, n))
P, q = root @ root.T / n + 0.1 * jnp.eye(n), jax.random.normal(key[1], (n,))
A, b = jnp.ones((1, n)), jnp.ones(1)
G, h = -jnp.eye(n), jnp.zeros(n)


def old_qp(q):
    solver = jaxopt.OSQP(tol=1e-4, maxiter=10_000)
    return solver.run(params_obj=(P, q), params_eq=(A, b), params_ineq=(G, h)).params.primal


def new_qp(q):
    return js.solve(js.QuadraticProgram(P, q, A=A, b=b, lower=0.0)).value


print("values differ by", float(jnp.max(jnp.abs(old_qp(q) - new_qp(q)))))
assert jnp.allclose(old_qp(q), new_qp(q), atol=1e-2)

# %% [markdown]
# How good are the derivatives? A difference quotient in float64 of the solution is the judge.

# %%
with jax.enable_x64(True):
    P64, q64, A64, b64 = (jnp.asarray(x, "float64") for x in (P, q, A, b))

    def exact(q):
        return js.solve(js.QuadraticProgram(P64, q, A=A64, b=b64, lower=0.0)).value[0]

    step = 1e-5
    judge = jnp.array(
        [(exact(q64 + step * e) - exact(q64 - step * e)) / (2 * step) for e in jnp.eye(n)]
    )

scale = float(jnp.max(jnp.abs(judge)))
for name, fn in (("jaxopt", old_qp), ("jaxsolve", new_qp)):
    error = jnp.max(jnp.abs(jax.grad(lambda q: fn(q)[0])(q) - judge.astype("float32")))
    print(f"{name:9} relative error of the gradient {float(error) / scale:.1e}")
assert float(error) / scale < 1e-3

# %% [markdown]
# ## Keeping a jaxopt solver for now
#
# `Jaxopt(cls, **settings)` runs it inside `solve`: with the verdict, the result codes and the derivative of ours.

# %%
solution = js.solve(
    js.Minimise(cost, a), js.Jaxopt(jaxopt.BFGS, linesearch="backtracking"), init=start
)
print(solution.summary())

# %% [markdown]
# ## Your own optimality conditions
#
# Where jaxopt had `@custom_root`, a `Root` has the function whose zero is the solution, and any solver may find it.

# %%
ridge = js.Root(lambda w, data: data[0].T @ (data[0] @ w - data[1]) + data[2] * w, (root, q, 0.5))
print(js.solve(ridge, init=jnp.zeros(n)).summary())
