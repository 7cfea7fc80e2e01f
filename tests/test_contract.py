"""The contract: every check for every registered solver, in both precisions."""

import jax
import pytest
from cases import CASES, FOREIGN, OURS
from hypothesis import HealthCheck, given, settings, strategies as st

from jaxsolve.testing import CHECKS
from jaxsolve.testing.checks import invariance

PRODUCT = [
    pytest.param(
        case,
        check,
        dtype,
        id=f"{case.name}-{check.__name__}-{dtype}",
        # A foreign solver's full product is the slow suite's; ours is everyone's.
        marks=[pytest.mark.slow] if case in FOREIGN and dtype == "float32" else [],
    )
    for case in CASES
    for dtype in ("float64", "float32")
    for check in CHECKS
    if check.__name__ not in case.exempt
]


@pytest.mark.parametrize(("case", "check", "dtype"), PRODUCT)
def test_contract(case, check, dtype):
    check(case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in OURS if c.invariances], ids=lambda c: c.name)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**6))
def test_invariance(case, seed):
    invariance(case, "float64", seed)


def test_exemptions_are_counted():
    known = {check.__name__ for check in CHECKS}
    for case in CASES:
        assert set(case.exempt) <= known
        assert all(len(reason) > 20 for reason in case.exempt.values())
    assert sum(len(case.exempt) for case in OURS) == 0
    assert sum(len(case.exempt) for case in FOREIGN) == 13


def test_devices_are_there():
    assert jax.device_count() >= 6
