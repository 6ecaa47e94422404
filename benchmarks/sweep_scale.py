"""How long `sweep plan`, `status` and `table` take for a grid of 100,000 trials whose rows are all in the folder.

    python -m benchmarks.sweep_scale [FOLDER]      # kept there; by default a temporary one

The grid is 40 shapes by 10 batches by 10 budgets by 25 learning rates; its rows, 8,000 parts, are made up. Each command
runs in a process of its own, as a user runs it: start and imports are counted.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from experiments import store
from experiments.grid import axis, ladder, prod, trials, zip_
from experiments.plan import make_plan

GRID = f"{__file__}:grid"
COMMANDS = (["plan", GRID], ["plan", GRID, "--out", "{out}"], ["status", "--out", "{out}"], ["table", "--out", "{out}"])


def grid() -> list[TrainConfig]:
    base = TrainConfig(
        recipe="scale",
        model=ModelConfig(d_model=64, n_layers=1, n_heads=1),
        data=DataConfig(corpus="synthetic", seq_len=128),
        optim=OptimConfig(warmup_steps=2),
    )
    widths = [(64 * k, layers) for k in range(1, 11) for layers in (2, 4, 6, 8)]
    shapes = zip_(
        axis("model.d_model", [w for w, _ in widths]),
        axis("model.n_heads", [w // 64 for w, _ in widths]),
        axis("model.n_layers", [layers for _, layers in widths]),
    )
    return trials(
        base,
        prod(
            shapes,
            axis("batch_size", [2**k for k in range(10)]),
            axis("tokens", ladder(2**20, 2**29, 2)),
            axis("optim.lr", ladder(1e-4, 1e-4 * 2**12, 2**0.5)),
        ),
    )


def fill(out: Path) -> None:
    """All rows, of made-up losses."""
    plan = make_plan(GRID, grid())
    folder = store.create(out, plan)
    if not any(out.glob("parts/*")):
        for chunk in plan.chunks:
            folder.write_part(chunk.id, [_row(t) for t in chunk.trials])


def _row(config: TrainConfig) -> dict[str, Any]:
    import numpy as np

    from engine.row import make_row

    loss = 2 + 1 / config.model.d_model + abs(config.optim.lr - 1e-2)
    return make_row(config, losses=np.full(4, loss), eval_loss=loss, chars_per_token=1.0, diverged_at=None, wall_s=1.0)


def measure(words: list[str]) -> tuple[float, float]:
    """Seconds on the clock and of processors."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-m", "experiments", "sweep", *words], check=True, stdout=subprocess.DEVNULL)
    spent, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(out: Path) -> None:
    fill(out)
    print("| command | seconds | seconds of processors |\n|---|---|---|")
    for words in COMMANDS:
        wall, processor = measure([word.format(out=out) for word in words])
        said = " ".join(word.format(out="DIR").replace(GRID, "GRID") for word in words)
        print(f"| `sweep {said}` | {wall:.1f} | {processor:.1f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder) / "out")
