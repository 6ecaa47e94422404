"""Step Law's mixtures of experts at this machine's scale: 4 sparsities at one N, 3 budgets, 2 batches, 5 rates.

Some 24,000 parameters in two layers, the first dense and experts in the second, with a shared one as wide as those that
a token is sent to: of the experts' width it sees 12, 22, 40 and 55%. The recipe is the quickstart's.
"""

from __future__ import annotations

from engine.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from engine.config import replace as with_changes
from experiments.grid import axis, ladder, prod, trials, zip_

EXPERTS = [(1, 16, 12, 12), (2, 16, 12, 24), (1, 4, 40, 40), (3, 8, 18, 54)]  # top_k, experts, their width, shared


def grid() -> list[TrainConfig]:
    base = TrainConfig(
        recipe="steplaw_moe_tiny",
        model=ModelConfig(d_model=24, n_layers=2, n_heads=1, n_experts=8, n_dense_layers=1),
        optim=OptimConfig(warmup_steps=0),
        data=DataConfig(seq_len=64),
        init_std=0.06,
        eval_sequences=512,
    )
    names = ("model.top_k", "model.n_experts", "model.d_expert", "model.d_shared")
    settings = prod(
        zip_(*(axis(name, values) for name, values in zip(names, zip(*EXPERTS)))),
        axis("tokens", [2.0**14, 2.0**15, 2.0**16]),
        axis("batch_size", [2, 4]),
        axis("optim.lr", ladder(2.0**-9.5, 2.0**-5.5, 2)),
    )
    return [with_changes(t, {"optim.warmup_steps": round(t.steps / 10)}) for t in trials(base, settings)]
