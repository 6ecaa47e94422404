"""`stepseer train`: one model of a recipe, with fields changed at will."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import config as config_lib
from engine.checkpoint import Keep
from engine.processes import Group
from engine.trained import MODEL
from experiments import compile_cache, progress, recipes, runner, show, store
from experiments import plan as plan_lib
from experiments.commands.sweep_run import interrupted
from experiments.errors import InputError
from experiments.options import Parser, positive, settings, whole
from experiments.plan import Chunk
from experiments.store import Row
from tpu import start

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
        help="path/to/file.py:function that returns one TrainConfig, or one of: " + ", ".join(recipes.single()),
    )
    made.add_argument(
        "--set", metavar="FIELD=VALUE", action="append", default=[], help="change a config field; may be repeated"
    )
    made.add_argument(
        "--out",
        metavar="DIR",
        help=f"results folder: the row, the model in DIR/{MODEL}, its metrics in DIR/{runner.LOGS}",
    )
    made.add_argument(
        "--branch-from",
        metavar="DIR",
        help="go on from the model that another train command left in DIR, where the two runs' steps are the same: "
        "optim.schedule=wsd from a trunk of optim.schedule=constant",
    )
    made.add_argument("--keep", metavar="N", default="2", help="newest checkpoints that are kept (default: 2)")
    made.add_argument(
        "--keep-every", metavar="STEPS|HOURSh", help="keep these for good too: --keep-every 1000, 6h, or 1000,6h"
    )
    made.add_argument("--eval-every", metavar="STEPS", help="evaluate on held-out text every so many steps, too")
    made.add_argument("--profile", metavar="FROM:TO", help=f"trace these steps, such as 10:15, into DIR/{runner.LOGS}")
    made.add_argument("--wandb", metavar="PROJECT", help="log to Weights & Biases too; WANDB_MODE=offline works")
    return made


def run(args: argparse.Namespace) -> int:
    with start.group() as group:
        return _run(args, group)


def _run(args: argparse.Namespace, group: Group) -> int:
    changes = settings(args.set)
    config = config_lib.replace(recipes.load_one(args.recipe), changes)
    plan = plan_lib.make_plan(args.recipe, [config])
    trunk = _trunk(args.branch_from)
    how = _how(args) | {"branch_from": trunk}
    if not args.out and group.count > 1:
        raise InputError(f"{group.count} processes need --out DIR, a folder on a file system that they all share")
    if args.out:
        store.existing(args.out)  # refuses a folder of something else before anything is built
    if trunk is not None and not (args.out and (Path(args.out) / MODEL).is_dir()):
        from engine import branch

        branch.check(trunk, plan.trials)
    compile_cache.use()
    with tempfile.TemporaryDirectory() as scratch:
        with progress.watcher(quiet=args.json or not group.lead) as watcher:
            runner.check_data(plan.trials, watcher)
            folder = store.create(args.out or scratch, plan)
            summary = runner.run(plan, folder, trainer=_keeping(folder.path, how), watcher=watcher)
        if summary.interrupted:
            what_now = "run the same command again to go on" if args.out else "with --out it could go on"
            return interrupted(what_now, summary.signum)
        if not group.lead:
            return group.agree(None)
        row: dict[str, Any] = {str(name): value for name, value in folder.read().iloc[0].items()}
    if args.json:
        print(show.as_json(row))
    else:
        _print(row, args.out, summary)
    return group.agree(1 if row["status"] == "failed" else 0)


def _trunk(folder: str | None) -> Path | None:
    """The checkpoints in a results folder of `train`, or in a folder of checkpoints itself."""
    if folder is None:
        return None
    inside = Path(folder) / MODEL
    return inside if inside.is_dir() else Path(folder)


def _keeping(out: Path, how: dict[str, Any]) -> runner.Trainer:
    def train(chunk: Chunk, _: Path, on_progress: Callable[[Progress], None]) -> Sequence[Row]:
        return runner.train_chunk(chunk, out / MODEL, on_progress, logs=out / runner.LOGS, **how)

    return train


def _how(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `engine.train_population` that the options ask for."""
    every_steps, every_hours = 0, 0.0
    for part in args.keep_every.split(",") if args.keep_every else []:
        if part.endswith("h"):
            every_hours = positive(part[:-1], "--keep-every")
        else:
            every_steps = whole(part, "--keep-every")
    for option in ("profile", "wandb"):
        if vars(args)[option] and not args.out:
            raise InputError(f"--{option} needs a folder that stays; add --out DIR")
    return {
        "keep": Keep(newest=whole(args.keep, "--keep"), every_steps=every_steps, every_hours=every_hours),
        "profile": _steps(args.profile) if args.profile else None,
        "wandb": args.wandb,
        "eval_every": whole(args.eval_every, "--eval-every") if args.eval_every else 0,
    }


def _steps(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise InputError(f"--profile is {text!r}; write a first step and a later one to end before, such as 10:15")
    return int(first), int(last)


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
