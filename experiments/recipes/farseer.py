"""Farseer's ladder of N by D at its own scale: sizes and budgets by factors of root two, one run each; for clusters.

Learning rate and batch are Step Law's published ones, as in the paper. Budgets reach from 1B to 512B tokens and to
3.5e21 FLOPs (6 N D), about where the paper's table ends.
"""

from __future__ import annotations

import dataclasses

from engine import sizes
from engine.config import TrainConfig
from experiments.grid import ladder, trials
from experiments.recipes.steplaw_dense import WARMUP, base
from laws.published import SETTINGS

FLOPS = 3.5e21


def grid() -> list[TrainConfig]:
    law = SETTINGS["steplaw"]
    assert law.lr is not None and law.batch_tokens is not None
    found: list[TrainConfig] = []
    for model in sizes.farseer_shapes().values():
        N = sizes.non_embedding_params(model)
        for D in ladder(1e9, 5.13e11, 2**0.5):
            batch = max(1, round(float(law.batch_tokens(tokens=D)) / 2048))
            if 6 * N * D <= FLOPS and 2 * WARMUP * 2048 * batch <= D:
                entry = {"tokens": D, "optim.lr": float(law.lr(params=N, tokens=D)), "batch_size": batch}
                found += trials(dataclasses.replace(base("farseer"), model=model), [entry])
    return found
