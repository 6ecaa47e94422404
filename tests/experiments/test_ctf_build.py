"""Counterfactual pairs: distances, the embedded generator, the choice, what is run and rejected, files and the command.

`benchmarks/ctf_pairs.py` checks whole files with code of its own; it is run here on a small one."""

from __future__ import annotations

import ast
import itertools
import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import ctf_pairs
from experiments import cli
from experiments.code import isolation
from experiments.code.ctf import build as build_lib
from experiments.code.ctf import embed, evaluate, perturb
from experiments.code.ctf.build import Candidate
from experiments.code.ctf.perturb import Slot, Template
from experiments.code.ctf.problems import (
    ALPACA,
    Problem,
    code_in,
    edit_distance,
    is_literal,
    read_pairs,
    task,
    write_pairs,
)
from experiments.code.ctf.templates import TEMPLATES
from experiments.code.grading import grade
from experiments.code.tasks import Sample, Task
from experiments.errors import InputError

REASON = isolation.probe().reason
isolated = pytest.mark.skipif(REASON is not None, reason=f"no isolation: {REASON}")
BY_NAME = {template.name: template for template in TEMPLATES}


def value(problem: Problem, given: str):
    """What the solution gives; these solutions are the repository's own."""
    names: dict = {}
    exec(problem.solution, names)
    return eval(f"{problem.entry_point}({given})", names)


# --- distances -------------------------------------------------------------------------------------------------------


def test_edit_distance_is_levenshteins_over_the_longer():
    rng = random.Random(0)
    for _ in range(60):
        a, b = ("".join(rng.choices("abcé ", k=rng.randrange(12))) for _ in range(2))
        assert edit_distance(a, b) == pytest.approx(ctf_pairs.levenshtein(a, b) / max(len(a), len(b), 1)), (a, b)
    assert edit_distance("kitten", "sitting") == 3 / 7


def test_ngrams_tell_the_same_from_the_other():
    states = embed.ngrams(["x = 1\n", "x = 1\n", "for i in range(9):\n    print(i)\n"])
    assert embed.distance(states[0], states[1]) == pytest.approx(0, abs=1e-6)
    assert 0.3 < embed.distance(states[0], states[2]) <= 1


def test_distance_is_one_less_the_cosine():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 7))
    wanted = [1 - x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b)]
    np.testing.assert_allclose(embed.distance(a, b), wanted)


# --- the embedded generator ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_templates_hold_together(template):
    """The first options give the template's own solution; every filling runs, and all differ in words and program."""
    first = perturb.problem(template, (0,) * len(template.slots))
    assert ast.dump(ast.parse(first.solution)) == ast.dump(ast.parse(template.solution))
    fillings = list(template.fillings())
    made = [perturb.problem(template, filling) for filling in fillings]
    assert len({p.statement for p in made}) == len(fillings) == len({p.solution for p in made})
    for problem in random.Random(0).sample(made, min(25, len(made))):
        for given in problem.inputs:
            assert is_literal(repr(value(problem, given))), problem.problem_id


OPERATORS = {"greater than": "__gt__", "less than": "__lt__", "at least": "__ge__", "at most": "__le__",
             "equal to": "__eq__", "different from": "__ne__"}  # fmt: skip


def chosen(words, xs):
    what, compare, k, none = re.search(r"the (\w+) of the elements (\D+) (\d+), or (\d)", words).groups()
    kept = [x for x in xs if getattr(x, OPERATORS[compare])(int(k))]
    results = {"sum": sum, "largest": max, "smallest": min, "number": len}
    return results[what](kept) if kept else int(none)


def most(words, xs):
    k, which, order = re.search(r"its (\d) (\w+) elements .* in (\w+) order", words).groups()
    some = {"largest": sorted(xs)[::-1], "smallest": sorted(xs), "first": xs, "last": xs[::-1]}[which][: int(k)]
    return sorted(some)[:: 1 if order == "ascending" else -1]


def sets(words, a, b):
    order, where, op, k = re.search(r"returns, (\w+), .* that are in (.+), each (\w+) (\d)", words).groups()
    tests = {"a and b": lambda x: x in a and x in b, "a or b": lambda x: True, "a, not b": lambda x: x not in b,
             "one only": lambda x: (x in a) != (x in b)}  # fmt: skip
    made = {x + int(k) if op == "plus" else x - int(k) if op == "minus" else x * int(k) for x in a + b
            if tests[where](x) and (where != "a, not b" or x in a)}  # fmt: skip
    return sorted(made, reverse=order == "descending")


def chain(words, xs):
    what, compare, op, k = re.search(r"largest (\w+) of .* is (\D+) the one before it, (\w+) (\d)", words).groups()
    best = None
    for mask in range(1, 1 << len(xs)):
        part = [x for i, x in enumerate(xs) if mask >> i & 1]
        if all(getattr(b, OPERATORS[compare])(a) for a, b in itertools.pairwise(part)):
            size = len(part) if what == "length" else sum(part)
            best = size if best is None else max(best, size)
    return best * int(k) if op == "times" else best - int(k)


def window(words, xs):
    which, what, k, none = re.search(r"the (\w+) (\w+) of (\d) elements .* or (\d) if", words).groups()
    inner = {"sum": sum, "maximum": max, "minimum": min}[what]
    found = [inner(xs[i : i + int(k)]) for i in range(len(xs)) if i + int(k) <= len(xs)]
    return {"largest": max, "smallest": min}[which](found) if found else int(none)


@pytest.mark.parametrize("solve", [chosen, most, sets, chain, window], ids=lambda f: f.__name__)
def test_the_words_say_what_the_program_does(solve):
    """Every filling, solved from its statement alone by other code."""
    template = BY_NAME[solve.__name__]
    for filling in template.fillings():
        problem = perturb.problem(template, filling)
        for given in problem.inputs:
            assert solve(problem.statement, *ast.literal_eval(f"({given},)")) == value(problem, given), problem


def test_an_edit_is_one_of_the_tree_inside_another():
    made = Template("t", 1, "f(x): x {op} {k}, {what}", "def f(x):\n    return (x + 3) + max(x + 3, 2)\n",
                    {"op": Slot("arith", {"+": "plus", "*": "times"}), "what": Slot("name", {"max": "M", "min": "m"}),
                     "k": Slot("constant", {"3 ;; 3": "3", "4 ;; 4": "4"})}, ("1",))  # fmt: skip
    changed = perturb.problem(made, (1, 1, 1))
    assert changed.solution == "def f(x):\n    return (x + 4) * min(x + 4, 2)\n"
    assert changed.statement == "f(x): x times 4, m"
    with pytest.raises(InputError, match="no compare '>' for its slot c"):
        perturb.problem(replace(made, statement="", slots={"c": Slot("compare", {">": "above"})}), (0,))


def test_parts_share_no_problem():
    found = {part: perturb.seeds(TEMPLATES, 200, part, 1) for part in perturb.PARTS}
    assert all(len(set((t.name, f) for t, f in some)) == 200 for some in found.values())
    for part, some in found.items():
        for template, filling in some[::9]:
            near = perturb.neighbours(template, filling, part)
            assert all(perturb.part_of(template, other) == part for other, _ in near)
            assert filling not in [other for other, _ in near]
    with pytest.raises(InputError, match="--count is 100000"):
        perturb.seeds(TEMPLATES, 100_000, "training", 1)


# --- pairs -----------------------------------------------------------------------------------------------------------

HALF = Problem(
    "p", "Write f(x), which returns x plus one.", "def f(x):\n    return x + 1\n", "f", ("1", "2"), group="p"
)


def candidate(solution: str, statement: str = "Write f(x), which returns x plus two.") -> Candidate:
    return Candidate(replace(HALF, problem_id="q", solution=solution, statement=statement), "an edit")


def lengths(texts):
    """An embedding in which a solution is further the longer it is."""
    return np.array([[1.0, len(text) / 100] for text in texts])


@isolated
def test_the_best_that_runs_and_differs_is_taken():
    broken = candidate("def f(x):\n    return x.nothing  # " + "long" * 20 + "\n")
    equal = candidate("def f(x):\n    return 1 + x  # " + "long" * 15 + "\n", "Write f(x), which returns one plus x.")
    good = candidate("def f(x):\n    return x + 2  # long\n", "Write f(x), which returns x plus two!")
    short = candidate("def f(x):\n    return x + 2\n", "Write f(x), which returns x plus two?")
    far = candidate("def f(x):\n    return 'x' * 99\n", "Something else.")
    built = build_lib.build([(HALF, [short, broken, far, good, equal])], lengths, epsilon=0.5)
    (pair,) = built.pairs
    assert pair.partner.statement == good.partner.statement and pair.partner.outputs == ("3", "4")
    assert pair.original.outputs == ("2", "3") and pair.edit == "an edit"
    assert built.why == {"its statement is further than 0.5": 1, "its solution: failed": 1,
                         "its outputs are the original's": 1}  # fmt: skip


@isolated
@pytest.mark.parametrize(
    "solution, reason",
    [
        ("def f(x):\n    while True: pass\n", "timeout"),
        ("def f(x):\n    return object()\n", "a result is no literal, or is long"),
        ("def f(x):\n    return float('nan')\n", "a result is no literal, or is long"),
        ("def f(x):\n    raise SystemExit\n", "not one result a call"),
        ("def g(x):\n    return 1\n", "failed"),
        ("def f(x:\n", "failed"),
        ("import os\ndef f(x):\n    return open(os.path.expanduser('~root/.bashrc')).read()\n", "failed"),
    ],
)
def test_what_is_rejected_when_run(solution, reason):
    limits = build_lib.Limits(wall_s=0.7)
    built = build_lib.build([(HALF, [candidate(solution)])], lengths, limits=limits)
    assert not built.pairs and built.why == {f"its solution: {reason}": 1} and built.seeds == {"no candidate left": 1}


@isolated
def test_whole_programs_have_pairs_too():
    original = Problem("io", "Print the number plus one.", "print(int(input()) + 1)\n", "", ("4\n", "5\n"))
    partner = Candidate(replace(original, statement="Print the number plus two.", solution="print(int(input()) + 2)\n"))
    (pair,) = build_lib.build([(original, [partner])], lengths).pairs
    assert pair.original.outputs == ("5\n", "6\n") and pair.partner.outputs == ("6\n", "7\n")
    assert task(pair.partner).cases == (("4\n", "6\n"), ("5\n", "7\n"))


@isolated
def test_problems_from_tasks():
    """Inputs are recorded from any tests, recursion left out; what can't be used is counted."""
    tests = "def check(c):\n    for n in (3, 4):\n        assert c(n, [n]) == n + 3\ncheck(add)\n"
    body = "    return 3 if n == 0 else 1 + add(n - 1, [])\n"
    whole = Task("h", "def add(n, xs):\n", tests, entry_point="add", before="def add(n, xs):\n", reference=body)
    others = [replace(whole, task_id="none", reference=""), replace(whole, task_id="bad", reference="    return 1\n"),
              replace(whole, task_id="js", language="javascript"), Task("io", "p", cases=(("1", "2"),), reference="x"),
              replace(whole, task_id="o", tests="assert add(0, iter([])) == 3")]  # fmt: skip
    problems, why = build_lib.from_tasks([whole, *others])
    assert [(p.problem_id, p.inputs) for p in problems] == [("h", ("3, [3]", "4, [4]")), ("io", ("1",))]
    assert sum(why.values()) == 4 and why["the reference does not pass its tests"] == 1


@isolated
def test_references_pass_as_tasks(tmp_path):
    out = tmp_path / "pairs.jsonl"
    assert cli.main(["ctf", "build", "--count", "12", "--out", str(out), "--json"]) == 0
    pairs = read_pairs(out)
    write_pairs(pairs, tmp_path / "again.jsonl")
    assert read_pairs(tmp_path / "again.jsonl") == pairs
    for prompt in ("alpaca", "comment"):
        asked = evaluate.asked(pairs, prompt)
        grades = grade(asked, [Sample(t.task_id, t.reference) for t in asked])
        assert all(one.passed for one in grades), [one for one in grades if not one.passed]
    assert asked[0].prompt.startswith("# Write ") and ALPACA.count("###") == 2


@isolated
def test_the_independent_script_finds_what_is_wrong(tmp_path, monkeypatch, capsys):
    out = tmp_path / "pairs.jsonl"
    assert cli.main(["ctf", "build", "--count", "8", "--out", str(out)]) == 0
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["ctf_pairs", str(out), "--beside", str(out)])
    assert ctf_pairs.main() == 1
    assert "faults: 1" in capsys.readouterr().out  # all statements are in the file beside, and nothing else
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    rows[0]["partner"]["solution"] = rows[0]["original"]["solution"]
    rows[1]["d_q"] += 0.01
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("sys.argv", ["ctf_pairs", str(out)])
    assert ctf_pairs.main() == 1
    said = capsys.readouterr().out
    for fault in ("D_Q is not as written", "partner does not pass its tests", "partner passes the original's tests"):
        assert fault in said
    assert "the original does not pass" not in said


def test_files_that_are_no_pairs_are_refused(tmp_path):
    for text, reason in (("", "is empty"), ("[1]\n", "JSON object"), ('{"a": 1}\n', "is it a file of pairs"),
                         ("nonsense\n", "not JSON")):  # fmt: skip
        (tmp_path / "p.jsonl").write_text(text)
        with pytest.raises(InputError, match=reason):
            read_pairs(tmp_path / "p.jsonl")


def test_code_in_an_answer():
    assert code_in("x = 1\n") == "x = 1\n"
    assert code_in("Sure:\n```python\nx = 1\n```\nIt is one.") == "x = 1\n"


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "required: --out"),
        (["--out", "p.jsonl", "--count", "0"], "--count is '0'"),
        (["--out", "p.txt"], "ending in .jsonl"),
        (["--out", "p.jsonl", "--part", "train"], "did you mean training?"),
        (["--out", "p.jsonl", "--epsilon", "2"], "--epsilon is '2'"),
        (["--out", "p.jsonl", "--embedding", "nowhere"], "nowhere holds no model"),
        (["--out", "p.jsonl", "--tasks", "t.jsonl"], "--tasks needs --endpoint"),
        (["--out", "p.jsonl", "--endpoint", "localhost"], "--endpoint needs --model"),
        (["--out", "p.jsonl", "--endpoint", "localhost", "--model", "m"], "write an address"),
        (["--out", "p.jsonl", "--model", "m"], "give its address too"),
    ],
)
def test_command_errors_are_one_line(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ctf", "build", *words]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
    assert not list(tmp_path.glob("p.*"))
