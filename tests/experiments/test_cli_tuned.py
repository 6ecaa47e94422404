"""Under-tuned runs, as a user corrects for them: the commands of docs/laws.md on made-up runs."""

import json
import re
import shlex
from pathlib import Path

import pytest

import laws
from experiments import study
from experiments.cli import main
from tests.laws.conftest import loss_grid

PAGE = Path(__file__).parents[2] / "docs" / "laws.md"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with swept.csv, all runs at one setting; fits by the normal approximation, for time."""
    monkeypatch.chdir(tmp_path)
    for name in ("fit", "backtest"):
        function = getattr(laws, name)
        monkeypatch.setattr(
            laws, name, lambda *args, function=function, **how: function(*args, **how | {"laplace": True})
        )
    runs = loss_grid("chinchilla", 0.001, sizes=5, budgets=5).query("tokens > 1.9e9")
    runs.assign(lr=2e-3, batch_tokens=2e5).to_csv("swept.csv", index=False)
    return tmp_path


def test_the_commands_of_the_page(here, capsys):
    section = PAGE.read_text().split("## Runs that were not tuned")[1].split("\n## ")[0]
    commands = re.search(r"```sh\n(.*?)```", section, re.S)[1].splitlines()
    fitted, checked = [(main(shlex.split(line)[1:]), capsys.readouterr().out) for line in commands]
    assert fitted[0] == checked[0] == 0
    assert (
        "note: loss is taken as Step Law (steplaw) expects it" in fitted[1] and "if the recipe is like" not in fitted[1]
    )
    assert "losses as tuned by steplaw" in checked[1] and "not what it was fitted to" not in checked[1]
    assert main(["fit", "chinchilla", "swept.csv", "--out", "plain.nc"]) == 0
    assert "--tuned-by steplaw" in capsys.readouterr().out


def test_json_and_backtest_say_so(here, capsys):
    assert main(["fit", "chinchilla", "swept.csv", "--tuned-by", "steplaw", "--out", "tuned.nc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tuned_by"] == "steplaw"
    assert main(["backtest", "chinchilla", "swept.csv", "--tuned-by", "steplaw"]) == 0
    assert "the loss at its best lr and batch_tokens" in capsys.readouterr().out
    scale = ["--params", "1e9", "--tokens", "2e10", "--json"]
    laws.fit("chinchilla", "swept.csv").save("plain.nc")
    for command in (
        ["backtest", "chinchilla", "swept.csv", "--tuned-by", "steplaw", "--json"],
        ["predict", "tuned.nc", *scale],
        ["allocate", "tuned.nc", "--flops", "1e20", "--json"],
        ["compare", "tuned.nc", "plain.nc", "--json"],
    ):
        assert main(command) == 0
        named = json.loads(capsys.readouterr().out)["tuned_by"]
        assert named == (["steplaw", None] if command[0] == "compare" else "steplaw")
    assert main(["backtest", "steplaw", "swept.csv", "--tuned-by", "steplaw"]) == 2
    assert "steplaw learns from runs that are badly tuned" in capsys.readouterr().err


def test_the_report_shows_the_losses_as_tuned(here, capsys, monkeypatch):
    monkeypatch.setattr(study, "LAWS", ("steplaw", "chinchilla"))
    assert main(["report", "swept.csv", "--tuned-by", "steplaw"]) == 0
    said, page = capsys.readouterr().out, Path("report.html").read_text()
    assert "note: loss is taken as Step Law (steplaw) expects it" in said and "oss is taken as Step Law" in page
    assert "already tuned" not in said + page and page.count("as steplaw expects") == 3
    assert main(["report", "swept.csv", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["notes"] == [] and "tuned_by" not in said
    assert "Points are the best run of each cell" in Path("report.html").read_text()


def test_next_chooses_by_a_law_of_the_tuned_losses(here, capsys):
    command = ["next", "swept.csv", "--target-params", "5B", "--target-tokens", "1e11", "--json"]
    losses = []
    for more in ([], ["--tuned-by", "steplaw"]):
        assert main([*command, "--law", "chinchilla", *more]) == 0
        found = json.loads(capsys.readouterr().out)
        losses.append(found["targets"][0]["mean_loss"])
        assert any("as Step Law (steplaw) expects it" in note for note in found["notes"]) == bool(more)
        assert found.get("tuned_by") == ("steplaw" if more else None)
    assert losses[1] < losses[0]
    assert main([*command, "--tuned-by", "steplaw"]) == 2
    assert "steplaw learns from runs that are badly tuned" in capsys.readouterr().err
