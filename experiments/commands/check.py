"""`stepseer check`: is a fit to be trusted, in sentences."""

from __future__ import annotations

import argparse
from typing import Any

import laws
from experiments import compile_cache, show
from experiments.commands.allocate import about
from experiments.options import Parser

WORST = 8  # cells shown


def parser() -> Parser:
    made = Parser(
        "check",
        "Checks a fit of the loss against its runs, or others: coverage, residuals, outliers, sway of cells, prior.",
        examples="  stepseer check mine.nc results\n"
        "  stepseer check mine.nc results --no-prior         without refits: seconds\n"
        "  stepseer check mine.nc newer_runs.csv             runs that the law has not seen",
    )
    made.add_argument("posterior", metavar="POSTERIOR", help="a file from `fit`, or a packaged posterior of the loss")
    made.add_argument("runs", metavar="RUNS", help="the runs it was fitted to, or others: a name, a file, a folder")
    made.add_argument("--no-prior", action="store_true", help="leave out the checks of the prior, which refit the law")
    return made


def run(args: argparse.Namespace) -> int:
    posterior = laws.load_posterior(args.posterior)
    if not args.no_prior:
        compile_cache.use()
    found = laws.check(posterior, args.runs, prior=not args.no_prior)
    if args.json:
        print(show.as_json(_answer(args, found)))
        return 0
    print(about(posterior))
    if not found.fitted_to_these:
        print(f"{args.runs} is not the table it was fitted to: runs that the fit did not have are a test of it")
    print()
    for sentence in found.sentences:
        print(f"{'  !' if sentence in found.worries else 'ok '} {sentence}")
    worst = found.table.loc[found.table["deviation"].abs().sort_values(ascending=False).index].head(WORST)
    rows = [
        [show.count(r.params), show.count(r.tokens), show.loss(r.measured), show.loss(r.predicted),
         f"{100 * (r.measured / r.predicted - 1):+.2f}%", f"{r.deviation:+.1f}", f"{r.pareto_k:.2f}"]
        for r in worst.itertuples()
    ]  # fmt: skip
    known = "known_error" in worst
    head = ["N", "tokens", "measured", "law", "off", "in noise and known error" if known else "in noise", "Pareto k"]
    if known:
        head.append("known error")
        rows = [[*row, f"{error:.2%}"] for row, error in zip(rows, worst["known_error"])]
    print()
    show.console().print(show.table("the cells furthest from the law", head, rows, left=0))
    return 0


def _answer(args: argparse.Namespace, found: Any) -> dict[str, Any]:
    return {
        "law": found.law,
        "posterior": args.posterior,
        "fitted_to_these": found.fitted_to_these,
        "sentences": found.sentences,
        "worries": found.worries,
        "coverage": {f"{level:g}": share for level, share in found.coverage.items()},
        "residuals": found.residuals.to_dict("records"),
        "prior": found.prior,
        "sensitivity": None if found.sensitivity is None else found.sensitivity.to_dict("records"),
        "cells": found.table.to_dict("records"),
    }
