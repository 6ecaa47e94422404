"""`stepseer sweep status`: how far a results folder is."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import pandas as pd

from experiments import hopeless, recipes, show, store
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
    done_flops = float(rows["flops"].sum()) + saved if len(rows) else 0.0
    timed = rows[rows["wall_s"].notna()] if len(rows) else rows
    wall_s = float(timed["wall_s"].sum()) if len(timed) else 0.0
    left_s = None
    if wall_s > 0:
        left_s = max(folder.flops - done_flops, 0.0) / (float(timed["flops"].sum()) / wall_s)
    thought = folder.forecast()
    thought_s, measured_s = _both(thought, timed)
    if thought_s > 0 and left_s is not None:
        left_s = sum(thought[run_id] for run_id in thought.keys() - set(rows["run_id"])) * measured_s / thought_s
    status = {
        "out": str(folder.path),
        "grid": folder.grid,
        "trials": len(folder.run_ids),
        "done": len(rows),
        **counts,
        "flops": folder.flops,
        "flops_done": done_flops - saved,
        "flops_saved": saved,
        "wall_s": wall_s,
        "seconds_left": left_s,
        "forecast_s": sum(thought.values()) or None,
        "forecast_s_of_done": thought_s or None,
        "measured_s_of_done": measured_s if thought_s else None,
        "running": folder.running(),
    }
    if args.json:
        print(show.as_json(status))
        return 0
    bad = [f"{counts[s]} {s}" for s in ("diverged", "stopped", "failed") if counts[s]]
    share = done_flops / folder.flops
    console = show.console()
    console.print(
        f"{folder.path}: {len(rows)} of {show.plural(len(folder.run_ids), 'trial')} of {folder.grid}"
        f"{f' ({chr(44).join(bad)})' if bad else ''}, {share:.0%} of {show.flops(folder.flops)} FLOPs"
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
    if len(rows) < len(folder.run_ids):
        guess = "unknown until a chunk has finished" if left_s is None else f"about {show.seconds(left_s)} (estimate)"
        console.print(f"time left: {guess}")
    return 0


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
