"""Convex problems and their solvers."""

from .active_set import ActiveSet as ActiveSet
from .block_coordinate_descent import BlockCoordinateDescent as BlockCoordinateDescent
from .composite import Composite as Composite
from .cone_program import ConeProgram as ConeProgram
from .cones import (
    Exponential as Exponential,
    Nonnegative as Nonnegative,
    PositiveSemidefinite as PositiveSemidefinite,
    SecondOrder as SecondOrder,
    Zero as Zero,
)
from .embedding import HomogeneousEmbedding as HomogeneousEmbedding
from .interior_point import InteriorPoint as InteriorPoint
from .linear_program import LinearProgram as LinearProgram
from .operator_splitting import OperatorSplitting as OperatorSplitting
from .penalties import prox as prox
from .projection import Projection as Projection, project as project
from .proximal_gradient import ProximalGradient as ProximalGradient
from .quadratic_program import QuadraticProgram as QuadraticProgram
