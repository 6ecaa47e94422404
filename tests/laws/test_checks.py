"""Checks find what was put wrong, and nothing where nothing is; their numbers against exact ones."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import laws
from laws import checks, forms, prior_checks
from laws.errors import InputError
from laws.fitting import digest
from tests.laws import known
from tests.laws.conftest import loss_grid


def made(posterior, noise=5e-3, seed=0, bend=0.0, **grid):
    """Runs about the posterior's median surface."""
    table = loss_grid("chinchilla", 0.0, **grid)
    n = np.log(table["params"] / table["params"].median())
    scatter = noise * np.random.default_rng(seed).standard_normal(len(table))
    return table.assign(loss=table["loss"] * np.exp(scatter + bend * (n**2 - (n**2).mean())))


def test_a_good_fit_is_called_one(small_chinchilla):
    found = laws.check(small_chinchilla, loss_grid("chinchilla", 0.003), prior=False)
    assert found.fitted_to_these and len(found.table) == 64
    assert found.worries == []
    assert 0.8 < found.coverage[0.9] <= 1 and found.coverage[0.5] < found.coverage[0.8] <= found.coverage[0.95]
    assert found.residuals["p"].min() > 0.01
    assert (found.table["pareto_k"] < checks.BAD_K).mean() >= 1 - checks.FEW
    assert all(text.endswith(".") and "\n" not in text for text in found.sentences)
    assert found.table["influence"].abs().max() < 2


def test_leave_one_out_is_arvizs(small_chinchilla):
    import arviz

    runs = loss_grid("chinchilla", 0.003)
    found = laws.check(small_chinchilla, runs, prior=False)
    data = laws.to_arviz(small_chinchilla, runs)
    loo = arviz.loo(data, pointwise=True, reff=1.0)
    np.testing.assert_allclose(found.table["elpd"], loo.loo_i.to_numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.table["pareto_k"], loo.pareto_k.to_numpy(), rtol=1e-6)
    assert float(data["log_likelihood"]["log_loss"].sum("cell").mean()) > found.table["elpd"].sum()


def test_leave_one_out_against_the_exact_answer():
    """A level with normal noise: leaving a cell out has a closed form, and so has its pull on the level."""
    rng = np.random.default_rng(0)
    runs = loss_grid("chinchilla", 0.0, sizes=3, budgets=5)
    y = np.log(2.5) + 0.01 * rng.standard_normal(len(runs))
    runs["loss"] = np.exp(y)
    n, noise = len(y), 0.01
    level = y.mean() + noise / np.sqrt(n) * rng.standard_normal((4, 5000))
    posterior = known.known("chinchilla", lambda p, N, D: np.exp(p["level"]) + 0 * N, {"level": level})
    posterior.samples["noise"][:] = noise
    same = digest(laws.load_runs(runs), "loss", forms.get("chinchilla"))
    posterior.meta.update(tails=1e8, data_digest=same)
    found = laws.check(posterior, runs, prior=False)
    assert found.fitted_to_these
    others = (y.sum() - y) / (n - 1)
    exact = norm.cdf(y, others, noise * np.sqrt(1 + 1 / (n - 1)))
    np.testing.assert_allclose(found.table["pit"], exact, atol=0.02)
    pull = (others - y.mean()) / (noise / np.sqrt(n))
    np.testing.assert_allclose(found.table["influence"], pull, atol=0.08)
    density = norm.logpdf(y, others, noise * np.sqrt(1 + 1 / (n - 1)))
    np.testing.assert_allclose(found.table["elpd"], density, atol=0.05)


def test_a_bent_surface_is_found():
    posterior = known.chinchilla(1e-4, draws=400)
    straight = laws.check(posterior, made(posterior))
    assert not straight.fitted_to_these and straight.prior is None
    assert not any("still goes with" in text for text in straight.worries)
    bent = laws.check(posterior, made(posterior, bend=0.004))
    assert any("still goes with ln N squared" in text for text in bent.worries)
    assert bent.residuals.set_index("pattern").loc["ln N squared", "correlation"] > 0.3
    assert bent.table["pareto_k"].isna().all()


def test_patterns_are_found_by_chance_as_often_as_promised():
    """p below 0.1 in about a tenth of tables that have no pattern."""
    posterior = known.chinchilla(1e-9, draws=400)
    p = np.concatenate([laws.check(posterior, made(posterior, seed=s)).residuals["p"] for s in range(30)])
    assert 0.04 < np.mean(p < 0.1) < 0.17  # 180 values, five of each six nearly independent


def test_an_outlier_is_named():
    posterior = known.chinchilla(1e-4, draws=400)
    runs = made(posterior, noise=0.004)
    runs.loc[5, "loss"] *= 1.08
    found = laws.check(posterior, runs)
    assert found.table["deviation"].abs().idxmax() == 5
    (sentence,) = [text for text in found.sentences if "noise deviations" in text]
    assert sentence.startswith("1 of 64 cells lie over 4") and "(200M, 32B tokens) +8" in sentence
    assert sentence not in found.worries
    runs.loc[20:30, "loss"] *= 0.9
    assert any("12 of 64 cells lie over 4" in text for text in laws.check(posterior, runs).worries)


def test_intervals_too_narrow_or_wide_are_said():
    posterior = known.chinchilla(1e-4, draws=400)
    assert any("too narrow" in text for text in laws.check(posterior, made(posterior, noise=0.015)).worries)
    wide = laws.check(posterior, made(posterior, noise=0.001))
    assert wide.coverage[0.9] == 1
    assert any("wider than they need be" in text for text in wide.sentences)


def test_a_bad_sampler_and_a_form_taken_for_true_are_worries():
    posterior = known.chinchilla(1e-4, draws=400)
    found = laws.check(posterior, made(posterior))
    assert any("form is taken for true" in text for text in found.worries)
    posterior.meta["diagnostics"]["max_rhat"] = 1.2
    assert any("do not vouch" in text for text in laws.check(posterior, made(posterior)).worries)
    posterior.meta["diagnostics"] = {"laplace": 1.0, "divergences": 0.0}
    assert any("normal approximation" in text for text in laws.check(posterior, made(posterior)).worries)


def test_the_prior_allows_for_usual_tables_and_not_for_any():
    usual = prior_checks.predictive("chinchilla", loss_grid("chinchilla", 0.003), "loss")
    assert usual["inside"] > 0.95 and usual["falling"] == 1 and usual["low"] < 1 < usual["high"]
    assert prior_checks.predictive_sentence(usual)[0]
    steep = loss_grid("chinchilla", 0.0)
    steep["loss"] = 2 + 40 * (steep["params"] / 2e8) ** -1.8
    odd = prior_checks.predictive("chinchilla", steep, "loss")
    assert odd["inside"] < 0.5 and not prior_checks.predictive_sentence(odd)[0]


def test_the_scaled_prior_counts_so_many_times_and_the_runs_once():
    import jax
    from numpyro.infer.util import log_density

    from laws import rows
    from laws.forms import discrepancy

    form = forms.get("farseer")
    data, _ = form.prepare(loss_grid("farseer", 0.002), "loss")
    phi = discrepancy.features(discrepancy.domain(data), data)
    turned = discrepancy.rotate(phi)
    data = rows.observed(data, turned, np.ones(64), 64.0)
    start, scaled = form.start(data), prior_checks._scaled(form)
    with jax.enable_x64(True):
        free = {k: v for k, v in scaled_sites(form.model, data, start).items() if k != "log_loss"}

        def whole(power):
            return float(log_density(scaled.model, (data | {"prior_power": power},), {}, start)[0])

        assert {"noise", "form_error", "falling", "gap_slope"} <= set(free)
        prior, plain = sum(free.values()), float(log_density(form.model, (data,), {}, start)[0])
        assert whole(1.0) == pytest.approx(plain, rel=1e-9)
        assert whole(3.0) == pytest.approx(plain + 2 * prior, rel=1e-9)
        assert whole(0.5) == pytest.approx(plain - prior / 2, rel=1e-9)


def scaled_sites(model, data, values):
    """Log density of every site of `model` at `values`, one by one."""
    from numpyro import handlers

    with handlers.seed(rng_seed=0):
        trace = handlers.trace(handlers.substitute(model, values)).get_trace(data)
    return {k: float(np.sum(s["fn"].log_prob(s["value"]))) for k, s in trace.items() if s["type"] == "sample"}


def test_how_much_the_prior_decides():
    table = prior_checks.sensitivity("chinchilla", loss_grid("chinchilla", 0.01, sizes=3, budgets=3), "loss")
    assert len(table) == 3 and np.isfinite(table[["sd", "half", "double"]]).all(axis=None)
    here, beyond, _ = table["sd"]
    assert beyond > 2 * here  # nine noisy runs say little of ten times their scale
    fine, text = prior_checks.sensitivity_sentence(table.assign(half=[0.1, 2.0, 0.6], double=0.0))
    assert not fine and "at 10 times the scale moves by 2.0" in text and "of the others 1 by over" in text
    fine, text = prior_checks.sensitivity_sentence(table.assign(half=[0.1, -0.3, 0.2], double=0.0))
    assert fine and "moves by 0.3" in text and "the runs decide" in text


def test_arviz_and_back(small_chinchilla, tmp_path):
    import arviz

    runs = loss_grid("chinchilla", 0.003)
    data = laws.to_arviz(small_chinchilla, runs)
    assert set(data.groups()) >= {"posterior", "log_likelihood", "posterior_predictive", "observed_data"}
    np.testing.assert_allclose(np.exp(data["observed_data"]["log_loss"]), runs["loss"])
    data.to_netcdf(tmp_path / "arviz.nc")
    again = laws.from_arviz(arviz.from_netcdf(tmp_path / "arviz.nc"))
    assert again.law == "chinchilla" and again.meta == small_chinchilla.meta
    ask = {"params": [1e9, 7e10], "tokens": [1e10, 1e12]}
    np.testing.assert_array_equal(again.predict(**ask).loss.draws, small_chinchilla.predict(**ask).loss.draws)
    inside = np.abs(data["posterior_predictive"]["log_loss"] - np.log(runs["loss"].to_numpy())).median(
        ("chain", "draw")
    )
    assert float(inside.max()) < 0.05
    with pytest.raises(InputError, match="not of a law"):
        laws.from_arviz(arviz.from_dict(posterior={"mu": np.zeros((2, 10))}))
    broken = laws.to_arviz(small_chinchilla)
    del broken.posterior["alpha"]
    with pytest.raises(InputError, match="lacks alpha"):
        laws.from_arviz(broken)


def test_what_cannot_be_checked(small_chinchilla):
    with pytest.raises(InputError, match="steplaw says nothing of the loss"):
        laws.check(laws.load_posterior("steplaw"), loss_grid("chinchilla", 0.003))
    with pytest.raises(InputError, match="column 'tokens'"):
        laws.check(small_chinchilla, pd.DataFrame({"params": [1e8], "loss": [3.0]}))
    with pytest.raises(InputError, match="none of the 64 runs"):
        laws.check(small_chinchilla, loss_grid("chinchilla", 0.003).assign(status="failed"))
