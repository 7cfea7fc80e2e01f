"""A problem written in cvxpy as a layer.

    x(theta) = argmin  f(x, theta)   subject to   the constraints of a cvxpy problem

cvxpy's rules of parametrised programming (DPP) make the canonical form affine in the parameters,

    minimise x'Px/2 + q'x   subject to   Ax + b in K,   (P, q, A, b) = T (theta, 1),

with constant sparse tensors T. cvxpy is asked once, for T; after that a call is JAX alone: the
products with T, and the solve. Agrawal, Amos, Barratt, Boyd, Diamond and Kolter (2019).
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..convex import sparse
from ..convex.cone_program import ConeProgram
from ..convex.cones import AbstractCone, Exponential, Nonnegative, PositiveSemidefinite, SecondOrder
from ..convex.quadratic_program import QuadraticProgram
from ..core.adjoint import AbstractAdjoint
from ..core.problem import AbstractProblem
from ..core.solve import solve

_DENSE = 10**6
"""Entries of G up to which it is an array."""
_REDUCED = ("symmetric", "PSD", "NSD", "diag", "hermitian", "sparsity")
"""Attributes for which cvxpy keeps a smaller variable than the one that was written."""


class _Canonical:
    """What cvxpy makes of a problem: constant tensors, compared by identity.

    Attributes:
        offsets, shapes: where each parameter stands in theta, and its shape.
        length: of (theta, 1).
        places: where each variable stands in x, and its shape.
        columns: variables of the canonical problem.
        equalities: the first rows; `cones` are of the others.
        curved: whether there is any cone but the nonnegative one.
        quadratic, linear, affine: T's rows for P, q and [A b].
    """

    def __init__(self, cvxpy: Any, problem: Any, parameters: Sequence, variables: Sequence):
        constraints, wanted = list(problem.constraints), []
        for variable in variables:
            if any(
                value is not None and value is not False for value in variable.attributes.values()
            ):
                # cvxpy puts another variable in its place: a plain one is tied to it.
                full = cvxpy.Variable(variable.shape)
                constraints.append(full == variable)
                variable = full
            wanted.append(variable)
        problem = cvxpy.Problem(problem.objective, constraints)
        data, _, _ = problem.get_problem_data(cvxpy.CLARABEL, solver_opts={})
        program = data["param_prob"]
        dims = program.cone_dims
        if dims.p3d or getattr(dims, "pnd", None):
            raise ValueError("from_cvxpy: power cones are not supported.")
        self.offsets = [program.param_id_to_col[p.id] for p in parameters]
        self.shapes = [p.shape for p in parameters]
        self.length = program.total_param_size + 1
        self.places = [(program.var_id_to_col[v.id], v.shape) for v in wanted]
        self.columns = program.x.size
        self.equalities = dims.zero
        self.cones: tuple[AbstractCone, ...] = (
            *([Nonnegative(dims.nonneg)] if dims.nonneg else []),
            *(SecondOrder(n) for n in dims.soc),
            *(PositiveSemidefinite(n) for n in dims.psd),
            *([Exponential()] * dims.exp),
        )
        self.curved = bool(dims.soc or dims.psd or dims.exp)
        n, total = self.columns, dims.zero + sum(cone.rows for cone in self.cones)
        self.affine = _Tensor(program.A, (total, n + 1))
        self.linear = _Tensor(program.q, (n + 1, 1))
        self.quadratic = None if program.P is None else _Tensor(program.P, (n, n))

    def problem(self, values: Sequence[Float[Array, "..."]]) -> AbstractProblem:
        """The problem at these parameters: quadratic where no cone is curved."""
        dtype = jnp.result_type(*values) if values else jnp.result_type(float)
        theta = jnp.zeros(self.length, dtype).at[-1].set(1)
        for value, offset in zip(values, self.offsets, strict=True):
            theta = theta.at[offset : offset + value.size].set(value.ravel(order="F"))
        n, total = self.columns, self.affine.shape[0]
        affine = self.affine.entries(theta)
        fields: dict[str, Any] = {}
        for matrix, side, first, last in (
            ("A", "b", 0, self.equalities),
            ("G", "h", self.equalities, total),
        ):
            if last > first:
                # cvxpy's rows are Ax + b in K; ours are h - Gx in K and, the same, b - Ax = 0.
                fields[matrix] = self.affine.matrix(-affine, (first, last), (0, n))
                fields[side] = self.affine.array(affine, (first, last), (n, n + 1))[:, 0]
        q = self.linear.array(self.linear.entries(theta), (0, n), (0, 1))[:, 0]
        P = None
        if self.quadratic is not None:
            P = self.quadratic.matrix(self.quadratic.entries(theta), (0, n), (0, n))
        if self.curved:
            return ConeProgram(P, q, cones=self.cones, **fields)
        if P is None:
            P = jnp.zeros((n, n), dtype)
        return QuadraticProgram(P, q, **fields)

    def values(self, x: Float[Array, " n"]) -> tuple[Float[Array, "..."], ...]:
        """The variables asked for."""
        found = []
        for place, shape in self.places:
            size = int(np.prod(shape))
            found.append(x[place : place + size].reshape(shape, order="F"))
        return tuple(found)


class _Tensor:
    """A matrix that is affine in the parameters: entry k stands at (row[k], column[k]) and is the
    k-th of `map` times (theta, 1)."""

    def __init__(self, tensor: Any, shape: tuple[int, int]):
        self.shape = shape
        tensor = tensor.tocoo()
        flat, self.place = np.unique(tensor.coords[0], return_inverse=True)
        self.row, self.column = flat % shape[0], flat // shape[0]
        self.weight, self.parameter = tensor.data, tensor.coords[1]

    def entries(self, theta: Float[Array, " length"]) -> Float[Array, " k"]:
        """The entries that are not always 0."""
        terms = jnp.asarray(self.weight, theta.dtype) * theta[self.parameter]
        return jnp.zeros(self.row.size, theta.dtype).at[self.place].add(terms)

    def array(
        self, entries: Float[Array, " k"], rows: tuple, columns: tuple
    ) -> Float[Array, "..."]:
        """A block of the matrix."""
        inside, row, column, shape = self._block(rows, columns)
        return jnp.zeros(shape, entries.dtype).at[row, column].set(entries[inside])

    def matrix(self, entries: Float[Array, " k"], rows: tuple, columns: tuple) -> sparse.Matrix:
        """A block of the matrix: an array, or a BCOO where that would be large."""
        inside, row, column, shape = self._block(rows, columns)
        if shape[0] * shape[1] <= _DENSE:
            return self.array(entries, rows, columns)
        return sparse.from_entries(entries[inside], row, column, shape)

    def _block(self, rows: tuple, columns: tuple) -> tuple:
        inside = (self.row >= rows[0]) & (self.row < rows[1])
        inside = np.flatnonzero(inside & (self.column >= columns[0]) & (self.column < columns[1]))
        shape = rows[1] - rows[0], columns[1] - columns[0]
        return inside, self.row[inside] - rows[0], self.column[inside] - columns[0], shape


class CvxpyLayer(eqx.Module):
    """A function of a cvxpy problem's parameters; made by `from_cvxpy`."""

    canonical: _Canonical = eqx.field(static=True)
    solver: Any = None
    adjoint: AbstractAdjoint | None = None

    def problem(self, *parameters: Float[Array, "..."]) -> AbstractProblem:
        """The problem in canonical form: a `QuadraticProgram`, or a `ConeProgram`.

        Raises:
            TypeError, ValueError: a parameter is missing, or is not of the shape it was declared.
        """
        shapes = self.canonical.shapes
        if len(parameters) != len(shapes):
            raise TypeError(
                f"CvxpyLayer: {len(shapes)} parameters were declared, {len(parameters)} are given."
            )
        values = [jnp.asarray(value) for value in parameters]
        dtypes = sorted({value.dtype.name for value in values})
        if len(dtypes) > 1:
            raise TypeError(f"CvxpyLayer: the parameters are {dtypes}: cast them to one precision.")
        for i, (value, shape) in enumerate(zip(values, shapes, strict=True)):
            if value.shape != shape or not jnp.issubdtype(value.dtype, jnp.floating):
                raise ValueError(
                    f"CvxpyLayer: `parameters[{i}]` is {value.dtype}{list(value.shape)}; it was "
                    f"declared with shape {list(shape)}, of floating-point numbers."
                )
        return self.canonical.problem(values)

    def __call__(self, *parameters: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
        """The solution's variables, in the order they were asked for."""
        problem = self.problem(*parameters)
        x = solve(problem, self.solver, adjoint=self.adjoint, throw=False).value
        return self.canonical.values(x)


def from_cvxpy(
    problem: Any,
    parameters: Sequence[Any],
    variables: Sequence[Any],
    *,
    solver: Any = None,
    adjoint: AbstractAdjoint | None = None,
) -> CvxpyLayer:
    """A cvxpy problem as a layer: `layer(*parameter_values) -> variable_values`.

    Takes the place of `cvxpylayers.jax.CvxpyLayer(problem, parameters, variables)`; batches go
    through `jax.vmap`. Needs the extra `cvxpy`, at this call alone. What a parameter was declared
    to be (`nonneg`) is not asked of its values.

    Args:
        problem: of cvxpy, convex by its rules for parameters (DPP).
        parameters: all parameters of the problem, in the order of the layer's arguments.
        variables: variables of the problem, in the order of the layer's results.
        solver, adjoint: as in `solve`.

    Raises:
        ValueError: the problem breaks cvxpy's rules, has integers or power cones, or parameters and
            variables are not its own.
    """
    import cvxpy

    if not hasattr(problem, "is_dcp"):
        raise TypeError(
            f"from_cvxpy: `problem` must be a cvxpy.Problem; got {type(problem).__name__}."
        )
    if not problem.is_dcp(dpp=True):
        raise ValueError(
            "from_cvxpy: `problem` is not DPP (see cvxpy's `problem.is_dcp(dpp=True)`)."
        )
    if problem.is_mixed_integer():
        raise ValueError("from_cvxpy: `problem` has integer variables.")
    if sorted(p.id for p in parameters) != sorted(p.id for p in problem.parameters()):
        names = [p.name() for p in problem.parameters()]
        raise ValueError(
            f"from_cvxpy: `parameters` must be all of the problem's own, each once, {names}."
        )
    if not {v.id for v in variables} <= {v.id for v in problem.variables()}:
        names = [v.name() for v in problem.variables()]
        raise ValueError(f"from_cvxpy: `variables` must be of the problem's own, {names}.")
    for parameter in parameters:
        reduced = [name for name in _REDUCED if parameter.attributes.get(name)]
        if reduced:
            raise ValueError(
                f"from_cvxpy: parameter `{parameter.name()}` has the attribute {reduced[0]}; "
                "declare it without, and give a value that has it."
            )
    return CvxpyLayer(_Canonical(cvxpy, problem, parameters, variables), solver, adjoint)
