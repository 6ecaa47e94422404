"""Recipes of one fit and other counts of N on the command line."""

import json

import pandas as pd
import pytest

import laws
from experiments.cli import main
from tests.laws.conftest import loss_grid


def said(capsys, line):
    code = main(line.split())
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def two_recipes() -> pd.DataFrame:
    """low, and high, whose loss is 5% above."""
    low, high = (loss_grid("chinchilla", 0.002, seed=seed, sizes=5, budgets=5) for seed in (0, 1))
    high["loss"] *= 1.05
    both = pd.concat([low.assign(recipe="low"), high.assign(recipe="high")], ignore_index=True)
    return both.assign(params_total=both["params"] + 5e7)


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    path = tmp_path_factory.mktemp("pooled") / "pooled.nc"
    return laws.fit("pooled", two_recipes(), size="params_total", laplace=True).save(path)


def test_predict_of_a_recipe(capsys, pooled):
    losses = {}
    for recipe in ("low", "high", "new"):
        out = said(capsys, f"predict {pooled} --params 1e9 --tokens 2e10 --recipe {recipe} --json")
        losses[recipe] = json.loads(out)["loss"]["median"]
        expected = laws.load_posterior(pooled).predict(params=1e9, tokens=2e10, recipe=recipe).loss.median
        assert losses[recipe] == expected
    assert losses["low"] * 1.04 < losses["high"] < losses["low"] * 1.06
    shown = said(capsys, f"predict {pooled} --params 1e9 --tokens 2e10 --recipe low")
    assert "recipe low" in shown and "N counts params_total" in shown


def test_compare_and_allocate_of_a_recipe(capsys, pooled):
    found = json.loads(said(capsys, f"compare {pooled} --recipes low,high --params 1B --tokens 20B --json"))
    assert found["probability"] == [[1.0]] and found["recipes"] == ["low", "high"]
    assert "recipe high" in said(capsys, f"compare {pooled} --recipes low,high --params 1B --tokens 20B")
    answer = json.loads(said(capsys, f"allocate {pooled} --flops 1e21 --recipe low --json"))
    best = laws.allocate(laws.load_posterior(pooled), flops=1e21, recipe="low").recommended_params
    assert answer["budgets"][0]["recommended"]["params"] == best


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("predict {} --params 1e9 --tokens 2e10", "recipes: high, low, new"),
        ("predict {} --params 1e9 --tokens 2e10 --recipe lo", "did you mean 'low'"),
        ("predict steplaw --params 1e9 --tokens 2e10 --recipe low", "fit pooled to tell recipes apart"),
        ("compare {}", "--recipes X,Y"),
        ("compare {} {} --recipes low,high", "--recipes X,Y"),
        ("compare {} --recipes low", "two different names with a comma"),
        ("fit nested steplaw-dense --size tokens --out x.nc", "no count of parameters"),
    ],
)
def test_refusals(capsys, pooled, line, words):
    assert main(line.replace("{}", str(pooled)).split()) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_fit_by_another_count_shows_each_recipe(capsys, tmp_path):
    two_recipes().to_csv(tmp_path / "both.csv", index=False)
    out = tmp_path / "both.nc"
    answer = json.loads(said(capsys, f"fit pooled {tmp_path}/both.csv --size params_total --out {out} --json"))
    assert answer["size"] == "params_total" and answer["recipes"] == ["high", "low", "new"]
    assert {"E of low", "beta of high", "spread_center", "noise"} <= set(answer["parameters"])
    assert "noise of low" not in answer["parameters"]
