"""What the laws of the loss share: the table of best losses per (params, tokens), the likelihood, the predictive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from laws.errors import FitError
from laws.forms.discrepancy import features
from laws.noise import scale

MAX_CELLS = 20_000  # which take minutes
BLOCK = 1000  # points predicted at once: what is computed on the way then stays in the processor's cache


def best_per_cell(runs: pd.DataFrame, target: str, covariates: Sequence[str] = ()) -> pd.DataFrame:
    """One row a (params, tokens) cell: its lowest `target`, the loss of the best learning rate and batch size tried;
    with that run's `run_id` and standard error where runs have them. Of runs that differ only in their `seed` the mean
    counts, and `seeds` says of how many.

    covariates: further columns that tell cells apart. The minimum over noisy runs is biased low by about one noise
    standard deviation where a cell has many near-optimal runs; that bias is common to such cells and is absorbed by
    the noise.
    """
    keys = ["params", "tokens", *covariates]
    runs = over_seeds(runs.reset_index(drop=True), target, keys)
    columns = [*keys, target, *(c for c in ("run_id", "seeds", f"{target}_se") if c in runs)]
    return runs.loc[runs.groupby(keys, sort=True)[target].idxmin(), columns].reset_index(drop=True)


def over_seeds(runs: pd.DataFrame, target: str, keys: list[str]) -> pd.DataFrame:
    """`runs`, those that differ only in their seed as one row with their mean loss and its standard error."""
    if "seed" not in runs:
        return runs
    settings = [*keys, *(c for c in ("lr", "batch_tokens") if c in runs)]
    group = runs.groupby(settings, dropna=False)
    seeds = group["seed"].transform("nunique")
    repeated = (seeds > 1) & (seeds == group["seed"].transform("size"))
    columns = {target: group[target].transform("mean").where(repeated, runs[target])}
    if (error := f"{target}_se") in runs:
        squares = (runs[error] ** 2).groupby([runs[c] for c in settings], dropna=False).transform("sum")
        columns[error] = (np.sqrt(squares) / seeds).where(repeated, runs[error])
    kept = ~repeated | ~runs.duplicated(settings)
    return runs.assign(**columns, seeds=seeds.where(repeated, 1))[kept].reset_index(drop=True)


def relative_error(cells: pd.DataFrame, target: str) -> np.ndarray | None:
    """What is known of the error of ln `target`, [cell]; None where the table says nothing."""
    if (error := f"{target}_se") not in cells:
        return None
    known = (cells[error] / cells[target]).fillna(0.0).to_numpy(float)
    return known if known.any() else None


def _checkpoints(best: pd.DataFrame) -> dict[str, np.ndarray]:
    """{"run": index [cell]} where cells are checkpoints of fewer runs: of one size and run_id."""
    if "run_id" not in best or best["run_id"].isna().any():
        return {}
    run = best.groupby(["params", "run_id"]).ngroup().to_numpy()
    return {"run": run} if len(np.unique(run)) < len(run) else {}


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
    than `sizes` distinct params or `budgets` distinct tokens (a size counts as often as it is trained), more than
    MAX_CELLS, or if the loss does not vary.

    The arrays are those of `coordinates`, `log_loss` and `ln_L`, its mean; `run` where cells are checkpoints, `seeds`
    where there are several, `error` where the losses' standard errors are known."""
    best = best_per_cell(runs, target, covariates)
    n_sizes, n_budgets = best["params"].nunique(), best["tokens"].nunique()
    if len(best) < parameters + 2 or n_sizes < sizes or n_budgets < budgets:
        raise FitError(
            f"{law} needs at least {parameters + 2} (params, tokens) cells with {sizes} model sizes and {budgets} "
            f"token budgets; these runs have {len(best)} cells, {n_sizes} sizes and {n_budgets} budgets: train more of "
            "what is short"
        )
    if len(best) > MAX_CELLS:
        raise FitError(
            f"{law}: {len(best)} (params, tokens) cells, and at most {MAX_CELLS} are fitted in reasonable time: keep "
            "the last loss of each run, not every checkpoint, or a sample of them"
        )
    loss = best[target].to_numpy(float)
    if np.ptp(loss) < 1e-9 * loss.max():
        raise FitError(
            f"{law}: {target} is {loss[0]:.6g} in every cell; a law of a constant says nothing: check the column"
        )
    columns = {c: best[c].to_numpy(float) for c in ("params", "tokens", *covariates)}
    center = {_center(c): float(np.log(x).mean()) for c, x in columns.items() if c != "recipe"}
    data = coordinates(columns, center) | _checkpoints(best)
    if "seeds" in best:
        data["seeds"] = best["seeds"].to_numpy(float)
    if (error := relative_error(best, target)) is not None:
        data["error"] = error
    data |= {"log_loss": np.log(loss), "ln_L": np.log(loss).mean()}
    notes = _rising(data) + _unfinished(runs)
    return data, {"center": center, "cells": len(best), "rows_used": len(best), "notes": notes}


def _rising(data: dict[str, Any]) -> list[str]:
    """A sentence for each of params and tokens with which the loss rises: by least squares, 3 standard errors."""
    X = np.stack([np.ones_like(data["n"]), data["n"], data["d"]], axis=1)
    inverse = np.linalg.pinv(X.T @ X)
    slopes = inverse @ X.T @ data["log_loss"]
    variance = np.mean((data["log_loss"] - X @ slopes) ** 2) * np.diag(inverse)
    return [
        f"the loss rises with {column}, which no law does: are columns mixed up, or larger runs badly tuned? "
        "Predictions beyond these runs are not to be trusted"
        for column, k in (("params", 1), ("tokens", 2))
        if slopes[k] > 3 * np.sqrt(variance[k])
    ]


def _unfinished(runs: pd.DataFrame) -> list[str]:
    early = int((runs["portion"] < 0.99).sum()) if "portion" in runs else 0
    if not early:
        return []
    return [
        f"{early} of {len(runs)} rows are checkpoints before the end of their schedule (portion below 1): unless the "
        "learning rate was constant or had decayed, their loss lies above that of a run which ends there"
    ]


def coordinates(columns: dict[str, np.ndarray], center: dict[str, float]) -> dict[str, Any]:
    """What a law's curve is a function of: `n` and `d`, ln params and ln tokens less their centres `ln_N` and `ln_D`,
    which are there too; a covariate c likewise under its own name, its centre under `ln_c`; `recipe`, an index, as it
    is."""
    logs = {_SHORT.get(c, c): np.log(x) - center[_center(c)] for c, x in columns.items() if c != "recipe"}
    return logs | {c: x for c, x in columns.items() if c == "recipe"} | center


_SHORT = {"params": "n", "tokens": "d"}


def _center(column: str) -> str:
    return {"params": "ln_N", "tokens": "ln_D"}.get(column, f"ln_{column}")


def logaddexp(xp: Any, a: Any, b: Any) -> Any:
    """ln(exp a + exp b); xp is numpy or jax.numpy. numpy's own takes one number at a time, several times slower."""
    if xp is not np:
        return xp.logaddexp(a, b)
    return np.maximum(a, b) + np.log1p(np.exp(-np.abs(a - b)))


def observe(log_curve: Any, data: dict[str, Any]) -> None:
    """numpyro: log losses lie about the curve with form error (`laws.forms.discrepancy`, integrated out) and noise.

    data: of `prepare`, and what `laws.rows` adds to it.
    """
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    from laws.covariance import inverse

    noise = numpyro.sample("noise", dist.LogNormal(np.log(4e-3), 1.0))
    shares = dist.Categorical(data.get("shares", SHARES))
    form_error = numpyro.sample("form_error", dist.MixtureSameFamily(shares, dist.LogNormal(*SIZES)))
    if "own" in data:  # losses have known errors
        covariance = noise**2 * data["own"] + data["known"] + form_error**2 * data["form"]
        residual = jnp.where(data["there"], data["log_loss"] - log_curve, 0.0)
        precision, logs = inverse(covariance)
        numpyro.factor("log_loss", -data["power"] * (residual @ precision @ residual + logs) / 2)
        return
    if "root" in data:  # nodes stand for the cells
        whitened = data["seen"] - data["root"] @ log_curve
    else:
        whitened = data["root_precision"] * (data["log_loss"] - log_curve)
    if "share" in data:  # checkpoints: out with what the rows of a run have in common
        common = jnp.zeros_like(whitened).at[data["run"]].add(data["share"] * whitened)
        whitened = whitened - data["share"] * common[data["run"]]
    along, apart = data["project"].T @ whitened + data.get("along", 0.0), data.get("apart", 0.0)
    variance = data["known"] * noise**2 + form_error**2 * data["spread"]
    # Coordinates along the features have `variance`; `rest` others noise^2. Padding adds zeros to `along` and `spread`.
    others = jnp.maximum(jnp.sum(whitened**2) + apart - jnp.sum(along**2), 0.0)  # rounding can take it below
    squares = jnp.sum(along**2 / variance) + others / noise**2
    logs = jnp.sum(jnp.log(variance)) + data["rest"] * 2 * jnp.log(noise)
    numpyro.factor("log_loss", -(squares + logs) / 2)


# Form error: what 20 published tables show, 1.5% give or take a factor 2; or, one time in five, next to none, so that a
# form which is true may be found to be.
SHARES = np.array([0.8, 0.2])
SOME = np.array([1 - 1e-9, 1e-9])  # that there is some: for a joint mode, which none would draw to itself
SIZES = np.log([1.5e-2, 1e-3]), np.array([0.7, 1.0])
SITES = ("noise", "form_error")  # of `observe`
START = {"noise": 5e-3, "form_error": 5e-3}


def predict(
    log_curve: Callable[..., Any],
    draws: dict[str, np.ndarray],
    meta: dict[str, Any],
    query: dict[str, np.ndarray],
    noise: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """`mean_loss` (the law and its form error) and `loss` (of a new run: noise included): [draw, query].

    log_curve(numpy, p, x): ln L of a law, p: its draws [draw, 1], x: as `coordinates` gives them. query: column ->
    [query]. noise: standard-normal scores, one a draw, under `loss`.
    """
    p = {site: values[:, None] for site, values in draws.items() if values.ndim == 1}
    x = coordinates(query, meta["center"])
    residual = (draws["noise"] * t.ppf(norm.cdf(noise["loss"]), meta["tails"]))[:, None]
    points = len(x["n"])
    dtype = np.float32 if points > BLOCK else np.float64  # of the form error of many: 1e-7 of the loss off at most
    weights = draws.get("discrepancy", np.zeros(0)).astype(dtype)
    out = {name: np.empty((len(residual), points)) for name in ("mean_loss", "loss")}
    for block in (slice(first, first + BLOCK) for first in range(0, points, BLOCK)):
        here = {axis: values[block] if np.shape(values) == (points,) else values for axis, values in x.items()}
        log_loss = log_curve(np, p, here)
        if "discrepancy" in draws:  # absent where the form was taken for true
            log_loss = log_loss + weights @ features(meta["domain"], here, dtype).T
        np.exp(log_loss, out=out["mean_loss"][:, block])
        np.exp(log_loss + residual * scale(meta, here), out=out["loss"][:, block])
    return out
