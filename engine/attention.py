"""Causal attention, one signature. Attention has no parameters, so the trial axis folds into the batch."""

from __future__ import annotations

import jax


def attention(q_GBTHC: jax.Array, k_GBTKC: jax.Array, v_GBTKC: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(C)) v, causal, H a multiple of K (grouped-query); softmax in float32. [G, B, T, H, C]"""
    fold = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
    out = jax.nn.dot_product_attention(fold(q_GBTHC), fold(k_GBTKC), fold(v_GBTKC), is_causal=True)
    return out.reshape(q_GBTHC.shape)
