"""`stepseer datasets`: the published run tables, by name."""

from __future__ import annotations

import argparse
from typing import Any

import laws
from experiments import outputs, show
from experiments.options import Parser
from laws import datasets
from laws.errors import InputError
from laws.schema import nearest


def parser() -> Parser:
    made = Parser(
        "datasets",
        "The published run tables that fit, backtest and report know by name; of one of them, all that is known.",
        examples="  stepseer datasets\n"
        "  stepseer datasets gadre\n"
        "  stepseer datasets gadre --out gadre.csv           its runs, in the columns of a run table",
    )
    made.add_argument("name", metavar="NAME", nargs="?", help="one table")
    made.add_argument("--out", metavar="FILE.csv", help="write its runs there; downloads the table where it must")
    return made


def run(args: argparse.Namespace) -> int:
    tables = datasets.tables()
    if args.name is None:
        if args.out:
            raise InputError("--out writes the runs of one table: name it")
        rows = tables.to_dict("records")
        if args.json:
            print(show.as_json(rows))
            return 0
        shown = [[r["name"], r["recipes"].count(",") + 1 if r["recipes"] else 1, r["citation"]] for r in rows]
        shown = [[str(x) for x in row] for row in shown]
        show.console().print(show.table("published run tables", ["name", "recipes", "from"], shown, left=3))
        return 0
    if args.name not in datasets.TABLES:
        raise InputError(f"no table named {args.name!r}{nearest(args.name, datasets.names())}; `stepseer datasets`")
    (found,) = tables[tables["name"] == args.name].to_dict("records")
    answer: dict[str, Any] = found | {"home": found["home"] if isinstance(found["home"], str) else None}
    if args.out:
        path = outputs.output(args.out, "--out", (".csv",), [])
        runs = laws.load_runs(args.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        runs.to_csv(path, index=False)
        answer |= {"out": str(path), "runs": len(runs)}
    if args.json:
        print(show.as_json(answer))
        return 0
    for key, value in answer.items():
        print(f"{key:<10}{'collected from several files' if key == 'home' and value is None else value}")
    return 0
