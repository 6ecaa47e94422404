"""A trainer that trains nothing: rows are a function of the config. As a script: a slow sweep, to be killed."""

import sys
import time

import numpy as np

from engine.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from engine.row import make_row
from experiments import grid
from experiments.plan import make_plan
from experiments.runner import run
from experiments.store import create

BASE = TrainConfig(
    recipe="fake",
    model=ModelConfig(d_model=16, n_layers=1, n_heads=1),
    data=DataConfig(corpus="synthetic", seq_len=16),
    optim=OptimConfig(warmup_steps=2),
    batch_size=4,
    tokens=4 * 16 * 20,
)


def plan(n_lr=6, max_trials=2, base=BASE):
    """Two sizes by two budgets by n_lr learning rates: 4 * n_lr trials."""
    entries = grid.prod(
        grid.axis("model.d_model", [16, 32]),
        grid.axis("tokens", [1280, 2560]),
        grid.axis("optim.lr", grid.ladder(1e-3, 1e-3 * 2 ** (n_lr - 1), 2)),
    )
    return make_plan("fake", grid.trials(base, entries), max_trials=max_trials)


def row(config, wall_s=0.5):
    losses = np.linspace(5, 3 + 100 * config.optim.lr, config.steps)
    return make_row(
        config, losses=losses, eval_loss=float(losses[-1]), chars_per_token=1.0, diverged_at=None, wall_s=wall_s
    )


def trainer(chunk, folder, on_progress):
    return [row(t) for t in chunk.trials]


def without_clock(rows):
    """Rows without what may differ between two runs of the same sweep: how long it took, on which machine."""
    return rows.drop(columns=["wall_s", "device"])


REPORT_S = float(sys.argv[2]) if len(sys.argv) > 2 and __name__ == "__main__" else 0.01


def _slow(chunk, folder, on_progress):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").write_text("half")
    with open(folder.parent.parent.with_suffix(".log"), "a") as log:
        log.write(chunk.id + "\n")
    for _ in range(4):
        time.sleep(REPORT_S)
        on_progress(None)
    return trainer(chunk, folder, on_progress)


if __name__ == "__main__":
    out = sys.argv[1]
    the_plan = plan()
    print("ready", flush=True)
    summary = run(the_plan, create(out, the_plan), trainer=_slow)
    sys.exit(130 if summary.interrupted else 0)
