"""The adjoint's linear systems, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsolve import linear
from jaxsolve.core.krylov import least_squares
from jaxsolve.core.linear import Operator, checked, solve_checked
from jaxsolve.core.problem import Structure

N = 40


def matrix(kind, seed=0, n=N):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, n)) / np.sqrt(n) + 2 * np.eye(n)
    if kind == "definite":
        return a @ a.T
    if kind == "symmetric":
        q, _ = np.linalg.qr(a)
        return q @ np.diag(np.where(np.arange(n) % 3, 1.0, -1.0) * rng.uniform(1, 4, n)) @ q.T
    return a


def structure(kind):
    return Structure(symmetric=kind != "general", definite=kind == "definite")


def system(a, b, solver, kind, trusted=True):
    return solve_checked(
        lambda v: jnp.matmul(a, v, precision="highest"),
        b,
        solver=solver,
        structure=structure(kind),
        preconditioner=None,
        trusted=jnp.asarray(trusted),
    )


METHODS = [
    (linear.Dense(), "definite"),
    (linear.Dense(), "symmetric"),
    (linear.Dense(), "general"),
    (linear.ConjugateGradient(), "definite"),
    (linear.MINRES(), "symmetric"),
    (linear.MINRES(), "definite"),
    (linear.GMRES(restart=15), "general"),
    (linear.GMRES(), "symmetric"),
    (linear.NormalCG(), "general"),
    (None, "general"),
]


@pytest.mark.parametrize(
    ("solver", "kind"), METHODS, ids=[f"{type(s).__name__}-{k}" for s, k in METHODS]
)
def test_solution_and_both_derivatives(solver, kind, dtype):
    a = jnp.asarray(matrix(kind), dtype)
    b = jnp.asarray(np.random.default_rng(1).normal(size=N), dtype)
    # A symmetric method may only be told a symmetric perturbation.
    da = np.random.default_rng(2).normal(size=(N, N))
    da = jnp.asarray(da + da.T if kind != "general" else da, dtype)
    c = jnp.asarray(np.random.default_rng(3).normal(size=N), dtype)
    solve = lambda a, b: system(a, b, solver, kind)

    x, dx = jax.jit(lambda: jax.jvp(solve, (a, b), (da, c)))()
    exact = np.linalg.solve(np.float64(a), np.float64(b))
    exact_dx = np.linalg.solve(np.float64(a), np.float64(c) - np.float64(da) @ exact)
    tight = 50 * jnp.finfo(dtype).eps ** 0.6
    np.testing.assert_allclose(x, exact, atol=tight * np.abs(exact).max())
    np.testing.assert_allclose(dx, exact_dx, atol=tight * np.abs(exact_dx).max())

    back = jax.jit(jax.vjp(solve, a, b)[1])(c)[1]
    np.testing.assert_allclose(back, np.linalg.solve(np.float64(a).T, c), atol=10 * tight)
    assert x.dtype == dx.dtype == back.dtype == dtype


@pytest.mark.parametrize("size", [1e-25, 1e-18, 1e18])
@pytest.mark.parametrize(
    "solver", [linear.ConjugateGradient(), linear.MINRES(), linear.GMRES(), linear.NormalCG()]
)
def test_a_side_of_any_size_in_float32(solver, size):
    a = matrix("definite")
    b = np.random.default_rng(1).normal(size=N)
    x = system(jnp.asarray(a, jnp.float32), jnp.asarray(size * b, jnp.float32), solver, "definite")
    exact = np.linalg.solve(a, b)
    np.testing.assert_allclose(np.float64(x) / size, exact, atol=5e-3 * np.abs(exact).max())


def test_neumann_error_falls_with_its_terms(x64):
    a = jnp.eye(N) - 0.5 * jnp.asarray(matrix("general") / np.linalg.norm(matrix("general"), 2))
    b = jnp.ones(N)
    exact = np.linalg.solve(a, b)
    errors = [
        float(jnp.linalg.norm(system(a, b, linear.Neumann(k), "general") - exact))
        for k in (5, 10, 20)
    ]
    # ||I - A|| = 1/2: each further term halves the error.
    assert errors[1] <= errors[0] * 0.5**4 and errors[2] <= errors[1] * 0.5**9


@pytest.mark.parametrize("n", [6, 600], ids=["svd", "lsqr"])
def test_singular_consistent_is_the_minimum_norm_solution(n, x64):
    rng = np.random.default_rng(0)
    a = matrix("general", n=n)
    a[:, -1] = a[:, 0]
    a[-1] = a[0]
    b = a @ rng.normal(size=n)
    x = jax.jit(lambda: system(jnp.asarray(a), jnp.asarray(b), None, "general"))()
    exact = np.linalg.lstsq(a, b)[0]
    np.testing.assert_allclose(x, exact, atol=1e-6 * np.abs(exact).max())


def test_lsqr_is_least_squares_at_least_norm(x64):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(30, 12)) @ rng.normal(size=(12, 20))
    b = rng.normal(size=30)
    a_, b_ = jnp.asarray(a), jnp.asarray(b)
    x = least_squares(lambda v: a_ @ v, lambda u: u @ a_, b_, rtol=1e-13, limit=500)
    np.testing.assert_allclose(x, np.linalg.pinv(a) @ b, atol=1e-9)


def test_a_singular_lane_is_alone(x64):
    a = np.stack([matrix("general", seed=s, n=5) for s in range(6)])
    a[2] = 0.0
    a[4, 1] = np.nan
    b = np.random.default_rng(0).normal(size=(6, 5))
    solve = lambda a, b: system(a, b, None, "general")
    x = jax.jit(jax.vmap(solve))(a, b)
    for lane in (0, 1, 3, 5):
        np.testing.assert_allclose(x[lane], np.linalg.solve(a[lane], b[lane]), rtol=1e-10)
    np.testing.assert_array_equal(x[2], np.zeros(5))  # the pseudo-inverse of 0
    assert np.isnan(x[4]).all()


def test_untrusted_is_nan_except_for_a_zero_right_hand_side(x64):
    a, b = jnp.asarray(matrix("general", n=4)), jnp.ones(4)
    assert np.isnan(system(a, b, None, "general", trusted=False)).all()
    np.testing.assert_array_equal(system(a, 0 * b, None, "general", trusted=False), np.zeros(4))


def test_residual_is_measured(x64):
    a = jnp.asarray(matrix("definite", n=600))
    operator = Operator(lambda v: a @ v, lambda v: v @ a, Structure(True, True))
    out = checked(linear.ConjugateGradient(max_steps=2), operator, jnp.ones(600))
    # Two steps do not solve it; the fall-back does.
    assert bool(out.good) and float(out.residual) < 1e-6
    np.testing.assert_allclose(out.x, np.linalg.solve(a, np.ones(600)), atol=1e-7)


def test_minres_refuses_an_unsymmetric_system():
    with pytest.raises(TypeError, match="GMRES"):
        system(jnp.eye(3), jnp.ones(3), linear.MINRES(), "general")


def test_matrix_free_methods_never_materialise(x64):
    n = 700
    scale = jnp.linspace(1.0, 2.0, n)
    for solver in (linear.ConjugateGradient(), linear.MINRES(), linear.GMRES(), None):
        jaxpr = jax.make_jaxpr(
            lambda b, solver=solver: solve_checked(
                lambda v: scale * v,
                b,
                solver=solver,
                structure=Structure(True, True),
                preconditioner=None,
                trusted=jnp.array(True),
            )
        )(jnp.ones(n))
        assert f"{n},{n}" not in str(jaxpr)
