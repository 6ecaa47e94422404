"""Which trials to run next, to learn Step Law's optimum at given scales for the fewest FLOPs.

The model is `laws.forms.steplaw`'s surface, made quick: every local quantity q of a cell (the optimum's ln lr and
ln batch, three curvatures, two tilts, two bends, the floor) is

    q_c = q_const + q_N n + q_D d + q_S s + Normal(0, SCATTER_q),        n, d, s: ln N, ln D, ln S, centred,

with normal priors on all coefficients, and the posterior is the normal one at its mode: milliseconds a fit. Noise grows
with the excess over the floor by the form's own error, and its tails are Student-t. Of a run that diverged, or lies FAR
above its cell's best, only this is taken: its excess is at least FAR.

The regret expected at a target is tr(H V) / 2: V the posterior covariance of the law's (ln lr*, ln B*) there, H the
excess's Hessian. A trial takes V down by an amount that does not depend on its outcome (rank one, linearised at the
mode): the next trial is that of the largest decrease a FLOP, and the one after it counts with the first one done, so
that a batch spreads. The priors are those of the law, weak: none holds a published coefficient unless one is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from laws.forms import steplaw

# Runs whose loss counts, as in laws.forms.steplaw_cells: within WINDOW of the scale's lowest log loss so far, and the
# KEEP best of the scale within FAR of it. Of the others, and of those that diverged: their excess is at least WINDOW.
WINDOW, KEEP, FAR = 0.02, 12, 0.1
NOISE, NOISE_SD = 3e-3, 1.0  # a priori, of log loss: log-normal
FORM_ERROR = 0.2  # of the excess: half-normal
NOISES, FORM_ERRORS = np.geomspace(2e-4, 2e-2, 41)[:, None, None], np.geomspace(0.02, 0.5, 20)[:, None]
OWN = True
TAILS = 4.0  # degrees of freedom
LR, BATCH, KAPPA, TILT, BEND, FLOOR = 0, 1, slice(2, 5), slice(5, 7), slice(7, 9), 9
LOCAL = 10  # quantities of a cell, in this order
# Priors as in laws.forms.steplaw; those of lr, batch and floor at the centre come from the candidates and the losses.
MEAN = np.array([0.0, 0.0, *np.log([0.02, 0.02, 0.02]), 0.7, 0.0, 0.5, 1.5, 0.0])
SD = np.array([0.0, 0.0, 1.5, 1.5, 1.5, 0.5, 0.5, 0.7, 0.7, 1.0])
SLOPE_SD = np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.2, 0.2, 0.2, 0.2, 0.3])
SCATTER = np.array([0.1, 0.1, 0.3, 0.3, 0.3, 0.0, 0.0, 0.0, 0.0, 0.02])
SCATTERING = np.flatnonzero(SCATTER)
MAX_STEPS = 60


@dataclass(frozen=True)
class Space:
    """What is known before any loss: the scales and the settings that may be tried.

    scales: [scale, 1 + k], 1 and the centred logs of N, D and, with mixtures of experts, the active share. index: of a
    scale, by its rounded logs. mid, half: of the (ln lr, ln batch) that may be tried.
    """

    scales: np.ndarray
    center: np.ndarray
    index: Mapping[tuple[float, ...], int]
    mid: np.ndarray
    half: np.ndarray

    def of(self, table: pd.DataFrame) -> np.ndarray:
        """The scale of every row."""
        return np.array([self.index[tuple(row)] for row in np.round(_logs(table, len(self.center)), 6)], int)


def space(*tables: pd.DataFrame) -> Space:
    """The space of tables of runs, candidates and targets (params, tokens, perhaps params_active; lr, batch_tokens)."""
    logs = np.concatenate([_logs(t, 3) for t in tables])
    keys = sorted({tuple(row) for row in np.round(logs, 6)})
    x = np.array(keys)
    k = 3 if np.ptp(x[:, 2]) > 0 else 2
    center = (x.min(axis=0) + x.max(axis=0))[:k] / 2
    tried = [np.log(t[["lr", "batch_tokens"]].to_numpy(float)) for t in tables if "lr" in t]
    low, high = np.concatenate(tried).min(axis=0), np.concatenate(tried).max(axis=0)
    scales = np.concatenate([np.ones((len(x), 1)), x[:, :k] - center], axis=1)
    return Space(
        scales, center, {key[:k]: i for i, key in enumerate(keys)}, (low + high) / 2, np.maximum((high - low) / 2, 1.0)
    )


def _logs(table: pd.DataFrame, k: int) -> np.ndarray:
    params = table["params"].to_numpy(float)
    active = table["params_active"].fillna(table["params"]).to_numpy(float) if "params_active" in table else params
    return np.log(np.stack([params, table["tokens"].to_numpy(float), active / params], axis=1))[:, :k]


@dataclass(frozen=True)
class Belief:
    """The normal posterior at its mode. theta: coefficients [LOCAL, 1 + k], then every scale's scatter [scale,
    SCATTERING], flat; cov: its covariance; noise: of log loss."""

    space: Space
    theta: np.ndarray
    cov: np.ndarray
    noise: float
    form_error: float

    @property
    def coefficients(self) -> np.ndarray:
        k = self.space.scales.shape[1]
        return self.theta[: LOCAL * k].reshape(LOCAL, k)

    def optimum(self, table: pd.DataFrame, *, own: bool = False) -> np.ndarray:
        """(ln lr, ln batch) of the law at every row [row, 2]; own: with the scale's own scatter, as learnt from its
        runs."""
        at = self.space.of(table)
        law = self.space.scales[at] @ self.coefficients[:2].T
        return _local(self.space, self.theta)[at][:, :2] if own else law


def _local(space: Space, theta: np.ndarray) -> np.ndarray:
    """The quantities of every scale, [scale, LOCAL]."""
    scales = space.scales
    split = LOCAL * scales.shape[1]
    out = scales @ theta[:split].reshape(LOCAL, -1).T
    out[:, SCATTERING] += theta[split:].reshape(len(scales), -1)
    return out


def _rows(space: Space, at: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Derivatives by theta [row, p] from those by the local quantities [row, LOCAL] of scales `at`."""
    rows, scatters = len(at), len(SCATTERING)
    x = space.scales[at]
    out = np.zeros((rows, LOCAL * x.shape[1] + len(space.scales) * scatters))
    out[:, : LOCAL * x.shape[1]] = (local[:, :, None] * x[:, None, :]).reshape(rows, -1)
    columns = LOCAL * x.shape[1] + at[:, None] * scatters + np.arange(scatters)
    out[np.arange(rows)[:, None], columns] = local[:, SCATTERING]
    return out


# --- the surface -----------------------------------------------------------------------------------------------------


def _bowl(w: np.ndarray, bend: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """w^2 linex(bend w) and its derivatives by w and by bend."""
    s = np.clip(bend * w, -60.0, 20.0)
    small = np.abs(s) < 1e-2
    safe = np.where(small, 1.0, s)
    linex = steplaw.linex(np, s)
    slope = np.where(small, 1 + s / 2 + s**2 / 6, np.expm1(safe) / safe)
    by_s = np.where(small, 1 / 6 + s / 12 + s**2 / 40, np.expm1(safe) / safe**2 - 2 * linex / safe)
    return w**2 * linex, w * slope, w**3 * by_s


def surface(q: np.ndarray, lr: np.ndarray, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Excess of log loss [row] and its derivatives by q [row, LOCAL], the local quantities of each row."""
    u, v = lr - q[:, LR], batch - q[:, BATCH]
    k1, k2, k3 = np.exp(np.clip(q[:, KAPPA], -20, 3)).T
    (t1, t2), (b1, b2) = q[:, TILT].T, q[:, BEND].T
    f1, w1, d1 = _bowl(u - t1 * v, b1)
    f3, w3, d3 = _bowl(u + t2 * v, b2)
    f2 = v**2 / 2
    by_u = k1 * w1 + k3 * w3
    by_v = -t1 * k1 * w1 + k2 * v + t2 * k3 * w3
    grads = [-by_u, -by_v, k1 * f1, k2 * f2, k3 * f3, -v * k1 * w1, v * k3 * w3, k1 * d1, k3 * d3, np.zeros_like(u)]
    return k1 * f1 + k2 * f2 + k3 * f3, np.stack(grads, axis=1)


def hessian(q: np.ndarray) -> np.ndarray:
    """Of the excess at the optimum, by (ln lr, ln batch): [row, 2, 2]."""
    k1, k2, k3 = np.exp(np.clip(q[:, KAPPA], -20, 3)).T
    t1, t2 = q[:, TILT].T
    uv = -t1 * k1 + t2 * k3
    return np.stack([np.stack([k1 + k3, uv], -1), np.stack([uv, t1**2 * k1 + k2 + t2**2 * k3], -1)], -2)


# --- the fit ---------------------------------------------------------------------------------------------------------


def prior(space: Space, log_loss: np.ndarray, informed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of theta. informed: (ln lr, ln batch) at every scale [scale, 2], of a published law:
    the coefficients' prior mean is then its plane."""
    k = space.scales.shape[1]
    mean, sd = np.zeros((LOCAL, k)), np.repeat(SLOPE_SD[:, None], k, axis=1)
    mean[:, 0], sd[:, 0] = MEAN, SD
    mean[:2, 0], sd[:2, 0] = space.mid, space.half
    if len(log_loss):
        mean[FLOOR, 0] = log_loss.min()
    if informed is not None:
        mean[:2] = np.linalg.lstsq(space.scales, informed)[0].T
        sd[:2, 0], sd[:2, 1:] = 0.5, 0.15
    scatter = np.tile(SCATTER[SCATTERING], len(space.scales))
    return np.append(mean.ravel(), np.zeros(len(scatter))), np.append(sd.ravel(), scatter)


def fit(
    space: Space, runs: pd.DataFrame, *, target: str = "loss", informed: np.ndarray | None = None, warm: Belief | None = None
) -> Belief:
    """The belief after `runs`; those without a finite loss diverged. informed: as `prior` has it. warm: a belief to
    start from, beside the best runs."""
    at, lr, batch = space.of(runs), *np.log(runs[["lr", "batch_tokens"]].to_numpy(float)).T
    y = np.log(runs[target].to_numpy(float))
    lost = ~np.isfinite(y)
    mean, sd = prior(space, y[~lost], informed)
    lowest = np.full(len(space.scales), np.inf)
    np.minimum.at(lowest, at[~lost], y[~lost])
    rank = pd.Series(y).groupby(at).rank(method="first").to_numpy()
    above = y - lowest[at]
    lost = lost | ~((above < WINDOW) | ((above < FAR) & (rank <= KEEP)))
    y = np.where(lost, lowest[at], y)
    usable = np.isfinite(y)
    data = at[usable], lr[usable], batch[usable], y[usable], lost[usable]
    errors = (2e-3, 0.1) if warm is None else (warm.noise, warm.form_error)
    starts = [_start(space, data, mean, sd)] + ([warm.theta] if warm is not None else [])
    found = [_mode(space, data, mean, sd, errors, start) for start in starts]
    value, theta, cov, errors = min(found, key=lambda one: one[0])
    return Belief(space, theta, cov, *errors)


def _start(space: Space, data: tuple, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """The prior's mean, with the law and the floor through each scale's best runs."""
    at, lr, batch, y, lost = data
    theta = mean.copy()
    k = space.scales.shape[1]
    best = []
    for cell in np.unique(at[~lost]):
        rows = np.flatnonzero((at == cell) & ~lost)
        rows = rows[np.argsort(y[rows])][: max(1, min(3, len(rows) // 4))]
        best.append((cell, lr[rows].mean(), batch[rows].mean(), y[rows].min()))
    if best:
        cells, *values = map(np.array, zip(*best))
        x = space.scales[cells]
        for q, value, spread in zip((LR, BATCH, FLOOR), values, (0.5, 0.5, 0.05)):
            part = slice(q * k, (q + 1) * k)
            ridge = np.diag((spread / sd[part]) ** 2)
            theta[part] += np.linalg.solve(x.T @ x + ridge, x.T @ (value - x @ mean[part]))
    return theta


def _mode(
    space: Space, data: tuple, mean: np.ndarray, sd: np.ndarray, errors: tuple[float, float], theta: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, tuple[float, float]]:
    """(minus log posterior, theta, its covariance, (noise, form error)): Levenberg's steps, with weights of the step before."""
    at, lr, batch, y, lost = data
    precision = sd**-2.0
    noise, form_error = errors

    def residuals(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Residuals, local derivatives of the model, and what the noise's size goes by."""
        q = _local(space, theta)[at]
        above, local = surface(q, lr, batch)
        r = np.where(lost, np.maximum(WINDOW - above, 0.0), y - q[:, FLOOR] - above)
        local[:, FLOOR] = 1.0
        local[lost, FLOOR] = 0.0
        local[lost & (above >= WINDOW)] = 0.0
        return r, local, np.where(lost, WINDOW, np.maximum(y - q[:, FLOOR], 0.0))

    r, local, above = residuals(theta)
    damping = 1e-2
    for step in range(MAX_STEPS):
        variance = noise**2 + (form_error * above) ** 2
        weight = 1 / variance
        if step > 4:
            weight = weight * (TAILS + 1) / (TAILS + r**2 * weight)
        J = _rows(space, at, local)
        value = np.sum(weight * r**2) + np.sum((theta - mean) ** 2 * precision)
        gradient = J.T @ (weight * r) - (theta - mean) * precision
        A = (J.T * weight) @ J
        A[np.diag_indices_from(A)] += precision
        gain = 0.0
        while damping < 1e8:
            tried = theta + np.linalg.solve(A + damping * np.diag(np.diag(A)), gradient)
            r_new, local_new, above_new = residuals(tried)
            new = np.sum(weight * r_new**2) + np.sum((tried - mean) ** 2 * precision)
            if new <= value:
                gain = value - new
                theta, r, local, above = tried, r_new, local_new, above_new
                damping = max(damping / 5, 1e-7)
                break
            damping *= 5
        if step > 4:
            leverage = np.trace(np.linalg.solve(A, (J.T * weight) @ J))
            noise, form_error = _errors(r[~lost], above[~lost], leverage)
        if step > 8 and gain < 1e-3:
            break
    variance = noise**2 + (form_error * above) ** 2
    weight = (TAILS + 1) / (TAILS + r**2 / variance) / variance
    J = _rows(space, at, local)
    A = (J.T * weight) @ J
    A[np.diag_indices_from(A)] += precision
    fit = (TAILS + 1) / 2 * np.sum(np.log1p(r**2 / variance / TAILS)) + np.sum(np.log(variance)) / 2
    fit += np.sum((theta - mean) ** 2 * precision) / 2
    return float(fit), theta, np.linalg.inv(A), (noise, form_error)


def _errors(r: np.ndarray, above: np.ndarray, leverage: float) -> tuple[float, float]:
    """The likeliest noise and form error of residuals r at excesses `above`; leverage: what the fit took out of them."""
    if not len(r):
        return NOISE, FORM_ERROR / 2
    share = max(1 - leverage / len(r), 0.1)
    variance = NOISES**2 + (FORM_ERRORS * above) ** 2
    fits = -(TAILS + 1) / 2 * np.log1p(r**2 / share / variance / TAILS) - np.log(variance) / 2
    fit = share * fits.sum(axis=2) - (np.log(NOISES / NOISE)[..., 0] / NOISE_SD) ** 2 / 2
    fit -= (FORM_ERRORS[:, 0] / FORM_ERROR) ** 2 / 2
    i, j = np.unravel_index(np.argmax(fit), fit.shape)
    return float(NOISES[i, 0, 0]), float(FORM_ERRORS[j, 0])


# --- the choice ------------------------------------------------------------------------------------------------------


def target_root(belief: Belief, targets: pd.DataFrame, weights: np.ndarray | None = None) -> np.ndarray:
    """R [p, 2 targets] with expected regret = sum of (R^T cov R)'s diagonal: the mean of tr(H V) / 2 over targets."""
    space = belief.space
    at, (scales, k) = space.of(targets), space.scales.shape
    weights = np.full(len(at), 1 / len(at)) if weights is None else weights / weights.sum()
    roots = np.linalg.cholesky(hessian(_local(space, belief.theta)[at]))
    R = np.zeros((len(belief.theta), len(at), 2))
    for q in (LR, BATCH):
        part = roots[:, q, :] * np.sqrt(weights / 2)[:, None]
        R[q * k : (q + 1) * k] = space.scales[at].T[:, :, None] * part
        if OWN: R[LOCAL * k + at * len(SCATTERING) + q, np.arange(len(at))] = part
    return R.reshape(len(belief.theta), -1)


def expected_regret(belief: Belief, targets: pd.DataFrame) -> float:
    """Mean over targets of the relative excess of loss that the law's uncertainty costs there."""
    R = target_root(belief, targets)
    return float(np.sum(R * (belief.cov @ R)))


def choose(
    belief: Belief,
    candidates: pd.DataFrame,
    targets: pd.DataFrame,
    *,
    batch: int,
    flops: float = np.inf,
    cohort: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """(which candidates, the decrease of expected regret that each brings): at most `batch`, costing at most `flops`.

    candidates: params, tokens, lr, batch_tokens, flops (and params_active). cohort: candidates are taken so many at a
    time from one (params, tokens, batch_tokens), which train in one program.
    """
    space = belief.space
    at = space.of(candidates)
    lr, batch_tokens = np.log(candidates[["lr", "batch_tokens"]].to_numpy(float)).T
    cost = candidates["flops"].to_numpy(float)
    above, local = surface(_local(space, belief.theta)[at], lr, batch_tokens)
    local[:, FLOOR] = 1.0
    J = _rows(space, at, local)
    root = np.linalg.cholesky(belief.cov)
    Z = J @ root  # [candidate, p], whitened
    T = root.T @ target_root(belief, targets)
    # Where a trial's own loss is little known, so is how far from the optimum it lies.
    own = np.sum(Z**2, axis=1)
    variance = belief.noise**2 + belief.form_error**2 * (above**2 + own)
    trained = above < FAR
    names = candidates.groupby(["params", "tokens", "batch_tokens"], sort=False).ngroup().to_numpy()
    left, open_ = float(flops), np.ones(len(cost), bool)
    chosen: list[int] = []
    gains: list[float] = []
    ZT, size = Z @ T, own.copy()

    def take(i: int) -> None:
        """Counts with candidate i done: a downdate of rank one."""
        nonlocal ZT, size, Z, T
        z = Z[i]
        total = variance[i] + size[i]
        along = Z @ z
        # cov' = I - z z^T / total; its root is I - c z z^T
        norm = z @ z
        c = (1 - np.sqrt(max(1 - norm / total, 0.0))) / norm
        Z = Z - c * np.outer(along, z)
        T = T - c * np.outer(z, z @ T)
        ZT, size = Z @ T, np.sum(Z**2, axis=1)

    while len(chosen) < batch:
        gain = np.where(trained, np.sum(ZT**2, axis=1) / (variance + size), 0.0)
        worth = np.where(open_ & (cost <= left), gain / cost, -1.0)
        if cohort > 1 and not (len(chosen) % cohort == 0):
            worth = np.where(names == names[chosen[-1]], worth, -1.0)
            if worth.max() <= 0:
                worth = np.where(open_ & (cost <= left), gain / cost, -1.0)
        elif cohort > 1:  # the group whose best few are worth most, each as if alone
            top = pd.Series(worth).groupby(names).apply(lambda w: w.nlargest(cohort).clip(lower=0).sum())
            worth = np.where(names == top.idxmax(), worth, -1.0)
        i = int(np.argmax(worth))
        if worth[i] <= 0:
            break
        chosen.append(i)
        gains.append(float(gain[i]))
        open_[i] = False
        left -= cost[i]
        take(i)
    return np.array(chosen, int), np.array(gains)


def first(candidates: pd.DataFrame, *, batch: int, cells: int, seed: int = 0) -> np.ndarray:
    """Before any loss: `batch` candidates spread over the settings of the `cells` cheapest scales.

    In each, settings are taken one by one as far as may be from those taken there and, at half the distance, from
    those of the other scales; the first is drawn at random."""
    rng = np.random.default_rng(seed)
    keys = [c for c in ("params", "tokens", "params_active") if c in candidates]
    cost = candidates.groupby(keys, sort=False, dropna=False)["flops"].transform("mean").to_numpy()
    cheapest = np.unique(cost)[:cells]
    settings = np.log(candidates[["lr", "batch_tokens"]].to_numpy(float))
    settings = (settings - settings.min(axis=0)) / np.maximum(np.ptp(settings, axis=0), 1e-9)
    chosen: list[int] = []
    for turn in range(batch):
        here = cost == cheapest[turn % len(cheapest)]
        distance = np.full(len(cost), np.inf)
        for i in chosen:
            apart = np.linalg.norm(settings - settings[i], axis=1)
            distance = np.minimum(distance, np.where(cost == cost[i], apart, apart + 0.15))
        distance = np.where(here, np.minimum(distance, 9.0) + 1e-3 * rng.random(len(cost)), -1.0)
        distance[chosen] = -1.0
        if distance.max() <= 0:
            break
        chosen.append(int(np.argmax(distance)))
    return np.array(chosen, int)


__all__: list[Any] = ["Belief", "Space", "choose", "expected_regret", "first", "fit", "space"]
