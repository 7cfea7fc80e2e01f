"""The contract that every solver of this library passes, for those who write their own.

Describe a family of problems with an oracle that is not yours as a `Case`, and call
`check_solver(case)`, or run the `CHECKS` one by one in your test runner:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_solver(check):
        check(case, "float64")
"""

from .case import Case as Case, Degenerate as Degenerate, Expected as Expected
from .checks import CHECKS as CHECKS, check_solver as check_solver
