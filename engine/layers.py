"""Layers as pure functions of arrays. Every one carries the trial axis G in front: G models, one program.

Shapes: G trials, B sequences, T tokens, D d_model, H query heads, K key/value heads, C head_dim, F d_ff, V vocabulary;
"..." any axes.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name


def embed(table_GVD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """Rows of the table, [G, B, T, D]; all trials read the same tokens."""
    return table_GVD[:, tokens_BT]


def rmsnorm(x: jax.Array, scale_GD: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale over the last axis of x [G, ..., D], computed in float32."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + jnp.float32(eps))
    scale = scale_GD.reshape(scale_GD.shape[0], *[1] * (x.ndim - 2), scale_GD.shape[1])
    return (x32 * scale).astype(x.dtype)


def rope_table(n_positions: int, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin, [T, C/2], of rotary positions (Su et al. 2021)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = jnp.arange(n_positions, dtype=jnp.float32)[:, None] * frequency[None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rope(x_GBTHC: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (c, c + C/2), as Llama's published weights have them. table: [T, C/2], or [B, T, C/2]."""
    cos, sin = (t[..., None, :].astype(x_GBTHC.dtype) for t in table)
    a, b = jnp.split(x_GBTHC, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def alibi_slopes(n_heads: int) -> np.ndarray:
    """The heads' slopes [H] (Press et al. 2022): 2^(-8 h / n), h = 1..n, n the largest power of two not above H; the
    others are every other one of the 2n heads' slopes."""
    n = 2 ** int(math.log2(n_heads))
    first = 2.0 ** (-8.0 * np.arange(1, n + 1) / n)
    rest = 2.0 ** (-4.0 * (2 * np.arange(n_heads - n) + 1) / n)
    return np.concatenate([first, rest]).astype(np.float32)


def alibi(n_positions: int, n_heads: int, *, sqrt: bool, queries: jax.Array | None = None) -> jax.Array:
    """Attention bias [H, T, T]: -slope (t - s) for query t and key s; sqrt: -slope sqrt(t - s), as in Step Law.

    queries: [Q], only those at these positions, [H, Q, T].
    """
    at = jnp.arange(n_positions, dtype=jnp.float32)
    distance_QT = jnp.maximum((at if queries is None else queries)[:, None] - at[None, :], 0.0)
    return -jnp.asarray(alibi_slopes(n_heads))[:, None, None] * (jnp.sqrt(distance_QT) if sqrt else distance_QT)[None]


def feed_forward(x_GBTD: jax.Array, gate_GDF: jax.Array | None, up_GDF: jax.Array, down_GFD: jax.Array) -> jax.Array:
    """down(silu(gate x) * up x) (SwiGLU, Shazeer 2020); without a gate down(gelu(up x)), gelu by its tanh form."""
    product = lambda w: checkpoint_name(jnp.einsum("gbtd,gdf->gbtf", x_GBTD, w), "ffn")  # noqa: E731
    gate, up = None if gate_GDF is None else product(gate_GDF), product(up_GDF)
    return jnp.einsum("gbtf,gfd->gbtd", activate(gate, up), down_GFD)


def activate(gate: jax.Array | None, up: jax.Array) -> jax.Array:
    """What a feed-forward does between its matrices."""
    return jax.nn.gelu(up, approximate=True) if gate is None else jax.nn.silu(gate) * up


def softcap(logits: jax.Array, cap: float) -> jax.Array:
    """cap tanh(logits / cap); 0 caps nothing."""
    return cap * jnp.tanh(logits / cap) if cap else logits
