"""Under-tuned runs: losses brought to those of the best settings, and what a fit does with known errors."""

import numpy as np
import pandas as pd
import pytest

import laws
from laws import tuning
from laws.forms import grid
from laws.runs import load_runs

from .conftest import loss_grid

SCALES = {"params": 1e9, "tokens": 2e10}


@pytest.fixture(scope="module")
def steplaw():
    return laws.load_posterior("steplaw")


def best(steplaw, runs):
    at = steplaw.predict(params=runs["params"].to_numpy(), tokens=runs["tokens"].to_numpy())
    return runs.assign(lr=at.lr.median, batch_tokens=at.batch_tokens.median)


def detuned(steplaw, factor=None):
    """(the true losses, runs all at the settings that are best at the smallest scale, with the regret of that)."""
    truth = loss_grid("chinchilla", 0.0, sizes=6, budgets=5).assign(tokens=lambda t: 2 * t["tokens"])
    runs = best(steplaw, truth)
    runs = runs.assign(lr=runs["lr"].iloc[0], batch_tokens=runs["batch_tokens"].iloc[0])
    columns = ("params", "tokens", "lr", "batch_tokens")
    off = steplaw.regret(**{c: runs[c].to_numpy() for c in columns}).draws
    own = off[np.random.default_rng(0).integers(len(off), size=len(runs)), np.arange(len(runs))]
    noise = np.exp(1e-3 * np.random.default_rng(1).standard_normal(len(runs)))
    return truth, runs.assign(loss=runs["loss"] * (1 + own) * noise)


@pytest.fixture(scope="module")
def case(steplaw):
    return detuned(steplaw)


# --- known errors ----------------------------------------------------------------------------------------------------


def test_rows_of_known_error_count_for_little_and_not_as_noise():
    truth, runs = (loss_grid("chinchilla", noise, sizes=6, budgets=5) for noise in (0.0, 0.002))
    bad = np.arange(len(runs)) % 2 == 0
    runs["loss"] *= np.exp(0.03 * bad * np.random.default_rng(3).standard_normal(len(runs)))
    runs["loss_se"] = np.where(bad, 0.03 * runs["loss"], np.nan)
    known, ignored = (laws.fit("chinchilla", r, laplace=True) for r in (runs, runs.drop(columns="loss_se")))
    assert np.median(known.draws["noise"]) == pytest.approx(0.002, rel=0.5)
    assert not known.meta["outliers"]
    where = {c: truth[c].to_numpy() for c in ("params", "tokens")}
    off = [np.abs(p.predict(**where).mean_loss.median / truth["loss"] - 1).mean() for p in (known, ignored)]
    assert off[0] < 0.6 * off[1]
    found = laws.check(known, runs, prior=False)
    assert found.fitted_to_these and found.coverage[0.9] >= 0.8
    assert not laws.check(known, runs.drop(columns="loss_se"), prior=False).fitted_to_these


def test_noise_that_known_errors_hide_is_not_taken_for_none():
    runs = loss_grid("chinchilla", 0.005, sizes=6, budgets=5)
    noise = laws.fit("chinchilla", runs.assign(loss_se=0.005 * runs["loss"]), laplace=True).draws["noise"]
    assert 5e-4 < np.median(noise) < 4e-3


def test_no_error_is_the_same_as_none_given():
    runs = loss_grid("chinchilla", 0.003, sizes=5, budgets=5)
    plain, zero = (laws.fit("chinchilla", r, laplace=True) for r in (runs, runs.assign(loss_se=0.0)))
    np.testing.assert_array_equal(plain.draws["E"], zero.draws["E"])


def test_held_out_measurements_may_be_off_by_their_error():
    runs = loss_grid("chinchilla", 0.002, sizes=6, budgets=5)
    sure = laws.backtest("chinchilla", runs, laplace=True)
    unsure = laws.backtest("chinchilla", runs.assign(loss_se=0.05), laplace=True)
    assert unsure.width > sure.width + 2 * 1.6 * 0.05 / runs["loss"].max() / 2


def test_the_mean_over_seeds_has_the_error_of_a_mean():
    runs = pd.DataFrame({"params": 1e9, "tokens": 2e10, "seed": [0, 1], "loss": [2.0, 2.2], "loss_se": [0.03, 0.04]})
    assert grid.best_per_cell(runs, "loss")["loss_se"].item() == pytest.approx(0.025)


# --- one cell --------------------------------------------------------------------------------------------------------


def test_a_cell_of_one_run_is_lowered_by_its_expected_regret(steplaw):
    runs = pd.DataFrame(SCALES | {"lr": [4e-3], "batch_tokens": 4e6, "loss": 2.5})
    expected = np.log1p(steplaw.regret(**SCALES, lr=4e-3, batch_tokens=4e6).draws)
    out = laws.tuned(runs)
    assert out["loss"].item() == pytest.approx(2.5 * np.exp(-expected.mean()), rel=1e-6)
    form = (steplaw.draws["form_error"] * expected) ** 2
    error = np.sqrt(expected.var() + form.mean())
    assert out["loss_se"].item() == pytest.approx(out["loss"].item() * error, rel=1e-3)
    already = laws.tuned(runs.assign(loss_se=0.05))
    assert already["loss_se"].item() > np.hypot(out["loss_se"].item(), 0.04)


def test_settings_beyond_the_sweeps_of_the_law_are_noted(steplaw):
    runs = pd.DataFrame(SCALES | {"lr": [4e-3], "batch_tokens": 4e6, "loss": 2.5})
    narrow = laws.Posterior("steplaw", steplaw.samples, steplaw.meta | {"reach": {"lr": [-1.0, 0.1]}})
    assert not any("decades" in note for note in laws.tuned(runs).attrs["notes"])
    assert any(
        "asked of Step Law: lr 0.004 is" in note and "the fitted runs at most 0.1" in note
        for note in laws.tuned(runs, by=narrow).attrs["notes"]
    )


def test_active_parameters_count_where_they_are_known(steplaw):
    runs = pd.DataFrame({"params": [2.1e9], "params_active": 3e8, "tokens": 1e10, "lr": 4e-3, "batch_tokens": 2e6})
    sparse = np.log1p(steplaw.regret(**{c: x.item() for c, x in runs.items()}).draws).mean()
    dense = np.log1p(steplaw.regret(**{c: x.item() for c, x in runs.items() if c != "params_active"}).draws).mean()
    out = laws.tuned(runs.assign(loss=2.5))["loss"].item()
    assert out == pytest.approx(2.5 * np.exp(-sparse), rel=1e-6) and abs(sparse - dense) > 1e-4


def test_a_sweep_tells_of_its_own_optimum(steplaw):
    """The cell's best learning rate is 1.5 times the law's: its optimum is found all the same, and known well."""
    at = steplaw.predict(**SCALES)
    tried = [(u, v) for u in (-1.4, -0.7, 0.0, 0.7, 1.4) for v in (-0.7, 0.0, 0.7)]
    excess = [0.01 * (u - 0.4) ** 2 + 0.006 * v**2 for u, v in tried]
    rng, off = np.random.default_rng(0), []
    for _ in range(10):
        lr, batch = (np.exp(np.array(x)) * at for x, at in zip(zip(*tried), (at.lr.median, at.batch_tokens.median)))
        loss = 2.5 * np.exp(np.array(excess) + 1e-3 * rng.standard_normal(len(tried)))
        out = laws.tuned(pd.DataFrame(SCALES | {"lr": lr, "batch_tokens": batch, "loss": loss}))
        off.append(out["loss"].item() / 2.5 - 1)
    assert len(out) == 1 and out["loss_se"].item() < 0.002 * 2.5
    assert abs(np.mean(off)) < 1e-3


def test_seeds_are_runs_of_one_setting(steplaw):
    runs = pd.DataFrame(SCALES | {"lr": 1e-3, "batch_tokens": 5e5, "seed": [0, 1], "loss": [2.4, 2.6]})
    out = laws.tuned(runs)
    regret = np.log1p(steplaw.regret(**SCALES, lr=1e-3, batch_tokens=5e5).draws).mean()
    assert out["loss"].item() == pytest.approx(2.5 * np.exp(-regret), rel=1e-6) and out["seeds"].item() == 2


# --- tables ----------------------------------------------------------------------------------------------------------


def test_a_law_of_tuned_losses_is_nearer_to_the_truth(case):
    truth, runs = case
    where = {c: truth[c].to_numpy() for c in ("params", "tokens")}
    plain, tuned = (laws.fit("chinchilla", runs, tuned_by=by, laplace=True) for by in (None, "steplaw"))
    off = [np.abs(p.predict(**where).mean_loss.median / truth["loss"] - 1).mean() for p in (plain, tuned)]
    assert off[0] > 0.005 and off[1] < off[0] / 4
    low, high = tuned.predict(**where).mean_loss.interval()
    assert np.mean((low <= truth["loss"]) & (truth["loss"] <= high)) > 0.7
    assert tuned.meta["tuned_by"] == "steplaw" and "--tuned-by steplaw" in tuned.meta["command"]
    assert sum("lowered by" in note for note in tuned.warnings) == 1


def test_check_knows_its_own_runs_tuned_or_not(case):
    _, runs = case
    posterior = laws.fit("chinchilla", laws.tuned(runs), laplace=True)
    assert posterior.meta["tuned_by"] == "steplaw"
    assert laws.check(posterior, runs, prior=False).fitted_to_these
    assert laws.check(posterior, laws.tuned(runs), prior=False).fitted_to_these
    assert not laws.check(laws.fit("chinchilla", runs, laplace=True), laws.tuned(runs), prior=False).fitted_to_these


def test_rows_that_cannot_be_judged_and_hopeless_cells_go(case, steplaw):
    runs = best(steplaw, case[0]).assign(status="ok", portion=1.0)
    runs.loc[0, "lr"] = np.nan
    runs.loc[1, "portion"] = 0.5
    runs.loc[2, ["status", "loss"]] = "diverged", np.nan
    runs.loc[3, "lr"] *= 100
    out = laws.tuned(runs)
    assert len(out) == len(runs) - 3 and 100 * runs.loc[3, "lr"] not in set(out["lr"])
    assert list(out["status"]).count("diverged") == 1 and out["loss_se"].isna().sum() == 1
    notes = out.attrs["notes"]
    assert any(note.startswith("2 of 30 rows left out") for note in notes)
    assert any(note.startswith("1 of 27 cells left out") for note in notes)
    pd.testing.assert_frame_equal(laws.tuned(out), load_runs(out))  # once is enough
    for by in (None, "steplaw"):
        (note,) = tuning.read(out, "loss", None, by).attrs["notes"]
        assert note.startswith("these losses are already tuned, by steplaw") and ("again" in note) == (by is not None)


def test_doubt_is_for_runs_that_are_off_unevenly(case, steplaw):
    truth, runs = case
    note = tuning.doubt(load_runs(runs), "loss")
    assert "tuned_by='steplaw'" in note and note in laws.fit("chinchilla", runs, laplace=True).warnings
    assert not tuning.doubt(load_runs(best(steplaw, truth)), "loss")
    assert not tuning.doubt(load_runs(truth), "loss")
    assert not tuning.doubt(laws.tuned(runs), "loss")
    tiny = load_runs(runs.assign(params=runs["params"] / 1e4, tokens=runs["tokens"] / 100))  # too far from Step Law
    assert not tuning.doubt(tiny, "loss")


def refused(*args, **options):
    with pytest.raises(laws.InputError) as caught:
        laws.fit(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals(case, tmp_path):
    truth, runs = case
    chinchilla = laws.Posterior("chinchilla", {}, {})
    assert "no posterior named 'stplaw'" in refused("chinchilla", runs, tuned_by="stplaw")
    assert "is empty" in refused("chinchilla", runs, tuned_by="")
    assert "'lr'" in refused("chinchilla", truth, tuned_by="steplaw")
    assert "laws of the loss" in refused("steplaw", runs, tuned_by="steplaw")
    assert "is of chinchilla" in refused("chinchilla", runs, tuned_by=chinchilla)
    assert "nowhere.nc" in refused("chinchilla", runs, tuned_by=tmp_path / "nowhere.nc")
    assert "over 10%" in refused("chinchilla", runs.assign(lr=5.0), tuned_by="steplaw").replace("more than", "over")
