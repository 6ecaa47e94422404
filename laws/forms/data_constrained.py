"""Repeated data: L = E + A / N'^alpha + B / D'^beta  (Muennighoff et al. 2023, arXiv 2305.16264, section 3.1).

Of D tokens U are distinct (`unique_tokens`), so R_D = D / U - 1 times repeated, and repeats are worth less and less:

    D' = U + U R*_D (1 - exp(-R_D / R*_D))

and likewise parameters beyond U_N, the size that Chinchilla calls optimal for U distinct tokens: R_N = N / U_N - 1,
N' = U_N + U_N R*_N (1 - exp(-R_N / R*_N)). Where neither is in excess this is Chinchilla. Loss never rises with N, D or
U under this law, so `prepare` leaves out runs that too much repetition has harmed, as the authors do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from laws.errors import FitError
from laws.forms import chinchilla, grid

CITATION = "Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv 2305.16264"
COLUMNS = ("unique_tokens",)
COVARIATES = ("unique_tokens",)
QUANTITIES = ("loss", "mean_loss")
SITES = ("E", "A", "B", "alpha", "beta", "R_N", "R_D", *grid.SITES)
HELD = ()
HARMED = 0.01  # a run is left out if one with no more of N, D and U ended this much lower
START = 10.0  # repeats worth having: the prior's median of R*_N and R*_D


def prepare(runs: pd.DataFrame, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """See `laws.forms.grid.prepare`; needs 9 cells, 3 sizes, 3 budgets, and 3 or more cells with repeated data."""
    cells = grid.best_per_cell(runs, target, COVARIATES)
    harmed = _harmed(cells, target)
    kept = cells[~harmed]
    repeated = int((kept["tokens"] > 1.1 * kept["unique_tokens"]).sum())
    if repeated < 3:
        raise FitError(
            "data_constrained needs at least 3 (params, tokens) cells whose data are repeated (tokens above "
            f"unique_tokens); these runs have {repeated}: for unique data fit chinchilla"
        )
    data, facts = grid.prepare(
        kept, target, law="data_constrained", parameters=7, sizes=3, budgets=3, covariates=COVARIATES
    )
    if harmed.any():
        facts["notes"].append(
            f"{harmed.sum()} of {len(cells)} cells left out: a run with no more parameters, tokens or unique tokens "
            f"ended over {HARMED:.0%} lower, so excess did harm there, which this law has no term for"
        )
    return data, facts


def _harmed(cells: pd.DataFrame, target: str) -> Any:
    """[cell] True where a cell with no more params, tokens and unique_tokens has a loss lower by HARMED."""
    columns = cells[["params", "tokens", "unique_tokens"]].to_numpy(float)
    loss = cells[target].to_numpy(float)
    smaller = (columns[None, :, :] <= columns[:, None, :]).all(axis=2)
    return np.any(smaller & (loss[None, :] < loss[:, None] * (1 - HARMED)), axis=1)


def log_curve(xp: Any, p: dict[str, Any], x: dict[str, Any]) -> Any:
    """ln L; p: E, A, B, alpha, beta, R_N, R_D; x: as `grid.coordinates` gives them, with unique_tokens."""
    ln_N, ln_D, ln_U = x["n"] + x["ln_N"], x["d"] + x["ln_D"], x["unique_tokens"] + x["ln_unique_tokens"]
    ln_U = xp.minimum(ln_U, ln_D)
    ln_A, ln_B, alpha, beta = xp.log(p["A"]), xp.log(p["B"]), p["alpha"], p["beta"]
    ln_G = (xp.log(alpha) + ln_A - xp.log(beta) - ln_B) / (alpha + beta)
    ln_U_N = xp.minimum(ln_G + beta / alpha * (ln_G + ln_U), ln_N)
    size = ln_A - alpha * (ln_U_N + worth(xp, ln_N - ln_U_N, p["R_N"]))
    data = ln_B - beta * (ln_U + worth(xp, ln_D - ln_U, p["R_D"]))
    return grid.logaddexp(xp, xp.log(p["E"]), grid.logaddexp(xp, size, data))


def worth(xp: Any, log_ratio: Any, limit: Any) -> Any:
    """ln (1 + limit (1 - exp(-R / limit))): the worth of one and R = exp(log_ratio) - 1 repeats of it."""
    return xp.log1p(-limit * xp.expm1(-xp.expm1(log_ratio) / limit))


def priors(data: dict[str, Any]) -> dict[str, Any]:
    """E, A, B, alpha, beta, R_N, R_D. Priors: the last two 10 give or take a factor 3; the rest as Chinchilla's, for
    the loss and its slopes at the centre of the data if all were unique."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    limits = {k: jnp.exp(numpyro.sample(f"log_{k}", dist.Normal(jnp.log(START), 1.0))) for k in ("R_N", "R_D")}
    return chinchilla.priors(data) | {k: numpyro.deterministic(k, value) for k, value in limits.items()}


def model(data: dict[str, Any]) -> None:
    """The numpyro model."""
    import jax.numpy as jnp

    grid.observe(log_curve(jnp, priors(data), data), data)


def start(data: dict[str, Any]) -> dict[str, Any]:
    """Chinchilla's point fit in N and the tokens' worth at R*_D = 10."""
    ln_D, ln_U = data["d"] + data["ln_D"], data["unique_tokens"] + data["ln_unique_tokens"]
    ln_U = np.minimum(ln_U, ln_D)
    effective = ln_U + worth(np, ln_D - ln_U, START) - data["ln_D"]
    return chinchilla.start(data | {"d": effective}) | {"log_R_N": np.log(START), "log_R_D": np.log(START)}


def predict(
    draws: dict[str, np.ndarray], meta: dict[str, Any], query: dict[str, np.ndarray], noise: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """See `laws.forms.grid.predict`."""
    return grid.predict(log_curve, draws, meta, query, noise)
