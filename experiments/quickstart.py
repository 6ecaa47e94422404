"""The whole loop once: ask a law, train a grid, fit three laws to it, hold out the largest models, write a report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import laws
from experiments import plan as plan_lib
from experiments import recipes, runner, store
from experiments.runner import Summary, Watcher

LAWS = ("steplaw", "chinchilla", "farseer")
QUERY = {"params": 7e9, "tokens": 1.4e12}
TARGET = "eval_loss"  # of tiny runs: the last training losses are of too few tokens to tell learning rates apart
RECIPE = "quickstart"
Stage = Callable[[str], AbstractContextManager[Any]]


@dataclass
class Findings:
    """What the quickstart found, for the terminal, for JSON and for the report."""

    runs: pd.DataFrame
    posteriors: dict[str, laws.Posterior] = field(default_factory=dict)
    backtests: dict[str, Any] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)  # in words: a law that the grid is too small for
    report: Path | None = None


def train(out: Path, watcher: Watcher) -> Summary:
    """Trains the grid into a results folder, or what is left of it."""
    plan = plan_lib.make_plan(RECIPE, recipes.load(RECIPE))
    runner.check_data(plan.trials, watcher)
    return runner.run(plan, store.create(out, plan), watcher=watcher)


def study(out: Path, stage: Stage) -> Findings:
    """Fits and holds out, on the runs in `out`, then writes out/report.html. A law that refuses says why.

    stage: a context manager for each piece of work, given its description; yields what `laws.fit` takes as progress.
    """
    from laws import report

    found = Findings(laws.load_runs(out))
    for law in LAWS:
        try:
            with stage(f"fitting {law}") as progress:
                found.posteriors[law] = laws.fit(law, found.runs, target=TARGET, progress=progress)
        except laws.FitError as error:
            found.refusals.append(f"{law} was not fitted: {error}")
        try:
            with stage(f"{law}, the largest models held out"):
                found.backtests[law] = laws.backtest(law, found.runs, heldout="params", target=TARGET)
        except laws.FitError as error:
            found.refusals.append(f"{law} was not held out: {error}")
    with stage("drawing the report"):
        found.report = report.write(
            out / "report.html",
            found.runs,
            posteriors=found.posteriors,
            backtests=found.backtests,
            notes=found.refusals,
            target=TARGET,
        )
    return found
