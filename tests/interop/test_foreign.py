"""Every foreign solver: values and derivatives in both modes, under vmap and jit."""

import warnings

import numpy as np
import optax
import optimistix as optx
import pytest

from jaxsolve.interop import Jaxopt, Scipy

from .problems import check

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import jaxopt

LOOSE = (1e-3, 1e-3)
"""Tolerances of optimistix that would stop far from our own: they must not decide."""

MINIMISERS = {
    "optimistix-BFGS": optx.BFGS(*LOOSE),
    "optimistix-BFGS-direct": optx.BFGS(*LOOSE, use_inverse=False),
    "optimistix-DFP": optx.DFP(*LOOSE),
    "optimistix-LBFGS": optx.LBFGS(*LOOSE),
    "optimistix-GradientDescent": optx.GradientDescent(0.05, *LOOSE),
    "optimistix-BestSoFarMinimiser": optx.BestSoFarMinimiser(optx.BFGS(*LOOSE)),
    "optimistix-OptaxMinimiser": optx.OptaxMinimiser(optax.adam(0.05), *LOOSE),
    "optax-adam": optax.adam(0.05),
    "optax-lbfgs": optax.lbfgs(),
    "optax-sgd": optax.sgd(0.05, momentum=0.5),
    "jaxopt-LBFGS": Jaxopt(jaxopt.LBFGS, history_size=5),
    "jaxopt-BFGS": Jaxopt(jaxopt.BFGS),
    "jaxopt-NonlinearCG": Jaxopt(jaxopt.NonlinearCG),
    "jaxopt-GradientDescent": Jaxopt(jaxopt.GradientDescent, stepsize=0.05, acceleration=False),
    "jaxopt-OptaxSolver": Jaxopt(jaxopt.OptaxSolver, opt=optax.adam(0.05)),
    "scipy-CG": Scipy("CG"),
    "scipy-BFGS": Scipy("BFGS"),
    "scipy-Newton-CG": Scipy("Newton-CG"),
    "scipy-L-BFGS-B": Scipy("L-BFGS-B"),
    "scipy-TNC": Scipy("TNC"),
    "scipy-SLSQP": Scipy("SLSQP"),
    "scipy-trust-constr": Scipy("trust-constr"),
    "scipy-dogleg": Scipy("dogleg"),
    "scipy-trust-ncg": Scipy("trust-ncg"),
    "scipy-trust-krylov": Scipy("trust-krylov"),
    "scipy-trust-exact": Scipy("trust-exact"),
}
LEAST_SQUARES = {
    "optimistix-LevenbergMarquardt": optx.LevenbergMarquardt(*LOOSE),
    "optimistix-IndirectLevenbergMarquardt": optx.IndirectLevenbergMarquardt(*LOOSE),
    "optimistix-GaussNewton": optx.GaussNewton(*LOOSE),
    "optimistix-Dogleg": optx.Dogleg(*LOOSE),
    "optimistix-BestSoFarLeastSquares": optx.BestSoFarLeastSquares(optx.GaussNewton(*LOOSE)),
    "optimistix-BFGS": optx.BFGS(*LOOSE),
    "optax-lbfgs": optax.lbfgs(),
    "jaxopt-GaussNewton": Jaxopt(jaxopt.GaussNewton),
    "jaxopt-LevenbergMarquardt": Jaxopt(jaxopt.LevenbergMarquardt),
    "scipy-trf": Scipy("trf"),
    "scipy-dogbox": Scipy("dogbox"),
    "scipy-lm": Scipy("lm"),
}
ROOTS = {
    "optimistix-Newton": optx.Newton(*LOOSE),
    "optimistix-Chord": optx.Chord(*LOOSE),
    "optimistix-BestSoFarRootFinder": optx.BestSoFarRootFinder(optx.Newton(*LOOSE)),
    "optimistix-LevenbergMarquardt": optx.LevenbergMarquardt(*LOOSE),
    "jaxopt-Broyden": Jaxopt(jaxopt.Broyden),
    "scipy-hybr": Scipy("hybr"),
    "scipy-lm": Scipy("lm"),
    "scipy-broyden1": Scipy("broyden1"),
    "scipy-krylov": Scipy("krylov"),
    "scipy-df-sane": Scipy("df-sane"),
    "scipy-anderson": Scipy("anderson"),
}
FIXED_POINTS = {
    "optimistix-FixedPointIteration": optx.FixedPointIteration(*LOOSE),
    "optimistix-BestSoFarFixedPoint": optx.BestSoFarFixedPoint(optx.FixedPointIteration(*LOOSE)),
    "optimistix-Newton": optx.Newton(*LOOSE),
    "jaxopt-FixedPointIteration": Jaxopt(jaxopt.FixedPointIteration),
    "jaxopt-AndersonAcceleration": Jaxopt(jaxopt.AndersonAcceleration),
    "scipy-hybr": Scipy("hybr"),
}
FAST = {
    "minimise-optimistix-BFGS",
    "minimise-optax-lbfgs",
    "minimise-jaxopt-LBFGS",
    "least_squares-optimistix-LevenbergMarquardt",
    "least_squares-scipy-trf",
    "root-optimistix-Newton",
    "root-scipy-hybr",
    "fixed_point-optimistix-FixedPointIteration",
    "fixed_point-jaxopt-AndersonAcceleration",
}
"""One a library and kind; the others are run by `make slow`."""

CASES = [
    pytest.param(
        kind,
        solver,
        id=f"{kind}-{name}",
        marks=() if f"{kind}-{name}" in FAST else pytest.mark.slow,
    )
    for kind, solvers in (
        ("minimise", MINIMISERS),
        ("least_squares", LEAST_SQUARES),
        ("root", ROOTS),
        ("fixed_point", FIXED_POINTS),
    )
    for name, solver in solvers.items()
]


# A line search or trust region that compares function values does not see a gradient below
# sqrt(2 f'' |f| eps), here 4e-3 and 2e-7: it stalls somewhere below that, and says so.
HALF_OF_THE_DIGITS = {"float32": 2e-3, "float64": 1e-7}
BY_VALUES = {
    (optx.DFP, "float32"),
    (optx.LBFGS, "float32"),
    (optx.DFP, "float64"),
    (Scipy, "float32"),
    (Scipy, "float64"),
}
# A Jacobian that is never renewed has to be near that of the solution.
STARTS = {optx.Chord: 1.0}


@pytest.mark.filterwarnings("ignore::RuntimeWarning:scipy")
@pytest.mark.parametrize(("kind", "solver"), CASES)
def test_values_and_derivatives(kind, solver, dtype):
    by_values = kind == "minimise" and (type(solver), dtype.name) in BY_VALUES
    tolerance = HALF_OF_THE_DIGITS[dtype.name] if by_values else None
    check(kind, solver, dtype, tolerance, STARTS.get(type(solver), 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["Nelder-Mead", "Powell", "COBYLA", "COBYQA"])
def test_methods_without_gradients_reach_half_of_the_digits(method, x64):
    check("minimise", Scipy(method), np.dtype("float64"), tolerance=1e-6)
