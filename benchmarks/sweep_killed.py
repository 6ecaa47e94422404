"""A grid of 200 real models, killed (SIGKILL) three times at random moments and then finished: the same table?

    python -m benchmarks.sweep_killed [SEED]

Beside it the same grid undisturbed, with every trial trained from its beginning; the killed one shares trunks, so that
it may be killed in a trunk, between a trunk and its branches, and in a branch.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from engine.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from experiments import store
from experiments.grid import axis, ladder, prod, trials

GRID = f"{__file__}:grid"
KILLS = 3
CLOCK = ["wall_s", "device"]  # what two runs of the same trial may differ in


def grid() -> list[TrainConfig]:
    """2 widths, 5 budgets, 10 learning rates of which the last diverges, 2 seeds."""
    base = TrainConfig(
        recipe="killed",
        model=ModelConfig(d_model=16, n_layers=1, n_heads=1),
        data=DataConfig(corpus="synthetic", seq_len=32),
        optim=OptimConfig(schedule="wsd", warmup_steps=10),
        batch_size=4,
    )
    rates = [*ladder(1e-4, 1e-4 * 2**8, 2), 1e30]
    budgets = [128.0 * n for n in (100, 200, 400, 700, 1000)]
    return trials(
        base,
        prod(axis("model.d_model", [16, 32]), axis("tokens", budgets), axis("optim.lr", rates), axis("seed", [0, 1])),
    )


def start(out: Path, *options: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "experiments", "sweep", "run", GRID, "--out", str(out), *options]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main(seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        reference, killed = Path(folder) / "reference", Path(folder) / "killed"
        begun = time.monotonic()
        assert start(reference).wait() == 0
        whole = time.monotonic() - begun
        print(f"undisturbed: {len(store.load(reference).read())} trials in {whole:.0f} s", flush=True)
        kills = 0
        while kills < KILLS:
            process, moment = start(killed, "--trunks"), chance.uniform(0.1, 0.5) * whole
            try:
                process.wait(moment)
                raise SystemExit("it finished before it was killed; try another seed")
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            kills += 1
            done = len(store.load(killed).read()) if (killed / "grid.json").exists() else 0
            unfinished = len(list(killed.glob("checkpoints/*")))
            print(
                f"kill {kills}, {moment:.0f} s after its start: {done} trials done, checkpoints of {unfinished} chunks"
            )
        begun = time.monotonic()
        assert start(killed, "--trunks").wait() == 0
        print(f"finished in {time.monotonic() - begun:.0f} s", flush=True)
        tables = [store.load(path).read().drop(columns=CLOCK) for path in (reference, killed)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
        statuses = tables[0]["status"].value_counts().to_dict()
        print(f"the tables are equal, to the last bit of every loss: {len(tables[0])} rows, {statuses}")
        assert not list(killed.glob("checkpoints/*"))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
