"""Entropic transport: plans between weights, and Schroedinger bridges between samples."""

from .barycentre import Barycentre as Barycentre, Couplings as Couplings
from .bregman_projections import BregmanProjections as BregmanProjections
from .bridge import SchrodingerBridge as SchrodingerBridge
from .coupling import MinibatchTransport as MinibatchTransport, independent as independent
from .covariances import Diagonal as Diagonal, Full as Full
from .divergence import sinkhorn_divergence as sinkhorn_divergence
from .entropic_transport import EntropicTransport as EntropicTransport
from .gaussian_mixture import (
    GaussianMixtureBenchmark as GaussianMixtureBenchmark,
    gaussian_mixture_benchmark as gaussian_mixture_benchmark,
)
from .light_bridge import LightBridge as LightBridge
from .light_sb import LightSB as LightSB
from .light_sbm import LightSBM as LightSBM
from .low_rank import LowRankSinkhorn as LowRankSinkhorn
from .low_rank_plan import LowRankPlan as LowRankPlan
from .minibatch import MinibatchLightSB as MinibatchLightSB
from .mixture import GaussianMixture as GaussianMixture
from .plan import Plan as Plan
from .sinkhorn import Sinkhorn as Sinkhorn
from .sinkhorn_newton import SinkhornNewton as SinkhornNewton
from .unbalanced import UnbalancedLightBridge as UnbalancedLightBridge
