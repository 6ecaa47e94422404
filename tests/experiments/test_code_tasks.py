"""Task files, generated tasks, grades, pass@k and its intervals, and the commands."""

from __future__ import annotations

import base64
import itertools
import json
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest

from experiments import cli
from experiments.code import families, grading, isolation, languages
from experiments.code.sandbox import Outcome
from experiments.code.tasks import Sample, Task, programs, read_samples, read_tasks, write_tasks
from experiments.errors import InputError

REASON = isolation.probe().reason
isolated = pytest.mark.skipif(REASON is not None, reason=f"no isolation: {REASON}")

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x):\n    """ Twice x. """\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
}
MBPP = {
    "task_id": 601,
    "text": "Write a function to double a number.",
    "code": "def double(x):\n    return 2 * x",
    "test_list": ["assert double(2) == 4", "assert double(BIG) == 2 * BIG"],
    "test_setup_code": "BIG = 10 ** 6",
}
CRUX = {"id": "sample_7", "code": "def f(s):\n    return s[::-1]", "input": "'abc'", "output": "'cba'"}
_HIDDEN = json.dumps([{"input": "5\n", "output": "10\n", "testtype": "stdin"}])
LCB = {
    "question_id": "1873_A",
    "question_content": "Double the number.",
    "difficulty": "easy",
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "2\n", "output": "4\n", "testtype": "stdin"}]),
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(_HIDDEN))).decode(),
    "metadata": "{}",
}
LCB_FUNCTION = {
    "question_id": "2730",
    "question_content": "Add them.",
    "difficulty": "medium",
    "starter_code": "class Solution:\n    def add(self, a: int, b: List[int]) -> int:\n        ",
    "public_test_cases": json.dumps([{"input": "1\n[2, 3]", "output": "6", "testtype": "functional"}]),
    "private_test_cases": "[]",
    "metadata": json.dumps({"func_name": "add"}),
}


def _written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_published_forms_are_read(tmp_path):
    tasks = read_tasks(_written(tmp_path / "t.jsonl", HUMANEVAL, MBPP, CRUX, LCB, LCB_FUNCTION))
    assert [t.task_id for t in tasks] == [
        "HumanEval/0", "601", "sample_7/output", "sample_7/input", "1873_A", "2730",
    ]  # fmt: skip
    assert [t.entry_point for t in tasks] == ["double", "double", "f", "f", "", "add"]
    assert tasks[4].cases == (("2\n", "4\n"), ("5\n", "10\n"))
    assert [t.level for t in tasks[4:]] == [1, 2]
    write_tasks(tasks, tmp_path / "own.jsonl")
    assert read_tasks(tmp_path / "own.jsonl") == tasks


def test_a_pickle_that_would_run_is_not_run(tmp_path):
    class Bad:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    row = LCB | {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Bad()))).decode()}
    with pytest.raises(InputError, match="line 1"):
        read_tasks(_written(tmp_path / "t.jsonl", row))
    assert not (tmp_path / "touched").exists()


@isolated
def test_right_answers_pass_and_wrong_ones_do_not(tmp_path):
    tasks = read_tasks(_written(tmp_path / "t.jsonl", HUMANEVAL, MBPP, CRUX, LCB, LCB_FUNCTION))
    answers = {
        "HumanEval/0": ("    return 2 * x\n", "    return x + 2\n"),
        "601": ("def double(x):\n    return x + x\n", "def double(x):\n    return 4\n"),
        "sample_7/output": ("'cba'\n# and more", "f('abc')"),
        "sample_7/input": ("'abc'", "'abd'"),
        "1873_A": ("print(2 * int(input()))", "print(4)"),
        "2730": (
            "class Solution:\n    def add(self, a, b):\n        return a + sum(b)",
            "class Solution:\n    def add(self, a, b):\n        return 7",
        ),
    }
    samples = [Sample(name, text) for name, pair in answers.items() for text in pair]
    samples.append(Sample("HumanEval/0", "    return 2 * x\nimport os; os._exit(0)\n"))
    samples.append(Sample("601", "def double(x): return 2 * x", whole=True))
    grades = grading.grade(tasks, samples)
    assert [g.passed for g in grades] == [True, False] * 6 + [False, True]
    reasons = [g.reason for g in grades if not g.passed]
    assert "AssertionError" in reasons[0] and "'4', and should be '10'" in reasons[4]
    assert reasons[-1] == "it ended before its tests did"


@pytest.mark.parametrize(
    "row, said",
    [
        ({"prompt": "x"}, "no known form"),
        ({"task_id": "a", "prompt": "p", "tests": "t", "colour": "red"}, "field colour"),
        ({"task_id": "a", "prompt": "p", "tests": "t", "language": "cobol"}, "'cobol'"),
        ({"task_id": "a", "prompt": "p", "tests": "", "language": "python"}, "needs either tests"),
        ({"task_id": "a", "prompt": "p", "tests": "t", "language": "c"}, "tests in c"),
        (LCB | {"public_test_cases": "nonsense"}, "is the row whole"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, said):
    with pytest.raises(InputError, match="line 2: ") as caught:
        read_tasks(_written(tmp_path / "t.jsonl", HUMANEVAL, row))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_bad_samples_are_named(tmp_path):
    tasks = read_tasks(_written(tmp_path / "t.jsonl", HUMANEVAL))
    for row, said in [({"task_id": "other", "completion": ""}, "'other'"), ({"completion": ""}, "task_id")]:
        with pytest.raises(InputError, match=said):
            read_samples(_written(tmp_path / "s.jsonl", row), tasks)
    (tmp_path / "s.jsonl").write_text("{")
    with pytest.raises(InputError, match="line 1: not JSON"):
        read_samples(tmp_path / "s.jsonl", tasks)
    (tmp_path / "s.jsonl").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        read_samples(tmp_path / "s.jsonl", tasks)
    with pytest.raises(InputError, match="is there twice"):
        read_tasks(_written(tmp_path / "t.jsonl", HUMANEVAL, HUMANEVAL))


# --- generated tasks -------------------------------------------------------------------------------------------------


def test_tasks_are_even_different_and_the_same_for_a_seed():
    made = families.tasks(96, languages=("python", "perl"))
    assert made == families.tasks(96, languages=("python", "perl"))
    assert made != families.tasks(96, languages=("python", "perl"), seed=1)
    assert len({t.task_id for t in made}) == len(made) == 96
    assert {t.level for t in made} == set(families.LEVELS)
    assert {t.family for t in made} == set(families.FAMILIES)


def test_training_texts_hold_no_task():
    asked = {t.before.splitlines()[0].partition(": ")[2] for t in families.tasks(4000, languages=("python",))}
    shown = [text.splitlines()[0].partition(": ")[2] for text in families.texts(4000, languages=("javascript",))]
    assert len(asked) > 1000 and not asked & set(shown)
    assert len({text.count(", then ") for text in shown}) == len(families.LEVELS)


def test_references_are_right_by_their_own_tests():
    for task in families.tasks(300):
        exec(compile(task.before + task.reference + "\n" + task.tests, task.task_id, "exec"), {})


@isolated
def test_references_pass_in_every_language_and_other_answers_fail():
    names = [name for name in ("python", "javascript", "bash", "perl") if languages.tool(name)]
    made = families.tasks(9 * len(names), languages=names)
    right = [Sample(t.task_id, " " + t.reference + "\nand whatever follows") for t in made]
    wrong = [Sample(t.task_id, t.reference.replace("$x", "17").replace("x", "17", 1)) for t in made]
    grades = grading.grade(made, right + wrong)
    assert all(g.passed for g in grades[: len(made)]), [g for g in grades if not g.passed][:1]
    assert not any(g.passed for g in grades[len(made) :])


def test_unknown_names_are_said():
    with pytest.raises(InputError, match="family is 'poems'"):
        families.tasks(1, families=("poems",))
    with pytest.raises(InputError, match="no family of lists is said in bash"):
        families.tasks(1, families=("lists",), languages=("bash",))


# --- pass@k ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, c, k", [(5, 2, 1), (5, 2, 3), (5, 0, 4), (5, 5, 1), (7, 3, 5), (200, 13, 100)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(n, c, k):
    found = grading.pass_at_k(np.array([n]), np.array([c]), k)[0]
    if n < 10:
        draws = list(itertools.combinations(range(n), k))
        assert found == pytest.approx(sum(min(draw) < c for draw in draws) / len(draws))
    else:  # the product of Chen et al.'s code
        assert found == pytest.approx(1 - np.prod(1 - k / np.arange(n - c + 1, n + 1)))


def test_pass_at_k_needs_k_samples():
    with pytest.raises(InputError, match="pass@10 needs 10 samples"):
        grading.pass_at_k(np.array([20, 5]), np.array([1, 1]), 10)


def test_intervals_cover_what_made_the_counts():
    """Hierarchies drawn from the prior: 90% intervals hold the truth in about 90% of them."""
    rng = np.random.default_rng(0)
    held = np.zeros((2, 120))
    for i in range(held.shape[1]):
        mean, precision = rng.uniform(), np.exp(rng.uniform(np.log(0.2), np.log(500)))
        rates = rng.beta(mean * precision, (1 - mean) * precision, size=2000)
        n = np.full(30, 4)
        c = rng.binomial(n, rates[:30])
        found = grading.score({str(j): (4, int(x)) for j, x in enumerate(c)}, 2, draws=1500, seed=i)
        truth = 1 - (1 - rates) ** 2
        for j, (low, high), true in ((0, found.these, truth[:30].mean()), (1, found.others, truth.mean())):
            held[j, i] = low <= true <= high
    assert np.all(np.abs(held.mean(axis=1) - 0.9) < 0.08), held.mean(axis=1)


def test_one_sample_a_task_gives_the_binomial_interval():
    from scipy.stats import beta

    found = grading.score({str(i): (1, int(i < 30)) for i in range(40)}, 1, draws=20_000)
    assert found.estimate == 0.75
    assert found.others == pytest.approx(beta.ppf([0.05, 0.95], 31, 11), abs=0.01)


# --- grades ----------------------------------------------------------------------------------------------------------


def test_judged():
    ran = Outcome("ok", "4 5\n6", "", 0.1)
    assert grading.judged(ran, "4\n5 6\n", "w") == ("passed", "")
    assert grading.judged(ran, "4 5", "w") == ("wrong", "word 3 of its output is '6', and should be nothing")
    assert grading.judged(Outcome("ok", "a\nw\n", "", 0.1), None, "w") == ("passed", "")
    assert grading.judged(Outcome("timeout", "w", "", 9.0, "late"), None, "w") == ("timeout", "late")


def test_stop_ends_a_completion_after_its_first_words():
    task = Task("a", "p", "t", before="x = ", stop=("\n", ";"))
    (program, wanted), = programs(task, Sample("a", "\n 1 + 2; y\nz"), "W")  # fmt: skip
    assert program.source.startswith("x = \n 1 + 2\nt\n") and "'W'" in program.source and wanted is None


# --- commands --------------------------------------------------------------------------------------------------------


def test_tasks_command(tmp_path, capsys):
    out, texts = tmp_path / "t.jsonl", tmp_path / "t.txt"
    words = ["code", "tasks", "--out", str(out), "--count", "12", "--languages", "python", "--texts", str(texts)]
    assert cli.main([*words, "--examples", "50", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"] == 12 == len(read_tasks(out))
    assert texts.read_text().count("def f(x)") == 50


@isolated
def test_run_command(tmp_path, capsys):
    made = families.tasks(6)
    write_tasks(made, tmp_path / "t.jsonl")
    answers = [(t.task_id, text) for t in made for text in (t.reference, "None")]
    samples = _written(tmp_path / "s.jsonl", *({"task_id": name, "completion": text} for name, text in answers))
    words = ["code", "run", str(tmp_path / "t.jsonl"), str(samples), "--k", "1,2", "--by", "level"]
    assert cli.main([*words, "--out", str(tmp_path / "g.jsonl"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["scores"]["all"]["pass"]["1"]["estimate"] == 0.5
    assert answer["scores"]["all"]["pass"]["2"]["estimate"] == 1.0
    assert answer["status"]["passed"] == 6
    assert len((tmp_path / "g.jsonl").read_text().splitlines()) == 12
    assert cli.main(words) == 0
    assert "pass@2" in capsys.readouterr().out


def test_run_command_refuses_without_isolation(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(isolation, "probe", lambda: isolation.Isolation("there are no user namespaces"))
    write_tasks(families.tasks(1), tmp_path / "t.jsonl")
    name = families.tasks(1)[0].task_id
    samples = _written(tmp_path / "s.jsonl", {"task_id": name, "completion": "x"})
    assert cli.main(["code", "run", str(tmp_path / "t.jsonl"), str(samples)]) == 2
    said = capsys.readouterr().err
    assert "no user namespaces" in said and said.count("\n") == 1
    assert cli.main(["code", "run", str(tmp_path / "t.jsonl"), str(samples), "--k", "3"]) == 2
    assert "pass@3 needs 3 samples" in capsys.readouterr().err
