"""Causal attention, one signature. Attention has no parameters, so the trial axis folds into the batch."""

from __future__ import annotations

import jax


def attention(
    q_GBTHC: jax.Array, k_GBTKC: jax.Array, v_GBTKC: jax.Array, bias_HTT: jax.Array | None = None
) -> jax.Array:
    """softmax(q k^T / sqrt(C) + bias) v, causal, H a multiple of K (grouped-query); softmax in float32.

    bias_HTT: float32, of query t for key s, all trials alike (ALiBi); only s <= t is read. Returns [G, B, T, H, C].
    """
    fold = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
    bias = None if bias_HTT is None else bias_HTT[None]
    out = jax.nn.dot_product_attention(fold(q_GBTHC), fold(k_GBTKC), fold(v_GBTKC), bias, is_causal=True)
    return out.reshape(q_GBTHC.shape)
