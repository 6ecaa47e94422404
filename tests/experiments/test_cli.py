"""The commands, as a user runs them."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import laws
from experiments.cli import COMMANDS, main

GRID = """
from engine.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from experiments.grid import axis, prod, trials

base = TrainConfig(
    recipe="mine",
    model=ModelConfig(d_model=16, n_layers=1, n_heads=1),
    optim=OptimConfig(warmup_steps=2),
    data=DataConfig(corpus="synthetic", seq_len=16),
    batch_size=4,
)

def lrs():
    return trials(base, prod(axis("tokens", [1280, 2560]), axis("optim.lr", [1e-3, 1e-2, 1e-2])))

def one():
    return trials(base, [{"tokens": 1280}])[0]
"""


def say(capsys, *words):
    """Runs a command that must succeed; its standard output."""
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def say_json(capsys, *words):
    return json.loads(say(capsys, *words, "--json"))


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    path = tmp_path_factory.mktemp("grids") / "mine.py"
    path.write_text(GRID)
    return f"{path}:lrs"


@pytest.fixture(scope="module")
def swept(grid, tmp_path_factory):
    """A results folder in which the grid has been run."""
    out = tmp_path_factory.mktemp("swept") / "out"
    assert main(["sweep", "run", grid, "--out", str(out), "--json"]) == 0
    return out


# --- sweeps --------------------------------------------------------------------------------------------------------


def test_plan_before_anything_runs(grid, tmp_path, capsys):
    plan = say_json(capsys, "sweep", "plan", grid, "--out", tmp_path / "new")
    assert (plan["trials"], plan["repeats"], plan["done"], plan["chunks"], plan["programs"]) == (4, 2, 0, 2, 1)
    assert plan["seconds_left"] is None
    assert plan["cohorts"][0]["lr"] == [1e-3, 1e-2] and plan["cohorts"][0]["tokens"] == [1280, 2560]
    assert not (tmp_path / "new").exists()
    shown = say(capsys, "sweep", "plan", grid)
    assert "4 trials" in shown and "2 trials left out" in shown and "--measure finds out" in shown


def test_plan_status_and_table_afterwards(grid, swept, capsys):
    plan = say_json(capsys, "sweep", "plan", grid, "--out", swept)
    assert plan["done"] == 4 and plan["flops_left"] == 0
    status = say_json(capsys, "sweep", "status", grid, "--out", swept)
    assert (status["done"], status["ok"], status["running"]) == (4, 4, None)
    assert status["flops_done"] == pytest.approx(plan["flops"], rel=1e-12)
    assert "4 of 4 trials" in say(capsys, "sweep", "status", "--out", swept)
    rows = say_json(capsys, "sweep", "table", "--out", swept)
    assert len({row["run_id"] for row in rows}) == 4 and all(row["recipe"] == "mine" for row in rows)
    shown = say(capsys, "sweep", "table", "--out", swept)
    assert shown.count("*") == 3 and "1.0e-2" in shown  # one best a budget, and the legend
    lines = [line.split() for line in shown.splitlines()]
    assert next(words for words in lines if "held-out" in words)[-1:] == ["id"]
    assert {row["run_id"][:8] for row in rows} <= {words[-1] for words in lines if words}


def test_running_again_trains_nothing(grid, swept, capsys):
    before = {p.name: p.stat().st_mtime_ns for p in swept.glob("parts/*")}
    summary = say_json(capsys, "sweep", "run", grid, "--out", swept)
    assert (summary["already"], summary["ok"], summary["left"]) == (4, 0, 0)
    assert {p.name: p.stat().st_mtime_ns for p in swept.glob("parts/*")} == before


def test_tables_to_files(swept, tmp_path, capsys):
    rows = pd.DataFrame(say_json(capsys, "sweep", "table", "--out", swept))
    (tmp_path / "printed.csv").write_text(say(capsys, "sweep", "table", "--out", swept, "--format", "csv"))
    say(capsys, "sweep", "table", "--out", swept, "--save", tmp_path / "saved.csv")
    say(capsys, "sweep", "table", "--out", swept, "--save", tmp_path / "saved.parquet")
    for name in ("printed.csv", "saved.csv", "saved.parquet"):
        runs = laws.load_runs(tmp_path / name)
        assert runs["run_id"].tolist() == rows["run_id"].tolist(), name
        np.testing.assert_array_equal(runs["loss"], rows["loss"], err_msg=name)  # to the last bit
    assert sorted(p.name for p in tmp_path.iterdir()) == ["printed.csv", "saved.csv", "saved.parquet"]


def test_status_of_another_grid_is_refused(swept, capsys):
    assert main(["sweep", "status", "tiny", "--out", str(swept)]) == 2
    assert "holds another grid" in capsys.readouterr().err


def test_failed_trials_are_exit_code_1(grid, tmp_path, capsys, monkeypatch):
    import engine

    def broken(*args, **kwargs):
        raise RuntimeError("not enough")

    monkeypatch.setattr(engine, "train_population", broken)
    assert main(["sweep", "run", grid, "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert "4 failed" in out and "RuntimeError: not enough" in out
    assert "--retry-failed" in err and err.count("\n") == 1
    monkeypatch.undo()
    assert say_json(capsys, "sweep", "run", grid, "--out", tmp_path / "out", "--retry-failed")["ok"] == 4


# --- train ---------------------------------------------------------------------------------------------------------


def test_train_one_model_with_a_field_changed(grid, tmp_path, capsys):
    recipe = grid.replace(":lrs", ":one")
    words = ["train", recipe, "--set", "optim.lr=2e-3", "--set", "model.d_model=32", "--out", tmp_path / "out"]
    row = say_json(capsys, *words)
    assert (row["status"], row["lr"], row["d_model"], row["tokens"]) == ("ok", 2e-3, 32, 1280)
    assert list((tmp_path / "out" / "model").glob("[0-9]*"))  # the checkpoint is kept
    shown = say(capsys, *words)
    assert "trained before" in shown and row["run_id"] in shown
    assert say_json(capsys, "sweep", "table", "--out", tmp_path / "out")[0]["loss"] == row["loss"]


def test_train_branches_from_a_trunk(grid, tmp_path, capsys):
    recipe, trunk = grid.replace(":lrs", ":one"), tmp_path / "trunk"
    wsd = ["train", recipe, "--set", "optim.schedule=wsd", "--set", "tokens=2560", "--set", "optim.decay_fraction=0.5"]
    say_json(capsys, "train", recipe, "--set", "optim.schedule=constant", "--out", trunk)
    branch, whole = say_json(capsys, *wsd, "--branch-from", trunk), say_json(capsys, *wsd)
    assert (branch["run_id"], branch["loss"]) == (whole["run_id"], whole["loss"]) and branch["tokens"] == 2560
    refused = [*wsd, "--set", "optim.lr=0.5", "--branch-from", trunk, "--out", tmp_path / "out"]
    assert main([str(word) for word in refused]) == 2 and not (tmp_path / "out").exists()
    assert "optim.lr is 0.5, but 0.001 in" in capsys.readouterr().err


def test_train_without_a_folder_gives_the_same_loss(grid, swept, capsys):
    row = say_json(capsys, "train", grid.replace(":lrs", ":one"))
    rows = say_json(capsys, "sweep", "table", "--out", swept)
    twin = next(r for r in rows if r["run_id"] == row["run_id"])
    # one model to a program or two: the same numbers, within what reordered float32 sums can do
    assert row["loss"] == pytest.approx(twin["loss"], rel=1e-5)


# --- predict -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def posterior(tmp_path_factory):
    """A Chinchilla posterior with narrow, known draws."""
    rng = np.random.default_rng(0)
    centers = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.34, "beta": 0.28, "noise": 1e-3}
    samples = {k: v * (1 + 1e-3 * rng.standard_normal((2, 200))) for k, v in centers.items()}
    meta = {
        "source": "made up", "rows": 30, "excluded": 2, "warnings": [], "target": "loss",
        "ranges": {"params": [1e7, 1e9], "tokens": [1e9, 1e11]}, "center": {"ln_N": 0.0, "ln_D": 0.0}, "tails": 30.0,
    }  # fmt: skip
    return laws.Posterior("chinchilla", samples, meta).save(tmp_path_factory.mktemp("posterior") / "c.nc")


def test_predict_gives_the_promised_json(posterior, capsys):
    answer = say_json(capsys, "predict", posterior, "--params", "1B", "--tokens", "1e11")
    assert set(answer) == {"loss", "law", "posterior", "params", "tokens", "warnings"}
    assert (answer["params"], answer["tokens"], answer["warnings"]) == (1e9, 1e11, [])
    assert (answer["law"], answer["posterior"]) == ("chinchilla", str(posterior))
    loss = answer["loss"]
    assert set(loss) == {"median", "low", "high", "level"} and loss["level"] == 0.9
    assert loss["low"] < loss["median"] < loss["high"]
    assert loss["median"] == pytest.approx(1.7 + 400 / 1e9**0.34 + 400 / 1e11**0.28, rel=5e-3)


def test_predict_equals_the_library(posterior, capsys):
    given = laws.load_posterior(posterior).predict(params=7e9, tokens=1.4e12).loss
    answer = say_json(capsys, "predict", posterior, "--params", "7B", "--tokens", "1.4T", "--level", "0.5")
    assert (answer["loss"]["low"], answer["loss"]["high"]) == pytest.approx(given.interval(0.5), rel=1e-12)


def test_predict_several_scales(posterior, capsys):
    answers = say_json(capsys, "predict", posterior, "--params", "100M,1B", "--tokens", "10B")
    assert [(a["params"], a["tokens"]) for a in answers] == [(1e8, 1e10), (1e9, 1e10)]
    assert answers[0]["loss"]["median"] > answers[1]["loss"]["median"]
    answers = say_json(capsys, "predict", posterior, "--params", "100M,70B", "--tokens", "10B")
    assert [len(a["warnings"]) for a in answers] == [0, 1] and "params 7e+10 is" in answers[1]["warnings"][0]
    shown = say(capsys, "predict", posterior, "--params", "100M,70B", "--tokens", "10B")
    assert "28 runs" in shown and "90% interval" in shown and "70B" in shown
    assert "note: params 7e+10" in shown  # beyond what it was fitted to


def test_predict_says_what_a_setting_costs_and_which_are_good_enough(capsys):
    at = ("predict", "steplaw", "--params", "7B", "--tokens", "1.4T")
    answer = say_json(capsys, *at, "--lr", "9e-4", "--batch-tokens", "5M", "--within", "0.1%")
    packaged = laws.load_posterior("steplaw")
    regret = packaged.regret(params=7e9, tokens=1.4e12, lr=9e-4, batch_tokens=5e6)
    assert answer["regret"]["median"] == pytest.approx(regret.median, rel=1e-12)
    assert (answer["regret"]["low"], answer["regret"]["high"]) == pytest.approx(regret.interval(0.9), rel=1e-12)
    found = packaged.settings(params=7e9, tokens=1.4e12, within=0.001)
    assert answer["settings"]["lr"] == pytest.approx(found.lr) and len(answer["settings"]["region"]) == 64
    shown = say(capsys, *at, "--lr", "9e-4", "--batch-tokens", "5M", "--within", "0.001")
    assert "regret of that setting" in shown and "within 0.1%: lr " in shown and "least expected regret" in shown


def test_predict_answers_the_scales_that_have_settings_within(capsys):
    at = ("predict", "steplaw", "--params", "1B,1e15", "--tokens", "100B,1e17", "--within", "0.05%")
    near, far = say_json(capsys, *at)
    assert near["settings"]["within"] == 0.0005 and "no setting at params 1e+15" in far["settings"]["refused"]
    shown = say(capsys, *at)
    assert "1B on 100B: least expected regret" in shown and "no setting at params 1e+15" in shown
    assert main([*at[:-1], "5", "--json"]) == 2  # of none there are any
    assert "within must be between 0 and 1" in capsys.readouterr().err


def test_predict_says_nothing_of_a_batch_size_that_was_not_swept(tmp_path, capsys):
    packaged, file = laws.load_posterior("steplaw"), str(tmp_path / "one.nc")
    laws.Posterior("steplaw", packaged.samples, packaged.meta | {"batch_swept": False}).save(file)
    at = ("--params", "1B", "--tokens", "50B", "--within", "0.1%", "--lr", "1e-3", "--batch-tokens", "1M")
    shown = say(capsys, "predict", file, *at)
    assert "of the batch size these runs say nothing" in shown and "batch any" not in shown
    assert "regret of that rate" in shown and "regret of the learning rate alone" in shown
    assert "batch_tokens is its prior" in shown


def test_predict_doubts_a_setting_that_nobody_tried(capsys):
    at = ("predict", "steplaw", "--params", "1B", "--tokens", "100B", "--lr", "10", "--batch-tokens", "1M")
    shown = say(capsys, *at)
    assert "over 100%" in shown and "note: the regret of lr 10 with batch_tokens 1e+06 is beyond" in shown
    assert "the regret of lr 10" in say_json(capsys, *at)["warnings"][0]


def test_predict_of_sparse_models(capsys):
    at = ("predict", "steplaw", "--params", "7B", "--tokens", "1.4T")
    dense, sparse = say_json(capsys, *at), say_json(capsys, *at, "--params-active", "700M")
    assert sparse["batch_tokens"]["median"] > 1.5 * dense["batch_tokens"]["median"]


def test_predict_imports_neither_the_trainer_nor_jax(posterior):
    script = (
        "import sys; from experiments.cli import main; "
        f"assert main(['predict', {str(posterior)!r}, '--params', '7B', '--tokens', '1T']) == 0; "
        "heavy = {'jax', 'flax', 'numpyro', 'arviz', 'engine', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


# --- the command itself --------------------------------------------------------------------------------------------


def test_alone_it_shows_every_command(capsys):
    shown = say(capsys)
    for name in COMMANDS:
        assert f"stepseer {name}" in shown
    assert say(capsys, "--help") == shown
    assert "stepseer sweep table" in say(capsys, "sweep")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"stepseer {name}" in shown and "--json" in shown and "examples:" in shown


def test_a_reader_that_goes_away_is_no_error(swept):
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "experiments.cli", "sweep", "table", "--out", str(swept), "--json"]
    ran = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, "")
