"""What the loss laws share: the table of best losses per (params, tokens), robust noise, the predictive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from laws.errors import FitError


def best_per_cell(runs: pd.DataFrame, target: str, covariates: Sequence[str] = ()) -> pd.DataFrame:
    """One row a (params, tokens) cell: its lowest `target`, the loss of the best learning rate and batch size tried.

    covariates: further columns that tell cells apart. The minimum over noisy runs is biased low by about one noise
    standard deviation where a cell has many near-optimal runs; that bias is common to such cells and is absorbed by
    the noise.
    """
    return runs.groupby(["params", "tokens", *covariates], sort=True)[target].min().reset_index()


def prepare(
    runs: pd.DataFrame,
    target: str,
    *,
    law: str,
    parameters: int,
    sizes: int,
    budgets: int,
    covariates: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays for the model, facts for meta). Raises FitError if there are fewer cells than `parameters` + 2, fewer
    than `sizes` distinct params or `budgets` distinct tokens (a size counts as often as it is trained), or if the
    loss does not vary.

    The arrays are those of `coordinates`, `log_loss` and `ln_L`, its mean."""
    best = best_per_cell(runs, target, covariates)
    n_sizes, n_budgets = best["params"].nunique(), best["tokens"].nunique()
    if len(best) < parameters + 2 or n_sizes < sizes or n_budgets < budgets:
        raise FitError(
            f"{law} needs at least {parameters + 2} (params, tokens) cells with {sizes} model sizes and {budgets} "
            f"token budgets; these runs have {len(best)} cells, {n_sizes} sizes and {n_budgets} budgets: train more of "
            "what is short"
        )
    loss = best[target].to_numpy(float)
    if np.ptp(loss) < 1e-9 * loss.max():
        raise FitError(
            f"{law}: {target} is {loss[0]:.6g} in every cell; a law of a constant says nothing: check the column"
        )
    columns = {c: best[c].to_numpy(float) for c in ("params", "tokens", *covariates)}
    center = {_center(c): float(np.log(x).mean()) for c, x in columns.items()}
    data = coordinates(columns, center) | {"log_loss": np.log(loss), "ln_L": np.log(loss).mean()}
    return data, {"center": center, "cells": len(best), "rows_used": len(best), "notes": []}


def coordinates(columns: dict[str, np.ndarray], center: dict[str, float]) -> dict[str, Any]:
    """What a law's curve is a function of: `n` and `d`, ln params and ln tokens less their centres `ln_N` and `ln_D`,
    which are there too; a covariate c likewise under its own name, its centre under `ln_c`."""
    return {_SHORT.get(c, c): np.log(x) - center[_center(c)] for c, x in columns.items()} | center


_SHORT = {"params": "n", "tokens": "d"}


def _center(column: str) -> str:
    return {"params": "ln_N", "tokens": "ln_D"}.get(column, f"ln_{column}")


def observe(log_curve: Any, data: dict[str, Any]) -> None:
    """numpyro: log losses scatter about the curve with Student-t noise whose tails are learnt, so outliers show."""
    import numpyro
    import numpyro.distributions as dist

    noise = numpyro.sample("noise", dist.LogNormal(np.log(5e-3), 0.75))
    df = numpyro.deterministic("df", 1.0 + numpyro.sample("df_above_1", dist.Gamma(2.0, 0.1)))
    numpyro.sample("log_loss", dist.StudentT(df, log_curve, noise), obs=data["log_loss"])


SITES = ("noise", "df")  # of `observe`
START = {"noise": 5e-3, "df_above_1": 5.0}


def predict(
    log_curve: Callable[..., Any],
    draws: dict[str, np.ndarray],
    meta: dict[str, Any],
    query: dict[str, np.ndarray],
    noise: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """`mean_loss` (the curve) and `loss` (of a new run: noise included): [draw, query].

    log_curve(numpy, p, x): ln L of a law, p: its draws [draw, 1], x: as `coordinates` gives them. query: column ->
    [query]. noise: standard-normal scores, one a draw, under `loss`.
    """
    p = {site: values[:, None] for site, values in draws.items()}
    mean = np.exp(log_curve(np, p, coordinates(query, meta["center"])))
    residual = draws["noise"] * t.ppf(norm.cdf(noise["loss"]), draws["df"])
    return {"mean_loss": mean, "loss": mean * np.exp(residual)[:, None]}
