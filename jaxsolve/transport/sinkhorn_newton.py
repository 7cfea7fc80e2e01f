"""Sinkhorn-Newton-Sparse.

    maximise  <a, f> + <b, g> - epsilon sum_ij p_ij
    p_ij = a_i b_j exp((f_i + g_j - c_ij) / epsilon)

in f and g. With r and s the sums of p, Newton's step solves

    [diag(r)  p      ] [df]           [a - r]
    [p'       diag(s)] [dg] = epsilon [b - s].

After some of Sinkhorn's steps p is nearly sparse: only its largest entries are kept, the diagonal
is not changed, so that the matrix stays positive semidefinite, and a product costs as many
operations as entries are kept. Eight for each row are enough for convergence at Newton's rate; with
two, as often stated, it is linear.

Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao and Ying, Accelerating Sinkhorn algorithm
with sparse Newton iterations, ICLR 2024.
"""

import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..core.checks import check_kind
from ..core.krylov import conjugate_gradient
from ..core.loop import Program, run
from ..core.solution import Guess, Point
from ..core.solver import AbstractSolver, ended
from ..core.vectors import dot, finite, identity, largest, matmul, positive
from .balancing import FACTOR_LIMIT
from .entropic_transport import EntropicTransport, Potential
from .geometry import Columns, Rows, Scalar
from .plan import logarithm
from .sinkhorn import Sinkhorn, WeightPreconditioner

_FIRST, _LARGEST = 1 / 600, 1 / 4
"""Of the spread of the costs: larger epsilons come first where epsilon is smaller; and how large
they may become."""
_LONGEST = 10.0
"""Of a step, in units of epsilon."""
_READY = 0.1
"""Error at which Newton's steps begin, at the latest after `_WARMEST` of Sinkhorn's."""
_WARMEST = 200
_STAGE_ERROR = 1e-3
_RETRY, _GROWTH = 6, 8.0
"""Where parts of the plan hang together by next to nothing, what has to go from one to another is
found at larger epsilons: after so many steps without progress they begin so much higher."""
_PATIENCE = 30


class SinkhornNewtonState(eqx.Module):
    """Both potentials, and the plan's sums.

    Attributes:
        f, g: the potentials.
        epsilon: for which.
        first: the largest epsilon of the scaling.
        rows, columns: r and s.
        error: the sum of what both are off by, over the total weight, at the last step.
        solved: whether that was at the problem's epsilon, and small enough.
        warm: steps of Sinkhorn so far.
        waited: those at this epsilon.
        newton: steps of Newton so far.
        slow: steps of Newton in a row that did not halve the error.
        dense: whether all entries are kept.
        idle: steps of Newton since the error of this epsilon last fell.
        best: the least error of this epsilon.
        tolerance: what is asked for.
    """

    f: Rows
    g: Columns
    epsilon: Scalar
    first: Scalar
    rows: Rows
    columns: Columns
    error: Scalar
    solved: Bool[Array, ""]
    warm: Int[Array, ""]
    waited: Int[Array, ""]
    newton: Int[Array, ""]
    slow: Int[Array, ""]
    dense: Bool[Array, ""]
    idle: Int[Array, ""]
    best: Scalar
    tolerance: Scalar


class Potentials(NamedTuple):
    """Of the rows and of the columns."""

    f: Rows
    g: Columns


class _Kept(NamedTuple):
    """The largest entries of p."""

    values: Float[Array, " k"]
    rows: Int[Array, " k"]
    columns: Int[Array, " k"]


class SinkhornNewton(AbstractSolver[EntropicTransport]):
    """Newton's method with a sparse Hessian, for small epsilon and sums to the last digits.

    For costs as a matrix, with sums that are held. `state.warm` and `state.newton` count the steps
    of each kind. Where steps of the sparse Hessian do not halve the error, all entries are kept;
    where epsilon is very small, or steps make no progress, larger ones come first. A lane that ends
    without success is solved again by `Sinkhorn`.

    Args:
        warm_up: steps of Sinkhorn's method before the first of Newton's.
        kept: entries of the plan that are kept, for each row.
    """

    warm_up: int = 20
    kept: int = 8

    step_limit: ClassVar[int] = 2000

    def refuse(self, problem: EntropicTransport) -> None:
        check_kind(self, problem, EntropicTransport)
        if not problem.balanced:
            raise TypeError("SinkhornNewton: `tau` is not supported; use Sinkhorn().")
        if getattr(problem.geometry, "block", None) is not None:
            raise TypeError(
                "SinkhornNewton needs the whole matrix of costs, and `block` says not to form it; "
                "use Sinkhorn()."
            )

    def init(self, problem: EntropicTransport, guess: Guess) -> SinkhornNewtonState:
        at: Any = guess.primal
        g = problem.whole(at)
        f = jnp.zeros_like(problem.weights[0])
        zero, none = jnp.zeros_like(g[0]), jnp.zeros_like(g[0], jnp.int32)
        ratio = _FIRST * problem.geometry.spread() / positive(problem.epsilon)
        stages = jnp.ceil(jnp.log(jnp.maximum(ratio, 1)) / math.log(2))
        stages = jnp.where(jnp.isfinite(stages), stages, 0)
        warm = none
        if isinstance(guess.state, SinkhornNewtonState):
            f, g, stages = guess.state.f, guess.state.g, 0 * stages
            warm = none + self.warm_up
        tolerance = zero if guess.tolerance is None else guess.tolerance.astype(zero.dtype)
        return SinkhornNewtonState(
            f=f,
            g=g,
            epsilon=problem.epsilon * 2**stages,
            first=problem.epsilon * 2**stages,
            rows=f,
            columns=0 * g,
            error=zero + jnp.inf,
            solved=zero > 0,
            warm=warm,
            waited=none,
            newton=none,
            slow=none,
            dense=zero > 0,
            idle=none,
            best=zero + jnp.inf,
            tolerance=tolerance,
        )

    def step(self, problem: EntropicTransport, state: SinkhornNewtonState) -> SinkhornNewtonState:
        last = state.epsilon <= problem.epsilon
        cold = (state.warm < self.warm_up) | ((state.error > _READY) & (state.waited < _WARMEST))
        model = _Model(problem, problem.geometry.matrix(), state.epsilon)

        start = Potentials(state.f, state.g)
        newton = run(
            Program(
                lambda at: (at, jnp.array(False)),
                lambda at, _: (self._newton(model, at, state), jnp.array(True)),
                lambda _, at: at,
            ),
            start,
            unless=(cold, start),
        )
        sinkhorn = run(
            Program(
                lambda at: (at, jnp.array(False)),
                lambda at, _: (model.balanced(at), jnp.array(True)),
                lambda _, at: at,
            ),
            start,
            unless=(~cold, start),
        )
        f, g = jax.tree.map(lambda x, y: jnp.where(cold, x, y), sinkhorn, newton)
        p = model.plan(f, g)
        rows, columns = jnp.sum(p, axis=1), jnp.sum(p, axis=0)
        error = model.error(rows, columns)

        met = error <= jnp.where(last, state.tolerance, _STAGE_ERROR)
        idle = jnp.where(cold | (error < 0.9 * state.best), 0, state.idle + 1)
        highest = _LARGEST * problem.geometry.spread()
        # An error of rounding's size is no matter of where the steps began.
        rough = error > jnp.sqrt(jnp.finfo(error.dtype).eps)
        anew = (idle >= _RETRY) & ~met & rough & (state.first < highest)
        first = jnp.where(anew, jnp.minimum(_GROWTH * state.first, highest), state.first)
        smaller = jnp.maximum(state.epsilon / 2, problem.epsilon)
        epsilon = jnp.where(met & ~last, smaller, jnp.where(anew, first, state.epsilon))
        other = (met & ~last) | anew

        halved = (error <= 0.5 * state.error) | cold
        slow = jnp.where(halved, 0, state.slow + 1)
        dense = (state.dense | (slow >= 3)) & ~other
        return SinkhornNewtonState(
            f=f,
            g=g,
            epsilon=epsilon,
            first=first,
            rows=rows,
            columns=columns,
            error=error,
            solved=met & last,
            warm=state.warm + cold.astype(state.warm.dtype),
            waited=jnp.where(other, 0, state.waited + cold.astype(state.warm.dtype)),
            newton=state.newton + (~cold).astype(state.newton.dtype),
            slow=jnp.where(dense & ~state.dense, 0, slow),
            dense=dense,
            idle=jnp.where(other, 0, idle),
            best=jnp.where(other, jnp.inf, jnp.minimum(error, state.best)),
            tolerance=state.tolerance,
        )

    def _newton(
        self, model: "_Model", at: "Potentials", state: SinkhornNewtonState
    ) -> "Potentials":
        """The potentials after a step, damped."""
        a, b = model.weights
        p = model.plan(*at)
        rows, columns = jnp.sum(p, axis=1), jnp.sum(p, axis=0)
        forwards, backwards = self._products(p, state.dense)
        inverse = jnp.where(rows > 0, 1 / positive(rows), 0)
        ridge = 10 * jnp.finfo(p.dtype).eps
        root = jnp.sqrt(positive(columns))
        pull = jnp.where(state.dense, columns / jnp.sqrt(positive(jnp.sum(columns))), 0)

        def schur(d: Columns) -> Columns:
            out = (1 + ridge) * columns * d - backwards(inverse * forwards(d))
            return out + pull * dot(pull, d)

        def factor() -> Float[Array, "k m"]:
            """Of all entries, scaled to a diagonal of ones; so small a plan costs little more."""
            scaled = jnp.sqrt(inverse)[:, None] * p / root
            matrix = jnp.diag(columns / root**2 + ridge) - matmul(scaled.T, scaled)
            matrix = matrix + (pull / root)[:, None] * (pull / root)
            lower = lax.linalg.cholesky(matrix, symmetrize_input=False)
            return jnp.where(finite(lower), lower, identity(root))

        def precondition(x: Columns) -> Columns:
            return jax.scipy.linalg.cho_solve((lower, True), x / root) / root

        small = b.size <= FACTOR_LIMIT
        lower = lax.cond(state.dense, factor, lambda: identity(root)) if small else root

        # The rows are eliminated; what is left has half the unknowns.
        left = a - rows
        accuracy = jnp.clip(0.1 * state.error, jnp.finfo(p.dtype).eps ** 0.6, 1e-2)
        dg = conjugate_gradient(
            schur,
            b - columns - backwards(inverse * left),
            precondition=lambda x: (
                lax.cond(state.dense, precondition, lambda x: x / root**2, x)
                if small
                else x / root**2
            ),
            rtol=accuracy,
            limit=4 * b.size,
        )
        df = inverse * (left - forwards(dg))

        longest = largest((df, dg))
        short = jnp.minimum(1, _LONGEST / positive(longest))
        start = model.value(*at, jnp.sum(p))
        slope = dot(left, df) + dot(b - columns, dg)
        blur = 100 * jnp.finfo(p.dtype).eps * (jnp.abs(start) + 1)

        def moved(length: Scalar) -> Potentials:
            scale = model.epsilon * length
            return Potentials(at.f + scale * df, at.g + scale * dg)

        def shorten(_: Scalar, carry: tuple) -> tuple:
            length, count = carry
            there = moved(length)
            value = model.value(*there, jnp.sum(model.plan(*there)))
            rises = value >= start + 1e-4 * length * slope - blur
            return (jnp.where(rises, length, 0.5 * length), count + 1), rises | (count >= 20)

        def begin(short: Scalar) -> tuple:
            return (short, jnp.zeros_like(short, jnp.int32)), jnp.array(False)

        return moved(run(Program(begin, shorten, lambda _, carry: carry[0]), short))

    def _products(self, p: Float[Array, "n m"], dense: Bool[Array, ""]):
        """p d and p' d, of the kept entries or of all."""
        n, m = p.shape
        count = self.kept * max(n, m)
        whole = (lambda d: matmul(p, d)), (lambda d: matmul(d, p))
        if count >= n * m:
            return whole
        # In float32, for which XLA has a partial sort on CPUs; float64 would be sorted whole.
        size = (p / positive(jnp.max(p))).astype(jnp.float32)
        _, index = lax.top_k(size.ravel(), count)
        kept = _Kept(p.ravel()[index], index // m, index % m)
        forwards = lambda d: jax.ops.segment_sum(kept.values * d[kept.columns], kept.rows, n)
        backwards = lambda d: jax.ops.segment_sum(kept.values * d[kept.rows], kept.columns, m)
        return (
            lambda d: lax.cond(dense, whole[0], forwards, d),
            lambda d: lax.cond(dense, whole[1], backwards, d),
        )

    def measure(self, problem: EntropicTransport, state: SinkhornNewtonState) -> Scalar:
        return state.error

    def status(
        self, problem: EntropicTransport, state: SinkhornNewtonState, tolerance: Scalar
    ) -> tuple[Bool[Array, ""], Any]:
        return ended(state.solved, state.idle >= _PATIENCE)

    def point(self, problem: EntropicTransport, state: SinkhornNewtonState) -> Point:
        return Point(Potential(state.g, 0 * state.g))

    def preconditioner(
        self, problem: EntropicTransport, state: SinkhornNewtonState
    ) -> WeightPreconditioner:
        return WeightPreconditioner.of(problem)

    def rescue(self) -> Sinkhorn:
        return Sinkhorn()


class _Model(NamedTuple):
    """The dual objective at one epsilon."""

    problem: EntropicTransport
    costs: Float[Array, "n m"]
    epsilon: Scalar

    @property
    def weights(self) -> tuple[Rows, Columns]:
        return self.problem.weights

    def plan(self, f: Rows, g: Columns) -> Float[Array, "n m"]:
        a, b = self.weights
        exponent = (f[:, None] + g - self.costs) / self.epsilon
        # A trial step may overflow; the line search sees an objective of -inf.
        return a[:, None] * b * jnp.exp(exponent)

    def value(self, f: Rows, g: Columns, total: Scalar) -> Scalar:
        """The dual objective over epsilon."""
        a, b = self.weights
        return (dot(a, f) + dot(b, g)) / self.epsilon - total

    def balanced(self, at: "Potentials") -> "Potentials":
        """One step of Sinkhorn's method, in logarithms."""
        a, b = (logarithm(w) for w in self.weights)
        f = -self.epsilon * jax.nn.logsumexp((at.g - self.costs) / self.epsilon + b, axis=1)
        exponent = (f[:, None] - self.costs) / self.epsilon + a[:, None]
        return Potentials(f, -self.epsilon * jax.nn.logsumexp(exponent, axis=0))

    def error(self, rows: Rows, columns: Columns) -> Scalar:
        a, b = self.weights
        gap = jnp.sum(jnp.abs(rows - a)) + jnp.sum(jnp.abs(columns - b))
        return gap / self.problem.mass
