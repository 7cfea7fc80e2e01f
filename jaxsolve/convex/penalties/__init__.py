"""Penalties: convex functions whose proximal operator is known."""

from .base import AbstractPenalty as AbstractPenalty, prox as prox
from .group import Group as Group
from .indicator import Indicator as Indicator
from .nuclear import Nuclear as Nuclear
from .separable import L1 as L1, ElasticNet as ElasticNet
from .total_variation import TotalVariation as TotalVariation
