"""`stepseer sweep status`: how far a results folder is."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Mapping

import pandas as pd

from experiments import guided, hopeless, recipes, show, store
from experiments.options import Parser
from experiments.plan import make_plan


def parser() -> Parser:
    made = Parser(
        "sweep status",
        "Show how far a sweep is; while it runs, too.",
        examples="  stepseer sweep status --out results",
    )
    add_folder(made)
    return made


def add_folder(made: Parser) -> None:
    """The arguments that name a results folder."""
    made.add_argument("grid", metavar="GRID", nargs="?", help="refuse if the folder holds another grid than this")
    made.add_argument("--out", metavar="DIR", required=True, help="results folder")


def open_folder(args: argparse.Namespace) -> store.Store:
    folder = store.load(args.out)
    if args.grid:
        store.check_same(folder, make_plan(args.grid, recipes.load(args.grid)))
    return folder


def run(args: argparse.Namespace) -> int:
    folder = open_folder(args)
    rows = folder.read(["flops", "wall_s"])
    statuses = rows["status"].value_counts().to_dict() if len(rows) else {}
    counts = {status: int(statuses.get(status, 0)) for status in ("ok", "diverged", "stopped", "failed")}
    saved = hopeless.saved(folder) if counts["stopped"] else 0.0
    spent = float(rows["flops"].sum()) if len(rows) else 0.0
    done_flops = spent + saved
    timed = rows[rows["wall_s"].notna()] if len(rows) else rows
    wall_s = float(timed["wall_s"].sum()) if len(timed) else 0.0
    done = set(rows["run_id"]) if len(rows) else set()
    designed = guided.read_design(folder)
    if designed is not None and not done <= set().union(*designed.batches):
        designed = None  # sweep run has gone on with the rest of the grid
    left_ids = set(folder.run_ids if designed is None else designed.left) - done
    left_flops = folder.flops - done_flops
    if designed is not None:
        of_batch = rows["run_id"].isin(designed.left) if len(rows) else []
        left_flops = designed.left_flops - (float(rows["flops"][of_batch].sum()) if len(rows) else 0.0)
    left_s = None
    if wall_s > 0:
        left_s = max(left_flops, 0.0) / (float(timed["flops"].sum()) / wall_s) if left_ids else 0.0
    thought = folder.forecast()
    thought_s, measured_s = _both(thought, timed)
    by_forecast = bool(left_ids) and left_ids <= thought.keys() and (thought_s > 0 or not done)
    if by_forecast:
        pace = measured_s / thought_s if thought_s > 0 else 1.0
        passed = _passed(folder) if folder.running() else 0.0
        left_s = max(0.0, sum(thought[run_id] for run_id in left_ids) * pace - passed)
    status = {
        "out": str(folder.path),
        "grid": folder.grid,
        "trials": len(folder.run_ids),
        "done": len(rows),
        **counts,
        "flops": folder.flops,
        "flops_done": spent,
        "flops_saved": saved,
        "wall_s": wall_s,
        "seconds_left": left_s,
        "forecast_s": sum(thought.values()) or None,
        "forecast_s_of_done": thought_s or None,
        "measured_s_of_done": measured_s if thought_s else None,
        "running": folder.running(),
        "design": None if designed is None else {**designed.as_dict(), "trained": len(done), "flops_done": spent},
    }
    if args.json:
        print(show.as_json(status))
        return 0
    bad = [f"{counts[s]} {s}" for s in ("diverged", "stopped", "failed") if counts[s]]
    share = done_flops / folder.flops
    console = show.console()
    among = f" ({', '.join(bad)})" if bad else ""
    if designed is None:
        console.print(
            f"{folder.path}: {len(rows)} of {show.plural(len(folder.run_ids), 'trial')} of {folder.grid}{among}, "
            f"{share:.0%} of {show.flops(folder.flops)} FLOPs"
        )
    else:
        of = f"{spent / designed.flops:.0%} of {show.flops(designed.flops)}" if designed.flops else show.flops(spent)
        how = "finished" if designed.finished else f"batch {len(designed.batches)}: {len(left_ids)} left to train"
        console.print(
            f"{folder.path}: a design of {folder.grid} ({show.plural(len(folder.run_ids), 'trial')}): {len(rows)} "
            f"trained{among}, {of} FLOPs spent; {how}"
        )
    if saved:
        console.print(
            f"ending hopeless trials saved {show.flops(saved)} FLOPs, {saved / done_flops:.0%} of what is done"
        )
    console.print(f"running: {status['running'] or 'no'}")
    if thought_s > 0:
        console.print(
            f"time: {show.seconds(measured_s)} for what was thought to take {show.seconds(thought_s)}: the forecast of "
            f"{show.seconds(sum(thought.values()))} in all was {_error(thought_s, measured_s)}"
        )
    if left_ids and not (designed is not None and designed.finished):
        guess = "unknown until a chunk has finished" if left_s is None else f"about {show.seconds(left_s)} (estimate)"
        if by_forecast and not done:
            guess = f"about {show.seconds(left_s)} (forecast)" if left_s else "none by the forecast, which was too low"
        console.print(f"time left{'' if designed is None else ' of the batch'}: {guess}")
    return 0


def _passed(folder: store.Store) -> float:
    """Seconds since the run began, or has written its last rows."""
    times = [0.0]
    for file in [folder.path / ".lock", *folder.path.glob("parts/*.parquet")]:
        with contextlib.suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(0.0, time.time() - max(times))


def _both(thought: Mapping[str, float], timed: pd.DataFrame) -> tuple[float, float]:
    """Seconds of the trials that have a forecast and a time: as thought, as measured."""
    pairs = [(thought[i], s) for i, s in zip(timed["run_id"], timed["wall_s"]) if i in thought] if len(timed) else []
    return sum(t for t, _ in pairs), sum(s for _, s in pairs)


def _error(thought_s: float, measured_s: float) -> str:
    ratio = thought_s / measured_s
    if abs(ratio - 1) < 0.005:
        return "right"
    error = f"{abs(ratio - 1):.0%}" if ratio < 2 else f"{ratio:.1f} times"
    return f"{error} too {'high' if ratio > 1 else 'low'}"
