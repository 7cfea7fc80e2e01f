"""SciPy's methods, run on the host. SciPy is imported when the first of them is used.

The problem's function is evaluated by JAX, compiled, on the host's CPU; the method itself is
SciPy's, in float64. A step of ours is a whole run of SciPy: if the problem's residual is not within
tolerance after it, the next step starts again from where it ended, for as long as that helps.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..core.problem import AbstractProblem, Statement
from ..core.solution import RESULTS, Guess
from .foreign import AbstractForeign, ForeignState, accept, equations, moved, objective, start
from .methods import LEAST_SQUARES, MINIMISERS, ROOTS, Host, least_squares, minimise, root

_CODES = (RESULTS.successful, RESULTS.stalled, RESULTS.singular, RESULTS.nonfinite_state)


class Scipy(AbstractForeign):
    """A method of `scipy.optimize` as a solver of ours, run on the host.

    The methods of `minimize` ("BFGS", "L-BFGS-B", "SLSQP", "trust-constr", ...), of `root` ("hybr",
    "krylov", ...) and of `least_squares` ("trf", "dogbox", "lm"; "lm" of a root is that of `root`).
    Gradients, Jacobians and Hessian products are exact, from JAX. Constraints go to the methods
    that honour them and are refused by the others. SciPy returns no multipliers that we would
    trust: they are found again by the problem.

    Under vmap the lanes run one after the other. What fails on the host becomes the lane's result:
    `singular`, `nonfinite_state`, or `stalled`. `OneStep` and `Unrolled` are refused.

    Example:
        ```python
        P, q = jnp.eye(2), jnp.array([-2.0, 1.0])
        solve(QuadraticProgram(P, q, G=jnp.ones((1, 2)), h=jnp.ones(1)), Scipy("SLSQP"))
        ```

    Args:
        method: SciPy's name of it.
        options: what SciPy takes as `options` (or as arguments of `least_squares`). Tolerances are
            by default as tight as the dtype allows; a looser one only means more steps of ours.
    """

    method: str = eqx.field(static=True)
    options: dict[str, Any] = eqx.field(static=True)

    on_host: ClassVar[bool] = True
    step_limit: ClassVar[int] = 50

    def __init__(self, method: str, **options: Any):
        known = sorted({*MINIMISERS, *ROOTS, *LEAST_SQUARES}, key=str.lower)
        names = {name.lower(): name for name in known}
        if not isinstance(method, str) or method.lower() not in names:
            raise TypeError(f"`Scipy({method!r})`: the methods are {', '.join(known)}.")
        self.method = names[method.lower()]
        self.options = _Options(options)

    def refuse(self, problem: AbstractProblem) -> None:
        statement = problem.statement()
        kinds, fields = (), ()
        if self.method in MINIMISERS:
            kinds, fields = ("minimise", "least_squares"), MINIMISERS[self.method]
        if self.method in ROOTS:
            kinds = (*kinds, "root", "fixed_point")
        if self.method in LEAST_SQUARES:
            kinds = (*kinds, "least_squares", "root", "fixed_point")
            fields = LEAST_SQUARES[self.method]
        accept(f"SciPy's {self.method}", statement, kinds, *fields)

    def init(self, problem: AbstractProblem, guess: Guess) -> ForeignState:
        return start(problem, guess.primal, None)

    def step(self, problem: AbstractProblem, state: ForeignState) -> ForeignState:
        data, static = eqx.partition(problem, eqx.is_array)
        flat, unravel = ravel_pytree(state.primal)
        call = _Call(
            self.method,
            dict(self.options),
            _functions(problem.statement(), static, unravel, state.primal),
            {},
        )
        x64 = jax.dtypes.canonicalize_dtype(jnp.float64) == jnp.float64
        words, dtypes = _words((data, flat))
        out = (jax.eval_shape(lambda x: _words(x)[0], flat), jax.ShapeDtypeStruct((), jnp.int32))

        def on_host(words: PyTree) -> tuple[np.ndarray, np.integer]:
            data, x = jax.tree.map(lambda x, dtype: _array(np.asarray(x), dtype), words, dtypes)
            x, code = _run(call, x64, data, x)
            return (x.view(np.uint32).reshape(out[0].shape) if x.itemsize > 4 else x), code

        x, code = jax.pure_callback(on_host, out, words, vmap_method="sequential")
        x = jax.lax.bitcast_convert_type(x, flat.dtype) if x.dtype != flat.dtype else x
        failure = _CODES[0]
        for i, item in enumerate(_CODES):
            failure = RESULTS.where(code == i, item, failure)
        new = moved(
            problem, state, unravel(x), None, done=jnp.ones_like(code, bool), failure=failure
        )
        # A run that made it worse leaves the lane where it was.
        worse = ~(new.measure <= state.measure)
        kept = jax.tree.map(
            lambda n, o: jnp.where(worse, o, n),
            (new.primal, new.measure),
            (state.primal, state.measure),
        )
        return eqx.tree_at(lambda s: (s.primal, s.measure), new, kept)

    @property
    def _patience(self) -> int:
        return 3


def _words(tree: PyTree[Array]) -> tuple[PyTree[Array], PyTree]:
    """The tree with 8-byte leaves as pairs of uint32, and its dtypes: the callback's thread has not
    the caller's precision, and would round what it is given."""
    dtypes = jax.tree.map(lambda x: np.dtype(x.dtype), tree)

    def words(x: Array) -> Array:
        return jax.lax.bitcast_convert_type(x, jnp.uint32) if x.dtype.itemsize > 4 else x

    return jax.tree.map(words, tree), dtypes


def _array(words: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The inverse of `_words`, on the host."""
    if dtype.itemsize <= 4:
        return words
    return np.ascontiguousarray(words).view(dtype).reshape(words.shape[:-1])


class _Options(dict):
    """Hashed by what it holds, as a part of a compiled program's name."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(tuple(sorted((k, repr(v)) for k, v in self.items())))


class _Functions(NamedTuple):
    """Compiled functions of the problem's data and a flat point."""

    kind: str
    objective: Callable
    residuals: Callable | None
    equality: Callable | None
    inequality: Callable | None
    bounds: Callable | None


class _Call(NamedTuple):
    method: str
    options: dict[str, Any]
    functions: _Functions
    compiled: dict[str, Callable]


def _functions(
    known: Statement, static: PyTree, unravel: Callable, like: PyTree[Array]
) -> _Functions:
    # `known` says which fields there are: without its arrays a problem looks as if it had none.
    def statement(data: PyTree) -> Statement:
        return eqx.combine(data, static).statement()

    def flat(choose: Callable[[Statement], Callable]) -> Callable:
        return lambda data, x: ravel_pytree(choose(statement(data))(unravel(x)))[0]

    def bounds(data: PyTree) -> tuple:
        found = statement(data)

        def side(given: PyTree, default: float) -> Array:
            if given is None:
                return jnp.full_like(ravel_pytree(like)[0], default)
            full = jax.tree.map(lambda x, b: jnp.broadcast_to(jnp.asarray(b), x.shape), like, given)
            return ravel_pytree(full)[0]

        return side(found.lower, -np.inf), side(found.upper, np.inf)

    has = lambda name: getattr(known, name) is not None
    return _Functions(
        kind=known.kind,
        objective=lambda data, x: objective(statement(data))(unravel(x)),
        residuals=None if known.kind == "minimise" else flat(equations),
        equality=flat(lambda s: s.equality) if has("equality") else None,  # pyright: ignore
        inequality=flat(lambda s: s.inequality) if has("inequality") else None,  # pyright: ignore
        bounds=bounds if has("lower") or has("upper") else None,
    )


def _run(call: _Call, x64: bool, data: PyTree, start: np.ndarray) -> tuple[np.ndarray, np.integer]:
    """On the host: the point where the method ended, and the index of its failure in `_CODES`."""
    functions = call.functions
    with jax.enable_x64(x64):
        try:
            if not np.all(np.isfinite(start)):
                return start, np.int32(3)
            host = Host(functions, call.compiled, data, start)
            if call.method in MINIMISERS:
                found = minimise(call.method, call.options, host)
            elif call.method in ROOTS and functions.kind in ("root", "fixed_point"):
                found = root(call.method, call.options, host)
            else:
                found = least_squares(call.method, call.options, host)
            found = np.ascontiguousarray(found, start.dtype).reshape(start.shape)
            if np.all(np.isfinite(found)):
                return found, np.int32(0)
            return start, np.int32(3)
        except np.linalg.LinAlgError:
            return start, np.int32(2)
        except Exception:
            # Nothing is raised through compiled code: it would take the whole batch with it.
            return start, np.int32(1)
