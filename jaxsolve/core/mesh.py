"""Mesh axes inside `shard_map(check_vma=True)`: a loop's carry and constants must keep one type."""

import equinox as eqx
import jax
from jaxtyping import Array, PyTree


def varying(tree: PyTree[Array]) -> frozenset[str]:
    """The mesh axes over which any leaf varies."""
    types = [x for x in jax.tree.leaves(tree) if not isinstance(x, jax.ShapeDtypeStruct)]
    return frozenset().union(*(jax.typeof(x).mat.varying for x in types))


def vary(tree: PyTree[Array], axes: frozenset[str]) -> PyTree[Array]:
    """Cast every leaf to vary over `axes` too."""

    def cast(x: Array) -> Array:
        missing = tuple(sorted(axes - jax.typeof(x).mat.varying))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree) if axes else tree


def joined(tree: PyTree) -> tuple[PyTree, frozenset[str]]:
    """The tree, all of its arrays varying over the axes over which any does, and these axes."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    axes = varying(arrays)
    return eqx.combine(vary(arrays, axes), rest), axes
