"""Convex problems and their solvers."""

from .embedding import HomogeneousEmbedding as HomogeneousEmbedding
from .interior_point import InteriorPoint as InteriorPoint
from .quadratic_program import QuadraticProgram as QuadraticProgram
