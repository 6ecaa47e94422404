"""Pairs from candidates: those near enough, the best by distance, and of these the ones whose outputs differ.

    D_Q: normalised edit distance of the statements, at most `EPSILON`
    D_S: 1 - cosine of the solutions' embeddings
    choice: the candidate with the largest D_S - `LAMBDA` D_Q, among those that pass what is run in the sandbox

(arXiv 2505.14597). What is run: the partner's solution on the original's inputs. A candidate whose program fails, gives
something that is no literal, or gives the original's outputs on every input is rejected; then the next best is tried.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from experiments.code import grading
from experiments.code.ctf import embed
from experiments.code.ctf.problems import Pair, Problem, edit_distance, is_literal
from experiments.code.sandbox import Limits, Outcome, Program, run_many
from experiments.code.tasks import Task

EPSILON = 0.13
LAMBDA = 1.2
LONGEST = 2000  # characters of one output


@dataclass(frozen=True)
class Candidate:
    """A partner that is offered; its outputs are not known."""

    partner: Problem
    edit: str = ""
    source: str = "templates"


@dataclass
class Built:
    """why: how many candidates were rejected, and for what; of seeds: without any, or with none left."""

    pairs: list[Pair] = field(default_factory=list)
    why: Counter[str] = field(default_factory=Counter)
    seeds: Counter[str] = field(default_factory=Counter)


def build(
    offered: Sequence[tuple[Problem, Sequence[Candidate]]],
    embedding: embed.Embedding = embed.ngrams,
    *,
    epsilon: float = EPSILON,
    weight: float = LAMBDA,
    limits: Limits = grading.LIMITS,
    workers: int | None = None,
    throwaway_vm: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Built:
    """At most one pair for each problem. No statement is in two pairs: neither a partner's that is another's original,
    nor the same partner twice. weight: of D_Q in the choice."""
    built = Built()
    run = _Runner(limits, workers, throwaway_vm)
    originals = run([problem for problem, _ in offered])
    taken = {problem.statement for problem, _ in offered}
    good: list[tuple[Problem, Sequence[Candidate]]] = []
    for (problem, candidates), outputs in zip(offered, originals):
        if isinstance(outputs, str):
            built.seeds[f"the original's solution: {outputs}"] += 1
        else:
            good.append((replace(problem, outputs=outputs), candidates))
    ranked: dict[int, list[Pair]] = {}
    for start in range(0, len(good), 16):  # texts of so many are embedded at once
        part = [(problem, _near(problem, candidates, epsilon, built.why)) for problem, candidates in good[start:][:16]]
        ranked.update(enumerate(_ranked(part, embedding, weight), start))
        if progress:
            progress(f"candidates of {min(start + 16, len(good))} of {len(good)} problems compared")
    while ranked:
        turn: dict[int, Pair] = {}
        for i, waiting in list(ranked.items()):
            while waiting and waiting[0].partner.statement in taken:
                built.why["its statement is another's"] += 1
                waiting.pop(0)
            if not waiting:
                built.seeds["no candidate left"] += 1
                del ranked[i]
                continue
            turn[i] = waiting.pop(0)
            taken.add(turn[i].partner.statement)
        for (i, pair), outputs in zip(turn.items(), run([pair.partner for pair in turn.values()])):
            problem = pair.original
            if isinstance(outputs, str):
                built.why[f"its solution: {outputs}"] += 1
            elif outputs == problem.outputs:
                built.why["its outputs are the original's"] += 1
            else:
                built.pairs.append(replace(pair, partner=replace(pair.partner, outputs=outputs)))
                del ranked[i]
        if progress:
            progress(f"{len(built.pairs)} pairs, {len(ranked)} problems to do")
    order = {problem.problem_id: i for i, (problem, _) in enumerate(good)}
    built.pairs.sort(key=lambda pair: order[pair.original.problem_id])
    return built


def _near(
    problem: Problem, candidates: Sequence[Candidate], epsilon: float, why: Counter[str]
) -> list[tuple[float, Candidate]]:
    """(D_Q, candidate) of those near enough."""
    found = []
    for candidate in candidates:
        d_q = edit_distance(problem.statement, candidate.partner.statement)
        if d_q == 0:
            why["its statement is the original's"] += 1
        elif d_q > epsilon:
            why[f"its statement is further than {epsilon:g}"] += 1
        else:
            found.append((d_q, candidate))
    return found


def _ranked(
    part: Sequence[tuple[Problem, Sequence[tuple[float, Candidate]]]], embedding: embed.Embedding, weight: float
) -> list[list[Pair]]:
    """Each problem's pairs, the best first."""
    texts = {problem.solution: 0 for problem, _ in part}
    texts |= {candidate.partner.solution: 0 for _, near in part for _, candidate in near}
    states = dict(zip(texts, embedding(list(texts))))
    found = []
    for problem, near in part:
        pairs = []
        for d_q, candidate in near:
            d_s = float(embed.distance(states[problem.solution], states[candidate.partner.solution]))
            partner = replace(candidate.partner, inputs=problem.inputs)
            pairs.append(Pair(problem.problem_id, problem, partner, d_q, d_s, d_s - weight * d_q, candidate.edit,
                              candidate.source))  # fmt: skip
        found.append(sorted(pairs, key=lambda pair: -pair.score))
    return found


# --- outputs ---------------------------------------------------------------------------------------------------------


class _Runner:
    """Runs problems' solutions on their inputs: the outputs, or in words why there are none."""

    def __init__(self, limits: Limits, workers: int | None, throwaway_vm: bool) -> None:
        self.options = {"limits": limits, "workers": workers, "throwaway_vm": throwaway_vm}

    def __call__(self, problems: Sequence[Problem]) -> list[tuple[str, ...] | str]:
        word = secrets.token_hex(8)
        programs: list[Program] = []
        for problem in problems:
            if problem.entry_point:
                programs.append(Program(_calls(problem, word)))
            else:
                programs += [Program(problem.solution, problem.language, stdin) for stdin in problem.inputs]
        outcomes = iter(run_many(programs, **self.options) if programs else [])  # type: ignore[arg-type]
        found: list[tuple[str, ...] | str] = []
        for problem in problems:
            if problem.entry_point:
                found.append(_results(next(outcomes), problem, word))
            else:
                found.append(_printed([next(outcomes) for _ in problem.inputs]))
        return found


def _calls(problem: Problem, word: str) -> str:
    """The solution, and a line for each call's result. It is run behind a name of its own, so that a module's end
    (`if __name__ == "__main__"`) is not."""
    return (
        f"__name__ = 'solution'\n{problem.solution}\n"
        f"for given in {list(problem.inputs)!r}:\n"
        f"    print({word!r} + repr(eval('{problem.entry_point}(' + given + ')')))\n"
    )


def _results(outcome: Outcome, problem: Problem, word: str) -> tuple[str, ...] | str:
    if outcome.status != "ok":
        return outcome.status
    lines = [line.removeprefix(word) for line in outcome.stdout.splitlines() if line.startswith(word)]
    if len(lines) != len(problem.inputs):
        return "not one result a call"
    if not all(len(line) <= LONGEST and is_literal(line) for line in lines):
        return "a result is no literal, or is long"
    return tuple(lines)


def _printed(outcomes: Sequence[Outcome]) -> tuple[str, ...] | str:
    for outcome in outcomes:
        if outcome.status != "ok":
            return outcome.status
        if len(outcome.stdout) > LONGEST or not outcome.stdout.strip():
            return "a stdout is empty, or is long"
    return tuple(outcome.stdout for outcome in outcomes)


# --- problems of the user --------------------------------------------------------------------------------------------


def from_tasks(
    tasks: Sequence[Task],
    *,
    limits: Limits = grading.LIMITS,
    workers: int | None = None,
    throwaway_vm: bool = False,
) -> tuple[list[Problem], Counter[str]]:
    """Tasks as problems, and why others are none. A function's inputs are the arguments that its tests call it with,
    recorded in the sandbox while the reference passes them."""
    word = secrets.token_hex(8)
    why: Counter[str] = Counter()
    kept: list[Task] = []
    for task in tasks:
        if not task.reference:
            why["no reference solution"] += 1
        elif task.quoted:
            why["the answer is no program"] += 1
        elif task.tests and (task.language != "python" or not task.entry_point):
            why["tests that are not calls of a Python function"] += 1
        else:
            kept.append(task)
    called = [task for task in kept if task.tests]
    runs = [Program(_recorded(task, word)) for task in called]
    outcomes = run_many(runs, limits=limits, workers=workers, throwaway_vm=throwaway_vm) if runs else []
    inputs: dict[str, tuple[str, ...]] = {}
    for task, outcome in zip(called, outcomes):
        lines = [line.removeprefix(word) for line in outcome.stdout.splitlines() if line.startswith(word)]
        if outcome.status != "ok" or not lines:
            why["the reference does not pass its tests"] += 1
            continue
        found = tuple(dict.fromkeys(json.loads(line) for line in lines))
        if not all(is_literal(f"({one},)") and len(one) <= LONGEST for one in found):
            why["arguments that are no literals"] += 1
            continue
        inputs[task.task_id] = found
    problems = []
    for task in kept:
        if task.tests and task.task_id not in inputs:
            continue
        given = inputs[task.task_id] if task.tests else tuple(stdin for stdin, _ in task.cases)
        problems.append(
            Problem(
                problem_id=task.task_id,
                statement=_without_asserts(task.prompt),
                solution=task.before + task.reference if task.tests else task.reference,
                entry_point=task.entry_point if task.tests else "",
                inputs=given,
                language=task.language,
                family=task.family,
                level=task.level,
                group=task.task_id,
            )
        )
    return problems, why


def _without_asserts(text: str) -> str:
    """MBPP prints tests in its prompts; they would give the original's outputs."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("assert "))


def _recorded(task: Task, word: str) -> str:
    """The reference and its tests, with the function asked for writing down what it is called with from them."""
    return f"""{task.before}{task.reference}
def _watched(solution):
    import json
    depth = 0
    def call(*args):
        nonlocal depth
        if depth == 0:
            print({word!r} + json.dumps(', '.join(map(repr, args))))
        depth += 1
        try:
            return solution(*args)
        finally:
            depth -= 1
    return call
{task.entry_point} = _watched({task.entry_point})
{task.tests}
"""


def scores(pairs: Sequence[Pair]) -> dict[str, float]:
    """Medians, for people."""
    columns = {"d_q": [p.d_q for p in pairs], "d_s": [p.d_s for p in pairs], "score": [p.score for p in pairs]}
    return {name: float(np.median(values)) if values else float("nan") for name, values in columns.items()}
