"""The exponential cone's barrier by complex steps, programs of a closed form or a planted end."""

import jax
import jax.numpy as jnp
import numpy as np
from cone_programs import outside, outside_dual

import jaxsolve as js
from jaxsolve.convex.cones import Exponential
from jaxsolve.convex.cones.exponential import eigen


def inside(rng, *shape):
    """Points of the cone, near its boundary and far from it."""
    y, z = np.exp(rng.normal(size=(2, *shape)))
    return np.stack([y * np.log(z / y) - np.exp(2 * rng.normal(size=shape)), y, z], axis=-1)


def inside_dual(rng, *shape):
    x, y, z = np.moveaxis(inside(rng, *shape), -1, 0)
    return np.stack([-y, -y - x, z], axis=-1)


def barrier(z):
    """Of the dual cone."""
    u, v, w = z
    return -np.log(v - u - u * np.log(w / -u)) - np.log(-u) - np.log(w)


def slope(z):
    """The barrier's gradient, by complex steps."""
    return np.array([barrier(z + e).imag for e in 1e-30j * np.eye(3)]) / 1e-30


def pairs(count=40):
    rng = np.random.default_rng(0)
    return zip(inside(rng, count), inside_dual(rng, count), strict=True)


def test_the_identity_is_on_the_central_path(x64):
    e = np.asarray(Exponential().identity(jnp.zeros(3)))
    np.testing.assert_allclose(-slope(e), e, rtol=1e-14)
    assert outside(Exponential(), e) == outside_dual(Exponential(), e) == 0


def test_the_depth_keeps_a_point_in_both_cones(x64):
    cone, rng = Exponential(), np.random.default_rng(0)
    for v in rng.normal(size=(300, 3)) * 10 ** rng.uniform(-2, 2, (300, 1)):
        moved = v - np.asarray(cone.depth(jnp.asarray(v)) * cone.identity(jnp.asarray(v)))
        assert outside(cone, moved) == outside_dual(cone, moved) == 0


def test_the_scaling_takes_s_to_z_and_their_shadows(x64):
    """W^-2 s = z, and W^-2 F'(z) = F*'(s): F'(F*'(s)) is s again."""
    both = jax.jit(lambda s, z: Exponential().scaling(s, z))
    for s, z in pairs():
        found = both(jnp.asarray(s), jnp.asarray(z))
        np.testing.assert_allclose(found.apply(lambda w: w, jnp.asarray(s)), z, rtol=1e-9)
        shadow = -slope(z)
        back = np.asarray(found.apply(lambda w: w, jnp.asarray(shadow)))
        assert outside_dual(Exponential(), back) == 0
        np.testing.assert_allclose(-slope(back), s, rtol=1e-5)
        assert np.all(np.asarray(found.values) > 0)


def test_the_scaling_on_the_path_is_the_barriers_own(x64):
    """There s and its shadow are one, and the secant says nothing."""
    cone = Exponential()
    for _, z in pairs(10):
        s = -0.01 * slope(z)
        found = cone.scaling(jnp.asarray(s), jnp.asarray(z))
        np.testing.assert_allclose(found.apply(lambda w: w, jnp.asarray(s)), z, rtol=1e-6)
        bent = found.apply(lambda w: 1 / w, jnp.asarray([0.0, 0.0, 1e-4]))
        step = np.array([0, 0, 1e-4])
        ahead = 0.01 * (slope(z + step) - slope(z - step)) / 2
        np.testing.assert_allclose(bent, ahead, rtol=1e-3, atol=1e-3 * np.abs(ahead).max())


def test_the_corrector_is_of_second_order_on_the_path(x64):
    """From a point of the path, along it: s + ds = -level F'(z + dz) up to the third order."""
    cone = Exponential()
    errors = []
    for size in (0.02, 0.01):
        worst = 0.0
        for _, z in pairs(8):
            z = z / np.linalg.norm(z)
            s, dz = -slope(z), size * (0.3 * np.asarray(cone.identity(jnp.zeros(3))) - z)
            scaling = cone.scaling(jnp.asarray(s), jnp.asarray(z))
            level = jnp.asarray(1 - 0.5 * size)
            ds = -float(level) * slope(z + dz) - s
            right = cone.centre(scaling, *map(jnp.asarray, (s, z, ds, dz)), level)
            left = scaling.apply(lambda w: w, jnp.asarray(ds)) + dz
            weight = scaling.apply(lambda w: 1 / w, left - right)
            worst = max(worst, np.linalg.norm(weight) / np.linalg.norm(s))
        errors.append(worst)
    assert errors[1] < errors[0] / 6


def test_the_reach_ends_at_the_boundary(dtype):
    cone, rng = Exponential(), np.random.default_rng(1)
    found = jax.jit(cone.reach)
    for s, z in pairs(100):
        ds, dz = rng.normal(size=(2, 3)) * 10 ** rng.uniform(-1, 1)
        data = (np.asarray(x, dtype) for x in (s, z, ds, dz))
        t = float(found(*map(jnp.asarray, data)))
        inner, outer = 0.999 * t, 1.05 * t + 1e-6
        assert outside(cone, s + inner * ds) == outside_dual(cone, z + inner * dz) == 0
        if outer < 2:
            assert outside(cone, s + outer * ds) + outside_dual(cone, z + outer * dz) > 0


def test_rotations_find_small_eigenvalues_too(x64):
    rng = np.random.default_rng(0)
    for _ in range(30):
        basis = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        values = 10 ** rng.uniform(-6, 2, 3)
        matrix = (basis * values) @ basis.T
        found = eigen(jnp.asarray((matrix + matrix.T) / 2))
        np.testing.assert_allclose(
            np.sort(found.values), np.sort(values), atol=1e-13 * values.max()
        )
        vectors = np.asarray(found.vectors)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-14)
        np.testing.assert_allclose((vectors * found.values) @ vectors.T, matrix, atol=1e-12)


def entropy(p):
    """minimise sum x log x - p'x, sum x = 1: the softmax of p."""
    n = p.shape[0]
    G, h = np.zeros((n, 3, 2 * n)), np.zeros((n, 3))
    for i in range(n):
        G[i, 0, n + i] = G[i, 1, i] = -1  # (t, x, 1): t <= -x log x
        h[i, 2] = 1
    A = np.concatenate([np.ones(n), np.zeros(n)])[None]
    q = jnp.concatenate([-p, -jnp.ones_like(p)])
    as_array = lambda x: jnp.asarray(x, p.dtype)
    return js.ConeProgram(
        None, q, A=as_array(A), b=as_array(np.ones(1)), G=as_array(G.reshape(-1, 2 * n)),
        h=as_array(h.ravel()), cones=[js.Exponential()] * n,
    )  # fmt: skip


def test_the_default_solves_the_entropy_program_and_its_derivative(dtype):
    p = jnp.asarray(np.random.default_rng(0).normal(size=4), dtype)
    cotangent = jnp.arange(1.0, 5.0, dtype=dtype)
    value = lambda p: js.solve(entropy(p)).value[:4] @ cotangent
    tolerance = 1e-6 if dtype == "float64" else 2e-3
    found, gradient = jax.jit(jax.value_and_grad(value))(p)
    expected, exact = jax.value_and_grad(lambda p: jax.nn.softmax(p) @ cotangent)(p)
    np.testing.assert_allclose(found, expected, rtol=tolerance)
    np.testing.assert_allclose(gradient, exact, atol=tolerance)


def test_the_default_solver_follows_the_precision():
    """In float32 a barrier next to the boundary has lost its digits: 1 in 10 programs stalls."""
    with jax.enable_x64(True):
        assert type(entropy(jnp.ones(2)).default_solver()) is js.InteriorPoint
    assert type(entropy(jnp.ones(2)).default_solver()) is js.OperatorSplitting


def planted(rng, end: str, n=8, p=2, linear=3, count=3):
    """A program with a strictly feasible pair, or that a vector z or d proves to have none."""
    rows = linear + 3 * count
    s = np.concatenate([rng.uniform(0.2, 1, linear), inside(rng, count).ravel()])
    z = np.concatenate([rng.uniform(0.2, 1, linear), inside_dual(rng, count).ravel()])
    A, G, x, y = (rng.normal(size=k) for k in ((p, n), (rows, n), n, p))
    q, b, h = -A.T @ y - G.T @ z, A @ x, G @ x + s
    if end == "infeasible":
        A[0] = -(A[1:].T @ y[1:] + G.T @ z) / y[0]
        b[0] = -(1 + b[1:] @ y[1:] + h @ z) / y[0]
    if end == "unbounded":
        d = rng.normal(size=n)
        d = d / np.linalg.norm(d)
        A = A - np.outer(A @ d, d)
        G = G - np.outer(G @ d + s, d)
        q = q - (q @ d + 1) * d
        b, h = A @ x, G @ x + s
    return {"q": q, "A": A, "b": b, "G": G, "h": h}


CONES = (js.Nonnegative(3), *[js.Exponential()] * 3)


def test_a_batch_with_and_without_solutions(x64):
    """Each lane has its own end, proved in NumPy by what is in the answer."""
    rng = np.random.default_rng(0)
    ends = ("successful", "infeasible", "unbounded") * 16
    many = [planted(rng, end) for end in ends]
    stacked = {k: jnp.asarray(np.stack([d[k] for d in many])) for k in many[0]}

    @jax.jit
    @jax.vmap
    def run(data):
        data = dict(data)
        problem = js.ConeProgram(None, data.pop("q"), **data, cones=CONES)
        return js.solve(problem, js.InteriorPoint(), throw=False)

    batch = run(stacked)
    kinds = (js.Nonnegative(3), *[Exponential()] * 3)
    cuts = np.cumsum([3, 3, 3])

    def far(v, dual):
        apart = outside_dual if dual else outside
        return max(apart(c, x) for c, x in zip(kinds, np.split(v, cuts), strict=True))

    for i, (data, end) in enumerate(zip(many, ends, strict=True)):
        found = jax.tree.map(lambda v, i=i: v[i], batch)
        assert found.result == getattr(js.RESULTS, end), (i, end)
        x, y, z = map(np.asarray, (found.value, found.dual.equality, found.dual.inequality))
        gradient = data["A"].T @ y + data["G"].T @ z
        if end == "successful":
            size = 1 + np.abs(data["q"]).max()
            assert np.abs(gradient + data["q"]).max() < 1e-6 * size
            assert np.abs(data["A"] @ x - data["b"]).max() < 1e-6
            assert far(data["h"] - data["G"] @ x, False) < 1e-6 and far(z, True) < 1e-6
            gap = data["q"] @ x + data["b"] @ y + data["h"] @ z
            assert abs(gap) < 1e-6 * (1 + abs(data["q"] @ x))
        if end == "infeasible":
            assert np.abs(gradient).max() < 1e-6 * -(data["b"] @ y + data["h"] @ z)
            assert far(z, True) < 1e-12
        if end == "unbounded":
            fall = -data["q"] @ x
            assert np.abs(data["A"] @ x).max() < 1e-6 * fall
            assert far(-data["G"] @ x, False) < 1e-6 * fall
