"""Light Schroedinger Bridge on whole samples.

    minimise  L = mean_i log c(x0_i) - mean_j log v(x1_j)  over a_k, r_k, S_k

Korotin, Gushchin and Burnaev (2024) descend along gradients of small batches. Here L is minimised
on all points by L-BFGS, in coordinates (`LightParameters`) in which that ends at a stationary point
within a few hundred evaluations: the fit has a derivative in the points and in epsilon.
"""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ..core.checks import check_absent, check_instance, check_kind, check_settings, show
from ..core.solution import Guess, Point
from ..core.solver import AbstractPreconditioner, AbstractSolver
from ..core.vectors import finite, matmul, positive
from ..smooth.lbfgs import LBFGS, LBFGSState
from .bridge import LightParameters, LightProblem, SchrodingerBridge, gaussian_spread
from .covariances import AbstractCovariance, Diagonal, check_family
from .light_bridge import LightBridge
from .unbalanced import UnbalancedParameters, UnbalancedProblem, checked

Scalar = Float[Array, ""]

_SAMPLE = 512
"""Points of each sample that starts are tried on."""
_TRIAL = 20
"""Steps of a trial."""
_CANDIDATES = 8
_ROUNDS = 10


class LightSB(AbstractSolver[SchrodingerBridge]):
    """The default of `SchrodingerBridge`: a mixture potential, fitted to all points at once.

    A step costs two products of the points with the components and as many for the gradient: for
    more points than the memory holds, `MinibatchLightSB`.

    The fit starts at centres of clusters of x1, found with `key` (a fixed one when there is none),
    each with the S_k of the bridge between Gaussians; or at `init`, a `LightBridge` of this form.
    Among several starts the one is taken that is lowest after some steps on a part of the points.

    Args:
        components: K; of the source's mixture as well, where the problem has `tau`.
        covariance: `Diagonal()` or `Full()`.
        starts: clusterings that are tried, without `init`; the best one is gone on with.
        minimiser: a solver of `Minimise`: `LBFGS()`, or `TrustRegionNewton()` where that stalls.
    """

    components: int = 10
    covariance: AbstractCovariance = Diagonal()
    starts: int = 8
    minimiser: AbstractSolver = LBFGS()

    step_limit: ClassVar[int] = 5000

    def __check_init__(self):
        check_settings(self)
        check_family(type(self).__name__, self.covariance)
        wanted = "a solver of Minimise (LBFGS(), TrustRegionNewton())"
        check_instance("LightSB", "minimiser", self.minimiser, AbstractSolver, wanted)

    def refuse(self, problem: LightProblem) -> None:
        check_kind(self, problem, LightProblem)

    def prepare(
        self, problem: SchrodingerBridge, init: Any, key: Array | None = None
    ) -> tuple[LightProblem, Any]:
        if isinstance(problem, SchrodingerBridge) and problem.tau is not None:
            return _unbalanced(self, problem, init, key)
        return prepare(self, problem, init, key)

    def init(self, problem: LightProblem, guess: Guess) -> PyTree:
        return self.minimiser.init(problem, guess)

    def step(self, problem: LightProblem, state: PyTree) -> PyTree:
        return self.minimiser.step(problem, state)

    def measure(self, problem: LightProblem, state: PyTree) -> Scalar:
        return self.minimiser.measure(problem, state) / problem.scale

    def status(self, problem: LightProblem, state: PyTree, tolerance: Scalar) -> Any:
        return self.minimiser.status(problem, state, tolerance * problem.scale)

    def point(self, problem: LightProblem, state: PyTree) -> Point:
        return self.minimiser.point(problem, state)

    def preconditioner(self, problem: LightProblem, state: PyTree) -> AbstractPreconditioner | None:
        return self.minimiser.preconditioner(problem, state)


def prepare(
    solver: Any, problem: SchrodingerBridge, init: LightBridge | None, key: Array | None
) -> tuple[LightProblem, LightParameters]:
    """The fit that a solver with `components` and `covariance` makes, and where it starts."""
    if not isinstance(problem, SchrodingerBridge):
        return problem.prepare(init)
    check_absent(type(solver).__name__, problem, ("tau",), "LightSB can.")
    fit = problem.fit(solver.covariance)
    if init is None:
        key = jax.random.key(0) if key is None else key
        return fit, start(fit, solver.components, solver.starts, key)
    return _usable(fit, fit.parameters(_checked(solver, fit, init)))


def _usable(fit: Any, guess: Any) -> tuple[Any, Any]:
    """A fit and a given guess; where that is not finite the fit is not valid, and other numbers
    stand in it: a refused lane's NaN must not reach others."""
    valid = fit.valid & finite(guess)
    guess = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x)), guess)
    return eqx.tree_at(lambda f: f.valid, fit, valid), guess


def _checked(solver: Any, fit: LightProblem, init: Any) -> LightBridge:
    """A first guess in the fit's dtype; raises where its form is another one."""
    if not isinstance(init, LightBridge):
        raise TypeError(f"`init` must be a LightBridge; got {type(init).__name__}.")
    dim = fit.inputs.shape[1]
    if type(init.family) is not type(solver.covariance):
        raise TypeError(f"`init` has covariances {init.family}, the solver {solver.covariance}.")
    wanted = (solver.components, dim), (solver.components, init.family.parameters(dim))
    if (init.centres.shape, init.shape.shape) != wanted:
        raise ValueError(
            f"`init.centres` is {show(init.centres)} and `init.shape` {show(init.shape)}: "
            f"{solver.components} components of {dim} dimensions have shapes {list(wanted[0])} and "
            f"{list(wanted[1])}."
        )
    bridge: Any = jax.tree.map(lambda x: jnp.asarray(x, fit.inputs.dtype), init)
    return bridge


def _unbalanced(
    solver: LightSB, problem: SchrodingerBridge, init: Any, key: Array | None
) -> tuple[UnbalancedProblem, UnbalancedParameters]:
    """The fit where `tau` is given, and its start."""
    balanced = problem.fit(solver.covariance)
    fit = UnbalancedProblem.of(balanced, problem.tau)
    if init is not None:
        given = checked(init, fit, solver.components)
        _checked(solver, balanced, given.bridge)
        return _usable(fit, fit.parameters(given))
    key = jax.random.key(0) if key is None else key
    return fit, _best(fit, _unbalanced_start, solver.components, solver.starts, key)


def _unbalanced_start(fit: Any, components: int, key: Array, turn: Array) -> UnbalancedParameters:
    """Clusters of both samples. v is that of a balanced start; in every other turn its components
    go to their clusters from the nearest ones of x0, as they do where tau is small."""
    keys = jax.random.split(key)
    potential = _start(fit, components, keys[0], turn)
    centres, spreads = clusters(fit.inputs, components, keys[1])
    floor = positive(1e-3 * jnp.var(fit.inputs, axis=0))
    near = fit.nearest(potential, centres)
    return UnbalancedParameters(
        potential=jax.tree.map(lambda x, y: jnp.where(turn % 2 == 0, x, y), near, potential),
        logits=jnp.full_like(centres[:, 0], -math.log(components)),
        centres=centres / fit.reach,
        shape=fit.family.from_diagonal(jnp.maximum(spreads, floor) / fit.epsilon),
    )


def start(fit: LightProblem, components: int, starts: int, key: Array) -> LightParameters:
    """The best of some starts, each after a few steps on a part of the points."""
    return _best(fit, _start, components, starts, key)


def _best(fit: Any, first: Any, components: int, starts: int, key: Array) -> Any:
    """Of `first(fit, components, key, turn)` for some keys and turns."""
    fit = jax.tree.map(jax.lax.stop_gradient, fit)
    keys = jax.random.split(key, starts + 2)
    few = eqx.tree_at(
        lambda f: (f.inputs, f.targets),
        fit,
        (_part(fit.inputs, keys[0]), _part(fit.targets, keys[1])),
    )
    turns = jnp.arange(starts)
    if starts == 1 or components == 1:
        return first(few, components, keys[2], turns[0])
    minimiser = LBFGS()

    def one(key: Array, turn: Array) -> tuple[Scalar, Any]:
        state = minimiser.init(few, Guess(first(few, components, key, turn)))

        def step(state: LBFGSState, _: None) -> tuple[LBFGSState, None]:
            return minimiser.step(few, state), None

        state, _ = jax.lax.scan(step, state, length=_TRIAL)
        return state.value, state.primal

    values, found = jax.vmap(one)(keys[2:], turns)
    best = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
    return jax.tree.map(lambda x: x[best], found)


def _part(points: Float[Array, "n d"], key: Array) -> Float[Array, "p d"]:
    """So many of the points that their number no longer tells."""
    size = points.shape[0]
    if size <= _SAMPLE:
        return points
    # One of each of so many equal runs: a permutation would sort them all.
    ends = np.arange(_SAMPLE + 1) * size // _SAMPLE
    return points[jax.random.randint(key, (_SAMPLE,), ends[:-1], ends[1:])]


def _start(fit: LightProblem, components: int, key: Array, _: Array) -> LightParameters:
    """Equal weights at centres of clusters, each as wide as its cluster."""
    centres, spreads = clusters(fit.targets, components, key)
    spreads = jnp.maximum(spreads, positive(1e-3 * jnp.var(fit.targets, axis=0)))
    diagonal = gaussian_spread(jnp.diagonal(fit.covariance), spreads, fit.epsilon)
    logits = jnp.full_like(centres[:, 0], -math.log(components))
    return LightParameters(logits, centres / fit.unit, fit.family.from_diagonal(diagonal))


def clusters(
    points: Float[Array, "n d"], count: int, key: Array
) -> tuple[Float[Array, "k d"], Float[Array, "k d"]]:
    """Centres of clusters and the variances in them.

    k-means++ with the best of a few candidates for each centre (Arthur and Vassilvitskii 2007), and
    a fixed number of rounds of Lloyd's.
    """

    own = jnp.sum(points * points, axis=1, keepdims=True)

    def squares(centres: Float[Array, "k d"]) -> Float[Array, "n k"]:
        """Of the distances, less the points' own."""
        return jnp.sum(centres * centres, axis=1) - 2 * matmul(points, centres.T)

    def add(nearest: Float[Array, " n"], key: Array):
        mass = jnp.cumsum(nearest)
        drawn = mass[-1] * jax.random.uniform(key, (_CANDIDATES, 1), points.dtype)
        place = jnp.sum(mass <= drawn, axis=1)
        # All points at centres already: any will do.
        tried = points[jnp.minimum(place, points.shape[0] - 1)]
        left = jnp.minimum(jnp.maximum(own + squares(tried), 0), nearest[:, None])
        best = jnp.argmin(jnp.sum(left, axis=0))
        return left[:, best], tried[best]

    keys = jax.random.split(key, count)
    far = jnp.full_like(points[:, 0], jnp.max(own) + 1)
    _, centres = jax.lax.scan(add, far, keys)

    def members(centres: Float[Array, "k d"]) -> Float[Array, "n k"]:
        nearest: Int[Array, " n"] = jnp.argmin(squares(centres), axis=1)
        return jax.nn.one_hot(nearest, count, dtype=points.dtype)

    def move(centres: Float[Array, "k d"], _: None):
        belong = members(centres)
        sizes = jnp.sum(belong, axis=0)[:, None]
        means = matmul(belong.T, points) / positive(sizes)
        return jnp.where(sizes > 0, means, centres), None

    centres, _ = jax.lax.scan(move, centres, length=_ROUNDS)
    belong = members(centres)
    sizes = jnp.sum(belong, axis=0)[:, None]
    second = matmul(belong.T, points * points) / positive(sizes)
    return centres, jnp.maximum(second - centres * centres, 0)
