"""`stepseer code run`: samples of programming tasks, run in the sandbox: pass@k with credible intervals."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from experiments import outputs, show
from experiments.code import grading, tasks
from experiments.code.grading import Grade, Score
from experiments.code.tasks import Task
from experiments.errors import InputError
from experiments.options import Parser, fraction, one_of, positive, whole

GROUPS = ("language", "family", "level")


def parser() -> Parser:
    made = Parser(
        "code run",
        "How many of the tasks samples solve: each is run against its task's tests, isolated, and counted as pass@k.",
        examples="  stepseer code run tasks.jsonl samples.jsonl\n"
        "  stepseer code run HumanEval.jsonl samples.jsonl --k 1,10 --out grades.jsonl\n"
        "  stepseer code run tasks.jsonl samples.jsonl --by level --json",
    )
    made.add_argument("tasks", metavar="TASKS.jsonl", help="tasks: stepseer's, or HumanEval, MBPP, LiveCodeBench, "
                      "CRUXEval")  # fmt: skip
    made.add_argument(
        "samples", metavar="SAMPLES.jsonl", help="task_id with completion, or with solution, on each line"
    )
    made.add_argument("--k", metavar="K", default="1", help="of pass@k, with commas; default 1")
    made.add_argument("--by", metavar="GROUP", help=f"a row for each {', '.join(GROUPS)}")
    made.add_argument("--level", metavar="P", default="0.9", help="of the credible intervals; default 0.9")
    made.add_argument("--timeout", metavar="S", default="10", help="seconds that a run may take; default 10")
    made.add_argument("--workers", metavar="N", help="programs at once; default one a core")
    made.add_argument("--out", metavar="FILE.jsonl", help="write each sample's grade and reason there")
    made.add_argument("--throwaway-vm", action="store_true", help="run without isolation, where there is none: only in "
                      "a virtual machine that you will throw away")  # fmt: skip
    return made


def run(args: argparse.Namespace) -> int:
    ks = sorted({whole(part, "--k") for part in args.k.split(",")})
    level = fraction(args.level, "--level")
    seconds = positive(args.timeout, "--timeout")
    if args.by:
        one_of(args.by, GROUPS, "--by")
    out = outputs.output(args.out, "--out", (".jsonl",), [args.tasks, args.samples]) if args.out else None
    asked = tasks.read_tasks(args.tasks)
    samples = tasks.read_samples(args.samples, asked)
    sampled = Counter(sample.task_id for sample in samples)
    fewest = min(sampled.values())
    if ks[-1] > fewest:
        raise InputError(f"--k is {args.k}; pass@{ks[-1]} needs {ks[-1]} samples of a task, and one has {fewest}")
    grades = grading.grade(
        asked,
        samples,
        limits=replace(grading.LIMITS, wall_s=seconds, cpu_s=max(1, round(seconds))),
        workers=args.workers and whole(args.workers, "--workers"),
        throwaway_vm=args.throwaway_vm,
    )
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(asdict(one)) + "\n" for one in grades))
    groups = _groups(asked, grades, args.by)
    scores = {name: [grading.score(counted, k, level=level) for k in ks] for name, counted in groups.items()}
    missing = len(asked) - len(sampled)
    if args.json:
        print(show.as_json(_answer(groups, scores, grades, missing)))
    else:
        _print(groups, scores, grades, missing, level, out)
    return 0


def _groups(asked: Sequence[Task], grades: Sequence[Grade], by: str | None) -> dict[str, dict[str, tuple[int, int]]]:
    """Group -> task -> (samples, passed); "all" first."""
    counted = grading.counts(grades)
    found = {"all": counted}
    if by:
        group = {task.task_id: str(getattr(task, by)) for task in asked}
        for name in sorted(set(group[task] for task in counted)):
            found[f"{by} {name}"] = {task: pair for task, pair in counted.items() if group[task] == name}
    return found


def _answer(groups: Any, scores: dict[str, list[Score]], grades: Sequence[Grade], missing: int) -> dict[str, Any]:
    rows = {
        name: {
            "tasks": len(groups[name]),
            "samples": sum(n for n, _ in groups[name].values()),
            "passed": sum(c for _, c in groups[name].values()),
            "pass": {str(score.k): _interval(score) for score in of},
        }
        for name, of in scores.items()
    }
    return {"scores": rows, "status": dict(Counter(one.status for one in grades)), "tasks_without_samples": missing}


def _interval(score: Score) -> dict[str, Any]:
    these, others = ({"low": low, "high": high} for low, high in (score.these, score.others))
    return {"estimate": score.estimate, "level": score.level, "these_tasks": these, "tasks_like_these": others}


def _print(
    groups: Any, scores: dict[str, list[Score]], grades: Sequence[Grade], missing: int, level: float, out: Path | None
) -> None:
    rows = [
        [name, f"pass@{score.k}", str(len(groups[name])), f"{score.estimate:.3f}", _span(score.these),
         _span(score.others)] for name, of in scores.items() for score in of]  # fmt: skip
    head = ["", "", "tasks", "estimate", f"{level:.0%} of these tasks", f"{level:.0%} of tasks like these"]
    show.console().print(show.table("samples that pass", head, rows, left=2))
    told = Counter(one.status for one in grades)
    print(
        f"{show.plural(len(grades), 'sample')}: " + ", ".join(f"{count:,} {name}" for name, count in told.most_common())
    )
    if missing:
        print(f"note: {show.plural(missing, 'task')} without samples are not counted")
    if out:
        print(f"grades in {out}")


def _span(edges: tuple[float, float]) -> str:
    return f"{edges[0]:.3f} .. {edges[1]:.3f}"
