"""Kaplan's law: L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D  (Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5).

No irreducible loss: L goes to 0 with N and D both. The nested law with E = 0, A = N_c^(alpha_N / alpha_D), B = D_c,
beta = 1 and k = alpha_D. Sampled as the loss at the centre of the data, its slopes in ln N and ln D there and the share
of the size term in the bracket.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from laws.forms import grid

CITATION = "Kaplan et al. 2020, Scaling Laws for Neural Language Models, arXiv 2001.08361"
COLUMNS = ()
COVARIATES = ()
QUANTITIES = ("loss", "mean_loss")
SITES = ("alpha_N", "alpha_D", "ln_N_c", "ln_D_c", *grid.SITES)
HELD = ()


def prepare(runs: pd.DataFrame, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """See `laws.forms.grid.prepare`; needs 6 cells, 3 sizes, 3 budgets."""
    return grid.prepare(runs, target, law="kaplan", parameters=4, sizes=3, budgets=3)


def log_curve(xp: Any, p: dict[str, Any], x: dict[str, Any]) -> Any:
    """ln L; p: alpha_N, alpha_D, ln_N_c, ln_D_c; x: as `grid.coordinates` gives them."""
    size = p["alpha_N"] / p["alpha_D"] * (p["ln_N_c"] - x["n"] - x["ln_N"])
    return p["alpha_D"] * grid.logaddexp(xp, size, p["ln_D_c"] - x["d"] - x["ln_D"])


def priors(data: dict[str, Any]) -> dict[str, Any]:
    """alpha_N, alpha_D, ln_N_c, ln_D_c. Priors: alpha_N 0.08 and alpha_D 0.1 (the paper: 0.076, 0.103) give or take a
    factor 2, the size term half of the bracket at the centre, anywhere from 10% to 90%."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    center = numpyro.sample("center", dist.Normal(data["ln_L"], 0.2))
    logit = numpyro.sample("share", dist.Normal(0.0, 1.2))
    size, tokens = jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)
    alpha_N = jnp.exp(numpyro.sample("log_slope_N", dist.Normal(jnp.log(0.08) + size, 0.6)) - size)
    alpha_D = jnp.exp(numpyro.sample("log_slope_D", dist.Normal(jnp.log(0.10) + tokens, 0.6)) - tokens)
    p = {
        "alpha_N": alpha_N,
        "alpha_D": alpha_D,
        "ln_N_c": data["ln_N"] + (center + alpha_D * size) / alpha_N,
        "ln_D_c": data["ln_D"] + center / alpha_D + tokens,
    }
    return {site: numpyro.deterministic(site, value) for site, value in p.items()}


def model(data: dict[str, Any]) -> None:
    """The numpyro model."""
    import jax.numpy as jnp

    grid.observe(log_curve(jnp, priors(data), data), data)


def start(data: dict[str, Any]) -> dict[str, Any]:
    """The plane through the log losses: its slopes, kept to those that the prior holds for possible."""
    design = np.stack([np.ones_like(data["n"]), data["n"], data["d"]], axis=1)
    level, slope_N, slope_D = np.linalg.lstsq(design, data["log_loss"])[0]
    slope_N, slope_D = np.clip([-slope_N, -slope_D], 0.01, 0.3)
    return {
        "center": level,
        "share": 0.0,
        "log_slope_N": np.log(slope_N),
        "log_slope_D": np.log(slope_D),
    } | grid.START


def predict(
    draws: dict[str, np.ndarray], meta: dict[str, Any], query: dict[str, np.ndarray], noise: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """See `laws.forms.grid.predict`."""
    return grid.predict(log_curve, draws, meta, query, noise)
