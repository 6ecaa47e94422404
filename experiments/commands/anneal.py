"""`stepseer anneal`: Format Annealing of pretrained models, all alike, and what it changes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments import compile_cache, outputs, show
from experiments.errors import InputError
from experiments.options import Parser, fraction, positive, whole


def parser() -> Parser:
    made = Parser(
        "anneal",
        "Format Annealing: teaches pretrained models how benchmarks ask, in a short run whose learning rate falls to "
        "zero, on the same mixture for all; bits per character and answers before and after.",
        examples="  stepseer anneal small large --code train --heldout heldout --out annealed\n"
        "  stepseer anneal mine --code train --out annealed --share 0.3 --lr 1e-3 --benchmark HumanEval.jsonl",
    )
    made.add_argument("models", metavar="MODEL", nargs="+", help="results folders of stepseer train, checkpoints, or "
                      "folders of Hugging Face's kind")  # fmt: skip
    made.add_argument("--out", metavar="DIR", required=True, help="a folder a model, with its checkpoint; scores.csv")
    made.add_argument("--code", metavar="CORPUS", required=True, help="code to go on with, as in pretraining")
    made.add_argument("--heldout", metavar="CORPUS", help="to measure bits per character on, before and after")
    made.add_argument("--chars", metavar="N", default="300k", help="characters of the mixture; default 300k")
    made.add_argument("--share", metavar="P", default="0.5", help="of them that teach formats; default 0.5")
    made.add_argument("--lr", metavar="LR", default="2e-3", help="peak learning rate; default 2e-3")
    made.add_argument("--batch", metavar="N", default="8", help="sequences a step; default 8")
    made.add_argument("--tasks", metavar="N", default="100", help="generated Python tasks to examine with; default 100")
    made.add_argument("--benchmark", metavar="FILE.jsonl", action="append", default=[],
                      help="a benchmark whose tasks may not be in the mixture either; may be repeated")  # fmt: skip
    made.add_argument("--seed", metavar="N", default="1", help="of the mixture; default 1")
    return made


def run(args: argparse.Namespace) -> int:
    from experiments.code import anneal, corpus, families, tasks
    from experiments.code.contamination import Benchmark

    share = 1.0 if args.share in ("1", "1.0") else fraction(args.share, "--share")
    budget = anneal.Budget(
        chars=round(positive(args.chars, "--chars")),
        share=share,
        lr=positive(args.lr, "--lr"),
        batch_size=whole(args.batch, "--batch"),
        seed=whole(args.seed, "--seed"),
    )
    out = Path(args.out).expanduser()
    outputs.output(str(out / "scores.csv"), "--out", (".csv",), args.models)
    names = _names(args.models)
    asked = families.tasks(whole(args.tasks, "--tasks"), levels=anneal.LEVELS)
    kept_out = Benchmark([*asked, *(task for file in args.benchmark for task in tasks.read_tasks(file))])
    mixed = anneal.mixture(corpus.read(args.code), budget, kept_out)
    heldout = corpus.read(args.heldout) if args.heldout else []
    compile_cache.use()
    rows = [_one(folder, name, out / name, mixed, budget, asked, heldout) for folder, name in names.items()]
    scores = [
        {"model": row["model"], "bpc": row["before"]["bpc"], "task": form}
        | {"correct": n["passed"], "total": n["asked"]}
        for row in rows
        for form, n in row["after"]["answers"].items()
    ]
    if heldout:
        import pandas as pd

        pd.DataFrame(scores).to_csv(out / "scores.csv", index=False)
    if args.json:
        print(show.as_json({"models": rows, "mixture": {"sha256": mixed.digest, "chars": mixed.chars,
                                                        "dropped": mixed.dropped}}))  # fmt: skip
        return 0
    _print(rows, mixed, out, bool(heldout))
    return 0


def _names(models: list[str]) -> dict[str, str]:
    """Folder -> the name of its results."""
    found = {folder: Path(folder).expanduser().resolve().name for folder in models}
    if len(set(found.values())) < len(models):
        raise InputError("two of the models have folders of one name, which would be one in --out; rename one")
    return found


def _one(
    folder: str, name: str, out: Path, mixed: Any, budget: Any, asked: list[Any], heldout: list[Any]
) -> dict[str, Any]:
    import dataclasses

    import engine
    from engine.trained import MODEL
    from experiments.code import anneal, scorers
    from experiments.commands.bpc import sizes

    model = engine.load(folder)
    said = scorers.says(Path(folder))
    window, stride = sizes(scorers.of(model, said).context)

    def measured(one: Any) -> dict[str, Any]:
        answers = anneal.examine({"model": one}, asked)["model"]
        found: dict[str, Any] = {form: dataclasses.asdict(n) for form, n in answers.items()}
        return {"bpc": _bpc(scorers.of(one, said), heldout, window, stride), "answers": found}

    before = measured(model)
    (made,) = anneal.anneal([model], mixed, budget, folder=out / MODEL)
    return {"model": name, "out": str(out), "before": before, "after": measured(made)}


def _bpc(scorer: Any, heldout: list[Any], window: int, stride: int) -> float | None:
    from experiments.code import bpc

    return bpc.rate(bpc.measure(scorer, heldout, window=window, stride=stride)).bpc if heldout else None


def _print(rows: list[dict[str, Any]], mixed: Any, out: Path, measured: bool) -> None:
    body = []
    for row in rows:
        before, after = row["before"], row["after"]
        if measured:
            body.append([row["model"], "bits per character", show.bits(before["bpc"]), show.bits(after["bpc"]), "", ""])
        body += [
            [row["model"], form, *(f"{one['complied'] / one['asked']:.2f}" for one in (was, now)),
             *(f"{one['passed'] / one['asked']:.2f}" for one in (was, now))]
            for form, now in after["answers"].items() if (was := before["answers"][form])]  # fmt: skip
    head = ["model", "", "form: before", "after", "right: before", "after"]
    show.console().print(show.table("Format Annealing", head, body, left=2))
    parts = ", ".join(f"{name} {chars:,}" for name, chars in mixed.chars.items())
    print(f"mixture, characters: {parts}; {mixed.dropped:,} texts dropped, as they held a task")
    print(f"models in {out}" + (f"; scores in {out / 'scores.csv'}: stepseer code law" if measured else ""))
