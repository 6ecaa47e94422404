"""`stepseer next`: the batch as table, CSV and JSON; every mistake in one line."""

import json

import numpy as np
import pandas as pd
import pytest

from experiments.cli import main
from tests.laws.conftest import loss_grid
from tests.laws.test_design import losses

BEGIN = ["next", "--target-params", "1B", "--target-tokens", "20B", "--params", "60M,120M,240M", "--tokens", "1B,4B"]
BEGIN += ["--lr", "2e-4,2e-2", "--batch-tokens", "32k,2M"]
TARGET = ["--target-params", "7B", "--target-tokens", "140B"]


@pytest.fixture
def runs(tmp_path, capsys) -> str:
    """The first batch of 48, with losses."""
    file = tmp_path / "first.csv"
    assert main([*BEGIN, "--batch", "48", "--out", str(file)]) == 0
    assert "48 trials of" in capsys.readouterr().out
    rows = pd.read_csv(file).drop(columns="gain")
    assert rows["flops"].sum() == pytest.approx((6 * rows["params"] * rows["tokens"]).sum())
    rows["loss"] = losses(rows)
    rows["status"] = np.where(rows["loss"].isna(), "diverged", "ok")
    rows.to_csv(tmp_path / "runs.csv", index=False)
    return str(tmp_path / "runs.csv")


def test_from_nothing_to_a_second_batch(runs, tmp_path, capsys):
    out = str(tmp_path / "next.csv")
    assert main(["next", runs, *TARGET, "--flops", "2e20", "--batch", "8", "--out", out, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    trials = pd.read_csv(out)
    assert len(trials) == len(answer["trials"]) == 8 and trials["flops"].sum() <= 2e20
    regret = answer["expected_regret"]
    assert 0 < regret["after"] < regret["now"]
    assert regret["now"] - regret["after"] == pytest.approx(sum(t["gain"] for t in answer["trials"]))
    assert answer["targets"][0]["params"] == 7e9 and answer["targets"][0]["lr"] > 0
    done = pd.read_csv(runs)
    keys = ["params", "tokens", "lr", "batch_tokens"]
    assert trials[keys].merge(done[keys]).empty  # nothing twice
    assert main(["next", runs, *TARGET, "--batch", "4"]) == 0
    text = capsys.readouterr().out
    assert "4 trials of" in text and "expected regret at the target" in text and "best guess for 7B on 140B" in text


def test_a_dense_target_of_sparse_runs_is_said_so(runs, tmp_path, capsys):
    file = tmp_path / "sparse.csv"
    table = pd.read_csv(runs)
    table.assign(params_active=table["params"] / 8).to_csv(file, index=False)
    assert main(["next", str(file), *TARGET, "--batch", "2", "--out", str(tmp_path / "new" / "next.csv")]) == 0
    assert "note: without --target-params-active the target is a dense model" in capsys.readouterr().out
    assert main(["next", str(file), *TARGET, "--target-params-active", "1B", "--batch", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []


def test_candidates_from_a_file(runs, tmp_path, capsys):
    file = tmp_path / "offered.csv"
    rows = [(1e9, 2e10, lr, 2**19) for lr in (5e-4, 1e-3, 2e-3)]
    pd.DataFrame(rows, columns=["params", "tokens", "lr", "batch_tokens"]).to_csv(file, index=False)
    assert main(["next", runs, *TARGET, "--candidates", str(file), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["candidates"] == 3 and {t["params"] for t in answer["trials"]} == {1e9}


def test_a_law_of_the_loss(tmp_path, capsys):
    rows, file, out = loss_grid("chinchilla", 0.003, sizes=4, budgets=4), tmp_path / "cells.csv", tmp_path / "next.csv"
    rows.to_csv(file, index=False)
    words = ["next", str(file), *TARGET, "--law", "chinchilla", "--budget", "1e21", "--batch", "4"]
    assert main([*words, "--out", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    trials = pd.read_csv(out)
    assert 1 <= len(trials) <= 4 and trials["flops"].sum() == pytest.approx(answer["flops"]) and answer["flops"] <= 1e21
    assert trials[["params", "tokens"]].merge(rows).empty  # nothing twice
    target = answer["targets"][0]
    less = sum(t["gain"] for t in answer["trials"])
    assert target["sd_now"] ** 2 - target["sd_after"] ** 2 == pytest.approx(less)
    assert target["mean_loss"] == pytest.approx(1.7 + 400 * 7e9**-0.34 + 1800 * 140e9**-0.36, rel=0.05)
    assert main(words) == 0
    assert "mean loss at 7B on 140B" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["next", *TARGET], "before any run, say what may be run: --params"),
        (["next", "{runs}", "--target-params", "7B"], "--target-tokens"),
        (["next", "{runs}", *TARGET, "--law", "kaplan"], "--law is 'kaplan'"),
        (["next", "{runs}", *TARGET, "--law", "nested"], "nested needs at least 8 (params, tokens) cells"),
        (["next", *TARGET, "--law", "nested"], "nested needs RUNS to begin from"),
        (["next", "{runs}", *TARGET, "--law", "nested", "--lr", "1e-3,1e-2"], "leave out --lr"),
        (["next", "{runs}", *TARGET, "--flops", "1e3"], "no candidate costs at most 1e+03 FLOPs"),
        (["next", "{runs}", *TARGET, "--params", "1B"], "--params and --tokens go together"),
        (["next", "{runs}", *TARGET, "--lr", "1e-2,1e-3"], "give the lowest and the highest"),
        (["next", "{runs}", *TARGET, "--lr", "1e-12,1"], "six decades"),
        (["next", "{runs}", *TARGET, "--prior", "kaplan"], "no published law 'kaplan'"),
        (["next", "{runs}", *TARGET, "--candidates", "none.csv"], "no file none.csv"),
        (["next", "{runs}", *TARGET, "--candidates", "{runs}", "--lr", "1e-3,1e-2"], "leave out --lr"),
        (["next", "{runs}", *TARGET, "--out", "{runs}"], "would be overwritten"),
        (["next", "{runs}", *TARGET, "--target", "bpc"], "'bpc'"),
        (["next", "{runs}", *TARGET, "--batch", "0"], "--batch is '0'"),
        (["next", "{runs}", *TARGET, "--target-params-active", "8B"], "more than --target-params"),
        ([*BEGIN, "--flops", "1e3"], "less than the first trial takes"),
    ],
)
def test_mistakes_are_one_line(words, said, runs, capsys):
    assert main([word.replace("{runs}", runs) for word in words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1, error


def test_several_recipes_are_refused(runs, tmp_path, capsys):
    rows = pd.read_csv(runs)
    both = pd.concat([rows.assign(recipe="a"), rows.assign(recipe="b")])
    both.to_csv(tmp_path / "both.csv", index=False)
    assert main(["next", str(tmp_path / "both.csv"), *TARGET]) == 2
    assert "--recipe: a, b" in capsys.readouterr().err
    assert main(["next", str(tmp_path / "both.csv"), *TARGET, "--recipe", "a"]) == 0
