"""Early stopping of hopeless trials, replayed on finished sweeps: what it saves, and whom it would have stopped.

    python -m benchmarks.early_stop DIR [DIR ...] [--within 2%] [--json]

Every DIR is a results folder whose trials all ran to their end (`sweep run` without --stop-hopeless), with logs. The
chunks are gone through in the order in which they ran; each is judged by `experiments.hopeless` from the curves of the
trials that the replay itself has let finish so far, and its population shrinks as the engine's does. A replay leaves
out rounding, which differs in smaller populations, and that nobody ends where a compile would cost more than it saves,
as it mostly would of models this small (`engine.cull.WORTH`). Where Step Law can be fitted, by the normal
approximation, its optimum at eight times the largest N and D is given from all rows, and from those that are left.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from engine import config as config_lib
from engine import cull
from experiments import hopeless, store
from experiments.options import share
from experiments.plan import Chunk, make_plan, trial_flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="DIR")
    parser.add_argument("--within", default="2%")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cull.WORTH = 0.0
    found = {Path(folder).name: replay(Path(folder), share(args.within, "--within")) for folder in args.folders}
    if args.json:
        print(json.dumps(found, indent=1))
        return
    for name, r in found.items():
        for key, label in (("optimum", "all rows"), ("optimum_left", "those left")):
            if r[key] is not None:
                (lr, low, high), (batch, least, most) = r[key]
                print(
                    f"{name}, {label}: lr {lr:.2e} [{low:.2e}, {high:.2e}], batch {batch:.0f} [{least:.0f}, {most:.0f}]"
                )
    print("\n| sweep | trials | cells | FLOPs saved | stopped | of which in truth within | best of its cell stopped |")
    print("|---|---|---|---|---|---|---|")
    for name, r in found.items():
        print(
            f"| {name} | {r['trials']} | {r['cells']} | {r['saved']:.1%} | {r['stopped']} | {r['wrong']} "
            f"| {r['best_stopped']} |"
        )


def replay(path: Path, within: float) -> dict[str, Any]:
    """Counts over the whole sweep."""
    folder = store.load(path)
    rows = folder.read().set_index("run_id")
    trials = [config_lib.from_json(text) for text in rows["config"]]
    plan = make_plan(folder.grid, trials, max_trials=folder.max_trials, cut=folder.cut)
    known = {c.config.run_id: c for c in hopeless.Finished(plan.trials, folder).curves()}
    done: list[hopeless.Curve] = []
    spent, stopped = 0.0, set()
    for chunk in plan.chunks:
        over = ends(chunk, known, hopeless.judge(chunk, done, within), path)
        for g, trial in enumerate(chunk.trials):
            spent += trial_flops(trial) * over.get(g, trial.steps) / trial.steps
            if g not in over and trial.run_id in known:
                done.append(known[trial.run_id])
            elif trial.run_id in known:
                stopped.add(trial.run_id)
    cells: dict[tuple, list[hopeless.Curve]] = {}
    for curve in known.values():
        cells.setdefault(curve.cell, []).append(curve)
    best = {min(members, key=lambda c: c.final).config.run_id for members in cells.values()}
    lowest = {cell: min(c.final for c in members) for cell, members in cells.items()}
    wrong = [i for i in stopped if known[i].final - lowest[known[i].cell] < np.log1p(within)]
    rows.loc[list(stopped), ["status", "loss"]] = "stopped", np.nan
    return {
        "trials": len(plan.trials),
        "cells": len(cells),
        "saved": 1 - spent / plan.flops,
        "stopped": len(stopped),
        "wrong": len(wrong),
        "best_stopped": len(best & stopped),
        "optimum": optimum(folder.read()),
        "optimum_left": optimum(rows.reset_index()),
    }


def optimum(rows: pd.DataFrame) -> list[list[float]] | None:
    """Median, low and high (90%) of lr and batch_tokens; None where the law cannot be fitted."""
    import laws

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            posterior = laws.fit("steplaw", rows, laplace=True)
    except laws.FitError:
        return None
    found = posterior.predict(params=8 * float(rows["params"].max()), tokens=8 * float(rows["tokens"].max()))
    return [[float(x) for x in (q.median, *q.interval(0.9))] for q in (found.lr, found.batch_tokens)]


def ends(chunk: Chunk, known: dict[str, hopeless.Curve], judge: cull.Judge, path: Path) -> dict[int, int]:
    """Steps done of the trials that end on the way."""
    losses = np.array([_losses(path, t.run_id, t.steps) for t in chunk.trials]).T
    diverged = ~np.isfinite(losses)
    roster = cull.Roster(chunk.trials)
    over: dict[int, int] = {}
    for step in judge.at:
        now = roster.ends(losses[:step], judge, diverged[:step].any(axis=0))
        roster.live = [g for g in roster.live if g not in now]
        over |= {g: step for g in now}
    return over


def _losses(path: Path, run_id: str, steps: int) -> np.ndarray:
    lines = map(json.loads, (path / "logs" / run_id / "metrics.jsonl").read_text().splitlines())
    found = [np.nan if line["loss"] is None else line["loss"] for line in lines if "loss" in line]
    return np.array(found + [np.nan] * (steps - len(found)))


if __name__ == "__main__":
    main()
