"""Solves as layers of networks."""

from .cone_layer import ConeLayer as ConeLayer
from .cvxpy_layer import CvxpyLayer as CvxpyLayer, from_cvxpy as from_cvxpy
from .projection_layer import ProjectionLayer as ProjectionLayer
from .qp_layer import QPLayer as QPLayer
from .soft_sort import SoftRank as SoftRank, SoftSort as SoftSort
from .solver_layer import SolverLayer as SolverLayer
