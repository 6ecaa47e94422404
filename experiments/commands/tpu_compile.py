"""`stepseer tpu compile`: a recipe's step, compiled for a TPU slice on a machine without one."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from engine import config as config_lib
from experiments import recipes, show
from experiments.errors import InputError
from experiments.options import Parser, settings, whole
from tpu import topologies

if TYPE_CHECKING:
    from engine.config import TrainConfig
    from tpu.compile import Report

PALLAS = "tpu_custom_call"  # the target of a kernel's call


def parser() -> Parser:
    made = Parser(
        "tpu compile",
        "Compile a recipe's train step for a TPU slice, with no TPU at hand: does it fit, and how fast at best?",
        examples="  stepseer tpu compile steplaw_1b --topology v5e-256\n"
        "  stepseer tpu compile moe_2b --topology v5p-128 --search\n"
        "  stepseer tpu compile population_64 --topology v6e-64 --set compute.remat=dots --json",
    )
    made.add_argument(
        "recipe", metavar="RECIPE", help="path/to/file.py:function, or one of: " + ", ".join(recipes.names())
    )
    made.add_argument(
        "--topology", metavar="NAME", required=True, help="such as v5e-256 or v5p:4x4x4; all: stepseer tpu topologies"
    )
    made.add_argument(
        "--set", metavar="FIELD=VALUE", action="append", default=[], help="change a config field; may be repeated"
    )
    made.add_argument("--trials", metavar="N", help="the grid's first N trials only")
    made.add_argument("--largest", action="store_true", help="all trials at a time, or half, a quarter...: which fits?")
    made.add_argument("--search", action="store_true", help="try meshes, remat and micro-batches; rank those that fit")
    made.add_argument("--most", metavar="N", default="8", help="layouts that --search compiles at most (default: 8)")
    return made


def run(args: argparse.Namespace) -> int:
    where = topologies.find(args.topology)
    if args.search and args.largest:
        raise InputError("--search and --largest are two questions; ask one")
    trials = _trials(args)
    from tpu import compile as compile_lib
    from tpu import search

    if args.search:
        reports = search.search(trials, where, most=whole(args.most, "--most"), on_report=_progress(quiet=args.json))
        if args.json:
            print(show.as_json({"layouts": [as_dict(r) for r in reports]}))
        else:
            _print_layouts(args.recipe, reports)
        return 0
    if args.largest:
        report = search.largest(trials, where, on_report=_progress(quiet=args.json))
    else:
        report = compile_lib.compile_step(trials, where)
    if args.json:
        print(show.as_json(as_dict(report)))
    else:
        _print(args.recipe, report)
    if args.largest and report.fits and not args.json:
        n = report.n_trials
        print(
            f"{n} of {show.plural(len(trials), 'trial')} at a time: stepseer sweep run {args.recipe} --max-trials {n}"
        )
    return 0


def _trials(args: argparse.Namespace) -> list[TrainConfig]:
    changes = settings(args.set)
    trials = [config_lib.replace(t, changes) for t in recipes.load(args.recipe)]
    if args.trials is None:
        return trials
    n = whole(args.trials, "--trials")
    if n > len(trials):
        raise InputError(f"--trials is {n}, but {args.recipe} has {show.plural(len(trials), 'trial')}; ask for fewer")
    return trials[:n]


def as_dict(report: Report) -> dict[str, Any]:
    """What --json prints. Bytes and FLOPs are of one step, of one chip unless their name says otherwise."""
    memory, line, config = report.memory, report.roofline, report.config
    found: dict[str, Any] = {
        "fits": report.fits,
        "topology": report.where.name,
        "chips": report.where.chips,
        "chips_used": report.chips,
        "hosts": report.where.hosts,
        "trials": report.n_trials,
        "mesh": dataclasses.asdict(config.mesh),
        "compute": dataclasses.asdict(config.compute),
        "bytes_per_chip": memory.total,
        "bytes_per_chip_by_kind": {k: v for k, v in dataclasses.asdict(memory).items() if k not in ("total", "limit")},
        "bytes_per_chip_limit": memory.limit or int(report.where.chip.memory),
        "compile_s": report.compile_s,
    }
    if line is None:
        return found | {"advice": report.advice}
    from tpu import roofline

    return found | {
        "collectives": {kind: {"count": n, "bytes": size} for kind, (n, size) in report.messages.items()},
        "pallas_calls": report.kernels.get(PALLAS, 0),
        "step_s": line.step_s,
        "bound": line.bound,
        "arithmetic_s": line.arithmetic_s,
        "memory_s": line.memory_s,
        "messages_s": line.messages_s,
        "mfu": line.mfu(report.where, report.chips),
        "flops": line.model_flops,
        "tokens_per_s": config.batch_tokens * report.n_trials / line.step_s,
        "assumptions": list(roofline.ASSUMPTIONS),
    }


def _progress(*, quiet: bool) -> Any:
    def show_one(i: int, n: int, report: Report) -> None:
        if not quiet:
            trials = f"{report.n_trials} trials, " if report.n_trials > 1 else ""
            fits = "fits" if report.fits else "does not fit"
            print(f"{i}/{n}: {trials}{_layout(report)}: {fits}", file=sys.stderr)

    return show_one


def _layout(report: Report) -> str:
    mesh, compute = report.config.mesh, report.config.compute
    axes = [f"{axis} {size}" for axis, size in dataclasses.asdict(mesh).items() if size > 1]
    micro = f", micro_batch {compute.micro_batch}" if compute.micro_batch else ""
    return f"{', '.join(axes) or 'one device'}; remat {compute.remat}{micro}"


def _print_layouts(recipe: str, reports: list[Report]) -> None:
    console = show.console()
    rows = [
        [
            _layout(r),
            "yes" if r.fits else "no",
            _size(r.memory.total),
            f"{r.roofline.step_s:.3g} s" if r.roofline else "-",
            r.roofline.bound if r.roofline else "-",
            show.percent(r.roofline.mfu(r.where, r.chips)) if r.roofline else "-",
        ]
        for r in reports
    ]
    header = ["layout", "fits", "memory a chip", "step, at least", "bound by", "MFU, at most"]
    console.print(show.table(f"{recipe} on {reports[0].where.name}, fastest first", header, rows))
    best = reports[0]
    if best.fits:
        mesh = [f"--set mesh.{axis}={size}" for axis, size in dataclasses.asdict(best.config.mesh).items()]
        compute = [f"--set compute.{name}={getattr(best.config.compute, name)}" for name in ("remat", "micro_batch")]
        console.print("the first: " + " ".join([*mesh, *compute]), soft_wrap=True)
    else:
        console.print(f"none fits; change {best.advice}", soft_wrap=True)


def _print(recipe: str, report: Report) -> None:
    from tpu import roofline

    console, where, memory, config = show.console(), report.where, report.memory, report.config
    trials = f", {report.n_trials} trials" if report.n_trials > 1 else ""
    console.print(
        f"{recipe}{trials} on {where.name}: {where.chips} chips ({where.shape}) of {show.plural(where.hosts, 'host')}"
    )
    idle = f"; {where.chips - report.chips} chips idle" if report.chips < where.chips else ""
    console.print(f"layout: {_layout(report)}{idle}", soft_wrap=True)
    if report.fits:
        console.print(f"fits: {_size(memory.total)} of {_size(where.chip.memory)} a chip")
    else:
        console.print(f"does not fit: {_size(memory.total)} of {_size(memory.limit or 0)} a chip", style="bold")
        console.print(f"change: {report.advice}", soft_wrap=True)
    kinds = [(k, v) for k, v in dataclasses.asdict(memory).items() if k not in ("total", "limit")]
    console.print(show.table("memory", ["", "of a chip"], [[k, _size(v)] for k, v in kinds]))
    line = report.roofline
    if line is None:
        return
    rows = [[kind, f"{n:,}", f"{size / 1e9:,.3g} GB"] for kind, (n, size) in report.messages.items()]
    if rows:
        console.print(show.table("collectives of a step, of a chip", ["", "times", "bytes"], rows))
    else:
        console.print("collectives: none")
    kernels = [f"attention {config.compute.attention}"]
    if config.model.n_experts > 1:
        kernels.append(f"experts {config.model.moe_matmul if not config.model.capacity_factor else 'capacity'}")
    console.print(f"Pallas kernels: called at {report.kernels.get(PALLAS, 0)} places ({', '.join(kernels)})")
    tokens = config.batch_tokens * report.n_trials
    console.print(
        f"step: at least {line.step_s:.3g} s, {show.count(tokens / line.step_s)} tokens/s, bound by {line.bound} "
        f"(arithmetic {line.arithmetic_s:.3g} s, memory {line.memory_s:.3g} s, messages {line.messages_s:.3g} s)",
        soft_wrap=True,
    )
    console.print(
        f"FLOPs of a step: {show.flops(line.model_flops)}; MFU: at most {show.percent(line.mfu(where, report.chips))}"
    )
    whole_run = config.steps * line.step_s
    console.print(f"whole run: {show.at_least(whole_run)} for {show.count(config.tokens)} tokens a trial")
    console.print("assumed: " + "; ".join(roofline.ASSUMPTIONS), soft_wrap=True)
    console.print(f"compiled in {report.compile_s:.0f} s")


def _size(value: float) -> str:
    """'1.50 GiB', '3.2 MiB'."""
    return f"{value / topologies.GIB:.2f} GiB" if value >= 0.1 * topologies.GIB else f"{value / 2**20:.1f} MiB"
