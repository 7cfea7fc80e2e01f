"""The contract's product: every check with every registered solver, in both precisions.

`make check` takes those marked `fast`, `make test` those not marked `slow`, `make slow` all.
"""

import pytest
from cases import CASES, OURS

from jaxsolve.testing import CHECKS

_USUAL = "optimality oracle results certificates bad_lanes".split()
"""What `make test` does, in float64: a solve, and the gradients of a batch with bad lanes in it."""
_FEWER = {"SinkhornNewton": ["optimality", "oracle"]}
"""Of methods beside another one of the same problem."""
_FAST = {
    "Newton": "optimality oracle results bad_lanes".split(),
    "LBFGS": ["optimality", "oracle"],
    "InteriorPoint": ["optimality", "oracle"],
}


def _marks(case, check, dtype):
    name, double = check.__name__, dtype == "float64"
    if not (double and case in OURS and name in _FEWER.get(case.name, _USUAL)):
        return [pytest.mark.slow]
    return [pytest.mark.fast] if name in _FAST.get(case.name, ()) else []


PRODUCT = [
    pytest.param(
        case,
        check,
        dtype,
        id=f"{case.name}-{check.__name__}-{dtype}",
        marks=_marks(case, check, dtype),
    )
    for case in CASES
    for dtype in ("float64", "float32")
    for check in CHECKS
    if check.__name__ not in case.exempt
]
