"""The fields of a quadratic program: what they must look like, and the door they come in by."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..core.solution import Dual, is_traced
from . import sparse


def prepare(problem: Any, init: PyTree | None) -> tuple[Any, Float[Array, " n"]]:
    """The problem with P symmetric and bounds of full shape, and the initial value.

    Raises:
        TypeError, ValueError: the message names the field and both shapes.
    """
    name = type(problem).__name__
    arrays = {}
    for field in ("P", "q", "A", "b", "G", "h", "lower", "upper"):
        value = getattr(problem, field)
        if isinstance(value, int):
            value = float(value)
        arrays[field] = None if value is None else _floating(name, field, value)
    for field in ("P", "q"):
        if arrays[field] is None:
            raise TypeError(f"{name}: `{field}` is None; give zeros for a term that is absent.")
    P, q = arrays["P"], arrays["q"]
    if len(_shape(P)) != 2 or _shape(P)[0] != _shape(P)[1]:
        raise ValueError(f"{name}: `P` must be square; it is {_show(P)}.")
    n = _shape(P)[0]
    if n == 0:
        raise ValueError(f"{name}: `P` is {_show(P)}: a problem needs at least one variable.")
    _fits(name, "q", q, (n,), "P", P)
    for matrix, side in (("A", "b"), ("G", "h")):
        if (arrays[matrix] is None) != (arrays[side] is None):
            given, absent = (matrix, side) if arrays[side] is None else (side, matrix)
            raise TypeError(f"{name}: `{given}` is given, but `{absent}` is None.")
        if arrays[matrix] is None:
            continue
        _fits(name, matrix, arrays[matrix], (None, n), "P", P)
        _fits(name, side, arrays[side], (_shape(arrays[matrix])[0],), matrix, arrays[matrix])
        if _shape(arrays[matrix])[0] == 0:
            arrays[matrix] = arrays[side] = None
    for field in ("lower", "upper"):
        if arrays[field] is not None:
            if arrays[field].ndim == 0:
                arrays[field] = jnp.broadcast_to(arrays[field].astype(_dtype(P)), (n,))
            _fits(name, field, arrays[field], (n,), "P", P)
    for field, value in arrays.items():
        if value is not None and _dtype(value) != _dtype(P):
            raise TypeError(
                f"{name}: `{field}` is {_show(value)}, but `P` is {_show(P)}. "
                "Cast them to one precision."
            )
    if init is None:
        value = jnp.zeros_like(q)
    else:
        if jax.tree.structure(init) != jax.tree.structure(0):
            raise TypeError(
                f"{name}: `init` must be one array of shape {[n]}; "
                f"it has the structure {jax.tree.structure(init)}."
            )
        value = _floating(name, "init", init)
        _fits(name, "init", value, (n,), "P", P)
        if value.dtype != _dtype(P):
            raise TypeError(f"{name}: `init` is {_show(value)}, but `P` is {_show(P)}.")
    if not sparse.is_matrix_free(P):
        arrays["P"] = (P + P.T) / 2
    return type(problem)(arrays.pop("P"), arrays.pop("q"), **arrays), value


def two_sided(A: Array, l: Array, u: Array) -> dict[str, Array]:
    """Fields A, b, G, h for l <= Ax <= u."""
    if jnp.ndim(A) != 2 or jnp.shape(l) != (jnp.shape(A)[0],) or jnp.shape(u) != jnp.shape(l):
        raise ValueError(
            f"from_two_sided: `l` and `u` must have an entry for each row of `A`; `A` has shape "
            f"{list(jnp.shape(A))}, `l` {list(jnp.shape(l))}, `u` {list(jnp.shape(u))}."
        )
    if is_traced((l, u)):
        return {"G": jnp.concatenate([A, -A]), "h": jnp.concatenate([u, -l])}
    low, high = np.asarray(l), np.asarray(u)
    equal = np.flatnonzero((low == high) & np.isfinite(low))
    # NaN is kept, for `solve` to find.
    above = np.flatnonzero((low != high) & ~np.isposinf(high))
    below = np.flatnonzero((low != high) & ~np.isneginf(low))
    out = {}
    if equal.size:
        out |= {"A": A[equal], "b": u[equal]}
    if above.size + below.size:
        out |= {
            "G": jnp.concatenate([A[above], -A[below]]),
            "h": jnp.concatenate([u[above], -l[below]]),
        }
    return out


def pairs(dual: Dual, slack: Dual) -> Iterator[tuple[Array, Array]]:
    """The complementary pairs (dual, slack) of all present fields."""
    for name in ("inequality", "lower", "upper"):
        if getattr(dual, name) is not None:
            yield getattr(dual, name), getattr(slack, name)


def _floating(name: str, field: str, value: Any) -> Any:
    if field in _MATRICES and sparse.is_matrix_free(value):
        return sparse.checked(name, field, value)
    if not hasattr(value, "dtype") and not isinstance(value, float):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise TypeError(f"{name}: `{field}` is not an array: {error}") from None
    dtype = getattr(value, "dtype", jnp.result_type(float))
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name}: `{field}` has dtype {dtype}; give real floating-point numbers "
            "(float32 or float64)."
        )
    return jnp.asarray(value)


def _fits(name: str, field: str, value: Any, shape: tuple, other: str, against: Any) -> None:
    got = _shape(value)
    fits = len(got) == len(shape) and all(
        w is None or w == g for w, g in zip(shape, got, strict=True)
    )
    if not fits:
        wanted = "[" + ", ".join("any" if s is None else str(s) for s in shape) + "]"
        raise ValueError(
            f"{name}: `{field}` is {_show(value)}, but `{other}` is {_show(against)}: "
            f"`{field}` must have shape {wanted}."
        )


_MATRICES = ("P", "A", "G")
_shape, _dtype = sparse.shape_of, sparse.dtype_of


def _show(value: Any) -> str:
    return f"{_dtype(value)}{list(_shape(value))}"


def prepare_cones(problem: Any, init: PyTree | None) -> tuple[dict[str, Any], Float[Array, " n"]]:
    """The fields of a `ConeProgram`, P symmetric, and the initial value.

    Raises:
        TypeError, ValueError: the message names the field and both shapes.
    """
    name, arrays = type(problem).__name__, {}
    for field in ("P", "q", "A", "b", "G", "h"):
        value = getattr(problem, field)
        arrays[field] = None if value is None else _floating(name, field, value)
    P, q = arrays["P"], arrays["q"]
    if q is None or len(_shape(q)) != 1 or _shape(q)[0] == 0:
        what = "None" if q is None else _show(q)
        raise ValueError(
            f"{name}: `q` is {what}: it must have shape [any], with one entry or more."
        )
    n = q.shape[0]
    if P is not None:
        _fits(name, "P", P, (n, n), "q", q)
    for matrix, side in (("A", "b"), ("G", "h")):
        if (arrays[matrix] is None) != (arrays[side] is None):
            given, absent = (matrix, side) if arrays[side] is None else (side, matrix)
            raise TypeError(f"{name}: `{given}` is given, but `{absent}` is None.")
        if arrays[matrix] is None:
            continue
        _fits(name, matrix, arrays[matrix], (None, n), "q", q)
        _fits(name, side, arrays[side], (_shape(arrays[matrix])[0],), matrix, arrays[matrix])
        if _shape(arrays[matrix])[0] == 0:
            arrays[matrix] = arrays[side] = None
    rows = [cone.rows for cone in problem.cones]
    given = 0 if arrays["G"] is None else _shape(arrays["G"])[0]
    if sum(rows) != given:
        raise ValueError(
            f"{name}: `cones` have {rows} rows, {sum(rows)} in all, but `G` has {given}."
        )
    value = jnp.zeros_like(q)
    if init is not None:
        if jax.tree.structure(init) != jax.tree.structure(0):
            raise TypeError(f"{name}: `init` must be one array of shape {[n]}; it is a structure.")
        value = _floating(name, "init", init)
        _fits(name, "init", value, (n,), "q", q)
    for field, array in {**arrays, "init": value}.items():
        if array is not None and _dtype(array) != q.dtype:
            raise TypeError(
                f"{name}: `{field}` is {_show(array)}, but `q` is {_show(q)}. "
                "Cast them to one precision."
            )
    if P is not None and not sparse.is_matrix_free(P):
        arrays["P"] = (P + P.T) / 2
    return arrays, value
