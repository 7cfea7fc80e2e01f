"""Penalties: convex functions whose proximal operator is known (`prox`, `Composite`)."""

from .convex.penalties import (
    L1 as L1,
    AbstractPenalty as AbstractPenalty,
    ElasticNet as ElasticNet,
    Group as Group,
    Indicator as Indicator,
    Nuclear as Nuclear,
    TotalVariation as TotalVariation,
    prox as prox,
)
