"""`stepseer ctf evaluate`: pass@1 on originals and on their counterfactual partners, and the drop between them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from experiments import compile_cache, outputs, show
from experiments.code import grading, sandbox, tasks
from experiments.code.ctf import evaluate, problems
from experiments.code.ctf.evaluate import Interval, Report
from experiments.code.ctf.problems import SIDES, Pair
from experiments.code.grading import Grade
from experiments.code.tasks import Sample
from experiments.errors import InputError
from experiments.options import Parser, fraction, one_of, positive, whole


def parser() -> Parser:
    made = Parser(
        "ctf evaluate",
        "How much less a model gets right when a detail of the problem changes: pass@1 on both sides of pairs.",
        examples="  stepseer ctf evaluate pairs.jsonl --model out\n"
        "  stepseer ctf evaluate pairs.jsonl --model out --samples-per-problem 5 --temperature 0.2 --out s.jsonl\n"
        "  stepseer ctf evaluate pairs.jsonl --write-tasks tasks.jsonl     prompts for a model elsewhere\n"
        "  stepseer ctf evaluate pairs.jsonl --samples samples.jsonl",
    )
    made.add_argument("pairs", metavar="PAIRS.jsonl", help="of ctf build or ctf review")
    made.add_argument("--model", metavar="MODEL", help="a folder as of stepseer generate")
    made.add_argument("--run", metavar="RUN_ID", help="which one, where a checkpoint holds several")
    made.add_argument("--samples", metavar="FILE.jsonl", help="answers made elsewhere: task_id (PAIR_ID/original, "
                      "PAIR_ID/partner) with completion, or with solution, on each line")  # fmt: skip
    made.add_argument("--write-tasks", metavar="FILE.jsonl", help="write the tasks there and stop; stepseer code run "
                      "reads them too")  # fmt: skip
    made.add_argument("--prompt", metavar="FORM", default="alpaca", help="alpaca (instruction and response; default) "
                      "or comment (the statement as a comment to go on from)")  # fmt: skip
    made.add_argument("--samples-per-problem", metavar="N", default="1", help="default 1")
    made.add_argument("--temperature", metavar="T", type=float, default=0.0, help="default 0: the likeliest")
    made.add_argument("--tokens", metavar="N", default="512", help="of an answer, at most; default 512")
    made.add_argument("--seed", metavar="N", type=int, default=0, help="the same seed samples the same")
    made.add_argument("--level", metavar="P", default="0.9", help="of the credible intervals; default 0.9")
    made.add_argument("--timeout", metavar="S", default="10", help="seconds that a program may take; default 10")
    made.add_argument("--workers", metavar="N", help="programs at once; default one a core")
    made.add_argument("--out", metavar="FILE.jsonl", help="write each sample, its grade and reason there")
    made.add_argument("--throwaway-vm", action="store_true", help="run without isolation, where there is none: only in "
                      "a virtual machine that you will throw away")  # fmt: skip
    return made


def run(args: argparse.Namespace) -> int:
    if sum(map(bool, (args.model, args.samples, args.write_tasks))) != 1:
        raise InputError("give one of --model MODEL, --samples FILE.jsonl and --write-tasks FILE.jsonl")
    one_of(args.prompt, problems.PROMPTS, "--prompt")
    level, seconds = fraction(args.level, "--level"), positive(args.timeout, "--timeout")
    count, longest = whole(args.samples_per_problem, "--samples-per-problem"), whole(args.tokens, "--tokens")
    if count > 1 and args.temperature == 0 and args.model:
        raise InputError("--samples-per-problem above 1 at --temperature 0 would be one answer repeated; raise one")
    read = [args.pairs, args.samples]
    out = outputs.output(args.out, "--out", (".jsonl",), read) if args.out else None
    pairs = problems.read_pairs(args.pairs)
    asked = evaluate.asked(pairs, args.prompt)
    if args.write_tasks:
        path = outputs.output(args.write_tasks, "--write-tasks", (".jsonl",), read)
        path.parent.mkdir(parents=True, exist_ok=True)
        tasks.write_tasks(asked, path)
        print(show.as_json({"out": str(path), "tasks": len(asked)}) if args.json else
              f"{show.plural(len(asked), 'task')} in {path}")  # fmt: skip
        return 0
    sandbox.require(args.throwaway_vm)
    if args.samples:
        samples = tasks.read_samples(args.samples, asked)
    else:
        import engine

        compile_cache.use()
        trained = engine.load(args.model, args.run)
        samples = evaluate.written(trained, asked, samples=count, temperature=args.temperature, max_new_tokens=longest,
                                   seed=args.seed, progress=None if args.json else _say)  # fmt: skip
    grades = evaluate.graded(
        asked,
        samples,
        limits=replace(grading.LIMITS, wall_s=seconds, cpu_s=max(1, round(seconds))),
        workers=args.workers and whole(args.workers, "--workers"),
        throwaway_vm=args.throwaway_vm,
    )
    if out:
        _write(out, samples, grades)
    groups = _by_level(pairs, grades, level)
    if args.json:
        print(show.as_json({name: asdict(one) for name, one in groups.items()}))
    else:
        _print(groups, level, out)
    return 0


def _by_level(pairs: Sequence[Pair], grades: Sequence[Grade], level: float) -> dict[str, Report]:
    found = {"all": evaluate.report(pairs, grades, level=level)}
    levels = sorted({pair.original.level for pair in pairs})
    for hard in levels if len(levels) > 1 else []:
        some = [pair for pair in pairs if pair.original.level == hard]
        found[f"level {hard}"] = evaluate.report(some, grades, level=level)
    return found


def _write(out: Path, samples: Sequence[Sample], grades: Sequence[Grade]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for sample, one in zip(samples, grades):
            text = {"solution" if sample.whole else "completion": sample.text}
            row = {"task_id": sample.task_id, **text, "status": one.status, "reason": one.reason}
            file.write(json.dumps(row) + "\n")


def _print(groups: dict[str, Report], level: float, out: Path | None) -> None:
    rows = []
    for name, one in groups.items():
        told = [_told(getattr(one, side)) for side in (*SIDES, "drop")]
        right = f"{one.both}/{one.only_original}/{one.only_partner}/{one.neither}"
        rows.append([name, str(one.pairs), *told, f"{one.above_zero:.2f}", right])
    head = ["", "pairs", "pass@1, originals", "pass@1, partners", "drop", "P(drop > 0)", "both/first/second/none"]
    show.console().print(show.table(f"counterfactual pairs, {level:.0%} intervals", head, rows))
    if out:
        print(f"samples and grades in {out}")


def _told(one: Interval) -> str:
    return f"{one.estimate:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _say(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} answers", end="\n" if done == total else "", file=sys.stderr, flush=True)
