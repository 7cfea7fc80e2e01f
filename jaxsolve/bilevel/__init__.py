"""Bilevel optimisation: one variable solves a problem in another."""

from .bic_gaffa import BiCGAFFA as BiCGAFFA
from .bilevel import Bilevel as Bilevel, BilevelDual as BilevelDual, LowerPoint as LowerPoint
from .bip import BiP as BiP
from .bome import BOME as BOME
from .f2sa import F2SA as F2SA
from .fisher import MFACInverse as MFACInverse
from .hypergradient import hypergradient as hypergradient
from .hypergradient_descent import HypergradientDescent as HypergradientDescent
from .lvhba import LVHBA as LVHBA
from .magnitude import (
    IterativeMagnitudePruning as IterativeMagnitudePruning,
    MagnitudePruning as MagnitudePruning,
)
from .masks import Channels as Channels, Filters as Filters, Unstructured as Unstructured
from .meha import MEHA as MEHA
from .mfac import mfac as mfac
from .obs import OBS as OBS
from .polished import Polished as Polished
from .pruning import Pruning as Pruning
from .pzobo import PZOBO as PZOBO
from .saba import SABA as SABA
from .soba import SOBA as SOBA
from .stoc_bio import StocBiO as StocBiO
from .stochastic import StochasticBilevel as StochasticBilevel
from .suggest_steps import suggest_steps as suggest_steps
