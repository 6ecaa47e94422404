"""Hopeless trials: the probabilities, who is named, and a real sweep that ends them, killed and gone on with."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from engine import config as config_lib
from engine import cull
from experiments import cli, grid, hopeless, runner
from experiments.hopeless import SHARES, Curve
from experiments.plan import Chunk

from . import fakes

RATES = [1e-3 * 2**k for k in range(8)]
BEST = 8e-3


def loss_of(config, share):
    """Log loss: a bowl in the learning rate that is steeper early on, where high rates look worse than they end."""
    x = np.log(config.optim.lr / BEST)
    return 1.0 - 0.2 * share + (0.04 + 0.04 * (1 - share)) * x**2 + 0.03 * (1 - share) * x


def trials(tokens, batch_size=4):
    base = dataclasses.replace(fakes.BASE, tokens=tokens, batch_size=batch_size)
    return grid.trials(base, grid.axis("optim.lr", RATES))


def curves(configs, noise=0.002, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Curve(c, np.array([loss_of(c, s) for s in SHARES]) + noise * rng.normal(size=len(SHARES)), loss_of(c, 1.0))
        for c in configs
    ]


def losses(chunk):
    """[steps, G], as the engine has them."""
    shares = (np.arange(chunk.base.steps) + 1) / chunk.base.steps
    return np.exp([[loss_of(c, s) for c in chunk.trials] for s in shares])


def named(chunk, before, share, within=0.02):
    judge = hopeless.judge(chunk, before, within)
    done = round(share * chunk.base.steps)
    assert done in judge.at
    return judge.verdict(losses(chunk)[:done], range(len(chunk.trials)))


def test_the_probability_is_that_of_the_posterior():
    """Beside the same model on a grid of noises, its coefficients integrated over draws."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.uniform(0, 0.2, 12), rng.normal(size=(12, 2))])
    y = x @ [0.8, -0.01, 0.02] + 0.01 * rng.normal(size=12)
    asked, growth, below = np.array([[0.08, 1.0, 0.0], [0.03, -1.0, 0.5]]), 0.4, 0.05
    unit = np.sqrt(hopeless.S**2 + (growth * x[:, 0]) ** 2)
    variances = np.geomspace(1e-3, 10, 4000)
    log_w, chances = [], []
    for variance in variances:
        prior_cov = np.diag(hopeless.SD**2) * variance / hopeless.SCALE**2
        cov = x @ prior_cov @ x.T + variance * np.diag(unit**2)
        known = stats.multivariate_normal(x @ hopeless.MEAN, cov)
        a, b = hopeless.WEIGHT / 2, hopeless.WEIGHT * hopeless.SCALE**2 / 2
        log_w.append(known.logpdf(y) + stats.invgamma.logpdf(variance, a, scale=b) + np.log(variance))
        gain = asked @ prior_cov @ x.T @ np.linalg.inv(cov)
        mean = asked @ hopeless.MEAN + gain @ (y - x @ hopeless.MEAN)
        own = variance * (hopeless.S**2 + (growth * asked[:, 0]) ** 2)
        own += np.diag(asked @ prior_cov @ asked.T) - np.sum(gain * (asked @ prior_cov @ x.T), axis=1)
        chances.append(stats.norm.cdf((below - mean) / np.sqrt(own)))
    weight = np.exp(np.array(log_w) - max(log_w))
    expected = (weight[:, None] * np.array(chances)).sum(0) / weight.sum()
    np.testing.assert_allclose(hopeless.learn(x, y, growth).chance(asked, below), expected, rtol=1e-4)


def test_nobody_is_hopeless_before_anything_has_finished():
    chunk = Chunk(tuple(trials(64 * 200)))
    assert not any(named(chunk, [], share) for share in SHARES)


def test_the_far_ones_are_hopeless_and_the_near_ones_never():
    before = curves([t for n in (50, 100) for b in (4, 8) for t in trials(64 * n, b)])
    chunk = Chunk(tuple(trials(64 * 200)))
    final = np.array([loss_of(c, 1.0) for c in chunk.trials])
    near = {g for g, loss in enumerate(final) if loss - final.min() < np.log(1.02)}
    found = {share: named(chunk, before, share) for share in SHARES}
    assert not any(near & set(names) for names in found.values())
    assert {0, 7} <= set(found[0.9]) and len(found[0.9]) >= 4
    assert next(iter(found[0.9])) == 7  # the farthest first
    assert "ends within 0.02 of it with probability" in found[0.9][7]
    assert len(named(chunk, before, 0.9, within=0.3)) < len(found[0.9])


def test_a_whole_batch_size_may_be_hopeless():
    """All of a chunk are above the best finished run of their cell, which had another batch size."""
    before = curves([t for n in (50, 100) for b in (4, 8) for t in trials(64 * n, b)])
    chunk = Chunk(tuple(trials(64 * 200)))
    lower = [Curve(c.config, c.at - 0.3, c.final - 0.3) for c in curves(trials(64 * 200, 8))]
    assert len(named(chunk, before + lower, 0.9)) == 8


@pytest.fixture
def sweep(tmp_path):
    """A grid of 300 and of 600 steps, six rates each, most of them far too low."""
    path = tmp_path / "slow.py"
    path.write_text(
        "from experiments.grid import axis, ladder, prod, trials\n"
        "from tests.experiments.fakes import BASE\n"
        "def grid():\n"
        "    return trials(BASE, prod(axis('tokens', [64 * 300, 64 * 600]), axis('optim.lr', ladder(1e-5, 1e-2, 4))))\n"
    )
    return f"{path}:grid"


def test_a_sweep_ends_them_says_so_and_reproduces(sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cull, "WORTH", 0.0)  # of models as small as these
    out = str(tmp_path / "out")
    assert cli.main(["sweep", "run", sweep, "--out", out, "--stop-hopeless", "2%", "--max-trials", "6"]) == 0
    assert "stopped as hopeless" in (said := capsys.readouterr().out) and "saved" in said
    assert cli.main(["sweep", "status", "--out", out, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["stopped"] > 0 and status["done"] == 10 and 0 < status["flops_saved"] < 0.5 * status["flops"]
    assert status["flops_done"] + status["flops_saved"] == pytest.approx(status["flops"])
    assert cli.main(["sweep", "table", "--out", out, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    stopped = [row for row in rows if row["status"] == "stopped"]
    assert all(row["loss"] is None and row["tokens"] == 64 * 600 for row in stopped)
    last = max((r for r in rows if r["status"] == "ok" and r["tokens"] == 64 * 600), key=lambda r: r["lr"])
    for row in (last, stopped[0]):
        assert cli.main(["sweep", "reproduce", row["run_id"], "--out", out]) == 0
    assert config_lib.from_json(last["config"]).steps == 600
    import laws

    assert len(laws.load_runs(out)) == 10  # a run table that laws read


@pytest.mark.parametrize(
    "text, said",
    [
        ("1%", "give 2% or more, and less than 100%"),
        ("0", "above 0"),
        ("200%", "give 2% or more, and less than 100%"),
        ("2", "2 is 200%; did you mean 2%?"),
        ("two", "such as 2%"),
    ],
)
def test_what_it_cannot_be(sweep, tmp_path, text, said, capsys):
    assert cli.main(["sweep", "run", sweep, "--out", str(tmp_path / "out"), "--stop-hopeless", text]) == 2
    shown = capsys.readouterr().err
    assert f"--stop-hopeless is '{text}'" in shown and said in shown
    assert not (tmp_path / "out").exists()


def test_a_run_that_ends_none_says_so(sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "train_chunk", lambda chunk, *_, **__: [fakes.row(t) for t in chunk.trials])
    words = ["sweep", "run", sweep, "--out", str(tmp_path / "out"), "--stop-hopeless", "2%"]
    assert cli.main(words) == 0 and "no trial was ended as hopeless\n" in capsys.readouterr().out
    assert cli.main(words) == 0 and "no trial was ended" not in capsys.readouterr().out  # nothing was trained
