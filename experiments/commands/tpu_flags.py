"""`stepseer tpu flags`: the compiler flags of an accelerator, each with its reason."""

from __future__ import annotations

import argparse
import dataclasses

from experiments import show
from experiments.errors import InputError
from experiments.options import Parser
from tpu import flags


def parser() -> Parser:
    made = Parser(
        "tpu flags",
        "Show the compiler flags of a TPU generation or a GPU, each with its reason.",
        examples="  stepseer tpu flags v5e\n"
        "  stepseer tpu flags h100 --deterministic\n"
        '  eval "$(stepseer tpu flags v6e --shell)"',
    )
    made.add_argument("chip", metavar="CHIP", help=f"one of: {', '.join([*flags.TPUS, *flags.GPUS])}")
    made.add_argument(
        "--deterministic", action="store_true", help="with those that make two runs equal bit for bit (GPUs; TPUs are)"
    )
    made.add_argument("--shell", action="store_true", help="as export lines")
    return made


def run(args: argparse.Namespace) -> int:
    if args.shell and args.json:
        raise InputError("--shell and --json are two formats; ask for one")
    chip = flags.chip_named(args.chip)
    found = flags.flags(chip, deterministic=args.deterministic)
    if args.json:
        values = flags.environment(chip, deterministic=args.deterministic)
        print(show.as_json({"chip": chip.name, "environment": values, "flags": list(map(dataclasses.asdict, found))}))
    elif args.shell:
        print(flags.shell(chip, deterministic=args.deterministic), end="")
    else:
        rows = [[f.variable, f.text, f.reason] for f in found]
        show.console().print(show.table(f"{chip.name}: environment", ["variable", "value", "reason"], rows, left=3))
    return 0
