"""Layers as pure functions of arrays. Every one carries the trial axis G in front: G models, one program.

Shapes: G trials, B sequences, T tokens, D d_model, H query heads, K key/value heads, C head_dim, F d_ff, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def embed(table_GVD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """Rows of the table, [G, B, T, D]; all trials read the same tokens."""
    return table_GVD[:, tokens_BT]


def rmsnorm(x_GBTD: jax.Array, scale_GD: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale, computed in float32."""
    x = x_GBTD.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + jnp.float32(eps))
    return (x * scale_GD[:, None, None, :]).astype(x_GBTD.dtype)


def rope_table(n_positions: int, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin, [T, C/2], of rotary positions (Su et al. 2021)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = jnp.arange(n_positions, dtype=jnp.float32)[:, None] * frequency[None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rope(x_GBTHC: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (c, c + C/2), as Llama's published weights have them."""
    cos, sin = (t[None, None, :, None, :].astype(x_GBTHC.dtype) for t in table)
    a, b = jnp.split(x_GBTHC, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def swiglu(x_GBTD: jax.Array, gate_GDF: jax.Array, up_GDF: jax.Array, down_GFD: jax.Array) -> jax.Array:
    """down(silu(gate x) * up x) (Shazeer 2020)."""
    gate = jnp.einsum("gbtd,gdf->gbtf", x_GBTD, gate_GDF)
    up = jnp.einsum("gbtd,gdf->gbtf", x_GBTD, up_GDF)
    return jnp.einsum("gbtf,gfd->gbtd", jax.nn.silu(gate) * up, down_GFD)
