"""One model of Step Law's largest shape: N 1.07B, 20B tokens, at the law's own batch; for pods.

Shape, recipe and vocabulary are the paper's; positions are rotary, as no fused kernel takes its square-root ALiBi
(`--set model.positions=sqrt_alibi` has it). Name your corpus: `--set data.corpus=FOLDER`.
"""

from __future__ import annotations

import dataclasses

from engine import sizes
from engine.config import ComputeConfig, DataConfig, OptimConfig, TrainConfig


def grid() -> TrainConfig:
    return TrainConfig(
        recipe="steplaw_1b",
        model=dataclasses.replace(sizes.steplaw_shapes()["1074M"], positions="rope"),
        optim=OptimConfig(lr=1.381e-3, warmup_steps=2000),  # the grid's best at these tokens
        data=DataConfig(tokenizer="bpe-65536", seq_len=2048),
        compute=ComputeConfig(remat="full"),
        batch_size=256,
        tokens=20e9,
        dtype="bfloat16",
    )
