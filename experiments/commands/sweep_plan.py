"""`stepseer sweep plan`: what a grid would run, and what it would cost. Writes nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine import config as config_lib
from engine import sizes
from engine.data import check_there
from experiments import bound as bound_lib
from experiments import differing as differing_lib
from experiments import forecast as forecast_lib
from experiments import plan as plan_lib
from experiments import progress, recipes, show, store
from experiments.bound import Bound
from experiments.errors import InputError
from experiments.forecast import Forecast
from experiments.options import Parser, whole
from experiments.plan import Chunk, Plan

if TYPE_CHECKING:
    from engine.pilot import Cost
    from tpu.topologies import Slice

KNOWN = ("recipe", "model.d_model", "model.n_layers", "batch_size", "tokens", "optim.lr")  # shown in any case
MOST = 40  # cohorts on the terminal; JSON has all


def parser() -> Parser:
    made = Parser(
        "sweep plan",
        "Show a grid's cohorts (trials that share a compiled program), its FLOPs, its memory and time, and what is "
        "already done.",
        examples="  stepseer sweep plan tiny --measure\n  stepseer sweep plan my_grids.py:widths --out results --json\n"
        "  stepseer sweep plan steplaw_dense --on h100-64",
    )
    add_grid(made)
    made.add_argument("--out", metavar="DIR", help="results folder: counts what is done there")
    made.add_argument(
        "--measure",
        action="store_true",
        help="compile and time some steps of the cohorts that cost most (some seconds each); what is found is kept, "
        "for this command and for sweep run",
    )
    made.add_argument(
        "--on", metavar="DEVICES", help="the least time on others: h100-8, v5e-16, ... (see: stepseer tpu topologies)"
    )
    made.add_argument("--all", action="store_true", help=f"more than {MOST} cohorts on the terminal")
    return made


def add_grid(made: Parser) -> None:
    """The arguments that name a grid and how it is cut."""
    made.add_argument(
        "grid",
        metavar="GRID",
        help="path/to/file.py:function, a YAML file (.yaml), or one of: " + ", ".join(recipes.names()),
    )
    made.add_argument(
        "--max-trials", metavar="N", help=f"trials of one program at most (default {plan_lib.MAX_TRIALS})"
    )
    made.add_argument(
        "--trunks",
        action="store_true",
        help="wsd trials that differ only in tokens share their steps at the constant rate; the rows are the same",
    )


def read_grid(args: argparse.Namespace, *, existing: store.Store | None) -> Plan:
    """The grid of the arguments, planned; cut as in an existing results folder unless told otherwise."""
    most = existing.max_trials if existing else plan_lib.MAX_TRIALS
    if args.max_trials is not None:
        most = whole(args.max_trials, "--max-trials")
    if existing is not None and args.trunks and not existing.trunks:
        raise InputError(f"{existing.path} was begun without --trunks; leave it out, or name another --out")
    trunks = existing.trunks if existing else args.trunks
    cut = existing.cut if existing and args.max_trials is None else {}
    plan = plan_lib.make_plan(args.grid, recipes.load(args.grid), max_trials=most, cut=cut, trunks=trunks)
    if trunks and not plan.saved_flops:
        raise InputError(
            f"--trunks: no trials of {args.grid} share a trunk; they need optim.schedule wsd, and be alike but for "
            "tokens and how they decay"
        )
    return plan


@dataclass(frozen=True)
class _Found:
    """What is known of a plan."""

    plan: Plan
    left: Sequence[Chunk]
    walls: Mapping[str, float]  # seconds of finished trials, by run id
    costs: Mapping[str, Cost] = field(default_factory=dict)  # by cohort
    forecast: Forecast | None = None
    where: Slice | None = None
    bounds: Mapping[str, Bound] = field(default_factory=dict)  # by cohort


def run(args: argparse.Namespace) -> int:
    if args.measure and args.on is not None:
        raise InputError(f"--measure is of the devices here, --on {args.on} of others; leave one of them out")
    existing = store.existing(args.out) if args.out else None
    plan = read_grid(args, existing=existing)
    walls: dict[str, float] = {}
    if existing is not None:
        store.check_same(existing, plan)
        rows = existing.read(["wall_s"])
        walls = dict(zip(rows["run_id"], rows["wall_s"])) if len(rows) else {}
    if args.on is not None:
        from tpu import topologies

        where = topologies.find(args.on)
        left = plan_lib.pending(plan, walls, existing.fits() if existing else None)
        bounds = {chunks[0].cohort: bound_lib.bound(chunks, where) for chunks in plan_lib.by_cohort(left)}
        found = _Found(plan, left, walls, where=where, bounds=bounds)
    else:
        for data in {t.data for t in plan.trials}:
            check_there(data)
        if args.measure:
            new = {chunks[0].cohort for chunks in forecast_lib.wanted(plan)} - forecast_lib.known(plan).keys()
            if new and not forecast_lib.pays(plan) and not args.json:
                print(
                    f"measuring {show.plural(len(new), 'cohort')}; this grid is so small that running it may take less",
                    flush=True,
                )
            with progress.bar("measuring", quiet=args.json) as moved:
                costs = measured(plan, moved)
        else:
            costs = forecast_lib.known(plan)
        if existing is None:
            plan = with_sizes(plan, costs)
        left = plan_lib.pending(plan, walls, existing.fits() if existing else None)
        found = _Found(plan, left, walls, costs, forecast_lib.forecast(plan, left, costs))
    if args.json:
        print(show.as_json(as_dict(found)))
    else:
        print_plan(found, counted=existing is not None, everything=args.all)
    return 0


def measured(plan: Plan, on_progress: Any = None) -> dict[str, Cost]:
    """By pilots, where none is known, of the cohorts that cost most."""
    from experiments import compile_cache, runner

    compile_cache.use()
    runner.check_data(plan.trials, runner.Watcher())
    return forecast_lib.measure(plan, on_progress)


def with_sizes(plan: Plan, costs: Mapping[str, Cost]) -> Plan:
    """Cut into chunks of the sizes that pilots found to fit, or to be faster."""
    cut = {**plan.cut, **forecast_lib.sizes_that_pay(plan, costs)}
    if cut == plan.cut:
        return plan
    return plan_lib.make_plan(plan.name, plan.trials, max_trials=plan.max_trials, cut=cut, trunks=plan.trunks)


def as_dict(found: _Found) -> dict[str, Any]:
    plan, left, forecast = found.plan, found.left, found.forecast
    seconds = plan_lib.estimate(plan, left, found.walls).seconds
    made = {
        "grid": plan.name,
        "trials": len(plan.trials),
        "repeats": plan.repeats,
        "done": len(found.walls),
        "programs": plan.programs,
        "chunks": len(plan.chunks),
        "max_trials": plan.max_trials,
        "flops": plan.flops,
        "flops_saved": plan.saved_flops,
        "flops_left": sum(c.flops for c in left),
        "seconds_left": forecast.seconds if seconds is None and forecast else seconds,
    }
    if forecast is not None:
        made["forecast"] = {
            "seconds": forecast.seconds,
            "training_s": forecast.training,
            "compiling_s": forecast.compiling,
            "beside_s": forecast.beside,
            "measured_cohorts": forecast.pilots,
            "measured_share_of_flops": forecast.share,
        }
    if found.where is not None:
        made["on"] = found.where.name
        made["seconds_at_least"] = sum(b.seconds for b in found.bounds.values())
        made["assumed"] = bound_lib.ASSUMED
    return made | {"cohorts": [_cohort(chunks, found) for chunks in plan.cohorts]}


def print_plan(found: _Found, *, counted: bool, everything: bool) -> None:
    """counted: with what is done of every cohort; everything: more than `MOST` of them."""
    plan, console = found.plan, show.console()
    rows = []
    differing = differing_lib.fields(plan.trials, known=KNOWN)
    dearest = sorted(plan.cohorts, key=lambda chunks: -sum(c.flops for c in chunks))[: None if everything else MOST]
    shown = {chunks[0].cohort for chunks in dearest}
    for chunks in plan.cohorts:
        if chunks[0].cohort not in shown:
            continue
        base, trials = chunks[0].base, [t for chunk in chunks for t in chunk.trials]
        values = _cohort(chunks, found)
        others = [show.span([config_lib.get(t, name) for t in trials], show.value) for name in differing]
        size, seconds = values.get("bytes_per_device"), values.get("seconds")
        rows.append(
            [
                show.count(sizes.non_embedding_params(base.model)),
                f"{base.model.d_model} x {base.model.n_layers}",
                show.count(base.batch_tokens),
                show.span([t.tokens for t in trials], show.count),
                show.span([t.optim.lr for t in trials], show.rate),
                *others,
                str(len(trials)),
                str(len(chunks)),
                show.flops(sum(c.flops for c in chunks)),
                *([str(values["done"])] if counted else []),
                *([f"{size / 2**30:.3g}" if size else "-"] if found.costs or found.bounds else []),
                *([show.seconds(seconds) if seconds else "-"] if found.forecast or found.bounds else []),
            ]
        )
    header = ["N", "width x depth", "batch", "tokens", "lr"]
    header += [name.rpartition(".")[2] for name in differing]
    header += ["trials", "chunks", "FLOPs"]
    header += ["done"] if counted else []
    header += ["least GiB a device" if found.bounds else "GiB a device"] if found.costs or found.bounds else []
    header += ["least time" if found.bounds else "time"] if found.forecast or found.bounds else []
    console.print(show.table(f"{plan.name}: {show.plural(len(plan.trials), 'trial')}", header, rows, left=0))
    if len(rows) < len(plan.cohorts):
        console.print(f"the {MOST} of {len(plan.cohorts)} cohorts that cost most; the others with --all")
    console.print(
        f"{show.plural(plan.programs, 'program')} to compile, {show.plural(len(plan.chunks), 'chunk')} of at most "
        f"{show.plural(max(len(c.trials) for c in plan.chunks), 'trial')}, {show.flops(plan.flops)} FLOPs; done: "
        f"{len(found.walls)} of {show.plural(len(plan.trials), 'trial')}"
    )
    if plan.trunks:
        console.print(saving(plan))
    if plan.repeats:
        console.print(f"{show.plural(plan.repeats, 'trial')} left out: the same config as another")
    for chunk in {c.cohort: c for c in found.left}.values():
        cost = found.costs.get(chunk.cohort)
        if cost is not None and not cost.fits:
            from engine import memory

            console.print(
                f"{progress.label(chunk)}: one trial takes {cost.bytes / 2**30:.3g} GiB, more than there is; set "
                f"{memory.advice(chunk.base)}",
                soft_wrap=True,
            )
    console.print(time_left(found), soft_wrap=True)


def saving(plan: Plan) -> str:
    """One line: what shared trunks save."""
    share = plan.saved_flops / plan.flops
    return f"shared trunks: {show.flops(plan.saved_flops)} of the FLOPs ({show.percent(share)}) are not trained twice"


def time_left(found: _Found) -> str:
    """One line; says what the estimate rests on."""
    plan, left, forecast = found.plan, found.left, found.forecast
    if not left:
        return "nothing left to run"
    if found.where is not None:
        total = sum(b.seconds for b in found.bounds.values())
        return f"time left on {found.where.name}: {show.at_least(total)} ({bound_lib.ASSUMED})"
    guess = plan_lib.estimate(plan, left, found.walls)
    if guess.seconds is not None:
        of = show.plural(guess.trials, "trial")
        return f"time left: about {show.seconds(guess.seconds)}, an estimate from {of} done"
    if forecast is not None:
        return f"time: about {show.seconds(forecast.seconds)} here; {describe(forecast)}"
    return "time: unknown until a chunk has run here; --measure finds out, --on h100-8 says the least it takes there"


def describe(forecast: Forecast) -> str:
    """What a forecast is made of, and rests on."""
    rest = forecast.cohorts - forecast.pilots
    return (
        f"steps {show.seconds(forecast.training)}, compiling {show.seconds(forecast.compiling)}, evaluation and files "
        f"{show.seconds(forecast.beside)}; {show.plural(forecast.pilots, 'cohort')} measured"
        + (f", which carry {forecast.share:.0%} of the FLOPs; {rest} by their FLOPs" if rest else "")
    )


def _cohort(chunks: Sequence[Chunk], found: _Found) -> dict[str, Any]:
    base, trials = chunks[0].base, [t for chunk in chunks for t in chunk.trials]
    values = {
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
        "done": sum(t.run_id in found.walls for t in trials),
    }
    if found.forecast is not None:
        seconds = found.forecast.by_chunk
        values["seconds"] = sum(seconds[c.id] for c in chunks if c.id in seconds)
    if chunks[0].cohort in found.costs:
        values["bytes_per_device"] = found.costs[chunks[0].cohort].bytes
    if chunks[0].cohort in found.bounds:
        bound = found.bounds[chunks[0].cohort]
        values |= {"seconds": bound.seconds, "bytes_per_device": bound.bytes}
    return values
