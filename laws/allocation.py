"""How to spend compute: the size and the tokens of lowest loss at a budget, draw by draw, and how flat the valley is.

Along a budget C = 6 N D (+ 2 N T for T inference tokens: Sardana et al. 2024, Beyond Chinchilla-Optimal, arXiv
2401.00448) every draw of the mean loss is evaluated on one grid of D / N and its minimum interpolated. Two answers
come of it: the optimum of each draw, whose spread says how well the law knows it, and the recommended size, which has
the lowest loss averaged over the draws. No closed form is used, so that any law, stack or form error goes through.

Some laws (Farseer) have only a local minimum, and none above some budget: the lowest interior minimum is taken, and
`warnings` says in what share of the draws it is merely local or missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from laws import forms
from laws.budget import RATIOS, Budget, PerToken, budgeted
from laws.errors import InputError
from laws.posterior import Posterior, Prediction, Quantity, plain, refuse_other

TOLERANCES = (0.001, 0.005, 0.01)  # of the flat valley
SMALLER = (1.5, 2.0, 4.0, 8.0)  # how many times smaller a model in `overtrain`
SHARE = 0.05  # of the draws: below it nothing is said about them
Covariate = float | Callable[[np.ndarray], np.ndarray]  # a value, or a function of params


@dataclass(frozen=True)
class Allocation:
    """Where the loss is lowest at each budget. Shapes are those of `flops`; Quantities have draws [n, *flops].

    params, tokens, ratio (tokens per parameter), loss: of every draw's own optimum. `recommended_params` and
    `recommended_tokens` have the lowest posterior mean loss (nan where that has no interior minimum);
    `recommended_loss` is the mean loss (of the curve, no run's noise) there. valley: tolerance -> (smallest, largest)
    N whose loss is within that of the recommended one's. no_optimum, local_only: the shares of draws without an
    interior minimum (their params are at the edge of the search) and of those whose loss is lower still at the edge.
    curve: columns flops, params, tokens, mean, low, high: the loss along each budget, with its 90% interval.
    """

    flops: Any
    params: Quantity
    tokens: Quantity
    ratio: Quantity
    loss: Quantity
    recommended_params: Any
    recommended_tokens: Any
    recommended_loss: Quantity
    valley: dict[float, tuple[Any, Any]]
    no_optimum: Any
    local_only: Any
    inference_tokens: float
    curve: pd.DataFrame
    warnings: list[str]

    def __repr__(self) -> str:
        budgets, sizes, tokens = (np.ravel(x) for x in (self.flops, self.recommended_params, self.recommended_tokens))
        shown = "; ".join(f"{C:.3g} FLOP: {N:.3g} params, {D:.3g} tokens" for C, N, D in zip(budgets, sizes, tokens))
        return f"Allocation({shown})"


def allocate(
    posterior: Posterior,
    *,
    flops: Any,
    inference_tokens: float = 0.0,
    flops_per_token: PerToken | None = None,
    inference_flops_per_token: PerToken | None = None,
    n_draws: int | None = None,
    **covariates: Covariate,
) -> Allocation:
    """The size and tokens of lowest loss with `flops` to spend: a number or an array of budgets in FLOP.

    inference_tokens: tokens the model will serve, whose cost comes out of `flops`. flops_per_token,
    inference_flops_per_token: FLOPs per token over N (6 and 2; of the active parameters where these are given), or
    functions of an array of N. covariates: what the law needs besides params and tokens, each one value or a function
    of an array of N, such as params_active=lambda N: N / 8. n_draws: by default all draws.
    Raises InputError for budgets that are not positive, finite and plausible, and for laws without a loss or tokens.
    """
    refuse_unasked(posterior, covariates)
    shape, every = np.shape(flops), _budgets(flops)
    budget = budgeted(inference_tokens, flops_per_token, inference_flops_per_token, covariates)
    found = [_spent(posterior, C, budget, n_draws, covariates) for C in every]

    def shaped(one_a_budget: Sequence[Any]) -> np.ndarray:
        whole = np.stack(one_a_budget, axis=-1)
        return whole.reshape((*whole.shape[:-1], *shape))

    def own(name: str) -> np.ndarray:
        return shaped([getattr(one.optimum, name) for one in found])

    params, tokens = own("params"), own("tokens")
    best, its_tokens = shaped([one.params for one in found]), shaped([one.tokens for one in found])
    valley = shaped([one.valley for one in found])
    known = np.isfinite(best)
    at_best = predicted(posterior, best[known], its_tokens[known], len(params), covariates)
    best_loss = np.full(params.shape, np.nan)
    best_loss[:, known] = at_best.mean_loss.draws.reshape(len(params), -1)
    none, local = own("no_optimum").mean(axis=0), own("local_only").mean(axis=0)
    curve = pd.concat([one.curve for one in found], ignore_index=True)
    return Allocation(
        flops=plain(every.reshape(shape)),
        params=Quantity(params),
        tokens=Quantity(tokens),
        ratio=Quantity(tokens / params),
        loss=Quantity(own("loss")),
        recommended_params=plain(best),
        recommended_tokens=plain(its_tokens),
        recommended_loss=Quantity(best_loss),
        valley={t: (plain(valley[0, i]), plain(valley[1, i])) for i, t in enumerate(TOLERANCES)},
        no_optimum=plain(none),
        local_only=plain(local),
        inference_tokens=budget.inference_tokens,
        curve=curve,
        warnings=[*_eaten(every, best.ravel(), budget), *doubts(every, none.ravel(), local.ravel()), *at_best.warnings],
    )


@dataclass(frozen=True)
class Optimum:
    """Every draw's own optimum of one budget, [n] each, as in Allocation."""

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    no_optimum: np.ndarray
    local_only: np.ndarray


@dataclass(frozen=True)
class _Spent:
    """One budget: its optimum, the recommended model, the valley [2, tolerance], the loss along it."""

    optimum: Optimum
    params: float
    tokens: float
    valley: np.ndarray
    curve: pd.DataFrame


def optimum(posterior: Posterior, flops: float, budget: Budget, n_draws: int | None, covariates: dict) -> Optimum:
    """The optimum of one budget."""
    return _lowest(*_along(posterior, flops, budget, n_draws, covariates), flops, budget)


def _along(
    posterior: Posterior, flops: float, budget: Budget, n_draws: int | None, covariates: dict
) -> tuple[np.ndarray, np.ndarray]:
    """(ln tokens per parameter [m], mean loss [n, m]) along a budget."""
    ratios = budget.ratios(flops)
    sizes = budget.params(flops, ratios)
    return np.log(ratios), mean_loss(posterior, sizes, ratios * sizes, n_draws, covariates)


def _lowest(x: np.ndarray, loss: np.ndarray, flops: float, budget: Budget) -> Optimum:
    at, lowest, interior = _minimum(x, loss)
    params = budget.params(flops, np.exp(at))
    local_only = interior & (np.minimum(loss[:, 0], loss[:, -1]) < lowest)
    return Optimum(params, np.exp(at) * params, lowest, ~interior, local_only)


def _spent(posterior: Posterior, flops: float, budget: Budget, n_draws: int | None, covariates: dict) -> _Spent:
    x, loss = _along(posterior, flops, budget, n_draws, covariates)
    mean = loss.mean(axis=0)
    best, best_loss, exists = (v[0] for v in _minimum(x, mean[None]))
    params = float(budget.params(flops, np.exp(best))) if exists else np.nan
    valley = np.full((2, len(TOLERANCES)), np.nan)
    if exists:
        edges = np.array([_around(x, mean, best, best_loss * (1 + t)) for t in TOLERANCES])
        valley = budget.params(flops, np.exp(edges.T[::-1]))
    sizes = budget.params(flops, np.exp(x))
    low, high = np.quantile(loss, [0.05, 0.95], axis=0)
    columns = {"flops": flops, "params": sizes, "tokens": np.exp(x) * sizes, "mean": mean, "low": low, "high": high}
    own = _lowest(x, loss, flops, budget)
    return _Spent(own, params, np.exp(best) * params, valley, pd.DataFrame(columns)[::-1])


def _minimum(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(where, value, whether it is interior) of the lowest interior minimum of rows y [n, m] over even x [m], by a
    parabola through three points; the lower edge where there is none."""
    rows, inner = np.arange(len(y)), y[:, 1:-1]
    is_minimum = (inner <= y[:, :-2]) & (inner < y[:, 2:])
    k = np.argmin(np.where(is_minimum, inner, np.inf), axis=1) + 1
    interior = np.asarray(is_minimum.any(axis=1))
    left, middle, right = y[rows, k - 1], y[rows, k], y[rows, k + 1]
    bend = np.where(interior, left - 2 * middle + right, 1.0)
    shift = 0.5 * (left - right) / bend
    edge = np.where(y[:, 0] < y[:, -1], 0, len(x) - 1)
    where = np.where(interior, x[k] + shift * (x[1] - x[0]), x[edge])
    value = np.where(interior, middle - 0.25 * (left - right) * shift, y[rows, edge])
    return where, value, interior


def _around(x: np.ndarray, y: np.ndarray, best: float, limit: float) -> tuple[float, float]:
    """The interval of x about `best` in which y stays below `limit`; no further than y rises away from `best`."""
    fall = np.diff(y, prepend=np.inf, append=-np.inf) < 0  # between neighbours: fall[i] from x[i - 1] to x[i]
    above = (y > limit) | np.where(x < best, ~fall[:-1], fall[1:])
    left, right = np.flatnonzero(above & (x < best)), np.flatnonzero(above & (x > best))
    low, high = x[0], x[-1]
    if len(left):
        i = left[-1]
        low = x[i] + (x[i + 1] - x[i]) * np.clip((y[i] - limit) / (y[i] - y[i + 1]), 0, 1)
    if len(right):
        i = right[0]
        high = x[i] - (x[i] - x[i - 1]) * np.clip((y[i] - limit) / (y[i] - y[i - 1]), 0, 1)
    return low, high


def overtrain(
    posterior: Posterior,
    *,
    flops: float,
    smaller: Sequence[float] = SMALLER,
    inference_tokens: float = 0.0,
    flops_per_token: PerToken | None = None,
    inference_flops_per_token: PerToken | None = None,
    n_draws: int | None = None,
    **covariates: Covariate,
) -> pd.DataFrame:
    """What a model `smaller` times below the recommended size costs, one row each.

    Columns: smaller, params; loss_{median,low,high}: its mean loss over the recommended one's, less 1, with the same
    budget; compute_{median,low,high}: training compute over the recommended model's that reaches the same loss (de
    Vries 2023, Go smol or go home); tokens: the median of the tokens for it; unreachable: the share of draws in which
    no amount of data does, within a million times the recommended tokens (those count as infinite). Intervals are 90%.
    `.attrs["warnings"]`: sentences about sizes and tokens outside the fitted range.
    """
    refuse_unasked(posterior, covariates)
    try:
        times = np.atleast_1d(np.asarray(smaller, float))
    except (TypeError, ValueError):
        raise InputError(f"smaller must be numbers above 1, got {smaller!r}; give 2 for half the size") from None
    bad = ~(np.isfinite(times) & (times > 1))
    if not times.size:
        raise InputError("smaller is empty; give 2 for half the size")
    if bad.any():
        raise InputError(f"smaller must be above 1, got {times[bad][0]:g}; give 2 for half the size")
    if np.size(flops) != 1:
        raise InputError(f"overtrain takes one budget, got {np.size(flops)}; call once for each")
    (C,) = _budgets(flops)
    budget = budgeted(inference_tokens, flops_per_token, inference_flops_per_token, covariates)
    best = _spent(posterior, C, budget, n_draws, covariates)
    if not np.isfinite(best.params):
        raise InputError(f"{posterior.law} has no best size at {C:.3g} FLOP, so none is smaller; ask for other budgets")
    rows, asked = [], []
    for k in times:
        params = best.params / k
        longer = np.geomspace(best.tokens / 100, best.tokens * 1e6, 321)
        same = budget.tokens(C, np.array([params]))
        tokens = np.clip(np.concatenate([[best.tokens], same, longer]), 1e3, 1e20)
        sizes = np.concatenate([[best.params], np.full(len(tokens) - 1, params)])
        loss = mean_loss(posterior, sizes, tokens, n_draws, covariates)
        needed = np.exp(crossing(np.log(longer), loss[:, 2:], loss[:, [0]]))
        compute = budget.flops(params, needed) / budget.flops(best.params, best.tokens)
        row = {"smaller": k, "params": params}
        for name, draws in (("loss", loss[:, 1] / loss[:, 0] - 1), ("compute", compute)):
            row |= dict(zip((f"{name}_low", f"{name}_median", f"{name}_high"), ordered(draws, (0.05, 0.5, 0.95))))
        rows.append(row | {"tokens": ordered(needed, (0.5,))[0], "unreachable": np.mean(~np.isfinite(needed))})
        asked += [tokens[1], rows[-1]["tokens"]]
    found = pd.DataFrame(rows)
    reached = np.array(asked)[np.isfinite(asked)]
    sizes = np.append(found["params"], best.params)
    found.attrs["warnings"] = [*posterior._outside("params", sizes), *posterior._outside("tokens", reached)]
    return found


# --- shared with laws.inverse and laws.comparison --------------------------------------------------------------------


def refuse_unasked(posterior: Posterior, covariates: dict[str, Covariate], answer: str = "flops") -> None:
    """Raises InputError for what is no posterior, laws that cannot answer, and active parameters that are one number
    where N is the answer. answer: "flops" (the best of both), "params" or "tokens"."""
    refuse_other(posterior)
    refuse_without_loss(posterior)
    if answer != "params":
        refuse_without_tokens(posterior)
    active = covariates.get("params_active")
    if active is not None and answer != "tokens" and not callable(active):
        raise InputError(f"params_active is {active!r}; N is the answer: give a function of it, lambda N: N / 8")


def refuse_without_loss(posterior: Posterior) -> None:
    if "mean_loss" not in forms.get(posterior.law).QUANTITIES:
        raise InputError(f"{posterior.law} says nothing of the loss; fit a law of it, such as chinchilla or farseer")


def refuse_without_tokens(posterior: Posterior) -> None:
    """Raises InputError for a law in which tokens do not enter: it cannot say what they, or compute, are worth."""
    if getattr(forms.get(posterior.law), "ONE_BUDGET", False):
        low, _ = posterior.meta["ranges"]["tokens"]
        raise InputError(
            f"{posterior.law} is a law of one budget, {low:.3g} tokens, and cannot say what compute or tokens are best "
            "spent on: ask what loss a size has, or what size a loss takes, at these tokens; or fit moe"
        )


def predicted(
    posterior: Posterior, params: np.ndarray, tokens: np.ndarray, n_draws: int | None, covariates: dict
) -> Prediction:
    """`posterior.predict`, by default of all draws, however many queries; covariates may be functions of params.
    Raises InputError for laws that do not predict a loss."""
    refuse_without_loss(posterior)
    n = len(next(iter(posterior.draws.values()))) if n_draws is None else n_draws
    given = {name: value(params) if callable(value) else value for name, value in covariates.items()}
    return posterior.predict(params=params, tokens=tokens, n_draws=n, **given)


def mean_loss(
    posterior: Posterior, params: np.ndarray, tokens: np.ndarray, n_draws: int | None, covariates: dict
) -> np.ndarray:
    """Draws [n, query] of the mean loss, as `predicted` gives it."""
    return predicted(posterior, params, tokens, n_draws, covariates).mean_loss.draws


def crossing(x: np.ndarray, falling: np.ndarray, level: Any) -> np.ndarray:
    """Where rows y [n, m] first come down to `level` (a number or [n, 1]), linear in between: x[0] where they start
    below, infinite where they never do."""
    below = falling <= level
    k = np.argmax(below, axis=1)
    rows, level = np.arange(len(falling)), np.broadcast_to(level, (len(falling), 1))[:, 0]
    before, after = falling[rows, np.maximum(k - 1, 0)], falling[rows, k]
    part = np.divide(before - level, before - after, out=np.zeros(len(k)), where=k > 0)
    found = x[np.maximum(k - 1, 0)] + part * (x[k] - x[np.maximum(k - 1, 0)])
    return np.where(below.any(axis=1), np.where(k > 0, found, x[0]), np.inf)


def ordered(draws: np.ndarray, probabilities: Sequence[float]) -> np.ndarray:
    """Quantiles over the first axis that are draws themselves: infinite draws do not become nan."""
    return np.quantile(draws, probabilities, axis=0, method="inverted_cdf")


def _budgets(flops: Any) -> np.ndarray:
    try:
        x = np.asarray(flops, float).ravel()
    except (TypeError, ValueError):
        raise InputError(f"flops must be a number, got {flops!r}") from None
    bad = ~(np.isfinite(x) & (x > 0))
    if bad.any():
        raise InputError(f"flops must be positive and finite, got {x[bad][0]:g}")
    if not x.size:
        raise InputError("flops is empty; give at least one budget in FLOP, such as 1e21")
    if x.min() < 1e8 or x.max() > 1e32:
        wrong = x.min() if x.min() < 1e8 else x.max()
        raise InputError(f"flops {wrong:g} is no training budget; give all of it in FLOP, 1e21 for 10^21")
    return x


def _eaten(flops: np.ndarray, best: np.ndarray, budget: Budget) -> list[str]:
    """A sentence about budgets that serving takes whole at any sensible size."""
    lost = flops[~np.isfinite(best)]
    if not budget.inference_tokens or not lost.size:
        return []
    return [
        f"{budget.inference_tokens:.3g} tokens of inference leave no budget of {lost.min():.3g} FLOP to train a model "
        "of any size looked at: raise flops or lower inference_tokens"
    ]


def doubts(flops: np.ndarray, none: np.ndarray, local: np.ndarray) -> list[str]:
    def where(share: np.ndarray) -> str:
        budgets = sorted({f"{C:.3g}": C for C in flops[share > SHARE]}.items(), key=lambda item: item[1])
        return f"{budgets[0][0]} FLOP" if len(budgets) == 1 else f"{budgets[0][0]} to {budgets[-1][0]} FLOP"

    out = []
    if (none > SHARE).any():
        out.append(
            f"at {where(none)} up to {none.max():.0%} of the draws have no optimum between {RATIOS[0]:g} and "
            f"{RATIOS[1]:g} tokens a parameter: their params is the edge of that search, not an answer"
        )
    if (local > SHARE).any():
        out.append(
            f"at {where(local)} the optimum is only a local minimum in up to {local.max():.0%} of the draws: the law's "
            "loss is lower still at sizes far from any data, which no run supports"
        )
    return out
