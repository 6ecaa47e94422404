"""`stepseer sweep run`: runs a grid into a results folder; run again, it goes on."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from engine import processes
from engine.processes import Group
from experiments import compile_cache, hopeless, progress, runner, show, store
from experiments import forecast as forecast_lib
from experiments import plan as plan_lib
from experiments.commands.sweep_plan import add_grid, describe, read_grid, saving, with_sizes
from experiments.errors import InputError
from experiments.options import Parser, one_of, share
from experiments.plan import Plan
from tpu import start

if TYPE_CHECKING:
    from engine.pilot import Cost


def parser() -> Parser:
    made = Parser(
        "sweep run",
        "Run a grid. Ctrl-C stops it, and so does a power cut; the same command goes on from there.",
        examples="  stepseer sweep run tiny --out results\n  stepseer sweep run my_grids.py:widths --out widths",
    )
    add_grid(made)
    add_training(made)
    made.add_argument(
        "--shard",
        metavar="I/N",
        help="run part I (from 0) of N only, as one of N jobs that share the folder: --shard $JOB_COMPLETION_INDEX/8",
    )
    made.add_argument("--backend", default="local", metavar="local|ray", help="ray: chunks as tasks of a Ray cluster")
    made.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="a cluster: auto, the one of this machine, or HOST:PORT; default RAY_ADDRESS, else a new one here",
    )
    made.add_argument(
        "--per-chunk",
        metavar="RESOURCES",
        help="of the cluster, such as cpu=2,gpu=1 or tpu=8; default the accelerators of a node, else up to 4 CPUs",
    )
    made.add_argument("--retry-failed", action="store_true", help="train failed trials again")
    return made


def add_training(made: Parser) -> None:
    """The arguments that say where results go and what is done beside."""
    made.add_argument("--out", metavar="DIR", required=True, help="results folder")
    made.add_argument(
        "--stop-hopeless",
        metavar="X",
        help="end trials on the way whose learning curves say that they won't come within X, such as 2%%, of the best",
    )
    made.add_argument("--wandb", metavar="PROJECT", help="log to Weights & Biases too; WANDB_MODE=offline works")


def run(args: argparse.Namespace) -> int:
    if args.backend == "ray":  # whose workers train, each by itself
        return _run(args, processes.current())
    with start.group() as group:
        return _run(args, group)


def _run(args: argparse.Namespace, group: Group) -> int:
    shard = _shard(args.shard)
    backend = _backend(args)
    existing = store.existing(args.out)
    group.gather("who looked before process 0 made it")
    plan = read_grid(args, existing=existing)
    within(args, plan)  # before anything is made
    if plan.repeats and not args.json:
        print(f"{show.plural(plan.repeats, 'trial')} left out: the same config as another")
    compile_cache.use()
    with progress.watcher(quiet=args.json or not group.lead) as watcher, ExitStack() as stack:
        run_chunks: runner.Backend | None = None
        costs: dict[str, Cost] = {}
        ready: set[str] = set()
        if backend is not None:  # whose nodes are other devices, and read the data themselves
            watcher.preparing("starting Ray", 0, 1)
            run_chunks = stack.enter_context(backend)
        else:
            runner.check_data(plan.trials, watcher)
            alone = shard is None and existing is None and group.count == 1  # then how the grid is cut is still open
            costs, ready = _costs(plan, watcher, measure=alone and forecast_lib.pays(plan))
            if alone:
                plan = with_sizes(plan, costs)
        folder = store.create(args.out, plan)
        trainer = trainer_of(args, plan, folder)
        how_long = _forecast(plan, folder, costs, ready, shard) if group.lead else None
        if how_long and not args.json:
            print(how_long, flush=True)
        summary = runner.run(
            plan,
            folder,
            trainer=trainer,
            backend=run_chunks,
            watcher=watcher,
            retry_failed=args.retry_failed,
            shard=shard,
        )
    if plan.trunks and not args.json:
        print(saving(plan))
    if args.stop_hopeless is not None and not args.json:
        none_ended(summary)
    return finish(summary, args.out, as_json=args.json, saved=hopeless.saved(folder))


def none_ended(*summaries: runner.Summary) -> None:
    """Says so where --stop-hopeless has ended no trial of those that were trained."""
    if any(s.ok or s.diverged for s in summaries) and not any(s.stopped for s in summaries):
        print("no trial was ended as hopeless")


def trainer_of(args: argparse.Namespace, plan: Plan, folder: store.Store) -> runner.Trainer:
    """What trains the chunks, as the arguments of `add_training` have it."""
    below = within(args, plan)
    trainer: runner.Trainer = partial(runner.train_chunk, logs=folder.path / runner.LOGS, wandb=args.wandb)
    if below is None:
        return trainer
    return hopeless.stopping(trainer, hopeless.Finished(plan.trials, folder), below)


def within(args: argparse.Namespace, plan: Plan) -> float | None:
    """--stop-hopeless, checked."""
    text = args.stop_hopeless
    if text is None:
        return None
    if plan.trunks:
        raise InputError("--stop-hopeless ends trials that others branch from; leave out one of it and --trunks")
    found = share(text, "--stop-hopeless", f"{hopeless.LEAST:.0%}")
    if found >= 1:
        meant = f" ({text} is {found:.0%}; did you mean {text}%?)" if found < 100 and "%" not in text else ""
        raise InputError(f"--stop-hopeless is {text!r}; give {hopeless.LEAST:.0%} or more, and less than 100%{meant}")
    if found < hopeless.LEAST:
        raise InputError(
            f"--stop-hopeless is {text!r}; laws learn from runs within {hopeless.LEAST:.0%} of the best, so give "
            f"{hopeless.LEAST:.0%} or more, and less than 100%"
        )
    return found


def _costs(plan: Plan, watcher: runner.Watcher, *, measure: bool) -> tuple[dict[str, Cost], set[str]]:
    """What is known of the plan's cohorts, or found out; and those of which this process has the program now."""
    before = forecast_lib.known(plan)
    if not measure:
        return before, set()
    costs = forecast_lib.measure(plan, partial(watcher.preparing, "measuring"))
    return costs, costs.keys() - before.keys()


def _forecast(
    plan: Plan, folder: store.Store, costs: dict[str, Cost], ready: set[str], shard: tuple[int, int] | None
) -> str | None:
    """A line that says how long it will take, noted for `status`; None where nothing new is known of it."""
    chunks = plan_lib.shard(plan.chunks, *shard) if shard else plan.chunks
    noted = folder.forecast()
    new = [chunk for chunk in chunks if chunk.base.run_id not in noted]
    found = forecast_lib.forecast(plan, new, costs, ready=ready)
    if found is None or not new:
        return None
    seconds = {t.run_id: found.by_chunk[c.id] / len(c.trials) for c in new for t in c.trials}
    folder.write_forecast(seconds, shard)
    return f"about {show.seconds(found.seconds)}: {describe(found)}"


def _backend(args: argparse.Namespace) -> AbstractContextManager[runner.Backend] | None:
    """What runs the chunks; None: this process. Raises InputError for options that don't go together."""
    if one_of(args.backend, ("local", "ray"), "--backend") == "local":
        for option in ("ray_address", "per_chunk"):
            if getattr(args, option) is not None:
                raise InputError(f"--{option.replace('_', '-')} is for --backend ray; add that")
        return None
    if args.shard is not None:
        raise InputError(f"--shard {args.shard} and --backend ray: Ray divides the grid by itself; leave --shard out")
    if args.stop_hopeless is not None:
        raise InputError("--stop-hopeless looks at finished trials from where it trains; leave it or --backend ray out")
    from experiments.backends import ray

    wanted = ray.per_chunk(args.per_chunk) if args.per_chunk is not None else None
    return ray.cluster(args.ray_address, wanted, wandb=args.wandb)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, _, of = text.partition("/")
    if not (index.isdigit() and of.isdigit() and int(index) < int(of)):
        raise InputError(f"--shard is {text!r}; give a part, from 0, and how many there are, such as 0/8 to 7/8")
    return int(index), int(of)


def finish(summary: runner.Summary, out: str, *, as_json: bool, saved: float = 0.0) -> int:
    """Says how a run ended; returns the exit code. saved: FLOPs, by ending hopeless trials."""
    if as_json:
        print(show.as_json({"out": str(out), **asdict(summary), "left": summary.left, "flops_saved": saved}))
    else:
        parts = [f"{summary.ok} trained"] if summary.ok else []
        parts += [f"{summary.diverged} diverged"] if summary.diverged else []
        parts += [f"{summary.stopped} stopped as hopeless"] if summary.stopped else []
        parts += [f"{summary.failed} failed"] if summary.failed else []
        parts += [f"{summary.already} done before"] if summary.already else []
        parts += [f"{summary.left} left"] if summary.left else []
        print(f"{show.plural(summary.trials, 'trial')}: {', '.join(parts)}, in {show.seconds(summary.wall_s)}")
        if saved:
            print(f"ending hopeless trials saved {show.flops(saved)} FLOPs so far")
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
