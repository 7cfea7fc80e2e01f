"""The contract's product: every check with every registered solver, in both precisions.

`make check` takes those marked `fast`, `make test` those not marked `slow`, `make slow` all.
"""

import pytest
from cases import CASES, OURS, VARIANTS

from jaxsolve.testing import CHECKS

_SINGLE = "optimality oracle results certificates programs transforms bad_lanes degenerate".split()
"""What `make test` does in float32: what a lower precision can break."""
_VARIANTS = "optimality oracle results derivatives".split()
_FOREIGN = "optimality oracle bad_lanes derivatives".split()
_FAST = {
    "Newton": "optimality oracle results programs derivatives bad_lanes warm_start".split(),
    "LBFGS": ["optimality", "oracle"],
    "InteriorPoint": ["optimality", "oracle"],
}


def _marks(case, check, dtype):
    name, double = check.__name__, dtype == "float64"
    if case in OURS:
        usual = double or name in _SINGLE
    else:
        usual = double and name in (_VARIANTS if case in VARIANTS else _FOREIGN)
    if not usual:
        return [pytest.mark.slow]
    return [pytest.mark.fast] if double and name in _FAST.get(case.name, ()) else []


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
