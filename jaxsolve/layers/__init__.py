"""Solves as layers of networks."""

from .projection_layer import ProjectionLayer as ProjectionLayer
from .cone_layer import ConeLayer as ConeLayer
from .qp_layer import QPLayer as QPLayer
from .solver_layer import SolverLayer as SolverLayer
