"""`stepseer ctf build`: counterfactual partners of programming problems."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from experiments import outputs, show
from experiments.code import sandbox, tasks
from experiments.code.ctf import build as build_lib
from experiments.code.ctf import embed, endpoint, perturb, problems
from experiments.code.ctf.build import Built, Candidate
from experiments.code.ctf.problems import Problem
from experiments.code.ctf.templates import TEMPLATES
from experiments.errors import InputError
from experiments.options import Parser, fraction, one_of, positive, whole


def parser() -> Parser:
    made = Parser(
        "ctf build",
        "Pairs of problems whose statements are nearly the same and whose solutions are not.",
        examples="  stepseer ctf build --out pairs.jsonl\n"
        "  stepseer ctf build --part training --count 500 --out samples.jsonl\n"
        "  stepseer ctf build --tasks MBPP.jsonl --endpoint http://localhost:8000/v1 --model NAME --out pairs.jsonl",
    )
    made.add_argument("--out", metavar="FILE.jsonl", required=True, help="the pairs")
    made.add_argument("--count", metavar="N", default="220", help="problems to start from; default 220")
    made.add_argument("--part", metavar="PART", default="benchmark", help="of the problems made here: benchmark "
                      "(default) or training; no problem is in both")  # fmt: skip
    made.add_argument("--seed", metavar="N", default="1", help="default 1")
    made.add_argument("--embedding", metavar="MODEL", default=embed.NGRAMS, help="what tells how far solutions are: a "
                      "model's folder, hf:NAME (transformers), or ngrams, which needs none (default)")  # fmt: skip
    made.add_argument("--epsilon", metavar="E", default=str(build_lib.EPSILON), help="largest edit distance of the "
                      "statements, as a share of the longer; default 0.13")  # fmt: skip
    made.add_argument("--tasks", metavar="TASKS.jsonl", help="start from these problems, which have solutions (needs "
                      "--endpoint); default: problems made here")  # fmt: skip
    made.add_argument("--endpoint", metavar="URL", help="ask a model for the partners: an OpenAI-compatible address")
    made.add_argument("--model", metavar="NAME", help="of the endpoint")
    made.add_argument("--key-env", metavar="NAME", default="OPENAI_API_KEY", help="environment variable with the key; "
                      "default OPENAI_API_KEY")  # fmt: skip
    made.add_argument("--candidates", metavar="N", default="4", help="rewrites asked of each problem; default 4")
    made.add_argument("--max-requests", metavar="N", default="1000", help="budget; default 1000")
    made.add_argument("--max-tokens", metavar="N", default="2M", help="budget, as the endpoint counts; default 2M")
    made.add_argument("--cache", metavar="DIR", help="keep answers there, and ask none of them again")
    made.add_argument("--workers", metavar="N", help="programs at once; default one a core")
    made.add_argument("--throwaway-vm", action="store_true", help="run without isolation, where there is none: only in "
                      "a virtual machine that you will throw away")  # fmt: skip
    return made


def run(args: argparse.Namespace) -> int:
    out = outputs.output(args.out, "--out", (".jsonl",), [args.tasks])
    count, seed = whole(args.count, "--count"), whole(args.seed, "--seed")
    epsilon = fraction(args.epsilon, "--epsilon")
    one_of(args.part, perturb.PARTS, "--part")
    how: dict[str, Any] = {"workers": args.workers and whole(args.workers, "--workers"),
                           "throwaway_vm": args.throwaway_vm}  # fmt: skip
    asked = _endpoint(args)
    if args.tasks and asked is None:
        raise InputError("--tasks needs --endpoint and --model: without a model only problems made here have partners")
    sandbox.require(args.throwaway_vm)
    embedding = embed.named(args.embedding)
    left: Counter[str] = Counter()
    say = None if args.json or not sys.stderr.isatty() else _say
    if args.tasks:
        given, left = build_lib.from_tasks(tasks.read_tasks(args.tasks), **how)
        if not given:
            raise InputError(f"{args.tasks} has no problem to start from: {_told(left)}")
        offered: list[tuple[Problem, list[Candidate]]] = [(problem, []) for problem in given[:count]]
    else:
        offered = made_here(count, args.part, seed)
    if asked is not None:
        shown = build_lib.build(made_here(24, "training", 1), epsilon=epsilon, **how).pairs
        wanted = [problem for problem, _ in offered]
        offered = endpoint.candidates(asked, wanted, whole(args.candidates, "--candidates"), shown, epsilon, seed)
        if not offered:
            raise InputError(f"the budget allows no request; --max-requests is {args.max_requests}, --max-tokens "
                             f"{args.max_tokens}")  # fmt: skip
    built = build_lib.build(offered, embedding, epsilon=epsilon, progress=say, **how)
    built.seeds.update(left)
    if not built.pairs:
        raise InputError(f"no pair was accepted of {len(offered)} problems: {_told(built.seeds + built.why)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    problems.write_pairs(built.pairs, out)
    _report(args, built, asked, len(offered), out)
    return 0


def made_here(
    count: int, part: str, seed: int, templates: tuple[perturb.Template, ...] = TEMPLATES
) -> list[tuple[Problem, list[Candidate]]]:
    """Seed problems of the templates, and their candidate partners."""
    found = []
    for template, filling in perturb.seeds(templates, count, part, seed):
        partners = [Candidate(perturb.problem(template, other), edit)
                    for other, edit in perturb.neighbours(template, filling, part)]  # fmt: skip
        found.append((perturb.problem(template, filling), partners))
    return found


def _endpoint(args: argparse.Namespace) -> endpoint.Endpoint | None:
    if not args.endpoint:
        if args.model:
            raise InputError("--model names a model of --endpoint; give its address too")
        return None
    if not args.model:
        raise InputError("--endpoint needs --model, the name that it knows its model by")
    return endpoint.Endpoint(
        args.endpoint,
        args.model,
        key=os.environ.get(args.key_env, ""),
        max_requests=whole(args.max_requests, "--max-requests"),
        max_tokens=int(positive(args.max_tokens, "--max-tokens")),
        cache=Path(args.cache).expanduser() if args.cache else None,
    )


def _report(
    args: argparse.Namespace, built: Built, asked: endpoint.Endpoint | None, n_problems: int, out: Path
) -> None:
    medians = build_lib.scores(built.pairs)
    used = {} if asked is None else {"requests": asked.requests, "tokens": asked.tokens, "cached": asked.cached,
                                     "unreadable": len(asked.failed)}  # fmt: skip
    if args.json:
        print(show.as_json({"out": str(out), "problems": n_problems, "pairs": len(built.pairs), "medians": medians,
                            "candidates_rejected": dict(built.why), "problems_without": dict(built.seeds),
                            "endpoint": used}))  # fmt: skip
        return
    groups = Counter((pair.original.family, pair.original.level) for pair in built.pairs)
    rows = [[family, str(level), str(n)] for (family, level), n in sorted(groups.items(), key=lambda g: g[0][::-1])]
    show.console().print(show.table("pairs", ["family", "level", "pairs"], rows))
    print(f"{show.plural(len(built.pairs), 'pair')} of {show.plural(n_problems, 'problem')} in {out}; medians: "
          f"D_Q {medians['d_q']:.3f}, D_S {medians['d_s']:.3f}, D_S - 1.2 D_Q {medians['score']:.3f}")  # fmt: skip
    if built.why:
        print(f"candidates rejected: {_told(built.why)}")
    if built.seeds:
        print(f"problems without a pair: {_told(built.seeds)}")
    if used:
        print("endpoint: " + ", ".join(f"{value} {name}" for name, value in used.items()))


def _told(counted: Counter[str]) -> str:
    return "; ".join(f"{count} {what}" for what, count in counted.most_common()) or "none was there"


def _say(line: str) -> None:
    print(f"\r{line:70}", end="", file=sys.stderr, flush=True)
