"""Likelihood and form error where losses have known errors, against independent references; what is said of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from numpyro.infer.util import log_density
from scipy.stats import multivariate_normal

import laws
from laws import checks, covariance, rows
from laws.forms import discrepancy, grid
from laws.runs import load_runs
from laws.schema import unread_error

from .conftest import loss_grid

CELLS = 6


def parts(rng):
    """Features, and the three parts of the covariance of CELLS rows, two of which are checkpoints of one run."""
    phi = rng.standard_normal((CELLS, 4))
    run = np.array([0, 0, 1, 2, 3, 4])
    own, known, weight = (rng.uniform(0.5, 2.0, CELLS) for _ in range(3))
    return phi, rows.parts(phi, own, 1e-3 * known, weight, run, 0.5)


def test_the_likelihood_is_that_of_the_covariance():
    rng = np.random.default_rng(0)
    _, (own, known, form) = parts(rng)
    residual = 2e-3 * rng.standard_normal(CELLS)
    seen = rows.factored({"log_loss": residual}, own, known, form, 0.7)
    with jax.enable_x64(True):
        seen = {key: jnp.asarray(x) for key, x in seen.items()}

        def told(noise, form_error):
            sites = {"noise": noise, "form_error": form_error}
            return float(log_density(lambda: grid.observe(jnp.zeros(8), seen), (), {}, sites)[0])

        def priors(noise, form_error):
            empty = {"log_loss": jnp.zeros(8), "there": jnp.zeros(8, bool), "power": 0.0}
            sites = {"noise": noise, "form_error": form_error}
            return float(log_density(lambda: grid.observe(jnp.zeros(8), seen | empty), (), {}, sites)[0])

        logs = [told(*sds) - priors(*sds) for sds in ((1e-3, 5e-3), (4e-3, 1e-3))]
    exact = [
        0.7 * multivariate_normal.logpdf(residual, cov=noise**2 * own + known + error**2 * form)
        for noise, error in ((1e-3, 5e-3), (4e-3, 1e-3))
    ]
    assert logs[0] - logs[1] == pytest.approx(exact[0] - exact[1], rel=1e-9)


def test_the_inverse_has_its_derivatives():
    rng = np.random.default_rng(1)
    A, B = (np.cov(rng.standard_normal((5, 20))) for _ in range(2))
    y = rng.standard_normal(5)

    def ours(v):
        precision, logs = covariance.inverse(v * A + B)
        return y @ precision @ y + logs

    def plain(v):
        return y @ jnp.linalg.solve(v * A + B, y) + jnp.linalg.slogdet(v * A + B)[1]

    with jax.enable_x64(True):
        v = jnp.array([0.3, 2.0])
        found, exact = (
            jax.jit(jax.vmap(lambda u, f=f: (f(u), jax.grad(f)(u), jax.hessian(f)(u))))(v) for f in (ours, plain)
        )
    np.testing.assert_allclose(found, exact, rtol=1e-9)


def test_form_error_is_drawn_from_its_conditional():
    rng = np.random.default_rng(2)
    phi, (own, known, form) = parts(rng)
    residual, noise, error = 5e-3 * rng.standard_normal(CELLS), 2e-3, 4e-3
    n = 20_000
    drawn = discrepancy.draw_factored(
        phi, own, known, np.tile(residual, (n, 1)), np.full(n, noise), np.full(n, error), rng
    )
    gain = error**2 * phi.T @ np.linalg.inv(noise**2 * own + known + error**2 * form)
    cov = error**2 * np.eye(4) - gain @ phi * error**2
    np.testing.assert_allclose(drawn.mean(axis=0), gain @ residual, atol=4 * np.sqrt(cov.max() / n))
    np.testing.assert_allclose(np.cov(drawn.T), cov, atol=0.05 * cov.max())


def test_noise_under_known_errors_stays_open():
    """The errors are overstated: all of the scatter is noise, a fifth of them. It may be anything below."""
    runs = loss_grid("chinchilla", 0.001, sizes=3, budgets=4)
    noise = laws.fit("chinchilla", runs.assign(loss_se=0.005 * runs["loss"]), laplace=True).draws["noise"]
    low, high = np.quantile(noise, [0.05, 0.95])
    assert low < 0.001 < high and high > 4 * low


def test_intervals_that_all_hold_are_wide():
    fine, text = checks._coverage(np.full(12, 0.5), True, True)
    assert fine and "wider than they need be" in text and "standard errors" in text
    assert "as they should" in checks._coverage((np.arange(12) + 0.5) / 12, True, True)[1]
    assert not checks._coverage(np.full(12, 0.96), True, True)[0]


def test_words_of_columns_of_errors():
    runs = pd.DataFrame({"params": [1e9], "tokens": [2e10], "loss": [2.5], "lr": ["high"], "loss_sd": [0.01]})
    with pytest.raises(laws.InputError, match="lr = 'high': not a number; write digits, such as 3e-4"):
        load_runs(runs)
    with pytest.raises(laws.InputError, match="loss_se = 'small': not a number; write digits, such as 0"):
        load_runs(runs.assign(lr=1e-3, loss_se="small"))
    assert "'loss_sd' is not used" in unread_error(runs, "loss")
    assert not unread_error(runs.assign(loss_se=0.01), "loss")
