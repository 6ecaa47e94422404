"""`stepseer sweep table`: the rows of a results folder, to read or to save."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments import differing as differing_lib
from experiments import show
from experiments.commands.sweep_status import add_folder, open_folder
from experiments.errors import InputError
from experiments.options import Parser, one_of
from experiments.outputs import output
from experiments.pivot import Pivot, chosen, described, pivot

MANY = 5000  # trials, above which the terminal shows the columns of the run table only
MOST = 40  # rows on the terminal; files and JSON have all
SHOWN = ("params", "tokens", "lr", "batch_tokens", "loss", "eval_loss", "bpc", "seed", "reason")  # columns there


def parser() -> Parser:
    made = Parser(
        "sweep table",
        "Show the rows so far, best loss first within each size and budget; or write them as CSV or Parquet.",
        examples="  stepseer sweep table --out results\n"
        "  stepseer sweep table --out results --pivot weight_decay,lr\n"
        "  stepseer sweep table --out results --pivot qk_norm,weight_decay --where d_model=64\n"
        "  stepseer sweep table --out results --save runs.parquet\n"
        "  stepseer sweep table --out results --format csv > runs.csv",
    )
    add_folder(made)
    made.add_argument(
        "--pivot",
        metavar="ROWS,COLUMNS",
        help="the lowest loss by two columns or config fields, such as weight_decay,lr; of runs that differ only in "
        "their seed the mean. A line says over what else it is the lowest",
    )
    made.add_argument(
        "--where",
        metavar="COLUMN=VALUE",
        action="append",
        default=[],
        help="only rows that have this value of a column or config field, such as d_model=64; may be given again",
    )
    made.add_argument("--format", metavar="table|csv|parquet", help="table (default), csv, or parquet (needs --save)")
    made.add_argument("--save", metavar="FILE", help="write there; .csv or .parquet says which")
    made.add_argument("--all", action="store_true", help=f"more than {MOST} rows on the terminal")
    return made


def run(args: argparse.Namespace) -> int:
    form = _form(args)
    folder = open_folder(args)
    path = output(args.save, "--save", (Path(args.save).suffix,), ()) if args.save else Path()
    choice = args.pivot or args.where
    many = len(folder.run_ids) > MANY and form == "table" and not args.json and not choice
    rows = folder.read(SHOWN if many else None)
    if rows.empty:
        raise InputError(f"{folder.path} has no rows yet; run: stepseer sweep run {folder.grid} --out {folder.path}")
    rows, differing = (rows, []) if many else differing_lib.with_columns(rows)
    differing += ["seed"] if rows["seed"].nunique() > 1 else []
    rows = chosen(rows, args.where)
    found = pivot(rows, args.pivot) if args.pivot else None
    if found is not None:
        if form == "table" and not args.json:
            _print_pivot(found)
            return 0
        rows = _flat(found)
        if not args.json:
            print(described(found), file=sys.stdout if args.save else sys.stderr)
    if args.save:
        save(rows, path, form)
        if not args.json:
            print(f"{show.plural(len(rows), 'row')} in {args.save}")
    if args.json:
        records = rows.to_dict("records")
        print(show.as_json(records if found is None else {"what": described(found), "rows": records}))
    elif form == "csv" and not args.save:
        rows.to_csv(sys.stdout, index=False)
    elif not args.save:
        _print(rows, differing, everything=args.all)
    return 0


def _print_pivot(found: Pivot) -> None:
    cells = [
        [show.value(at), *map(_with_error, losses, errors)]
        for at, losses, errors in zip(found.loss.index, found.loss.to_numpy(), found.error.to_numpy())
    ]
    down, across = (str(name).rpartition(".")[2] for name in (found.loss.index.name, found.loss.columns.name))
    header = [down, *map(show.value, found.loss.columns)]
    title = f"lowest loss by {down} (down) and {across} (across)"
    console = show.console()
    console.print(show.table(title, header, cells, left=0))
    console.print(described(found), soft_wrap=True)


def _with_error(loss: float, error: float) -> str:
    return show.loss(loss) + (f" ± {error:.4f}" if math.isfinite(error) else "")


def _flat(found: Pivot) -> pd.DataFrame:
    """A row for every value down; for every one across a column, and where there are means one of standard errors."""
    losses = found.loss.rename(columns=str)
    if found.seeds[1] > 1:
        losses = losses.join(found.error.rename(columns=lambda name: f"{name}_se"))
    return losses.reset_index()


def save(rows: pd.DataFrame, path: Path, form: str) -> None:
    """Writes rows as csv or parquet; the file appears whole or not at all."""
    from laws.runs import write_parquet

    if form == "parquet":
        write_parquet(rows, path)
        return
    part = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.to_csv(part, index=False)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _form(args: argparse.Namespace) -> str:
    suffix = Path(args.save).suffix.removeprefix(".") if args.save else ""
    form = one_of(
        args.format or suffix or "table", ("table", "csv", "parquet"), "--format" if args.format else "--save"
    )
    if form == "parquet" and not args.save:
        raise InputError("--format parquet needs a file; add --save runs.parquet")
    if form == "table" and args.save:
        raise InputError(f"--save {args.save!r}: name a .csv or .parquet file")
    return form


def _print(rows: pd.DataFrame, differing: Sequence[str], *, everything: bool) -> None:
    rows = rows.sort_values(["params", "tokens", "loss"], ignore_index=True)
    best = rows.groupby(["params", "tokens"])["loss"].transform("min") == rows["loss"]
    shown = rows if everything else rows[:MOST]
    digits = next(n for n in range(8, 65) if rows["run_id"].str[:n].nunique() == len(rows))  # enough to tell them apart
    cells = [
        [
            show.count(row["params"]),
            show.count(row["tokens"]),
            show.rate(row["lr"]),
            show.count(row["batch_tokens"]),
            *(show.value(row[name]) for name in differing),
            show.loss(row["loss"]) + ("*" if is_best else " "),
            show.loss(row["eval_loss"]),
            show.bits(row["bpc"]),
            row["status"] if row["status"] == "ok" else f"{row['status']}: {row['reason']:.60}",
            row["run_id"][:digits],
        ]
        for row, is_best in zip(shown.to_dict("records"), best)
    ]
    header = ["N", "tokens", "lr", "batch"]
    header += [name.rpartition(".")[2] for name in differing] + ["loss ", "held-out", "bits/char", "status", "id"]
    console = show.console()
    console.print(show.table(show.plural(len(rows), "row"), header, cells, left=0))
    more = f"; {len(rows) - len(shown)} more rows with --all" if len(shown) < len(rows) else ""
    console.print(f"* best of its size and budget{more}")
