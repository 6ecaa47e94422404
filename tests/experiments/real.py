"""A script: a small real sweep with frequent checkpoints, to be killed."""

import sys

import engine
from experiments import grid
from experiments.plan import make_plan
from experiments.runner import run
from experiments.store import create

from . import fakes


def plan():
    """Three budgets by four learning rates, one of which diverges: 12 trials in 6 chunks of one program."""
    entries = grid.prod(
        grid.axis("tokens", [64 * 300, 64 * 600, 64 * 900]),
        grid.axis("optim.lr", [1e-3, 4e-3, 1.6e-2, 1e30]),
    )
    return make_plan("real", grid.trials(fakes.BASE, entries), max_trials=2)


def trainer(chunk, folder, on_progress):
    print(chunk.id, flush=True)
    return quiet(chunk, folder, on_progress)


def quiet(chunk, folder, on_progress):
    results = engine.train_population(
        chunk.base,
        chunk.hypers,
        folder=folder,
        on_progress=on_progress,
        save_every_s=0.05,
        logs=folder.parent.parent / "logs",
    )
    return [r.row for r in results]


if __name__ == "__main__":
    summary = run(plan(), create(sys.argv[1], plan()), trainer=trainer)
    sys.exit(130 if summary.interrupted else 0)
