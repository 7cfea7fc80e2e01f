"""Solving on many devices."""

from .sharding import sharded_vmap as sharded_vmap

__all__ = ["sharded_vmap"]
