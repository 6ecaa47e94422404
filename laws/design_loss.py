"""Which sizes to train next, and on how many tokens, to learn the loss at given scales for the fewest FLOPs.

What counts is the variance of the log of the mean loss at the targets, summed: of the law and of its form error. A
posterior's draws of the mean loss are functions of (N, D): at candidates and targets they have the joint covariance, by
which a run of a candidate takes the targets' variance down, whatever its outcome. The next trial is that of the largest
decrease a FLOP, and the one after it counts with the first one done.

A trial is a cell at settings as good as those of the runs so far: the law knows no learning rate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

import laws
from laws import design
from laws.errors import FitError, InputError
from laws.forms.grid import coordinates
from laws.noise import scale
from laws.posterior import Posterior
from laws.splits import SAME_SIZE

LAWS = ("nested", "chinchilla", "farseer")
CHANCE = 4.0  # gains below this many times what draws correlate by chance count for nothing
MOST = 3000  # candidates that a batch is chosen from: of more, those that are best alone


def fit(law: str, runs: pd.DataFrame, *, target: str = "loss", seed: int = 0) -> Posterior:
    """The posterior of `law` by normal approximation. Raises FitError where the runs are too few, with what to do."""
    try:
        return laws.fit(law, runs, target=target, seed=seed, laplace=True)
    except FitError as error:
        raise FitError(
            f"{error}; begin with the cheapest sizes and budgets that you would train, each at its best settings "
            "(--law steplaw finds them)"
        ) from None


def candidates(runs: pd.DataFrame, params: Any = None, tokens: Any = None) -> pd.DataFrame:
    """params, tokens, flops: every size with every budget, less the cells of `runs`.

    By default those of `runs` that ended well and one more of each, by the ratio of the largest two. Raises InputError
    where none did."""
    done = runs[runs["status"] == "ok"] if "status" in runs else runs
    if done.empty:
        raise InputError(f"none of the {len(runs)} runs ended well; train the cheapest sizes and budgets first")
    sizes = _and_beyond(done["params"]) if params is None else np.unique(params)
    budgets = _and_beyond(done["tokens"]) if tokens is None else np.unique(tokens)
    made = pd.DataFrame([(n, d) for n in sizes for d in budgets], columns=["params", "tokens"])
    made["flops"] = design.training_flops(made)
    known = done[["params", "tokens"]].drop_duplicates()
    same = np.ones((len(made), len(known)), bool)
    for column in ("params", "tokens"):
        x, y = (np.log(table[column].to_numpy(float)) for table in (made, known))
        same &= np.abs(x[:, None] - y) < SAME_SIZE
    return made[~same.any(axis=1)].reset_index(drop=True)


def _and_beyond(tried: pd.Series) -> np.ndarray:
    """The distinct values, budgets rounded to whole steps as one, and the largest times its ratio to the one below."""
    values = np.sort(tried.to_numpy(float))
    values = values[np.diff(np.log(values), prepend=-np.inf) > SAME_SIZE]
    return np.append(values, values[-1] * (values[-1] / values[-2] if len(values) > 1 else 2.0))


def joint(posterior: Posterior, table: pd.DataFrame) -> np.ndarray:
    """Z [row, draw], with Z Z^T the posterior covariance of the log mean loss at rows of params and tokens."""
    asked = {column: table[column].to_numpy(float) for column in ("params", "tokens")}
    n_draws = len(posterior.draws["noise"])
    logs = np.log(posterior.predict(n_draws=n_draws, **asked).mean_loss.draws)
    return (logs - logs.mean(axis=0)).T / np.sqrt(n_draws - 1)


def run_variance(posterior: Posterior, table: pd.DataFrame) -> np.ndarray:
    """Of a run's log loss about the mean loss, [row]: of the normal that tells as much as its Student-t noise."""
    columns = {column: table[column].to_numpy(float) for column in ("params", "tokens")}
    size = scale(posterior.meta, coordinates(columns, posterior.meta["center"]))
    df = posterior.meta["tails"]
    return np.mean(posterior.draws["noise"] ** 2) * size**2 * (df + 3) / (df + 1)


def choose(
    posterior: Posterior,
    table: pd.DataFrame,
    targets: pd.DataFrame,
    *,
    batch: int,
    flops: float = np.inf,
    slot: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(which candidates, in order; the decrease of the targets' summed variance that each adds; the standard deviation
    of each target's log mean loss now; with these trials): at most `batch`, within `flops`.

    table: params, tokens, flops of the candidates. targets: params, tokens. slot: what a trial counts for at least, as
    in `laws.design.choose`. Raises InputError where no candidate is within `flops`.
    """
    cost = table["flops"].to_numpy(float)
    offered = np.flatnonzero(cost <= flops)
    if not len(offered):
        raise InputError(
            f"no candidate costs at most {flops:.3g} FLOPs: the cheapest of {len(cost)} takes "
            f"{cost.min() if len(cost) else np.inf:.3g}; raise the budget, or allow smaller scales"
        )
    T, noise = joint(posterior, targets).T, run_variance(posterior, table)
    if len(offered) > MOST:
        parts = np.array_split(offered, -(-len(offered) // MOST))
        alone = [design.gain_of(joint(posterior, table.iloc[part]), noise[part], T) for part in parts]
        best = np.argsort(-np.concatenate(alone) / np.maximum(cost[offered], slot), kind="stable")[:MOST]
        offered = np.sort(offered[best])
    Z = joint(posterior, table.iloc[offered])
    how: dict[str, Any] = {"batch": batch, "flops": flops, "slot": slot, "least": CHANCE / Z.shape[1]}
    chosen, gains, after = design.greedy(Z, noise[offered], T, cost[offered], **how)
    return offered[chosen], gains, np.linalg.norm(T, axis=0), np.linalg.norm(after, axis=0)
