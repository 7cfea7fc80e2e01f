"""The convex program with cones.

    minimise  x'Px/2 + q'x   subject to   Ax = b,   s = h - Gx in K,

K a product of cones. With the multipliers y of the equalities and z of the cone, x is a solution
when

    Px + q + A'y + G'z = 0,   Ax = b,   s = Pi(s - z),

Pi the projection on K: the last line says that s is in K, z in its dual cone, and s'z = 0. For the
nonnegative cone it is min(z, s) = 0.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..core.problem import AbstractProblem, Statement, Structure
from ..core.solution import RESULTS, Dual, Guess, Point, Residual
from ..core.vectors import dot, largest, positive
from . import fields, sparse
from .certificates import scaled, separation
from .cones import (
    AbstractBarrierCone,
    AbstractCone,
    AbstractSymmetricCone,
    Nonnegative,
    Product,
    SecondOrder,
    Zero,
)
from .scales import counted, dual_scale_of, judged, side_of, sizes_of
from .sparse import Matrix

if TYPE_CHECKING:
    from ..core.solver import AbstractSolver


class Conditions(NamedTuple):
    """The optimality conditions before complementarity, and what was added up to form them."""

    gradient: Float[Array, " n"]
    equality: Float[Array, " p"] | None
    slack: Float[Array, " m"] | None
    terms: dict[str, Array]


def as_cones(cones: Iterable[AbstractCone] | AbstractCone) -> tuple[AbstractCone, ...]:
    """`cones` as a tuple; `TypeError` for one alone."""
    if isinstance(cones, AbstractCone) or not isinstance(cones, Iterable):
        raise TypeError(f"`cones` is {cones!r} alone; give a list of cones, as [SecondOrder(3)].")
    return tuple(cones)


class ConeProgram(AbstractProblem):
    """minimise x'Px/2 + q'x subject to Ax = b and h - Gx in a product of cones.

    The rows of G are those of the first cone, then of the second, and so on. `Dual(equality=y,
    inequality=z)` has the signs of the Lagrangian f + y'(Ax - b) + z'(Gx - h), z in the dual cone.

    Example:
        ```python
        # The point of the unit disc furthest along (1, 2): |x| <= 1 is (1, x) in the cone.
        G = jnp.concatenate([jnp.zeros((1, 2)), -jnp.eye(2)])
        h = jnp.array([1.0, 0.0, 0.0])
        problem = ConeProgram(None, jnp.array([-1.0, -2.0]), G=G, h=h, cones=[SecondOrder(3)])
        solve(problem).value
        ```

    Args:
        P: symmetric, positive semidefinite; read as (P + P')/2; `None` for a linear objective.
        q: the linear term.
        A, b: equalities.
        G, h: s = h - Gx.
        cones: `Zero, Nonnegative, SecondOrder, PositiveSemidefinite, Exponential`, in the order of
            the rows of G.
        symmetric: set by `prepare` once P is.
    """

    P: Matrix | None
    q: Float[Array, " n"]
    A: Matrix | None = eqx.field(default=None, kw_only=True)
    b: Float[Array, " p"] | None = eqx.field(default=None, kw_only=True)
    G: Matrix | None = eqx.field(default=None, kw_only=True)
    h: Float[Array, " m"] | None = eqx.field(default=None, kw_only=True)
    cones: tuple[AbstractCone, ...] = eqx.field(default=(), kw_only=True, converter=as_cones)
    symmetric: bool = eqx.field(default=False, static=True, kw_only=True, repr=False)

    @property
    def cone(self) -> Product:
        """The product of `cones`."""
        return Product(self.cones)

    @property
    def structure(self) -> Structure:
        return Structure(symmetric=self.G is None, affine=True)

    def bend(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """(P + P')x/2."""
        if self.P is None:
            return jnp.zeros_like(x)
        return (sparse.apply if self.symmetric else sparse.symmetric)(self.P, x)

    def objective(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """x'Px/2 + q'x."""
        return dot(x, self.bend(x)) / 2 + dot(self.q, x)

    def conditions(self, point: Point) -> Conditions:
        """The gradient of the Lagrangian, Ax - b and the slack."""
        x, dual = point.primal, point.dual
        terms = {"x": x, "Px": self.bend(x), "q": self.q}
        gradient, equality, slack = terms["Px"] + self.q, None, None
        if self.A is not None and self.b is not None:
            terms |= {"Ax": sparse.apply(self.A, x), "b": self.b, "y": dual.equality}
            terms["A'y"] = sparse.transposed(self.A, dual.equality)
            equality, gradient = terms["Ax"] - self.b, gradient + terms["A'y"]
        if self.G is not None and self.h is not None:
            terms |= {"Gx": sparse.apply(self.G, x), "h": self.h, "z": dual.inequality}
            terms["G'z"] = sparse.transposed(self.G, dual.inequality)
            slack, gradient = self.h - terms["Gx"], gradient + terms["G'z"]
        return Conditions(gradient, equality, slack, terms)

    def optimality(self, point: Point) -> Point:
        found, natural = self.conditions(point), None
        if found.slack is not None:
            z = point.dual.inequality
            natural = found.slack - self.cone.project(found.slack - z)
        return Point(found.gradient, Dual(found.equality, natural))

    def residual(self, point: Point) -> Residual:
        """Maximum norms, judged against the size of what was added up to form them.

        The primal residual is of Ax = b, over max(1, |Ax|, |b|), and of s - Pi(s), that of each
        cone over its max(1, |Gx|, |h|), `Nonnegative` without h: large rows of one cone say nothing
        of another. The dual scale is max(1, |Px|, |q|, |A'y|, |G'z|). Products with x, y or z above
        1e6 (1e3 in float32) count no more than at that size, or than b and h. Complementarity is
        that of slack and dual each over its scale. `scale` says what that came to.
        """
        found, one = self.conditions(point), jnp.ones_like(point.primal[0])
        size, cone = sizes_of(found.terms), self.cone
        dual_scale = dual_scale_of(size)
        widest, amiss, amiss_scaled, natural, natural_scaled = one, [], [], [], []
        if found.equality is not None:
            widest = jnp.maximum(one, jnp.maximum(counted(size["Ax"], size["x"]), size["b"]))
            amiss, amiss_scaled = [found.equality], [found.equality / widest]
        if found.slack is not None and self.h is not None:
            s, z = found.slack, point.dual.inequality
            width = counted(cone.sizes(found.terms["Gx"]), size["x"], side_of(size))
            width = jnp.maximum(width, cone.sizes(cone.binding(self.h)))
            width = jnp.maximum(width, 1)
            widest = jnp.maximum(widest, jnp.max(width))
            outside = s - cone.project(s)
            amiss, amiss_scaled = [*amiss, outside], [*amiss_scaled, outside / width]
            natural = [s - cone.project(s - z)]
            s, z = s / width, z / dual_scale
            natural_scaled = [s - cone.project(s - z)]
        parts = [amiss, amiss_scaled, natural, natural_scaled, [found.gradient]]
        return judged([jnp.concatenate([self.q[:0], *p]) for p in parts], widest, dual_scale)

    def default_solver(self) -> "AbstractSolver":
        """`InteriorPoint` for arrays; in float32, whose digits do not suffice next to the boundary
        of an exponential cone, for arrays and symmetric cones."""
        from .interior_point import InteriorPoint
        from .operator_splitting import OperatorSplitting

        free = any(sparse.is_matrix_free(x) for x in (self.P, self.A, self.G))
        symmetric = all(isinstance(cone, AbstractSymmetricCone) for cone in self.cones)
        barrier = all(isinstance(cone, AbstractBarrierCone) for cone in self.cones)
        followed = symmetric or barrier and jnp.finfo(self.q.dtype).eps < 1e-12
        return InteriorPoint() if followed and not free else OperatorSplitting()

    def prepare(self, init: PyTree | None) -> tuple[Self, Float[Array, " n"]]:
        name = type(self).__name__
        for cone in self.cones:
            if not isinstance(cone, AbstractCone):
                raise TypeError(f"{name}: `cones` holds {cone!r}; give cones, as SecondOrder(3).")
        found, value = fields.prepare(self, init)
        rows, given = [cone.rows for cone in self.cones], found["G"]
        count = 0 if given is None else sparse.shape_of(given)[0]
        if sum(rows) != count:
            raise ValueError(
                f"{name}: `cones` have {rows} rows, {sum(rows)} in all, but `G` has {count}."
            )
        matrices = {field: found[field] for field in ("A", "b", "G", "h")}
        cones = tuple(cone for cone in self.cones if cone.rows)
        P = found["P"]
        known = P is not None and not sparse.is_matrix_free(P)
        return type(self)(P, found["q"], cones=cones, **matrices, symmetric=known), value

    def zero_dual(self) -> Dual:
        """Multipliers of zeros, of this problem's structure."""
        return Dual(
            None if self.b is None else jnp.zeros_like(self.b),
            None if self.h is None else jnp.zeros_like(self.h),
        )

    def screen(self, guess: Guess) -> tuple[Any, Point]:
        clean = sparse.all_finite(self.P, self.q, self.A, self.b, self.G, self.h, guess.primal)
        result = RESULTS.where(clean, RESULTS.successful, RESULTS.nonfinite_input)
        return result, Point(jnp.where(clean, guess.primal, 0.0), self.zero_dual())

    def certificate(self, point: Point, result: Any) -> Bool[Array, ""]:
        """Whether `point.dual` proves that there is no feasible point within 1e6 (1e3 in float32)
        times the data's own size, or `point.primal` is a ray of descent to that accuracy."""
        infeasible = (result == RESULTS.infeasible) & self._separates(point.dual)
        return infeasible | ((result == RESULTS.unbounded) & self._descends(point.primal))

    def _separates(self, dual: Dual) -> Bool[Array, ""]:
        """A'y + G'z = 0, z in the dual cone, b'y + h'z < 0."""
        rest, products, distances = jnp.zeros_like(self.q), [self.q[:0]], [self.q[:1] * 0]
        inside = jnp.array(True)
        for matrix, side, value in (
            (self.A, self.b, dual.equality),
            (self.G, self.h, dual.inequality),
        ):
            if matrix is None or side is None:
                continue
            rest = rest + sparse.transposed(matrix, value)
            products.append(value * side)
            distances.append(scaled(matrix, side))
        noise = largest(jnp.concatenate(distances)) * largest(rest)
        if self.G is not None:
            z = dual.inequality
            outside = largest(z - self.cone.project_dual(z))
            inside = outside <= 100 * jnp.finfo(z.dtype).eps * largest(z)
        return inside & separation(jnp.concatenate(products), noise)

    def _descends(self, ray: Float[Array, " n"]) -> Bool[Array, ""]:
        """Pd = 0, Ad = 0, -Gd in K, q'd < 0."""
        parts = [self.q[:1] * 0]
        if self.P is not None:
            parts.append(scaled(self.P, self.bend(ray)))
        if self.A is not None:
            parts.append(scaled(self.A, sparse.apply(self.A, ray)))
        if self.G is not None:
            # One size a cone: a cone is not one any more when its rows are scaled apart.
            s = -sparse.apply(self.G, ray)
            size = self.cone.sizes(sparse.sizes(self.G))
            parts.append((s - self.cone.project(s)) / positive(size))
        noise = largest(self.q) * largest(jnp.concatenate(parts))
        return separation(self.q * ray, noise)

    def multipliers(self, value: Float[Array, " n"]) -> Dual:
        """Signed least squares on the constraints that are active at `value`, by the normals of
        second-order cones: not those of a slack at a cone's tip, nor of the other curved cones."""
        from .multipliers import cone_multipliers

        return cone_multipliers(self, value)

    def statement(self) -> Statement:
        """With |x| - t <= 0 for second-order cones."""
        curved = [c for c in self.cones if not isinstance(c, Zero | Nonnegative | SecondOrder)]
        if curved:
            raise TypeError(
                "ConeProgram: a foreign solver cannot honour `cones`, which holds "
                f"{type(curved[0]).__name__}: it is no differentiable function that is at most 0. "
                "Use InteriorPoint() or OperatorSplitting()."
            )
        cone = self.cone

        def slack(x):
            assert self.G is not None and self.h is not None
            return self.h - sparse.apply(self.G, x)

        def equality(x):
            parts = []
            if self.A is not None and self.b is not None:
                parts.append(sparse.apply(self.A, x) - self.b)
            if self.G is not None:
                parts.append(cone.held(slack(x)))
            return jnp.concatenate(parts)

        held = any(isinstance(c, Zero) for c in self.cones)
        levels = any(not isinstance(c, Zero) for c in self.cones)
        return Statement(
            "minimise",
            self.objective,
            equality if held or self.A is not None else None,
            (lambda x: cone.level(slack(x))) if levels else None,
        )

    def describe(self) -> list[str]:
        """What the data say before a solve, in words (eager)."""
        from .describe import describe

        return describe(self)
