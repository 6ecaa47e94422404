"""Trials that are given up on the way: who ends, what the others come to, and that a killed run ends alike."""

import json

import numpy as np
import pytest

import engine
from engine import InputError, cull, lanes, sizes
from engine import config as config_lib
from engine.cull import Judge, Roster
from tests.engine.conftest import tiny  # noqa: F401 - a fixture
from tests.engine.test_checkpoint import Stop, stop_at

HYPERS = [{"optim.lr": 1e-3 * 2**k} for k in range(6)] + [{"optim.lr": 1e30}]
NAMED = {6: (5, 0), 12: (5, 0, 1, 4)}
JUDGE = Judge((6, 12), lambda loss, live: {g: f"told at {len(loss)}" for g in NAMED[len(loss)] if g in live})


@pytest.fixture(autouse=True)
def worth_it(monkeypatch):
    monkeypatch.setattr(cull, "WORTH", 0.0)  # of models as small as these


@pytest.mark.parametrize(
    "n, named, diverged, ended",
    [
        (8, [3], [], []),  # not enough to free a quarter of the lanes
        (8, [3, 1, 2], [], [3, 1]),  # the first two of three
        (8, [3, 1], [0, 6], [0, 6, 3, 1]),  # those that diverged end first
        (16, list(range(7)), [], [0, 1, 2, 3]),
        (7, [6, 5, 4, 3], [], [6, 5, 4, 3]),  # 7, 6, 4, 3, 2, 1
        (8, [3, 1, 2, 7, 5, 6, 4], [], [3, 1, 2, 7, 5, 6, 4]),
        (3, [0, 1, 2], [], [0, 1, 2]),
        (1, [0], [], [0]),
        (4, [], [], []),
    ],
)
def test_a_population_shrinks_in_steps(tiny, n, named, diverged, ended):  # noqa: F811
    roster = Roster([tiny] * n)
    asked = []

    def verdict(loss, live):
        asked.append(list(live))
        return {g: "why" for g in named}

    found = roster.ends(np.ones((5, n)), Judge((5,), verdict), np.isin(np.arange(n), diverged))
    assert list(found) == ended
    assert asked == [[g for g in range(n) if g not in diverged]]


def test_the_others_go_on(tiny):  # noqa: F811
    """On eight devices: seven trials, all on as many as divide the batch, then four and two on devices of their own."""
    config = config_lib.replace(tiny, {"mesh.trial": -1, "mesh.data": -1})
    plain = engine.train_population(config, HYPERS)
    culled = engine.train_population(config, HYPERS, judge=JUDGE)
    assert [len(r.metrics["loss"]) for r in culled] == [6, 12, 24, 24, 12, 6, 6]
    assert [r.row["status"] for r in culled] == ["stopped"] * 2 + ["ok"] * 2 + ["stopped"] * 2 + ["diverged"]
    assert culled[0].row["reason"] == "at step 6 of 24: told at 6" and culled[6].row == {
        **plain[6].row,
        "wall_s": culled[6].row["wall_s"],
        "flops": plain[6].row["flops"] / 4,
    }
    for before, after in zip(plain, culled):
        steps = len(after.metrics["loss"])
        np.testing.assert_array_equal(after.metrics["loss"][:6], before.metrics["loss"][:6])
        np.testing.assert_allclose(after.metrics["loss"], before.metrics["loss"][:steps], rtol=1e-5)
        assert after.row["flops"] == before.row["flops"] * steps / 24 and after.row["tokens"] == before.row["tokens"]
    assert np.isnan([culled[0].row[name] for name in ("loss", "eval_loss", "bpc")]).all()
    for g in (2, 3):
        assert culled[g].row["eval_loss"] == pytest.approx(plain[g].row["eval_loss"], rel=1e-5)
    assert culled[2].row["wall_s"] == pytest.approx(4 * culled[0].row["wall_s"])


@pytest.mark.parametrize("cut", [4, 6, 16])
def test_a_run_cut_off_ends_alike(tiny, tmp_path, cut, monkeypatch):  # noqa: F811
    monkeypatch.setattr(engine.loop, "MAX_CALL_STEPS", 4)
    whole = engine.train_population(tiny, HYPERS, judge=JUDGE, folder=tmp_path / "whole")
    with pytest.raises(Stop):
        engine.train_population(tiny, HYPERS, judge=JUDGE, folder=tmp_path / "cut", on_progress=stop_at(cut))
    again = engine.train_population(tiny, HYPERS, judge=JUDGE, folder=tmp_path / "cut")
    for a, b in zip(whole, again):
        assert json.dumps({**a.row, "wall_s": 0}) == json.dumps({**b.row, "wall_s": 0})
        for name in a.metrics:
            np.testing.assert_array_equal(a.metrics[name], b.metrics[name])
        np.testing.assert_array_equal(a.params["head"], b.params["head"])
    logs = [sorted((tmp_path / name).glob("logs/*/metrics.jsonl")) for name in ("whole", "cut")]
    assert [p.read_text() for p in logs[0]] == [p.read_text() for p in logs[1]]
    log = tmp_path / "cut" / "logs" / again[1].row["run_id"] / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 13 and lines[-1]["status"] == "stopped" and lines[-1]["step"] == 12


def test_what_saves_less_than_a_compile_is_not_done(tiny, monkeypatch):  # noqa: F811
    """A trial of 24 steps, at the end of its twelfth."""
    judge = Judge((12,), lambda loss, live: {g: "why" for g in (0, 1)})
    flops = 2 * 12 * tiny.batch_tokens * sizes.flops_per_token(tiny.model, 16)
    for worth, ended in ((0.99, [0, 1]), (1.01, [])):
        monkeypatch.setattr(cull, "WORTH", worth * flops / lanes.assumed_flops())
        assert list(Roster([tiny] * 4).ends(np.ones((12, 4)), judge, np.zeros(4, bool))) == ended


def test_where_all_end_training_ends(tiny, tmp_path):  # noqa: F811
    everyone = Judge((6,), lambda loss, live: {g: "hopeless" for g in live})
    results = engine.train_population(tiny, HYPERS[:2], judge=everyone, folder=tmp_path)
    assert [len(r.metrics["loss"]) for r in results] == [6, 6]
    assert [r.row["status"] for r in engine.train_population(tiny, HYPERS[:2], folder=tmp_path)] == ["stopped"] * 2
    with pytest.raises(InputError, match="given up on the way"):
        engine.train_population(config_lib.replace(tiny, {"tokens": tiny.tokens * 2}), HYPERS[:2], branch_from=tmp_path)
