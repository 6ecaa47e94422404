"""`stepseer sweep reproduce`: trains a trial again, from what its row says of it, and compares."""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from experiments import compile_cache, hopeless, progress, runner, show, store
from experiments.errors import InputError
from experiments.options import Parser
from experiments.plan import Chunk, Plan

COMPARED = ("loss", "eval_loss", "status")


def parser() -> Parser:
    made = Parser(
        "sweep reproduce",
        "Train a trial again, with those that shared its program, from its row alone; on a CPU its loss is the same "
        "bit for bit. Exit code 1 where it is not.",
        examples="  stepseer sweep reproduce 0e1f37d1c29a4b6d --out results",
    )
    made.add_argument("run_id", metavar="RUN_ID", help="the trial's, as in sweep table; its beginning is enough")
    made.add_argument("--out", metavar="DIR", required=True, help="results folder that holds it; nothing is written")
    return made


def run(args: argparse.Namespace) -> int:
    rows = store.load(args.out).together(args.run_id)
    chunk = Chunk(tuple(_config(row) for row in rows))
    (then,) = (row for row in rows if row["run_id"].startswith(args.run_id))
    if then["status"] == "failed":
        raise InputError(f"trial {then['run_id']} failed ({then['reason']}); there is no loss to compare")
    compile_cache.use()
    with tempfile.TemporaryDirectory() as folder, progress.watcher(quiet=args.json) as watcher:
        runner.check_data(chunk.trials, watcher)
        plan = Plan(f"trial {then['run_id']}", chunk.trials, (chunk,), 0, len(chunk.trials))
        again = store.create(Path(folder) / "again", plan)
        trainer = partial(runner.train_chunk, judge=hopeless.as_before(rows))
        summary = runner.run(plan, again, trainer=trainer, watcher=watcher)
        if summary.interrupted:
            raise KeyboardInterrupt
        (now,) = (row for row in again.read().to_dict("records") if row["run_id"] == then["run_id"])
    same = all(_same(then[name], now[name]) for name in COMPARED)
    changed = _changes(then, now)
    if args.json:
        values = {when: {name: row[name] for name in COMPARED} for when, row in (("then", then), ("now", now))}
        print(show.as_json({"run_id": then["run_id"], "same": same, "changed": list(changed), **values}))
        return 0 if same else 1
    table = [[name, str(then[name]), str(now[name])] for name in COMPARED]
    show.console().print(show.table(f"trial {then['run_id']}", ["", "then", "now"], table))
    print("the same, bit for bit" if same else "not the same")
    for name, (was, is_) in changed.items():
        print(f"note: {name} was {was}, is {is_}")
    if not same and not changed:
        print(
            "note: versions and device are those of the row. Another processor, threads, or (in rows that do not say) "
            "number of processes adds in another order, and GPUs need --deterministic flags; else the row was changed"
        )
    return 0 if same else 1


def _config(row: dict[str, Any]) -> Any:
    from engine import config as config_lib

    config = config_lib.from_dict(json.loads(row["config"]))
    if config.run_id != row["run_id"]:
        raise InputError(f"trial {row['run_id']}: its config is of {config.run_id}; the row was changed, or is foreign")
    return config


def _changes(then: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """What decides the last bits, as it was and is where that differs: the device, versions, how many processes."""
    was, is_ = ({"device": row["device"], "processes": "1", **json.loads(row["versions"])} for row in (then, now))
    names = dict.fromkeys((*was, *is_))
    return {n: (was.get(n, "none"), is_.get(n, "none")) for n in names if was.get(n) != is_.get(n)}


def _same(then: Any, now: Any) -> bool:
    return then == now or (then != then and now != now)  # NaN of diverged trials
