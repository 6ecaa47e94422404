"""`stepseer quickstart`: the whole loop once, on the embedded corpus, with progress throughout."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import laws
from experiments import compile_cache, progress, quickstart, show
from experiments.commands.sweep_run import interrupted
from experiments.options import Parser
from experiments.study import Findings

LABELS = {"lr": "best lr tried", "batch_tokens": "best batch tried", "eval_loss": "held-out loss"}


def parser() -> Parser:
    made = Parser(
        "quickstart",
        "Ask a law, train a grid of small models, fit three laws to it, hold out the largest, write a report.",
        examples="  stepseer quickstart\n  stepseer quickstart --out elsewhere --json",
    )
    made.add_argument("--out", metavar="DIR", default="quickstart", help="results folder (default ./quickstart)")
    return made


def run(args: argparse.Namespace) -> int:
    began = time.monotonic()
    out, quiet = Path(args.out).expanduser(), args.json
    posterior = laws.load_posterior("steplaw")
    answer = posterior.predict(**quickstart.QUERY)
    if not quiet:
        print(f"1. Step Law, asked about {_scale(quickstart.QUERY)} (packaged posterior, no training):")
        for name, label, form in (("lr", "learning rate", show.rate), ("batch_tokens", "batch", show.count)):
            low, high = getattr(answer, name).interval(0.9)
            unit = " tokens" if name == "batch_tokens" else ""
            print(f"   best {label} {form(getattr(answer, name).median)}{unit}, 90%: {form(low)} .. {form(high)}")
        for warning in answer.warnings:
            print(f"   note: {warning}")
        print("\n2. A grid of real models on the source of Python's standard library, into " + str(out))
    compile_cache.use()
    with progress.watcher(quiet=quiet) as watcher:
        summary = quickstart.train(out, watcher)
    if summary.interrupted:
        return interrupted("run the same command again to go on", summary.signum)
    if not quiet:
        diverged = f", {summary.diverged} diverged" if summary.diverged else ""
        print(f"   {show.plural(summary.trials, 'trial')}{diverged}, in {show.seconds(summary.wall_s)}\n")
        print("3. Step Law, Chinchilla and Farseer fitted to them, with and without the largest models")

    found = quickstart.study(out, progress.stages(quiet=quiet))
    if quiet:
        print(show.as_json(_as_json(found, answer, summary, time.monotonic() - began)))
    else:
        _print(found)
        print(f"\n4. The report, with pictures: {found.report}")
        print(f"   All of it took {show.seconds(time.monotonic() - began)}.")
    return 0


def _scale(query: dict[str, float]) -> str:
    return f"{show.count(query['params'])} parameters and {show.count(query['tokens'])} tokens"


def _print(found: Findings) -> None:
    console = show.console()
    for law, test in found.backtests.items():
        console.print(show.table(*_heldout_table(law, test)))
    for refusal in found.refusals:
        print(f"   {refusal}")
    sys.stdout.flush()


def _heldout_table(law: str, test: Any) -> tuple[str, list[str], list[list[str]]]:
    forms = {"lr": show.rate, "batch_tokens": show.count}
    rows = []
    for r in test.table.itertuples():
        form = forms.get(r.quantity, show.loss)
        interval = f"{form(r.low)} .. {form(r.high)}"
        inside = "yes" if r.inside else "NO"
        rows.append(
            [LABELS[r.quantity], show.count(r.params), show.count(r.tokens), form(r.measured), form(r.median), interval]
            + [inside, *([show.percent(r.regret)] if law == "steplaw" else [])]
        )
    header = ["", "N", "tokens", "measured", "predicted", "90% interval", "inside"]
    if law == "steplaw":
        title = "steplaw, the largest models held out: training them at the tried settings nearest to its answer"
        title += f"\nwould have cost {show.percent(test.error)} of loss on average (regret)"
        return title, [*header, "regret"], rows
    return f"{law}, the largest models held out: off by {show.percent(test.error)} on average", header, rows


def _as_json(found: Findings, answer: Any, summary: Any, seconds: float) -> dict[str, Any]:
    def interval(quantity: Any) -> dict[str, float]:
        low, high = quantity.interval(0.9)
        return {"median": float(np.asarray(quantity.median)), "low": float(low), "high": float(high), "level": 0.9}

    return {
        "answer": {**quickstart.QUERY, "lr": interval(answer.lr), "batch_tokens": interval(answer.batch_tokens)},
        "trials": summary.trials,
        "train_s": summary.wall_s,
        "fitted": {law: p.meta["diagnostics"] for law, p in found.posteriors.items()},
        "heldout": {
            law: {"error": t.error, "coverage": t.coverage, "width": t.width, "points": t.table.to_dict("records")}
            for law, t in found.backtests.items()
        },
        "refusals": found.refusals,
        "report": str(found.report),
        "seconds": seconds,
    }
