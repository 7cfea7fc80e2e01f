"""Bilevel optimisation: one variable solves a problem in another."""

from .bilevel import Bilevel as Bilevel, BilevelDual as BilevelDual, LowerPoint as LowerPoint
from .fisher import MFACInverse as MFACInverse
from .hypergradient import hypergradient as hypergradient
from .hypergradient_descent import HypergradientDescent as HypergradientDescent
from .mfac import mfac as mfac
from .stochastic import StochasticBilevel as StochasticBilevel
