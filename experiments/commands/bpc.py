"""`stepseer bpc`: bits per character of a model on code, by language."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from experiments import compile_cache, outputs, show
from experiments.commands.generate import add_model
from experiments.errors import InputError
from experiments.options import Parser, one_of, whole

WINDOW, STRIDE = 1900, 512  # of Huang et al. 2024; as in experiments.code.bpc, which imports the engine
CONVENTIONS = ("files", "predecessor")
BACKENDS = ("auto", "engine", "transformers")


def parser() -> Parser:
    made = Parser(
        "bpc",
        "How well a model compresses code: bits per character, by language, with standard errors over files.",
        examples="  stepseer bpc out heldout\n  stepseer bpc out stdlib --heldout\n"
        "  stepseer bpc Qwen3-0.6B heldout --languages python,c --out files.csv --json",
    )
    add_model(made)
    made.add_argument("corpus", metavar="CORPUS", help="a folder of source files, such as stepseer corpus build makes; "
                      "a file; or stdlib")  # fmt: skip
    made.add_argument("--languages", metavar="L", help="these alone, with commas")
    made.add_argument("--heldout", action="store_true", help="only what training on data.corpus=CORPUS leaves out")
    made.add_argument(
        "--window", metavar="N", help=f"tokens; default {WINDOW}, or what the model was trained on if less"
    )
    made.add_argument("--stride", metavar="N", help=f"tokens; default {STRIDE}, or that share of a smaller window")
    made.add_argument("--convention", metavar="C", default="files", help="files (default), or predecessor: Huang et al."
                      " 2024, one stream a language, its tail left out")  # fmt: skip
    made.add_argument("--backend", metavar="B", default="auto", help="auto (default), engine, or transformers")
    made.add_argument("--out", metavar="FILE.csv", help="write each file's characters, tokens and bits there")
    return made


def run(args: argparse.Namespace) -> int:
    one_of(args.convention, CONVENTIONS, "--convention")
    one_of(args.backend, BACKENDS, "--backend")
    asked = {name: whole(getattr(args, name), f"--{name}") for name in ("window", "stride") if getattr(args, name)}
    out = outputs.output(args.out, "--out", (".csv",), []) if args.out else None

    from experiments.code import bpc, corpus, scorers

    texts = corpus.read(
        args.corpus, languages=args.languages.split(",") if args.languages else (), heldout=args.heldout
    )
    compile_cache.use()
    scorer = scorers.load(args.model, args.run, args.backend)
    window, stride = sizes(scorer.context, **asked)
    table = bpc.measure(
        scorer, texts, window=window, stride=stride, convention=args.convention, progress=_progress(args.json)
    )
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(out, index=False)
    found = bpc.rates(table)
    mean, mean_se = bpc.mean_of_languages(found)
    notes = _notes(scorer.context, window, found)
    if args.json:
        how = {"window": window, "stride": stride, "convention": args.convention, "computed_by": scorer.computed_by}
        languages = {name: dataclasses.asdict(one) for name, one in found.items()}
        print(show.as_json({"model": args.model, "corpus": args.corpus, **how, "all": languages.pop("all"),
                            "languages": languages, "mean_of_languages": {"bpc": mean, "se": mean_se},
                            "notes": notes}))  # fmt: skip
        return 0
    rows = [[name, show.bits(one.bpc), _se(one.se), f"{one.files:,}", f"{one.chars:,}", f"{one.tokens:,}",
             f"{one.chars / one.tokens:.2f}"] for name, one in found.items()]  # fmt: skip
    if len(found) > 2:
        rows.append(["mean of languages", show.bits(mean), _se(mean_se), "", "", "", ""])
    head = ["", "bits per character", "s.e.", "files", "characters", "tokens", "characters a token"]
    show.console().print(show.table(f"{args.model} on {args.corpus}", head, rows))
    print(f"window {window}, stride {stride}, convention {args.convention}, computed by {scorer.computed_by}")
    for note in notes:
        print(f"note: {note}")
    return 0


def sizes(context: int | None, window: int | None = None, stride: int | None = None) -> tuple[int, int]:
    """(window, stride) in tokens: the defaults, in proportion where the model's context is shorter. Raises InputError
    for a stride above the window."""
    window = window or min(WINDOW, context or WINDOW)
    stride = stride or max(1, min(STRIDE, round(window * STRIDE / WINDOW)))
    if stride > window:
        raise InputError(f"--stride is {stride}, above the window of {window}: tokens between would not be scored")
    return window, stride


def _notes(context: int | None, window: int, found: Any) -> list[str]:
    notes = []
    if context and window > context:
        notes.append(f"the window is {window} tokens, but the model was trained on {context}: it may do badly beyond")
    if any(one.files == 1 for one in found.values()):
        notes.append("a standard error needs two files")
    return notes


def _se(value: float) -> str:
    return f"{value:.4f}" if value == value else "-"


def _progress(quiet: bool) -> Callable[[int, int], None] | None:
    if quiet or not sys.stderr.isatty():
        return None

    def say(done: int, total: int) -> None:
        sys.stderr.write(f"\rscored {done:,} of {total:,} tokens" + ("\r\033[K" if done == total else ""))

    return say
