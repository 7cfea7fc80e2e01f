"""Closed sets, and the projection on each of them."""

from .affine import Affine as Affine
from .base import AbstractClosedForm as AbstractClosedForm, AbstractSet as AbstractSet
from .bounds import Box as Box, Halfspace as Halfspace, LinfBall as LinfBall
from .closed_form import ClosedForm as ClosedForm, FormulaProjection as FormulaProjection
from .cones import L2Ball as L2Ball, PSDCone as PSDCone, SecondOrderCone as SecondOrderCone
from .intersection import Dykstra as Dykstra, Intersection as Intersection
from .isotonic import Isotonic as Isotonic
from .polyhedra import Polyhedron as Polyhedron
from .simplices import CappedSimplex as CappedSimplex, L1Ball as L1Ball, Simplex as Simplex
from .sparse import KSparse as KSparse
from .sublevel import Sublevel as Sublevel
from .transport import Birkhoff as Birkhoff, TransportPolytope as TransportPolytope
