"""The Maros-Meszaros problems with at most 700 variables, at default settings."""

import jax.numpy as jnp
import pytest

import jaxsolve as js
from tests.convex_programs import MAROS_MESZAROS, maros_meszaros

NAMES = sorted(path.stem for path in MAROS_MESZAROS.glob("*.npz"))
QUICK = ("HS35", "DUALC5", "LOTSCHD")
# Their references are themselves known to 1e-5 only.
LOOSE = ("QSTAIR", "QSCAGR7", "QGROW7")


def test_all_are_there():
    assert len(NAMES) == 32


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_is_solved_at_default_settings(name, x64):
    P, q, A, l, u, r, objective = maros_meszaros(name)
    arrays = (jnp.asarray(x) for x in (P, q, A, l, u))
    problem = js.QuadraticProgram.from_two_sided(*arrays)
    solution = js.solve(problem)
    value = float(problem.objective(solution.value)) + r
    tolerance = 2e-5 if name in LOOSE else 1e-6
    assert abs(value - objective) <= tolerance * max(1.0, abs(objective))
    assert float(solution.stats.residual.relative) <= 1e-6
