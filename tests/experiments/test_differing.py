"""What a grid varies is seen in its plan and its table."""

import pandas as pd
import pytest

from experiments import differing, store
from experiments.cli import main
from experiments.grid import axis, prod, trials, zip_
from experiments.plan import make_plan
from tests.experiments.test_cli import say, say_json

from . import fakes

GRID = """
from experiments.grid import axis, prod, trials, zip_
from tests.experiments.fakes import BASE

def grid():
    return trials(BASE, prod(axis("model.qk_norm", [False, True]), axis("optim.weight_decay", [0, 0.1, 0.3])))
"""


def test_fields_that_differ_but_for_those_that_come_with_others():
    shapes = zip_(axis("model.d_model", [16, 32]), axis("model.n_heads", [1, 2]))
    swept = trials(fakes.BASE, prod(shapes, axis("optim.weight_decay", [0.0, 0.1]), axis("seed", [1, 2])))
    assert differing.fields(swept) == ["model.d_model", "optim.weight_decay", "seed"]  # not n_heads, d_ff, head_dim
    assert differing.fields(swept, known=["seed", "model.d_model"]) == ["optim.weight_decay"]
    assert differing.fields(trials(fakes.BASE, axis("model.d_ff", [32, 48]))) == ["model.d_ff"]
    assert differing.fields(swept[:1]) == []


@pytest.fixture
def swept(tmp_path):
    (tmp_path / "mine.py").write_text(GRID)
    configs = trials(fakes.BASE, prod(axis("model.qk_norm", [False, True]), axis("optim.weight_decay", [0, 0.1, 0.3])))
    plan = make_plan(f"{tmp_path}/mine.py:grid", configs)
    folder = store.create(tmp_path / "out", plan)
    for chunk in plan.chunks:
        losses = [2 + t.model.qk_norm + t.optim.weight_decay for t in chunk.trials]
        folder.write_part(chunk.id, [{**fakes.row(t), "loss": x} for t, x in zip(chunk.trials, losses)])
    return tmp_path


def test_they_are_columns(swept, capsys):
    mine, out = f"{swept}/mine.py:grid", swept / "out"
    plan = say(capsys, "sweep", "plan", mine)
    assert "qk_norm" in plan and "weight_decay" in plan and " no " in plan and "0 .. 0.3" in plan
    table = say(capsys, "sweep", "table", "--out", out)
    assert "qk_norm" in table and "weight_decay" in table
    row = say_json(capsys, "sweep", "table", "--out", out)[-1]
    assert (row["model.qk_norm"], row["optim.weight_decay"], row["loss"]) == (True, 0.3, 3.3)


def test_pivot(swept, capsys):
    words = ["sweep", "table", "--out", str(swept / "out"), "--pivot"]
    lines = say(capsys, *words, "weight_decay,qk_norm").splitlines()
    assert lines[0] == "least loss by weight_decay (down) and qk_norm (across)"
    assert [line.split() for line in lines if "000" in line] == [
        ["0", "2.0000", "3.0000"], ["0.1", "2.1000", "3.1000"], ["0.3", "2.3000", "3.3000"],
    ]  # fmt: skip
    say(capsys, *words, "optim.weight_decay,qk_norm", "--save", swept / "pivot.csv")
    assert pd.read_csv(swept / "pivot.csv")["True"].tolist() == [3.0, 3.1, 3.3]
    assert main([*words, "weight_decai,qk_norm"]) == 2
    assert "did you mean weight_decay?" in capsys.readouterr().err
    assert main([*words, "qk_norm"]) == 2
    assert "name two columns" in capsys.readouterr().err
