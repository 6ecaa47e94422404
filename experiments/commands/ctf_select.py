"""`stepseer ctf select`: which counterfactual samples to add to the originals, in order, and the data to train on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import compile_cache, outputs, show
from experiments.code import sandbox
from experiments.code.ctf import embed, problems, select
from experiments.code.ctf.problems import Pair
from experiments.errors import InputError
from experiments.options import Parser, fraction, positive, whole


def parser() -> Parser:
    made = Parser(
        "ctf select",
        "Choose counterfactual samples by difficulty and diversity, and merge them with the originals.",
        examples="  stepseer ctf select samples.jsonl --count 200 --out instruct.jsonl\n"
        "  stepseer ctf select samples.jsonl --model out --hardest 0.5 --count 200 --out instruct.jsonl",
    )
    made.add_argument("pairs", metavar="PAIRS.jsonl", help="of ctf build --part training: originals, and partners to "
                      "choose from")  # fmt: skip
    made.add_argument("--out", metavar="FILE.jsonl", required=True, help="instruction and output on each line: the "
                      "originals, then the chosen partners in order")  # fmt: skip
    made.add_argument("--count", metavar="K", help="partners to add; default all, in order")
    made.add_argument("--model", metavar="MODEL", help="a folder as of stepseer generate: tells difficulty, and where "
                      "samples lie; default: all are as hard, and lie by ngrams")  # fmt: skip
    made.add_argument("--run", metavar="RUN_ID", help="which one, where a checkpoint holds several")
    made.add_argument("--scorer", metavar="MODEL", help="a model that is asked for difficulty in digits 0 to 5, "
                      "instead of --model's loss and failures")  # fmt: skip
    made.add_argument("--embedding", metavar="MODEL", help="where samples lie: a folder, hf:NAME, or ngrams; default "
                      "--model")  # fmt: skip
    made.add_argument("--hardest", metavar="P", default="0.5", help="share that difficulty leaves; default 0.5")
    made.add_argument("--tokens", metavar="N", default="256", help="of an answer that tells difficulty; default 256")
    made.add_argument("--throwaway-vm", action="store_true", help="run without isolation, where there is none: only in "
                      "a virtual machine that you will throw away")  # fmt: skip
    return made


def run(args: argparse.Namespace) -> int:
    out = outputs.output(args.out, "--out", (".jsonl",), [args.pairs])
    count = whole(args.count, "--count") if args.count else None
    share = 1.0 if positive(args.hardest, "--hardest") == 1 else fraction(args.hardest, "--hardest")
    longest = whole(args.tokens, "--tokens")
    pairs = problems.read_pairs(args.pairs)
    scores, embedding = _measures(args, pairs, longest)
    kept = np.arange(len(pairs)) if scores is None else select.hardest(scores, share)
    if count is not None and count > len(kept):
        way = ", or raise --hardest" if scores is not None else ""
        raise InputError(f"--count is {count}, but {len(kept)} of {len(pairs)} samples are left; lower it{way}")
    new = embedding([select.text(pairs[i].partner) for i in kept])
    order, distances = select.k_center(new, embedding([select.text(pair.original) for pair in pairs]), count)
    chosen = kept[order]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for pair in pairs:
            file.write(_row(pair, "original"))
        for i, far in zip(chosen, distances):
            more = {} if scores is None else {"difficulty": round(float(scores[i]), 4)}
            file.write(_row(pairs[i], "partner", distance=round(float(far), 6), **more))
    answer: dict[str, Any] = {"out": str(out), "originals": len(pairs), "chosen": len(chosen), "left": len(kept)}
    if len(distances):
        answer |= {"first_distance": float(distances[0]), "last_distance": float(distances[-1])}
    if scores is not None:
        answer |= {"difficulty_of_chosen": float(scores[chosen].mean()), "difficulty_of_all": float(scores.mean())}
    if args.json:
        print(show.as_json(answer))
        return 0
    print(f"{show.plural(len(pairs), 'original')} and {show.plural(len(chosen), 'chosen partner')} in {out}")
    if len(distances):
        print(f"distance to the nearest before: {distances[0]:.3g} of the first, {distances[-1]:.3g} of the last")
    if scores is not None:
        print(f"difficulty: {scores[chosen].mean():.2f} of the chosen, {scores.mean():.2f} of all, from 0 to 5")
    return 0


def _measures(args: argparse.Namespace, pairs: Sequence[Pair], longest: int) -> tuple[np.ndarray | None, Any]:
    """Difficulty of each partner, None where nothing tells it; and the embedding."""
    if not args.model:
        embedding = embed.named(args.embedding or embed.NGRAMS)
        return (_asked(args.scorer, pairs) if args.scorer else None), embedding
    import engine

    compile_cache.use()
    if not args.scorer:
        sandbox.require(args.throwaway_vm)
    trained = engine.load(args.model, args.run)
    embedding = embed.named(args.embedding) if args.embedding else lambda texts: embed.pooled(trained, texts)
    if args.scorer:
        return _asked(args.scorer, pairs), embedding
    partners = [pair.partner for pair in pairs]
    scores = select.difficulty(trained, partners, max_new_tokens=longest, throwaway_vm=args.throwaway_vm)
    return scores, embedding


def _asked(scorer: str, pairs: Sequence[Pair]) -> np.ndarray:
    import engine

    trained = engine.load(scorer)
    if trained.tokenizer is None:
        raise InputError(f"{scorer} has no tokenizer, so it reads no text; name another --scorer")
    return select.expected_digit(trained, [pair.partner.statement for pair in pairs])


def _row(pair: Pair, side: str, **more: float) -> str:
    problem = getattr(pair, side)
    row = {"id": f"{pair.pair_id}/{side}", "instruction": problem.statement, "output": problem.solution, **more}
    return json.dumps(row) + "\n"
