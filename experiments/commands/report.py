"""`stepseer report`: everything the laws say about a run table, on one page with pictures."""

from __future__ import annotations

import argparse

from experiments import compile_cache, show
from experiments.commands.fit import add_runs
from experiments.options import Parser
from experiments.outputs import output
from experiments.progress import stages
from experiments.study import study


def parser() -> Parser:
    made = Parser(
        "report",
        "Fit Step Law, Chinchilla, Farseer and the stack, hold out the largest models, and write one HTML page.",
        examples="  stepseer report results --target eval_loss\n  stepseer report steplaw-dense --out dense.html",
    )
    add_runs(made)
    made.add_argument("--out", metavar="FILE", default="report.html", help="the page (default ./report.html)")
    return made


def run(args: argparse.Namespace) -> int:
    out = output(args.out, "--out", (".html",), args.runs.split(","))
    compile_cache.use()
    title = f"Scaling laws of {args.recipe or args.runs}"
    found = study(args.runs, out, target=args.target, recipe=args.recipe, title=title, stage=stages(quiet=args.json))
    if args.json:
        heldout = {law: test.summary() for law, test in found.backtests.items()}
        fitted = {law: post.meta["diagnostics"] for law, post in found.posteriors.items()}
        print(show.as_json({"out": str(out), "fitted": fitted, "heldout": heldout, "refusals": found.refusals}))
    else:
        for refusal in found.refusals:
            print(f"note: {refusal}")
        for warning in dict.fromkeys(text for fitted in found.posteriors.values() for text in fitted.warnings):
            print(f"note: {warning}")
        print(f"{show.plural(len(found.runs), 'run')}, {', '.join(found.posteriors) or 'no law'} fitted: {out}")
    return 0
