"""The Schroedinger bridge between two samples.

    minimise  KL(P || W_eps)  over diffusions P from the law of x0 to the law of x1,

W_eps the Brownian motion of variance eps from the law of x0. The solution is dX = g dt + sqrt(eps)
dW with the entropic plan of cost |x - y|^2 / 2 as its law of ends. Among the light bridges
(`light_bridge.py`) the divergence of the solution from one with potential v and normaliser c is,
up to a constant that does not depend on them,

    L = mean_i log c(x0_i) - mean_j log v(x1_j)                     (Korotin et al. 2024, eq. 13)

and a fit is a minimiser of L. No pairs of points enter, and nothing is simulated.
"""

from typing import TYPE_CHECKING, Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, Bool, Float, PyTree

from ..core.checks import check_array, check_number, check_real, show
from ..core.problem import AbstractProblem, Statement, Structure
from ..core.solution import RESULTS, Guess, Point, Residual, Scale
from ..core.unsolved import failure
from ..core.vectors import clean, finite, largest, matmul, positive
from .covariances import AbstractCovariance, Shape
from .light_bridge import LightBridge, Scalar
from .mixture import log_densities

if TYPE_CHECKING:
    from ..core.solver import AbstractSolver


class SchrodingerBridge(AbstractProblem):
    """Find the diffusion of variance epsilon that joins two samples and is closest to Brownian.

    The value is a `LightBridge`, in the form that the solver (`LightSB`) or `init` gives.

    Example:
        ```python
        keys = jax.random.split(jax.random.key(0))
        x0 = jax.random.normal(keys[0], (200, 2))
        x1 = 2 + 0.5 * jax.random.normal(keys[1], (300, 2))
        bridge = solve(SchrodingerBridge(x0, x1, epsilon=0.5), LightSB(1)).value
        bridge.drift(x0[0], 0.5)
        ```

    L has local minimisers, as the likelihood of any mixture has, and none at all where a component
    may shrink onto a few points of x1: take no more components than the samples can tell apart.

    Args:
        x0: points at time 0, of shape (n, d).
        x1: points at time 1, of shape (m, d); not paired with x0.
        epsilon: the variance of the diffusion in unit time.
        tau: `None`: the laws of both samples are met. A number: what it costs to miss them, tau KL
            on each side, in units of the cost |x - y|^2 / 2; the value is then an
            `UnbalancedLightBridge`.

    Raises:
        TypeError, ValueError: shapes or dtypes do not fit; a concrete epsilon or tau is not
            positive.
    """

    x0: Float[Array, "n d"]
    x1: Float[Array, "m d"]
    epsilon: Scalar | float = eqx.field(kw_only=True)
    tau: Any = eqx.field(default=None, kw_only=True)

    def __check_init__(self):
        for name, given in (("epsilon", self.epsilon), ("tau", self.tau)):
            if isinstance(given, float | int) and not given > 0:
                raise ValueError(f"SchrodingerBridge: `{name}` must be positive; got {given}.")

    def fit(self, family: AbstractCovariance) -> "LightProblem":
        """The fit of a light bridge with covariances of a family."""
        x0, x1 = self._samples()
        epsilon = jnp.asarray(self.epsilon, x0.dtype)
        valid = (epsilon > 0) & finite(x0, x1)
        # Any numbers where there are none: a refused lane's NaN must not reach others, but its
        # derivative is NaN, and passes none of these.
        lost = failure((x0, x1, epsilon), valid)
        epsilon = jnp.where(epsilon > 0, epsilon, jnp.ones_like(epsilon))
        x0, x1 = (jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x)) + lost for x in (x0, x1))
        means = jnp.mean(x0, axis=0), jnp.mean(x1, axis=0)
        inputs, targets = x0 - means[0], x1 - means[1]
        covariance = matmul(inputs.T, inputs) / inputs.shape[0]
        fixed = jax.lax.stop_gradient((jnp.diagonal(covariance), jnp.var(targets, axis=0), epsilon))
        spread = gaussian_spread(*fixed)
        size = jnp.max(jnp.sqrt(fixed[0] * fixed[1])) / positive(fixed[2])
        return LightProblem(
            inputs=inputs,
            targets=targets,
            epsilon=epsilon,
            means=means,
            covariance=covariance,
            unit=jnp.sqrt(positive(fixed[2] * spread)),
            scale=jnp.maximum(size, 1),
            family=family,
            valid=valid,
        )

    def prepare(self, init: PyTree | None) -> tuple[Any, PyTree[Array]]:
        """The fit of a bridge of the form of `init`, or of the default solver."""
        from .light_sb import LightSB
        from .unbalanced import UnbalancedLightBridge

        if self.tau is not None and isinstance(init, UnbalancedLightBridge):
            solver = LightSB(init.bridge.log_weights.shape[0], init.bridge.family)
        elif isinstance(init, LightBridge):
            solver = LightSB(init.log_weights.shape[0], init.family)
        else:
            solver = LightSB()
        return solver.prepare(self, init)

    def optimality(self, point: Point) -> Point:
        raise TypeError("SchrodingerBridge has no optimality conditions before its form is given.")

    def residual(self, point: Point) -> Residual:
        raise TypeError("SchrodingerBridge has no residual before its form is given.")

    def default_solver(self) -> "AbstractSolver":
        from .light_sb import LightSB

        return LightSB()

    def _samples(self) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
        """Both samples in one dtype; raises where they do not fit."""
        arrays = [check_array("SchrodingerBridge", k, getattr(self, k)) for k in ("x0", "x1")]
        for name, x in zip(("x0", "x1"), arrays, strict=True):
            check_real("SchrodingerBridge", name, x.dtype)
            if x.ndim != 2 or x.size == 0:
                raise ValueError(
                    f"SchrodingerBridge: `{name}` is {show(x)}; points are the rows of a matrix."
                )
        if arrays[0].shape[1] != arrays[1].shape[1]:
            raise ValueError(
                f"SchrodingerBridge: `x0` is {show(arrays[0])}, but `x1` is {show(arrays[1])}: "
                "their points must have one dimension."
            )
        check_number("SchrodingerBridge", epsilon=self.epsilon)
        if self.tau is not None:
            check_number("SchrodingerBridge", tau=self.tau)
        dtype = jnp.promote_types(arrays[0].dtype, arrays[1].dtype)
        return arrays[0].astype(dtype), arrays[1].astype(dtype)


class LightParameters(eqx.Module):
    """What a fit varies.

    x and y are measured from their means. There, with C the covariance of x0 and u a unit of length
    for each coordinate,

        log a_k = logits_k - tr(S_k C) / (2 eps),   r_k = u centres_k

    so that a change of S_k does not move the mean weight of its component.
    """

    logits: Float[Array, " k"]
    centres: Float[Array, "k d"]
    shape: Shape


class LightProblem(AbstractProblem):
    """The fit of a light bridge of given form: the minimisation of L over `LightParameters`.

    L does not change when all a_k are multiplied by one number: half the square of log sum_k
    exp(logits_k) is added, which is 0 at every solution.

    Attributes:
        inputs, targets: the points less their means.
        means: of x0 and of x1.
        covariance: C, of x0.
        unit: u.
        scale: the size of the two parts of the gradient that balance at a solution.
        family: of the S_k.
        valid: whether epsilon was positive, and the points finite; else other numbers stand here.
    """

    inputs: Float[Array, "n d"]
    targets: Float[Array, "m d"]
    epsilon: Scalar
    means: tuple[Float[Array, " d"], Float[Array, " d"]]
    covariance: Float[Array, "d d"]
    unit: Float[Array, " d"]
    scale: Scalar
    family: AbstractCovariance
    valid: Bool[Array, ""]

    @property
    def structure(self) -> Structure:
        return Structure(symmetric=True, definite=True)

    def __call__(self, value: LightParameters) -> Scalar:
        """L, and the gauge."""
        bridge = self.centred(value)
        terms = self.family.tilt(bridge.shape, bridge.centres, self.inputs) / self.epsilon
        parts = log_densities(self.family, bridge.shape, bridge.centres, self.epsilon, self.targets)
        normalisers = logsumexp(bridge.log_weights + terms, axis=1)
        potentials = logsumexp(bridge.log_weights + parts, axis=1)
        gauge = 0.5 * logsumexp(value.logits) ** 2
        return jnp.mean(normalisers) - jnp.mean(potentials) + gauge

    def centred(self, value: LightParameters) -> LightBridge:
        """The bridge between the points less their means."""
        trace = self.family.trace(value.shape, self.covariance)
        return LightBridge(
            log_weights=value.logits - 0.5 * trace / self.epsilon,
            centres=self.unit * value.centres,
            shape=value.shape,
            epsilon=self.epsilon,
            family=self.family,
        )

    def restore(self, value: LightParameters) -> LightBridge:
        """The bridge between the points themselves, its weights of sum 1.

        With x = mean + x' the term of c is that of x' with r_k' = r_k + S_k mean; a shift of y
        moves r_k alone.
        """
        bridge = self.centred(value)
        moved = self.family.times(value.shape, self.means[0])
        centres = bridge.centres - moved + self.means[1]
        weights = bridge.log_weights - self._offset(bridge.centres - moved, moved)
        return eqx.tree_at(
            lambda b: (b.log_weights, b.centres), bridge, (jax.nn.log_softmax(weights), centres)
        )

    def parameters(self, bridge: LightBridge) -> LightParameters:
        """The inverse of `restore`."""
        moved = self.family.times(bridge.shape, self.means[0])
        centres = bridge.centres - self.means[1]
        logits = bridge.log_weights + self._offset(centres, moved)
        logits = logits + 0.5 * self.family.trace(bridge.shape, self.covariance) / self.epsilon
        return LightParameters(
            jax.nn.log_softmax(logits), (centres + moved) / self.unit, bridge.shape
        )

    def _offset(self, centres: Float[Array, "k d"], moved: Float[Array, "k d"]):
        """The exponents of the terms of c at the mean of x0."""
        return matmul(centres + 0.5 * moved, self.means[0]) / self.epsilon

    def optimality(self, point: Point) -> Point:
        return Point(jax.grad(self)(point.primal))

    def residual(self, point: Point) -> Residual:
        size = largest(self.optimality(point).primal)
        zero, one = jnp.zeros_like(size), jnp.ones_like(size)
        return Residual(zero, size, zero, Scale(one, self.scale, one))

    def screen(self, guess: Guess) -> tuple[Any, Point]:
        usable = clean(guess.primal, self) & self.valid
        result = RESULTS.where(usable, RESULTS.successful, RESULTS.nonfinite_input)
        return result, Point(guess.primal)

    def default_solver(self) -> "AbstractSolver":
        from .light_sb import LightSB

        return LightSB()

    def prepare(self, init: PyTree | None) -> tuple[Self, PyTree[Array]]:
        if not isinstance(init, LightBridge):
            raise TypeError("The fit of a light bridge starts from a `LightBridge`.")
        return self, self.parameters(init)

    def statement(self) -> Statement:
        return Statement("minimise", self)


def gaussian_spread(
    before: Float[Array, "..."], after: Float[Array, "..."], epsilon: Scalar
) -> Float[Array, "..."]:
    """S of the bridge between N(., before) and N(., after) in one dimension, where
    after = S^2 before + eps S."""
    root = jnp.sqrt(epsilon * epsilon + 4 * before * after)
    return 2 * after / positive(epsilon + root)
