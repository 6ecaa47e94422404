"""A quick posterior of Step Law's surface, for choosing trials: milliseconds a fit, from the first few runs on.

The surface is that of `laws.forms.steplaw`. Every local quantity q of a scale (the optimum's ln lr and ln batch, three
curvatures, two tilts, two bends, the floor) is

    q_c = q_const + q_N n + q_D d + q_S s + Normal(0, SCATTER_q),        n, d, s: ln N, ln D, ln S, centred,

with normal priors on all coefficients, and the posterior is the normal one at its mode. Noise grows with the excess
over the floor by the form's own error, which few runs cannot tell from the noise and is fixed; its tails are Student-t.
The runs whose loss counts are those of the law; of the others, and of those that diverged, only this is taken: they end
at least WINDOW above the floor. The priors are the law's, weak and in the data's units: none holds a published
coefficient, unless one is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from laws.errors import InputError
from laws.forms import steplaw
from laws.forms.steplaw_cells import KEEP_AT_LEAST, MAX_EXCESS, WINDOW

NOISE, NOISE_SD = 3e-3, 1.0  # of log loss, a priori log-normal
NOISES = np.geomspace(2e-4, 2e-2, 41)  # tried
FORM_ERROR = 0.2  # of the excess: the scale of the law's prior
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
SAME = 0.01  # of the log of a size or budget


@dataclass(frozen=True)
class Space:
    """What is known before any loss: the scales and the settings that may be tried.

    logs: ln N, ln D and ln S, S the active share of N, of every scale [scale, 3]. x: [scale, 1 + k], 1 and the logs,
    centred; k is 3 where S differs, else 2. mid, half: of the (ln lr, ln batch) that may be tried.
    """

    logs: np.ndarray
    x: np.ndarray
    mid: np.ndarray
    half: np.ndarray

    def of(self, table: pd.DataFrame) -> np.ndarray:
        """The scale of every row; all must be in the space."""
        logs, row = np.unique(_logs(table), axis=0, return_inverse=True)
        apart = np.abs(logs[:, None] - self.logs).max(axis=2)
        assert len(apart) == 0 or apart.min(axis=1).max() < SAME
        return apart.argmin(axis=1)[row.reshape(-1)]


def distinct(*tables: pd.DataFrame) -> np.ndarray:
    """The scales of tables, in order, as Space.logs has them. Those that differ by less than SAME are one: budgets are
    rounded to whole steps."""
    found = np.empty((0, 3))
    for row in np.unique(np.concatenate([_logs(t) for t in tables]), axis=0):
        if not np.any(np.abs(found - row).max(axis=1) < SAME):
            found = np.append(found, row[None], axis=0)
    return found


def make_space(*tables: pd.DataFrame) -> Space:
    """The space of tables of runs, candidates and targets (params, tokens, perhaps params_active; lr, batch_tokens)."""
    logs = distinct(*tables)
    k = 3 if np.ptp(logs[:, 2]) > SAME else 2
    center = (logs.min(axis=0) + logs.max(axis=0)) / 2
    x = np.concatenate([np.ones((len(logs), 1)), (logs - center)[:, :k]], axis=1)
    tried = np.concatenate([np.log(t[["lr", "batch_tokens"]].to_numpy(float)) for t in tables if "lr" in t])
    low, high = tried.min(axis=0), tried.max(axis=0)
    return Space(logs, x, (low + high) / 2, np.maximum((high - low) / 2, 1.0))


def _logs(table: pd.DataFrame) -> np.ndarray:
    params = table["params"].to_numpy(float)
    active = table["params_active"].fillna(table["params"]).to_numpy(float) if "params_active" in table else params
    return np.log(np.stack([params, table["tokens"].to_numpy(float), active / params], axis=1))


@dataclass(frozen=True)
class Belief:
    """The normal posterior at its mode. theta: coefficients [LOCAL, 1 + k], then every scale's scatter [scale,
    SCATTERING], flat; cov: its covariance; noise: of log loss."""

    space: Space
    theta: np.ndarray
    cov: np.ndarray
    noise: float

    @property
    def coefficients(self) -> np.ndarray:
        k = self.space.x.shape[1]
        return self.theta[: LOCAL * k].reshape(LOCAL, k)

    def law(self, table: pd.DataFrame) -> np.ndarray:
        """(ln lr, ln batch) of the optimum by the law, at the scale of every row [row, 2]."""
        return self.space.x[self.space.of(table)] @ self.coefficients[:2].T

    def optimum(self, table: pd.DataFrame) -> np.ndarray:
        """The same with each scale's scatter about the law, as its own runs tell; the law's where there are none."""
        return quantities(self.space, self.theta)[self.space.of(table)][:, :2]

    def optimum_sd(self, table: pd.DataFrame) -> np.ndarray:
        """Standard deviations of `optimum` [row, 2]."""
        at = self.space.of(table)
        found = []
        for quantity in (LR, BATCH):
            local = np.zeros((len(at), LOCAL))
            local[:, quantity] = 1.0
            J = derivatives(self.space, at, local)
            found.append(np.sqrt(np.sum((J @ self.cov) * J, axis=1)))
        return np.stack(found, axis=1)


def quantities(space: Space, theta: np.ndarray) -> np.ndarray:
    """The quantities of every scale, [scale, LOCAL]."""
    scales = space.x
    split = LOCAL * scales.shape[1]
    out = scales @ theta[:split].reshape(LOCAL, -1).T
    out[:, SCATTERING] += theta[split:].reshape(len(scales), -1)
    return out


def derivatives(space: Space, at: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Derivatives by theta [row, p] from those by the local quantities [row, LOCAL] of scales `at`."""
    rows, scatters = len(at), len(SCATTERING)
    x = space.x[at]
    out = np.zeros((rows, LOCAL * x.shape[1] + len(space.x) * scatters))
    out[:, : LOCAL * x.shape[1]] = (local[:, :, None] * x[:, None, :]).reshape(rows, LOCAL * x.shape[1])
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
    the optimum's prior is then its plane, within a factor exp(0.5) at the centre and 0.15 in the exponents."""
    k = space.x.shape[1]
    mean, sd = np.zeros((LOCAL, k)), np.repeat(SLOPE_SD[:, None], k, axis=1)
    mean[:, 0], sd[:, 0] = MEAN, SD
    mean[:2, 0], sd[:2, 0] = space.mid, space.half
    if len(log_loss):
        mean[FLOOR, 0] = log_loss.min()
    if informed is not None:
        mean[:2] = np.linalg.lstsq(space.x, informed)[0].T
        sd[:2, 0], sd[:2, 1:] = 0.5, 0.15
    scatter = np.tile(SCATTER[SCATTERING], len(space.x))
    return np.append(mean.ravel(), np.zeros(len(scatter))), np.append(sd.ravel(), scatter)


def published(space: Space, name: str) -> np.ndarray:
    """(ln lr, ln batch) of a published law (`laws.published.SETTINGS`) at every scale [scale, 2], for `informed`."""
    from laws.published import SETTINGS

    N, D = np.exp(space.logs[:, :2].T)
    at = {"params": N, "tokens": D, "flops": 6 * N * D}
    rules = {law: [rule for rule in (s.lr, s.batch_tokens) if rule is not None] for law, s in SETTINGS.items()}
    known = [law for law, both in rules.items() if len(both) == 2 and {c for r in both for c in r.reads} <= at.keys()]
    if name not in known:
        raise InputError(f"no published law {name!r} of learning rate and batch size; known: {', '.join(known)}")
    return np.log(np.stack([rule(**{c: at[c] for c in rule.reads}) for rule in rules[name]], axis=1))


def fit(
    space: Space,
    runs: pd.DataFrame,
    *,
    target: str = "loss",
    informed: np.ndarray | None = None,
    warm: Belief | None = None,
) -> Belief:
    """The belief after `runs` (params, tokens, lr, batch_tokens, `target`, perhaps params_active); of those without a
    finite loss it is taken that they diverged. informed: as `prior` has it. warm: a belief to start from, beside the
    best runs."""
    at, settings = space.of(runs), np.log(runs[["lr", "batch_tokens"]].to_numpy(float))
    y = np.log(runs[target].to_numpy(float))
    lost = ~np.isfinite(y)
    mean, sd = prior(space, y[~lost], informed)
    lowest = np.full(len(space.x), np.inf)
    np.minimum.at(lowest, at[~lost], y[~lost])
    rank = pd.Series(y).groupby(at).rank(method="first").to_numpy()
    above = y - lowest[at]
    lost = lost | ~((above < WINDOW) | ((above < MAX_EXCESS) & (rank <= KEEP_AT_LEAST)))
    y = np.where(lost, lowest[at], y)
    usable = np.isfinite(y)
    data = at[usable], settings[usable, 0], settings[usable, 1], y[usable], lost[usable]
    noise = NOISE if warm is None else warm.noise
    starts = [_start(space, data, mean, sd)] + ([warm.theta] if warm is not None else [])
    found = [_mode(space, data, mean, sd, noise, start) for start in starts]
    _, theta, cov, noise = min(found, key=lambda one: one[0])
    return Belief(space, theta, cov, noise)


def _start(space: Space, data: tuple, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """The prior's mean, with the law and the floor through each scale's best runs."""
    at, lr, batch, y, lost = data
    theta = mean.copy()
    k = space.x.shape[1]
    best = []
    for cell in np.unique(at[~lost]):
        rows = np.flatnonzero((at == cell) & ~lost)
        rows = rows[np.argsort(y[rows])][: max(1, min(3, len(rows) // 4))]
        best.append((cell, lr[rows].mean(), batch[rows].mean(), y[rows].min()))
    if best:
        cells, *values = map(np.array, zip(*best))
        x = space.x[cells]
        for q, value, spread in zip((LR, BATCH, FLOOR), values, (0.5, 0.5, 0.05)):
            part = slice(q * k, (q + 1) * k)
            ridge = np.diag((spread / sd[part]) ** 2)
            theta[part] += np.linalg.solve(x.T @ x + ridge, x.T @ (value - x @ mean[part]))
    return theta


def _mode(
    space: Space, data: tuple, mean: np.ndarray, sd: np.ndarray, noise: float, theta: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, float]:
    """(minus log posterior, theta, its covariance, noise): Levenberg's steps, with the weights of the step before."""
    at, lr, batch, y, lost = data
    precision = sd**-2.0

    def residuals(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Residuals, local derivatives of the model, and what the noise's size goes by."""
        q = quantities(space, theta)[at]
        above, local = surface(q, lr, batch)
        r = np.where(lost, np.maximum(WINDOW - above, 0.0), y - q[:, FLOOR] - above)
        local[:, FLOOR] = 1.0
        local[lost, FLOOR] = 0.0
        local[lost & (above >= WINDOW)] = 0.0
        return r, local, np.where(lost, WINDOW, np.maximum(y - q[:, FLOOR], 0.0))

    r, local, above = residuals(theta)
    damping = 1e-2
    for step in range(MAX_STEPS):
        variance = noise**2 + (FORM_ERROR * above) ** 2
        weight = 1 / variance
        if step > 4:
            weight = weight * (TAILS + 1) / (TAILS + r**2 * weight)
        J = derivatives(space, at, local)
        value = np.sum(weight * r**2) + np.sum((theta - mean) ** 2 * precision)
        gradient = J.T @ (weight * r) - (theta - mean) * precision
        diagonal = np.sum(J**2 * weight[:, None], axis=0) + precision
        gain = 0.0
        while damping < 1e8:
            tried = theta + _solve(J, weight, precision + damping * diagonal, gradient)
            r_new, local_new, above_new = residuals(tried)
            new = np.sum(weight * r_new**2) + np.sum((tried - mean) ** 2 * precision)
            if new <= value:
                gain = value - new
                theta, r, local, above = tried, r_new, local_new, above_new
                damping = max(damping / 5, 1e-7)
                break
            damping *= 5
        if step > 4:
            leverage = np.sum(J.T * _solve(J, weight, precision, J.T * weight))
            noise = _noise(r[~lost], above[~lost], leverage)
        if step > 8 and gain < 1e-3:
            break
    variance = noise**2 + (FORM_ERROR * above) ** 2
    weight = (TAILS + 1) / (TAILS + r**2 / variance) / variance
    cov = _solve(derivatives(space, at, local), weight, precision, np.eye(len(theta)))
    fit = (TAILS + 1) / 2 * np.sum(np.log1p(r**2 / variance / TAILS)) + np.sum(np.log(variance)) / 2
    fit += np.sum((theta - mean) ** 2 * precision) / 2
    return float(fit), theta, (cov + cov.T) / 2, noise


def _solve(J: np.ndarray, weight: np.ndarray, diagonal: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(J' weight J + diagonal)^-1 b; by Woodbury's formula where there are fewer rows than many unknowns."""
    if len(J) >= len(diagonal) or len(diagonal) < 500:
        A = (J.T * weight) @ J
        A[np.diag_indices_from(A)] += diagonal
        return np.linalg.solve(A, b)
    scaled = J / diagonal
    inner = np.linalg.solve(np.diag(1 / weight) + scaled @ J.T, scaled @ b)
    return (b.T / diagonal).T - scaled.T @ inner


def _noise(r: np.ndarray, above: np.ndarray, leverage: float) -> float:
    """The likeliest noise of residuals r at excesses `above`; leverage: how many of them the fit took up."""
    share = max(1 - leverage / max(len(r), 1), 0.1)
    variance = NOISES[:, None] ** 2 + (FORM_ERROR * above) ** 2
    fits = -(TAILS + 1) / 2 * np.log1p(r**2 / share / variance / TAILS) - np.log(variance) / 2
    fit = share * fits.sum(axis=1) - (np.log(NOISES / NOISE) / NOISE_SD) ** 2 / 2
    return float(NOISES[np.argmax(fit)])
