"""Which of two recipes is better where: their fitted surfaces compared over the (N, D) plane.

The idea is of Li et al. 2025 (Farseer, arXiv 2506.10972, appendix E): a comparison at one small scale, or along one
line, may turn round at a larger one; fit a law to each recipe's small runs and compare the surfaces. Here with the
posteriors' uncertainty: the probability that A's mean loss is lower, and where the sign changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from laws import forms
from laws.allocation import Covariate, doubts, mean_loss, optimum, ordered
from laws.asked import counts
from laws.budget import budgeted
from laws.errors import InputError
from laws.posterior import Posterior, Quantity, refuse_other

SIDE = 25  # points of a side of the plane where none is given
BEYOND = 10.0  # how far past the data both have in common the plane then reaches
BUDGETS = 17
ELEMENTS = 20_000_000  # draws times points of the plane above which draws are thinned, to 100 at the least


@dataclass(frozen=True)
class Comparison:
    """Two recipes over a plane of params [n] and tokens [d].

    probability: [n, d], that A's mean loss is below B's. difference: A's mean loss over B's, less 1; draws
    [draw, n, d]. crossings: a row for each of `params`, columns params, before ("a" or "b": the likelier better one at
    the fewest tokens), after (at the most), share (of draws in which the better one changes) and low, median, high of
    the tokens at which it first does, in those draws (90% interval). budgets: along each recipe's own compute-optimal
    line, columns flops, probability, low, median, high (of the difference); crossing: like a row of `crossings`, with
    flops in place of params and tokens. warnings: sentences.
    """

    params: np.ndarray
    tokens: np.ndarray
    probability: np.ndarray
    difference: Quantity
    crossings: pd.DataFrame
    budgets: pd.DataFrame
    crossing: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def compare(
    a: Posterior,
    b: Posterior,
    *,
    params: Any = None,
    tokens: Any = None,
    n_draws: int | None = None,
    **covariates: Covariate,
) -> Comparison:
    """The recipe of posterior `a` beside that of `b` on every pair of params [n] and tokens [d], increasing.

    By default the range that the data of both have in common, and ten times more of each. Draws of the two are taken as
    independent; of two recipes of one fit (`pooled.of("x")`, `pooled.of("y")`) as the pairs that they are. covariates:
    what the laws need besides, as `allocate` has them; each law takes its own. n_draws: at most, of each; default 1000.
    Raises InputError for posteriors of different targets (losses that cannot be compared) or counts of N, or bad params
    or tokens.
    """
    for given in (a, b):
        refuse_other(given)
    if a.meta["target"] != b.meta["target"]:
        raise InputError(
            f"a predicts {a.meta['target']!r} and b {b.meta['target']!r}: fit both to the same loss "
            "column, of the same held-out text"
        )
    sizes = [x.meta.get("size", "params") for x in (a, b)]
    if sizes[0] != sizes[1]:
        raise InputError(f"N counts {sizes[0]} in a and {sizes[1]} in b: fit both with the same size=")
    asked = {"params": params, "tokens": tokens}
    axes = {c: _shared(a, b, c) if x is None else _axis(c, x) for c, x in asked.items()}
    grid = np.meshgrid(*axes.values(), indexing="ij")
    if n_draws is None:
        have = (len(next(iter(x.draws.values()))) for x in (a, b))
        n_draws = min(1000, max(100, ELEMENTS // grid[0].size), *have)
    if not (isinstance(n_draws, (int, np.integer)) and n_draws >= 1):
        raise InputError(f"n_draws must be a whole number of at least 1, got {n_draws!r}")
    n = n_draws
    own_a, own_b = _own(a, b, covariates)
    loss_a, loss_b = (mean_loss(x, grid[0], grid[1], n, own) for x, own in ((a, own_a), (b, own_b)))
    pairs = _one_fit(a, b)
    # Of two fits: so that draw i of one says nothing of draw i of the other.
    shuffled = np.arange(n) if pairs else np.random.default_rng(0).permutation(n)
    difference = loss_a / loss_b[shuffled] - 1
    probability = _probability(loss_a.reshape(n, -1), loss_b.reshape(n, -1), pairs).reshape(grid[0].shape)
    rows = [
        {"params": size} | _flip(axes["tokens"], difference[:, i], probability[i])
        for i, size in enumerate(axes["params"])
    ]
    costs = [budgeted(0.0, None, None, own) for own in (own_a, own_b)]
    ends = np.array([[cost.flops(axes["params"][i], axes["tokens"][i]) for i in (0, -1)] for cost in costs])
    least, most = ends[:, 0].min(), ends[:, 1].max()
    flops = np.geomspace(least, most, BUDGETS if most > least else 1)
    lines = [[optimum(x, C, cost, n, own) for C in flops] for x, cost, own in zip((a, b), costs, (own_a, own_b))]
    best_a, best_b = (np.stack([one.loss for one in line], axis=1) for line in lines)
    along, likely = best_a / best_b[shuffled] - 1, _probability(best_a, best_b, pairs)
    low, median, high = np.quantile(along, (0.05, 0.5, 0.95), axis=0)
    budgets = pd.DataFrame({"flops": flops, "probability": likely, "low": low, "median": median, "high": high})
    warnings = _outside(a, b, axes)
    for name, line in zip("ab", lines):
        missing = np.array([one.no_optimum.mean() for one in line])
        warnings += [f"{name}, at its best sizes: {text}" for text in doubts(flops, missing, np.zeros(len(flops)))]
    return Comparison(
        **axes,
        probability=probability,
        difference=Quantity(difference),
        crossings=pd.DataFrame(rows),
        budgets=budgets,
        crossing=_flip(flops, along, likely),
        warnings=warnings,
    )


def _own(a: Posterior, b: Posterior, covariates: dict[str, Covariate]) -> list[dict[str, Covariate]]:
    """Of the covariates those that each law reads. Raises InputError for one that neither does."""
    known = [forms.get(x.law).COVARIATES for x in (a, b)]
    for name in covariates:
        if not any(name in names for names in known):
            raise InputError(f"neither {a.law} (a) nor {b.law} (b) reads {name}; leave it out")
    return [{name: value for name, value in covariates.items() if name in names} for names in known]


def _axis(name: str, given: Any) -> np.ndarray:
    x = np.atleast_1d(counts(name, given))
    if x.ndim > 1 or not x.size or (np.diff(x) <= 0).any():
        raise InputError(f"{name} must be one number or a list of increasing ones, to span a plane")
    return x


def _shared(a: Posterior, b: Posterior, name: str) -> np.ndarray:
    (a_low, a_high), (b_low, b_high) = a.meta["ranges"][name], b.meta["ranges"][name]
    low, high = max(a_low, b_low), min(a_high, b_high)
    if low > high:
        raise InputError(
            f"the fitted ranges of {name} have nothing in common ({a_low:.3g} to {a_high:.3g} and {b_low:.3g} to "
            f"{b_high:.3g}); give {name}="
        )
    return np.geomspace(low, high * BEYOND, SIDE)


def _one_fit(a: Posterior, b: Posterior) -> bool:
    """Whether both are recipes of one pooled fit, so that draw i of both is one."""
    same = ("recipes", "data_digest", "settings", "seed")
    return "recipe" in a.meta and "recipe" in b.meta and all(a.meta[key] == b.meta[key] for key in same)


def _probability(a: np.ndarray, b: np.ndarray, pairs: bool) -> np.ndarray:
    """Of a draw of a [n, query] lying below one of b [m, query], over all pairs or those of the same draw; a tie counts
    a half."""
    if pairs:
        return np.mean((a < b) + 0.5 * (a == b), axis=0)
    ranks = rankdata(np.concatenate([a, b]), axis=0)[len(a) :].sum(axis=0)
    return (ranks / len(b) - (len(b) + 1) / 2) / len(a)


def _flip(x: np.ndarray, difference: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    """Where along x [m] the sign of difference [draw, m] first changes; a row of `crossings`."""
    negative = difference < 0
    changes = negative[:, 1:] != negative[:, :-1]
    rows = np.flatnonzero(changes.any(axis=1))
    out: dict[str, Any] = {"before": _better(probability[0]), "after": _better(probability[-1])}
    out |= {"share": len(rows) / len(difference), "low": np.nan, "median": np.nan, "high": np.nan}
    if len(rows):
        k = np.argmax(changes[rows], axis=1)
        left, right = difference[rows, k], difference[rows, k + 1]
        at = np.log(x)[k] + left / (left - right) * (np.log(x)[k + 1] - np.log(x)[k])
        out |= dict(zip(("low", "median", "high"), np.exp(ordered(at, (0.05, 0.5, 0.95))).tolist()))
    return out


def _better(probability: float) -> str:
    return "a" if probability > 0.5 else "b"


def _outside(a: Posterior, b: Posterior, axes: dict[str, np.ndarray]) -> list[str]:
    return [f"{name}: {note}" for name, x in (("a", a), ("b", b)) for c in axes for note in x._outside(c, axes[c])]
