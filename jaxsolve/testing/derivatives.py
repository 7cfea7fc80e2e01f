"""Checks of point 7: derivatives at regular and at degenerate points."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from .case import Case, cast, flat, name_of, weights
from .compare import precision


def derivatives(case: Case, dtype: str) -> None:
    """7. Both modes to the second order against differences; J' is the transpose of J."""
    with precision(dtype):
        data = case.regular(dtype)
        if dtype == "float64":
            check_grads(
                jax.jit(case.value), (data,), order=2, modes=("fwd", "rev"), eps=1e-5, rtol=1e-3
            )
        rng = np.random.default_rng(1)
        tangent = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), data)

        @jax.jit
        def products(data, tangent):
            out, pushed = jax.jvp(case.value, (data,), (tangent,))
            return pushed, jax.vjp(case.value, data)[1](weights(out))[0]

        pushed, pulled = products(data, tangent)
        left = float(np.cos(np.arange(pushed.size)) @ np.asarray(pushed, np.float64))
        right = float(flat(pulled) @ flat(tangent))
        size = np.linalg.norm(flat(pushed)) + np.linalg.norm(flat(pulled))
        assert abs(left - right) <= 10 * np.finfo(dtype).eps ** 0.75 * size, (left, right)


def degenerate(case: Case, dtype: str) -> None:
    """7. Where the optimality system is singular the derivative is what the case says, in both
    modes, and nothing is raised."""
    with precision(dtype):
        forward = jax.jit(lambda d: jax.jvp(case.value, (d,), (jax.tree.map(jnp.ones_like, d),))[1])
        for name, point in case.degenerate.items():
            data = cast(point.data, dtype)
            _, _, code, gradient = case.gradient(data)
            assert name_of(code) == "successful", (name, name_of(code))
            for found in (flat(gradient), flat(forward(data))):
                if point.derivative == "finite":
                    assert np.isfinite(found).all(), (name, found)
                else:
                    assert np.isnan(found).any(), (name, found)
