"""Step Law's mixtures of experts at its own scale: 4 sparsities at N of 2.15B, 4 budgets, 9 rates by 5 batches.

Runs of fewer steps than twice the warm-up are left out. As `steplaw_dense`, for clusters.
"""

from __future__ import annotations

import dataclasses

from engine import sizes
from engine.config import TrainConfig
from experiments.grid import axis, prod, trials, where
from experiments.recipes.steplaw_dense import base, long_enough

TOKENS = (2e9, 4e9, 8e9, 20e9)
RATES = [2.0 ** (k / 2) for k in range(-25, -16)]  # 2^-12.5 to 2^-8.5
BATCHES = [32, 64, 128, 256, 512]  # sequences of 2048


def grid() -> list[TrainConfig]:
    entries = prod(axis("tokens", TOKENS), axis("batch_size", BATCHES), axis("optim.lr", RATES))
    kept = where(long_enough, entries)
    shapes = sizes.steplaw_moe_shapes().values()
    return [t for model in shapes for t in trials(dataclasses.replace(base("steplaw_moe"), model=model), kept)]
