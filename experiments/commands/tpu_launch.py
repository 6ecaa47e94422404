"""`stepseer tpu launch`: manifests and scripts for clusters, from one description. Submits nothing."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path, PurePosixPath

from engine import config as config_lib
from engine.errors import InputError as EngineInputError
from experiments import cli, recipes, show
from experiments.errors import InputError
from experiments.options import Parser, settings
from tpu import description, launch
from tpu.description import Description


def parser() -> Parser:
    made = Parser(
        "tpu launch",
        "Render what a cluster is given: GKE JobSet, queued resources, Slurm, SkyPilot, KubeRay, container file.",
        examples="  stepseer tpu launch job.toml --dry-run\n  stepseer tpu launch job.toml --out launch",
    )
    made.add_argument("description", metavar="FILE", help="a TOML file: docs/tpu.md has one")
    made.add_argument("--dry-run", action="store_true", help="print the files, write nothing")
    made.add_argument("--out", metavar="DIR", help="write the files there")
    return made


def run(args: argparse.Namespace) -> int:
    if args.dry_run == bool(args.out):
        raise InputError(
            "give --dry-run, to print the files, or --out DIR, to write them" + " (not both)" * args.dry_run
        )
    job = description.read(args.description)
    note = _where_its_file_is(job, check_command(job))
    made, left = launch.render(job)
    if args.out:
        _write(Path(args.out).expanduser(), made)
    if args.json:
        print(show.as_json({"files": made, "left_out": left, "out": args.out, "note": note}))
        return 0
    console = show.console()
    for name, text in made.items():
        if args.dry_run:
            console.print(f"==== {name}", style="bold")
            print(text)
        else:
            print(Path(args.out) / name)
    for name, why in left.items():
        print(f"left out {name}: it needs {why}")
    if note:
        print(f"note: {note}")
    return 0


def check_command(job: Description) -> str:
    """The recipe or grid that the job's command names.

    Raises InputError where this stepseer does not take the command, or has no such recipe or field. A recipe in a file
    is the container's: it is not looked at.
    """
    words = job.argv("0")[1:]
    length = 2 if words[0] == "sweep" else 1
    module = import_module(f"experiments.commands.{cli.COMMANDS[' '.join(words[:length])][0]}")
    try:
        args = module.parser().parse(words[length:])
        name = args.recipe if words[0] == "train" else args.grid
        if ".py" in name or "/" in name:
            return name
        if words[0] == "train":
            config_lib.replace(recipes.load_one(name), settings(args.set))
        else:
            recipes.load(name)
    except (InputError, EngineInputError) as error:
        raise InputError(f"the job's command, stepseer {' '.join(words)}: {error}") from None
    return name


def _where_its_file_is(job: Description, name: str) -> str:
    """A line on the file of that recipe or grid, which the container file does not copy; empty where there is none, or
    it is on the volume."""
    file = name.partition(".py:")[0] + ".py" if ".py:" in name else name
    if not file.endswith((".py", ".yaml", ".yml")) or PurePosixPath(file).is_relative_to(job.mount):
        return ""
    there = f"{job.mount}/{PurePosixPath(name).name}"
    return f"Dockerfile does not copy {file}; copy it to the volume and name it {there} in the command"


def _write(out: Path, made: dict[str, str]) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        (out / name).write_text(text, encoding="utf-8")
        if name.endswith(".sh"):
            (out / name).chmod(0o755)
