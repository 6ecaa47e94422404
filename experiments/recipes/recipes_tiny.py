"""Step Law's question of data recipes at this machine's scale: four mixes of prose and code, 5 rates, 3 batches.

The parts are Python's language reference (English) and its standard library (code); code has 5, 35, 60 and 100% of the
sequences, the first three about as in Step Law's mixes. Sizes and settings are those of the quickstart: one model of
13,824 parameters on 2^16 tokens. Does the best setting move with the data? `stepseer sweep table` marks the best run.
"""

from __future__ import annotations

from engine.config import DataConfig, ModelConfig, OptimConfig, TrainConfig, replace
from experiments.grid import axis, ladder, prod, trials

MIXES = {
    "prose": "manual:0.95,stdlib:0.05",
    "some_code": "manual:0.65,stdlib:0.35",
    "more_code": "manual:0.4,stdlib:0.6",
    "code": "stdlib",
}


def grid() -> list[TrainConfig]:
    base = TrainConfig(
        model=ModelConfig(d_model=24, n_heads=1, n_layers=2),
        data=DataConfig(seq_len=64),
        tokens=2.0**16,
        optim=OptimConfig(warmup_steps=0),
        init_std=0.06,
        eval_sequences=512,
    )
    settings = prod(axis("batch_size", [1, 2, 4]), axis("optim.lr", ladder(2.0**-9.5, 2.0**-5.5, 2)))
    found: list[TrainConfig] = []
    for name, corpus in MIXES.items():
        found += trials(replace(base, {"recipe": f"recipes_tiny_{name}", "data.corpus": corpus}), settings)
    return [replace(t, {"optim.warmup_steps": round(t.steps / 10)}) for t in found]
