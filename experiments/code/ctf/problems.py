"""Problems and counterfactual pairs of them, their files, and the distance between two statements.

A pair is a problem (Q, T, S) and a partner (Q', T', S') whose statement is nearly the same and whose solution is not
(arXiv 2505.14597): same test inputs, outputs as S' gives them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from experiments.code.tasks import Task, rows
from experiments.errors import InputError

SIDES = ("original", "partner")
PROMPTS = ("alpaca", "comment")
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Problem:
    """statement: in words. solution: a program that defines entry_point or, where that is empty, reads stdin.
    inputs: each the arguments of a call as literals ("[1, 2], 3"), or a stdin. outputs: each the result as a literal,
    or the stdout. group: problems of one group are never divided between training and benchmark."""

    problem_id: str
    statement: str
    solution: str
    entry_point: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    language: str = "python"
    family: str = ""
    level: int = 0
    group: str = ""


@dataclass(frozen=True)
class Pair:
    """d_q: normalised edit distance of the statements. d_s: 1 - cosine of the solutions' embeddings. score: d_s - 1.2
    d_q. edit: what was changed. source: "templates", or the endpoint's model. verdict: of a review; empty before."""

    pair_id: str
    original: Problem
    partner: Problem
    d_q: float
    d_s: float
    score: float
    edit: str = ""
    source: str = "templates"
    verdict: str = ""


def edit_distance(a: str, b: str) -> float:
    """Levenshtein's distance divided by the longer length: in [0, 1]; 0 for equal texts."""
    if not a or not b:
        return float(a != b)
    codes = np.frombuffer(b.encode("utf-32-le"), np.uint32)
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for i, character in enumerate(a, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (codes != ord(character)))
        row = np.minimum.accumulate(np.concatenate([[i], best]) - steps) + steps  # insertions, from left to right
    return int(row[-1]) / max(len(a), len(b))


def task(problem: Problem, prompt: str = "alpaca") -> Task:
    """The problem as a task that samples are graded on. prompt: of `PROMPTS`."""
    if problem.entry_point:
        checks = [f"assert {problem.entry_point}({given}) == {wanted}" for given, wanted in
                  zip(problem.inputs, problem.outputs, strict=True)]  # fmt: skip
        tested: dict[str, Any] = {"tests": "\n".join(checks)}
    else:
        tested = {"cases": tuple(zip(problem.inputs, problem.outputs, strict=True))}
    comment = prompt == "comment"
    asked = "".join(f"# {line}\n" for line in problem.statement.splitlines())
    return Task(
        task_id=problem.problem_id,
        prompt=asked if comment else ALPACA.format(problem.statement),
        before=asked if comment and problem.language == "python" else "",
        stop=("\n#",) if comment else ("###", "<|EOT|>"),
        language=problem.language,
        entry_point=problem.entry_point,
        family=problem.family,
        level=problem.level,
        reference=problem.solution,
        **tested,
    )


def code_in(text: str) -> str:
    """The first fenced block of an answer, or all of it."""
    fenced = re.search(r"```[\w+-]*\n(.*?)```", text, re.S)
    return fenced[1] if fenced else text


# --- files -----------------------------------------------------------------------------------------------------------


def write_pairs(pairs: Iterable[Pair], path: str | Path) -> None:
    Path(path).write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in pairs), encoding="utf-8")


def read_pairs(path: str | Path) -> list[Pair]:
    """The pairs of a JSONL file that `ctf build` wrote. Raises InputError naming the line and what is wrong."""
    found = []
    for number, row in rows(path):
        try:
            sides = {side: _problem(row[side]) for side in SIDES}
            found.append(_made(Pair, {**row, **sides}))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}, line {number}: {type(error).__name__} {error}; is it a file of pairs?") from None
    names = [pair.pair_id for pair in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: pair {twice} is there twice")
    return found


def _problem(values: dict[str, Any]) -> Problem:
    made = _made(Problem, {**values, "inputs": tuple(values["inputs"]), "outputs": tuple(values["outputs"])})
    if len(made.inputs) != len(made.outputs) or not made.inputs:
        raise InputError(f"problem {made.problem_id} has {len(made.inputs)} inputs and {len(made.outputs)} outputs")
    return made


def _made(cls: Any, values: dict[str, Any]) -> Any:
    known = {field.name: field for field in fields(cls)}
    if unknown := sorted(set(values) - set(known)):
        raise InputError(f"field {unknown[0]} is not one of a {cls.__name__.lower()}'s: {', '.join(known)}")
    for name, value in values.items():
        wanted = known[name].type
        if (wanted == "str" and not isinstance(value, str)) or (
            wanted in ("float", "int") and (isinstance(value, bool) or not isinstance(value, (int, float)))
        ):
            raise InputError(f"field {name} is {value!r}; it must be a {'text' if wanted == 'str' else 'number'}")
    return cls(**values)


def is_literal(text: str) -> bool:
    """Whether `text` is the literal of a value that is equal to itself (NaN is not)."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return bool(value == value)
