"""Errors a user can act on: each names the argument, the pytree path and both shapes."""

from collections.abc import Callable
from dataclasses import fields
from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .problem import AbstractProblem
from .solution import is_traced


def show(tree: PyTree) -> str:
    """Dtype and shape of every leaf."""
    if hasattr(tree, "shape"):
        return f"{tree.dtype}{list(tree.shape)}"
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree))


def kind(found: Any) -> str:
    """What something is, as messages have it: a class given for an instance says so."""
    if isinstance(found, type):
        return f"the class {found.__name__}"
    return show(found) if eqx.is_array_like(found) and hasattr(found, "dtype") else _named(found)


def _named(found: Any) -> str:
    plain = isinstance(found, bool | int | float | str)
    return repr(found) if plain else type(found).__name__


def check_instance(name: str, field: str, found: Any, wanted: Any, text: str) -> None:
    """Raise `TypeError` unless a field is an instance of `wanted`, a type or a union of types.

    Args:
        text: what that is, in words.
    """
    if not isinstance(found, wanted):
        raise TypeError(f"{name}: `{field}` must be {text}; got {kind(found)}.")


def check_array(name: str, field: str, value: Any) -> Array:
    """A value as an array; raises `TypeError` where it is none."""
    try:
        # JAX takes a string for the name of a dtype.
        return jnp.asarray(None if isinstance(value, str) else value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: `{field}` must be an array; got {kind(value)}.") from error


def check_real(name: str, field: str, dtype: Any) -> None:
    """Raise `TypeError` unless numbers are float32 or float64: of others no matrix is factored."""
    if dtype not in (jnp.float32, jnp.float64):
        raise TypeError(
            f"{name}: `{field}` has dtype {dtype}; give real floating-point numbers "
            "(float32 or float64)."
        )


def check_point(name: str, field: str, value: Any, like: Array) -> Array:
    """One point as an array; raises unless it has the shape of a row of `like`: most often it is a
    batch."""
    array = check_array(name, field, value)
    if array.shape != like.shape[1:]:
        raise ValueError(
            f"{name}: `{field}` is {show(array)}, but one point has shape {list(like.shape[1:])}; "
            "jax.vmap adds a batch."
        )
    return array


def check_kind(solver: Any, problem: AbstractProblem, *kinds: type[AbstractProblem]) -> None:
    """Raise `TypeError` unless the problem is of one of the `kinds` that the solver solves."""
    if not isinstance(problem, kinds):
        accepted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{type(solver).__name__} solves {accepted}, not {type(problem).__name__}.")


def check_absent(name: str, problem: AbstractProblem, fields: tuple[str, ...], advice: str) -> None:
    """Raise `TypeError` for the first of the `fields` that a problem has: the solver takes none."""
    for field in fields:
        if getattr(problem, field) is not None:
            kind = type(problem).__name__
            raise TypeError(f"{name} cannot honour `{field}` of {kind}: {advice}")


def check_shape(
    name: str,
    field: str,
    found: tuple[str, tuple[int, ...]],
    wanted: tuple[int | None, ...],
    other: str,
    against: str,
) -> None:
    """Raise `ValueError` unless a field has the shape that another one asks for.

    Args:
        name: of the problem.
        found: the field as `show` writes it, and its shape.
        wanted: its shape, `None` for any length.
        other, against: the other field, and that as `show` writes it.
    """
    text, shape = found
    if len(shape) == len(wanted) and all(
        want is None or want == got for want, got in zip(wanted, shape, strict=True)
    ):
        return
    sizes = ", ".join("any" if size is None else str(size) for size in wanted)
    raise ValueError(
        f"{name}: `{field}` is {text}, but `{other}` is {against}: "
        f"`{field}` must have shape [{sizes}]."
    )


def check_scalar(name: str, out: Any, field: str = "fn") -> None:
    """Raise `TypeError` unless what a function returns, as a shape, is a real scalar."""
    scalar = isinstance(out, jax.ShapeDtypeStruct) and out.shape == ()
    if not (scalar and jnp.issubdtype(out.dtype, jnp.floating)):
        raise TypeError(f"{name}: `{field}` must return a real scalar (shape ()), not {show(out)}.")


def count_samples(name: str, field: str, data: PyTree) -> int:
    """The number of samples along the first axes of a pytree of arrays.

    Raises:
        TypeError: it has no arrays, or one of them no axis.
        ValueError: they disagree about the number, or there is none.
    """
    leaves = jtu.tree_flatten_with_path(data)[0]
    if not leaves:
        raise TypeError(f"{name}: `{field}` has no arrays.")
    first_path, first = leaves[0]
    for path, leaf in leaves:
        if not eqx.is_array_like(leaf) or jnp.ndim(leaf) == 0:
            found = show(leaf) if eqx.is_array(leaf) else repr(leaf)
            raise TypeError(
                f"{name}: `{field}{jtu.keystr(path)}` must be an array with samples along its "
                f"first axis; got {found}."
            )
        if leaf.shape[0] != first.shape[0]:
            raise ValueError(
                f"{name}: `{field}{jtu.keystr(path)}` is {show(leaf)}, but "
                f"`{field}{jtu.keystr(first_path)}` is {show(first)}: their first axes, samples, "
                "must be equal."
            )
    if first.shape[0] == 0:
        raise ValueError(f"{name}: `{field}` holds no samples.")
    return first.shape[0]


def check_number(name: str, **settings: Any) -> None:
    """Raise `TypeError` unless every setting is a number, or an array without axes."""
    for field, value in settings.items():
        if not _is_number(value) or jnp.ndim(value) != 0:
            raise TypeError(f"{name}: `{field}` must be a number; got {kind(value)}.")


def check_positive(name: str, **settings: Any) -> None:
    """Raise unless every setting that is not `None` is a number (`TypeError`), and positive
    (`ValueError`), as far as it has a value."""
    given = {field: value for field, value in settings.items() if value is not None}
    _check_range(name, given, lambda value: value > 0, "positive")


def check_not_negative(name: str, **settings: Any) -> None:
    """Raise unless every setting is a number (`TypeError`), and at least 0 (`ValueError`), as far
    as it has a value."""
    _check_range(name, settings, lambda value: value >= 0, "at least 0")


def _check_range(
    name: str, settings: dict[str, Any], holds: Callable[[float], bool], wanted: str
) -> None:
    for field, value in settings.items():
        if not _is_number(value):
            raise TypeError(f"{name}: `{field}` must be a number; got {kind(value)}.")
        if isinstance(value, Real) and not holds(float(value)):
            raise ValueError(f"{name}: `{field}` must be {wanted}; got {value}.")


def check_count(name: str, optional: tuple[str, ...] = (), /, **settings: Any) -> None:
    """Raise unless every setting is a whole number (`TypeError`) of at least 1 (`ValueError`), as
    far as it has a value.

    Args:
        optional: those that may be `None`.
    """
    for field, value in settings.items():
        if value is None and field in optional:
            continue
        if not _is_number(value) or not jnp.issubdtype(jnp.result_type(value), jnp.integer):
            raise TypeError(f"{name}: `{field}` must be a whole number; got {kind(value)}.")
        if isinstance(value, Real) and not float(value) >= 1:
            raise ValueError(f"{name}: `{field}` must be at least 1; got {value}.")


def check_settings(solver: Any, may_be_zero: tuple[str, ...] = ()) -> None:
    """Raise unless a module's fields of type `int` are counts and its other numbers positive.

    Args:
        may_be_zero: how the names end of numbers that may also be 0.
    """
    name = type(solver).__name__
    for field in fields(solver):
        value = getattr(solver, field.name)
        if value is None and (field.type is int or isinstance(field.default, float)):
            raise TypeError(f"{name}: `{field.name}` must be a number; got NoneType.")
        if field.type is int:
            check_count(name, **{field.name: value})
        elif isinstance(field.default, float):
            zero = field.name.endswith(may_be_zero)
            check = check_not_negative if zero else check_positive
            check(name, **{field.name: value})


def _is_number(value: Any) -> bool:
    """Arrays of them are too: a batch of settings."""
    if isinstance(value, bool):
        return False
    array = eqx.is_array(value) and jnp.issubdtype(value.dtype, jnp.number)
    return isinstance(value, Real) or array


def check_problem(problem: Any) -> None:
    """Raise unless `problem` is one."""
    if not isinstance(problem, AbstractProblem):
        raise TypeError(
            "`problem` must be a jaxsolve problem (QuadraticProgram, Minimise, Root, ...); got "
            f"{type(problem).__name__}. A function fn(y, args) becomes one by Minimise(fn, args)."
        )


def check_limits(tolerance: Any, max_steps: Any, record: Any) -> None:
    """Raise where a setting has the wrong type, or a concrete one the wrong sign."""
    if tolerance is not None and not is_traced(tolerance):
        check_number("solve", tolerance=tolerance)
        if not float(tolerance) > 0:
            raise ValueError(f"`tolerance` must be positive; got {tolerance}.")
    if max_steps is not None and not is_traced(max_steps):
        whole = _is_number(max_steps) and jnp.issubdtype(jnp.result_type(max_steps), jnp.integer)
        if not whole or jnp.ndim(max_steps) != 0:
            raise TypeError(f"`max_steps` must be an integer; got {kind(max_steps)}.")
        if int(max_steps) > jnp.iinfo(jnp.int32).max:
            raise ValueError(f"`max_steps` must be an int32; got {max_steps}.")
        if int(max_steps) < 0:
            raise ValueError(f"`max_steps` must not be negative; got {max_steps}.")
    if not isinstance(record, int) or isinstance(record, bool) or record < 0:
        raise TypeError(f"`record` must be a static integer, at least 0; got {record!r}.")


def check(problem: AbstractProblem) -> list[str]:
    """What can be said of a problem's data before solving it, in words. Eager, not for traced code.

    Shapes and dtypes raise, as `solve` would; NaN fields, crossed bounds, ranks, definiteness and
    scaling are findings.

    Returns:
        One sentence a finding; empty when there is nothing to say.
    """
    check_problem(problem)
    if is_traced(problem):
        raise TypeError("`check` reads the data: call it outside jit, grad and vmap.")
    findings = []
    for path, leaf in jtu.tree_flatten_with_path(eqx.filter(problem, eqx.is_inexact_array))[0]:
        if bool(jnp.any(jnp.isnan(leaf))):
            findings.append(f"`{jtu.keystr(path).lstrip('.')}` holds NaN.")
    return findings + problem.describe()
