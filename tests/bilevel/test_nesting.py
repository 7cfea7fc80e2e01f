"""Three levels: derivatives of a bilevel solution, and solves inside of solves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratic_bilevel import DATA, LOWER, UPPER, arrays, lower, solved, upper

import jaxsolve as js

pytestmark = pytest.mark.usefixtures("x64")


def numeric(fn, data, name, place, size=1e-6):
    moved = []
    for sign in (1, -1):
        other = {k: v.copy() for k, v in data.items()}
        other[name][place] += sign * size
        moved.append(fn(other))
    return (moved[0] - moved[1]) / (2 * size)


def bilevel(data, **settings):
    start = jnp.zeros(UPPER), jnp.zeros(LOWER)
    return js.solve(js.Bilevel(upper, lower, data), None, start, tolerance=1e-11, **settings)


def test_a_bilevel_solution_has_a_derivative():
    """Against the closed form of the quadratic problem, by central differences; both modes."""
    data = arrays(DATA, jnp.float64)
    total = lambda data: jnp.sum(bilevel(data).value[0] ** 3)
    gradient = jax.grad(total)(data)
    closed = lambda data: np.sum(solved(data)[0] ** 3)
    for name, place in (("c", 1), ("d", 2), ("H", (3, 3)), ("B", (2, 0)), ("D", (1, 1))):
        found = gradient[name][place]
        np.testing.assert_allclose(found, numeric(closed, DATA, name, place), rtol=1e-6)
    direction = {k: jnp.zeros_like(v) for k, v in data.items()} | {"c": data["d"]}
    _, along = jax.jvp(total, (data,), (direction,))
    np.testing.assert_allclose(along, gradient["c"] @ data["d"], rtol=1e-8)


def test_the_adjoint_of_a_point_is_part_of_its_solution():
    """v, as a function of the data, has a derivative too."""
    data = arrays(DATA, jnp.float64)
    total = lambda data: jnp.sum(bilevel(data).dual.adjoint.primal ** 2)

    def closed(data):
        _, y = solved(data)
        return np.sum(np.linalg.solve(data["H"], y - data["d"]) ** 2)

    found = jax.grad(total)(data)["d"][0]
    np.testing.assert_allclose(found, numeric(closed, DATA, "d", 0), rtol=1e-6)


def test_a_coupled_solution_has_a_derivative():
    """min (x - a)^2 + (y - 3)^2 where y = min(x, b): x = a, y = b while b < a; the multiplier is
    2 (a - b)."""
    problem = lambda data: js.Bilevel(
        lambda x, y, d: (x - d[0]) ** 2 + (y - 3.0) ** 2,
        lambda x, y, d: (y - x) ** 2,
        data,
        coupling=lambda x, y, d: y - d[1],
    )
    data = jnp.array([2.0, 1.0])

    def point(data):
        solution = js.solve(problem(data), js.Polished(js.LVHBA()), (data[0], data[1]))
        x, y = solution.value
        return jnp.stack([x, y, solution.dual.inequality])

    np.testing.assert_allclose(point(data), [2.0, 1.0, 2.0], atol=1e-7)
    expected = [[1.0, 0.0], [0.0, 1.0], [2.0, -2.0]]
    np.testing.assert_allclose(jax.jacrev(point)(data), expected, atol=1e-6)


@pytest.mark.parametrize("transform", ["jit", pytest.param("vmap", marks=pytest.mark.slow)])
def test_solves_three_deep(transform):
    """z minimises (z - y)^2 / 2, y minimises (y - 1 - x)^2 + z(y)^2, x minimises (x - 2)^2 + y^2:
    z = y, y = (1 + x) / 2, x = (2 - 1/4) / (1 + 1/4) = 1.4, for a shift of 2."""

    def innermost(y):
        return js.solve(
            js.Minimise(lambda z, a: 0.5 * (z - a) ** 2, y), init=jnp.zeros_like(y)
        ).value

    def middle(x):
        fn = lambda y, a: (y - 1 - a) ** 2 + innermost(y) ** 2
        return js.solve(js.Minimise(fn, x), init=jnp.zeros_like(x)).value

    def outer(shift):
        fn = lambda x, a: (x - a) ** 2 + middle(x) ** 2
        return js.solve(js.Minimise(fn, shift), init=jnp.zeros_like(shift)).value

    exact = lambda shift: (shift - 0.25) / 1.25
    if transform == "jit":
        np.testing.assert_allclose(jax.jit(outer)(jnp.array(2.0)), exact(2.0), atol=1e-7)
    else:
        shifts = jnp.array([2.0, -1.0, 0.5])
        np.testing.assert_allclose(jax.vmap(outer)(shifts), exact(shifts), atol=1e-7)


@pytest.mark.slow
def test_a_bilevel_problem_inside_of_another():
    """The upper level chooses the shift c of the lower levels of a bilevel problem."""
    data = arrays(DATA, jnp.float64)
    target = jnp.array([0.3, -0.2, 0.1])

    def misfit(c, args):
        x, _ = bilevel(data | {"c": c}).value
        return jnp.sum((x - target) ** 2) + 1e-2 * jnp.sum((c - data["c"]) ** 2)

    solution = js.solve(js.Minimise(misfit), init=data["c"], tolerance=1e-8)
    rows = np.stack(
        [solved(DATA | {"c": e})[0] - solved(DATA | {"c": 0 * e})[0] for e in np.eye(6)]
    )
    offset = solved(DATA)[0] - np.asarray(target)
    # The bilevel solution is affine in c: this is linear least squares.
    moved = np.linalg.solve(rows @ rows.T + 1e-2 * np.eye(LOWER), -rows @ offset)
    np.testing.assert_allclose(solution.value - data["c"], moved, atol=1e-6)
