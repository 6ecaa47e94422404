"""Reviews and evaluations of pairs: pages, verdicts, drops with their intervals, and the two commands."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import engine
from engine import ModelConfig
from engine.tokenize import Bytes
from experiments import cli
from experiments.code import isolation
from experiments.code.ctf import evaluate, review
from experiments.code.ctf.problems import Pair, Problem, read_pairs, write_pairs
from experiments.code.ctf.review import Verdict
from experiments.code.grading import Grade
from experiments.errors import InputError

isolated = pytest.mark.skipif(isolation.probe().reason is not None, reason="no isolation")


def pair(i: int, level: int = 1) -> Pair:
    """f(x) is x + i, or x * i."""
    a = Problem(f"p{i}", f"Write f(x): x plus {i}.", f"def f(x):\n    return x + {i}\n", "f", ("1", "7"),
                (str(1 + i), str(7 + i)), level=level)  # fmt: skip
    b = replace(a, statement=f"Write f(x): x times {i}.", solution=f"def f(x):\n    return x * {i}\n",
                outputs=(str(i), str(7 * i)))  # fmt: skip
    return Pair(f"p{i}", a, b, 0.1, 0.3, 0.18, "+ -> *")


PAIRS = [pair(i, 1 + i % 2) for i in range(3, 9)]


@pytest.fixture
def file(tmp_path):
    write_pairs(PAIRS, tmp_path / "pairs.jsonl")
    return tmp_path / "pairs.jsonl"


# --- reviews ---------------------------------------------------------------------------------------------------------


def test_marked_parts_are_the_texts_and_what_differs():
    a, b = "the sum of xs, ascending", "the product of xs, <ascending>"
    left, right = review.marked(a, b)
    assert "".join(text for _, text in left) == a and "".join(text for _, text in right) == b
    assert [text for kind, text in left if kind] == ["sum"]
    assert [text for kind, text in right if kind] == ["product", "<", ">"]


def test_the_page_holds_every_pair_as_data_and_none_as_markup():
    hostile = replace(PAIRS[0], edit="</script><script>alert(1)</script><img src=x onerror=alert(1)>")
    page = review.page([hostile, *PAIRS[1:]])
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    shown = json.loads(data)["pairs"]
    assert [one["pair_id"] for one in shown] == [one.pair_id for one in PAIRS]
    assert "alert(1)" not in page.replace(data, "") and "<" not in data
    assert shown[0]["tests"] == [["1", "4", "3"], ["7", "10", "21"]]
    assert "innerHTML" not in page and not re.search(r'(src|href)="?http', page)


def verdict(i: int, reviewer: str = "Ada", **answers: str) -> Verdict:
    return Verdict(f"p{i}", reviewer, **{**review.ACCEPTED, **answers})


def test_a_pair_stays_if_all_who_judged_it_accept_it():
    given = [verdict(3), verdict(3, "Bob"), verdict(4), verdict(4, "Bob", different="no"), verdict(5, solvable="no"),
             verdict(6, difficulty="harder"), verdict(7, difficulty="harder"), verdict(7)]  # fmt: skip
    left = review.settle(PAIRS, given)
    assert [one.pair_id for one in left.kept] == ["p3", "p7"]
    assert left.kept[0].verdict == "accepted by Ada, Bob"
    assert (left.rejected, left.unseen, left.agreement) == (3, 1, 0.5)
    assert left.why == {"different": 1, "solvable": 1, "difficulty": 1}
    with pytest.raises(InputError, match="'p99', which is not among the 6 pairs"):
        review.settle(PAIRS, [verdict(99)])


def test_review_command(file, tmp_path, capsys):
    assert cli.main(["ctf", "review", str(file), "--out", str(tmp_path / "r.html")]) == 0
    assert "6 pairs in" in capsys.readouterr().out
    verdicts = tmp_path / "v.jsonl"
    rows = [{"pair_id": "p3", "reviewer": "Ada", **review.ACCEPTED, "note": "fine"},
            {"pair_id": "p4", "reviewer": "Ada", **review.ACCEPTED, "different": "no"}]  # fmt: skip
    verdicts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["ctf", "review", str(file), "--verdicts", str(verdicts), "--out", str(tmp_path / "kept.jsonl")]
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rejected_for"] == {"different": 1}
    assert [one.pair_id for one in read_pairs(tmp_path / "kept.jsonl")] == ["p3"]
    assert cli.main(words[:-1] + [str(tmp_path / "kept.html")]) == 2
    verdicts.write_text(json.dumps({**rows[0], "solvable": "perhaps"}) + "\n")
    assert cli.main(words) == 2
    verdicts.write_text(json.dumps({"pair_id": "p3"}) + "\n")
    assert cli.main(words) == 2
    said = capsys.readouterr().err.splitlines()
    assert "ending in .jsonl" in said[0] and "solvable is 'perhaps'" in said[1] and "a verdict has pair_id" in said[2]


# --- the drop --------------------------------------------------------------------------------------------------------


def test_the_posterior_of_single_samples_is_jeffreys_dirichlet():
    """Moments of a Dirichlet on the four counts (both, original only, partner only, neither), in closed form."""
    counts = np.array([11, 6, 2, 5])
    rates = np.repeat([[1.0, 1.0], [1, 0], [0, 1], [0, 0]], counts, axis=0)
    draws = evaluate.posterior(rates, draws=200_000)
    a = counts + 0.5
    mean = a / a.sum()
    value = np.array([0, 1, -1, 0])
    drop = draws[:, 0] - draws[:, 1]
    wanted = mean @ value
    assert drop.mean() == pytest.approx(wanted, abs=2e-3)
    assert drop.var() == pytest.approx((mean @ value**2 - wanted**2) / (a.sum() + 1), rel=0.02)
    assert draws[:, 0].mean() == pytest.approx(mean[:2].sum(), abs=2e-3)


def test_intervals_cover_the_drop_of_the_population():
    """Pairs whose two sides depend on each other, two samples each: 90% intervals hold the true drop about so often."""
    rng = np.random.default_rng(0)
    rate = lambda n: (u := rng.beta(2, 1, n), u * rng.beta(4, 1, n))  # noqa: E731
    a, b = rate(10**6)
    true = (a - b).mean()
    held = 0
    for i in range(300):
        a, b = rate(40)
        draws = evaluate.posterior(np.stack([rng.binomial(2, a), rng.binomial(2, b)], axis=1) / 2, draws=1000, seed=i)
        low, high = np.quantile(draws[:, 0] - draws[:, 1], [0.05, 0.95])
        held += low <= true <= high
    assert 0.85 <= held / 300 <= 0.95, held / 300


def test_pairing_narrows_the_drop():
    both = np.repeat([[1.0, 1.0], [0.0, 0.0]], 20, axis=0)
    mixed = np.stack([both[:, 0], np.roll(both[:, 1], 10)], axis=1)
    widths = [np.ptp(np.quantile(d[:, 0] - d[:, 1], [0.05, 0.95])) for d in map(evaluate.posterior, (both, mixed))]
    assert 0 < widths[0] < widths[1] / 2


def test_report_counts_and_wants_both_sides():
    right = {"p3": (1, 1), "p4": (1, 0), "p5": (1, 0), "p6": (0, 1), "p7": (0, 0), "p8": (1, 1)}
    grades = [Grade(f"{name}/{side}", "passed" if ok else "wrong")
              for name, both in right.items() for side, ok in zip(("original", "partner"), both)]  # fmt: skip
    found = evaluate.report(PAIRS, grades)
    assert (found.both, found.only_original, found.only_partner, found.neither) == (2, 2, 1, 1)
    assert found.original.estimate == pytest.approx(4 / 6) and found.drop.estimate == pytest.approx(1 / 6)
    assert found.drop.low < 1 / 6 < found.drop.high and 0.5 < found.above_zero < 0.9
    with pytest.raises(InputError, match="no sample of p8/partner"):
        evaluate.report(PAIRS, grades[:-1])


@isolated
def test_evaluate_command_on_samples(file, tmp_path, capsys):
    """A model that never sees the change: it answers the original's program for both."""
    tasks, samples = tmp_path / "t.jsonl", tmp_path / "s.jsonl"
    assert cli.main(["ctf", "evaluate", str(file), "--write-tasks", str(tasks)]) == 0
    asked = [json.loads(line) for line in tasks.read_text().splitlines()]
    assert [t["task_id"] for t in asked[:2]] == ["p3/original", "p3/partner"] and "### Response:" in asked[0]["prompt"]
    answers = [{"task_id": t["task_id"], "completion": f"Here:\n```python\n{p.original.solution}```\n"}
               for t, p in zip(asked, [p for p in PAIRS for _ in "ab"])]  # fmt: skip
    samples.write_text("".join(json.dumps(row) + "\n" for row in answers))
    words = ["ctf", "evaluate", str(file), "--samples", str(samples), "--out", str(tmp_path / "g.jsonl")]
    capsys.readouterr()
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["all"]["original"]["estimate"] == 1 and found["all"]["drop"]["estimate"] == 1
    w = np.random.default_rng(0).dirichlet([0.5, 6.5, 0.5, 0.5], 200_000)  # six pairs, all of them original only
    assert found["all"]["drop"]["low"] == pytest.approx(np.quantile(w[:, 1] - w[:, 2], 0.05), abs=0.02)
    assert set(found) == {"all", "level 1", "level 2"}
    assert len((tmp_path / "g.jsonl").read_text().splitlines()) == 12
    assert cli.main(words) == 0
    assert "drop" in capsys.readouterr().out


@isolated
def test_evaluate_command_on_a_model(file, tmp_path, capsys):
    config = ModelConfig(vocab_size=257, d_model=16, n_layers=1, n_heads=2, d_ff=16)
    engine.hf.save(tmp_path / "m", config, engine.init(config), tokenizer=Bytes())
    words = ["ctf", "evaluate", str(file), "--model", str(tmp_path / "m"), "--tokens", "8", "--json"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["all"]["original"]["estimate"] == 0


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "give one of --model"),
        (["--model", "m", "--samples", "s.jsonl"], "give one of --model"),
        (["--model", "nowhere"], "nowhere holds no model"),
        (["--model", "m", "--prompt", "comments"], "did you mean comment?"),
        (["--model", "m", "--samples-per-problem", "3"], "one answer repeated"),
        (["--samples", "none.jsonl"], "none.jsonl"),
    ],
)
def test_evaluate_errors_are_one_line(words, said, file, capsys):
    assert cli.main(["ctf", "evaluate", str(file), *words]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
