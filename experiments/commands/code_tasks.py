"""`stepseer code tasks`: small programming tasks made here, and texts to train on that give none of them away."""

from __future__ import annotations

import argparse
from collections import Counter

from experiments import outputs, show
from experiments.code import families, languages, tasks
from experiments.options import Parser, whole


def parser() -> Parser:
    made = Parser(
        "code tasks",
        "Small programming tasks, graded by level, in the languages that are installed here.",
        examples="  stepseer code tasks --out tasks.jsonl\n"
        "  stepseer code tasks --languages python,perl --count 200 --out tasks.jsonl --texts train.txt",
    )
    made.add_argument("--out", metavar="FILE.jsonl", required=True, help="the tasks")
    made.add_argument("--count", metavar="N", default="100", help="tasks; default 100")
    made.add_argument("--languages", metavar="L", help="with commas; default those installed that have tasks")
    made.add_argument("--families", metavar="F", help=f"with commas; default {', '.join(families.FAMILIES)}")
    made.add_argument("--texts", metavar="FILE.txt", help="solved examples to train on, of other chains of operations")
    made.add_argument("--examples", metavar="N", default="20000", help="how many of those; default 20000")
    made.add_argument("--seed", metavar="N", default="1", help="default 1")
    return made


def run(args: argparse.Namespace) -> int:
    out = outputs.output(args.out, "--out", (".jsonl",), [])
    text = outputs.output(args.texts, "--texts", (".txt",), [args.out]) if args.texts else None
    names = args.families.split(",") if args.families else list(families.FAMILIES)
    spoken = args.languages.split(",") if args.languages else languages.installed()
    seed = whole(args.seed, "--seed")
    made = families.tasks(whole(args.count, "--count"), seed=seed, families=names, languages=spoken)
    out.parent.mkdir(parents=True, exist_ok=True)
    tasks.write_tasks(made, out)
    if text:
        text.parent.mkdir(parents=True, exist_ok=True)
        examples = whole(args.examples, "--examples")
        with text.open("w") as file:
            for one in families.texts(examples, seed=seed, families=names, languages=spoken):
                file.write(one + "\n")
    counted = Counter((task.family, task.language, task.level) for task in made)
    if args.json:
        print(show.as_json({"out": str(out), "texts": text and str(text), "tasks": len(made),
                            "groups": [[*group, n] for group, n in sorted(counted.items())]}))  # fmt: skip
        return 0
    rows = [[family, language, str(level), str(n)] for (family, language, level), n in sorted(counted.items())]
    show.console().print(show.table("tasks", ["family", "language", "level", "tasks"], rows, left=2))
    print(f"{show.plural(len(made), 'task')} in {out}" + (f"; texts in {text}" if text else ""))
    return 0
