"""Checks a file of counterfactual pairs against the definition, with nothing of the code that made it but the sandbox.

    stepseer ctf build --out pairs.jsonl; stepseer ctf build --part training --count 500 --out samples.jsonl
    python benchmarks/ctf_pairs.py pairs.jsonl --beside samples.jsonl

Of each pair: D_Q as written is Levenshtein's distance over the longer statement, and at most 0.13; D_S lies in [0, 1],
and the score is D_S - 1.2 D_Q; both have the same inputs; both solutions give their outputs; neither passes the other's
tests; no statement is there twice, nor in the file beside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter

from experiments.code.sandbox import Program, run_many


def levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y)))
    return row[-1]


def programs(solver: dict, asked: dict) -> list[Program]:
    """`solver`'s solution under `asked`'s tests."""
    if not asked["entry_point"]:
        return [Program(solver["solution"], solver["language"], given) for given in asked["inputs"]]
    lines = [solver["solution"]]
    for given, wanted in zip(asked["inputs"], asked["outputs"], strict=True):
        lines.append(f"if {asked['entry_point']}({given}) != {wanted}: raise SystemExit('differs')")
    return [Program("\n".join(lines))]


def passes(work: list[tuple[dict, dict]]) -> list[bool]:
    made = [programs(*one) for one in work]
    outcomes = iter(run_many([program for some in made for program in some]))
    found = []
    for (_, asked), some in zip(work, made):
        ends = [next(outcomes) for _ in some]
        right = all(end.status == "ok" for end in ends)
        if not asked["entry_point"]:
            right &= all(e.stdout.split() == w.split() for e, w in zip(ends, asked["outputs"], strict=True))
        found.append(right)
    return found


def faults(pair: dict, ran: tuple[bool, bool, bool, bool]) -> list[str]:
    a, b = pair["original"], pair["partner"]
    d_q = levenshtein(a["statement"], b["statement"]) / max(len(a["statement"]), len(b["statement"]))
    checks = {
        "D_Q is not as written": abs(d_q - pair["d_q"]) < 1e-9,
        "D_Q is above 0.13": d_q <= 0.13,
        "the statements are equal": d_q > 0,
        "D_S is out of range": 0 <= pair["d_s"] <= 1,
        "the score is not D_S - 1.2 D_Q": abs(pair["d_s"] - 1.2 * d_q - pair["score"]) < 1e-6,
        "the inputs differ": a["inputs"] == b["inputs"] and len(a["inputs"]) > 0,
        "the outputs are the same": a["outputs"] != b["outputs"],
        "the original does not pass its tests": ran[0],
        "the partner does not pass its tests": ran[1],
        "the original passes the partner's tests": not ran[2],
        "the partner passes the original's tests": not ran[3],
    }
    return [fault for fault, well in checks.items() if not well]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs")
    parser.add_argument("--beside", help="another file, with which no statement may be shared")
    args = parser.parse_args()
    with open(args.pairs, encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    a, b = "original", "partner"
    work = [(pair[x], pair[y]) for pair in pairs for x, y in ((a, a), (b, b), (a, b), (b, a))]
    ran = passes(work)
    found = Counter(fault for i, pair in enumerate(pairs) for fault in faults(pair, tuple(ran[4 * i : 4 * i + 4])))
    statements = Counter(pair[side]["statement"] for pair in pairs for side in ("original", "partner"))
    found["a statement is there twice"] = sum(n > 1 for n in statements.values())
    if args.beside:
        with open(args.beside, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        other = {row[side]["statement"] for row in rows for side in ("original", "partner")}
        found["a statement is in the file beside"] = len(other & set(statements))
    found = +found
    similar = [1 - pair["d_q"] for pair in pairs]
    print(f"{len(pairs)} pairs; similarity of statements: mean {statistics.mean(similar):.3f}, "
          f"median {statistics.median(similar):.3f}")  # fmt: skip
    print("faults: " + ("; ".join(f"{n} times {fault}" for fault, n in found.items()) or "none"))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
