"""Under-tuned runs, as a user corrects for them: the commands of docs/laws.md on made-up runs."""

import json
import re
import shlex
from pathlib import Path

import pytest

import laws
from experiments.cli import main
from tests.laws.conftest import loss_grid

PAGE = Path(__file__).parents[2] / "docs" / "laws.md"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with swept.csv, all runs at one setting; fits by the normal approximation, for time."""
    monkeypatch.chdir(tmp_path)
    fit = laws.fit
    monkeypatch.setattr(laws, "fit", lambda *args, **options: fit(*args, **options, laplace=True))
    runs = loss_grid("chinchilla", 0.001, sizes=5, budgets=5).query("tokens > 1.9e9")
    runs.assign(lr=2e-3, batch_tokens=2e5).to_csv("swept.csv", index=False)
    return tmp_path


def test_the_commands_of_the_page(here, capsys):
    section = PAGE.read_text().split("## Runs that were not tuned")[1].split("\n## ")[0]
    commands = re.search(r"```sh\n(.*?)```", section, re.S)[1].splitlines()
    fitted, checked = [(main(shlex.split(line)[1:]), capsys.readouterr().out) for line in commands]
    assert fitted[0] == checked[0] == 0
    assert "note: loss is taken as Step Law expects it" in fitted[1] and "if the recipe is like" not in fitted[1]
    assert "losses as tuned by steplaw" in checked[1] and "not what it was fitted to" not in checked[1]
    assert main(["fit", "chinchilla", "swept.csv", "--out", "plain.nc"]) == 0
    assert "--tuned-by steplaw" in capsys.readouterr().out


def test_json_and_backtest_say_so(here, capsys):
    assert main(["fit", "chinchilla", "swept.csv", "--tuned-by", "steplaw", "--out", "tuned.nc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tuned_by"] == "steplaw"
    assert main(["backtest", "chinchilla", "swept.csv", "--tuned-by", "steplaw"]) == 0
    assert "the loss at its best lr and batch_tokens" in capsys.readouterr().out
