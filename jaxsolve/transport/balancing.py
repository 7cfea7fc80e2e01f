"""The two ways in which `Sinkhorn` finds a potential while the kernel stays as it is.

With l = (g - g_0) / epsilon, g_0 the potential of which K was made, and v = exp(l),

    Sinkhorn   l <- lambda (-log K'(a w(K b v)) - g_0 / tau)              (lambda = 1, no tau: held)
    Newton     M d = wanted - found,  l <- l + t d

where a `tau` is given, each of Sinkhorn's steps from that l + t whose plan has the wanted total
(Sejourne, Vialard and Peyre 2022, Faster unbalanced optimal transport).

M is the Hessian of the semi-dual function over the roots of the weights, the identity minus the
product of two stochastic matrices. Sinkhorn's steps are combined by Anderson's method, whose least
squares are weighted by b.
"""

from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jax import lax
from jax.nn import logsumexp
from jaxtyping import Array, Bool, Float, Int

from ..core.krylov import conjugate_gradient
from ..core.loop import Program, run
from ..core.vectors import dot, finite, identity, largest, matmul, positive
from .entropic_transport import EntropicTransport, missing
from .geometry import AbstractKernel, Columns, Rows, Scalar
from .plan import logarithm

MEMORY = 8
CAP = 15.0
"""Of |l|: beyond it K is made again (float32 holds exp(88))."""
_START = 0.1
"""Of the error: above it steps are Sinkhorn's own."""
_LONGEST = 5.0
"""Of a combined or a Newton step."""
_WINDOW = 60
_FORESEEN = 200
"""Steps that may be left, at the rate of the last window; else Newton's method takes over. Its
matrix costs as much."""
_NEWTON_STEPS = 6
_LENGTHS = 8
FACTOR_LIMIT = 2048
"""Columns up to which Newton's matrix is factorised, as a preconditioner."""


class Sweeps(Protocol):
    """What `accelerated` needs: Sinkhorn's steps with kernels that stay."""

    @property
    def b(self) -> Columns:
        """Weights of the least squares; an l without weight is not looked at."""
        ...

    def sweep(self, log: Columns) -> tuple[Any, Columns]:
        """The products with the kernel: K b v, and K'u."""
        ...

    def move(self, log: Columns, found: Any, back: Columns) -> Columns:
        """What the step adds to l."""
        ...

    def error(self, log: Columns, back: Columns) -> Scalar:
        """How far the sums are off, as a part of their total."""
        ...


class Held(NamedTuple):
    """A problem with its kernel at one potential."""

    problem: EntropicTransport
    kernel: AbstractKernel
    g: Columns

    @property
    def b(self) -> Columns:
        return self.problem.weights[1]

    def sweep(self, log: Columns) -> tuple[Rows, Columns]:
        """K b v, and K'u."""
        a, b = self.problem.weights
        return self.kernel.through(
            b * jnp.exp(log), lambda r, base, a: a * self.problem.weigh(r, base)[0], a
        )

    def move(self, log: Columns, found: Rows, back: Columns) -> Columns:
        """What Sinkhorn's step adds to l, from l + `level`."""
        tiny = jnp.finfo(log.dtype).tiny
        new = -jnp.log(jnp.maximum(back, tiny))
        (left, right), epsilon = self.problem.taus, self.problem.epsilon
        if not self.problem.balanced:
            level = jnp.clip(self.level(log, found), -_LONGEST, _LONGEST)
            new = new + level * (1 if left is None else left / (left + epsilon))
        if right is not None:
            new = (new - self.g / right) * right / (right + epsilon)
        return new - log

    def level(self, log: Columns, found: Rows) -> Scalar:
        """The number that is added to l where the plan's total is the wanted one: where tau is
        large, Sinkhorn's steps find that slowly."""
        a, b = self.problem.weights
        (left, right), epsilon = self.problem.taus, self.problem.epsilon
        _, f = self.problem.weigh(found, self.kernel.base)
        g = self.g + epsilon * log

        rows, columns = logarithm(a), logarithm(b)
        rate = jnp.zeros_like(epsilon)
        if left is not None:
            rows, rate = rows - f / left, rate + epsilon / (left + epsilon)
        if right is not None:
            columns, rate = columns - g / right, rate + epsilon / right
        return (logsumexp(columns) - logsumexp(rows)) / rate

    def levelled(self, log: Columns) -> tuple["Held", Scalar]:
        """With a constant added to g, which leaves K as it is, where l is far from its level."""
        found = self.kernel.rows(self.b * jnp.exp(log))
        level = self.level(log, found)
        shift = jnp.where(jnp.abs(level) > 1, self.problem.epsilon * level, 0)
        return Held(self.problem, self.kernel.raised(shift), self.g + shift), shift

    def wanted(self, log: Columns) -> Columns:
        return self.problem.wanted(self.g + self.problem.epsilon * log)

    def error(self, log: Columns, back: Columns) -> Scalar:
        """The columns' sums are off by this part of their total."""
        _, b = self.problem.weights
        wanted = self.wanted(log)
        return missing(b, jnp.exp(log) * back, wanted) / self.problem.total(wanted)

    def value(self, log: Columns, found: Rows) -> Scalar:
        """The semi-dual function over epsilon, up to a constant."""
        a, b = self.problem.weights
        epsilon, (left, right) = self.problem.epsilon, self.problem.taus
        _, f = self.problem.weigh(found, self.kernel.base)
        if left is None:
            rows = dot(a, (f - self.kernel.base) / epsilon)
        else:
            rows = -(left / epsilon + 1) * dot(a, jnp.exp(-f / left))
        if right is None:
            return rows + dot(b, log)
        return rows - right / epsilon * dot(b, self.wanted(log))


class Chunk(NamedTuple):
    """What a loop at a fixed kernel leaves.

    Attributes:
        log: l, its entries without weight those of Sinkhorn's step.
        error: there.
        count: products with K and K'.
        slow: whether it ended for want of progress.
    """

    log: Columns
    error: Scalar
    count: Int[Array, ""]
    slow: Bool[Array, ""]


class _Mixed(NamedTuple):
    """Anderson's memory, and the last accepted l with its step."""

    log: Columns
    last: Columns
    move: Columns
    steps: Float[Array, "memory m"]
    changes: Float[Array, "memory m"]
    filled: Int[Array, ""]
    checked: Bool[Array, ""]
    best: Scalar
    mark: Scalar
    error: Scalar
    count: Int[Array, ""]
    slow: Bool[Array, ""]


def accelerated(held: Sweeps, log: Columns, goal: Scalar, skip: Bool[Array, ""]) -> Chunk:
    """Sinkhorn's steps, combined."""
    b = held.b
    root = jnp.sqrt(b)
    blank = jnp.zeros_like(log, shape=(MEMORY, log.size))

    def init(log: Columns) -> tuple[_Mixed, Bool[Array, ""]]:
        zero = jnp.zeros_like(log[0])
        none = jnp.zeros_like(log[0], jnp.int32)
        no, infinite = zero > 0, zero + jnp.inf
        state = _Mixed(
            log, log, 0 * log, blank, blank, none, no, infinite, infinite, infinite, none, no
        )
        return state, no

    def step(_: Columns, s: _Mixed) -> tuple[_Mixed, Bool[Array, ""]]:
        found, back = held.sweep(s.log)
        move, error = held.move(s.log, found, back), held.error(s.log, back)
        # A combination that made things worse is forgotten, with all that it was made of.
        bad = s.checked & ~(error <= 2 * s.best)
        row = s.filled % MEMORY
        enters = s.checked & ~bad & (error < _START)
        steps = s.steps.at[row].set(jnp.where(enters, s.log - s.last, s.steps[row]))
        changes = s.changes.at[row].set(jnp.where(enters, move - s.move, s.changes[row]))
        steps, changes = jnp.where(bad, 0, steps), jnp.where(bad, 0, changes)
        filled = jnp.where(bad, 0, s.filled + enters.astype(jnp.int32))

        combined = move - _combination(root, steps, changes, move)
        longest = largest(combined)
        combined = combined * jnp.where(longest > _LONGEST, _LONGEST / positive(longest), 1)
        combined = jnp.where((filled > 0) & jnp.isfinite(longest), combined, move)
        last, kept = jnp.where(bad, s.last, s.log), jnp.where(bad, s.move, move)
        best = jnp.where(bad, s.best, jnp.minimum(s.best, error))
        count = s.count + 1
        turn = count % _WINDOW == 0
        gain, need = jnp.log(s.mark / best), jnp.log(best / goal)
        slow = turn & ~(need * _WINDOW <= _FORESEEN * gain)
        met = (error <= goal) & ~bad
        far = jnp.max(jnp.where(b > 0, jnp.abs(s.log), 0)) > CAP
        over = met | slow | far
        new = jnp.where(bad, s.last + s.move, s.log + combined)
        # Where the loop ends, l stays as it was measured, but for columns without weight.
        ended = jnp.where(bad, new, jnp.where(b > 0, s.log, s.log + move))
        state = _Mixed(
            log=jnp.where(over, ended, new),
            last=last,
            move=kept,
            steps=steps,
            changes=changes,
            filled=filled,
            checked=~bad,
            best=best,
            mark=jnp.where(turn, best, s.mark),
            error=error,
            count=count,
            slow=slow,
        )
        return state, over

    def finish(_: Columns, s: _Mixed) -> Chunk:
        return Chunk(s.log, s.error, s.count, s.slow)

    return run(Program(init, step, finish), log, unless=(skip, _nothing(log)))


def _combination(
    root: Columns, steps: Float[Array, "k m"], changes: Float[Array, "k m"], move: Columns
) -> Columns:
    """What Anderson's method takes off the plain step."""
    weighted = changes * root
    gram = matmul(weighted, weighted.T)
    squares = jnp.diagonal(gram)
    used = squares > 0
    sizes = jnp.sqrt(jnp.where(used, squares, 1))
    ridge = 10 * MEMORY * jnp.finfo(move.dtype).eps
    scaled = gram / (sizes[:, None] * sizes)
    scaled = scaled + jnp.diag(jnp.where(used, ridge, 1).astype(move.dtype))
    right = matmul(weighted, root * move) / sizes
    weights = _small_solve(scaled, right) / sizes
    weights = jnp.where(used & finite(weights), weights, 0)
    return matmul(weights, steps + changes)


def _small_solve(matrix: Float[Array, "k k"], right: Float[Array, " k"]) -> Float[Array, " k"]:
    """Gauss without pivots, written out by rows: LAPACK costs more than all of it, and with
    `core.triangular` a batch of small problems takes 1.2 times the time."""
    size = right.size
    rows = jnp.concatenate([matrix, right[:, None]], axis=1)
    for k in range(size):
        pivot = rows[k] / rows[k, k]
        column = rows[:, k].at[k].set(0)
        rows = (rows - column[:, None] * pivot).at[k].set(pivot)
    return rows[:, -1]


class _Newton(NamedTuple):
    log: Columns
    error: Scalar
    found: Rows
    back: Columns
    value: Scalar
    count: Int[Array, ""]
    turns: Int[Array, ""]
    slow: Bool[Array, ""]


def newton(held: Held, log: Columns, goal: Scalar, skip: Bool[Array, ""]) -> Chunk:
    """Newton's steps by conjugate gradients, preconditioned by the first step's matrix."""
    a, b = held.problem.weights
    epsilon, (left, right) = held.problem.epsilon, held.problem.taus
    share = 1 if left is None else left / (left + epsilon)
    root = jnp.sqrt(b)
    pull = root / jnp.sqrt(held.problem.mass)

    def parts(log: Columns, found: Rows, back: Columns) -> tuple[Columns, Columns, Rows]:
        """The diagonal, the scaling of K's columns and the weights of its rows, for M."""
        u = a * held.problem.weigh(found, held.kernel.base)[0]
        v = jnp.exp(log)
        diagonal = v * back
        if right is not None:
            diagonal = diagonal + epsilon / right * held.wanted(log)
        return diagonal, root * v, share * u / positive(found)

    def factor(log: Columns, found: Rows, back: Columns) -> Float[Array, "m m"]:
        diagonal, columns, rows = parts(log, found, back)
        ridge = 10 * jnp.finfo(log.dtype).eps
        outer = columns[:, None] * held.kernel.gram(rows) * columns
        matrix = jnp.diag(diagonal + ridge * jnp.max(diagonal)) - outer
        if held.problem.balanced:
            matrix = matrix + pull[:, None] * pull
        lower = lax.linalg.cholesky(matrix, symmetrize_input=False)
        return jnp.where(finite(lower), lower, identity(log))

    def evaluated(log, count, turns) -> _Newton:
        found, back = held.sweep(log)
        error, value = held.error(log, back), held.value(log, found)
        return _Newton(log, error, found, back, value, count, turns, error < 0)

    def init(log: Columns):
        none = jnp.zeros_like(log[0], jnp.int32)
        s = evaluated(log, none + 1, none)
        lower = factor(log, s.found, s.back) if log.size <= FACTOR_LIMIT else log[:, None]
        return (s, lower), s.error <= goal

    def step(_: Columns, carry):
        s, lower = carry
        diagonal, columns, rows = parts(s.log, s.found, s.back)
        gap = root * (held.wanted(s.log) - jnp.exp(s.log) * s.back)
        held_up = dot(pull, gap)

        def product(d: Columns) -> Columns:
            through = columns * held.kernel.through(columns * d, lambda r, _, w: w * r, rows)[1]
            out = diagonal * d - through
            return out + pull * dot(pull, d) if held.problem.balanced else out

        def precondition(r: Columns) -> Columns:
            if lower.shape[0] == lower.shape[1]:
                half = lax.linalg.triangular_solve(lower, r[:, None], left_side=True, lower=True)
                return lax.linalg.triangular_solve(
                    lower, half, left_side=True, lower=True, transpose_a=True
                )[:, 0]
            return r / positive(diagonal)

        right_side = gap - pull * held_up if held.problem.balanced else gap
        accuracy = jnp.minimum(0.1, jnp.sqrt(s.error)).astype(gap.dtype)
        limit = 60 if lower.shape[0] == lower.shape[1] else 400
        scaled = conjugate_gradient(
            product, right_side, precondition=precondition, rtol=accuracy, limit=limit
        )
        d = jnp.where(b > 0, scaled / positive(root), 0)
        longest = largest(d)
        d = d * jnp.where(longest > _LONGEST, _LONGEST / positive(longest), 1)

        # The semi-dual function along d, all lengths at once: the first that rises enough.
        lengths = 0.5 ** jnp.arange(_LENGTHS, dtype=d.dtype)
        tried = s.log[:, None] + d[:, None] * lengths
        found = held.kernel.rows(b[:, None] * jnp.exp(tried))
        values = jnp.stack([held.value(tried[:, k], found[:, k]) for k in range(_LENGTHS)])
        slope = dot(root * d, gap)
        blur = 50 * jnp.finfo(d.dtype).eps * (jnp.abs(s.value) + dot(b, jnp.abs(s.log)))
        rises = values >= s.value + 1e-4 * lengths * slope - blur
        length = jnp.where(jnp.any(rises), lengths[jnp.argmax(rises)], 0)
        new = evaluated(s.log + length * d, s.count + 1, s.turns + 1)
        worse = ~(new.error <= 10 * s.error) | (length == 0)
        far = jnp.max(jnp.where(b > 0, jnp.abs(new.log), 0)) > CAP
        over = (new.error <= goal) | worse | far | (new.turns >= _NEWTON_STEPS)
        return (new._replace(slow=worse), lower), over

    def finish(_: Columns, carry) -> Chunk:
        s, _ = carry
        log = jnp.where(b > 0, s.log, s.log + held.move(s.log, s.found, s.back))
        return Chunk(log, s.error, s.count, s.slow)

    return run(Program(init, step, finish), log, unless=(skip, _nothing(log)))


def _nothing(log: Columns) -> Chunk:
    zero = jnp.zeros_like(log[0])
    return Chunk(log, zero, jnp.zeros_like(zero, jnp.int32), zero > 0)
