"""One mixture of experts: 3M non-embedding parameters, 1M of them active, for `stepseer train`.

Like Step Law's mixtures: the first layer dense, then a shared expert and 2 of 16 routed ones.
"""

from __future__ import annotations

from engine.config import DataConfig, ModelConfig, OptimConfig, TrainConfig


def grid() -> TrainConfig:
    return TrainConfig(
        recipe="moe_1m",
        model=ModelConfig(
            d_model=160,
            n_layers=3,
            n_heads=5,
            vocab_size=1024,
            positions="sqrt_alibi",
            n_dense_layers=1,
            n_experts=16,
            top_k=2,
            d_expert=144,
            d_shared=144,
        ),
        optim=OptimConfig(lr=3e-3, warmup_steps=50),
        data=DataConfig(tokenizer="bpe-1024", seq_len=256),
        batch_size=16,
        tokens=4e6,
    )
