"""`stepseer corpus build`: code by language, to measure on or to train on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from experiments import outputs, show
from experiments.errors import InputError
from experiments.options import Parser, fraction, positive


def parser() -> Parser:
    made = Parser(
        "corpus build",
        "A corpus of code by language: filtered by quality, licence and date, without duplicates and near-duplicates, "
        "in itself and with training data.",
        examples="  stepseer corpus build --out train --size 3M\n"
        "  stepseer corpus build --out heldout --size 300k --against train --seed 1\n"
        "  stepseer corpus build ~/src/* --after 2025-06-01 --licences permissive --out fresh",
    )
    made.add_argument("folders", metavar="FOLDER", nargs="*", help="checkouts or folders; default: the sources of "
                      "programs that this machine has")  # fmt: skip
    made.add_argument(
        "--out", metavar="DIR", required=True, help="a new folder: a folder a language, and manifest.json"
    )
    made.add_argument("--languages", metavar="L", help="with commas; default every programming language found")
    made.add_argument("--size", metavar="N", default="1M", help="characters a language, about; default 1M")
    made.add_argument("--against", metavar="CORPUS", action="append", default=[],
                      help="training data, of which nothing may be in it; may be repeated")  # fmt: skip
    made.add_argument("--licences", metavar="L", default="any", help="any (default), permissive, or names as in SPDX")
    made.add_argument("--after", metavar="DATE", help="files that first were there on this day or later")
    made.add_argument("--before", metavar="DATE", help="files that first were there before this day")
    made.add_argument("--near", metavar="S", default="0.7", help="similarity of near-duplicates; default 0.7")
    made.add_argument("--seed", metavar="N", default="0", help="of the order in which files are taken; default 0")
    return made


def run(args: argparse.Namespace) -> int:
    from experiments.code import corpus_build

    if not args.seed.isdigit():
        raise InputError(f"--seed is {args.seed!r}; it must be a whole number")
    wanted = corpus_build.Wanted(
        languages=tuple(args.languages.split(",")) if args.languages else (),
        size=round(positive(args.size, "--size")),
        licences=args.licences,
        after=args.after,
        before=args.before,
        near=fraction(args.near, "--near"),
        seed=int(args.seed),
    )
    out = Path(args.out).expanduser()
    outputs.output(str(out / "manifest.json"), "--out", (".json",), [])
    roots = [Path(f).expanduser().resolve() for f in args.folders] or corpus_build.machine()
    said = corpus_build.build(out, roots, wanted, args.against, _progress(args.json))
    if args.json:
        print(show.as_json({name: value for name, value in said.items() if name != "files"} | {"out": str(out)}))
        return 0
    rows = [[name, f"{one['files']:,}", f"{one['chars']:,}"] for name, one in said["languages"].items()]
    show.console().print(show.table(f"corpus {out}", ["language", "files", "characters"], rows))
    for title, counted in (("left out", said["left_out"]), ("licences", said["licences"])):
        print(f"{title}: " + ("; ".join(f"{n:,} {name}" for name, n in counted.items()) or "none"))
    if args.against:
        print(f"compared with {show.plural(said['training_files'], 'training file')}")
    return 0


def _progress(quiet: bool) -> Callable[[str, int], None] | None:
    if quiet or not sys.stderr.isatty():
        return None

    def say(stage: str, files: int) -> None:
        if files % 50 == 0:
            sys.stderr.write(f"\r{stage}: {files:,}\033[K\r")

    return say
