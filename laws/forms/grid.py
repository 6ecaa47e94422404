"""What the loss laws share: the table of best losses per (params, tokens), robust noise, the predictive."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from laws.errors import FitError


def best_per_cell(runs: pd.DataFrame, target: str) -> pd.DataFrame:
    """One row a (params, tokens) cell: its lowest `target`, the loss of the best learning rate and batch size tried.

    The minimum over noisy runs is biased low by about one noise standard deviation where a cell has many near-optimal
    runs; that bias is common to such cells and is absorbed by the noise.
    """
    return runs.groupby(["params", "tokens"], sort=True)[target].min().reset_index()


def prepare(
    runs: pd.DataFrame, target: str, *, law: str, parameters: int, sizes: int, budgets: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays for the model, facts for meta). Raises FitError if there are fewer cells than `parameters` + 2, fewer
    than `sizes` distinct params or `budgets` distinct tokens (a size counts as often as it is trained), or if the
    loss does not vary."""
    best = best_per_cell(runs, target)
    n_sizes, n_budgets = best["params"].nunique(), best["tokens"].nunique()
    if len(best) < parameters + 2 or n_sizes < sizes or n_budgets < budgets:
        raise FitError(
            f"{law} needs at least {parameters + 2} (params, tokens) cells with {sizes} model sizes and {budgets} "
            f"token budgets; these runs have {len(best)} cells, {n_sizes} sizes and {n_budgets} budgets: train more of "
            "what is short"
        )
    params, tokens, loss = (best[c].to_numpy(float) for c in ("params", "tokens", target))
    if np.ptp(loss) < 1e-9 * loss.max():
        raise FitError(
            f"{law}: {target} is {loss[0]:.6g} in every cell; a law of a constant says nothing: check the column"
        )
    data = {
        "ln_N": np.log(params).mean(),
        "ln_D": np.log(tokens).mean(),
        "n": np.log(params) - np.log(params).mean(),
        "d": np.log(tokens) - np.log(tokens).mean(),
        "log_loss": np.log(loss),
        "ln_L": np.log(loss).mean(),
    }
    facts = {
        "center": {"ln_N": float(data["ln_N"]), "ln_D": float(data["ln_D"])},
        "cells": len(best),
        "rows_used": len(best),
        "notes": [],
    }
    return data, facts


def observe(log_curve: Any, log_loss: Any) -> None:
    """numpyro: log losses scatter about the curve with Student-t noise whose tails are learnt, so outliers show."""
    import numpyro
    import numpyro.distributions as dist

    noise = numpyro.sample("noise", dist.LogNormal(np.log(5e-3), 0.75))
    df = numpyro.deterministic("df", 1.0 + numpyro.sample("df_above_1", dist.Gamma(2.0, 0.1)))
    numpyro.sample("log_loss", dist.StudentT(df, log_curve, noise), obs=log_loss)


def predictive(mean_loss: np.ndarray, draws: dict[str, np.ndarray], noise: dict[str, np.ndarray]) -> np.ndarray:
    """Losses of new runs: [draw, query]; a draw's standard-normal score is turned into its Student-t residual."""
    from scipy.stats import norm, t

    residual = draws["noise"] * t.ppf(norm.cdf(noise["loss"]), draws["df"])
    return mean_loss * np.exp(residual)[:, None]
