"""How runs scatter about the curve: Student-t tails, noise that changes with compute, and what the checkpoints of one
run have in common.

    residual = noise (u[run] + scale e),   u ~ Normal(0, sqrt(shared)),   ln scale = trend (ln C - mean ln C)

e is Student-t: a normal whose precision is drawn run by run, so that a run that lies far off counts for little. Tails,
trend and `shared` are found by `laws.rows`. Where a run's standard error is known, its square adds to the variance of
scale e. Plain numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from scipy.stats import gamma
from scipy.stats import t as student

from laws.forms import discrepancy

TAILS = np.geomspace(1.2, 40.0, 40)  # degrees of freedom tried
TRENDS, TREND_SD = np.linspace(-0.6, 0.6, 61), 0.1  # tried, per e-fold of compute; a priori a fifth a decade or two
COARSE = 4  # every so many of them are tried first, then those about the best
SHARED = np.array([0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0])  # tried
NAMED = 3  # outliers in a sentence
AXES = {"params": "N", "params_active": "active N", "tokens": "D", "n_experts": "experts"}  # labels in it
Groups = tuple[np.ndarray, np.ndarray]


def compute(x: dict[str, Any], bounds: list[float]) -> np.ndarray:
    """ln N + ln D less its mean, within the data's bounds: beyond them noise stays as it is there."""
    low, high = bounds
    return np.clip(np.asarray(x["n"]) + np.asarray(x["d"]), low, high)


def scale(meta: dict[str, Any], x: dict[str, Any]) -> np.ndarray:
    """Standard deviation of a run of its own at `x` (of `grid.coordinates`), in units of `noise`: [query]."""
    how = meta.get("scatter", {"trend": 0.0, "bounds": [0.0, 0.0], "shared": 0.0})
    return np.sqrt(np.exp(2 * how["trend"] * compute(x, how["bounds"])) + how["shared"])


def tails_and_trend(scaled: np.ndarray, at: np.ndarray, least: float, known: Any = 0.0) -> tuple[float, float]:
    """The likeliest degrees of freedom (at least `least`; a priori around 20, rarely below 2) and trend of squared
    noise in units of `noise`, [row], of runs at ln compute `at`; known: the part of its variance that is, [row]."""
    allowed = TAILS[least <= TAILS]

    def best(tails: np.ndarray, trends: np.ndarray) -> tuple[float, float]:
        sizes = np.sqrt(np.exp(2 * trends[:, None] * at) + known)
        fits = (student.logpdf(np.sqrt(scaled) / sizes, tails[:, None, None]) - np.log(sizes)).sum(axis=2)
        fits += gamma.logpdf(tails[:, None] - 1, 2.0, scale=10.0) - (trends / TREND_SD) ** 2 / 2
        i, j = np.unravel_index(np.argmax(fits), fits.shape)
        return float(tails[i]), float(trends[j])

    tail, trend = best(allowed[::COARSE], TRENDS[::COARSE])
    i, j = np.searchsorted(allowed, tail), np.searchsorted(TRENDS, trend)
    near = (slice(max(0, k - COARSE + 1), k + COARSE) for k in (i, j))
    return best(*(tried[part] for tried, part in zip((allowed, TRENDS), near)))


# --- checkpoints of one run ------------------------------------------------------------------------------------------


def groups(precision: np.ndarray, run: np.ndarray, shared: float) -> Groups:
    """(run index, share) [row] each, with which `whiten` takes out what the rows of a run have in common."""
    total = np.bincount(run, precision)[run]
    factor = (1 - 1 / np.sqrt(1 + shared * total)) / np.where(total > 0, total, 1.0)
    return run, np.sqrt(factor * precision)


def whiten(x: np.ndarray, precision: np.ndarray, grouped: Groups | None) -> np.ndarray:
    """x [row, ...] times the root of the inverse of the noise's covariance in units of noise^2."""
    weighted = np.sqrt(precision).reshape(-1, *[1] * (x.ndim - 1)) * x
    if grouped is None:
        return weighted
    run, share = grouped
    take = sparse.csr_array((share, (run, np.arange(len(run)))))
    return weighted - take.T @ (take @ weighted)


def likeliest_shared(
    residual: np.ndarray, phi: np.ndarray, precision: np.ndarray, run: np.ndarray, noise: float, form_error: float
) -> float:
    """The likeliest of SHARED, the noise refitted with each; a priori as likely as 1 / (1 + shared)."""
    fits = []
    totals = np.bincount(run, precision)
    for shared in SHARED:
        grouped = groups(precision, run, shared)
        Q, s = discrepancy.rotate(whiten(phi, precision, grouped))
        y = whiten(residual, precision, grouped)
        along = Q.T @ y
        v = (noise * np.geomspace(0.1, 1.5, 40)[:, None]) ** 2
        variance = v + (form_error * s) ** 2
        squares = (along**2 / variance).sum(axis=1) + (y @ y - along @ along) / v[:, 0]
        logs = np.log(variance).sum(axis=1) + (len(y) - len(s)) * np.log(v[:, 0]) + np.log1p(shared * totals).sum()
        fits.append(np.max(-(squares + logs) / 2) - np.log1p(shared))
    return float(SHARED[int(np.argmax(fits))])


# --- in words --------------------------------------------------------------------------------------------------------


def sentence(noise: float, meta: dict[str, Any]) -> str:
    """What a fit found of its runs' scatter; noise: the median of its draws."""
    how = meta["scatter"]
    parts = [f"runs scatter by {100 * noise:.2g}%"]
    decade = np.exp(how["trend"] * np.log(10.0))
    if not 0.9 < decade < 1.1:
        parts[0] += f" in the middle of these, times {decade:.2g} a decade of compute"
    if how["shared"]:
        parts.append(f"checkpoints of a run are off together, by {100 * noise * np.sqrt(how['shared']):.2g}%")
    if meta["outliers"]:
        named = [
            f"{o['loss']:.4g} at "
            + ", ".join(f"{label} {o[column]:.3g}" for column, label in AXES.items() if column in o)
            for o in meta["outliers"][:NAMED]
        ]
        more = f" and {len(meta['outliers']) - NAMED} more" if len(meta["outliers"]) > NAMED else ""
        parts.append(f"outliers count for little: {'; '.join(named)}{more}")
    return ", ".join(parts)
