"""How far off would a law have been? Hold out the largest scales, fit the rest, predict what was held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from laws import forms, tuning
from laws.errors import FitError, InputError
from laws.fitting import fit
from laws.forms.grid import best_per_cell, relative_error
from laws.posterior import Posterior, Prediction, Quantity, edges, scores
from laws.runs import counted, finished, require
from laws.splits import FRACTION, held_out

LEVELS = (0.5, 0.8, 0.9, 0.95)
LEVEL = 0.9  # of the table's intervals and of `width`


@dataclass(frozen=True)
class Backtest:
    """A hold-out of the largest scales.

    error: of a loss law, the mean absolute relative error of the predicted median; of steplaw, the mean regret: by how
    much the loss of the tried (lr, batch) nearest to the predicted one, in the logarithms, exceeds the cell's best,
    relatively. coverage: "0.5", "0.8", "0.9", "0.95" -> fraction of measurements inside that central predictive
    interval; of steplaw the measurements are the best lr and batch size that each cell tried, and what is predicted is
    which of those tried would end best, runs' noise included (on a grid, so intervals hold a little more than their
    share).
    width: mean width of the 90% intervals relative to the measurement.
    table: a row a measurement: params, tokens, quantity, measured, median, low, high (90%), inside; steplaw: regret.
    posterior: fitted to the runs that were kept.
    """

    law: str
    heldout: str
    target: str
    error: float
    coverage: dict[str, float]
    width: float
    table: pd.DataFrame
    posterior: Posterior

    def summary(self) -> dict[str, Any]:
        """What fits in JSON: law, heldout, error, coverage, width, cells, and by what losses were tuned."""
        return {
            "law": self.law,
            "heldout": self.heldout,
            "target": self.target,
            "error": self.error,
            "coverage": self.coverage,
            "width": self.width,
            "cells": len(self.table.loc[:, :"quantity"].iloc[:, :-1].drop_duplicates()),
        } | {key: self.posterior.meta[key] for key in ("tuned_by",) if key in self.posterior.meta}


def backtest(
    law: str,
    runs: Any,
    *,
    heldout: str = "params",
    fraction: float | None = None,
    target: str = "loss",
    recipe: str | None = None,
    size: str = "params",
    tuned_by: Any = None,
    seed: int = 0,
    **options: Any,
) -> Backtest:
    """Fits `law` without the largest scales and predicts them.

    heldout: "params", the largest model sizes (`fraction` of the distinct sizes, a fifth by default, at least one), or
    "compute", the (params, tokens) cells of most compute 6 N D (a quarter by default). Loss laws are judged at the best
    run of each cell; steplaw by its cells that tried four learning rates or more. size, tuned_by: as `laws.fit` has
    them; what is held out is then as `laws.tuned` has it, too. options: of `laws.fit`.
    Raises InputError for a bad argument or table, FitError if what is left is too little for the law.
    """
    form = forms.get(law)
    if heldout not in FRACTION:
        raise InputError(f"heldout must be 'params' or 'compute', got {heldout!r}")
    share = FRACTION[heldout] if fraction is None else fraction
    if not (isinstance(share, (int, float, np.number)) and 0 < share < 1):
        raise InputError(f"fraction must be between 0 and 1, got {share!r}; give 0.2 to hold out a fifth")
    tuning.refuse(law, tuned_by)
    table = counted(tuning.read(runs, target, recipe, tuned_by), size)
    table = require(table, ("params", "tokens", target, *form.COLUMNS), law)
    keys = ["params", "tokens", *form.COVARIATES]
    if law == "steplaw" and "params_active" in table:  # cells of mixtures of experts differ by it; dense rows lack it
        keys.append("params_active")
        table = table.assign(params_active=table["params_active"].fillna(table["params"]))
    done = finished(table)
    done = done[np.isfinite(done[target])]
    cells = _judged(law, done, target, keys)
    _, out, words = held_out(cells, heldout, share, law)
    if heldout == "params":
        kept = table[table["params"] < out["params"].min()]
    else:
        kept = table[~_in(table, out, keys)]
    kept = kept.reset_index(drop=True)
    kept.attrs = dict(table.attrs)
    if kept.empty:
        raise FitError(f"{law}: no runs are left with {words} held out: give runs of smaller models too")
    try:
        posterior = fit(law, kept, target=target, size=size, seed=seed, **options)
    except FitError as error:
        raise FitError(f"with {words} held out, {error}") from None
    judge = _judge_optimum if law == "steplaw" else _judge_loss
    rows, hits = judge(posterior, out, done, target, keys)
    if law == "steplaw":
        off = rows.drop_duplicates(keys)["regret"]
    else:
        off = (rows["median"] / rows["measured"] - 1).abs()
    return Backtest(
        law=law,
        heldout=heldout,
        target=target,
        error=float(off.mean()),
        coverage={f"{level:g}": float(np.mean(hit)) for level, hit in hits.items()},
        width=float(((rows["high"] - rows["low"]) / rows["measured"]).mean()),
        table=rows,
        posterior=posterior,
    )


def _judged(law: str, done: pd.DataFrame, target: str, keys: list[str]) -> pd.DataFrame:
    """The cells that can be held out: `keys` and the best target."""
    if law != "steplaw":
        return best_per_cell(done, target, keys[2:])
    from laws.forms.steplaw import MIN_LRS

    swept = done.groupby(keys)["lr"].transform("nunique") >= MIN_LRS
    if not swept.any():
        raise FitError(
            f"steplaw: no (params, tokens) cell tried {MIN_LRS} learning rates: sweep the rate at some sizes"
        )
    return best_per_cell(done[swept], target, keys[2:])


def _in(table: pd.DataFrame, cells: pd.DataFrame, keys: list[str]) -> np.ndarray:
    return pd.MultiIndex.from_frame(table[keys]).isin(pd.MultiIndex.from_frame(cells[keys]))


def _asked(posterior: Posterior, cells: pd.DataFrame, keys: list[str]) -> Prediction:
    """The posterior's prediction for the cells, by what it can be asked for."""
    known = {"params", "tokens", *forms.get(posterior.law).COVARIATES, *posterior.meta.get("optional", ())}
    query: dict[str, Any] = {key: cells[key].to_numpy() for key in keys if key in known}
    return posterior.predict(**query)


Judged = tuple[pd.DataFrame, dict[float, np.ndarray]]


def _judge_loss(posterior: Posterior, cells: pd.DataFrame, done: pd.DataFrame, target: str, keys: list[str]) -> Judged:
    loss = _asked(posterior, cells, keys).loss
    measured = cells[target].to_numpy()
    if (error := relative_error(cells, target)) is not None:  # what is known of the measurement's
        loss = Quantity(loss.draws * np.exp(error * scores(len(loss.draws), "error")[:, None]))
    rows = cells[keys].assign(quantity=target, **_columns(loss, measured))
    return rows, {level: _inside(loss, measured, level) for level in LEVELS}


def _judge_optimum(
    posterior: Posterior, cells: pd.DataFrame, done: pd.DataFrame, target: str, keys: list[str]
) -> Judged:
    predicted = _asked(posterior, cells, keys)
    groups = done.groupby(keys)
    tried = [groups.get_group(tuple(cell)) for cell in cells[keys].to_numpy()]
    best = pd.DataFrame([runs.iloc[int(np.argmin(runs[target]))] for runs in tried])
    # Runs that diverged have no loss: the nearest run is sought among those that finished.
    nearest = [
        runs.iloc[int(np.argmin(np.log(runs["lr"] / lr) ** 2 + np.log(runs["batch_tokens"] / batch) ** 2))]
        for runs, lr, batch in zip(tried, predicted.lr.median, predicted.batch_tokens.median)
    ]
    regret = np.array([run[target] for run in nearest]) / best[target].to_numpy() - 1
    expected = [_best_tried(posterior, runs, keys) for runs in tried]
    rows: list[pd.DataFrame] = []
    hits: dict[float, list[np.ndarray]] = {level: [] for level in LEVELS}
    for quantity in ("lr", "batch_tokens"):
        answer = _Tried(np.stack([draws[quantity] for draws in expected], axis=1))
        measured = best[quantity].to_numpy()
        varied = np.array([runs[quantity].nunique() > 1 for runs in tried])
        columns = cells[keys].assign(quantity=quantity, **_columns(answer, measured), regret=regret)
        rows.append(columns[varied])
        for level in LEVELS:
            hits[level].append(_inside(answer, measured, level)[varied])
    table = pd.concat(rows).sort_values(keys, kind="stable").reset_index(drop=True)
    return table, {level: np.concatenate(hit) for level, hit in hits.items()}


class _Tried(Quantity):
    """Settings that were tried: so are its quantiles."""

    @property
    def median(self) -> Any:
        return np.quantile(self.draws, 0.5, axis=0, method="inverted_cdf")

    def interval(self, level: float = 0.9) -> tuple[Any, Any]:
        low, high = np.quantile(self.draws, edges(level), axis=0, method="inverted_cdf")
        return low, high


def _best_tried(posterior: Posterior, runs: pd.DataFrame, keys: list[str]) -> dict[str, np.ndarray]:
    """lr and batch_tokens, [draw] each, of the run of one cell that a draw of the law and of the runs' noise has end
    best. To compare the law's optimum itself with the best run would blame it for the grid and for luck."""
    known = {"params", "tokens", "lr", "batch_tokens", *posterior.meta.get("optional", ())}
    above = tuning.excess(posterior, {c: runs[c].to_numpy(float) for c in (*keys, "lr", "batch_tokens") if c in known})
    d = {site: posterior.draws[site][:, None] for site in ("noise", "form_error", "df")}
    luck = np.random.default_rng(0).standard_t(d["df"], above.shape) * np.hypot(d["noise"], d["form_error"] * above)
    won = np.argmin(above + luck, axis=1)
    return {quantity: runs[quantity].to_numpy(float)[won] for quantity in ("lr", "batch_tokens")}


def _columns(answer: Any, measured: np.ndarray) -> dict[str, Any]:
    low, high = answer.interval(LEVEL)
    return {
        "measured": measured,
        "median": answer.median,
        "low": low,
        "high": high,
        "inside": _inside(answer, measured, LEVEL),
    }


def _inside(answer: Any, measured: np.ndarray, level: float) -> np.ndarray:
    low, high = answer.interval(level)
    return (low <= measured) & (measured <= high)
