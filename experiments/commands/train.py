"""`stepseer train`: one model of a recipe, with fields changed at will."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import config as config_lib
from engine.trained import MODEL
from experiments import compile_cache, progress, recipes, runner, show, store
from experiments import plan as plan_lib
from experiments.commands.sweep_run import interrupted
from experiments.options import Parser, settings
from experiments.plan import Chunk
from experiments.store import Row

if TYPE_CHECKING:
    from engine import Progress


def parser() -> Parser:
    made = Parser(
        "train",
        "Train one model and print its run-table row.",
        examples="  stepseer train dense_1m\n"
        "  stepseer train dense_1m --set optim.lr=2e-3 --set tokens=8e6 --out results/lr2e-3\n"
        "  stepseer train dense_1m --set optim.schedule=constant --set tokens=8e6 --out trunk\n"
        "  stepseer train dense_1m --set optim.schedule=wsd --set tokens=10e6 --branch-from trunk",
    )
    made.add_argument(
        "recipe",
        metavar="RECIPE",
        help="path/to/file.py:function that returns one TrainConfig, or one of: " + ", ".join(recipes.names()),
    )
    made.add_argument(
        "--set", metavar="FIELD=VALUE", action="append", default=[], help="change a config field; may be repeated"
    )
    made.add_argument("--out", metavar="DIR", help=f"results folder: the row, and the model in DIR/{MODEL}")
    made.add_argument(
        "--branch-from",
        metavar="DIR",
        help="go on from the model that another train command left in DIR, where the two runs' steps are the same: "
        "optim.schedule=wsd from a trunk of optim.schedule=constant",
    )
    return made


def run(args: argparse.Namespace) -> int:
    changes = settings(args.set)
    config = config_lib.replace(recipes.load_one(args.recipe), changes)
    plan = plan_lib.make_plan(args.recipe, [config])
    trunk = _trunk(args.branch_from)
    if args.out:
        store.existing(args.out)  # refuses a folder of something else before anything is built
    if trunk is not None and not (args.out and (Path(args.out) / MODEL).is_dir()):
        from engine import branch

        branch.check(trunk, plan.trials)
    compile_cache.use()
    with tempfile.TemporaryDirectory() as scratch:
        with progress.watcher(quiet=args.json) as watcher:
            runner.check_data(plan.trials, watcher)
            folder = store.create(args.out or scratch, plan)
            summary = runner.run(plan, folder, trainer=_keeping(folder.path / MODEL, trunk), watcher=watcher)
        if summary.interrupted:
            return interrupted("run the same command again to go on" if args.out else "with --out it could go on")
        row: dict[str, Any] = {str(name): value for name, value in folder.read().iloc[0].items()}
    if args.json:
        print(show.as_json(row))
    else:
        _print(row, args.out, summary)
    return 1 if row["status"] == "failed" else 0


def _trunk(folder: str | None) -> Path | None:
    """The checkpoints in a results folder of `train`, or in a folder of checkpoints itself."""
    if folder is None:
        return None
    inside = Path(folder) / MODEL
    return inside if inside.is_dir() else Path(folder)


def _keeping(model: Path, trunk: Path | None) -> runner.Trainer:
    def train(chunk: Chunk, _: Path, on_progress: Callable[[Progress], None]) -> Sequence[Row]:
        return runner.train_chunk(chunk, model, on_progress, trunk)

    return train


def _print(row: dict[str, Any], out: str | None, summary: runner.Summary) -> None:
    console = show.console()
    pairs = [
        ("status", row["status"] + (f": {row['reason']}" if row["reason"] else "")),
        ("parameters", f"{show.count(row['params'])} ({show.count(row['params_total'])} with embeddings)"),
        ("tokens", show.count(row["tokens"])),
        ("learning rate", show.rate(row["lr"])),
        ("batch", f"{show.count(row['batch_tokens'])} tokens"),
        ("training loss", f"{show.loss(row['loss'])} nats per token"),
        ("held-out loss", f"{show.loss(row['eval_loss'])} nats per token, {show.bits(row['bpc'])} bits per character"),
        ("FLOPs", show.flops(row["flops"])),
        ("time", show.seconds(row["wall_s"])),
    ]
    console.print(show.table(f"{row['recipe']}, run {row['run_id']}", ["", ""], [list(p) for p in pairs], left=2))
    if out:
        console.print(f"model and row in {out}{' (trained before)' if summary.already else ''}")
