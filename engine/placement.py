"""Where arrays of a traced program live: constraints and per-device code, by the mesh in context (`within`).

Without a mesh, or on one device, everything here does nothing. Mesh axes are those of `engine.mesh`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

AXES = ("trial", "data", "fsdp", "expert", "tensor")
BATCH = ("data", "fsdp", "expert")  # the axes that a batch is divided over


def within(mesh: Mesh, f: Callable[..., Any]) -> Callable[..., Any]:
    """f, traced with `mesh` in context."""

    def traced(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return f(*args)

    return traced


def tokenwise(x: jax.Array) -> jax.Array:
    """x [G, B, ...] divided by trials and sequences only.

    Left alone, the partitioner may divide activations as the weights are, and gather the batch.
    """
    return jax.lax.with_sharding_constraint(x, P("trial", BATCH)) if _divided() else x


def per_device(f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """f of each device's own part, for what the partitioner can't divide (kernels, sorts)."""
    return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False) if _divided() else f


def _divided() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1
