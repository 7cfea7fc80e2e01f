"""Methods for the adjoint's linear systems: `Implicit(linear_solver=...)`."""

from .core.linear import (
    GMRES as GMRES,
    MINRES as MINRES,
    AbstractLinearSolver as AbstractLinearSolver,
    ConjugateGradient as ConjugateGradient,
    Dense as Dense,
    Neumann as Neumann,
    NormalCG as NormalCG,
)
from .core.nystroem import Nystroem as Nystroem
