"""Farseer's ladder at this machine's scale: 5 sizes by 6 budgets, by factors of root two; some 15 minutes on two cores.

One learning rate and batch for all, near the best of the quickstart's grid. Enough points to try a fit of Farseer.
"""

from __future__ import annotations

from engine.config import DataConfig, OptimConfig, TrainConfig
from experiments.grid import axis, ladder, prod, trials, zip_


def grid() -> list[TrainConfig]:
    base = TrainConfig(
        recipe="farseer_tiny",
        data=DataConfig(seq_len=128),
        optim=OptimConfig(lr=5e-3, warmup_steps=20),
        batch_size=16,
    )
    widths = [32, 48, 64, 96, 128]
    shapes = zip_(
        axis("model.d_model", widths),
        axis("model.n_heads", [w // 16 for w in widths]),
        axis("model.n_layers", [2, 2, 3, 3, 4]),
    )
    return trials(base, prod(shapes, axis("tokens", ladder(5e5, 2.9e6, 2**0.5))))
