"""Projections on cones against Moreau's conditions in NumPy, derivatives against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cone_programs import outside, outside_dual, smat, svec
from jax.test_util import check_grads

import jaxsolve as js
from jaxsolve.convex.cones import Product

CONES = [
    js.Zero(2),
    js.Nonnegative(3),
    js.SecondOrder(1),
    js.SecondOrder(4),
    js.PositiveSemidefinite(3),
    js.Exponential(),
]


def name(cone):
    return f"{type(cone).__name__}{cone.rows}"


def vectors(cone, count, dtype):
    """Of many sizes, entries of one vector of many sizes too."""
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(count, cone.rows))
    wild = rng.normal(size=(count, cone.rows)) * 10 ** rng.uniform(-3, 3, (count, cone.rows))
    return np.concatenate([plain, wild]).astype(dtype)


@pytest.mark.parametrize("cone", CONES, ids=name)
def test_projection_and_rest_are_complementary(cone, dtype):
    """p in K, p - v in K*, p'(p - v) = 0: these three define the projection."""
    many = vectors(cone, 300, dtype)
    found = np.asarray(jax.jit(jax.vmap(cone.project))(jnp.asarray(many)), np.float64)
    eps = 20 * np.finfo(dtype).eps
    for v, p in zip(many.astype(np.float64), found, strict=True):
        size = np.abs(v).max()
        assert outside(cone, p) <= eps * size, (v, p)
        assert outside_dual(cone, p - v) <= eps * size, (v, p)
        assert abs(p @ (p - v)) <= eps * size**2, (v, p)


@pytest.mark.parametrize("cone", CONES, ids=name)
def test_the_dual_projection_is_moreaus(cone, x64):
    many = jnp.asarray(vectors(cone, 20, "float64")[:20])
    found = jax.jit(jax.vmap(cone.project_dual))(many)
    for v, p in zip(np.asarray(many), np.asarray(found), strict=True):
        assert outside_dual(cone, p) <= 1e-13 * np.abs(v).max()


@pytest.mark.parametrize("cone", CONES[1:], ids=name)
def test_derivatives_to_the_second_order(cone, x64):
    project = jax.jit(cone.project)
    for v in vectors(cone, 3, "float64")[:3]:
        check_grads(project, (jnp.asarray(v),), order=2, modes=("fwd", "rev"), eps=1e-5, rtol=1e-3)


@pytest.mark.parametrize("cone", CONES, ids=name)
def test_slope_is_the_derivative_and_its_functions(cone, x64):
    """f(D) against the eigenvectors of the Jacobian."""
    both = jax.jit(
        lambda v: (
            jax.jacfwd(cone.project)(v),
            jax.vmap(lambda e: cone.slope(v).apply(lambda d: d, e))(jnp.eye(cone.rows)),
            jax.vmap(lambda e: cone.slope(v).apply(lambda d: jnp.exp(d), e))(jnp.eye(cone.rows)),
        )
    )
    for v in vectors(cone, 8, "float64")[:8]:
        jacobian, plain, spectral = (np.asarray(x) for x in both(jnp.asarray(v)))
        np.testing.assert_allclose(plain, jacobian, atol=1e-12)
        values, basis = np.linalg.eigh((jacobian + jacobian.T) / 2)
        np.testing.assert_allclose(spectral, (basis * np.exp(values)) @ basis.T, atol=1e-11)


@pytest.mark.parametrize(
    "values", [(1, 1, 1), (2, 2, -1), (1, -1, -1), (1, 0, 0), (0, 0, 0), (-1, -1, 0)]
)
def test_semidefinite_derivatives_are_finite_at_repeated_eigenvalues(values, x64):
    cone = js.PositiveSemidefinite(3)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    v = jnp.asarray(svec((basis * np.array(values)) @ basis.T))
    weight = jnp.arange(1.0, 7.0)
    hessian = jax.hessian(lambda v: jnp.sum(weight * cone.project(v) ** 2))(v)
    assert np.isfinite(hessian).all()
    jacobian = jax.jacfwd(cone.project)(v)
    slopes = np.linalg.eigvalsh(jacobian)
    assert -1e-9 <= slopes.min() and slopes.max() <= 1 + 1e-9
    if 0 not in values:
        change = np.random.default_rng(1).normal(size=6)
        ahead, back = (cone.project(v + t * change) for t in (1e-6, -1e-6))
        np.testing.assert_allclose(jacobian @ change, (ahead - back) / 2e-6, atol=1e-7)


@pytest.mark.parametrize("t", [1.0, -1.0, 0.0])
def test_second_order_derivatives_are_finite_on_the_axis(t, x64):
    cone, v = js.SecondOrder(3), jnp.array([t, 0.0, 0.0])
    expected = {1.0: 1.0, -1.0: 0.0, 0.0: 0.5}[t] * np.eye(3)
    np.testing.assert_allclose(jax.jacfwd(cone.project)(v), expected, atol=1e-15)
    assert np.isfinite(jax.hessian(lambda v: cone.project(v)[0] ** 2)(v)).all()


def test_scaled_triangles_keep_the_trace(x64):
    cone, rng = js.PositiveSemidefinite(4), np.random.default_rng(0)
    X, Y = (m + m.T for m in rng.normal(size=(2, 4, 4)))
    np.testing.assert_allclose(cone.svec(jnp.asarray(X)), svec(X))
    np.testing.assert_allclose(cone.smat(cone.svec(jnp.asarray(X))), X, rtol=1e-15)
    np.testing.assert_allclose(smat(svec(X)), X, rtol=1e-15)
    np.testing.assert_allclose(
        cone.svec(jnp.asarray(X)) @ cone.svec(jnp.asarray(Y)), np.trace(X @ Y)
    )


@pytest.mark.parametrize(
    ("cone", "n", "error", "words"),
    [
        (js.PositiveSemidefinite, -1, ValueError, "PositiveSemidefinite: `n` must not be negative"),
        (js.Nonnegative, 2.0, TypeError, "Nonnegative: `n` must be a whole number; got 2.0"),
        (js.Nonnegative, True, TypeError, "Nonnegative: `n` must be a whole number; got True"),
        (js.Zero, -3, ValueError, "Zero: `n` must not be negative; got -3"),
        (js.SecondOrder, 0, ValueError, "SecondOrder: `n` counts t as well"),
        (js.SecondOrder, "3", TypeError, "SecondOrder: `n` must be a whole number; got '3'"),
        (js.SecondOrder, 3.5, TypeError, "SecondOrder: `n` must be a whole number; got 3.5"),
    ],
)
def test_a_size_that_is_none_is_named(cone, n, error, words):
    with pytest.raises(error, match=words):
        cone(n)


def test_products_are_their_parts(x64):
    cones = (js.Nonnegative(2), js.SecondOrder(3), js.SecondOrder(3), js.Zero(1))
    v = np.random.default_rng(0).normal(size=9)
    found = Product(cones).project(jnp.asarray(v))
    at, expected = 0, []
    for cone in cones:
        expected.append(cone.project(jnp.asarray(v[at : at + cone.rows])))
        at += cone.rows
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-15)
