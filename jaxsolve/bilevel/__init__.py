"""Bilevel optimisation: one variable solves a problem in another."""

from .bilevel import Bilevel as Bilevel, BilevelDual as BilevelDual, LowerPoint as LowerPoint
from .hypergradient import hypergradient as hypergradient
from .hypergradient_descent import HypergradientDescent as HypergradientDescent
from .stochastic import StochasticBilevel as StochasticBilevel
