"""12 models in under a minute: 2 sizes, 2 budgets, 3 learning rates on the embedded corpus.

A small grid to try the sweep commands on; too small for a law.
"""

from __future__ import annotations

from engine.config import DataConfig, OptimConfig, TrainConfig
from experiments.grid import axis, ladder, prod, trials, zip_


def grid() -> list[TrainConfig]:
    base = TrainConfig(
        recipe="tiny",
        data=DataConfig(seq_len=128),
        optim=OptimConfig(warmup_steps=10),
        batch_size=16,
    )
    shapes = zip_(axis("model.d_model", [32, 64]), axis("model.n_heads", [1, 2]))
    return trials(base, prod(shapes, axis("tokens", [100_000, 200_000]), axis("optim.lr", ladder(2e-3, 8e-3, 2))))
