"""12 models in about a minute: dense, top 1 of 8 and top 2 of 8 experts, 2 budgets, 2 learning rates.

The three have about the same active parameters; only what lies idle differs. Too small for a law, enough to try
`params_active`, `n_experts` and `top_k` in a run table.
"""

from __future__ import annotations

from engine.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from experiments.grid import axis, prod, trials, zip_


def grid() -> list[TrainConfig]:
    base = TrainConfig(
        recipe="moe_tiny",
        model=ModelConfig(d_model=32, n_layers=2, n_heads=1, d_ff=96),
        data=DataConfig(seq_len=128),
        optim=OptimConfig(warmup_steps=10),
        batch_size=16,
    )
    shapes = zip_(
        axis("model.n_experts", [1, 8, 8]), axis("model.top_k", [1, 1, 2]), axis("model.d_expert", [None, 96, 48])
    )
    return trials(base, prod(shapes, axis("tokens", [100_000, 200_000]), axis("optim.lr", [3e-3, 6e-3])))
