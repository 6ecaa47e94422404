"""A script: training that is killed again and again. Prints what happened as JSON.

It imports all once and then forks a child for every start, which trains in a folder and is sent SIGKILL: half of them
at any moment, half of them while a checkpoint is half written. Nothing of JAX runs before the fork.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

import engine
from engine import DataConfig, ModelConfig, OptimConfig, TrainConfig

KILLS = 20
HYPERS = [{}, {"optim.lr": 3e-3, "seed": 5}]
CONFIG = TrainConfig(
    model=ModelConfig(d_model=16, n_layers=2, n_heads=2, vocab_size=257),
    data=DataConfig(corpus="synthetic", seq_len=16),
    optim=OptimConfig(lr=1e-2, warmup_steps=3),
    batch_size=4,
    tokens=4 * 16 * 240,
    eval_sequences=8,
)


def start(folder, out, save_every_s):
    """The process id of a child that trains; when done it writes params and metrics to `out`."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        engine.loop.MAX_CALL_STEPS = 4
        results = engine.train_population(CONFIG, HYPERS, folder=folder, save_every_s=save_every_s)
        arrays = {}
        for g, result in enumerate(results):
            arrays |= {f"{g}/{name}": values for name, values in result.metrics.items()}
            arrays |= {f"{g}/{name}": values for name, values in _flat(result.params)}
            arrays |= {f"{g}/row/{name}": np.asarray(result.row[name]) for name in ("loss", "eval_loss")}
        np.savez(out, **arrays)
        code = 0
    finally:
        os._exit(code)


def _flat(tree, path="params"):
    for name, value in tree.items():
        yield from _flat(value, f"{path}/{name}") if isinstance(value, dict) else [(f"{path}/{name}", value)]


def half_written(folder):
    return {p.name for p in folder.glob("*.orbax-checkpoint-tmp")}


def newest(folder):
    return max((int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit()), default=0)


def main(where):
    folder, chance = where / "killed", random.Random(0)
    began = time.monotonic()
    reference = start(where / "undisturbed", where / "undisturbed.npz", 60)
    assert os.waitpid(reference, 0)[1] == 0
    whole = time.monotonic() - began
    told = {"kills": 0, "in_saves": 0, "reached": [], "undisturbed_s": round(whole, 2)}
    warm = None  # seconds from a start to its first save, once programs are in the cache
    while told["kills"] < KILLS:
        before, reached, began = half_written(folder), newest(folder), time.monotonic()
        child = start(folder, where / "killed.npz", 0)
        if told["kills"] % 2 and warm is not None:
            moment = began + chance.uniform(0, 2 * warm)
            while time.monotonic() < moment and newest(folder) < reached + 16:
                time.sleep(0.002)
        else:
            while not half_written(folder) - before:
                time.sleep(0.0005)
            warm = warm or time.monotonic() - began
            time.sleep(chance.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it finished before it was killed; give it more steps"
        told["kills"] += 1
        told["in_saves"] += bool(half_written(folder) - before)
        told["reached"].append(newest(folder))
    last = start(folder, where / "killed.npz", 60)
    told["exit"] = os.waitstatus_to_exitcode(os.waitpid(last, 0)[1])
    told["left"] = sorted(p.name for p in folder.iterdir())
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
