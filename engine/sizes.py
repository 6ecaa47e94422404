"""Parameter counts and training FLOPs, from shapes alone.

N is counted as Step Law does: attention and feed-forward matrices; no norms, no embeddings, no output head.
"""

from __future__ import annotations

from engine.config import ModelConfig


def non_embedding_params(model: ModelConfig) -> int:
    """N: parameters of the blocks' matrices (Step Law: n_layers (4 d_model^2 + 3 d_model d_ff) for multi-head)."""
    assert model.head_dim is not None and model.n_kv_heads is not None and model.d_ff is not None
    attention = model.d_model * model.head_dim * (2 * model.n_heads + 2 * model.n_kv_heads)
    return model.n_layers * (attention + 3 * model.d_model * model.d_ff)


def total_params(model: ModelConfig) -> int:
    """All parameters: N, norm scales, embedding and output head."""
    norms = (2 * model.n_layers + 1) * model.d_model
    tables = model.vocab_size * model.d_model * (1 if model.tied_embeddings else 2)
    return non_embedding_params(model) + norms + tables


def flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Training FLOPs (forward and backward) per token: 6 N + 12 n_layers seq_len d_attention + 6 vocab d_model.

    The first two terms are DeepSeek's M, which Step Law uses (attention counted without the causal half); the third
    is the output head. FLOP counts are floats: paper-scale ones overflow int64.
    """
    assert model.head_dim is not None
    attention = 12.0 * model.n_layers * seq_len * model.n_heads * model.head_dim
    return 6.0 * non_embedding_params(model) + attention + 6.0 * model.vocab_size * model.d_model
