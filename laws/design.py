"""Which trials to run next, to learn Step Law's optimum at given scales for the fewest FLOPs.

What counts is the regret expected at the targets, the mean of tr(H V) / 2: V the posterior covariance of the optimum
(ln lr*, ln B*) there, H the Hessian of the excess of log loss. A trial takes V down by an amount that does not depend
on its outcome (rank one, linearised at the mode, with the noise that is expected at its excess). The next trial is that
of the largest decrease a FLOP, and the one after it counts with the first one done, so that a batch spreads. Greedy,
and blind to what the linearisation leaves out: hence small batches, and a first one spread over the cheapest scales.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from laws.design_fit import (
    BATCH,
    FLOOR,
    FORM_ERROR,
    LOCAL,
    LR,
    SCATTERING,
    Belief,
    Space,
    derivatives,
    fit,
    hessian,
    make_space,
    published,
    quantities,
    surface,
)
from laws.errors import InputError
from laws.forms.steplaw_cells import MAX_EXCESS

__all__ = [
    "Belief",
    "Space",
    "candidates",
    "choose",
    "expected_regret",
    "first",
    "fit",
    "greedy",
    "make_space",
    "published",
    "scales_of",
    "training_flops",
]

LR_RATIO, BATCH_RATIO = np.sqrt(2.0), 2.0  # steps of a grid of settings
MOST = 3000  # candidates that a batch is chosen from: of more, those that are best alone


def training_flops(table: pd.DataFrame) -> np.ndarray:
    """6 N D of every row, N the active parameters."""
    params = table["params"].astype(float)
    active = table["params_active"].fillna(params) if "params_active" in table else params
    return (6 * active * table["tokens"].astype(float)).to_numpy(float)


def scales_of(runs: pd.DataFrame) -> pd.DataFrame:
    """params, tokens (and params_active) of every scale of `runs`; budgets that differ by rounding are one."""
    first_rows = np.unique(make_space(runs).of(runs), return_index=True)[1]
    return runs[_keys(runs)].iloc[first_rows].reset_index(drop=True)


def candidates(
    scales: pd.DataFrame, lr: tuple[float, float], batch_tokens: tuple[float, float], runs: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Every setting of a grid from low to high (learning rates by the root of 2, batches by 2) at every one of `scales`
    (params, tokens, perhaps params_active), with its flops, less those within a quarter of a step of one of `runs`."""
    grids = []
    for (low, high), ratio in ((lr, LR_RATIO), (batch_tokens, BATCH_RATIO)):
        grids.append(low * ratio ** np.arange(round(np.log(high / low) / np.log(ratio)) + 1))
    settings = pd.DataFrame([(x, y) for y in grids[1] for x in grids[0]], columns=["lr", "batch_tokens"])
    out = scales.drop_duplicates().merge(settings, how="cross")
    out["flops"] = training_flops(out)
    if runs is None or runs.empty:
        return out
    space = make_space(out, runs)
    done = space.of(out)[:, None] == space.of(runs)
    for column, ratio in (("lr", LR_RATIO), ("batch_tokens", BATCH_RATIO)):
        x, y = (np.log(t[column].to_numpy(float)) for t in (out, runs))
        done &= np.abs(x[:, None] - y) < np.log(ratio) / 4
    return out[~done.any(axis=1)].reset_index(drop=True)


def first(table: pd.DataFrame, *, batch: int, scales: int = 3, seed: int = 0) -> np.ndarray:
    """Before any loss: which `batch` candidates, spread over the settings of the cheapest `scales`.

    One scale after the other, the setting farthest from those taken there and, with a lead of 0.15 of the range, from
    those of the others; the first is drawn at random."""
    rng = np.random.default_rng(seed)
    cost = table["flops"].to_numpy(float)
    at, names = pd.factorize(pd.MultiIndex.from_frame(table[_keys(table)].fillna(-1.0)))
    cheapest = np.argsort([cost[at == i].mean() for i in range(len(names))], kind="stable")[:scales]
    settings = np.log(table[["lr", "batch_tokens"]].to_numpy(float))
    settings = (settings - settings.min(axis=0)) / np.maximum(np.ptp(settings, axis=0), 1e-9)
    chosen: list[int] = []
    for turn in range(min(batch, int(np.isin(at, cheapest).sum()))):
        here = at == cheapest[turn % len(cheapest)]
        here[chosen] = False
        if not here.any():
            continue
        distance = np.full(len(cost), 9.0)
        for i in chosen:
            apart = np.linalg.norm(settings - settings[i], axis=1)
            distance = np.minimum(distance, np.where(at == at[i], apart, apart + 0.15))
        chosen.append(int(np.argmax(np.where(here, distance + 1e-3 * rng.random(len(cost)), -1.0))))
    return np.array(chosen, int)


def _keys(table: pd.DataFrame) -> list[str]:
    return [c for c in ("params", "tokens", "params_active") if c in table]


def _target_root(belief: Belief, targets: pd.DataFrame) -> np.ndarray:
    """R [p, 2 targets]: the expected regret is the trace of R^T cov R."""
    space = belief.space
    at, k = space.of(targets), space.x.shape[1]
    roots = np.linalg.cholesky(hessian(quantities(space, belief.theta)[at])) * np.sqrt(0.5 / len(at))
    R = np.zeros((len(belief.theta), len(at), 2))
    for place, q in enumerate(SCATTERING):
        if q in (LR, BATCH):
            R[q * k : (q + 1) * k] = space.x[at].T[:, :, None] * roots[:, q, :]
            R[LOCAL * k + at * len(SCATTERING) + place, np.arange(len(at))] = roots[:, q, :]
    return R.reshape(len(belief.theta), -1)


def expected_regret(belief: Belief, targets: pd.DataFrame) -> float:
    """Relative excess of loss that not knowing the optimum costs, mean over targets: by its covariance, scatter of the
    scale about the law included."""
    R = _target_root(belief, targets)
    return float(np.sum(R * (belief.cov @ R)))


def choose(
    belief: Belief,
    table: pd.DataFrame,
    targets: pd.DataFrame,
    *,
    batch: int,
    flops: float = np.inf,
    slot: float = 0.0,
    cohort: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """(which candidates, in order; the decrease of expected regret that each adds): at most `batch`, within `flops`.

    table: the candidates: params, tokens, lr, batch_tokens, flops (and params_active). slot: what a trial counts for at
    least, where their number is short and not their FLOPs alone: cheaper ones are no better for it. cohort: candidates
    are taken so many at a time from one (params, tokens, batch_tokens), which train in one program. Raises InputError
    where no candidate is within `flops`.
    """
    cost = table["flops"].to_numpy(float)
    if not np.any(cost <= flops):
        raise InputError(
            f"no candidate costs at most {flops:.3g} FLOPs: the cheapest of {len(cost)} takes "
            f"{cost.min() if len(cost) else np.inf:.3g}; raise the budget, or allow smaller scales"
        )
    root = np.linalg.cholesky(belief.cov)
    T = root.T @ _target_root(belief, targets)
    offered = np.flatnonzero(cost <= flops)
    if len(offered) > MOST:
        parts = np.array_split(offered, -(-len(offered) // MOST))
        alone = np.concatenate([gain_of(*_whitened(belief, root, table.iloc[part]), T) for part in parts])
        best = np.argsort(-alone / np.maximum(cost[offered], slot), kind="stable")[:MOST]
        offered = np.sort(offered[best])
    table, cost = table.iloc[offered], cost[offered]
    Z, noise = _whitened(belief, root, table)
    program = pd.factorize(pd.MultiIndex.from_frame(table[[*_keys(table), "batch_tokens"]].fillna(-1.0)))[0]
    chosen, gains, _ = greedy(Z, noise, T, cost, batch=batch, flops=flops, slot=slot, program=program, cohort=cohort)
    return offered[chosen], gains


def greedy(
    Z: np.ndarray,
    noise: np.ndarray,
    T: np.ndarray,
    cost: np.ndarray,
    *,
    batch: int,
    flops: float = np.inf,
    slot: float = 0.0,
    program: np.ndarray | None = None,
    cohort: int = 1,
    least: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows of Z in the order chosen, the decrease of the sum of T^2 that each adds, T after them).

    Of unknowns with covariance I, Z [candidate, p] is what candidates measure, with variance `noise`, T [p, target]
    what is asked. least: the share of the sum of T^2 below which a gain counts for nothing. The rest: see `choose`.
    """
    Z, T = Z.copy(), T.copy()
    chosen: list[int] = []
    gains: list[float] = []
    together = np.ones(len(cost), bool)
    while len(chosen) < batch:
        gain = gain_of(Z, noise, T)
        worth = np.where((cost <= flops) & (gain > least * np.sum(T**2)), gain / np.maximum(cost, slot), 0.0)
        worth[chosen] = 0.0
        if cohort > 1 and program is not None and (len(chosen) % cohort == 0 or not np.any(worth[together] > 0)):
            together = program == _best_group(worth, program, cohort)
        i = int(np.argmax(np.where(together, worth, 0.0)))
        if not worth[i] > 0:
            break
        chosen.append(i)
        gains.append(float(gain[i]))
        flops -= cost[i]
        z = Z[i].copy()
        # The covariance I - z z' / total has the root I - c z z'.
        c = (1 - np.sqrt(noise[i] / (noise[i] + z @ z))) / (z @ z)
        Z -= c * np.outer(Z @ z, z)
        T -= c * np.outer(z, z @ T)
    return np.array(chosen, int), np.array(gains), T


def _whitened(belief: Belief, root: np.ndarray, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(the candidates' derivatives in units of the posterior [row, p], the variance of their noise [row]): infinite
    where a run would be too far from the optimum to count."""
    at, settings = belief.space.of(table), np.log(table[["lr", "batch_tokens"]].to_numpy(float))
    above, by_local = surface(quantities(belief.space, belief.theta)[at], settings[:, 0], settings[:, 1])
    by_local[:, FLOOR] = 1.0
    Z = derivatives(belief.space, at, by_local) @ root
    # Where a candidate's loss is little known, so is how far from the optimum it lies.
    noise = belief.noise**2 + FORM_ERROR**2 * (above**2 + np.sum(Z**2, axis=1))
    return Z, np.where(above < MAX_EXCESS, noise, np.inf)


def gain_of(Z: np.ndarray, noise: np.ndarray, T: np.ndarray) -> np.ndarray:
    """What each candidate alone takes from the expected regret, [row]."""
    return np.sum((Z @ T) ** 2, axis=1) / (noise + np.sum(Z**2, axis=1))


def _best_group(worth: np.ndarray, group: np.ndarray, size: int) -> int:
    """The group whose best `size` members are together worth most, each as if alone."""
    order = np.lexsort((-worth, group))
    start = np.searchsorted(group[order], group[order])
    top = np.arange(len(order)) - start < size
    return int(np.argmax(np.bincount(group[order][top], worth[order][top])))
