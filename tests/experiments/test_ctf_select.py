"""Selection: k-center greedy against the plain algorithm, difficulty, the order's prefixes, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest

import engine
from engine import ModelConfig
from engine.tokenize import Bytes
from experiments import cli
from experiments.code import isolation
from experiments.code.ctf import embed, select
from experiments.code.ctf.problems import write_pairs
from experiments.errors import InputError
from tests.engine.conftest import drawn_params
from tests.experiments.test_ctf_evaluate import PAIRS

isolated = pytest.mark.skipif(isolation.probe().reason is not None, reason="no isolation")


def plain(new, centres, k):
    """Gonzalez's algorithm as it is said, in double precision."""
    near = np.array([min(np.linalg.norm(x - c) for c in centres) for x in new])
    order = []
    while len(order) < k and near.max() > 0:
        i = int(np.argmax(near))
        order.append(i)
        near = np.minimum(near, np.linalg.norm(new - new[i], axis=1))
    return order


@pytest.mark.parametrize("block", [1, 3, 16, 2048])
def test_k_center_is_the_plain_algorithm(block, monkeypatch):
    monkeypatch.setattr(select, "BLOCK", block)
    rng = np.random.default_rng(block)
    new, centres = rng.normal(size=(150, 5)) + 3, rng.normal(size=(20, 5)) + 3
    order, distances = select.k_center(new, centres)
    assert order.tolist() == plain(new, centres, 150)
    assert np.all(np.diff(distances) <= 1e-6)
    before = np.concatenate([centres, new[order[:-1]]])
    assert distances[-1] == pytest.approx(np.linalg.norm(before - new[order[-1]], axis=1).min(), rel=1e-3)
    part, _ = select.k_center(new, centres, 40)
    assert part.tolist() == order[:40].tolist()  # every prefix is a selection


def test_k_center_ends_where_nothing_is_new():
    points = np.array([[0.0, 0], [1, 0], [1, 0], [0, 0], [0, 2]])
    order, distances = select.k_center(points, np.array([[0.0, 0]]))
    assert order.tolist() == [4, 1] and distances == pytest.approx([2, 1])
    assert len(select.k_center(points, points)[0]) == 0
    for new, centres in ((points, points[:0]), (points, np.zeros((2, 3))), (points[0], points)):
        with pytest.raises(InputError, match="embeddings are"):
            select.k_center(new, centres)


def test_the_hardest_share():
    assert select.hardest(np.array([1.0, 5, 3, 5, 0]), 0.6).tolist() == [1, 2, 3]
    assert select.hardest(np.array([1.0, 2]), 0.01).tolist() == [1]


def test_ranks_go_from_zero_to_one():
    assert select._ranks(np.array([3.0, 1, np.nan, 2])) == pytest.approx([2 / 3, 0, 1, 1 / 3])
    assert select._ranks(np.array([1.0, 1, 0, 5])) == pytest.approx([0.5, 0.5, 0, 1])


@pytest.fixture(scope="module")
def trained():
    config = ModelConfig(vocab_size=257, d_model=16, n_layers=1, n_heads=2, d_ff=16, logit_softcap=5.0)
    return engine.Trained(config, drawn_params(config), Bytes(), None)


def test_expected_digit_is_the_mean_by_the_models_probabilities(trained):
    statements = ["Add two numbers.", "Sort."]
    found = select.expected_digit(trained, statements)
    for score, statement in zip(found, statements):
        ids = np.asarray(list(select.SCORER.format(statement).encode()), np.int32)
        logits = np.asarray(engine.logits(trained.model, trained.params, ids[None]))[0, -1]
        p = np.exp(logits[48:54]) / np.exp(logits[48:54]).sum()
        assert score == pytest.approx(p @ np.arange(6), abs=1e-4)


@isolated
def test_difficulty_is_of_loss_and_failures(trained, monkeypatch):
    """A model that solves the second problem only, and finds the third one's solution least likely."""
    problems = [pair.partner for pair in PAIRS[:3]]
    monkeypatch.setattr(embed, "response_loss", lambda *_: np.array([0.2, 0.4, 0.9]))

    def written(_, tasks, **__):
        return [select.evaluate.Sample(t.task_id, t.reference if i == 1 else "x") for i, t in enumerate(tasks)]

    monkeypatch.setattr(select.evaluate, "written", written)
    assert select.difficulty(trained, problems) == pytest.approx([2.5, 1.25, 5.0])


@isolated
def test_select_command(tmp_path, capsys, trained):
    write_pairs(PAIRS, tmp_path / "p.jsonl")
    out = tmp_path / "i.jsonl"
    words = ["ctf", "select", str(tmp_path / "p.jsonl"), "--out", str(out)]
    assert cli.main([*words, "--count", "2"]) == 0
    assert "6 originals and 2 chosen partners" in capsys.readouterr().out
    two = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in two[:6]] == [f"p{i}/original" for i in range(3, 9)] and len(two) == 8
    assert two[7]["instruction"].startswith("Write f(x): x times") and two[7]["output"].startswith("def f(x)")
    assert cli.main([*words, "--count", "4", "--json"]) == 0
    capsys.readouterr()
    four = [json.loads(line) for line in out.read_text().splitlines()]
    assert four[:8] == two  # more is the same and more
    engine.hf.save(tmp_path / "m", ModelConfig(**{**vars(trained.model), "logit_softcap": 0.0}), trained.params,
                   tokenizer=Bytes())  # fmt: skip
    model = ["--model", str(tmp_path / "m"), "--tokens", "4"]
    assert cli.main([*words, *model, "--count", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["left"] == 3 and found["difficulty_of_chosen"] >= found["difficulty_of_all"]
    assert cli.main([*words, *model, "--count", "4"]) == 2
    assert cli.main([*words, "--count", "7"]) == 2
    assert cli.main([*words, "--hardest", "2"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "3 of 6 samples are left" in said[0] and "6 of 6 samples" in said[1] and "--hardest" in said[2]
    assert cli.main([*words, "--scorer", str(tmp_path / "m"), "--hardest", "1", "--json"]) == 0
