"""Convex cones: their projections, and the derivatives of these."""

from .cone import (
    AbstractBarrierCone as AbstractBarrierCone,
    AbstractCone as AbstractCone,
    AbstractSlope as AbstractSlope,
    AbstractSymmetricCone as AbstractSymmetricCone,
)
from .exponential import Exponential as Exponential
from .linear import Nonnegative as Nonnegative, Zero as Zero
from .positive_semidefinite import PositiveSemidefinite as PositiveSemidefinite
from .product import Product as Product
from .second_order import SecondOrder as SecondOrder
