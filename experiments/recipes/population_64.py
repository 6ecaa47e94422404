"""64 trials in one program: Step Law's smallest shape (N 215M), 8 learning rates by 8 weight decays; for pods.

All trials read the same batches, so that a slice of 64 chips trains each on a chip of its own, without a message:
`stepseer sweep run population_64 --max-trials 64 --out DIR`. Rotary positions, as in `steplaw_1b`.
"""

from __future__ import annotations

import dataclasses

from engine import sizes
from engine.config import ComputeConfig, DataConfig, OptimConfig, TrainConfig
from experiments.grid import axis, ladder, prod, trials

RATES = ladder(2.0**-11, 2.0**-7.5, 2**0.5)
DECAYS = ladder(0.0125, 1.6, 2.0)


def grid() -> list[TrainConfig]:
    base = TrainConfig(
        recipe="population_64",
        model=dataclasses.replace(sizes.steplaw_shapes()["215M"], positions="rope"),
        optim=OptimConfig(warmup_steps=500),
        data=DataConfig(tokenizer="bpe-65536", seq_len=2048),
        compute=ComputeConfig(remat="full", micro_batch=8),
        batch_size=64,
        tokens=5e9,
        dtype="bfloat16",
    )
    return trials(base, prod(axis("optim.lr", RATES), axis("optim.weight_decay", DECAYS)))
