"""`stepseer sweep run`: runs a grid into a results folder; run again, it goes on."""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import asdict
from functools import partial

from experiments import compile_cache, progress, runner, show, store
from experiments.commands.sweep_plan import add_grid, read_grid
from experiments.errors import InputError
from experiments.options import Parser


def parser() -> Parser:
    made = Parser(
        "sweep run",
        "Run a grid. Ctrl-C stops it, and so does a power cut; the same command goes on from there.",
        examples="  stepseer sweep run tiny --out results\n  stepseer sweep run my_grids.py:widths --out widths",
    )
    add_grid(made)
    made.add_argument("--out", metavar="DIR", required=True, help="results folder")
    made.add_argument(
        "--shard",
        metavar="I/N",
        help="run part I (from 0) of N only, as one of N jobs that share the folder: --shard $JOB_COMPLETION_INDEX/8",
    )
    made.add_argument("--retry-failed", action="store_true", help="train failed trials again")
    made.add_argument("--wandb", metavar="PROJECT", help="log to Weights & Biases too; WANDB_MODE=offline works")
    return made


def run(args: argparse.Namespace) -> int:
    shard = _shard(args.shard)
    plan = read_grid(args, existing=store.existing(args.out))
    if plan.repeats and not args.json:
        print(f"{show.plural(plan.repeats, 'trial')} left out: the same config as another")
    compile_cache.use()
    with progress.watcher(quiet=args.json) as watcher:
        runner.check_data(plan.trials, watcher)
        folder = store.create(args.out, plan)
        trainer = partial(runner.train_chunk, logs=folder.path / runner.LOGS, wandb=args.wandb)
        summary = runner.run(
            plan, folder, trainer=trainer, watcher=watcher, retry_failed=args.retry_failed, shard=shard
        )
    return finish(summary, args.out, as_json=args.json)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, _, of = text.partition("/")
    if not (index.isdigit() and of.isdigit() and int(index) < int(of)):
        raise InputError(f"--shard is {text!r}; give a part, from 0, and how many there are, such as 0/8 to 7/8")
    return int(index), int(of)


def finish(summary: runner.Summary, out: str, *, as_json: bool) -> int:
    """Says how a run ended; returns the exit code."""
    if as_json:
        print(show.as_json({"out": str(out), **asdict(summary), "left": summary.left}))
    else:
        parts = [f"{summary.ok} trained"] if summary.ok else []
        parts += [f"{summary.diverged} diverged"] if summary.diverged else []
        parts += [f"{summary.failed} failed"] if summary.failed else []
        parts += [f"{summary.already} done before"] if summary.already else []
        parts += [f"{summary.left} left"] if summary.left else []
        print(f"{show.plural(summary.trials, 'trial')}: {', '.join(parts)}, in {show.seconds(summary.wall_s)}")
    if summary.interrupted:
        return interrupted("run the same command again to go on", summary.signum)
    if summary.failed:
        print(
            f"stepseer: {summary.failed} failed; the reasons: stepseer sweep table --out {out}; "
            "to try them again add --retry-failed",
            file=sys.stderr,
        )
        return 1
    return 0


def interrupted(what_now: str, signum: int) -> int:
    """Says so, on standard error; returns the exit code: 130 after Ctrl-C, 143 after SIGTERM.

    Not 0: a scheduler that stops a job before its time takes 0 for finished, and would not queue it again.
    """
    how = "stopped by SIGTERM" if signum == signal.SIGTERM else "interrupted"
    print(f"stepseer: {how}; {what_now}", file=sys.stderr)
    return 128 + signum
