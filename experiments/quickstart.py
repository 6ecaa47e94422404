"""The whole loop once: ask a law, train a grid, fit three laws to it, hold out the largest models, write a report."""

from __future__ import annotations

from pathlib import Path

from experiments import plan as plan_lib
from experiments import recipes, runner, store
from experiments.runner import Summary, Watcher
from experiments.study import Findings, Stage
from experiments.study import study as study_runs

QUERY = {"params": 7e9, "tokens": 1.4e12}
TARGET = "eval_loss"  # of tiny runs: the last training losses are of too few tokens to tell learning rates apart
RECIPE = "quickstart"


def train(out: Path, watcher: Watcher) -> Summary:
    """Trains the grid into a results folder, or what is left of it."""
    plan = plan_lib.make_plan(RECIPE, recipes.load(RECIPE))
    existing = store.existing(out)
    if existing is not None:
        store.check_same(existing, plan)
    runner.check_data(plan.trials, watcher)
    return runner.run(plan, store.create(out, plan), watcher=watcher)


def study(out: Path, stage: Stage) -> Findings:
    """Fits, holds out and reports on the runs in `out`; the report is out/report.html."""
    return study_runs(out, out / "report.html", target=TARGET, title="stepseer quickstart", stage=stage)
