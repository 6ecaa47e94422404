"""Where arrays of a traced program live: constraints and per-device code, by the mesh in context (`within`).

Without a mesh, or on one device, everything here does nothing. Mesh axes are those of `engine.mesh`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

AXES = ("copy", "trial", "data", "fsdp", "expert", "sequence", "tensor")  # copy: all of it again on other devices
BATCH = ("data", "fsdp", "expert")  # the axes that the sequences of a batch are divided over
TOKENS = ("sequence", *BATCH)  # and those of `flat` tokens


def within(mesh: Mesh, f: Callable[..., Any]) -> Callable[..., Any]:
    """f, traced with `mesh` in context."""

    def traced(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return f(*args)

    traced.__name__ = getattr(f, "func", f).__name__  # of the compiled program, in traces and caches
    return traced


def tokenwise(x: jax.Array) -> jax.Array:
    """x [G, B, T, ...] divided by trials, sequences and positions only.

    Left alone, the partitioner may divide activations as the weights are, and gather the batch.
    """
    return jax.lax.with_sharding_constraint(x, P("trial", BATCH, "sequence")) if _divided() else x


def whole_sequences(x: jax.Array) -> jax.Array:
    """x [G, B, T, H, ...] with all positions of its sequences on every device that has a part of them."""
    return jax.lax.with_sharding_constraint(x, P("trial", BATCH, None, "tensor")) if _divided() else x


def parts() -> int:
    """How many devices share a sequence."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("sequence", 1)


def flat(x: jax.Array, at: int) -> jax.Array:
    """[..., B, T, ...] with B at axis `at` as [..., S, ...]: the sequences' parts one after the other, so that a
    device's tokens stay together (TOKENS)."""
    before, (b, t), after = x.shape[:at], x.shape[at : at + 2], x.shape[at + 2 :]
    x = jnp.swapaxes(x.reshape(*before, b, parts(), t // parts(), *after), at, at + 1)
    return x.reshape(*before, b * t, *after)


def unflat(x: jax.Array, at: int, b: int) -> jax.Array:
    """The inverse of `flat`, for b sequences."""
    before, after = x.shape[:at], x.shape[at + 1 :]
    x = jnp.swapaxes(x.reshape(*before, parts(), b, -1, *after), at, at + 1)
    return x.reshape(*before, b, -1, *after)


def per_device(
    f: Callable[..., Any], in_specs: Any, out_specs: Any, *, summed: str | None = None
) -> Callable[..., Any]:
    """f of each device's own part, for what the partitioner can't divide (kernels, sorts).

    The specs' first axis is the trials'. summed: a mesh axis whose devices each have one term of the result.
    """
    if not _divided():
        return f
    sizes = dict(jax.sharding.get_abstract_mesh().shape)

    def whole(spec: P) -> P:
        """With all axes of one device named: gradients are summed over those that are not, by a collective."""
        named = {name for entry in spec for name in (entry if isinstance(entry, tuple) else (entry,))}
        return P(("trial", *(a for a, n in sizes.items() if n == 1 and a not in named)), *spec[1:])

    is_spec = lambda x: isinstance(x, P)  # noqa: E731
    in_specs, out_specs = (jax.tree.map(whole, specs, is_leaf=is_spec) for specs in (in_specs, out_specs))
    part = f if summed is None or sizes[summed] == 1 else lambda *args: jax.lax.psum(f(*args), summed)
    return jax.shard_map(part, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def gather(x: jax.Array, **dims: int) -> jax.Array:
    """Within `per_device`: x whole along the dimensions that mesh axes divide, as {axis: dimension}."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    for axis, dim in dims.items():
        if sizes.get(axis, 1) > 1:
            x = jax.lax.all_gather(x, axis, axis=dim, tiled=True)
    return x


def _divided() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1
