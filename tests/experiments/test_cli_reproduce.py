"""`stepseer sweep reproduce`: real models, the same bits; what was changed is found."""

import json

import pytest

from experiments import runner, store
from experiments.cli import main
from tests.experiments import fakes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four real trials in two programs."""
    plan = fakes.plan(n_lr=1)
    made = store.create(tmp_path_factory.mktemp("real") / "out", plan)
    runner.run(plan, made)
    return made


def test_the_same_bits(folder, capsys):
    row = folder.read().iloc[1]
    assert main(["sweep", "reproduce", row["run_id"][:9], "--out", str(folder.path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["same"] and said["now"]["loss"] == row["loss"] and said["changed"] == []


def test_a_changed_row_is_told(folder, tmp_path, capsys):
    plan = fakes.plan(n_lr=1)
    forged = store.create(tmp_path / "out", plan)
    rows = folder.together(plan.run_ids[0])
    forged.write_part(plan.chunks[0].id, [{**row, "loss": row["loss"] + 1e-7} for row in rows])
    again = ["sweep", "reproduce", rows[0]["run_id"], "--out", str(forged.path)]
    assert main(again) == 1
    said = capsys.readouterr().out
    assert "not the same" in said and "versions and device are those of the row" in said
    versions = json.dumps(json.loads(rows[0]["versions"]) | {"jax": "0.1", "processes": "2"})
    others = {"device": "2 x abacus", "versions": versions}
    forged.write_part(plan.chunks[0].id, [{**row, **others, "loss": row["loss"] + 1e-7} for row in rows])
    assert main(again) == 1
    said = capsys.readouterr().out
    for note in ("device was 2 x abacus, is ", "jax was 0.1, is ", "processes was 2, is 1"):
        assert f"note: {note}" in said
    assert said.count("note: ") == 3


def test_mistakes(folder, tmp_path, capsys):
    foreign = store.create(tmp_path / "out", fakes.plan(n_lr=1))
    (rows,) = [folder.together(folder.run_ids[0])]
    config = json.dumps(json.loads(rows[0]["config"]) | {"seed": 99})
    foreign.write_part("a", [{**rows[0], "config": config}])
    for run_id, where, words in (
        ("nothing", folder, "no trial that has finished begins with 'nothing'"),
        ("", folder, "4 trials begin with ''"),
        (rows[0]["run_id"], foreign, "the row was changed"),
    ):
        assert main(["sweep", "reproduce", run_id, "--out", str(where.path)]) == 2
        assert words in capsys.readouterr().err
