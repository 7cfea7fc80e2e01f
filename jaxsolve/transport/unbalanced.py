"""Schroedinger bridges between samples that need not be met: light and unbalanced.

    gamma(x, y) = m u(x) pi(y|x),   pi(y|x) = exp(x'y / eps) v(y) / c(x) a light bridge,
    u = sum_l b_l N(mu_l, eps Sigma_l) a density, m the mass that is transported,

minimises int |x - y|^2 / 2 dgamma + eps int gamma log gamma, and tau KL of each marginal from the
law of its sample. Gazdieva, Asadulaev, Burnaev and Korotin (2024), Light Unbalanced Optimal
Transport, fit it by the dual function

    eps m + mean_i F(phi(x0_i)) + mean_j F(psi(x1_j)),          F(s) = tau (exp(-s / tau) - 1)
    phi(x) = eps (log u(x) + log m - log c(x)) + |x|^2 / 2,     psi(y) = eps log v(y) + |y|^2 / 2

Its minimum over m, and over the number by which v may be multiplied, is known: with
A = mean_i exp(-phi(x0_i) / tau) for m = 1 and B = mean_j exp(-psi(x1_j) / tau) it is
(eps + 2 tau) m - 2 tau at m = (A B)^{tau / (2 tau + eps)}. What is left is the minimisation of

    J = (tau / eps) (log A + log B)

over u and v, whose limit for tau -> infinity is L of the balanced fit less mean_i log u(x0_i). The
elimination is ours; the minimiser is theirs.
"""

from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, Float, PyTree

from ..core.checks import show
from ..core.vectors import matmul
from .bridge import LightParameters, LightProblem
from .covariances import Shape
from .light_bridge import LightBridge, Scalar, Vector
from .mixture import GaussianMixture, log_densities


class UnbalancedLightBridge(eqx.Module):
    """A plan of mass m from a part of one law to a part of another: the value of
    `SchrodingerBridge(..., tau=...)`.

    Attributes:
        bridge: where a point goes, if it goes: `conditional`, `drift`, paths.
        source: u, the law of the points that go.
        mass: m.
    """

    bridge: LightBridge
    source: GaussianMixture
    mass: Scalar

    def log_density(self, x: Vector, y: Vector) -> Scalar:
        """log gamma(x, y), the logarithm of m u(x) pi(y|x)."""
        plan = self.source.log_prob(x) + self.bridge.log_likelihood(x, y)
        return jnp.log(self.mass) + plan

    def sample(self, key: Array, count: int) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
        """Independent draws (x, y) of gamma / m."""
        first, second = jax.random.split(key)
        x = self.source.sample(first, (count,))
        keys = jax.random.split(second, count)
        return x, jax.vmap(lambda key, x: self.bridge.conditional(x).sample(key))(keys, x)


class UnbalancedParameters(eqx.Module):
    """What a fit varies: v as in a balanced fit; of u the weights b up to a multiple, the centres
    in units of the standard deviations of x0 from its mean, and the Sigma."""

    potential: LightParameters
    logits: Float[Array, " l"]
    centres: Float[Array, "l d"]
    shape: Shape


class UnbalancedProblem(LightProblem):
    """The minimisation of J over `UnbalancedParameters`, and the gauges of both mixtures.

    In points less their means, with delta = mean(x0) - mean(x1), and v, c those of these points,

        phi(x) / eps = log u - log c + (|x|^2 / 2 + x'delta + |delta|^2 / 2) / eps
        psi(y) / eps = log v + (|y|^2 / 2 - y'delta) / eps

    Attributes:
        ratio: tau / eps.
    """

    ratio: Scalar

    @classmethod
    def of(cls, fit: LightProblem, tau: Any) -> "UnbalancedProblem":
        """The balanced fit without its constraints."""
        tau = jnp.asarray(tau, fit.inputs.dtype)
        usable = tau > 0
        fields = {name: getattr(fit, name) for name in fit.__dataclass_fields__}
        fields["valid"] = fit.valid & usable
        return cls(**fields, ratio=jnp.where(usable, tau, jnp.ones_like(tau)) / fit.epsilon)

    def __call__(self, value: Any) -> Scalar:
        gauges = logsumexp(value.potential.logits) ** 2 + logsumexp(value.logits) ** 2
        return self.dual(value) + 0.5 * gauges

    def dual(self, value: UnbalancedParameters) -> Scalar:
        """J."""
        bridge, source = self.centred(value.potential), self.source(value)
        terms = self.family.tilt(bridge.shape, bridge.centres, self.inputs) / self.epsilon
        parts = log_densities(self.family, bridge.shape, bridge.centres, self.epsilon, self.targets)
        own = log_densities(self.family, source.shape, source.means, self.epsilon, self.inputs)
        normalisers = logsumexp(bridge.log_weights + terms, axis=1)
        potentials = logsumexp(bridge.log_weights + parts, axis=1)
        densities = logsumexp(source.log_weights + own, axis=1)
        delta = self.means[0] - self.means[1]
        phi = densities - normalisers + self._quadratic(self.inputs + delta)
        psi = potentials + self._quadratic(self.targets - delta) - self._quadratic(delta[None])
        return self._soft(phi) + self._soft(psi)

    def source(self, value: UnbalancedParameters) -> GaussianMixture:
        """u of the points less their mean."""
        return GaussianMixture(
            log_weights=jax.nn.log_softmax(value.logits),
            means=self.reach * value.centres,
            shape=value.shape,
            scale=self.epsilon,
            family=self.family,
        )

    def nearest(self, potential: LightParameters, sources: Float[Array, "l d"]) -> LightParameters:
        """v whose components take the nearest of given points of x0 to their centres of x1, and
        pay for that by both potentials alike."""
        delta = self.means[0] - self.means[1]
        ends = self.unit * potential.centres
        away = sources[:, None] - ends + delta
        costs = 0.5 * jnp.sum(away * away, axis=2)
        begins = sources[jnp.argmin(costs, axis=0)]
        pulled = jax.vmap(lambda k, x: self.family.times(potential.shape, x)[k])(
            jnp.arange(ends.shape[0]), begins
        )
        psi = 0.5 * jnp.min(costs, axis=0)
        exponent = (psi - 0.5 * jnp.sum(ends * ends, axis=1) + matmul(ends, delta)) / self.epsilon
        trace = self.family.trace(potential.shape, self.covariance)
        logits = exponent + 0.5 * (self.family.log_det(potential.shape) + trace / self.epsilon)
        centres = (ends - pulled) / self.unit
        return LightParameters(jax.nn.log_softmax(logits), centres, potential.shape)

    @property
    def reach(self) -> Vector:
        """The standard deviations of x0, 1 where there is none."""
        variance = jax.lax.stop_gradient(jnp.diagonal(self.covariance))
        return jnp.sqrt(jnp.where(variance > 0, variance, jnp.ones_like(variance)))

    def _quadratic(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        return 0.5 * jnp.sum(x * x, axis=1) / self.epsilon

    def _soft(self, values: Float[Array, " n"]) -> Scalar:
        """(tau / eps) log mean exp(-values eps / tau), about their mean: where tau is large no
        digits are lost to the difference of 1 and a number near it."""
        middle = jnp.mean(values)
        away = (middle - values) / self.ratio
        top = jnp.maximum(jax.lax.stop_gradient(jnp.max(away)), 0)
        small = jnp.where(top < 1, away, jnp.zeros_like(away))
        near = jnp.log1p(jnp.mean(jnp.expm1(small)))
        far = logsumexp(away) - jnp.log(jnp.asarray(away.size, away.dtype))
        return self.ratio * jnp.where(top < 1, near, far) - middle

    def restore(self, value: Any) -> Any:
        source = self.source(value)
        exponent = self.dual(value) / (2 * self.ratio + 1)
        return UnbalancedLightBridge(
            bridge=super().restore(value.potential),
            source=eqx.tree_at(lambda s: s.means, source, source.means + self.means[0]),
            mass=jnp.exp(exponent),
        )

    def parameters(self, bridge: Any) -> Any:
        source = bridge.source
        return UnbalancedParameters(
            potential=super().parameters(bridge.bridge),
            logits=jax.nn.log_softmax(source.log_weights),
            centres=(source.means - self.means[0]) / self.reach,
            shape=source.shape,
        )

    def prepare(self, init: PyTree | None) -> tuple[Self, PyTree[Array]]:
        if not isinstance(init, UnbalancedLightBridge):
            raise TypeError("The fit of an unbalanced bridge starts from an UnbalancedLightBridge.")
        return self, self.parameters(init)


def checked(init: Any, problem: UnbalancedProblem, components: int) -> UnbalancedLightBridge:
    """A first guess in the problem's dtype; raises where its form is another one."""
    if not isinstance(init, UnbalancedLightBridge):
        raise TypeError(
            f"`init` must be an UnbalancedLightBridge where `tau` is given; got "
            f"{type(init).__name__}."
        )
    dim = problem.inputs.shape[1]
    source = init.source
    if type(source.family) is not type(problem.family):
        raise TypeError(f"`init.source` is of {source.family}, the solver of {problem.family}.")
    wanted = (components, dim), (components, problem.family.parameters(dim))
    if (source.means.shape, source.shape.shape) != wanted:
        raise ValueError(
            f"`init.source.means` is {show(source.means)} and `init.source.shape` "
            f"{show(source.shape)}: {components} components of {dim} dimensions have shapes "
            f"{list(wanted[0])} and {list(wanted[1])}."
        )
    return jax.tree.map(lambda x: jnp.asarray(x, problem.inputs.dtype), init)
