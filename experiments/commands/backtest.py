"""`stepseer backtest`: hold out the largest runs, fit the rest, and see how far off the law would have been."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

import laws
from experiments import compile_cache, show
from experiments.commands.fit import add_runs, add_size, add_tuned
from experiments.options import Parser, one_of

HELDOUT = {"params": "the largest models", "compute": "the cells of most compute"}


def parser() -> Parser:
    made = Parser(
        "backtest",
        "Hold out the largest runs, fit the law to the others, and compare its prediction with what was measured.",
        examples="  stepseer backtest stack results\n  stepseer backtest steplaw steplaw-dense --heldout compute",
    )
    made.add_argument(
        "law",
        metavar="LAW",
        help="of the loss: stack (the default answer), nested, farseer, chinchilla ...; steplaw",
    )
    add_runs(made)
    add_size(made)
    add_tuned(made)
    made.add_argument(
        "--heldout", metavar="BY", default="params", help="hold out the largest params (default) or the most compute"
    )
    return made


def run(args: argparse.Namespace) -> int:
    from experiments.progress import bar

    compile_cache.use()
    heldout = one_of(args.heldout, tuple(HELDOUT), "--heldout")
    with bar(f"fitting {args.law} without {HELDOUT[heldout]}", quiet=args.json) as moved:
        chosen = {"target": args.target, "recipe": args.recipe, "size": args.size, "tuned_by": args.tuned_by}
        result = laws.backtest(args.law, args.runs, heldout=heldout, progress=moved or False, **chosen)
    if args.json:
        print(show.as_json(result.summary()))
        return 0
    rows = [[_cell(name, value) for name, value in row.items()] for row in result.table.to_dict("records")]
    title = f"{args.law}: {HELDOUT[heldout]} held out"
    show.console().print(show.table(title, [str(name) for name in result.table.columns], rows, left=0))
    kind = "mean error of the predicted loss"
    if args.law == "steplaw":
        kind = "mean regret of the tried settings nearest to the law's"
    print(f"{kind} {show.percent(result.error)}; 90% intervals {show.percent(result.width)} wide")
    for level, share in result.coverage.items():
        print(f"{share:.0%} of the measurements inside the {float(level):.0%} interval")
    if args.law == "steplaw":
        print(
            "note: measured is the best setting tried; median, low and high say which of those tried the law expects "
            "to end best (intervals on a grid hold a little more than their share)"
        )
    if args.tuned_by:
        print("note: measured is what Step Law makes of a cell's runs: the loss at its best lr and batch_tokens")
    return 0


def _cell(column: Any, value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "NO"
    if isinstance(value, str):
        return value
    if column == "regret":
        return show.percent(value)
    return show.count(value) if column in ("params", "tokens", "batch_tokens") else f"{value:.4g}"
