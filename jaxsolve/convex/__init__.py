"""Convex problems and their solvers."""

from .composite import Composite as Composite
from .embedding import HomogeneousEmbedding as HomogeneousEmbedding
from .interior_point import InteriorPoint as InteriorPoint
from .penalties import prox as prox
from .projection import Projection as Projection, project as project
from .proximal_gradient import ProximalGradient as ProximalGradient
from .quadratic_program import QuadraticProgram as QuadraticProgram
