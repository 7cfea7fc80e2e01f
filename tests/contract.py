"""The contract's product: every check with every registered solver, in both precisions.

`make check` takes those marked `fast`, `make test` those not marked `slow`, `make slow-tests` the
others that are no `variant`, `make slow` all.
"""

import pytest
from cases import CASES, OURS, VARIANTS

from jaxsolve.testing import CHECKS

_USUAL = "optimality oracle results certificates".split()
"""What `make test` does, in float64."""
_LANES = {"Newton", "LBFGS", "TrustRegionNewton", "LevenbergMarquardt-Gram", "Anderson", "Sinkhorn"}
"""Of these also the gradients of a batch with bad lanes; of the others that takes a minute."""
_FEWER = {
    "SinkhornNewton": ["optimality", "oracle"],
    "BregmanProjections": ["optimality", "oracle"],
    "SketchPreconditionedCG": ["optimality", "oracle", "results"],
}
"""Of methods beside another one of the same problem or kind."""
_FAST = {
    "Newton": "optimality oracle results bad_lanes".split(),
    "LBFGS": ["optimality", "oracle"],
    "InteriorPoint": ["optimality", "oracle"],
}


def _marks(case, check, dtype):
    name, double = check.__name__, dtype == "float64"
    usual = _FEWER.get(case.name, _USUAL) + ["bad_lanes"] * (case.name in _LANES)
    if not (double and case in OURS and name in usual):
        return [pytest.mark.slow] + [pytest.mark.variant] * (case in VARIANTS)
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
