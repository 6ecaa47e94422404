"""`stepseer sweep design`: trains, of a grid, the trials that say most of a target scale, until a budget is spent."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from experiments import compile_cache, guided, progress, runner, show, store
from experiments.commands.next import LAWS, read_scales
from experiments.commands.sweep_plan import add_grid, read_grid
from experiments.commands.sweep_run import add_training, interrupted, none_ended, trainer_of, within
from experiments.errors import InputError
from experiments.options import Parser, one_of, positive, whole
from experiments.plan import make_plan
from laws import design
from laws.errors import FitError

LEVEL = 0.9
Z = 1.6449  # half-width of that interval of a normal


def parser() -> Parser:
    made = Parser(
        "sweep design",
        "Train, of a grid, the trials that most reduce, for their FLOPs, what not knowing the best learning rate and "
        "batch size costs at a target scale: batch after batch, until the budget is spent. Ctrl-C stops it, and the "
        "same command goes on.",
        examples="  stepseer sweep design quickstart --target-params 500k --target-tokens 2M --flops 3e12 --out out",
    )
    add_grid(made)
    add_training(made)
    made.add_argument("--law", metavar="LAW", default="steplaw", help="what is to be learnt: steplaw (default)")
    made.add_argument("--target-params", metavar="N", required=True, help="size that you care about; several: commas")
    made.add_argument("--target-tokens", metavar="D", required=True, help="its training tokens; as many, or one")
    made.add_argument("--target-params-active", metavar="N", help="mixture of experts: parameters a token sees there")
    made.add_argument("--flops", metavar="C", required=True, help="what the trials may cost together")
    made.add_argument("--batch", metavar="K", default="16", help="trials chosen at a time (default 16)")
    made.add_argument("--cohort", metavar="K", default="1", help="take K at a time that train in one program")
    made.add_argument("--target", metavar="COLUMN", default="loss", help="loss (default), eval_loss or bpc")
    made.add_argument("--seed", metavar="K", default="1", help="of the first batch (default 1)")
    return made


def run(args: argparse.Namespace) -> int:
    one_of(args.law, LAWS, "--law")
    one_of(args.target, ("loss", "eval_loss", "bpc"), "--target")
    batch, cohort, seed = (whole(getattr(args, name), f"--{name}") for name in ("batch", "cohort", "seed"))
    targets = read_scales(args.target_params, args.target_tokens, args.target_params_active, "--target-", paired=True)
    goal = guided.Goal(targets, positive(args.flops, "--flops"), batch, cohort, args.target, seed)
    grid = read_grid(args, existing=store.existing(args.out))
    if grid.trunks:
        raise InputError("--trunks: a design trains few of the trials that would share one; leave it out")
    within(args, grid)  # before anything is made
    compile_cache.use()
    with progress.watcher(quiet=args.json) as watcher:
        runner.check_data(grid.trials, watcher)
    folder = store.create(args.out, grid)
    trainer = trainer_of(args, grid, folder)
    trials = {t.run_id: t for t in grid.trials}
    summaries = []
    for state in guided.states(goal, grid.trials, folder):
        if not args.json:
            print(_where(state, goal), flush=True)
        if state.batch:
            plan = make_plan(grid.name, [trials[i] for i in state.batch], max_trials=grid.max_trials, cut=grid.cut)
            with progress.watcher(quiet=args.json) as watcher:
                summary = runner.run(plan, folder, trainer=trainer, watcher=watcher)
            summaries.append(summary)
            if summary.interrupted:
                return interrupted("run the same command again to go on", summary.signum)
    answer = _answer(state, goal, folder)
    if args.json:
        print(show.as_json(answer))
    else:
        if args.stop_hopeless is not None:
            none_ended(*summaries)
        _print(answer)
    return 0


def _where(state: guided.State, goal: guided.Goal) -> str:
    spent = f"{state.spent / goal.flops:.0%} of {show.flops(goal.flops)} FLOPs spent"
    if state.belief is not None:
        spent += f", expected regret at the target {show.regret(design.expected_regret(state.belief, goal.targets))}"
    if not state.batch:
        return f"{spent}; no trial that the rest allows says more of it"
    return f"{spent}; {show.plural(len(state.batch), 'trial')} to train"


def _answer(state: guided.State, goal: guided.Goal, folder: store.Store) -> dict[str, Any]:
    """The optimum at the targets: by the law fitted to all rows, else by the design's own belief."""
    import laws

    assert state.belief is not None
    rows = goal.targets.to_dict("records")
    answer: dict[str, Any] = {
        "out": str(folder.path),
        "trials": len(folder.read(["loss"])),
        "of": len(folder.run_ids),
        "flops": state.spent,
        "expected_regret": design.expected_regret(state.belief, goal.targets),
        "level": LEVEL,
        "targets": rows,
    }
    try:
        posterior = laws.fit("steplaw", folder.path, target=goal.target)
    except (FitError, laws.InputError) as error:
        answer |= {"by": "normal approximation", "why": str(error), "posterior": None}
        middle, sd = state.belief.optimum(goal.targets), state.belief.optimum_sd(goal.targets)
        for row, at, by in zip(rows, middle, sd):
            for name, x, s in zip(("lr", "batch_tokens"), at, by):
                row[name] = dict(zip(("median", "low", "high"), np.exp([x, x - Z * s, x + Z * s]).tolist()))
        return answer
    posterior.save(folder.path / "steplaw.nc")
    answer |= {"by": "steplaw, fitted to the rows", "posterior": str(folder.path / "steplaw.nc")}
    for row in rows:
        found = posterior.predict(**{name: row[name] for name in row if name in ("params", "tokens", "params_active")})
        for name in ("lr", "batch_tokens"):
            quantity = getattr(found, name)
            low, high = quantity.interval(LEVEL)
            row[name] = {"median": float(quantity.median), "low": float(low), "high": float(high)}
    return answer


def _print(answer: dict[str, Any]) -> None:
    console = show.console()
    rows = []
    for t in answer["targets"]:
        for name, write in (("lr", show.rate), ("batch_tokens", show.count)):
            q = t[name]
            label = "peak learning rate" if name == "lr" else "batch, tokens"
            span = f"{write(q['low'])} .. {write(q['high'])}"
            rows.append([label, show.count(t["params"]), show.count(t["tokens"]), write(q["median"]), span])
    title = f"{answer['trials']} of {show.plural(answer['of'], 'trial')}, {show.flops(answer['flops'])} FLOPs"
    console.print(show.table(title, ["", "N", "tokens", "median", f"{answer['level']:.0%} interval"], rows))
    if answer["posterior"] is None:
        print(f"note: by the design's normal approximation; the law could not be fitted: {answer['why']}")
    else:
        print(f"the law is in {answer['posterior']}; ask it with: stepseer predict {answer['posterior']}")
