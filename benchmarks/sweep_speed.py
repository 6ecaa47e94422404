"""Is the wall time of a grid foretold, and what does a sweep gain over a loop of single runs?

    python -m benchmarks.sweep_speed [forecast loop]

forecast: for each of three grids, with an empty cache, `sweep plan --measure` foretells and `sweep run` is timed, once
as its rows and once as the whole command.
loop: a grid of 16 trials as one sweep, as 16 commands `stepseer train` (two are timed), and as 16 calls of
`engine.train` in one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from experiments.grid import axis, ladder, prod, trials, zip_

RATES = ladder(1e-3, 8e-3, 2)
COMMANDS = 2  # of the loop, that are timed


def _base(seq_len: int, **changes: Any) -> TrainConfig:
    return TrainConfig(
        recipe="speed",
        model=ModelConfig(d_model=64, n_layers=2, n_heads=1),
        data=DataConfig(corpus="synthetic", seq_len=seq_len),
        optim=OptimConfig(warmup_steps=5),
        **changes,
    )


def _widths(values: list[int]) -> Any:
    return zip_(axis("model.d_model", values), axis("model.n_heads", [max(1, d // 64) for d in values]))


def widths() -> list[TrainConfig]:
    """Three widths, two budgets; 24 trials."""
    return trials(
        _base(128, batch_size=4), prod(_widths([32, 48, 64]), axis("tokens", [5e4, 1e5]), axis("optim.lr", RATES))
    )


def batches() -> list[TrainConfig]:
    """One width, two sequence lengths, three batches; 24 trials."""
    return trials(
        _base(64, tokens=4e4),
        prod(axis("data.seq_len", [64, 256]), axis("batch_size", [2, 8, 16]), axis("optim.lr", RATES)),
    )


def many() -> list[TrainConfig]:
    """Twelve widths, of which eight are measured at most; 48 trials."""
    return trials(
        _base(64, batch_size=8, tokens=2e4), prod(_widths([8 * k for k in range(1, 13)]), axis("optim.lr", RATES))
    )


def alike() -> list[TrainConfig]:
    """16 learning rates."""
    return trials(_base(64, batch_size=8, tokens=3e4), axis("optim.lr", ladder(1e-4, 1e-4 * 2**7.5, 2**0.5)))


def sweep(*words: str) -> Any:
    """The JSON of a `sweep` command."""
    said = subprocess.run(
        [sys.executable, "-m", "experiments", "sweep", *words, "--json"], check=True, stdout=subprocess.PIPE
    )
    return json.loads(said.stdout)


def forecast() -> None:
    print("| grid | cohorts, measured | forecast, s | rows, s | error | whole command, s |\n|---|---|---|---|---|---|")
    for name in ("widths", "batches", "many"):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["STEPSEER_CACHE"] = folder + "/cache"
            grid, out = f"{__file__}:{name}", folder + "/out"
            planned = sweep("plan", grid, "--measure")
            begun = time.monotonic()
            sweep("run", grid, "--out", out)
            whole = time.monotonic() - begun
            status = sweep("status", "--out", out)
            thought, took = status["forecast_s"], status["measured_s_of_done"]
            measured = planned["forecast"]["measured_cohorts"]
            print(
                f"| `{name}`, {planned['trials']} trials | {len(planned['cohorts'])}, {measured} | {thought:.1f} | "
                f"{took:.1f} | {thought / took - 1:+.0%} | {whole:.1f} |",
                flush=True,
            )


def loop() -> None:
    print("| 16 trials as | seconds | trials an hour |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STEPSEER_CACHE"] = folder + "/cache"
        begun = time.monotonic()
        sweep("run", f"{__file__}:alike", "--out", folder + "/out")
        _say("one sweep", time.monotonic() - begun)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STEPSEER_CACHE"] = folder + "/cache"
        begun = time.monotonic()
        for i in range(COMMANDS):
            recipe, rate = f"{__file__}:one", f"optim.lr={alike()[i].optim.lr}"
            words = ["train", recipe, "--set", rate, "--out", f"{folder}/{i}", "--json"]
            subprocess.run([sys.executable, "-m", "experiments", *words], check=True, stdout=subprocess.DEVNULL)
        _say(f"commands, {COMMANDS} timed", (time.monotonic() - begun) * 16 / COMMANDS)
        begun = time.monotonic()
        subprocess.run([sys.executable, "-m", "benchmarks.sweep_speed", "calls"], check=True)
        _say("calls of `engine.train` in one process", time.monotonic() - begun)


def one() -> TrainConfig:
    return alike()[0]


def calls() -> None:
    import engine

    with tempfile.TemporaryDirectory() as folder:
        for i, config in enumerate(alike()):
            engine.train(config, folder=Path(folder) / str(i))


def _say(how: str, seconds: float) -> None:
    print(f"| {how} | {seconds:.0f} | {16 * 3600 / seconds:,.0f} |", flush=True)


if __name__ == "__main__":
    for part in sys.argv[1:] or ["forecast", "loop"]:
        {"forecast": forecast, "loop": loop, "calls": calls}[part]()
