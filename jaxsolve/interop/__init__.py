"""Solvers of optimistix, optax, jaxopt and SciPy, used in `solve` as if they were ours."""

from .jaxopt import Jaxopt as Jaxopt
from .optax import Optax as Optax
from .optimistix import Optimistix as Optimistix
from .scipy import Scipy as Scipy
