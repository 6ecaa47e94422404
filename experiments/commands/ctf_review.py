"""`stepseer ctf review`: a page on which people judge pairs, and the pairs that their verdicts leave."""

from __future__ import annotations

import argparse

from experiments import outputs, show
from experiments.code.ctf import problems, review
from experiments.errors import InputError
from experiments.options import Parser


def parser() -> Parser:
    made = Parser(
        "ctf review",
        "A page on which people judge pairs (solvable? truly different? as hard?), and the pairs that are left.",
        examples="  stepseer ctf review pairs.jsonl --out review.html\n"
        "  stepseer ctf review pairs.jsonl --verdicts Ada.jsonl --verdicts Bob.jsonl --out kept.jsonl",
    )
    made.add_argument("pairs", metavar="PAIRS.jsonl", help="of ctf build")
    made.add_argument("--out", metavar="FILE", required=True, help="the page (.html) or, with --verdicts, the accepted "
                      "pairs (.jsonl)")  # fmt: skip
    made.add_argument("--verdicts", metavar="FILE.jsonl", action="append", default=[], help="what a reviewer saved "
                      "from the page; may be repeated: a pair stays if all who judged it accept it")  # fmt: skip
    return made


def run(args: argparse.Namespace) -> int:
    out = outputs.output(args.out, "--out", (".jsonl",) if args.verdicts else (".html",), [args.pairs, *args.verdicts])
    pairs = problems.read_pairs(args.pairs)
    if not args.verdicts:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(review.page(pairs), encoding="utf-8")
        if args.json:
            print(show.as_json({"out": str(out), "pairs": len(pairs)}))
        else:
            print(f"{show.plural(len(pairs), 'pair')} in {out}: open it in a browser, judge, and save the verdicts")
        return 0
    left = review.settle(pairs, [one for path in args.verdicts for one in review.read_verdicts(path)])
    if not left.kept:
        raise InputError(f"no pair is accepted: {left.rejected} rejected, {left.unseen} without a verdict")
    out.parent.mkdir(parents=True, exist_ok=True)
    problems.write_pairs(left.kept, out)
    if args.json:
        print(show.as_json({"out": str(out), "accepted": len(left.kept), "rejected": left.rejected,
                            "without_verdict": left.unseen, "rejected_for": dict(left.why),
                            "agreement": left.agreement, "reviewers": dict(left.reviewers)}))  # fmt: skip
        return 0
    print(f"{show.plural(len(left.kept), 'pair')} accepted, {left.rejected} rejected, {left.unseen} without a verdict; "
          f"accepted are in {out}")  # fmt: skip
    if left.why:
        print("rejected for: " + "; ".join(f"{count} {name}" for name, count in left.why.most_common()))
    if left.agreement is not None:
        print(f"reviewers agree on {left.agreement:.0%} of what two of them judged")
    return 0
