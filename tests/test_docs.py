"""The pages in docs/ run: their Python blocks, in order, as a reader would."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from laws import forms

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
