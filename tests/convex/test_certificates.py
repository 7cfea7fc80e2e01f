"""Batches in which problems with and without a solution are mixed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from unsolvable_programs import CONES, KINDS, REASONS, M, N, P, excess, generate, proves

import jaxsolve as js

NAMES = {int(item._value): name for name, item in js.RESULTS._name_to_item.items()}


def solver_of(kind):
    def solve(data):
        data = dict(data)
        quadratic, q = data.pop("P"), data.pop("q")
        if kind == "linear":
            problem = js.LinearProgram(q, **data)
        elif kind == "quadratic":
            problem = js.QuadraticProgram(quadratic, q, **data)
        else:
            cones = [js.SecondOrder(n) for n in CONES]
            problem = js.ConeProgram(None, q, cones=cones, **data)
        found = js.solve(problem, throw=False)
        return found.result._value, found.value, found.dual

    return jax.jit(jax.vmap(solve))


def stack(programs, dtype):
    return {k: jnp.asarray(np.stack([d[k] for d in programs]), dtype) for k in programs[0]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_without_a_solution_among_as_many_with_one(kind, x64):
    """Each is proved, by NumPy too, and the others do not notice."""
    rng, solve = np.random.default_rng(0), solver_of(kind)
    reasons = ["solvable" if i % 2 else REASONS[1 + i // 2 % 3] for i in range(400)]
    programs = [generate(rng, kind, reason) for reason in reasons]
    found = jax.tree.map(np.asarray, solve(stack(programs, float)))
    results = [NAMES[int(code)] for code in found[0]]
    for i, (reason, result) in enumerate(zip(reasons, results, strict=True)):
        if reason == "solvable":
            assert result == "successful"
            continue
        # Where both are true, either may be found first.
        assert result == reason or reason == "both" and result in ("infeasible", "unbounded")
        value, dual = jax.tree.map(lambda x: x[i], found[1:])  # noqa: B023
        assert proves(kind, programs[i], result, value, dual, rtol=1e-5)
    alone = solve(stack(programs[1::2], float))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b[1::2], rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_without_a_solution_in_float32(kind):
    """A result that is proved, or none."""
    rng, solve = np.random.default_rng(1), solver_of(kind)
    reasons = [REASONS[i % 4] for i in range(400)]
    programs = [generate(rng, kind, reason) for reason in reasons]
    found = jax.tree.map(np.asarray, solve(stack(programs, jnp.float32)))
    proved = 0
    for i, reason in enumerate(reasons):
        result = NAMES[int(found[0][i])]
        assert (result == "successful") == (reason == "solvable")
        if result in ("infeasible", "unbounded"):
            assert reason in (result, "both")
            value, dual = jax.tree.map(lambda x: x[i].astype(float), found[1:])  # noqa: B023
            proved += proves(kind, programs[i], result, value, dual, rtol=5e-3)
    assert proved >= 295


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_false_success_among_thirty_five_thousand(kind, x64):
    """Data at random, of sizes over four decades, some of rank one less than it seems."""
    rng, solve, batch = np.random.default_rng(2), solver_of(kind), 5000
    seen = dict.fromkeys(NAMES.values(), 0)
    for _ in range(7):
        size = 10.0 ** rng.uniform(-2, 2, size=(batch, 1))
        root = rng.normal(size=(batch, N, N)) * rng.choice([0, 1], size=(batch, N, 1))
        data = {
            "P": np.einsum("bki,bkj->bij", root, root) * (kind == "quadratic"),
            "q": size * rng.normal(size=(batch, N)),
            "A": rng.normal(size=(batch, P, N)),
            "b": size * rng.normal(size=(batch, P)),
            "G": rng.normal(size=(batch, M, N)),
            "h": size * rng.normal(size=(batch, M)) + rng.choice([0, 3], size=(batch, 1)),
        }
        twin = rng.random(batch) < 0.2
        data["A"][twin, 1] = data["A"][twin, 0]
        data["b"][twin, 1] = data["b"][twin, 0]
        if kind == "cone":
            data["h"][:, np.cumsum([0, *CONES[:-1]])] += 3 * size
        codes, x, dual = jax.tree.map(np.asarray, solve(jax.tree.map(jnp.asarray, data)))
        for name in seen:
            seen[name] += int(np.sum([NAMES[int(c)] == name for c in codes]))
        won = np.array([NAMES[int(c)] == "successful" for c in codes])
        y, z = dual.equality, dual.inequality
        wrong = excess(kind, data, x, y, z)
        scale = 1 + sum(np.abs(v).max(1) for v in (data["q"], data["b"], data["h"], x, y, z))
        assert np.all(wrong[won] <= 1e-6 * scale[won] ** 2)
    assert seen["successful"] > 3000 and seen["infeasible"] > 3000
    unproved = sum(seen[n] for n in ("stalled", "max_steps_reached", "nonfinite_state"))
    assert unproved <= 35, seen


def test_an_objective_that_is_rounding_delays_no_proof(dtype):
    rng = np.random.default_rng(1)
    programs = [generate(rng, "linear", "infeasible") for _ in range(200)]
    # -A'y - G'z of the planted certificate: 0, but for the last digits.
    assert max(np.abs(d["q"]).max() for d in programs) < 1e-14
    found = jax.tree.map(np.asarray, solver_of("linear")(stack(programs, dtype)))
    assert {NAMES[int(code)] for code in found[0]} == {"infeasible"}
    for i, data in enumerate(programs):
        value, dual = jax.tree.map(lambda x: np.float64(x[i]), found[1:])  # noqa: B023
        assert proves(
            "linear", data, "infeasible", value, dual, rtol=(2e-3, 1e-5)[dtype == "float64"]
        )
