"""The contract, run."""

import jax
import pytest
from cases import APPROXIMATE, CASES, FOREIGN, OURS, VARIANTS
from contract import PRODUCT
from hypothesis import HealthCheck, given, settings, strategies as st

import jaxsolve as js
from jaxsolve.testing import CHECKS
from jaxsolve.testing.checks import invariance


@pytest.mark.parametrize(("case", "check", "dtype"), PRODUCT)
def test_contract(case, check, dtype):
    check(case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in OURS if c.invariances], ids=lambda c: c.name)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**6))
def test_invariance(case, seed):
    invariance(case, "float64", seed)


def test_exemptions_are_counted():
    known = {check.__name__ for check in CHECKS}
    for case in CASES:
        assert set(case.exempt) <= known
        assert all(len(reason) > 20 for reason in case.exempt.values())
    assert sum(len(case.exempt) for case in OURS + VARIANTS) == 0
    assert sum(len(case.exempt) for case in FOREIGN) == 39


def test_names_are_unique_and_all_our_solvers_are_registered():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    public = {name: item for name, item in vars(js).items() if isinstance(item, type)}
    solvers = {n for n, c in public.items() if issubclass(c, js.AbstractSolver)}
    solvers -= {"AbstractSolver", "Jaxopt", "Scipy"}
    assert {type(case.made).__name__ for case in OURS} | APPROXIMATE == solvers


def test_eight_devices_are_there(devices):
    assert jax.device_count() == len(devices) == 8
