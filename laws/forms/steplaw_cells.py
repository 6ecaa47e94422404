"""The runs that Step Law is fitted to: cells of one size, budget, sparsity and recipe, as arrays for the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from laws.errors import FitError

# Runs modelled: log loss within WINDOW of the cell's best, and the best KEEP_AT_LEAST: far from the optimum no simple
# form holds, and the answer does not depend on it.
WINDOW, KEEP_AT_LEAST = 0.02, 12
MAX_EXCESS = 0.1  # of log loss: beyond this a run has not trained
MIN_CELLS, MIN_LRS = 3, 4
MOST = 400  # runs modelled a cell; of more, evenly many over the ranks of their losses


@dataclass(frozen=True)
class Cell:
    """The runs of one cell, best first."""

    params: float
    tokens: float
    sparsity: float  # ln (active parameters / params): 0 for a dense model
    recipe: str
    lr: np.ndarray  # ln, as is batch
    batch: np.ndarray
    log_loss: np.ndarray
    lost_lr: np.ndarray  # of the runs that diverged
    lost_batch: np.ndarray

    @property
    def modelled(self) -> np.ndarray:
        """Which runs are near enough to the optimum: bool [run]."""
        excess, rank = self.log_loss - self.log_loss[0], np.arange(len(self.log_loss))
        near = (excess < WINDOW) | (rank < KEEP_AT_LEAST)
        near &= (excess < MAX_EXCESS) | (rank < MIN_LRS)
        return near & (rank % -(-near.sum() // MOST) == 0)

    @property
    def settings(self) -> dict[str, int]:
        """Distinct learning rates and batch sizes, rounding differences (0.000345, 0.0003453) apart."""
        return {name: len(np.unique(np.round(getattr(self, name) * 12))) for name in ("lr", "batch")}


def prepare(
    runs: pd.DataFrame, target: str, diverged: pd.DataFrame | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays for the model, facts for the posterior's meta) from finished runs with a target loss.

    A cell is one (params, tokens), and params_active and recipe where the table has them: runs without params_active
    are of dense models. Cells with fewer than 4 learning rates are left out; in the others the runs within 2% of the
    best (and the best 12) are used, and those that `diverged` (400 at most), as losses above the best.
    Raises FitError where fewer than 3 cells remain.
    """
    everything = []
    table = _with_keys(runs, ["lr", "batch_tokens", target])
    lost = {} if diverged is None else dict(list(_with_keys(diverged, ["lr", "batch_tokens"]).groupby(KEYS)))
    for key, group in table.sort_values(target, kind="stable").groupby(KEYS):
        logs = [np.log(group[c].to_numpy()) for c in ("lr", "batch_tokens", target)]
        gone = lost.get(key, table[:0])
        logs += [np.log(gone[c].to_numpy()[:: -(-len(gone) // MOST) or 1]) for c in ("lr", "batch_tokens")]
        everything.append(Cell(*group.iloc[0][KEYS], *logs))
    cells = [cell for cell in everything if cell.settings["lr"] >= MIN_LRS]
    if len(cells) < MIN_CELLS:
        raise FitError(
            f"steplaw needs at least {MIN_CELLS} (params, tokens) cells with {MIN_LRS} or more learning rates each; "
            f"these runs have {len(cells)} (and {len(everything) - len(cells)} with fewer rates): sweep the learning "
            "rate at more sizes or budgets"
        )
    if all(np.ptp(cell.log_loss) < 1e-9 for cell in cells):
        raise FitError(
            f"steplaw: {target} is the same whatever the learning rate, in every cell: there is no optimum to learn; "
            "check the column"
        )
    ln_N, ln_D = np.log([c.params for c in cells]), np.log([c.tokens for c in cells])
    used = [cell.modelled for cell in cells]
    data: dict[str, Any] = {
        "lr": _rectangle([c.lr[u] for c, u in zip(cells, used)]),
        "batch": _rectangle([c.batch[u] for c, u in zip(cells, used)]),
        "log_loss": _rectangle([c.log_loss[u] for c, u in zip(cells, used)]),
        "used": np.arange(max(u.sum() for u in used)) < np.array([u.sum() for u in used])[:, None],
        "n": ln_N - ln_N.mean(),
        "d": ln_D - ln_D.mean(),
        "ln_N": ln_N.mean(),
        "ln_D": ln_D.mean(),
        "floor": np.array([c.log_loss[0] for c in cells]),
        "spread": np.array([max(np.ptp(c.log_loss[u]), 1e-4) for c, u in zip(cells, used)]),
    }
    sparsity = np.array([c.sparsity for c in cells])
    if np.any(sparsity):
        data |= {"s": sparsity - sparsity.mean(), "ln_S": sparsity.mean()}
    for name in ("lr", "batch"):
        tried = [getattr(c, name) for c in cells]
        data[f"{name}_mid"] = np.mean([(x.min() + x.max()) / 2 for x in tried])
        data[f"{name}_half"] = max(np.ptp(np.concatenate(tried)) / 2, 1.0)
    if any(len(c.lost_lr) for c in cells):
        n_lost = np.array([len(c.lost_lr) for c in cells])
        data["lost"] = np.arange(n_lost.max()) < n_lost[:, None]
        for name in ("lr", "batch"):
            rows = [getattr(c, f"lost_{name}") if n else getattr(c, name)[:1] for c, n in zip(cells, n_lost)]
            data[f"lost_{name}"] = _rectangle(rows)
    # Variants of the model go by the presence of a key, which is known when the program is compiled.
    settings = np.array([list(c.settings.values()) for c in cells])
    if np.median(settings, axis=0).min() >= 5 and np.median([u.sum() for u in used]) >= 25:
        data |= {"rich": np.array(1.0), "third": np.array(1.0)}
    if np.sum(settings[:, 1] > 1) >= MIN_CELLS:
        data["batch_swept"] = np.array(1.0)
    return data, {
        "rich": "rich" in data,
        "batch_swept": "batch_swept" in data,
        "center": {name: float(data[name]) for name in ("ln_N", "ln_D", "ln_S") if name in data},
        "cells": len(cells),
        "rows_used": int(data["used"].sum()),
        "censored": int(np.sum(data.get("lost", 0))),
        **_of_sparse(cells),
        "notes": _notes(cells, len(everything) - len(cells), settings),
    }


KEYS = ["params", "tokens", "sparsity", "recipe"]  # of a cell


def _with_keys(runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """KEYS and `columns` of the runs."""
    table = pd.DataFrame({c: runs[c].to_numpy(float) for c in ("params", "tokens", *columns)})
    active = runs["params_active"].fillna(runs["params"]) if "params_active" in runs else runs["params"]
    table["sparsity"] = np.log(active.to_numpy(float) / table["params"])
    return table.assign(recipe=np.asarray(runs.get("recipe", "")))


def _of_sparse(cells: list[Cell]) -> dict[str, Any]:
    """`optional`: columns that a prediction may be given, with their ranges; `active_share`: of params, its range."""
    if not any(c.sparsity for c in cells):
        return {"optional": {}}
    share = np.exp([c.sparsity for c in cells])
    active = share * [c.params for c in cells]
    return {
        "optional": {"params_active": [float(active.min()), float(active.max())]},
        "active_share": [float(share.min()), float(share.max())],
    }


def _rectangle(rows: list[np.ndarray]) -> np.ndarray:
    """[cell, run], short rows repeated (and masked): plain broadcasts are faster than gathers."""
    width = max(map(len, rows))
    return np.stack([np.resize(row, width) for row in rows])


def _notes(cells: list[Cell], small: int, settings: np.ndarray) -> list[str]:
    notes = []
    if small:
        notes.append(f"{small} cells with fewer than {MIN_LRS} learning rates were left out")
    swept = int(np.sum(settings[:, 1] > 1))
    if swept < MIN_CELLS:
        notes.append(
            f"batch size varies in {swept} of {len(cells)} cells: the batch law is its prior, not learnt from these "
            "runs, and the learning rate is the best at the batch sizes tried"
        )
    if len({c.params for c in cells}) < 2:
        notes.append("one model size only: the exponents of N are set by their prior")
    if len({c.tokens for c in cells}) < 2:
        notes.append("one token budget only: the exponents of D are set by their prior")
    if cells[0].sparsity and len({round(c.sparsity, 2) for c in cells}) < 2:
        share = np.exp(cells[0].sparsity)
        notes.append(f"one active share of params only ({share:.2g}): the exponents of S are set by their prior")
    tried = [np.append(c.lr, c.lost_lr) for c in cells]
    edge = sum(c.lr[0] in (lr.min(), lr.max()) for c, lr in zip(cells, tried))
    if edge:
        notes.append(f"the best run has the smallest or largest learning rate tried in {edge} of {len(cells)} cells")
    return notes
