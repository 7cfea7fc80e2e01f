"""Problems with solutions in closed form, on which every foreign solver is tried.

Each takes its data `a` (one array) and has a solution whose derivative in `a` is known.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxsolve as js
from jaxsolve.smooth.problems import FixedPoint, LeastSquares, Minimise, Root

DATA = np.array([0.3, 1.2, -0.7])


def cubed(y, a):
    """y + y^3 - a, strictly increasing in y."""
    return y + y**3 - a


def minimise(a):
    """Its gradient is `cubed`, scaled: a convex function, not a quadratic one."""
    weight = jnp.arange(1, a.size + 1, dtype=a.dtype)
    return Minimise(lambda y, a: jnp.sum(weight * (y**2 / 2 + y**4 / 4 - a * y)), a)


def least_squares(a):
    return LeastSquares(cubed, a)


def root(a):
    return Root(cubed, a)


def fixed_point(a):
    """A contraction with the same solutions."""
    return FixedPoint(lambda y, a: y - cubed(y, a) / 6, a)


PROBLEMS = {
    "minimise": minimise,
    "least_squares": least_squares,
    "root": root,
    "fixed_point": fixed_point,
}


def solution(a):
    """The real root of y^3 + y - a, by Cardano, in float64 NumPy."""
    a = np.asarray(a, np.float64)
    inner = np.sqrt(a**2 / 4 + 1 / 27)
    return np.cbrt(a / 2 + inner) + np.cbrt(a / 2 - inner)


def derivative(a):
    """dy/da, elementwise, by the implicit function theorem on paper."""
    return 1 / (1 + 3 * solution(a) ** 2)


def second_derivative(a):
    """d2y/da2 = -6 y (dy/da)^3."""
    return -6 * solution(a) * derivative(a) ** 3


def check(make, solver, dtype, tolerance=None, start=0.1):
    """Value and first derivatives in both modes, alone and in a batch, under jit."""
    # The gap between the residual's tolerance and the solution's error is the condition number,
    # at most 1 for these problems; least squares squares it.
    close = 1e-6 if dtype == jnp.float64 else 2e-3
    data = jnp.asarray(DATA, dtype)

    def solve(a):
        found = js.solve(
            PROBLEMS[make](a), solver, jnp.full_like(a, start), tolerance=tolerance, throw=False
        )
        return found.value, found.success

    @jax.jit
    @jax.vmap
    def everything(a):
        one = jnp.ones_like(a)
        (value, _), forward = jax.jvp(lambda a: solve(a), (a,), (one,))
        _, pullback, success = jax.vjp(lambda a: solve(a), a, has_aux=True)
        return value, success, forward[0], pullback(one)[0]

    batch = jnp.stack([data, 2 * data])
    value, success, forward, backward = everything(batch)
    assert value.dtype == dtype and forward.dtype == dtype
    assert success.tolist() == [True, True]
    np.testing.assert_allclose(value, solution(batch), atol=close)
    # dy/da is diagonal: its product with ones is the diagonal, from either side.
    np.testing.assert_allclose(forward, derivative(batch), atol=10 * close)
    np.testing.assert_allclose(backward, derivative(batch), atol=10 * close)
