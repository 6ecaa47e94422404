"""Every command of the README runs, in order, in an empty folder; its Python too."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
# What would train for minutes, with less of it.
SHORTER = {"train dense_1m": " --set tokens=3e5 --set data.tokenizer=bytes --set model.d_model=40"}


def commands():
    lines = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.startswith("stepseer ")]


def test_there_are_commands():
    assert len(commands()) >= 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the README assumes: my_grid.py as printed there, and the runs of two recipes."""
    folder = tmp_path_factory.mktemp("readme")
    (grid,) = [text for kind, text in BLOCKS if kind == "python" and "# my_grid.py" in text]
    (folder / "my_grid.py").write_text(grid)
    rng = np.random.default_rng(0)
    recipes = ["params,tokens,loss,recipe"]
    for name, floor in (("my_runs.csv", 1.7), ("other_runs.csv", 1.65)):
        rows = ["params,tokens,loss"]
        for n in np.geomspace(1e7, 1e9, 6):
            for d in np.geomspace(1e9, 1e11, 5):
                loss = (floor + 400 / n**0.34 + 1200 / d**0.33) * np.exp(rng.normal(0, 0.002))
                rows.append(f"{n:.0f},{d:.0f},{loss:.5f}")
        (folder / name).write_text("\n".join(rows) + "\n")
        recipes += [f"{row},{'mine' if name == 'my_runs.csv' else 'theirs'}" for row in rows[1:]]
    (folder / "recipes.csv").write_text("\n".join(recipes) + "\n")
    return folder


def test_commands_run_in_order(folder):
    for command in commands():
        command += "".join(more for words, more in SHORTER.items() if words in command)
        done = subprocess.run(
            [sys.executable, "-m", "experiments", *shlex.split(command)[1:]], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_python_runs():
    for kind, text in BLOCKS:
        if kind == "python" and "import laws" in text:
            exec(compile(text, "README", "exec"), {})
