"""The forms in which benchmarks ask for code, for the generated tasks: what Format Annealing teaches.

    completion   the head of a function, to be gone on with (HumanEval, MBPP)
    chat         an instruction and a response (instruction-tuned benchmarks)
    infill       a hole between a prefix and a suffix, the suffix shown first, so that the answer goes on behind the
                 prefix (fill-in-the-middle, the order SPM of Bavarian et al. 2022, arXiv 2207.14255)
    output       what a call gives (CRUXEval); Python only

The sentinels are plain text, so that any tokenizer has them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace

from experiments.code.tasks import Task

END = "\n### End"
PREFIX, SUFFIX, MIDDLE, HOLE_END = "<PREFIX>", "<SUFFIX>", "<MIDDLE>", "<END>"


@dataclass(frozen=True)
class Asked:
    """A task in one form. task: with the form's prompt, stops and tests. answer: the right completion, its end mark
    with it; what a model is taught is prompt + answer."""

    task: Task
    answer: str


def statement(task: Task) -> str:
    """What a generated task wants, in words."""
    return task.before.partition("\n")[0].lstrip("#/ ")


def _parts(task: Task) -> tuple[str, str, list[str]]:
    """(the function's head, its end, the tests) of a generated task."""
    end, *checks = task.tests.split("\n")
    return task.before.partition("\n")[2], end, checks


def completion(task: Task) -> Asked:
    return Asked(task, task.reference + "\n")


def chat(task: Task) -> Asked:
    head, end, checks = _parts(task)
    prompt = f"### Instruction:\nWrite in {task.language}: {statement(task)}\n### Response:\n"
    body = f"{head}{task.reference}\n{end}".rstrip()
    made = replace(task, prompt=prompt, before="", tests="\n".join(checks), stop=(END,), reference=body)
    return Asked(made, body + END + "\n")


def infill(task: Task) -> Asked:
    _, end, checks = _parts(task)
    after = f"\n{end}\n{checks[0]}" if end else f"\n{checks[0]}"
    prompt = f"{PREFIX}{SUFFIX}{after}{MIDDLE}{task.before}"
    return Asked(replace(task, prompt=prompt, stop=(HOLE_END,)), task.reference + HOLE_END + "\n")


def output(task: Task) -> Asked:
    head, _, checks = _parts(task)
    which = int(task.task_id[-8:], 16) % len(checks)
    call, _, wanted = checks[which].rpartition(" == ")
    prompt = f"{head}{task.reference}\n{call} == "
    tests = f"import ast\nassert repr(ast.literal_eval(ANSWER)) == {wanted!r}"
    made = replace(task, prompt=prompt, before="", tests=tests, stop=("\n",), quoted=True, reference=wanted)
    return Asked(made, wanted + "\n")


FORMATS: dict[str, Callable[[Task], Asked]] = {
    "completion": completion,
    "chat": chat,
    "infill": infill,
    "output": output,
}


def spoken(form: str, task: Task) -> bool:
    """Whether a task can be asked in this form."""
    return form != "output" or task.language == "python"


def complies(form: str, task: Task, text: str) -> bool:
    """Whether a completion has the form asked for, right or wrong: it ends by its mark and, in Python, is an expression
    (a function, a literal) by itself."""
    ended = next((text[:at] for mark in task.stop if (at := text.find(mark)) >= 0), None)
    if ended is None or not ended.strip():
        return False
    if task.language != "python":
        return True
    try:
        if form == "output":
            ast.literal_eval(ended.strip())
        elif form == "chat":
            return any(isinstance(part, ast.FunctionDef) and part.name == "f" for part in ast.parse(ended).body)
        else:
            ast.parse(ended.strip(), mode="eval")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return True
