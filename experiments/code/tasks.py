"""Programming tasks and the files that they come in.

A file is JSONL, one task a line. Its own form has the fields of `Task`; the published forms of HumanEval (and its
translations that keep the fields), MBPP (full and sanitized), LiveCodeBench and CRUXEval are known by their fields.
Samples are JSONL too: `task_id` with `completion`, which goes on where the prompt ends, or `solution`, a program.
"""

from __future__ import annotations

import base64
import json
import pickletools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from experiments.code import languages
from experiments.code.sandbox import Program
from experiments.errors import InputError

# How each language says that it came to the end of its tests.
SAYS = {
    "python": "\nprint({word!r})\n",
    "javascript": "\nconsole.log({word!r})\n",
    "bash": "\necho {word}\n",
    "perl": "\nprint({word!r}, chr(10));\n",
    "ruby": "\nputs({word!r})\n",
    "lua": "\nprint({word!r})\n",
}


@dataclass(frozen=True)
class Task:
    """prompt: what the model is given. before: code put ahead of a completion (for a model that continues its prompt,
    the prompt). tests: code that fails where the solution is wrong, run after it. cases: (stdin, stdout) pairs, for
    whole programs, compared word by word. entry_point: the function asked for. level: difficulty, 0 where not known.
    stop: texts that end a completion. quoted: the completion is no program; the tests find it as the text ANSWER.
    reference: a completion that is right, empty where there is none."""

    task_id: str
    prompt: str
    tests: str = ""
    language: str = "python"
    entry_point: str = ""
    before: str = ""
    cases: tuple[tuple[str, str], ...] = ()
    family: str = ""
    level: int = 0
    stop: tuple[str, ...] = ()
    quoted: bool = False
    reference: str = ""

    def __post_init__(self) -> None:
        if bool(self.tests) == bool(self.cases):
            raise InputError(f"task {self.task_id} needs either tests, code to run after the solution, or cases")
        if self.tests and languages.named(self.language) not in SAYS:
            raise InputError(f"task {self.task_id} has tests in {self.language}; they can be in {', '.join(SAYS)}")


@dataclass(frozen=True)
class Sample:
    """text: a completion; or, where `whole`, a program that stands alone."""

    task_id: str
    text: str
    whole: bool = False


def programs(task: Task, sample: Sample, word: str) -> list[tuple[Program, str | None]]:
    """(program, the stdout wanted) for each run that `sample` must pass. word: what it says after its tests, not to be
    guessed; a program that ends early has not said it. None where that word is what is wanted."""
    source = sample.text if sample.whole else task.before + _stopped(sample.text, task.stop)
    if task.quoted:
        source = f"ANSWER = {source.strip()!r}"
    if task.cases:
        return [(Program(source, task.language, stdin), stdout) for stdin, stdout in task.cases]
    said = SAYS[languages.named(task.language)].format(word=word)
    return [(Program(f"{source}\n{task.tests}\n{said}", task.language), None)]


def _stopped(text: str, stop: Sequence[str]) -> str:
    ends = [at for mark in stop if (at := text.find(mark, len(text) - len(text.lstrip()))) >= 0]
    return text[: min(ends)] if ends else text


# --- files -----------------------------------------------------------------------------------------------------------


def read_tasks(path: str | Path) -> list[Task]:
    """The tasks of a JSONL file, in any of the forms above. Raises InputError naming the line and what is wrong."""
    found: list[Task] = []
    for number, row in rows(path):
        try:
            found += _tasks(row)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        except (KeyError, TypeError, ValueError, IndexError, zlib.error) as error:
            raise InputError(f"{path}, line {number}: {type(error).__name__} {error}; is the row whole?") from None
    names = [task.task_id for task in found]
    if twice := {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set():
        raise InputError(f"{path}: task {min(twice)} is there twice")
    return found


def write_tasks(tasks: Sequence[Task], path: str | Path) -> None:
    Path(path).write_text("".join(json.dumps(asdict(task)) + "\n" for task in tasks))


def read_samples(path: str | Path, tasks: Sequence[Task]) -> list[Sample]:
    """The samples of a JSONL file. Raises InputError for one of a task that is not among `tasks`."""
    known = {task.task_id for task in tasks}
    found = []
    for number, row in rows(path):
        text = row.get("completion", row.get("solution"))
        if not isinstance(text, str) or "task_id" not in row:
            raise InputError(f"{path}, line {number}: a sample has task_id, and completion or solution")
        sample = Sample(str(row["task_id"]), text, "completion" not in row)
        if sample.task_id not in known:
            raise InputError(f"{path}, line {number}: no task {sample.task_id!r} among the {len(known)} tasks")
        found.append(sample)
    return found


def rows(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    found = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: a row is a JSON object, with names and values")
            found.append((number, row))
    if not found:
        raise InputError(f"{path} is empty")
    return found


def _tasks(row: Mapping[str, Any]) -> list[Task]:
    for needed, read in _FORMS.items():
        if all(name in row for name in needed):
            return read(row)
    forms = "; ".join(" + ".join(needed) for needed in _FORMS)
    raise InputError(f"fields {', '.join(sorted(row)) or 'none'} are of no known form ({forms})")


def _own(row: Mapping[str, Any]) -> list[Task]:
    known = {field.name for field in fields(Task)}
    if unknown := sorted(set(row) - known):
        raise InputError(f"field {unknown[0]} is not one of a task's: {', '.join(sorted(known))}")
    cases = tuple((str(stdin), str(stdout)) for stdin, stdout in row.get("cases", ()))
    return [Task(**{**row, "task_id": str(row["task_id"]), "cases": cases, "stop": tuple(row.get("stop", ()))})]


def _humaneval(row: Mapping[str, Any]) -> list[Task]:
    name, language = row["entry_point"], languages.named(row.get("language", "python"))
    tests = row["test"] + (f"\ncheck({name})\n" if language == "python" else "")
    reference = row.get("canonical_solution", "")
    return [Task(str(row["task_id"]), row["prompt"], tests, language, name, row["prompt"], family="humaneval",
                 reference=reference)]  # fmt: skip


def _mbpp(row: Mapping[str, Any]) -> list[Task]:
    asserts = "\n".join(row["test_list"])
    called = re.search(r"assert\s*\(*\s*(?:set\(|sorted\(|not\s+|math\.\w+\(|abs\()*(\w+)\(", asserts)
    setup = "\n".join([*row.get("test_imports", ()), row.get("test_setup_code", "")])
    prompt = f'"""\n{row.get("text") or row["prompt"]}\n{asserts}\n"""\n'
    return [Task(str(row["task_id"]), prompt, f"{setup}\n{asserts}\n", entry_point=called[1] if called else "",
                 family="mbpp", reference=row.get("code", ""))]  # fmt: skip


def _cruxeval(row: Mapping[str, Any]) -> list[Task]:
    """Two tasks a row: the output of an input, a literal that nothing is there to compute with; and arguments for an
    output. Both are to be on one line."""
    name, code, given, wanted = str(row["id"]), row["code"], row["input"], row["output"]
    output = f"import ast\nassert ast.literal_eval(ANSWER) == ast.literal_eval({wanted!r})\n"
    arguments = f"{code}\nassert eval('f(' + ANSWER + ')') == ({wanted})\n"
    asked = f"{code}\n# f(arguments) == {wanted}\n# arguments: "
    known: dict[str, Any] = {"family": "cruxeval", "entry_point": "f", "stop": ("\n",), "quoted": True}
    return [
        Task(f"{name}/output", f"{code}\nassert f({given}) == ", output, reference=wanted, **known),
        Task(f"{name}/input", asked, arguments, reference=given, **known),
    ]


def _livecodebench(row: Mapping[str, Any]) -> list[Task]:
    tests = json.loads(row["public_test_cases"]) + _private(row.get("private_test_cases") or "[]")
    starter = row.get("starter_code") or ""
    prompt = row["question_content"] + (f"\n\n{starter}" if starter else "")
    level = {"easy": 1, "medium": 2, "hard": 3}.get(row.get("difficulty", ""), 0)
    known: dict[str, Any] = {"family": "livecodebench", "level": level}
    if tests[0].get("testtype") != "functional":
        cases = tuple((test["input"], test["output"]) for test in tests)
        return [Task(str(row["question_id"]), prompt, cases=cases, **known)]
    name = json.loads(row.get("metadata") or "{}").get("func_name") or re.findall(r"def (\w+)\(self", starter)[-1]
    checks = ["import json", "from typing import *"]
    for test in tests:
        given = [json.loads(line) for line in test["input"].splitlines() if line.strip()]
        checks.append(f"assert json.loads(json.dumps(Solution().{name}(*{given!r}))) == {json.loads(test['output'])!r}")
    return [Task(str(row["question_id"]), prompt, "\n".join(checks), entry_point=name, **known)]


def _private(text: str) -> list[dict[str, str]]:
    """The tests that LiveCodeBench keeps: JSON, or JSON in a pickle, zipped, in base64. The pickle is never run: its
    one string is read out of it."""
    if text.lstrip().startswith("["):
        return json.loads(text)
    pickled = zlib.decompress(base64.b64decode(text))
    (found,) = (arg for code, arg, _ in pickletools.genops(pickled) if isinstance(arg, str) and "UNICODE" in code.name)
    return json.loads(found)


_FORMS: dict[tuple[str, ...], Callable[[Mapping[str, Any]], list[Task]]] = {
    ("task_id", "prompt", "tests"): _own,
    ("task_id", "prompt", "cases"): _own,
    ("task_id", "prompt", "entry_point", "test"): _humaneval,
    ("task_id", "test_list"): _mbpp,
    ("question_id", "question_content", "public_test_cases"): _livecodebench,
    ("id", "code", "input", "output"): _cruxeval,
}
