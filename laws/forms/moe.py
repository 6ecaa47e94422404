"""Mixtures of experts: L = E + A / N'^alpha + B / D^beta,  N' = N_active^(1 - eta) N^eta.

Chinchilla in an effective size between the parameters a token sees (`params_active`, eta = 0) and all of them
(`params`, eta = 1): what a parameter that most tokens pass by is worth. At one number of experts, Clark et al. 2022
(arXiv 2202.01169, eq. 11) too find an effective size that is a power law in the size.

To `laws.forms.grid`, N is the active size and all parameters a covariate: the form's error is one over N_active and D.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from laws.errors import FitError
from laws.forms import chinchilla, grid

CITATION = (
    "Chinchilla's form (Hoffmann et al. 2022, arXiv 2203.15556) in an effective size, after Clark et al. 2022, "
    "arXiv 2202.01169"
)
COLUMNS = ("params_active",)
COVARIATES = ("params_active",)
AXES = ("params_active", "tokens")  # what `grid` has in place of params and tokens
QUANTITIES = ("loss", "mean_loss")
SITES = ("E", "A", "B", "alpha", "beta", "eta", *grid.SITES)
HELD = ()
SPREAD = 0.1  # in ln: the least scatter of (params_active, params) off a line


def prepare(runs: pd.DataFrame, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """See `laws.forms.grid.prepare`; needs 8 cells, 3 active sizes, 3 budgets, and active and all parameters that vary
    independently: at one size of all parameters, say, a larger alpha would do for a smaller eta."""
    data, facts = grid.prepare(_axes(runs), target, law="moe", parameters=6, sizes=3, budgets=3, covariates=("all",))
    sizes = np.stack([data["n"], data["all"]])
    if np.linalg.svd(sizes - sizes.mean(axis=1, keepdims=True), compute_uv=False)[1] < SPREAD * np.sqrt(sizes.shape[1]):
        raise FitError(
            "moe needs params and params_active that vary independently; in these runs one follows from the other or "
            "is the same throughout: add runs of another sparsity and size, such as dense ones"
        )
    return data, facts


def _axes(columns: Any) -> Any:
    """The active size in the column that `grid` looks at, all parameters beside it; of a table or a query."""
    swapped = {"params": columns["params_active"], "all": columns["params"]}
    return columns.assign(**swapped) if isinstance(columns, pd.DataFrame) else swapped | {"tokens": columns["tokens"]}


def _log_ratio(x: dict[str, Any]) -> Any:
    """ln (N / N_active)."""
    return x["all"] + x["ln_all"] - x["n"] - x["ln_N"]


def log_curve(xp: Any, p: dict[str, Any], x: dict[str, Any]) -> Any:
    """ln L; p: E, A, B, alpha, beta, eta; x: as `grid.coordinates` gives them, of `_axes`."""
    return chinchilla.log_curve(xp, p, x | {"n": x["n"] + p["eta"] * _log_ratio(x)})


def priors(data: dict[str, Any]) -> dict[str, Any]:
    """E, A, B, alpha, beta, eta. Priors: eta a half give or take a half; the rest as Chinchilla's, for the loss and its
    slopes at the centre of the effective sizes."""
    import numpyro
    import numpyro.distributions as dist

    eta = numpyro.sample("eta", dist.Normal(0.5, 0.5))
    center = (1 - eta) * data["ln_N"] + eta * data["ln_all"]
    return chinchilla.priors(data | {"ln_N": center}) | {"eta": eta}


def model(data: dict[str, Any]) -> None:
    """The numpyro model."""
    import jax.numpy as jnp

    grid.observe(log_curve(jnp, priors(data), data), data)


def start(data: dict[str, Any]) -> dict[str, Any]:
    """Chinchilla's point fit in the geometric mean of active and all parameters."""
    return chinchilla.start(data | {"n": (data["n"] + data["all"]) / 2}) | {"eta": 0.5}


def predict(
    draws: dict[str, np.ndarray], meta: dict[str, Any], query: dict[str, np.ndarray], noise: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """See `laws.forms.grid.predict`."""
    return grid.predict(log_curve, draws, meta, _axes(query), noise)
