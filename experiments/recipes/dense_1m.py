"""One model of about a million non-embedding parameters on the embedded corpus, for `stepseer train`."""

from __future__ import annotations

from engine.config import DataConfig, ModelConfig, OptimConfig, TrainConfig


def grid() -> TrainConfig:
    return TrainConfig(
        recipe="dense_1m",
        model=ModelConfig(d_model=160, n_layers=3, n_heads=5, vocab_size=1024),
        optim=OptimConfig(lr=3e-3, warmup_steps=50),
        data=DataConfig(tokenizer="bpe-1024", seq_len=256),
        batch_size=16,
        tokens=4e6,
    )
