"""The quickstart's grid: 5 sizes, 3 token budgets, 5 learning rates and 3 batch sizes in a few minutes.

Models of 3k to 55k parameters (non-embedding) on the bytes of Python's standard library; the learning rates and the
batches (64 to 256 tokens) lie around the best ones of such models. The recipe is Step Law's (cosine to 1e-5, AdamW)
but for two things that short runs of narrow models need: a warm-up of a tenth of the steps, and initial weights of
standard deviation 0.06 (at 0.02 they stay on a plateau for much of the run).
"""

from __future__ import annotations

from engine.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from engine.config import replace as with_changes
from experiments.grid import axis, ladder, prod, trials, where, zip_

WIDTHS = [12, 16, 24, 32, 48]
HEADS = [1, 1, 1, 2, 3]
TOKENS = [2.0**16, 2.0**17, 2.0**18]
SEQUENCES = [1, 2, 4]  # a batch, of 64 tokens each
LARGEST_BATCH_WIDTHS = WIDTHS[:3]  # for the others the largest batch is far from the best


def grid() -> list[TrainConfig]:
    base = TrainConfig(
        recipe="quickstart",
        model=ModelConfig(n_layers=2),
        optim=OptimConfig(warmup_steps=0),
        data=DataConfig(seq_len=64),
        init_std=0.06,
        eval_sequences=512,
    )
    settings = prod(
        zip_(axis("model.d_model", WIDTHS), axis("model.n_heads", HEADS)),
        axis("tokens", TOKENS),
        axis("batch_size", SEQUENCES),
        axis("optim.lr", ladder(2.0**-9.5, 2.0**-5.5, 2)),
    )
    tried = where(lambda t: t["batch_size"] < SEQUENCES[-1] or t["model.d_model"] in LARGEST_BATCH_WIDTHS, settings)
    return [with_changes(t, {"optim.warmup_steps": round(t.steps / 10)}) for t in trials(base, tried)]
