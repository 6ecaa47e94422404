"""What Step Law's posterior says about any setting: its regret, and which settings are good enough.

The regret of (lr, batch) is its relative excess of loss over the optimum's. A draw's surface at (N, D) is the model's,
for a cell nobody has swept: optimum and curvatures scatter about the law as cells do.

The recommended setting is not the median of the optimum but the one of least expected regret. A draw's regret is convex
in (ln lr, ln batch), so its mean over draws is too: it has one minimum, and the settings within a wanted regret are one
convex region around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from laws.errors import InputError
from laws.forms import steplaw
from laws.forms.steplaw_cells import MAX_EXCESS

if TYPE_CHECKING:
    from laws.posterior import Posterior

DIRECTIONS = 64  # of the region's outline
FAR = 12.0  # in the logs: beyond a factor 160,000 the region has no end
SLACK = 0.05  # decades
MOST = 1000.0  # of a regret: no finite loss is that much worse, and the mean over draws stays finite


@dataclass(frozen=True)
class Settings:
    """Settings good enough at one (params, tokens).

    best: (lr, batch_tokens) of least expected regret; expected: that regret. within: the wanted expected regret.
    lr: (low, high) with the best batch; batch_tokens: (low, high) with the best lr; infinite (or 0) where no end was
    found. region: (lr, batch_tokens) points around the region of all settings within it, [DIRECTIONS, 2], a convex
    polygon in the logs.
    Where the runs hold next to one batch size, regret is that of lr alone and batch_tokens goes from 0 to infinity.
    """

    best: tuple[float, float]
    expected: float
    within: float
    lr: tuple[float, float]
    batch_tokens: tuple[float, float]
    region: np.ndarray


class Surface:
    """The draws' surfaces at each query. lr, batch: ln of the optimum, [draw, query]."""

    def __init__(
        self,
        draws: dict[str, np.ndarray],
        meta: dict[str, Any],
        query: dict[str, np.ndarray],
        noise: dict[str, np.ndarray],
    ):
        optimum = steplaw.predict(draws, meta, query, noise)
        self.lr, self.batch = np.log(optimum["lr"]), np.log(optimum["batch_tokens"])
        x = {slope: values - meta["center"].get(f"ln_{slope}", 0.0) for slope, values in steplaw.logs(query).items()}
        self.batch_matters = meta["batch_swept"]
        self.shape = []
        for name in steplaw.SHAPE:
            value = draws[name][:, None, :]
            for slope, values in x.items():
                if f"{name}_{slope}" in draws:
                    value = value + draws[f"{name}_{slope}"][:, None, :] * values[:, None]
            self.shape.append(np.broadcast_to(value, (*self.lr.shape, value.shape[-1])))
        if meta["rich"]:
            scatter = np.stack([noise[f"kappa_{k}"] for k in range(self.shape[0].shape[-1])], axis=-1)
            self.shape[0] = self.shape[0] + steplaw.KAPPA_SD * scatter[:, None, :]

    def regret(self, lr: np.ndarray, batch: np.ndarray) -> np.ndarray:
        """Relative excess of loss, [draw, query]. lr, batch: ln of a setting each query, [query]."""
        u, v = lr - self.lr, batch - self.batch
        if not self.batch_matters:
            v = np.zeros_like(u)
        return np.expm1(np.minimum(steplaw.excess(np, u, v, *self.shape), np.log1p(MOST)))


# --- how far the fitted runs reach -----------------------------------------------------------------------------------


def reach(posterior: Posterior, runs: pd.DataFrame, target: str) -> dict[str, list[float]]:
    """{"lr": [low, high], "batch_tokens": ...}: how far from the law's optimum (decades) the fitted runs lie, those
    that end within MAX_EXCESS of their cell's best."""
    cell = ["params", "tokens", *posterior.meta["optional"]]
    if "params_active" in cell:
        runs = runs.assign(params_active=runs["params_active"].fillna(runs["params"]))
    near = runs[runs[target] <= (1 + MAX_EXCESS) * runs.groupby(cell)[target].transform("min")]
    optimum = posterior.predict(**{c: near[c].to_numpy(float) for c in cell})
    off = {c: np.log10(near[c].to_numpy(float) / getattr(optimum, c).median) for c in ("lr", "batch_tokens")}
    return {c: [float(x.min()), float(x.max())] for c, x in off.items()}


def doubts(
    surface: Surface, regret: np.ndarray, query: dict[str, np.ndarray], reach: dict[str, list[float]]
) -> list[str]:
    """Sentences about regrets [draw, query] that the fitted runs say little of. reach: see there."""
    out = []
    if not surface.batch_matters:
        out.append("the runs hold next to one batch size: this is the regret of the learning rate alone")
    if not regret.size:
        return out
    median = np.median(regret, axis=0)
    if median.max() > MAX_EXCESS:
        at = int(np.argmax(median))
        out.append(
            f"the regret of lr {query['lr'][at]:.2g} with batch_tokens {query['batch_tokens'][at]:.3g} is beyond the "
            f"fitted runs, which end within {MAX_EXCESS:.0%} of their cell's best: a bad setting, but how bad is their "
            f"bowl carried on, and its interval too narrow (regrets are counted to {MOST:,.0%} at most)"
        )
    for column, optimum in (("lr", surface.lr), ("batch_tokens", surface.batch))[: 1 + surface.batch_matters]:
        off = np.log10(query[column]) - np.median(optimum, axis=0) / np.log(10)
        low, high = reach.get(column, (-np.inf, np.inf))
        for side, end, way in ((1, max(high, 0.0), "above"), (-1, max(-low, 0.0), "below")):
            at = int(np.argmax(side * off))
            if side * off[at] > end + SLACK:
                out.append(
                    f"{column} {query[column][at]:.3g} is {side * off[at]:.2g} decades {way} the optimum, the fitted "
                    f"runs at most {end:.2g}: a regret there is carried on from nearer settings"
                )
    return out


def settings(surface: Surface, within: float, where: str) -> Settings:
    """The settings within an expected regret, for the one query of `surface`. Raises InputError, naming `where`, if
    there are none."""
    from scipy.optimize import minimize

    def expected(z: np.ndarray) -> np.ndarray:
        """[point] for ln (lr, batch), [point, 2]."""
        return surface.regret(z[:, 0], z[:, 1]).mean(axis=0)

    middle = np.array([np.median(surface.lr), np.median(surface.batch)])
    found = minimize(lambda z: expected(z[None])[0] * 1e3, middle, method="Nelder-Mead", options={"xatol": 1e-4})
    best, least = found.x, float(found.fun) / 1e3
    if not least <= within:
        raise InputError(
            f"no setting at {where} is within {100 * within:.2g}%: the best has an expected regret of "
            f"{100 * least:.2g}% there; ask for more"
        )
    angle = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
    ways = np.round(np.stack([np.cos(angle), np.sin(angle)], axis=1), 12)
    inside, outside = np.zeros(DIRECTIONS), np.full(DIRECTIONS, FAR)
    endless = expected(best + FAR * ways) <= within
    for _ in range(24):
        middle = (inside + outside) / 2
        near = expected(best + middle[:, None] * ways) <= within
        inside, outside = np.where(near, middle, inside), np.where(near, outside, middle)
    reach = np.where(endless, np.inf, inside)
    with np.errstate(over="ignore", invalid="ignore"):
        outline = np.exp(best + np.where(ways == 0, 0, reach[:, None] * ways))
    quarter = DIRECTIONS // 4
    return Settings(
        best=(float(np.exp(best[0])), float(np.exp(best[1]))),
        expected=least,
        within=within,
        lr=(float(outline[2 * quarter, 0]), float(outline[0, 0])),
        batch_tokens=(float(outline[3 * quarter, 1]), float(outline[quarter, 1])),
        region=outline,
    )
