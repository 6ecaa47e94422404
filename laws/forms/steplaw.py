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

Curvatures kappa vary from cell to cell and with N and D; tilts and bends vary smoothly with ln N and ln D. Where cells
hold fewer than some 25 runs on 5 learning rates and 5 batch sizes (`dense` is false), there is no third bowl, and one
shape with one common change of curvature with N and D serves all cells. Where the batch size hardly varies, its law is
its prior and the learning rate's optimum is at the batch sizes tried.

Noise is Student-t with its own scale in each dense cell; the form's own error grows in proportion to the excess
(`form_error`), so that runs far from the optimum weigh less. All priors are weak and in the data's own units: none
holds a published coefficient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from laws.errors import FitError

CITATION = "Li et al. 2025, Predictable Scale: Part I, Step Law, arXiv 2503.04715"
COLUMNS = ("lr", "batch_tokens")
QUANTITIES = ("lr", "batch_tokens")
COVARIATES = ()
# Runs modelled: log loss within WINDOW of the cell's best, and the best KEEP_AT_LEAST: far from the optimum no simple
# form holds, and the answer does not depend on it.
WINDOW, KEEP_AT_LEAST = 0.02, 12
MAX_EXCESS = 0.1  # of log loss: beyond this a run has not trained
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
SITES = LAW + tuple(f"{name}{slope}" for name in SHAPE for slope in ("", "_N", "_D"))  # sparse cells: no slopes


def linex(xp: Any, s: Any) -> Any:
    """(exp(s) - 1 - s) / s^2, smooth through s = 0; xp is numpy or jax.numpy."""
    s = xp.clip(s, -60.0, 20.0)
    small = xp.abs(s) < 1e-2
    safe = xp.where(small, 1.0, s)
    return xp.where(small, 0.5 + s / 6 + s**2 / 24 + s**3 / 120, (xp.expm1(safe) - safe) / safe**2)


def excess(xp: Any, u: Any, v: Any, log_kappa: Any, tilt: Any, bend: Any) -> Any:
    """Log loss above the optimum's. u, v: ln lr - ln lr*, ln B - ln B*. The shape arrays' last axes hold the bowls:
    log_kappa 3, tilt and bend 2 in dense cells; 2, 1 and 1 in sparse ones, which have no third bowl."""
    noisy = u - tilt[..., 0] * v
    out = xp.exp(log_kappa[..., 0]) * noisy**2 * linex(xp, bend[..., 0] * noisy)
    out = out + xp.exp(log_kappa[..., 1]) * v**2 / 2
    if bend.shape[-1] == 1:
        return out
    unstable = u + tilt[..., 1] * v
    return out + xp.exp(log_kappa[..., 2]) * unstable**2 * linex(xp, bend[..., 1] * unstable)


# --- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """The runs of one (params, tokens) cell, best first."""

    params: float
    tokens: float
    lr: np.ndarray  # ln, as is batch
    batch: np.ndarray
    log_loss: np.ndarray

    @property
    def modelled(self) -> np.ndarray:
        """Which runs are near enough to the optimum: bool [run]."""
        excess, rank = self.log_loss - self.log_loss[0], np.arange(len(self.log_loss))
        near = (excess < WINDOW) | (rank < KEEP_AT_LEAST)
        return near & ((excess < MAX_EXCESS) | (rank < MIN_LRS))

    @property
    def settings(self) -> dict[str, int]:
        """Distinct learning rates and batch sizes, rounding differences (0.000345, 0.0003453) apart."""
        return {name: len(np.unique(np.round(getattr(self, name) * 12))) for name in ("lr", "batch")}


def prepare(runs: pd.DataFrame, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays for the model, facts for the posterior's meta) from finished runs with a target loss.

    Cells with fewer than 4 learning rates are left out; in the others the runs within 2% of the best (and the best 12)
    are used. Raises FitError where fewer than 3 cells remain.
    """
    everything = []
    for _, group in runs.sort_values(target, kind="stable").groupby(["params", "tokens"], sort=True):
        columns = [group[c].to_numpy(float) for c in ("params", "tokens", "lr", "batch_tokens", target)]
        everything.append(Cell(columns[0][0], columns[1][0], *map(np.log, columns[2:])))
    cells = [cell for cell in everything if cell.settings["lr"] >= MIN_LRS]
    if len(cells) < MIN_CELLS:
        raise FitError(
            f"steplaw needs at least {MIN_CELLS} (params, tokens) cells with {MIN_LRS} or more learning rates each; "
            f"these runs have {len(cells)} (and {len(everything) - len(cells)} with fewer rates): sweep the learning "
            "rate at more sizes or budgets"
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
    for name in ("lr", "batch"):
        tried = [getattr(c, name) for c in cells]
        data[f"{name}_mid"] = np.mean([(x.min() + x.max()) / 2 for x in tried])
        data[f"{name}_half"] = max(np.ptp(np.concatenate(tried)) / 2, 1.0)
    # Variants of the model go by the presence of a key, which is known when the program is compiled.
    settings = np.array([list(c.settings.values()) for c in cells])
    if np.median(settings, axis=0).min() >= 5 and np.median([u.sum() for u in used]) >= 25:
        data["dense"] = np.array(1.0)
    if np.sum(settings[:, 1] > 1) >= MIN_CELLS:
        data["batch_swept"] = np.array(1.0)
    return data, {
        "dense": "dense" in data,
        "center": {"ln_N": float(data["ln_N"]), "ln_D": float(data["ln_D"])},
        "cells": len(cells),
        "rows_used": int(data["used"].sum()),
        "notes": _notes(cells, len(everything) - len(cells), settings),
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
    edge = sum(c.lr[0] in (c.lr.min(), c.lr.max()) for c in cells)
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
    dense = "dense" in data
    shape = {}
    for name, loc, prior_sd, slope_sd in (
        ("log_kappa", np.log([0.02, 0.02, 0.02]), 1.5 if dense else 1.0, 0.5),
        ("tilt", np.array([0.7, 0.0]), 0.5, 0.2),
        ("bend", np.array([0.5, 1.5]), 0.7, 0.2),
    ):
        loc = loc if dense else loc[:-1]
        shape[name] = site(name, loc, prior_sd, loc.shape)[None, :]
        if dense or name == "log_kappa":
            width = loc.shape if dense else (1,)
            by_N, by_D = site(f"{name}_N", 0.0, slope_sd, width), site(f"{name}_D", 0.0, slope_sd, width)
            shape[name] += by_N * n[:, None] + by_D * d[:, None]
    if dense:
        shape["log_kappa"] += KAPPA_SD * site("kappa_cell", 0.0, 1.0, (cells, 3))

    def law(name, unit=1.0, slide=0.0, offsets=(0.0, 0.0, 0.0)):
        """(center less mid, N, D) of a law and ln of the optimum in each cell. Sampled: the law less `slide` times
        the offsets, in 1/unit. The prior is that of unit 1 and no slide."""
        widths = data[f"{name}_half"], 0.5, 0.5  # exponents within 1 of 0
        from_mid, by_N, by_D = (
            site(f"{name}_{part}_raw", 0.0, width * unit) / unit + slide * offset
            for part, width, offset in zip(("mid", "N", "D"), widths, offsets)
        )
        numpyro.deterministic(f"{name}_N", by_N)
        numpyro.deterministic(f"{name}_D", by_D)
        at_center = data[f"{name}_mid"] + from_mid
        numpyro.deterministic(f"{name}_const", at_center - by_N * data["ln_N"] - by_D * data["ln_D"])
        sd = numpyro.sample(f"{name}_sd", dist.LogNormal(np.log(0.1), 0.7))
        # Centred deviations mix well where every cell pins its own optimum, non-centred ones where it does not.
        scatter = site(f"{name}_cell", 0.0, sd, (cells,)) if dense else sd * site(f"{name}_cell", 0.0, 1.0, (cells,))
        return (from_mid, by_N, by_D), at_center + by_N * n + by_D * d + scatter

    if dense:
        best_batch, best_lr = law("batch")[1], law("lr")[1]
    elif "batch_swept" in data:
        # Few batch sizes determine the slope of the loss at their middle (curvature times distance to the best batch)
        # and the best learning rate there: sample those.
        offsets, best_batch = law("batch", unit=jnp.exp(shape["log_kappa"][0, 1]))
        best_lr = law("lr", slide=shape["tilt"][0, 0], offsets=offsets)[1]
    else:
        best_batch, best_lr = law("batch")[1], law("lr")[1]
    u, v = data["lr"] - best_lr[:, None], data["batch"] - best_batch[:, None]
    if "batch_swept" not in data:
        v = jnp.zeros_like(v)  # the best learning rate is then at the batch sizes tried
    above = excess(jnp, u, v, *(shape[name][:, None, :] for name in SHAPE))

    floor = data["floor"] + data["spread"] * site("floor_cell", 0.0, 1.0, (cells,))
    if not dense and "batch_swept" in data:  # sampled is the lowest loss at the middle batch size, not at the best
        floor -= jnp.exp(shape["log_kappa"][:, 1]) * (best_batch - data["batch_mid"]) ** 2 / 2
    noise = numpyro.sample("noise", dist.LogNormal(np.log(3e-3), 1.0))
    noise_cell = jnp.broadcast_to(noise, (cells,))
    if dense:
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
        unit = 0.02 if name == "batch" and "dense" not in data and "batch_swept" in data else 1.0
        law = {"mid": center - data[f"{name}_mid"], "N": by_N, "D": by_D}
        out |= {f"{name}_{part}_raw": unit * value for part, value in law.items()}
        out |= {f"{name}_sd": 0.1, f"{name}_cell": np.zeros(len(data["n"]))}
    cells = len(data["n"])
    out |= {
        "log_kappa": np.log([0.02, 0.02, 0.01]),
        "tilt": np.array([0.7, 0.2]),
        "bend": np.array([0.6, 1.5]),
    }
    if "dense" not in data:
        out |= {name: out[name][:-1] for name in SHAPE}
    out |= {f"{name}_{slope}": np.zeros_like(out[name]) for name in SHAPE for slope in "ND"}
    if "dense" not in data:
        out |= {"log_kappa_N": np.zeros(1), "log_kappa_D": np.zeros(1)}
    out |= {"kappa_cell": np.zeros((cells, 3)), "floor_cell": np.zeros(cells)}
    out |= {"noise": 2e-3, "noise_cell": np.zeros(cells), "form_error": 0.05, "df_above_2": 2.0}
    return out


# --- prediction ------------------------------------------------------------------------------------------------------


def predict(
    draws: dict[str, np.ndarray], meta: dict[str, Any], query: dict[str, np.ndarray], noise: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`lr` and `batch_tokens` at the optimum of a new cell: [draw, query]. The scatter of cells about the law is
    included, so an interval says where the optimum of a cell nobody has swept would be; the median is the law's.

    query: `params` and `tokens`, [query] each.
    noise: standard normal scores, one a draw, under the names `lr` and `batch` (marginally right at every query).
    """
    ln_N, ln_D = np.log(query["params"]), np.log(query["tokens"])
    out = {}
    for name, quantity in (("lr", "lr"), ("batch", "batch_tokens")):
        offset = draws[f"{name}_const"] + draws[f"{name}_sd"] * noise[name]
        out[quantity] = np.exp(
            offset[:, None] + draws[f"{name}_N"][:, None] * ln_N + draws[f"{name}_D"][:, None] * ln_D
        )
    return out
