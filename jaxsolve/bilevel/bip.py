"""BiP: weights and mask learned in turns, by the implicit gradient of the mask.

With z = m theta and q = grad_z l, where the Hessian of l in z is left out, the lower level's
Hessian is gamma I and its mixed derivative is diag(q):

    theta <- theta - alpha (m q_A + gamma theta)                      lower level, a batch A
    s     <- s - beta (theta - m q_B / gamma) q_B                     upper level, a batch B     (1)
    m     <- 1 where s is among the largest                           projection on S

s is the relaxed mask, and begins at |theta|. (To begin at theta and rank |s| would drive the scores
of negative weights the wrong way.) Zhang et al., Advancing model pruning via bi-level optimization
(2022). Their program has 1e-4 as gamma of the penalty, and 1e-4 in the place of 1/gamma in (1):
both are settings here.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int, PyTree, UInt32

from ..core.checks import (
    check_count,
    check_instance,
    check_kind,
    check_not_negative,
    check_number,
)
from ..core.keys import first_key, next_keys
from ..core.solution import RESULTS, Guess, Point
from ..core.solver import AbstractSolver, resumed
from ..core.vectors import ravel
from .fisher import GradientWindow, MFACInverse
from .masks import Leaves
from .pruning import Network, PreparedPruning, Pruning, Scalar, check_optax, masked, smoothed


class BiPState(eqx.Module):
    """Both levels' variables and optimisers, and what is drawn next.

    Attributes:
        params: theta, dense.
        scores: s, of the arrays that are pruned.
        window: the last lower gradients m q_A, `None` without M-FAC.
        loss: the mean of the last batches' losses.
        key: two numbers, which files can hold.
        count: steps made, those of an earlier solve included.
    """

    params: Network
    scores: Leaves
    mask: Network
    lower: PyTree
    upper: PyTree
    window: GradientWindow | None
    loss: Scalar
    key: UInt32[Array, "2"]
    count: Int[Array, ""]


class BiP(AbstractSolver[Pruning]):
    """Pruning in the time of about two trainings, whatever the sparsity.

    A step is two gradients, of two batches. Ends as `approximate` after `steps`. A solve that was
    cut by `max_steps` goes on where it was when its solution is given as `init`.

    Args:
        steps: after which it ends.
        lower: an optax transformation for the weights; make it once. `None`: momentum 0.9, a rate
            of 0.1 that falls to 0 as a cosine.
        upper: for the scores. `None`: momentum 0.9, a decay of 1e-4, a rate of 0.1, a tenth of it
            after half of the steps and a hundredth after three quarters.
        implicit_coef: in the place of 1/gamma in (1); 0 leaves the implicit term out, `None` is
            1/gamma.
        linear_solver: `MFACInverse(number, damping)`: (gamma I + F)^{-1} m q in the place of
            m q / gamma, F from the lower level's last gradients, which cost nothing more. It
            takes the place of `implicit_coef`.

    Raises:
        TypeError: a setting is of another type; `linear_solver` has `gradients` or a `block_size`,
            which nothing here asks for.
        ValueError: `steps` is below 1.
    """

    steps: int = 1000
    lower: optax.GradientTransformation | None = None
    upper: optax.GradientTransformation | None = None
    implicit_coef: float | None = 1e-4
    linear_solver: MFACInverse | None = None

    step_limit: ClassVar[int] = 2**31 - 1

    def __check_init__(self):
        check_count("BiP", steps=self.steps)
        check_optax("BiP", lower=self.lower, upper=self.upper)
        if self.implicit_coef is not None:
            check_number("BiP", implicit_coef=self.implicit_coef)
            check_not_negative("BiP", implicit_coef=self.implicit_coef)
        wanted = "MFACInverse(number, damping)"
        check_instance("BiP", "linear_solver", self.linear_solver, MFACInverse | None, wanted)

    def refuse(self, problem: PreparedPruning) -> None:
        check_kind(self, problem, PreparedPruning)
        if self.linear_solver is not None:
            check_window(self, self.linear_solver)

    def init(self, problem: PreparedPruning, guess: Guess) -> BiPState:
        _, params = guess.primal
        scores = [jnp.abs(x) for x in problem.prunable(params)]
        lower, upper = self._optimisers()
        window = None
        if self.linear_solver is not None:
            flat = ravel(params)
            window = GradientWindow.empty(self.linear_solver.number, flat.size, flat.dtype)
        fresh = BiPState(
            params=params,
            scores=scores,
            mask=_mask(problem, params, scores),
            lower=lower.init(params),
            upper=upper.init(scores),  # pyright: ignore[reportArgumentType]
            window=window,
            loss=jnp.zeros((), ravel(params).dtype),
            key=first_key(guess.key),
            count=jnp.zeros((), jnp.int32),
        )
        found = guess.state
        if not isinstance(found, BiPState):
            return fresh
        return resumed(found, fresh, found.count >= self.steps)

    def step(self, problem: PreparedPruning, state: BiPState) -> BiPState:
        key, draws = next_keys(state.key, 2)
        lower, upper = self._optimisers()

        loss, slope = problem.gradient(masked(state.mask, state.params), problem.sample(draws[0]))
        kept = masked(state.mask, slope)
        window = None if state.window is None else state.window.push(ravel(kept))
        total = problem.penalised(kept, state.params)
        changes, inner = lower.update(total, state.lower, state.params)
        params = jax.tree.map(jnp.add, state.params, changes)

        _, slope = problem.gradient(masked(state.mask, params), problem.sample(draws[1]))
        reply = self._reply(problem, window, masked(state.mask, slope))
        slopes, replies, weights = (problem.prunable(x) for x in (slope, reply, params))
        implicit = [(w - r) * q for w, r, q in zip(weights, replies, slopes, strict=True)]
        changes, outer = upper.update(implicit, state.upper, state.scores)  # pyright: ignore[reportArgumentType]
        scores = jax.tree.map(jnp.add, state.scores, changes)
        return BiPState(
            params=params,
            scores=scores,
            mask=_mask(problem, params, scores),
            lower=inner,
            upper=outer,
            window=window,
            loss=smoothed(state.loss, loss, state.count),
            key=key,
            count=state.count + 1,
        )

    def measure(self, problem: PreparedPruning, state: BiPState) -> Scalar:
        return state.loss

    def status(self, problem: PreparedPruning, state: BiPState, tolerance: Scalar) -> Any:
        return state.count >= self.steps, RESULTS.approximate

    def point(self, problem: PreparedPruning, state: BiPState) -> Point:
        return Point((state.mask, masked(state.mask, state.params)))

    def _reply(
        self, problem: PreparedPruning, window: GradientWindow | None, kept: Network
    ) -> Network:
        """The lower level's inverse Hessian times m q."""
        if window is None or self.linear_solver is None:
            coef = self.implicit_coef
            if coef is None:
                coef = 1 / problem.penalty
            return jax.tree.map(lambda x: jnp.asarray(coef, x.dtype) * x, kept)
        flat, shaped = ravel_pytree(kept)
        damping = problem.penalty.astype(flat.dtype) + self.linear_solver.damping
        samples = self.linear_solver.samples or problem.batch_size
        return shaped(window.inverse(damping, samples=samples)(flat))

    def _optimisers(self) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
        lower, upper = self.lower, self.upper
        if lower is None:
            lower = optax.sgd(optax.cosine_decay_schedule(0.1, self.steps), 0.9)
        if upper is None:
            drops = {self.steps // 2: 0.1, 3 * self.steps // 4: 0.1}
            rate = optax.piecewise_constant_schedule(0.1, drops)
            upper = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(rate, 0.9))
        return lower, upper


def check_window(solver: AbstractSolver, inverse: MFACInverse) -> None:
    """Raise `TypeError` naming a setting of M-FAC that a solver with its own window ignores."""
    for field in ("gradients", "block_size"):
        if getattr(inverse, field) is not None:
            raise TypeError(
                f"{type(solver).__name__}: `linear_solver` has `{field}`, but the gradients are "
                "the solver's own, in a window: MFACInverse(number, damping, samples)."
            )


def _mask(problem: PreparedPruning, params: Network, scores: Leaves) -> Network:
    return problem.mask(params, scores, problem.kept)
