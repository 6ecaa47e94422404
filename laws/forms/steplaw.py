"""Step Law: the best learning rate and batch size at any scale, from the whole loss surface of every (N, D) cell.

    ln lr* = lr_const    + lr_N ln N    + lr_D ln D            (Li et al. 2025, arXiv 2503.04715)
    ln B*  = batch_const + batch_N ln N + batch_D ln D         (the paper has batch_N = 0; here it is estimated)

The authors regress the near-optimal settings. Here the loss itself is modelled. In cell c,

    ln L = m_c + excess(ln lr - ln lr*_c, ln B - ln B*_c) + noise,

where the cell's own optimum scatters about the law (`lr_sd`, `batch_sd`) and the excess is a sum of three bowls, each
convex in the logs with its minimum at the optimum, so their sum is too:

    excess(u, v) = sum_k kappa_k w_k^2 linex(bend_k w_k),       linex(s) = (exp(s) - 1 - s) / s^2,
    w_1 = u - tilt_1 v   gradient noise: learning rate high for the batch
    w_2 = v              too few steps: batch too large (a parabola: bend_2 = 0)
    w_3 = u + tilt_3 v   instability: learning rate too high whatever the batch

Curvatures kappa vary from cell to cell and with N and D; tilts and bends vary smoothly with ln N and ln D.
Noise is Student-t with its own scale in each cell; the form's own error grows in proportion to the excess
(`form_error`), so that runs far from the optimum weigh less. All priors are weak and in the data's own units: none
holds a published coefficient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from laws.errors import FitError

CITATION = "Li et al. 2025, Predictable Scale: Part I, Step Law, arXiv 2503.04715"
COLUMNS = ("lr", "batch_tokens")
QUANTITIES = ("lr", "batch_tokens")
# Runs modelled: log loss within WINDOW of the cell's best, and the best KEEP_AT_LEAST: far from the optimum no simple
# form holds, and the answer does not depend on it.
WINDOW, KEEP_AT_LEAST = 0.02, 12
MAX_EXCESS = 0.2  # of log loss: beyond this a run has not trained
MIN_CELLS, MIN_LRS = 3, 4
KAPPA_SD, NOISE_SD = 0.3, 0.3  # scatter between cells of ln curvature and of ln noise
HELD = ("lr_sd", "batch_sd")  # a joint mode over these and the cells' deviations is degenerate

LAW = (
    "lr_const",
    "lr_N",
    "lr_D",
    "batch_const",
    "batch_N",
    "batch_D",
    "lr_sd",
    "batch_sd",
    "noise",
    "form_error",
    "df",
)
SHAPE = ("log_kappa", "tilt", "bend")  # at the data's centre (3, 2 and 2 values), with slopes *_N and *_D
SITES = LAW + tuple(f"{name}{slope}" for name in SHAPE for slope in ("", "_N", "_D"))


def linex(xp: Any, s: Any) -> Any:
    """(exp(s) - 1 - s) / s^2, smooth through s = 0; xp is numpy or jax.numpy."""
    s = xp.clip(s, -60.0, 20.0)
    small = xp.abs(s) < 1e-2
    safe = xp.where(small, 1.0, s)
    return xp.where(small, 0.5 + s / 6 + s**2 / 24 + s**3 / 120, (xp.expm1(safe) - safe) / safe**2)


def excess(xp: Any, u: Any, v: Any, log_kappa: Any, tilt: Any, bend: Any) -> Any:
    """Log loss above the optimum's. u, v: ln lr - ln lr*, ln B - ln B*. log_kappa: last axis of 3; tilt, bend: of 2."""
    noisy, unstable = u - tilt[..., 0] * v, u + tilt[..., 1] * v
    k1, k2, k3 = (xp.exp(log_kappa[..., k]) for k in range(3))
    return (
        k1 * noisy**2 * linex(xp, bend[..., 0] * noisy)
        + k2 * v**2 / 2
        + k3 * unstable**2 * linex(xp, bend[..., 1] * unstable)
    )


# --- data ------------------------------------------------------------------------------------------------------------


def prepare(runs: pd.DataFrame, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays for the model, facts for the posterior's meta) from finished runs with a target loss.

    Cells with fewer than 4 learning rates are left out; in the others the runs within 2% of the best (and the best 12)
    are used. Raises FitError where fewer than 3 cells remain.
    """
    cells, small = [], 0
    for (params, tokens), cell in runs.groupby(["params", "tokens"], sort=True):
        if _distinct(cell["lr"]) < MIN_LRS:
            small += 1
            continue
        cell = cell.sort_values(target, kind="stable")
        log_loss = np.log(cell[target].to_numpy())
        keep = (log_loss - log_loss[0] < WINDOW) | (np.arange(len(cell)) < KEEP_AT_LEAST)
        keep &= (log_loss - log_loss[0] < MAX_EXCESS) | (np.arange(len(cell)) < MIN_LRS)
        cells.append((params, tokens, cell[keep], log_loss[keep], cell))
    if len(cells) < MIN_CELLS:
        raise FitError(
            f"steplaw needs at least {MIN_CELLS} (params, tokens) cells with {MIN_LRS} or more learning rates each; these "
            f"runs have {len(cells)} (and {small} with fewer rates): sweep the learning rate at more sizes or budgets"
        )
    params, tokens = (np.array([c[k] for c in cells], float) for k in (0, 1))
    tried = np.log(pd.concat([c[4] for c in cells])[["lr", "batch_tokens"]])
    data = {
        "lr": _rectangle([np.log(c[2]["lr"]) for c in cells]),
        "batch": _rectangle([np.log(c[2]["batch_tokens"]) for c in cells]),
        "log_loss": _rectangle([c[3] for c in cells]),
        "used": _rectangle([np.ones(len(c[3])) for c in cells]) > 0,
        "n": np.log(params) - np.log(params).mean(),
        "d": np.log(tokens) - np.log(tokens).mean(),
        "ln_N": np.log(params).mean(),
        "ln_D": np.log(tokens).mean(),
        "floor": np.array([c[3][0] for c in cells]),
        "spread": np.array([max(c[3][-1] - c[3][0], 1e-4) for c in cells]),
    }
    for name, column in (("lr", "lr"), ("batch", "batch_tokens")):
        ends = [(np.log(c[4][column]).min(), np.log(c[4][column]).max()) for c in cells]
        data[f"{name}_mid"] = np.mean(ends)
        data[f"{name}_half"] = max(np.ptp(tried[column]) / 2, 1.0)
        # Centred deviations mix well where every cell pins its own optimum, non-centred ones where few runs do.
        rich = np.median([_distinct(c[4][column]) for c in cells]) >= 5 and np.median([len(c[3]) for c in cells]) >= 30
        data[f"{name}_centered"] = float(rich)
    return data, {
        "center": {"ln_N": float(data["ln_N"]), "ln_D": float(data["ln_D"])},
        "cells": len(cells),
        "rows_used": int(data["used"].sum()),
        "notes": _notes(cells, small),
    }


def _rectangle(rows: list) -> np.ndarray:
    """[cell, run], short rows filled up with their first value: plain broadcasts are faster than gathers."""
    out = np.stack([np.resize(np.asarray(row, float), max(map(len, rows))) for row in rows])
    for i, row in enumerate(rows):
        out[i, len(row) :] = 0.0 if np.all(np.asarray(row) == 1.0) else np.asarray(row)[0]
    return out


def _distinct(values: pd.Series) -> int:
    """Distinct settings, rounding differences (0.000345 and 0.0003453) apart."""
    return len(np.unique(np.round(np.log2(values.to_numpy(float)) * 8)))


def _notes(cells: list, small: int) -> list[str]:
    notes = []
    if small:
        notes.append(f"{small} cells with fewer than {MIN_LRS} learning rates were left out")
    swept = sum(_distinct(c[4]["batch_tokens"]) > 1 for c in cells)
    if swept < MIN_CELLS:
        notes.append(
            f"batch size varies in {swept} of {len(cells)} cells: the batch law is set by its prior, not by these runs"
        )
    if len({c[0] for c in cells}) < 2:
        notes.append("one model size only: the exponents of N are set by their prior")
    if len({c[1] for c in cells}) < 2:
        notes.append("one token budget only: the exponents of D are set by their prior")
    edge = sum(c[2]["lr"].iloc[0] in (c[4]["lr"].min(), c[4]["lr"].max()) for c in cells)
    if edge:
        notes.append(f"the best run has the smallest or largest learning rate tried in {edge} of {len(cells)} cells")
    return notes


# --- model -----------------------------------------------------------------------------------------------------------


def model(data: dict[str, Any]) -> None:
    """The numpyro model; `data` as `prepare` gives it."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def site(name, loc, scale, shape=()):
        return numpyro.sample(name, dist.Normal(jnp.broadcast_to(loc, shape), scale).to_event(len(shape)))

    n, d = data["n"], data["d"]
    cells = n.shape[0]
    from_optimum = []
    for name in ("lr", "batch"):
        at_center = data[f"{name}_mid"] + data[f"{name}_half"] * site(f"{name}_center", 0.0, 1.0)
        by_N, by_D = site(f"{name}_N", 0.0, 1.0), site(f"{name}_D", 0.0, 1.0)
        numpyro.deterministic(f"{name}_const", at_center - by_N * data["ln_N"] - by_D * data["ln_D"])
        sd = numpyro.sample(f"{name}_sd", dist.LogNormal(np.log(0.1), 0.7))
        centered = data[f"{name}_centered"]
        deviation = sd ** (1.0 - centered) * site(f"{name}_cell", 0.0, sd**centered, (cells,))
        optimum = at_center + by_N * n + by_D * d + deviation
        from_optimum.append(data[name] - optimum[:, None])
    shape = {}
    for name, loc, prior_sd, slope_sd in (
        ("log_kappa", np.log([0.02] * 3), 1.5, 0.5),
        ("tilt", np.array([0.7, 0.0]), 0.5, 0.2),
        ("bend", np.array([0.5, 1.5]), 0.7, 0.2),
    ):
        size = (len(np.atleast_1d(loc)),)
        by_N, by_D = site(f"{name}_N", 0.0, slope_sd, size), site(f"{name}_D", 0.0, slope_sd, size)
        shape[name] = site(name, loc, prior_sd, size) + by_N * n[:, None] + by_D * d[:, None]
    shape["log_kappa"] += KAPPA_SD * site("kappa_cell", 0.0, 1.0, (cells, 3))
    above = excess(jnp, *from_optimum, *(shape[name][:, None, :] for name in SHAPE))

    floor = data["floor"] + data["spread"] * site("floor_cell", 0.0, 1.0, (cells,))
    noise = numpyro.sample("noise", dist.LogNormal(np.log(2e-3), 1.5))
    noise_cell = noise * jnp.exp(NOISE_SD * site("noise_cell", 0.0, 1.0, (cells,)))
    form_error = numpyro.sample("form_error", dist.HalfNormal(0.2))
    df = numpyro.deterministic("df", 2.0 + numpyro.sample("df_above_2", dist.Gamma(2.0, 0.5)))
    scale = jnp.sqrt(noise_cell[:, None] ** 2 + (form_error * above) ** 2)
    losses = dist.StudentT(df, floor[:, None] + above, scale).mask(data["used"])
    numpyro.sample("log_loss", losses, obs=data["log_loss"])


def start(data: dict[str, Any]) -> dict[str, Any]:
    """A starting point for the search of the mode: the law through each cell's best runs, ordinary curvature."""
    best = {}
    for name in ("lr", "batch"):
        at = data[name][:, :3].mean(axis=1)
        ridge = np.diag([1e-6, 0.1, 0.1])
        X = np.stack([np.ones_like(data["n"]), data["n"], data["d"]], axis=1)
        best[name] = np.linalg.solve(X.T @ X + ridge, X.T @ at)
    out: dict[str, Any] = {}
    for name, (center, by_N, by_D) in best.items():
        out |= {f"{name}_center": (center - data[f"{name}_mid"]) / data[f"{name}_half"], f"{name}_N": by_N}
        out |= {f"{name}_D": by_D, f"{name}_sd": 0.1, f"{name}_cell": np.zeros(len(data["n"]))}
    cells = len(data["n"])
    out |= {
        "log_kappa": np.log([0.02, 0.02, 0.01]),
        "tilt": np.array([0.7, 0.2]),
        "bend": np.array([0.6, 1.5]),
    }
    out |= {f"{name}_{slope}": np.zeros_like(out[name]) for name in SHAPE for slope in "ND"}
    out |= {"kappa_cell": np.zeros((cells, 3)), "floor_cell": np.zeros(cells)}
    out |= {"noise": 2e-3, "noise_cell": np.zeros(cells), "form_error": 0.05, "df_above_2": 2.0}
    return out


# --- prediction ------------------------------------------------------------------------------------------------------


def predict(
    draws: dict[str, np.ndarray],
    meta: dict[str, Any],
    params: np.ndarray,
    tokens: np.ndarray,
    noise: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """`lr` and `batch_tokens` at the optimum of a new cell: [draw, query]. The scatter of cells about the law is
    included, so an interval says where the optimum of a cell nobody has swept would be; the median is the law's.

    noise: standard normal scores, one a draw, under the names `lr` and `batch` (marginally right at every query).
    """
    ln_N, ln_D = np.log(params), np.log(tokens)
    out = {}
    for name, quantity in (("lr", "lr"), ("batch", "batch_tokens")):
        offset = draws[f"{name}_const"] + draws[f"{name}_sd"] * noise[name]
        out[quantity] = np.exp(
            offset[:, None] + draws[f"{name}_N"][:, None] * ln_N + draws[f"{name}_D"][:, None] * ln_D
        )
    return out
