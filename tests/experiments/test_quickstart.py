"""The quickstart as a user runs it: its real grid, its real fits, hold-outs and report. Only the training is a formula,
so that it takes a minute: the trainer is tested by itself, and on small grids by the sweep tests."""

import json
import math

import numpy as np
import pytest

from engine.row import make_row
from experiments import quickstart, recipes, runner
from experiments.cli import main


def measured(config):
    """A loss surface with a known law: Chinchilla's, plus bowls around a best learning rate and batch."""
    n, d = recipes_n(config), config.tokens
    u = math.log(config.optim.lr) - math.log(0.006 * (n / 2e4) ** -0.4 * (d / 1e5) ** -0.1)
    v = math.log(config.batch_tokens) - math.log(130 * (d / 1e5) ** 0.5)
    noise = np.random.default_rng(int(config.run_id[:8], 16)).normal(0, 0.003)
    return (1.2 + 12 / n**0.4 + 60 / d**0.37) * math.exp(0.01 * (u - 0.4 * v) ** 2 + 0.01 * v**2 + noise)


def recipes_n(config):
    from engine import sizes

    return sizes.non_embedding_params(config.model)


def fake_chunk(chunk, folder, on_progress):
    return [
        make_row(
            t,
            losses=np.full(t.steps, measured(t)),
            eval_loss=measured(t),
            chars_per_token=1.0,
            diverged_at=None,
            wall_s=0.1,
        )
        for t in chunk.trials
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(exit code, output as JSON, folder)."""
    import contextlib
    import io

    out = tmp_path_factory.mktemp("quick") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.run, "__kwdefaults__", {**runner.run.__kwdefaults__, "trainer": fake_chunk})
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code = main(["quickstart", "--out", str(out), "--json"])
    return code, json.loads(said.getvalue()), out


def test_the_grid_is_what_the_readme_says():
    trials = recipes.load("quickstart")
    assert len({recipes_n(t) for t in trials}) >= 4
    assert len({t.tokens for t in trials}) >= 3
    assert len({t.optim.lr for t in trials}) >= 5
    assert len({t.batch_tokens for t in trials}) >= 2
    assert len({t.run_id for t in trials}) == len(trials)
    assert all(t.optim.final_lr == 1e-5 and t.optim.schedule == "cosine" for t in trials)


def test_all_stages_end(finished):
    code, said, _ = finished
    assert code == 0
    assert said["trials"] == len(recipes.load("quickstart"))
    assert said["answer"]["lr"]["low"] < said["answer"]["lr"]["median"] < said["answer"]["lr"]["high"]
    for law in ("steplaw", "chinchilla", "farseer"):
        assert law in said["fitted"] or any(law in words for words in said["refusals"])
    assert {"steplaw", "chinchilla"} <= set(said["fitted"])


def test_holding_out_the_largest_models_judges_them_only(finished):
    _, said, _ = finished
    largest = max(recipes_n(t) for t in recipes.load("quickstart"))
    for law, test in said["heldout"].items():
        assert {point["params"] for point in test["points"]} == {largest}, law
    # The surface is Chinchilla's: its extrapolation by one size must be good.
    assert said["heldout"]["chinchilla"]["error"] < 0.01


def test_report_is_one_page_with_pictures(finished):
    _, said, out = finished
    page = (out / "report.html").read_text()
    assert said["report"] == str(out / "report.html")
    assert page.count('src="data:image/svg+xml') >= 4
    assert 'src="http' not in page and 'href="http' not in page


def test_query_is_answered_from_the_packaged_posterior(monkeypatch, tmp_path):
    """Without data, without a cache: the first thing that a newcomer sees."""
    import laws

    monkeypatch.setenv("STEPSEER_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("STEPSEER_CACHE", str(tmp_path / "cache"))
    answer = laws.load_posterior("steplaw").predict(**quickstart.QUERY)
    assert 1e-4 < answer.lr.median < 1e-2 and 1e5 < answer.batch_tokens.median < 1e8
