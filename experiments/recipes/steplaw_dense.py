"""Step Law's dense grid at its own scale: 17 cells of N and D, 12 learning rates by 10 batch sizes; for clusters.

The cells are those that its authors released, the rungs half-powers of two and their batch sizes. Runs of fewer steps
than twice the warm-up are left out. Square-root ALiBi, vocabulary and schedule are the paper's. Name your corpus by
`--set`-ting it in a grid of your own: `[replace(c, {"data.corpus": FOLDER}) for c in steplaw_dense.grid()]`.
"""

from __future__ import annotations

import dataclasses

from engine import sizes
from engine.config import ComputeConfig, DataConfig, OptimConfig, TrainConfig
from experiments.grid import axis, prod, trials, where

WARMUP = 2000
TOKENS = {
    "215M": (4e9, 11.4e9, 20e9, 100e9),
    "268M": (5e9, 14.2e9, 25e9, 80e9),
    "429M": (8e9, 22.7e9, 40e9, 50e9),
    "537M": (10e9, 28.4e9, 50e9),
    "1074M": (20e9, 56.9e9),
}
RATES = [2.0 ** (k / 2) for k in range(-22, -10)]  # 2^-11 to 2^-5.5
BATCHES = [32, 64, 96, 128, 192, 256, 352, 512, 736, 1024]  # sequences of 2048


def base(recipe: str) -> TrainConfig:
    """What both papers' runs have in common."""
    return TrainConfig(
        recipe=recipe,
        optim=OptimConfig(warmup_steps=WARMUP),
        data=DataConfig(tokenizer="bpe-65536", seq_len=2048),
        compute=ComputeConfig(remat="full"),
        tokens=1e10,
        dtype="bfloat16",
    )


def long_enough(entry: dict) -> bool:
    return entry["tokens"] >= 2 * WARMUP * 2048 * entry["batch_size"]


def grid() -> list[TrainConfig]:
    settings = prod(axis("batch_size", BATCHES), axis("optim.lr", RATES))
    found: list[TrainConfig] = []
    for name, model in sizes.steplaw_shapes().items():
        cells = where(long_enough, prod(axis("tokens", TOKENS[name]), settings))
        found += trials(dataclasses.replace(base("steplaw_dense"), model=model), cells)
    return found
