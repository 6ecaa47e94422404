"""One mixture of Step Law's sparsity study: N 2.15B, 233M of them active (2 of 88 experts and a shared one); for pods.

Shape and recipe are the paper's but for rotary positions, as in `steplaw_1b`. Name your corpus:
`--set data.corpus=FOLDER`.
"""

from __future__ import annotations

import dataclasses

from engine import sizes
from engine.config import ComputeConfig, DataConfig, OptimConfig, TrainConfig


def grid() -> TrainConfig:
    return TrainConfig(
        recipe="moe_2b",
        model=dataclasses.replace(sizes.steplaw_moe_shapes()["2in88"], positions="rope"),
        optim=OptimConfig(lr=1e-3, warmup_steps=2000),
        data=DataConfig(tokenizer="bpe-65536", seq_len=2048),
        compute=ComputeConfig(remat="full"),
        batch_size=256,
        tokens=20e9,
        dtype="bfloat16",
    )
