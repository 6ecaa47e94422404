"""`stepseer compare`: which of two recipes is better where. Imports neither jax nor the trainer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import laws
from experiments import covariates, show
from experiments.commands.allocate import about, flop, picture_path, save_picture
from experiments.errors import InputError
from experiments.options import Parser, positives

SHOWN = 5  # rows and columns of a table; more are thinned


def parser() -> Parser:
    made = Parser(
        "compare",
        "The probability that recipe A ends with a lower loss than B, over sizes and tokens, and where they cross.",
        examples="  stepseer compare english.nc mixed.nc\n"
        "  stepseer compare english.nc mixed.nc --params 1B,7B,70B --tokens 100B,1T,10T --plot which.svg\n"
        "  stepseer compare pooled.nc --recipes english,mixed     two recipes of one fit of pooled",
    )
    made.add_argument("a", metavar="A", help="a posterior of the loss: a file from `fit`")
    made.add_argument("b", metavar="B", nargs="?", help="another, fitted to the same loss column of another recipe")
    made.add_argument("--recipes", metavar="X,Y", help="without B: two recipes of A, a fit of pooled")
    made.add_argument("--params", metavar="N", help="sizes, increasing; default the data of both and ten times beyond")
    made.add_argument("--tokens", metavar="D", help="tokens, increasing; default likewise")
    covariates.add(made)
    made.add_argument("--plot", metavar="FILE", help="a picture, .svg, .png or .pdf")
    return made


def run(args: argparse.Namespace) -> int:
    given = {c: positives(getattr(args, c), f"--{c}") for c in ("params", "tokens") if getattr(args, c)}
    picture = picture_path(args.plot, args.a, args.b)
    a, b = _two(args)
    found = laws.compare(a, b, **given, **covariates.given(args, a, b))
    if picture:
        from laws import plots_answers

        save_picture(plots_answers.comparison(found), picture)
    if args.json:
        print(show.as_json(_answer(args, found, [p.meta.get("tuned_by") for p in (a, b)])))
        return 0
    _print(args, a, b, found)
    for warning in found.warnings:
        print(f"note: {warning}")
    if picture:
        print(f"picture in {picture}")
    return 0


def _answer(args: argparse.Namespace, found: Any, tuned_by: list[str | None]) -> dict[str, Any]:
    low, high = found.difference.interval(0.9)
    return {
        "a": args.a,
        "b": args.b or args.a,
        "recipes": args.recipes and args.recipes.split(","),
        **covariates.described(args),
        **({"tuned_by": tuned_by} if any(tuned_by) else {}),
        "params": found.params,
        "tokens": found.tokens,
        "probability": found.probability,
        "difference": {"median": found.difference.median, "low": low, "high": high, "level": 0.9},
        "crossings": found.crossings.to_dict("records"),
        "budgets": found.budgets.to_dict("records"),
        "crossing": found.crossing,
        "warnings": found.warnings,
    }


def _two(args: argparse.Namespace) -> tuple[laws.Posterior, laws.Posterior]:
    if (args.b is None) == (args.recipes is None):
        raise InputError("give B, another posterior, or --recipes X,Y, two recipes of a pooled fit")
    if args.recipes is None:
        if Path(args.a).resolve() == Path(args.b).resolve():
            raise InputError(f"A and B are both {args.a}; give two posteriors, or --recipes X,Y of a pooled fit")
        return laws.load_posterior(args.a), laws.load_posterior(args.b)
    names = args.recipes.split(",")
    if len(names) != 2 or names[0] == names[1]:
        raise InputError(f"--recipes is {args.recipes!r}; give two different names with a comma")
    both = laws.load_posterior(args.a)
    return both.of(names[0]), both.of(names[1])


def _print(args: argparse.Namespace, a: laws.Posterior, b: laws.Posterior, found: Any) -> None:
    print(f"A: {args.a}: {about(a)}\nB: {args.b or args.a}: {about(b)}\n")
    console = show.console()
    rows, columns = _thinned(len(found.params)), _thinned(len(found.tokens))
    low, high = (100 * edge for edge in found.difference.interval(0.9))
    cells = [
        [show.count(found.params[i]), *(f"{found.probability[i, j]:.0%} ({low[i, j]:+.2g}% .. {high[i, j]:+.2g}%)"
                                        for j in columns)] for i in rows]  # fmt: skip
    title = "probability that A is better (90% interval of A's loss over B's)"
    console.print(show.table(title, ["N \\ tokens", *(show.count(found.tokens[j]) for j in columns)], cells))
    head = ["", "fewer", "more", "draws that cross", "there, median", "90% interval"]
    lines = [[f"tokens at N = {show.count(row['params'])}", *_crossing(row, show.count)]
             for row in found.crossings.iloc[rows].to_dict("records")]  # fmt: skip
    lines.append(["FLOP, each at its best N", *_crossing(found.crossing, flop)])
    console.print(show.table("where the better one changes", head, lines))


def _crossing(row: dict[str, Any], form: Any) -> list[str]:
    known = np.isfinite(row["median"])
    where = [form(row["median"]), f"{form(row['low'])} .. {form(row['high'])}"] if known else ["-", "-"]
    again = " again" if row["before"] == row["after"] and row["share"] > 0.5 else ""  # it changes twice
    return [row["before"].upper(), row["after"].upper() + again, f"{row['share']:.0%}", *where]


def _thinned(n: int) -> list[int]:
    return list(range(n)) if n <= SHOWN else [int(i) for i in np.linspace(0, n - 1, SHOWN).round()]
