"""`stepseer code law`: benchmark scores against bits per character, a line in BPC or in its logarithm?"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from experiments import show
from experiments.options import Parser, fraction


def parser() -> Parser:
    made = Parser(
        "code law",
        "Are scores linear in bits per character, or in their logarithm, how surely, and what BPC does a score take?",
        examples="  stepseer code law scores.csv\n  stepseer code law scores.csv --score 0.6 --separate",
    )
    made.add_argument("table", metavar="TABLE.csv", help="columns model, bpc, correct, total and, for several, task")
    made.add_argument("--score", metavar="P", help="the BPC that this score takes, between 0 and 1")
    made.add_argument("--separate", action="store_true", help="each task's line for itself, not of one population")
    return made


def run(args: argparse.Namespace) -> int:
    from laws import compression

    wanted = fraction(args.score, "--score") if args.score else None
    table = compression.read(args.table)
    found = compression.compare(table, hierarchical=not args.separate)
    needed = {} if wanted is None else _needed(found, wanted)
    if args.json:
        print(show.as_json(_answer(found, needed)))
        return 0
    rows = [
        [form, str(row["task"]), f"{row['a_median']:.3f}", _span(row, "a"), f"{row['b_median']:.3f}", _span(row, "b"),
         f"{row['rmse']:.3f}", f"{row['pearson']:.3f}"]
        for form, fitted in found.fits.items() for row in fitted.summary.to_dict("records")]  # fmt: skip
    head = ["form", "task", "a", "90% of a", "b", "90% of b", "rmse", "correlation"]
    show.console().print(show.table("score = a + b BPC (linear), a + b ln BPC (log)", head, rows, left=2))
    print(found.sentence)
    for name, one in needed.items():
        low, high = (show.bits(edge) for edge in one.interval(0.9))
        print(f"a mean score of {wanted:g} takes a BPC of {show.bits(one.median)} ({low} .. {high}), by {name}")
    for warning in found.warnings:
        print(f"note: {warning}")
    return 0


def _needed(found: Any, score: float) -> dict[str, Any]:
    of_forms = {f"the {form} form": fitted.bpc_for(score) for form, fitted in found.fits.items()}
    return {**of_forms, "both, weighted": found.bpc_for(score)}


def _answer(found: Any, needed: dict[str, Any]) -> dict[str, Any]:
    return {
        "probability_log": found.probability,
        "weight_log": found.weight,
        "elpd_difference": found.difference,
        "se": found.se,
        "fits": {form: fitted.summary.to_dict("records") for form, fitted in found.fits.items()},
        "bpc_for": {name: show.summary(one, 0.9, 0) for name, one in needed.items()},
        "sentence": found.sentence,
        "warnings": found.warnings,
    }


def _span(row: Any, name: str) -> str:
    low, high = np.round([row[f"{name}_low"], row[f"{name}_high"]], 3)
    return f"{low:.3f} .. {high:.3f}"
