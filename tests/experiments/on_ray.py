"""Trainers for the processes of a Ray cluster. As a script: a small real sweep with many checkpoints, to be killed."""

import os
import signal
import sys
import time
from pathlib import Path

import engine
from engine.history import Progress
from experiments.errors import InputError

from . import fakes, real


def often(chunk, folder, on_progress, *, logs):
    """The real trainer, with a checkpoint every fifth of a second."""
    how = {"folder": folder, "on_progress": on_progress, "logs": logs, "save_every_s": 0.2}
    return [result.row for result in engine.train_population(chunk.base, chunk.hypers, **how)]


def scripted(chunk, folder, on_progress, *, logs, stage):
    """stage: a folder. STAGE/CHUNK says what happens first; STAGE/CHUNK.began has a line a start: its process.

    wait: reports until the file is gone. die: as by the kernel's hand. large: out of memory, if it
    is of more than one trial. full: the disk is. input: the data is not there.
    """
    stage = Path(stage)
    with open(stage / f"{chunk.id}.began", "a") as file:
        file.write(f"{os.getpid()}\n")
    said = stage / chunk.id
    doing = said.read_text() if said.exists() else ""
    steps = int((folder / "step").read_text()) if (folder / "step").exists() else 0
    for _ in range(6000):
        steps += 1
        try:
            on_progress(Progress(steps, 10_000, 1.0, 1.0, 1.0))
        finally:
            (folder / "step").write_text(str(steps))
        if doing == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if doing == "raise":
            raise RuntimeError("bad luck")
        if doing == "large" and len(chunk.trials) > 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 3 GiB")
        if doing == "full":
            raise OSError(28, "No space left on device", "/data")
        if doing == "input":
            raise InputError("no corpus 'x' here")
        if doing != "wait" or not said.exists():
            break
        time.sleep(0.01)
    for trial in chunk.trials:
        (logs / trial.run_id).mkdir(parents=True, exist_ok=True)
        (logs / trial.run_id / "metrics.jsonl").write_text(f"{trial.optim.lr}\n")
    return [fakes.row(trial) for trial in chunk.trials]


if __name__ == "__main__":
    from experiments import progress, runner, store
    from experiments.backends import ray

    out, address = sys.argv[1:]
    with ray.cluster(address, {"CPU": 2}, trainer=often) as chunks, progress.watcher(quiet=False) as watcher:
        runner.run(real.plan(), store.create(out, real.plan()), backend=chunks, watcher=watcher)
