"""Reviews by people: a page that shows pairs and takes verdicts, and what verdicts leave of the pairs."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import combinations
from pathlib import Path

from experiments.code.ctf.problems import Pair
from experiments.code.tasks import rows
from experiments.errors import InputError

ANSWERS = {"solvable": ("yes", "no"), "different": ("yes", "no"), "difficulty": ("same", "easier", "harder")}
ACCEPTED = {"solvable": "yes", "different": "yes", "difficulty": "same"}
_TESTS = 12  # that the page shows of a pair

Parts = list[list[str]]  # [kind, text]: kind is "", "cut" or "new"


@dataclass(frozen=True)
class Verdict:
    pair_id: str
    reviewer: str
    solvable: str
    different: str
    difficulty: str
    note: str = ""

    @property
    def accepts(self) -> bool:
        return all(getattr(self, name) == answer for name, answer in ACCEPTED.items())


@dataclass(frozen=True)
class Outcome:
    """kept: pairs that every reviewer of theirs accepts, with `verdict` set; why: question -> pairs that it rejected.
    agreement: of two reviewers of the same pair, how often both accept it or both do not; None without such pairs."""

    kept: list[Pair]
    rejected: int
    unseen: int
    why: Counter[str]
    agreement: float | None
    reviewers: Counter[str]


def page(pairs: Sequence[Pair]) -> str:
    """The review page, one file. What it shows is text of others: it is data there, never markup."""
    shown = [
        {
            "pair_id": pair.pair_id,
            "statement": marked(pair.original.statement, pair.partner.statement),
            "solution": marked(pair.original.solution, pair.partner.solution),
            "about": f"{pair.pair_id} · level {pair.original.level} · D_Q {pair.d_q:.3f} · D_S {pair.d_s:.3f} · "
            f"by {pair.source}" + (f" · {pair.edit}" if pair.edit else ""),
            "tests": [list(row) for row in zip(pair.original.inputs, pair.original.outputs, pair.partner.outputs)][
                :_TESTS
            ],
        }
        for pair in pairs
    ]
    digest = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]
    data = json.dumps({"digest": digest, "pairs": shown}).replace("<", "\\u003c")
    return files("experiments.code.ctf").joinpath("review.html").read_text(encoding="utf-8").replace("DATA", data, 1)


def marked(a: str, b: str) -> tuple[Parts, Parts]:
    """Both texts in parts, word by word: what only the first has is cut, what only the second has is new."""
    words_a, words_b = (re.findall(r"\w+|\s+|[^\w\s]", text) for text in (a, b))
    left: Parts = []
    right: Parts = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, words_a, words_b, autojunk=False).get_opcodes():
        if i < j:
            left.append(["" if kind == "equal" else "cut", "".join(words_a[i:j])])
        if k < m:
            right.append(["" if kind == "equal" else "new", "".join(words_b[k:m])])
    return left, right


def read_verdicts(path: str | Path) -> list[Verdict]:
    """Raises InputError naming the line and what is wrong."""
    found = []
    for number, row in rows(path):
        names = ("pair_id", "reviewer", *ANSWERS)
        if not all(isinstance(row.get(name), str) for name in names):
            raise InputError(f"{path}, line {number}: a verdict has {', '.join(names)}")
        for name, answers in ANSWERS.items():
            if row[name] not in answers:
                raise InputError(f"{path}, line {number}: {name} is {row[name]!r}; one of: {', '.join(answers)}")
        found.append(Verdict(**{name: row[name] for name in names}, note=str(row.get("note") or "")))
    return found


def settle(pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> Outcome:
    """What the verdicts leave. Where a reviewer judged a pair twice, the last counts. Raises InputError for a verdict
    on a pair that is not there."""
    known = {pair.pair_id for pair in pairs}
    of: dict[str, dict[str, Verdict]] = defaultdict(dict)
    for one in verdicts:
        if one.pair_id not in known:
            raise InputError(f"a verdict is on pair {one.pair_id!r}, which is not among the {len(known)} pairs")
        of[one.pair_id][one.reviewer] = one
    kept, why, both = [], Counter[str](), []
    for pair in pairs:
        given = list(of[pair.pair_id].values())
        both += [a.accepts == b.accepts for a, b in combinations(given, 2)]
        if given and all(one.accepts for one in given):
            kept.append(replace(pair, verdict=f"accepted by {', '.join(sorted(one.reviewer for one in given))}"))
        for name, answer in ACCEPTED.items():
            why[name] += any(getattr(one, name) != answer for one in given)
    seen = sum(bool(of[pair.pair_id]) for pair in pairs)
    return Outcome(
        kept,
        rejected=seen - len(kept),
        unseen=len(pairs) - seen,
        why=+why,
        agreement=sum(both) / len(both) if both else None,
        reviewers=Counter(reviewer for some in of.values() for reviewer in some),
    )
