"""Scores against bits per character: the truth found again, the form told apart or not, and references of its own."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import gammaln
from scipy.stats import betabinom

from laws import compression
from laws.compression import Fit, checked, compare, fit
from laws.errors import FitError, InputError

BPC = np.geomspace(0.2, 0.9, 14)
LINES = {"complete": (0.10, -0.45), "explain": (0.25, -0.30), "repair": (0.05, -0.40)}
ITEMS = 400


def made_up(lines, form, bpc=BPC, scatter=0.015, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for task, (a, b) in lines.items():
        for i, x in enumerate(bpc):
            score = np.clip(a + b * compression.FORMS[form](x) + rng.normal(0, scatter), 0.001, 0.999)
            rows.append(
                {"model": f"m{i}", "task": task, "bpc": x, "correct": rng.binomial(ITEMS, score), "total": ITEMS}
            )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def several():
    return fit(made_up(LINES, "log"))


def test_lines_of_several_tasks_are_found_again(several):
    fitted = several
    for j, task in enumerate(fitted.tasks):
        for site, truth in zip("ab", LINES[task]):
            low, high = np.quantile(fitted.draws[site][:, j], [0.005, 0.995])
            assert low <= truth <= high, (task, site)
    low, high = np.quantile(fitted.draws["mean_b"], [0.05, 0.95])
    assert low < np.mean([b for _, b in LINES.values()]) < high
    assert np.sqrt(np.median(fitted.draws["scatter"]) / 4) == pytest.approx(0.015, abs=0.015)


def test_the_bpc_that_a_score_takes(several):
    fitted = several
    a, b = LINES["complete"]
    low, high = fitted.bpc_for(0.6, "complete").interval(0.99)
    assert low <= np.exp((0.6 - a) / b) <= high
    a, b = np.mean(list(LINES.values()), axis=0)
    low, high = fitted.bpc_for(0.5).interval(0.99)
    assert low <= np.exp((0.5 - a) / b) <= high
    # the inverse of the score: not near the corners, where scores are held within 0 and 1
    there = fitted.bpc_for(0.5, "explain").draws
    again = [fitted.score(x, "explain").draws[i] for i, x in list(enumerate(there))[:20]]
    assert np.allclose(again, 0.5, atol=1e-3)


def test_leave_one_out_is_arvizs(several):
    import arviz

    fitted = several
    found = fitted.score(BPC, "repair").draws
    own = fitted.table[fitted.table["task"] == "repair"]
    precision = (1 / fitted.draws["scatter"] - 1)[:, None]
    log_lik = betabinom.logpmf(own["correct"], own["total"], found * precision, (1 - found) * precision)
    data = arviz.from_dict({"level": np.zeros((1, len(log_lik)))}, log_likelihood={"y": log_lik[None]})
    loo = arviz.loo(data, pointwise=True, reff=1.0)
    assert np.allclose(fitted.elpd[own.index], loo.loo_i, atol=1e-6)


def test_summary_has_the_plain_measures(several):
    row = several.summary.set_index("task").loc["explain"]
    own = several.table.query("task == 'explain'")
    seen = own["correct"] / own["total"]
    assert row["pearson"] == pytest.approx(np.corrcoef(np.log(own["bpc"]), seen)[0, 1])
    assert row["r2"] > 0.9 and row["rmse"] < 0.05 and row["b_low"] < row["b_median"] < row["b_high"] < 0


@pytest.fixture(scope="module")
def one():
    return compare(made_up({"complete": (0.95, -0.9)}, "linear", scatter=0.01).drop(columns="task"))


def test_the_line_is_found_where_it_is_true(one):
    assert one.probability < 0.05 and "BPC itself" in one.sentence


def test_the_logarithm_is_found_where_it_is_true():
    found = compare(made_up({"complete": (0.1, -0.5)}, "log", scatter=0.01).drop(columns="task"))
    assert found.probability > 0.95 and found.weight > 0.9 and found.difference > found.se > 0
    assert "the logarithm of BPC" in found.sentence
    # the answer of both forms is nearly that of the one that has nearly all the weight
    assert found.bpc_for(0.5).median == pytest.approx(np.exp(-0.8), rel=0.05)


def test_one_task_is_the_posterior_of_a_grid(one):
    """The same priors and likelihood, integrated by brute force."""
    fitted = one.fits["linear"]
    x = fitted.table["bpc"].to_numpy()
    u = (x - x.mean()) / x.std()
    level, slope = np.linspace(0.40, 0.56, 49), np.linspace(-0.27, -0.15, 49)
    root = np.geomspace(0.003, 0.4, 60)
    L, S, R = (g.ravel() for g in np.meshgrid(level, slope, root, indexing="ij"))
    score = np.clip(L[:, None] + S[:, None] * u, 1e-4, 1 - 1e-4)
    precision = (1 / R**2)[:, None]
    log = betabinom.logpmf(fitted.table["correct"], ITEMS, score * precision, (1 - score) * precision).sum(axis=1)
    log += -((L - 0.5) ** 2) / (2 * 0.5**2) - S**2 / (2 * 0.3**2) - np.log(R / 0.05) ** 2 / (2 * 0.8**2)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    b = S / x.std()
    a = L - b * x.mean()
    for found, grid in ((fitted.draws["a"][:, 0], a), (fitted.draws["b"][:, 0], b)):
        mean = weight @ grid
        sd = np.sqrt(weight @ (grid - mean) ** 2)
        assert found.mean() == pytest.approx(mean, abs=0.2 * sd)
        assert found.std() == pytest.approx(sd, rel=0.2)


def test_a_narrow_range_does_not_tell_the_forms_apart():
    found = compare(made_up({"all": (0.1, -0.45)}, "log", bpc=np.linspace(0.35, 0.45, 14), scatter=0.03))
    assert abs(found.difference) < 1 and 0.3 < found.weight < 0.7
    assert "do not tell the forms apart" in found.sentence


def test_the_command(one, tmp_path, monkeypatch, capsys):
    from experiments import cli

    path = tmp_path / "scores.csv"
    one.fits["log"].table.to_csv(path, index=False)
    monkeypatch.setattr(compression, "compare", lambda table, **options: one)
    assert cli.main(["code", "law", str(path), "--score", "0.5", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["bpc_for"]["the linear form"]["median"] == pytest.approx(0.5, abs=0.05)
    assert answer["probability_log"] == one.probability
    assert cli.main(["code", "law", str(path), "--score", "0.5"]) == 0
    assert "BPC itself" in capsys.readouterr().out
    assert cli.main(["code", "law", str(tmp_path / "none.csv")]) == 2
    assert cli.main(["code", "law", str(path), "--score", "60"]) == 2


def test_scores_that_no_bpc_has():
    draws = {"a": np.array([[0.5], [0.9], [0.1]]), "b": np.array([[-1.0], [-1.0], [0.2]])}
    table = checked(made_up({"all": (0.1, -0.4)}, "log"))
    none = np.zeros(0)
    linear = Fit("linear", ("all",), draws, table, none, none, {})
    assert np.allclose(linear.bpc_for(0.7).draws, [0.0, 0.2, np.inf])
    assert np.allclose(Fit("log", ("all",), draws, table, none, none, {}).bpc_for(0.7).draws[:2], np.exp([-0.2, 0.2]))
    assert np.all((linear.score([1e-6, 50.0]).draws > 0) & (linear.score([1e-6, 50.0]).draws < 1))


def test_the_density_is_scipys():
    score, root = np.array([0.02, 0.3, 0.97]), 0.07
    correct, total = np.array([0.0, 100.0, 164.0]), np.array([164.0, 378.0, 164.0])
    precision = 1 / root**2
    found = compression._log_density(score, root, correct, total, np, gammaln)
    assert np.allclose(found, betabinom.logpmf(correct, total, score * precision, (1 - score) * precision))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"bpc": 0.0}, "row 1: bpc is 0"),
        ({"correct": 0.4}, "counts, not shares"),
        ({"correct": 500}, "row 1: correct is 500"),
        ({"total": 0}, "row 1: total is 0"),
        ({"bpc": "low"}, "must be numbers"),
        ({"model": "m1"}, "row 2: model m1 has its score of the task twice"),
    ],
)
def test_a_bad_row_is_named(change, said):
    table = made_up({"all": (0.1, -0.4)}, "log").astype(object)
    for column, value in change.items():
        table.loc[0, column] = value
    with pytest.raises(InputError, match=said):
        checked(table)


def test_bad_arguments_are_named(several):
    table = made_up({"all": (0.1, -0.4)}, "log")
    for call, said in (
        (lambda: fit(table, "cubic"), "form is 'cubic'"),
        (lambda: fit(table.drop(columns="total")), "no column 'total'"),
        (lambda: several.bpc_for(60), "score is 60"),
        (lambda: several.bpc_for(0.5, "poetry"), "no task 'poetry'"),
        (lambda: several.score(-1.0), "bpc is -1.0"),
    ):
        with pytest.raises(InputError, match=said):
            call()
    with pytest.raises(FitError, match="3 different bpc; a line needs 4"):
        fit(table[:3])


def test_laws_fit_knows_it_by_name(tmp_path, monkeypatch):
    import laws

    asked = {}
    monkeypatch.setattr(compression, "compare", lambda table, **how: asked.update(how, rows=len(table)) or "compared")
    table = made_up(LINES, "log")
    assert laws.fit("compression", table, seed=3) == "compared" and asked["rows"] == len(table) and asked["seed"] == 3
    table.to_csv(tmp_path / "scores.csv", index=False)
    assert laws.fit("compression", tmp_path / "scores.csv") == "compared"
    with pytest.raises(InputError, match="no file"):
        laws.fit("compression", tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="stepseer code law"):
        laws.backtest("compression", table)
