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
    assert lines[0] == "lowest loss by weight_decay (down) and qk_norm (across)"
    assert [line.split() for line in lines if "000" in line] == [
        ["0", "2.0000", "3.0000"], ["0.1", "2.1000", "3.1000"], ["0.3", "2.3000", "3.3000"],
    ]  # fmt: skip
    say(capsys, *words, "optim.weight_decay,qk_norm", "--save", swept / "pivot.csv")
    assert pd.read_csv(swept / "pivot.csv")["True"].tolist() == [3.0, 3.1, 3.3]
    assert "nothing else varies" in "".join(lines)
    assert main([*words, "weight_decai,qk_norm"]) == 2
    assert "did you mean weight_decay?" in capsys.readouterr().err
    assert main([*words, "qk_norm"]) == 2
    assert "name two columns" in capsys.readouterr().err


@pytest.fixture
def seeded(tmp_path):
    """Two widths, with and without qk_norm, three rates, two seeds; losses by hand. One trial diverged."""
    shapes = prod(axis("model.d_model", [16, 32]), axis("model.qk_norm", [False, True]))
    configs = trials(fakes.BASE, prod(shapes, axis("optim.lr", [1e-3, 2e-3, 4e-3]), axis("seed", [1, 2])))
    plan = make_plan("mine", configs)
    folder = store.create(tmp_path / "out", plan)

    def row(t):
        noise = {1: -0.02, 2: 0.02}[t.seed] if t.optim.lr == 2e-3 else 0.0
        loss = 4 - t.model.d_model / 32 + t.model.qk_norm * 0.1 + abs(t.optim.lr - 1e-3) * 10 + noise
        lost = t.optim.lr == 4e-3 and t.seed == 1 and t.model.d_model == 16 and t.model.qk_norm
        return {**fakes.row(t), "loss": float("nan") if lost else loss, "status": "diverged" if lost else "ok"}

    for chunk in plan.chunks:
        folder.write_part(chunk.id, [row(t) for t in chunk.trials])
    return tmp_path / "out"


def test_a_pivot_is_of_means_over_seeds_and_says_what_it_is_the_lowest_over(seeded, tmp_path, capsys):
    """The lowest single run is of rate 2e-3, seed 1; of the means over seeds it is not."""
    words = ["sweep", "table", "--out", str(seeded), "--pivot"]
    shown = say(capsys, *words, "d_model,qk_norm")
    assert "3.5000 ± 0.0000" in shown and "3.4900" not in shown
    assert "lowest over lr (3); means of 2 seeds ± standard error; 1 trial without a loss left out" in shown
    by_rate = say(capsys, *words, "lr,d_model", "--where", "qk_norm=no", "--where", "lr=2e-3")
    assert "3.5100 ± 0.0200" in by_rate and "lowest over" not in by_rate  # sd sqrt(2) 0.02, of two
    assert "lowest over qk_norm (2), lr (3); 1 trial" in say(capsys, *words, "d_model,seed")  # no mean of what is asked
    found = say_json(capsys, *words, "optim.lr,d_model", "--where", "d_model=32")
    assert "lowest over qk_norm (2); means of 2 seeds" in found["what"]
    assert found["rows"][1] == pytest.approx({"optim.lr": 2e-3, "32": 3.01, "32_se": 0.02})
    say(capsys, *words, "lr,qk_norm", "--where", "d_model=16", "--save", tmp_path / "new" / "pivot.csv")
    saved = pd.read_csv(tmp_path / "new" / "pivot.csv")
    assert saved["False"].tolist() == pytest.approx([3.5, 3.51, 3.53]) and "True_se" in saved
    assert "means of 1 to 2 seeds" in say(capsys, *words, "lr,qk_norm", "--where", "d_model=16")


def test_rows_by_their_values(seeded, tmp_path, capsys):
    words = ["sweep", "table", "--out", str(seeded)]
    assert " seed " in say(capsys, *words)
    assert len(say_json(capsys, *words, "--where", "d_model=32", "--where", "qk_norm=yes", "--where", "seed=2")) == 3
    assert len(say_json(capsys, *words, "--where", "lr=4.0e-3", "--where", "weight_decay=0.1")) == 8
    assert len(say_json(capsys, *words, "--where", "status=diverged", "--where", "model.qk_norm=true")) == 1
    say(capsys, *words, "--where", "optim.lr=0.002", "--where", "N=3.33k", "--save", tmp_path / "rows.csv")
    assert set(pd.read_csv(tmp_path / "rows.csv")["d_model"]) == {16}
    for pair, expected in {
        "d_modell=16": "--where: no column or field 'd_modell'; did you mean d_model?",
        "d_model=64": "--where d_model=64: no row has that; d_model is 16, 32",
        "d_model": "write column=value, such as d_model=64",
        "qk_norm=maybe": "qk_norm is no, yes",
    }.items():
        assert main([*words, "--where", pair]) == 2
        assert expected in capsys.readouterr().err
    assert main([*words, "--where", "d_model=16", "--where", "N=12.5k"]) == 2
    assert "no row that the others leave has that" in capsys.readouterr().err
    assert main([*words, "--save", "/proc/x.csv"]) == 2
    assert "cannot write --save /proc/x.csv" in capsys.readouterr().err
    assert main(["sweep", "table", "--out", str(tmp_path)]) == 2
    assert "no grid.json); name one that sweep run has made" in capsys.readouterr().err
