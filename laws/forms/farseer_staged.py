"""Farseer's own point estimate: differences in D, then grids over exponents with closed-form least squares.

Appendix C of arXiv 2506.10972 as the authors' code has it: no optimiser, every (a, b) by ordinary least squares at each
exponent of a grid. On the paper's 337 runs it gives back the paper's table to every printed digit. It needs what their
data have: token budgets in steps of sqrt 2, and one loss for each (params, tokens).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from laws.errors import FitError
from laws.forms import grid

MIN_PAIRS, MIN_SIZES = 5, 4
FINE = np.round(np.concatenate([np.arange(-5000, 0), np.arange(1, 5001)]) * 1e-4, 4)
COARSE = np.round(np.concatenate([np.arange(-500, 0), np.arange(1, 501)]) * 1e-3, 3)


def fit(runs: pd.DataFrame, target: str) -> dict[str, float]:
    """{"a1", "alpha", "b1", "a2", "beta", "b2", "a3", "gamma", "b3"} of L = exp(a3 N^gamma + b3)
    + exp(a2 N^beta + b2) D^(-exp(a1 N^alpha + b1)).

    runs: columns params, tokens and `target`. Raises FitError with fewer than 4 sizes that have 5 pairs of budgets a
    factor sqrt 2 apart, the loss falling from the smaller to the larger.
    """
    pairs = _differences(grid.best_per_cell(runs, target), target)
    sizes = np.unique(pairs["params"])
    if len(sizes) < MIN_SIZES:
        raise FitError(
            f"farseer's staged fit needs {MIN_SIZES} model sizes with {MIN_PAIRS} pairs of token budgets a factor "
            f"1.35 to 1.45 apart; these runs have {len(sizes)}: use laws.fit('farseer', ...) instead"
        )
    of = np.searchsorted(sizes, pairs["params"])
    D, ratio, drop = (pairs[c].to_numpy() for c in ("tokens", "ratio", "drop"))

    # Stage 1: A and B of each size, from the regression of the differences on the larger D.
    lines = [np.polyfit(np.log10(D[of == i]), np.log10(drop[of == i]), 1) for i in range(len(sizes))]
    A = np.array([-slope for slope, _ in lines])
    B = np.array([10**intercept for _, intercept in lines]) / (np.sqrt(2) ** A - 1)

    def error(A_of_N: np.ndarray, B_of_N: np.ndarray) -> np.ndarray:
        """Mean relative error of the differences, for rows of candidates [candidate, size]."""
        a, b = A_of_N[:, of], B_of_N[:, of]
        return np.mean(np.abs(b * (ratio**a - 1) * D**-a / drop - 1), axis=1)

    # Stage 2: exponents of A and B, in turns.
    curves_A, curves_B = _curves(FINE, sizes, A), _curves(FINE, sizes, B)
    allowed = (curves_B[1] > 0) & (FINE < 0)
    best_A = int(np.argmin(np.mean(np.abs(curves_A[0] / A - 1), axis=1)))

    def choose_B(k: int) -> int:
        return int(np.argmin(np.where(allowed, error(curves_A[0][[k]], curves_B[0]), np.inf)))

    best_B = choose_B(best_A)
    best_A = int(np.argmin(error(curves_A[0], curves_B[0][[best_B]])))
    best_B = choose_B(best_A)

    # Stage 3: what the second term leaves, on the rows that were differenced.
    left = pairs[target].to_numpy() - curves_B[0][best_B][of] * D ** -curves_A[0][best_A][of]
    curves = _curves(COARSE, pairs["params"].to_numpy(), left)
    best_L = int(np.argmin(np.mean(np.abs(curves[0] / left - 1), axis=1)))
    out: dict[str, float] = {}
    for names, exponents, (_, a, b), k in (
        (("a1", "alpha", "b1"), FINE, curves_A, best_A),
        (("a2", "beta", "b2"), FINE, curves_B, best_B),
        (("a3", "gamma", "b3"), COARSE, curves, best_L),
    ):
        out |= dict(zip(names, (float(a[k]), float(exponents[k]), float(b[k]))))
    return out


def loss(p: dict[str, float], params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """L(N, D) by the coefficients that `fit` gives."""
    A = np.exp(p["a1"] * params ** p["alpha"] + p["b1"])
    floor = np.exp(p["a3"] * params ** p["gamma"] + p["b3"])
    return floor + np.exp(p["a2"] * params ** p["beta"] + p["b2"] - A * np.log(tokens))


def _differences(best: pd.DataFrame, target: str) -> pd.DataFrame:
    """One row a pair of neighbouring budgets: the larger's tokens and loss, the ratio of budgets, the drop of loss."""
    before = best.groupby("params")[["tokens", target]].shift()
    pairs = best.assign(ratio=best["tokens"] / before["tokens"], drop=before[target] - best[target])
    pairs = pairs[pairs["ratio"].between(1.35, 1.45) & (pairs["drop"] > 0)]
    return pairs[pairs.groupby("params")["drop"].transform("size") >= MIN_PAIRS]


def _curves(exponents: np.ndarray, N: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """exp(a N^p + b) by least squares on ln y for each p: (curves [p, N], a [p], b [p])."""
    x = N[None, :] ** exponents[:, None]
    deviation = x - x.mean(axis=1, keepdims=True)
    a = deviation @ np.log(y) / np.sum(deviation**2, axis=1)
    b = np.log(y).mean() - a * x.mean(axis=1)
    return np.exp(a[:, None] * x + b[:, None]), a, b
