"""How runs scatter: a trend of the noise with compute, tails, what checkpoints of one run share."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

import laws
from laws import noise, rows
from laws.forms import discrepancy, grid

from .conftest import loss_grid


def scattered(sd, seed=0, sizes=14, budgets=12):
    """Losses of a known law with noise of standard deviation sd(ln compute less its mean)."""
    runs = loss_grid("chinchilla", 0.0, sizes=sizes, budgets=budgets)
    c = np.log(runs["params"] * runs["tokens"])
    c -= c.mean()
    rng = np.random.default_rng(seed)
    return runs, runs.assign(loss=runs["loss"] * np.exp(sd(c) * rng.standard_normal(len(runs))))


def test_noise_that_falls_with_compute_is_found_and_predicted():
    truth, runs = scattered(lambda c: 0.004 * np.exp(-0.25 * c))
    posterior = laws.fit("chinchilla", runs, laplace=True)
    assert posterior.meta["scatter"]["trend"] == pytest.approx(-0.25, abs=0.08)
    small, large = truth["params"].min(), truth["params"].max()
    wide, narrow = (
        posterior.predict(params=N, tokens=D).loss.interval()
        for N, D in ((small, truth["tokens"].min()), (large, truth["tokens"].max()))
    )
    assert wide[1] / wide[0] - 1 > 3 * (narrow[1] / narrow[0] - 1)
    _, again = scattered(lambda c: 0.004 * np.exp(-0.25 * c), seed=1)
    low, high = posterior.predict(params=again["params"].to_numpy(), tokens=again["tokens"].to_numpy()).loss.interval()
    inside = (low <= again["loss"]) & (again["loss"] <= high)
    assert 0.8 <= inside.mean() <= 0.99


def test_even_noise_has_no_trend():
    _, runs = scattered(lambda c: 0.004)
    assert abs(laws.fit("chinchilla", runs, laplace=True).meta["scatter"]["trend"]) < 0.08


@pytest.mark.parametrize("df", [2.0, 30.0])
def test_tails_and_trend_are_told_apart(df):
    rng = np.random.default_rng(0)
    at = np.linspace(-3, 3, 3000)
    scaled = (rng.standard_t(df, len(at)) * np.exp(0.2 * at)) ** 2
    found, trend = noise.tails_and_trend(scaled, at, 1.0)
    assert trend == pytest.approx(0.2, abs=0.04)
    assert found == pytest.approx(df, rel=0.3) if df < 10 else found > 12


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared():
    """Twelve rows of four runs: (precision, run, the covariance in units of noise^2)."""
    rng = np.random.default_rng(4)
    precision, run = rng.uniform(0.3, 2.0, 12), np.repeat(np.arange(4), 3)
    return precision, run, np.diag(1 / precision) + 2.5 * (run[:, None] == run)


def test_whitening_is_the_inverse_root(shared):
    precision, run, covariance = shared
    W = noise.whiten(np.eye(12), precision, noise.groups(precision, run, 2.5))
    np.testing.assert_allclose(W @ covariance @ W.T, np.eye(12), atol=1e-12)
    np.testing.assert_allclose(noise.whiten(np.eye(12), precision, None), np.diag(np.sqrt(precision)))


def test_likelihood_of_checkpoints_is_the_exact_one(shared):
    precision, run, covariance = shared
    rng = np.random.default_rng(5)
    data = {"n": rng.uniform(-2, 2, 12), "d": rng.uniform(-3, 3, 12), "log_loss": rng.normal(1, 0.02, 12)}
    phi = discrepancy.features(discrepancy.domain(data), data)
    grouped = noise.groups(precision, run, 2.5)
    turned = discrepancy.rotate(noise.whiten(phi, precision, grouped))
    seen = rows.observed(data, turned, precision, 12.0, grouped)
    assert len(seen["n"]) == 16  # padded

    def ours(sd, form_error):
        with jax.enable_x64(True):
            model = numpyro.handlers.substitute(grid.observe, {"noise": sd, "form_error": form_error})
            arrays = {k: jnp.asarray(v) for k, v in seen.items()}
            return float(numpyro.handlers.trace(model).get_trace(jnp.ones(16), arrays)["log_loss"]["fn"].log_factor)

    def exact(sd, form_error):
        return multivariate_normal(np.ones(12), form_error**2 * phi @ phi.T + sd**2 * covariance).logpdf(
            data["log_loss"]
        )

    at = [(0.01, 0.02), (0.003, 0.05), (0.02, 0.001)]
    np.testing.assert_allclose(
        [ours(*x) - ours(*at[0]) for x in at], [exact(*x) - exact(*at[0]) for x in at], rtol=1e-6
    )


@pytest.mark.parametrize("together", [0.0, 2.5])
def test_scatter_over_draws_is_of_the_noise_given_residuals(shared, together):
    """Expected squares of each row's noise are those of a normal distribution, conditioned; weights their mean's."""
    precision, run, _ = shared
    rng = np.random.default_rng(6)
    data = {"n": rng.uniform(-2, 2, 12), "d": rng.uniform(-3, 3, 12), "log_loss": rng.normal(1, 0.02, 12)}
    phi = discrepancy.features(discrepancy.domain(data), data)
    cells = rows.Rows.of(data | ({"run": run} if together else {}), phi, None)
    cells = rows.Weighed(cells, rows.Scatter(precision, np.zeros(12), shared=together))
    residual, noises, form_errors = rng.normal(0, 0.02, (3, 12)), np.array([0.01, 0.02, 0.005]), np.full(3, 0.015)
    squares = []
    for r, sd, form_error in zip(residual, noises, form_errors):
        own = sd**2 * np.diag(1 / precision)
        gain = own @ np.linalg.inv(own + form_error**2 * phi @ phi.T + sd**2 * together * (run[:, None] == run))
        squares.append(((gain @ r) ** 2 + np.diag(own - gain @ own)) / sd**2)
    found = cells.again(residual, noises, form_errors, 3.0).how
    tails, trend = noise.tails_and_trend(np.mean(squares, axis=0), data["n"] + data["d"], 3.0)
    assert (found.tails, found.trend, found.shared) == (tails, trend, together)
    variance = np.exp(2 * trend * (data["n"] + data["d"]))
    np.testing.assert_allclose(found.weight, np.mean((tails + 1) / (tails + squares / variance), axis=0), rtol=1e-6)


def test_checkpoints_of_one_run_are_not_taken_for_runs():
    """Twelve runs, each off by its own 1%, each seen at eight checkpoints with noise of 0.1%."""
    runs = loss_grid("chinchilla", 0.001, sizes=12, budgets=8)
    off = np.random.default_rng(7).normal(0, 0.01, 12)
    size = runs["params"].rank(method="dense").astype(int) - 1
    runs = runs.assign(loss=runs["loss"] * np.exp(off[size]), run_id=[f"run-{k}" for k in size])
    known = laws.fit("chinchilla", runs, laplace=True)
    ignored = laws.fit("chinchilla", runs.drop(columns="run_id"), laplace=True)
    assert known.meta["scatter"]["shared"] >= 10 and ignored.meta["scatter"]["shared"] == 0
    query = {"params": runs["params"].max() * 2, "tokens": runs["tokens"].max() * 2}
    truth = loss_grid("chinchilla", 0.0, sizes=12, budgets=8)
    low, high = known.predict(params=truth["params"].to_numpy(), tokens=truth["tokens"].to_numpy()).mean_loss.interval()
    assert np.mean((low <= truth["loss"]) & (truth["loss"] <= high)) > 0.8
    low, high = known.predict(**query).loss.interval()
    assert high / low - 1 > 0.02  # a new run is off by its own 1%


def test_rows_before_the_end_of_their_schedule_are_warned_of():
    runs = loss_grid("chinchilla", 0.002).assign(portion=1.0)
    runs.loc[:4, "portion"] = 0.4
    (note,) = [w for w in laws.fit("chinchilla", runs, laplace=True).warnings if "portion" in w]
    assert note.startswith("5 of")


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_of_seeds_the_mean_counts_and_of_settings_the_best():
    runs = pd.DataFrame(
        {"params": 1e9, "tokens": 2e10, "lr": [1e-3] * 3 + [2e-3], "seed": [0, 1, 2, 0], "loss": [2.0, 2.3, 2.6, 2.5]}
    )
    best = grid.best_per_cell(runs, "loss")
    assert best["loss"].item() == pytest.approx(2.3) and best["seeds"].item() == 3
    assert grid.best_per_cell(runs.drop(columns="seed"), "loss")["loss"].item() == 2.0
    assert grid.best_per_cell(runs.assign(seed=0), "loss")["loss"].item() == 2.0  # told apart by something else


def test_a_mean_over_seeds_counts_for_more():
    """Four seeds in every cell: the noise is that of one run, not of the mean, and the curve is known twice as well."""
    truth = loss_grid("chinchilla", 0.0)
    four = pd.concat([loss_grid("chinchilla", 0.01, seed=k).assign(seed=k) for k in range(4)])
    many, one = (laws.fit("chinchilla", runs, laplace=True) for runs in (four, loss_grid("chinchilla", 0.01)))
    assert np.median(many.draws["noise"]) == pytest.approx(0.01, rel=0.25)
    assert np.median(one.draws["noise"]) == pytest.approx(0.01, rel=0.25)
    where = {"params": truth["params"].to_numpy(), "tokens": truth["tokens"].to_numpy()}
    widths = [np.mean(np.diff(np.log(p.predict(**where).mean_loss.interval()), axis=0)) for p in (many, one)]
    assert widths[0] < 0.75 * widths[1]
