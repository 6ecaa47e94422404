"""`stepseer sweep plan`: what a grid would run, and what it would cost. Runs nothing, writes nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from engine import sizes
from experiments import plan as plan_lib
from experiments import recipes, show, store
from experiments.options import Parser, whole
from experiments.plan import Chunk, Plan


def parser() -> Parser:
    made = Parser(
        "sweep plan",
        "Show a grid's cohorts (trials that share a compiled program), its FLOPs, and what is already done.",
        examples="  stepseer sweep plan tiny\n  stepseer sweep plan my_grids.py:widths --out results --json",
    )
    add_grid(made)
    made.add_argument("--out", metavar="DIR", help="results folder: counts what is done there")
    return made


def add_grid(made: Parser) -> None:
    """The arguments that name a grid."""
    made.add_argument("grid", metavar="GRID", help="path/to/file.py:function, or one of: " + ", ".join(recipes.names()))
    made.add_argument(
        "--max-trials", metavar="N", help=f"trials of one program at most (default {plan_lib.MAX_TRIALS})"
    )


def read_grid(args: argparse.Namespace, *, existing: store.Store | None) -> Plan:
    """The grid of the arguments, planned; cut as in an existing results folder unless told otherwise."""
    most = existing.max_trials if existing else plan_lib.MAX_TRIALS
    if args.max_trials is not None:
        most = whole(args.max_trials, "--max-trials")
    return plan_lib.make_plan(args.grid, recipes.load(args.grid), max_trials=most)


def run(args: argparse.Namespace) -> int:
    existing = store.existing(args.out) if args.out else None
    plan = read_grid(args, existing=existing)
    walls: dict[str, float] = {}
    if existing is not None:
        store.check_same(existing, plan)
        rows = existing.read()
        walls = dict(zip(rows["run_id"], rows["wall_s"])) if len(rows) else {}
    if args.json:
        print(show.as_json(as_dict(plan, walls)))
    else:
        print_plan(plan, walls)
    return 0


def as_dict(plan: Plan, walls: Mapping[str, float]) -> dict[str, Any]:
    left = plan_lib.pending(plan, walls)
    return {
        "grid": plan.name,
        "trials": len(plan.trials),
        "repeats": plan.repeats,
        "done": len(walls),
        "programs": plan.programs,
        "chunks": len(plan.chunks),
        "max_trials": plan.max_trials,
        "flops": plan.flops,
        "flops_left": sum(c.flops for c in left),
        "seconds_left": plan_lib.estimate(plan, left, walls).seconds,
        "cohorts": [_cohort(chunks, walls) for chunks in plan.cohorts],
    }


def print_plan(plan: Plan, walls: Mapping[str, float]) -> None:
    console = show.console()
    rows = []
    for chunks in plan.cohorts:
        base, trials = chunks[0].base, [t for chunk in chunks for t in chunk.trials]
        rows.append(
            [
                show.count(sizes.non_embedding_params(base.model)),
                f"{base.model.d_model} x {base.model.n_layers}",
                show.count(base.batch_tokens),
                show.span([t.tokens for t in trials], show.count),
                show.span([t.optim.lr for t in trials], show.rate),
                str(len(trials)),
                str(len(chunks)),
                show.flops(sum(c.flops for c in chunks)),
                str(sum(t.run_id in walls for t in trials)),
            ]
        )
    header = ["N", "width x depth", "batch", "tokens", "lr", "trials", "chunks", "FLOPs", "done"]
    console.print(show.table(f"{plan.name}: {show.plural(len(plan.trials), 'trial')}", header, rows, left=0))
    console.print(
        f"{show.plural(plan.programs, 'program')} to compile, {show.plural(len(plan.chunks), 'chunk')} of at most "
        f"{show.plural(plan.max_trials, 'trial')}, {show.flops(plan.flops)} FLOPs; done: {len(walls)} of "
        f"{show.plural(len(plan.trials), 'trial')}"
    )
    if plan.repeats:
        console.print(f"{show.plural(plan.repeats, 'trial')} left out: the same config as another")
    console.print(time_left(plan, walls))


def time_left(plan: Plan, walls: Mapping[str, float]) -> str:
    """One line; says what the estimate rests on."""
    left = plan_lib.pending(plan, walls)
    if not left:
        return "nothing left to run"
    guess = plan_lib.estimate(plan, left, walls)
    if guess.seconds is None:
        return "time: unknown until a chunk has run here"
    return f"time left: about {show.seconds(guess.seconds)}, an estimate from {show.plural(guess.trials, 'trial')} done"


def _cohort(chunks: Sequence[Chunk], walls: Mapping[str, float]) -> dict[str, Any]:
    base, trials = chunks[0].base, [t for chunk in chunks for t in chunk.trials]
    return {
        "params": sizes.non_embedding_params(base.model),
        "d_model": base.model.d_model,
        "n_layers": base.model.n_layers,
        "batch_tokens": base.batch_tokens,
        "seq_len": base.data.seq_len,
        "tokens": sorted({t.tokens for t in trials}),
        "lr": sorted({t.optim.lr for t in trials}),
        "trials": len(trials),
        "chunks": len(chunks),
        "flops": sum(c.flops for c in chunks),
        "done": sum(t.run_id in walls for t in trials),
    }
