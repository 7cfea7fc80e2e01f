"""Smooth problems without constraints, and their solvers."""

from .anderson import Anderson as Anderson
from .broyden import Broyden as Broyden
from .lbfgs import LBFGS as LBFGS
from .levenberg_marquardt import QR as QR, Gram as Gram, LevenbergMarquardt as LevenbergMarquardt
from .newton import Newton as Newton
from .problems import (
    FixedPoint as FixedPoint,
    LeastSquares as LeastSquares,
    Minimise as Minimise,
    Root as Root,
)
from .sketch_preconditioned_cg import SketchPreconditionedCG as SketchPreconditionedCG
from .sketched_least_squares import SketchedLeastSquares as SketchedLeastSquares
from .sketches import (
    SRHT as SRHT,
    CountSketch as CountSketch,
    GaussianSketch as GaussianSketch,
)
from .trust_region_newton import TrustRegionNewton as TrustRegionNewton
