"""Closed sets to project on: `project(point, set)`, `solve(Projection(point, set))`."""

from .convex.sets import (
    AbstractSet as AbstractSet,
    Affine as Affine,
    Birkhoff as Birkhoff,
    Box as Box,
    CappedSimplex as CappedSimplex,
    Halfspace as Halfspace,
    Intersection as Intersection,
    Isotonic as Isotonic,
    KSparse as KSparse,
    L1Ball as L1Ball,
    L2Ball as L2Ball,
    LinfBall as LinfBall,
    Polyhedron as Polyhedron,
    PSDCone as PSDCone,
    SecondOrderCone as SecondOrderCone,
    Simplex as Simplex,
    Sublevel as Sublevel,
    TransportPolytope as TransportPolytope,
)
