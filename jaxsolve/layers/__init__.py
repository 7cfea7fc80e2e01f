"""Solves as layers of networks."""

from .qp_layer import QPLayer as QPLayer
from .solver_layer import SolverLayer as SolverLayer
