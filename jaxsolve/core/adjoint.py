"""How a solution is differentiated.

With F = `problem.optimality`, theta the problem's data and z(theta) the point with F(z, theta) = 0,

    dz = -(dF/dz)^{-1} (dF/dtheta) dtheta                                            (1)

`Implicit` writes (1) as a JVP whose linear solve transposes, and takes z itself from the rule's own
function, so that forward mode, reverse mode and derivatives of derivatives are the same few lines.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from .checks import check_count, check_instance, check_positive
from .linear import AbstractLinearSolver, Operator, checked, solve_checked
from .loop import Program, has_loop, run
from .mesh import joined, vary, varying
from .problem import AbstractProblem
from .search import (
    Limits,
    Outcome,
    advance,
    begin,
    conclude,
    with_multipliers,
)
from .solution import Guess, Point, Solution
from .solver import AbstractSolver
from .unsolved import failure, gated, guarded, plus, usable
from .vectors import frozen, norm

Search = Callable[[], Outcome]


class AbstractDegenerate(eqx.Module):
    """What to differentiate where the optimality system is not regular."""


class MinimumNorm(AbstractDegenerate):
    """The optimality system itself; where its Jacobian is singular, the least-squares derivative of
    minimum norm (ties of `min(dual, slack)` count half to each side)."""


class Smoothed(AbstractDegenerate):
    """The point of the central path at `kappa`, where dual * slack = kappa: a derivative that feels
    constraints before they become active.

    It is another point's derivative: with `kappa=1e-3` it was measured to be off by 6 % (median) to
    80 % at regular points of random quadratic programs.
    """

    kappa: float = 1e-3

    def __check_init__(self) -> None:
        check_positive("Smoothed", kappa=self.kappa)


class AbstractAdjoint(eqx.Module):
    """Runs the search and attaches a derivative to its point.

    Attributes:
        stationary: whether that derivative is the one of a point where `optimality` holds.
    """

    stationary: ClassVar[bool] = False

    def view(self, problem: AbstractProblem) -> AbstractProblem:
        """The problem with the data that the solution depends on."""
        return problem

    @abc.abstractmethod
    def solve(
        self,
        problem: AbstractProblem,
        solver: AbstractSolver,
        guess: Guess,
        limits: Limits,
        search: Search,
    ) -> tuple[Outcome, Point]:
        """The outcome (without derivatives), and its point with them."""


class Implicit(AbstractAdjoint):
    """The implicit function theorem on `problem.optimality`: exact, whatever the solver.

    Args:
        linear_solver: method for the adjoint's linear system (`jaxsolve.linear`); `None` chooses
            one from the size, the structure and what the forward solver left.
        degenerate: `MinimumNorm()` or `Smoothed(kappa)`.
    """

    linear_solver: AbstractLinearSolver | None = None
    degenerate: AbstractDegenerate = MinimumNorm()

    stationary: ClassVar[bool] = True

    def __check_init__(self) -> None:
        wanted = "a method of jaxsolve.linear (Dense(), ConjugateGradient(), ...) or None"
        kinds = AbstractLinearSolver | None
        check_instance("Implicit", "linear_solver", self.linear_solver, kinds, wanted)
        wanted = "MinimumNorm() or Smoothed(kappa)"
        check_instance("Implicit", "degenerate", self.degenerate, AbstractDegenerate, wanted)

    def solve(self, problem, solver, guess, limits, search):
        outcome = jax.tree.map(jax.lax.stop_gradient, search())
        smooth = isinstance(self.degenerate, Smoothed)
        data, rest = eqx.partition(problem, eqx.is_inexact_array)
        # Integer arrays (labels) are arguments of the rule too: it may not close over tracers.
        fixed, static = eqx.partition(rest, eqx.is_array)
        found = outcome.point

        def system(fixed: PyTree, data: PyTree, point: Point) -> Point:
            problem: AbstractProblem = eqx.combine(data, fixed, static)
            if isinstance(self.degenerate, Smoothed):
                dtype = ravel_pytree(point)[0].dtype
                kappa = jnp.asarray(self.degenerate.kappa, dtype)
                return problem.smoothed_optimality(point, kappa)
            return problem.optimality(point)

        if smooth:
            found = _newton(lambda point: system(fixed, data, point), found)

        @jax.custom_jvp
        def at(data: PyTree, found: Point, outcome: Any) -> Point:
            return found

        @at.defjvp
        def rule(primals, tangents):
            data, found, (solved, inverse, fixed) = primals
            point = at(data, found, (solved, inverse, fixed))
            # NaN in a refused lane's data must not reach others through data that they share.
            place = usable(point, solved)
            # The smoothed conditions are not affine in the data where `optimality` is.
            affine = problem.structure.affine and not smooth
            clean = data if affine else usable(data, solved)

            def conditions(data: PyTree, point: Point) -> Point:
                return plus(system(fixed, data, point), failure(data, solved))

            push_data, push_point = _partials(conditions, clean, place)
            # In a shard_map `clean` varies with `solved`, where shared data do not.
            moved = jax.tree.map(lambda t, c: vary(t, varying(c)), tangents[0], clean)
            tangent = solve_checked(
                push_point,
                vary(jax.tree.map(jnp.negative, push_data(moved)), varying(place)),
                solver=self.linear_solver,
                structure=problem.structure,
                preconditioner=eqx.combine(inverse, kept),
                trusted=solved,
            )
            return point, tangent

        preconditioner = None if smooth else solver.preconditioner(problem, outcome.state)
        # Operators in it may hold functions.
        inverse, kept = eqx.partition(preconditioner, eqx.is_array)
        inverse = jax.tree.map(jax.lax.stop_gradient, inverse)
        point = at(data, found, (outcome.solved, inverse, fixed))
        if smooth:
            # The value stays the solution's own; the derivative is the smoothed point's.
            point = _with_derivative(outcome.point, point)
        return outcome, point


class OneStep(AbstractAdjoint):
    """The derivative of one more full step of the solver from the solution, held constant.

    For methods that converge superlinearly (`Newton`, `LevenbergMarquardt` on small residuals),
    where it is as good as the solution; off by the contraction factor for `Anderson`, whose full
    step is the map itself. Bolte, Pauwels and Vaiter (2023).
    """

    def solve(self, problem, solver, guess, limits, search):
        _on_device(solver, "OneStep")
        outcome = jax.tree.map(jax.lax.stop_gradient, search())
        stepped = solver.full_step(problem, outcome.point)
        data = eqx.filter(problem, eqx.is_inexact_array)
        stepped = plus(stepped, failure(data, outcome.solved))
        return outcome, guarded(outcome.point, stepped, outcome.solved)


class Unrolled(AbstractAdjoint):
    """The derivative through the solver's first `steps` steps, done or not, with checkpoints.

    The only other loop of the library: a scan of fixed length, cut into `checkpoints` pieces that
    are computed again in the backward pass (`None`: the square root of `steps`).
    """

    steps: int
    checkpoints: int | None = None

    def __check_init__(self) -> None:
        checkpoints = self.checkpoints
        check_count("Unrolled", ("checkpoints",), steps=self.steps, checkpoints=checkpoints)

    def solve(self, problem, solver, guess, limits, search):
        _on_device(solver, "Unrolled")
        limits = Limits(limits.tolerance, jnp.minimum(limits.max_steps, self.steps), limits.record)
        # In a shard_map the scan's state keeps one type.
        (problem, guess, limits), axes = joined((problem, guess, limits))
        start, done = begin(problem, solver, guess, limits)
        arrays, static = eqx.partition(start, eqx.is_array)
        arrays, done = vary((arrays, done), axes)
        state = eqx.combine(arrays, static).state
        _without_loops(lambda: solver.step(problem, state), solver, "Unrolled")

        def step(loop, _):
            arrays, done = loop
            new, stops = advance(problem, solver, limits, eqx.combine(arrays, static))
            new = eqx.filter(new, eqx.is_array)
            new = jax.tree.map(lambda n, o: jnp.where(done, o, n), new, arrays)
            return (new, done | stops), None

        pieces = self.checkpoints or max(1, round(self.steps**0.5))
        length = -(-self.steps // pieces)

        @jax.checkpoint
        def piece(loop, _):
            return jax.lax.scan(step, loop, length=length)[0], None

        (arrays, _), _ = jax.lax.scan(piece, (arrays, done), length=pieces)
        end: Any = eqx.combine(arrays, static)
        outcome = conclude(problem, solver, guess, limits, end)
        return jax.tree.map(jax.lax.stop_gradient, outcome), outcome.point


class Detached(AbstractAdjoint):
    """No derivative: the solution is a constant."""

    def view(self, problem):
        # `restore` makes the value of the point and of data.
        return frozen(problem)

    def solve(self, problem, solver, guess, limits, search):
        outcome = jax.tree.map(jax.lax.stop_gradient, search())
        return outcome, outcome.point


def envelope(
    fn: Callable[[PyTree[Array], PyTree[Array]], Float[Array, ""]],
    point: PyTree[Array],
    data: PyTree[Array],
    solved: Bool[Array, ""],
) -> Float[Array, ""]:
    """fn(point, data), where the derivative of `fn` in the point is 0: that term is left out of the
    first derivative, which needs no linear solve, and is there in the second.

    Args:
        fn: closes over no array.
        point: a stationary point, with its derivative.
        data: what is differentiated in.
        solved: whether the point is one; the derivative is NaN else.
    """

    @jax.custom_jvp
    def at(data, point, solved):
        return fn(point, data)

    @at.defjvp
    def rule(primals, tangents):
        data, point, solved = primals
        value = at(data, point, solved)
        # Of a refused lane too, so that its NaN do not reach what it shares with others.
        clean = usable((data, point), solved)

        def held(data: PyTree[Array]) -> Float[Array, ""]:
            return plus(fn(clean[1], data), failure(data, solved))

        return value, gated(jax.jvp(held, (clean[0],), (tangents[0],))[1], solved)

    return at(data, point, solved)


def check_derivative(
    problem: AbstractProblem, solution: Solution, cotangent: PyTree[Array] | None = None
) -> Float[Array, ""]:
    """How well the adjoint's linear system can be solved at a solution.

    Args:
        problem: the solved problem.
        solution: its solution.
        cotangent: of the structure of `solution.value`; ones by default.

    Returns:
        The relative residual ||J'w - c|| / ||c||. Above eps^0.4 the derivative is NaN, unless the
        least-squares system of a singular J is solved to that accuracy.
    """
    init = solution.value
    problem, value = problem.prepare(init)
    point = with_multipliers(problem, Point(value, solution.dual))
    if cotangent is None:
        cotangent = jax.tree.map(jnp.ones_like, value)
    target = Point(cotangent, jax.tree.map(jnp.zeros_like, point.dual))
    flat, unravel = ravel_pytree(point)
    _, pullback = jax.vjp(lambda z: ravel_pytree(problem.optimality(unravel(z)))[0], flat)

    def push(v):
        return jax.jvp(lambda z: ravel_pytree(problem.optimality(unravel(z)))[0], (flat,), (v,))[1]

    operator = Operator(lambda w: pullback(w)[0], push, problem.structure)
    return checked(None, operator, ravel_pytree(target)[0]).residual


def _partials(fn: Callable, left: PyTree, right: PyTree) -> tuple[Callable, Callable]:
    """The two partial derivatives of `fn(left, right)` as linear maps, from one linearisation.

    A second linearisation, of the linear map itself, drops the other argument's terms: a product
    with the one derivative computes nothing of the other.
    """
    _, push = jax.linearize(fn, left, right)
    none = [jax.tree.map(jnp.zeros_like, x) for x in (left, right)]
    _, push_left = jax.linearize(lambda t: push(t, none[1]), none[0])
    _, push_right = jax.linearize(lambda t: push(none[0], t), none[1])
    return push_left, push_right


def _newton(system: Callable[[Point], Point], start: Point) -> Point:
    """The root of a smooth system near `start`: the central path's point for `Smoothed`."""
    flat, unravel = ravel_pytree(start)

    def fn(z):
        return ravel_pytree(system(unravel(z)))[0]

    def init(z):
        return (z, norm(fn(z)), jnp.zeros((), jnp.int32)), jnp.array(False)

    def step(_, carry):
        z, size, steps = carry
        direction = jnp.linalg.solve(jax.jacfwd(fn)(z), -fn(z))
        # Halved lengths all at once: the first that decreases the residual is taken.
        lengths = 0.5 ** jnp.arange(12, dtype=z.dtype)
        sizes = jax.vmap(lambda t: norm(fn(z + t * direction)))(lengths)
        better = jnp.where(jnp.isfinite(sizes), sizes, jnp.inf) < size
        pick = jnp.argmax(better)
        moved = jnp.any(better)
        z = jnp.where(moved, z + lengths[pick] * direction, z)
        new = jnp.where(moved, sizes[pick], size)
        goal = 8 * jnp.finfo(z.dtype).eps * (1 + norm(z))
        return (z, new, steps + 1), (new <= goal) | ~moved | (steps >= 50)

    return unravel(run(Program(init, step, lambda _, carry: carry[0]), flat))


def _with_derivative(value: Point, source: Point) -> Point:
    """`value`, with the derivative of `source`."""
    return jax.tree.map(lambda v, s: v + (s - jax.lax.stop_gradient(s)), value, source)


def _on_device(solver: AbstractSolver, adjoint: str) -> None:
    if solver.on_host:
        raise TypeError(
            f"`adjoint={adjoint}` differentiates the solver's steps, but {type(solver).__name__} "
            "runs on the host. Use Implicit()."
        )


def _without_loops(fn: Callable[[], PyTree], solver: AbstractSolver, adjoint: str) -> None:
    jaxpr = jax.make_jaxpr(lambda: eqx.filter(fn(), eqx.is_array))()
    if has_loop(jaxpr.jaxpr):
        raise TypeError(
            f"`adjoint={adjoint}` differentiates the steps of {type(solver).__name__}, and they "
            "hold a loop of their own, which has no reverse mode. Use Implicit()."
        )
