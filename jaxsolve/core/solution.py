"""What a solve returns: the point, why it stopped, and by which measured residual it is judged."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree


class RESULTS(eqx.Enumeration):
    """Why a solve stopped. Codes are append-only; each message carries advice."""

    successful = ""
    approximate = (
        "The method's bias is not zero by construction (a penalty at its final weight); the "
        "residual and the remaining gap are both in `solution.stats`. Polish the point, or raise "
        "the final weight."
    )
    max_steps_reached = (
        "The step limit was reached before the residual met the tolerance. Raise `max_steps`, "
        "loosen `tolerance`, or give a better `init`."
    )
    stalled = (
        "The solver can make no further progress, but the recomputed residual is above the "
        "tolerance. Rescale the problem, try another solver, or loosen `tolerance`."
    )
    infeasible = (
        "No point satisfies the constraints. Where these are linear or conic, `solution.dual` is a "
        "Farkas certificate, checked "
        "against the data."
    )
    unbounded = (
        "The objective is unbounded below on the constraints: `solution.value` is a ray of "
        "descent, checked against the data."
    )
    nonconvex = (
        "The problem, or its lower level, must be convex but has a direction of negative curvature "
        "at the point that was found. Of a quadratic program, project P on the semidefinite cone; "
        "of a lower level, begin nearer to a minimum, or add to its curvature; of a transport "
        "problem, `epsilon` and `tau` must be positive."
    )
    nonfinite_input = (
        "The problem's data or the initial point holds NaN or Inf (only bounds may be infinite). "
        "`jaxsolve.check(problem)` names the field."
    )
    nonfinite_state = (
        "An iterate became NaN or Inf; the last finite point is returned. Try a smaller initial "
        "step, a better `init`, or float64."
    )
    singular = (
        "A linear system of the method was singular to working precision. Remove redundant "
        "conditions, or use a solver with regularisation."
    )
    tolerance_below_dtype = (
        "The tolerance is below what the dtype can resolve on this problem, and was not met. "
        "Loosen `tolerance`, or use float64."
    )


class SolveError(RuntimeError):
    """Raised by `solve(..., throw=True)` on concrete values; `.solution` is what was found."""

    def __init__(self, message: str, solution: "Solution"):
        super().__init__(message)
        self.solution = solution


class Point(eqx.Module):
    """What a solver finds: a primal value and its multipliers (`None` where there are none)."""

    primal: PyTree[Array]
    dual: PyTree[Array] = None


class Dual(eqx.Module):
    """Multipliers of `Ax = b`, `Gx <= h`, `x >= lower`, `x <= upper`; `None` for an absent field.

    Signs follow the Lagrangian f + y'(Ax - b) + z'(Gx - h) - w_l'(x - lower) + w_u'(x - upper),
    with z, w_l, w_u >= 0.
    """

    equality: PyTree[Array] = None
    inequality: PyTree[Array] = None
    lower: PyTree[Array] = None
    upper: PyTree[Array] = None


class Guess(eqx.Module):
    """Where a solver starts. `dual` and `state` are `None` unless a `Solution` was handed in.

    Attributes:
        tolerance: what the loop will ask for, for solvers whose steps hold loops of their own.
    """

    primal: PyTree[Array]
    dual: PyTree[Array] = None
    state: PyTree = None
    key: Any = None
    tolerance: Float[Array, ""] | None = None


class Scale(NamedTuple):
    """The problem's own size, part by part; at least 1."""

    primal: Float[Array, ""] | float = 1.0
    dual: Float[Array, ""] | float = 1.0
    complementarity: Float[Array, ""] | float = 1.0


class Residual(eqx.Module):
    """How far a point is from optimality, recomputed from the unscaled data (maximum norms).

    A part that the problem does not have is 0. `scale` holds the size against which each part is
    judged: float32 cannot reach an absolute 1e-6 on data of size 1e4.
    """

    primal: Float[Array, ""]
    dual: Float[Array, ""]
    complementarity: Float[Array, ""]
    scale: Scale = Scale()

    @property
    def relative(self) -> Float[Array, ""]:
        """The largest part, each over its scale; NaN where a scale is not finite."""
        # Over an infinite scale (squares that overflowed) everything would be small.
        parts = (
            self.primal / self.scale.primal + 0 * self.scale.primal,
            self.dual / self.scale.dual + 0 * self.scale.dual,
            self.complementarity / self.scale.complementarity + 0 * self.scale.complementarity,
        )
        return jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])

    def within(self, tolerance: Float[Array, ""] | float) -> Bool[Array, ""]:
        """Whether every part is at most `tolerance` times its scale; False for NaN."""
        return self.relative <= tolerance


class Stats(eqx.Module):
    """`steps` taken and the `residual` of the returned point."""

    steps: Int[Array, ""]
    residual: Residual


class Solution(eqx.Module):
    """The outcome of `solve`.

    Attributes:
        value: the solution, of the structure of the problem's variable. For `unbounded`: the ray.
        dual: the multipliers. For `infeasible`: the Farkas certificate.
        result: a `RESULTS` item; under vmap one per lane.
        stats: steps taken and the recomputed residual.
        history: the last `record` step residuals, oldest first, NaN where fewer steps were taken.
        state: the solver's final state, for warm starts.
    """

    value: PyTree[Array]
    dual: PyTree[Array]
    result: Any
    stats: Stats
    history: Float[Array, " record"] | None
    state: PyTree

    @property
    def success(self) -> Bool[Array, ""]:
        """Whether the recomputed residual is within tolerance."""
        return self.result == RESULTS.successful

    def checked(self) -> "Solution":
        """This solution with a run-time check in traced code: raises where it is not a success."""
        arrays, static = eqx.partition(self, eqx.is_array)
        failed = (self.result != RESULTS.successful) & (self.result != RESULTS.approximate)
        return eqx.combine(self.result.error_if(arrays, failed), static)

    def summary(self) -> str:
        """A small table of results, steps and residuals; for a batch, counts and worst lanes."""
        codes = jnp.atleast_1d(jnp.asarray(self.result._value)).ravel()
        counts = {
            name: int(jnp.sum(codes == item._value))
            for name, item in RESULTS._name_to_item.items()
            if bool(jnp.any(codes == item._value))
        }
        residual = self.stats.residual
        rows = [
            ("result", ", ".join(f"{n} ({c})" if codes.size > 1 else n for n, c in counts.items())),
            ("steps", f"{int(jnp.max(self.stats.steps, initial=0))}"),
            ("primal residual", f"{float(jnp.max(residual.primal, initial=0)):.2e}"),
            ("dual residual", f"{float(jnp.max(residual.dual, initial=0)):.2e}"),
            ("complementarity", f"{float(jnp.max(residual.complementarity, initial=0)):.2e}"),
            ("relative residual", f"{float(jnp.max(residual.relative, initial=0)):.2e}"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def is_traced(tree: PyTree) -> bool:
    """Whether any leaf has no concrete value yet."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
