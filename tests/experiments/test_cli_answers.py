"""allocate and compare, as a user runs them, on posteriors whose surface is known."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

import laws
from experiments import show
from experiments.cli import main
from tests.laws import known
from tests.laws.conftest import CHINCHILLA, loss_grid

POSTERIORS = {
    "mine.nc": known.chinchilla(0.001, seed=1),
    "other.nc": known.chinchilla(0.001, CHINCHILLA | {"E": 1.71, "B": 1620.0}, seed=2),
    "farseer.nc": known.farseer(),
    "routed.nc": known.known("routed", None, {"a": np.zeros((2, 2))}),
}


@pytest.fixture(autouse=True)
def at_hand(monkeypatch):
    load = laws.load_posterior
    monkeypatch.setattr(laws, "load_posterior", lambda name: POSTERIORS.get(name) or load(name))


def say(capsys, line):
    code = main(line.split())
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_datasets_by_name(capsys, tmp_path):
    rows = json.loads(say(capsys, "datasets --json"))
    assert [r["name"] for r in rows] == laws.datasets.names()
    shown = say(capsys, "datasets")
    assert all(r["name"] in shown and r["citation"] in shown for r in rows)
    answer = json.loads(say(capsys, f"datasets farseer --out {tmp_path}/runs.csv --json"))
    assert answer["runs"] == 404 and "2506.10972" in answer["citation"] and answer["home"].startswith("https")
    assert len(laws.load_runs(tmp_path / "runs.csv")) == 404


def test_a_budget_that_serving_eats_is_said_to_be(capsys):
    said = say(capsys, "allocate mine.nc --flops 1e19 --inference-tokens 1e14")
    assert "1e+14 tokens of inference leave no budget of 1e+19 FLOP" in said
    assert "1T tokens of inference paid" in say(capsys, "allocate mine.nc --loss 2.2 --inference-tokens 1T")


def test_allocate_equals_the_library(capsys):
    answer = json.loads(say(capsys, "allocate mine.nc --flops 1e21,1e23 --level 0.5 --json"))
    found = laws.allocate(POSTERIORS["mine.nc"], flops=[1e21, 1e23])
    assert (answer["law"], answer["posterior"], answer["inference_tokens"]) == ("chinchilla", "mine.nc", 0)
    for i, row in enumerate(answer["budgets"]):
        assert row["flops"] == [1e21, 1e23][i]
        assert row["recommended"]["params"] == pytest.approx(found.recommended_params[i])
        assert row["recommended"]["tokens"] == pytest.approx(found.recommended_tokens[i])
        low, high = found.params.interval(0.5)
        assert row["optimum"]["params"] == pytest.approx(
            {"median": found.params.median[i], "low": low[i], "high": high[i], "level": 0.5}
        )
        assert row["valley"]["0.005"] == pytest.approx([edge[i] for edge in found.valley[0.005]])
        assert [r["smaller"] for r in row["smaller"]] == [1.5, 2, 4, 8]
    assert any("decades above" in text for text in answer["warnings"])
    assert any(text.startswith("smaller models at 1e21 FLOP: tokens") for text in answer["warnings"])


def test_allocate_as_a_table(capsys):
    shown = say(capsys, "allocate mine.nc --flops 1e21 --inference-tokens 1T")
    for words in ("28 runs of made up", "1T tokens of inference paid", "within 0.5%", "2x smaller", "1e21"):
        assert words in shown
    served = json.loads(say(capsys, "allocate mine.nc --flops 1e22 --inference-tokens 1T --json"))
    alone = json.loads(say(capsys, "allocate mine.nc --flops 1e22 --json"))
    sizes = [x["budgets"][0]["recommended"]["params"] for x in (served, alone)]
    assert sizes[0] < sizes[1]


def test_allocate_without_an_optimum_is_null_and_said(capsys):
    row = json.loads(say(capsys, "allocate farseer.nc --flops 1e25 --json"))["budgets"][0]
    assert row["recommended"]["params"] is None and row["no_optimum"] == 1 and row["smaller"] == []
    shown = say(capsys, "allocate farseer.nc --flops 1e23,1e25")
    assert "note: at 1e+25 FLOP up to 100% of the draws have no optimum" in shown
    assert "note: at 1e+23 FLOP the optimum is only a local minimum" in shown


def test_what_a_loss_takes(capsys):
    answer = json.loads(say(capsys, "allocate mine.nc --loss 2.0,1.5 --json"))
    first, second = answer["losses"]
    found = laws.cheapest(POSTERIORS["mine.nc"], loss=[2.0, 1.5])
    assert first["flops"]["median"] == pytest.approx(found.flops.median[0])
    assert first["unreachable"] == 0 and second["unreachable"] == 1 and second["flops"]["median"] is None
    shown = say(capsys, "allocate mine.nc --loss 2.0,1.5")
    assert "least FLOP" in shown and "out of reach" in shown and "100%" in shown
    row = json.loads(say(capsys, "allocate mine.nc --loss 2.1 --params 7B --json"))["losses"][0]
    exact = laws.tokens_for(POSTERIORS["mine.nc"], loss=2.1, params=7e9)
    assert row["params"] == 7e9 and row["tokens"]["median"] == pytest.approx(exact.median)
    rows = json.loads(say(capsys, "allocate mine.nc --loss 2.1 --tokens 1T,2T --json"))["losses"]
    assert rows[0]["params"]["median"] > rows[1]["params"]["median"]
    assert "1T" in say(capsys, "allocate mine.nc --loss 2.1 --tokens 1T,2T")


def test_compare(capsys):
    answer = json.loads(say(capsys, "compare mine.nc other.nc --params 1B,10B --tokens 10B,100B,1T,10T --json"))
    assert np.shape(answer["probability"]) == (2, 4) == np.shape(answer["difference"]["low"])
    assert answer["probability"][0][0] < 0.05 and answer["probability"][1][3] > 0.9
    assert [row["before"] + row["after"] for row in answer["crossings"]] == ["ba", "ba"]
    assert answer["crossing"]["low"] < answer["crossing"]["median"] < answer["crossing"]["high"]
    shown = say(capsys, "compare mine.nc other.nc")
    for words in ("A: mine.nc: chinchilla", "probability that A is better", "where the better one changes", "note: a:"):
        assert words in shown


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize(
    "line, numbers",
    [
        ("allocate mine.nc --flops 1e22,1e23", 60),
        ("allocate mine.nc --loss 2.3,2.4", 22),
        ("allocate mine.nc --loss 2.3 --params 3e9", 6),
        ("compare mine.nc other.nc", 80),
        ("predict mine.nc --params 1e9,7e9 --tokens 2e10", 10),
    ],
)
def test_no_number_is_cut_on_a_narrow_terminal(capsys, monkeypatch, width, line, numbers):
    wide = say(capsys, line)
    monkeypatch.setattr(show, "console", lambda: Console(highlight=False, width=width))
    shown = say(capsys, line)
    tables = shown.split("note: ")[0]
    assert "…" not in shown and max(map(len, tables.splitlines()[3:])) <= width
    found = [set(re.findall(r"[-+]?\d[\d.]*(?:e\d+)?[kMBTx%]?", text)) for text in (wide, shown)]
    assert found[0] == found[1] and len(re.findall(r"\d+\.?\d*", tables)) >= numbers


@pytest.fixture
def runs(tmp_path):
    """Runs about the surface of mine.nc, one of them far off."""
    table = loss_grid("chinchilla", 0.005)
    table.loc[5, "loss"] *= 1.2
    table.to_csv(tmp_path / "runs.csv", index=False)
    return tmp_path / "runs.csv"


def test_check(capsys, runs):
    answer = json.loads(say(capsys, f"check mine.nc {runs} --json"))
    assert answer["fitted_to_these"] is False and answer["prior"] is None and len(answer["cells"]) == 64
    assert set(answer["coverage"]) == {"0.5", "0.8", "0.9", "0.95"} and 0.7 < answer["coverage"]["0.9"] <= 1
    assert set(answer["worries"]) < set(answer["sentences"])
    shown = say(capsys, f"check mine.nc {runs}")
    for words in ("did not have are a test of it", "ok  The chains agree", "! A run scatters", "furthest from the law"):
        assert words in shown
    first = shown.split("Pareto k")[-1].splitlines()[2].split()
    assert first[:2] == ["200M", "32B"] and float(first[4].rstrip("%")) > 15


@pytest.mark.parametrize("suffix, head", [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_pictures(capsys, tmp_path, suffix, head):
    for line in (
        "allocate mine.nc --flops 1e20,1e22",
        "allocate farseer.nc --flops 1e25",
        "allocate mine.nc --flops 1e22",
        "compare mine.nc other.nc",
        "compare mine.nc other.nc --params 1B",
        "compare mine.nc other.nc --tokens 1T",
    ):
        path = tmp_path / "folder" / f"picture.{suffix}"
        assert f"picture in {path}" in say(capsys, f"{line} --plot {path}")
        assert path.read_bytes().startswith(head)
        path.unlink()


@pytest.mark.parametrize(
    "line, named",
    [
        ("allocate mine.nc", ["--flops C", "--loss L"]),
        ("allocate mine.nc --flops 1e21 --loss 2", ["either --flops"]),
        ("allocate mine.nc --flops 1e21 --params 7B", ["--params and --tokens go with --loss"]),
        ("allocate mine.nc --loss 2 --params 7B --tokens 1T", ["not both"]),
        ("allocate mine.nc --loss 2 --params 7B --inference-tokens 1T", ["--inference-tokens"]),
        ("allocate mine.nc --loss 2,2.1 --params 7B,8B,9B", ["3 values", "--loss 2"]),
        ("allocate mine.nc --loss 2 --plot x.svg", ["--plot goes with --flops"]),
        ("allocate mine.nc --flops 1e21 --plot x.gif", ["x.gif", ".svg"]),
        ("allocate mine.nc --flops 1e21 --plot /proc/x.svg", ["/proc/x.svg"]),
        ("allocate mine.nc --flops 21", ["21", "1e21"]),
        ("allocate mine.nc --flops -1e21", ["--flops", "'-1e21'"]),
        ("allocate mine.nc --flops much", ["--flops", "'much'"]),
        ("allocate mine.nc --flops 1e21 --inference-tokens 5", ["inference_tokens", "5e9"]),
        ("allocate mine.nc --flops 1e21 --level 90", ["--level", "'90'"]),
        ("allocate routed.nc --flops 1e21", ["routed is a law of one budget"]),
        ("allocate routed.nc --loss 2.1 --params 1e9", ["routed is a law of one budget"]),
        ("allocate routed.nc --loss 2.1 --tokens 1e11", ["--active-share"]),
        ("allocate steplaw --flops 1e21", ["steplaw says nothing of the loss"]),
        ("allocate none.nc --flops 1e21", ["none.nc"]),
        ("compare mine.nc", ["B"]),
        ("compare mine.nc farseer.nc", ["'loss'", "'bpc'"]),
        ("compare mine.nc other.nc --params 7B,1B", ["params", "increasing"]),
        ("compare mine.nc other.nc --tokens 7", ["tokens 7", "7e9"]),
        ("compare mine.nc none.nc", ["none.nc"]),
        ("compare mine.nc steplaw", ["steplaw"]),
        ("check mine.nc", ["RUNS"]),
        ("check mine.nc none.csv", ["none.csv"]),
        ("check none.nc none.csv", ["none.nc"]),
        ("check steplaw none.csv", ["steplaw says nothing of the loss"]),
    ],
)
def test_mistakes(capfd, line, named):
    for words in (line.split(), [*line.split(), "--json"]):
        assert main(words) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.startswith("stepseer: ") and err.count("\n") == 1, err
        for word in named:
            assert word in err


def test_neither_imports_the_trainer_nor_jax_nor_matplotlib():
    script = (
        "import sys; import laws; from tests.laws import known; from experiments.cli import main; "
        "laws.load_posterior = lambda name: known.chinchilla(seed=len(name)); "
        "assert main(['allocate', 'a', '--flops', '1e21']) == 0; "
        "assert main(['allocate', 'a', '--loss', '2']) == 0; "
        "assert main(['compare', 'a', 'bb']) == 0; "
        "heavy = {'jax', 'flax', 'numpyro', 'arviz', 'engine', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
