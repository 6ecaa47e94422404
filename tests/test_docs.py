"""The pages in docs/ run: their Python blocks, in order, as a reader would."""

import importlib
import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import laws
from experiments import recipes, runner
from experiments.cli import COMMANDS, main
from laws import forms
from tests.experiments import fakes

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)


@pytest.fixture
def shared(monkeypatch) -> types.ModuleType:
    """The page's law, where its file would be, and known by its name."""
    module = types.ModuleType("laws.forms.shared")
    exec(compile(blocks("adding_a_law.md")[0], "docs/adding_a_law.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "laws.forms.shared", module)
    monkeypatch.setattr(forms, "NAMES", (*forms.NAMES, "shared"))
    return module


def made_up(E: float, A: float, B: float, gamma: float) -> pd.DataFrame:
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 3e9, 6), np.geomspace(2e9, 1e11, 6)))
    loss = E + (A / N + B / D) ** gamma
    return pd.DataFrame(
        {"params": N, "tokens": D, "loss": loss * np.exp(0.002 * np.random.default_rng(0).normal(size=36))}
    )


def test_adding_a_law(shared, capsys):
    truth = {"E": 1.7, "A": 3e7, "B": 9e8, "gamma": 0.35}
    runs = made_up(**truth)
    reader = {"runs": runs}
    exec(compile(blocks("adding_a_law.md")[1], "docs/adding_a_law.md", "exec"), reader)
    posterior, answer = reader["posterior"], reader["answer"]
    for site, value in (("E", 1.7), ("ln_A", np.log(3e7)), ("ln_B", np.log(9e8)), ("gamma", 0.35)):
        low, high = np.quantile(posterior.draws[site], [0.01, 0.99])
        assert low <= value <= high, site
    low, high = answer.loss.interval(0.98)
    assert low <= 1.7 + (3e7 / 7e9 + 9e8 / 1.4e12) ** 0.35 <= high
    gamma, said = capsys.readouterr().out.splitlines()
    assert float(gamma) == pytest.approx(0.35, abs=0.1) and "above the fitted range" in said
    assert posterior.meta["citation"] == shared.CITATION


def test_every_law_of_the_loss_is_made_as_the_page_says():
    page = (DOCS / "adding_a_law.md").read_text()
    for law in forms.NAMES:
        if "loss" in forms.get(law).QUANTITIES and law != "stack":
            for name in ("prepare", "model", "start", "predict", "priors", "log_curve"):
                assert callable(getattr(forms.get(law), name)), (law, name)
    for path in re.findall(r"`((?:laws|tests)/[\w/]+\.py)`", page):
        assert (DOCS.parent / path).exists() or path == "laws/forms/shared.py", path


def rows(page: str, head: str) -> list[list[str]]:
    """The cells of the table whose first column is called `head`."""
    lines = iter((DOCS / page).read_text().splitlines())
    next(line for line in lines if line.startswith(f"| {head} |"))
    next(lines)
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_the_table_of_laws_is_that_of_the_laws():
    table = {row[0].strip("`"): row[1:] for row in rows("laws.md", "law")}
    assert set(table) == set(forms.NAMES)
    for law, (_, columns, _, source) in table.items():
        assert tuple(re.findall("`(.*?)`", columns)) == forms.get(law).COLUMNS, law
        cited = re.findall(r"\d{4}\.\d{5}", source)
        assert cited or law == "stack", law
        assert all(paper in forms.get(law).CITATION for paper in cited), law


def test_laws_with_covariates_are_asked_as_the_page_says():
    page = (DOCS / "laws.md").read_text()
    lines = page[page.index("## Laws that ask for more") :].splitlines()
    table = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    assert set(table) == {law for law in forms.NAMES if forms.get(law).COVARIATES}
    for law, line in table.items():
        for name in set(forms.get(law).COVARIATES) - {"recipe"}:
            assert f"--{name.replace('_', '-')} " in line and f"{name}=" in line


def test_every_question_is_answered(tmp_path, monkeypatch, capsys):
    """The page's commands and lines, in order, on made-up runs; its fits by the normal approximation, for time."""
    monkeypatch.chdir(tmp_path)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(2e8, 6e9, 6), np.geomspace(2e9, 1e11, 6)))
    for name, B in (("runs", 1800.0), ("other_runs", 1700.0)):
        loss = 1.7 + 400 / N**0.34 + B / D**0.36
        loss = loss * np.exp(0.003 * np.random.default_rng(int(B)).normal(size=N.size))
        pd.DataFrame({"params": N, "tokens": D, "loss": loss}).to_csv(f"{name}.csv", index=False)
    fit = laws.fit
    monkeypatch.setattr(laws, "fit", lambda *args, **options: fit(*args, **options, laplace=True))
    commands = re.findall(r"```sh\n(.*?)```", (DOCS / "laws.md").read_text(), re.S)[0].splitlines()
    questions = rows("laws.md", "question")
    assert len(questions) == 11
    for line in [*commands, *(row[1].strip("`") for row in questions)]:
        assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr().err)
        assert capsys.readouterr().out, line
    assert (tmp_path / "budget.svg").exists()
    reader: dict = {}
    exec(compile(blocks("laws.md")[0], "docs/laws.md", "exec"), reader)
    for question, _, line in questions:
        answer = eval(compile(line.strip("`"), question, "eval"), reader)
        assert answer is not None, question
        numbers = answer if isinstance(answer, tuple) else [answer]
        assert all(np.isfinite(x) for x in numbers if isinstance(x, float)), question


def test_the_next_trials_are_named_as_the_page_says(tmp_path, monkeypatch, capsys):
    """Its commands, with losses that are made up instead of training."""
    monkeypatch.chdir(tmp_path)
    (python,) = blocks("next.md")
    begin, again, loss, small = re.findall(r"```sh\n(.*?)\n```", (DOCS / "next.md").read_text(), re.S)

    def train(file: str) -> None:
        rows = pd.read_csv("batch.csv").drop(columns="gain")
        u, v = np.log(rows["lr"] / 3e-3), np.log(rows["batch_tokens"] / 2.5e5)
        rows.assign(loss=3 * rows["params"] ** -0.02 * np.exp(0.02 * u**2 + 0.02 * v**2)).to_csv(file, index=False)

    assert main(shlex.split(begin)[1:]) == 0
    train("runs.csv")
    assert main(shlex.split(again)[1:]) == 0
    assert "expected regret at the target" in capsys.readouterr().out
    reader: dict = {}
    exec(compile(python, "docs/next.md", "exec"), reader)
    assert len(reader["trials"]) == 16 and reader["trials"]["flops"].sum() <= 1e20
    assert 3e-4 < reader["lr"] < 3e-2 and 2e4 < reader["batch_tokens"] < 3e6

    made_up(1.8, 2e7, 3e8, 0.3).to_csv("runs.csv", index=False)
    assert main(shlex.split(loss)[1:]) == 0
    assert "mean loss at 7B on 140B" in capsys.readouterr().out and len(pd.read_csv("cells.csv")) >= 1

    def refuse(*_: object, **__: object) -> None:
        raise laws.FitError("too few")

    monkeypatch.setattr(runner, "train_chunk", lambda chunk, *_, **__: [fakes.row(t) for t in chunk.trials])
    monkeypatch.setattr(laws, "fit", refuse)  # `tests.experiments.test_guided` does
    assert main(shlex.split(small)[1:]) == 0
    said = capsys.readouterr().out
    assert "16 trials to train" in said and "of 195 trials" in said and "90% interval" in said


def test_counterfactual_pairs_as_the_page_says(tmp_path, monkeypatch, capsys):
    """Its fine-tuning, then its commands, of fewer problems, with the model that was tuned."""
    from experiments.code import isolation

    if reason := isolation.probe().reason:
        pytest.skip(f"no isolation: {reason}")
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("ctf.md")[0], "docs/ctf.md", "exec"), {})
    lines = re.findall(r"```sh\n(.*?)```", (DOCS / "ctf.md").read_text(), re.S)[0].splitlines()
    assert len(lines) == 5
    for line in lines:
        line = line.split("#")[0].replace("--model out", "--model tuned --tokens 8").replace("--count 500", "--count 9")
        line = line.replace("--out pairs.jsonl", "--count 6 --out pairs.jsonl").replace("--count 200", "--count 3")
        assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr().err)
    assert len((tmp_path / "instruct.jsonl").read_text().splitlines()) > 5


def test_the_commands_about_code_are_ones_that_there_are():
    lines = re.findall(r"^(?:\n*)stepseer (.*)$", (DOCS / "code.md").read_text(), re.M)
    assert len(lines) >= 9
    for line in lines:
        words = shlex.split(line.split("   ")[0])
        name = next(" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in COMMANDS)
        module = importlib.import_module(f"experiments.commands.{COMMANDS[name][0]}")
        module.parser().parse(words[len(name.split()) :])


def test_grids_as_the_page_says(tmp_path):
    """Its Python and its YAML, planned."""
    from experiments import plan, recipes

    reader: dict = {}
    exec(compile(blocks("grids.md")[0], "docs/grids.md", "exec"), reader)
    assert len(reader["configs"]) == 2 * 7 - 1 + 2 * 3 * 2
    assert 15 <= len(reader["near_optimum"](reader["base"])) <= 25
    (tmp_path / "mine.yaml").write_text(re.findall(r"```yaml\n(.*?)```", (DOCS / "grids.md").read_text(), re.S)[0])
    assert len(plan.make_plan("mine", recipes.load(str(tmp_path / "mine.yaml"))).trials) == 7


@pytest.mark.parametrize("name, trials", [("steplaw_dense", 1968), ("steplaw_moe", 612), ("farseer", 455)])
def test_the_papers_grids_are_as_large_as_the_page_says(name, trials):

    found = recipes.load(name)
    assert len(found) == len({t.run_id for t in found}) == trials
    assert f"| `{name}` | {trials:,} |" in (DOCS / "grids.md").read_text()
