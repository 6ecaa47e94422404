"""The nested law: L = E + (A / N^alpha + B / D^beta)^k; Chinchilla is k = 1, Kaplan's form is E = 0.

With k below 1 model size and data stand in for each other less than in Chinchilla, above 1 more. Sampled as Chinchilla
is: the loss at the centre of the data, its slopes in ln N and ln D there, the shares of the terms in it; and ln k.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from laws.forms import chinchilla, grid

CITATION = (
    "Chinchilla's form (Hoffmann et al. 2022, arXiv 2203.15556) with the outer exponent of Kaplan et al. 2020, "
    "arXiv 2001.08361, eq. 1.5"
)
COLUMNS = ()
COVARIATES = ()
QUANTITIES = ("loss", "mean_loss")
SITES = ("E", "A", "B", "alpha", "beta", "k", *grid.SITES)
HELD = ()


def prepare(runs: pd.DataFrame, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """See `laws.forms.grid.prepare`; needs 8 cells, 3 sizes, 3 budgets."""
    return grid.prepare(runs, target, law="nested", parameters=6, sizes=3, budgets=3)


def log_curve(xp: Any, p: dict[str, Any], x: dict[str, Any]) -> Any:
    """ln L; p: E, A, B, alpha, beta, k; x: as `grid.coordinates` gives them."""
    size = xp.log(p["A"]) - p["alpha"] * (x["n"] + x["ln_N"])
    data = xp.log(p["B"]) - p["beta"] * (x["d"] + x["ln_D"])
    return grid.logaddexp(xp, xp.log(p["E"]), p["k"] * grid.logaddexp(xp, size, data))


def priors(data: dict[str, Any]) -> dict[str, Any]:
    """E, A, B, alpha, beta, k. Priors: k = 1 give or take 30%; the rest as Chinchilla's, for the loss and its slopes
    at the centre of the data."""
    import numpyro

    return {site: numpyro.deterministic(site, value) for site, value in coefficients(sampled(data), data).items()}


def sampled(data: dict[str, Any]) -> dict[str, Any]:
    """The sites that are sampled: Chinchilla's and log_k."""
    import numpyro
    import numpyro.distributions as dist

    return chinchilla.sampled(data) | {"log_k": numpyro.sample("log_k", dist.Normal(0.0, 0.3))}


def coefficients(site: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """E, A, B, alpha, beta, k of sampled sites, numbers or arrays of one shape."""
    import jax.numpy as jnp

    center, share, slopes = chinchilla.at_center(site)
    k = jnp.exp(site["log_k"])
    # Both terms together are (share a + share b) of the loss; a and b split that in their ratio to the power k.
    power = jnp.logaddexp(share[1], share[2])
    within = share[1:] - power
    alpha, beta = slopes / k
    ln_A, ln_B = (center + power) / k + within
    return {
        "E": jnp.exp(center + share[0]),
        "A": jnp.exp(ln_A + alpha * data["ln_N"]),
        "B": jnp.exp(ln_B + beta * data["ln_D"]),
        "alpha": alpha,
        "beta": beta,
        "k": k,
    }


def model(data: dict[str, Any]) -> None:
    """The numpyro model."""
    import jax.numpy as jnp

    grid.observe(log_curve(jnp, priors(data), data), data)


def start(data: dict[str, Any]) -> dict[str, Any]:
    """Chinchilla's point fit: k = 1."""
    return chinchilla.start(data) | {"log_k": np.array(0.0)}


def predict(
    draws: dict[str, np.ndarray], meta: dict[str, Any], query: dict[str, np.ndarray], noise: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """See `laws.forms.grid.predict`."""
    return grid.predict(log_curve, draws, meta, query, noise)
