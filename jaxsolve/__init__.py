"""Differentiable optimisation for JAX: a problem is a pytree, solving it is a pure function."""

from . import interop as interop, linear as linear, penalties as penalties, sets as sets
from .bilevel import (
    BOME as BOME,
    F2SA as F2SA,
    LVHBA as LVHBA,
    MEHA as MEHA,
    OBS as OBS,
    PZOBO as PZOBO,
    SABA as SABA,
    SOBA as SOBA,
    BiCGAFFA as BiCGAFFA,
    Bilevel as Bilevel,
    BilevelDual as BilevelDual,
    BiP as BiP,
    Channels as Channels,
    Filters as Filters,
    HypergradientDescent as HypergradientDescent,
    IterativeMagnitudePruning as IterativeMagnitudePruning,
    LowerPoint as LowerPoint,
    MagnitudePruning as MagnitudePruning,
    MFACInverse as MFACInverse,
    Polished as Polished,
    Pruning as Pruning,
    StocBiO as StocBiO,
    StochasticBilevel as StochasticBilevel,
    Unstructured as Unstructured,
    hypergradient as hypergradient,
    mfac as mfac,
    suggest_steps as suggest_steps,
)
from .convex import (
    ActiveSet as ActiveSet,
    Composite as Composite,
    ConeProgram as ConeProgram,
    Exponential as Exponential,
    InteriorPoint as InteriorPoint,
    LinearProgram as LinearProgram,
    Nonnegative as Nonnegative,
    OperatorSplitting as OperatorSplitting,
    PositiveSemidefinite as PositiveSemidefinite,
    Projection as Projection,
    ProximalGradient as ProximalGradient,
    QuadraticProgram as QuadraticProgram,
    SecondOrder as SecondOrder,
    Zero as Zero,
    project as project,
    prox as prox,
)
from .core.adjoint import (
    Detached as Detached,
    Implicit as Implicit,
    MinimumNorm as MinimumNorm,
    OneStep as OneStep,
    Smoothed as Smoothed,
    Unrolled as Unrolled,
    check_derivative as check_derivative,
)
from .core.checks import check as check
from .core.loop import Lockstep as Lockstep, Refill as Refill
from .core.problem import AbstractProblem as AbstractProblem, Statement as Statement
from .core.solution import (
    RESULTS as RESULTS,
    Dual as Dual,
    Guess as Guess,
    Point as Point,
    Residual as Residual,
    Solution as Solution,
    SolveError as SolveError,
    Stats as Stats,
)
from .core.solve import solve as solve
from .core.solver import AbstractSolver as AbstractSolver
from .interop import Jaxopt as Jaxopt, Scipy as Scipy
from .layers import (
    ConeLayer as ConeLayer,
    CvxpyLayer as CvxpyLayer,
    ProjectionLayer as ProjectionLayer,
    QPLayer as QPLayer,
    SoftRank as SoftRank,
    SoftSort as SoftSort,
    SolverLayer as SolverLayer,
    from_cvxpy as from_cvxpy,
)
from .smooth import (
    LBFGS as LBFGS,
    QR as QR,
    SRHT as SRHT,
    Anderson as Anderson,
    Broyden as Broyden,
    CountSketch as CountSketch,
    FixedPoint as FixedPoint,
    GaussianSketch as GaussianSketch,
    Gram as Gram,
    LeastSquares as LeastSquares,
    LevenbergMarquardt as LevenbergMarquardt,
    Minimise as Minimise,
    Newton as Newton,
    Root as Root,
    SketchedLeastSquares as SketchedLeastSquares,
    SketchPreconditionedCG as SketchPreconditionedCG,
    TrustRegionNewton as TrustRegionNewton,
)
from .transport import (
    Barycentre as Barycentre,
    BregmanProjections as BregmanProjections,
    Couplings as Couplings,
    Diagonal as Diagonal,
    EntropicTransport as EntropicTransport,
    Full as Full,
    GaussianMixture as GaussianMixture,
    LightBridge as LightBridge,
    LightSB as LightSB,
    LightSBM as LightSBM,
    LowRankPlan as LowRankPlan,
    LowRankSinkhorn as LowRankSinkhorn,
    MinibatchLightSB as MinibatchLightSB,
    MinibatchTransport as MinibatchTransport,
    Plan as Plan,
    SchrodingerBridge as SchrodingerBridge,
    Sinkhorn as Sinkhorn,
    SinkhornNewton as SinkhornNewton,
    UnbalancedLightBridge as UnbalancedLightBridge,
    gaussian_mixture_benchmark as gaussian_mixture_benchmark,
    sinkhorn_divergence as sinkhorn_divergence,
)

__version__ = "0.1.0"
