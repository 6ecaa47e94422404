"""The Step Law authors' own estimator (arXiv 2503.04715; their `code/fit_tool.py`), as the point of comparison.

In every cell keep the runs whose loss is within 0.25% of the cell's lowest; regress their ln lr on (ln N, ln D) and
their ln batch on ln D by least squares, on 1,000 bootstraps of the kept rows, and average the coefficients. Only the
near-optimal runs count, and all alike: how flat the valley is, and which way it bends, is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from laws.errors import FitError

WITHIN, BOOTSTRAPS = 0.0025, 1000


@dataclass(frozen=True)
class PointFit:
    """lr_draws, batch_draws: (constant, exponent of N, exponent of D) of ln lr* and ln B* (tokens) of every bootstrap,
    [bootstrap, 3]; the exponent of N in batch is 0 unless asked for. lr, batch: their means, [3]. runs: how many were
    kept."""

    lr: np.ndarray
    batch: np.ndarray
    lr_draws: np.ndarray
    batch_draws: np.ndarray
    runs: int

    def predict(self, params: Any, tokens: Any) -> tuple[Any, Any]:
        """(lr, batch_tokens) at N = params, D = tokens: numbers, or arrays that broadcast."""
        n, d = np.log(params), np.log(tokens)
        lr, batch = (np.exp(c[0] + c[1] * n + c[2] * d) for c in (self.lr, self.batch))
        return lr, batch


def fit_points(
    runs: pd.DataFrame,
    target: str = "loss",
    *,
    batch_has_N: bool = False,
    params: str = "params",
    within: float = WITHIN,
    bootstraps: int = BOOTSTRAPS,
    seed: int = 42,
) -> PointFit:
    """The authors' fit of a run table's finished runs (columns params, tokens, lr, batch_tokens, `target`).

    batch_has_N: let the batch size depend on N, which the published law does not. params: the column that is N
    (params_active for the active parameters of sparse models). within: relative excess of loss that counts as
    near-optimal. Raises FitError where the kept runs do not determine the coefficients: fewer than 2 sizes or budgets.
    """
    keys = [c for c in ("params", "tokens", "params_active", "recipe") if c in runs]
    lowest = runs.groupby(keys, dropna=False)[target].transform("min")
    near = runs[runs[target] < (1 + within) * lowest]
    n, d = np.log(near[params].to_numpy(float)), np.log(near["tokens"].to_numpy(float))
    X = np.stack([np.ones_like(n), n, d], axis=1)
    if len(near) < 4 or np.linalg.matrix_rank(X - [0, n.mean(), d.mean()]) < 3:
        raise FitError(
            f"the authors' estimator needs near-optimal runs at several sizes and budgets; these runs have {len(near)} "
            f"within {within:.2%} of their cell's best, {len(np.unique(n))} sizes and {len(np.unique(d))} budgets"
        )
    y = np.log(near[["lr", "batch_tokens"]].to_numpy(float))
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(X), size=(bootstraps, len(X)))
    lr = np.stack([np.linalg.lstsq(X[r], y[r, 0])[0] for r in rows])
    columns = [0, 1, 2] if batch_has_N else [0, 2]
    batch = np.zeros_like(lr)
    batch[:, columns] = np.stack([np.linalg.lstsq(X[r][:, columns], y[r, 1])[0] for r in rows])
    return PointFit(lr.mean(axis=0), batch.mean(axis=0), lr, batch, len(near))
