"""`stepseer report`: everything the laws say about a run table, on one page with pictures."""

from __future__ import annotations

import argparse

from experiments import compile_cache, show
from experiments.commands.fit import add_runs, add_tuned
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
    add_tuned(made)
    made.add_argument("--out", metavar="FILE", default="report.html", help="the page (default ./report.html)")
    return made


def run(args: argparse.Namespace) -> int:
    out = output(args.out, "--out", (".html",), args.runs.split(","))
    compile_cache.use()
    title = f"Scaling laws of {args.recipe or args.runs}"
    chosen = {"target": args.target, "recipe": args.recipe, "tuned_by": args.tuned_by}
    found = study(args.runs, out, title=title, stage=stages(quiet=args.json), **chosen)
    if args.json:
        heldout = {law: test.summary() for law, test in found.backtests.items()}
        fitted = {law: post.meta["diagnostics"] for law, post in found.posteriors.items()}
        tuned = next((show.tuned(post.meta) for law, post in found.posteriors.items() if law != "steplaw"), {})
        said = tuned | {"refusals": found.refusals, "notes": found.notes}
        print(show.as_json({"out": str(out), "fitted": fitted, "heldout": heldout, **said}))
    else:
        for note in [*found.refusals, *found.notes]:
            print(f"note: {note}")
        for warning in dict.fromkeys(text for fitted in found.posteriors.values() for text in fitted.warnings):
            print(f"note: {warning}")
        print(f"{show.plural(len(found.runs), 'run')}, {', '.join(found.posteriors) or 'no law'} fitted: {out}")
    return 0
