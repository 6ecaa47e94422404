"""Inverse questions: the tokens, the size or the compute that a loss takes, and how likely it is out of reach.

Every draw of the mean loss is evaluated along one axis; the answer is where it first comes down to the loss asked for.
Draws that never do within the search are infinite. The loss that a budget reaches is `allocate`'s `recommended_loss`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from laws.allocation import (
    SHARE,
    Covariate,
    crossing,
    mean_loss,
    optimum,
    ordered,
    refuse_unasked,
)
from laws.asked import counts
from laws.budget import PerToken, budgeted
from laws.errors import InputError
from laws.posterior import Posterior, Quantity, edges, plain

BELOW, ABOVE = 1e2, 1e6  # the search: from the smallest fitted value over BELOW to the largest times ABOVE
MOST = {"params": 1e16, "tokens": 1e20}
A_DECADE, BUDGETS_A_DECADE = 24, 8  # points


@dataclass(frozen=True)
class Reach(Quantity):
    """What reaches a loss. draws: [n_draws, *query shape], infinite where it stays out of reach."""

    warnings: list[str] = field(default_factory=list)

    @cached_property
    def median(self) -> Any:
        """Posterior median, infinite where most draws are."""
        return plain(ordered(self.draws, (0.5,))[0])

    def interval(self, level: float = 0.9) -> tuple[Any, Any]:
        """(low, high) of the central interval of probability `level`."""
        low, high = ordered(self.draws, edges(level))
        return plain(low), plain(high)

    @property
    def unreachable(self) -> Any:
        """The share of draws in which the loss is out of reach."""
        return plain(np.mean(np.isinf(self.draws), axis=0))


@dataclass(frozen=True)
class Cheapest:
    """The least compute that reaches a loss, inference included, and the model it goes to: draws [n, *loss]."""

    flops: Reach
    params: Reach
    tokens: Reach
    warnings: list[str]


def tokens_for(posterior: Posterior, *, loss: Any, params: Any, **covariates: Covariate) -> Reach:
    """Training tokens with which the mean loss at N = params comes down to `loss`: numbers or arrays that broadcast.

    Sought up to a million times the largest budget fitted. covariates: one value each, for laws that need them.
    Raises InputError for a loss that is not positive and finite, for implausible params, for laws without a loss or
    tokens.
    """
    return _along(posterior, "tokens", loss, "params", params, covariates)


def params_for(posterior: Posterior, *, loss: Any, tokens: Any, **covariates: Covariate) -> Reach:
    """Parameters with which the mean loss after D = tokens comes down to `loss`; else as `tokens_for`."""
    return _along(posterior, "params", loss, "tokens", tokens, covariates)


def cheapest(
    posterior: Posterior,
    *,
    loss: Any,
    inference_tokens: float = 0.0,
    flops_per_token: PerToken | None = None,
    inference_flops_per_token: PerToken | None = None,
    n_draws: int | None = None,
    **covariates: Covariate,
) -> Cheapest:
    """The least compute 6 N D + 2 N inference_tokens that reaches `loss` (a number or an array), and its N and D.

    It inverts the best loss of each budget (`allocate`), draw by draw. Arguments as there; n_draws: 400 by default.
    """
    refuse_unasked(posterior, covariates)
    shape, losses = np.shape(loss), _losses(loss).ravel()
    if not losses.size:
        raise InputError("loss is empty; give one loss or more")
    budget = budgeted(inference_tokens, flops_per_token, inference_flops_per_token, covariates)
    n_draws = min(400, len(next(iter(posterior.draws.values())))) if n_draws is None else n_draws
    (n_low, n_high), (d_low, d_high) = (posterior.meta["ranges"][c] for c in ("params", "tokens"))
    floor = max(float(budget.flops(n_low, d_low)) / BELOW, 4 * float(budget.total(np.array(1e3), np.array(1e3))))
    ceiling = max(float(budget.total(n_high, d_high)) * ABOVE, 1e3 * floor)
    every = np.geomspace(floor, min(ceiling, 1e32), int(np.log10(ceiling / floor) * BUDGETS_A_DECADE) + 2)
    found = [optimum(posterior, C, budget, n_draws, covariates) for C in every]
    # Without an optimum there is no best loss: those budgets do not count.
    best = np.stack([np.where(one.no_optimum, 1e9, one.loss) for one in found], axis=1)
    sizes = np.stack([np.log(one.params) for one in found], axis=1)
    x = np.log(every)
    flops = np.stack([crossing(x, np.minimum.accumulate(best, axis=1), L) for L in losses], axis=1)
    reached = np.isfinite(flops)
    params = np.exp([np.interp(at, x, row) for at, row in zip(flops, sizes)])
    flops = np.exp(flops)
    tokens = budget.tokens(np.where(reached, flops, every[-1]), params)
    notes = _notes(flops, every[0], every[-1], "flops")

    def reach(draws: np.ndarray) -> Reach:
        return Reach(np.where(reached, draws, np.inf).reshape(len(draws), *shape))

    return Cheapest(reach(flops), reach(params), reach(tokens), notes + _outside(posterior, params, tokens, reached))


def _along(posterior: Posterior, axis: str, loss: Any, other: str, at: Any, covariates: dict) -> Reach:
    refuse_unasked(posterior, covariates, answer=axis)
    try:
        losses, at = np.broadcast_arrays(_losses(loss), counts(other, at))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        shapes = f"loss {np.shape(loss)} and {other} {np.shape(at)}"
        raise InputError(f"{shapes} do not broadcast; give one loss for each, or one") from None
    low, high = posterior.meta["ranges"][axis]
    low, high = max(low / BELOW, 1e3), min(high * ABOVE, MOST[axis])
    x = np.linspace(np.log(low), np.log(high), int(np.log10(high / low) * A_DECADE) + 2)
    grid = np.clip(np.exp(x), low, high)
    columns: dict[float, np.ndarray] = {}
    answers = []
    for L, value in zip(losses.ravel(), at.ravel()):
        if value not in columns:
            query = {axis: grid, other: np.full(len(grid), value)}
            columns[value] = mean_loss(posterior, query["params"], query["tokens"], None, covariates)
        answers.append(np.exp(crossing(x, columns[value], L)))
    n = len(next(iter(columns.values()))) if columns else 1
    draws = np.stack(answers, axis=1) if answers else np.empty((n, 0))
    reached = np.isfinite(draws)
    found = {axis: np.where(reached, draws, low), other: np.broadcast_to(at.ravel(), draws.shape)}
    notes = _notes(draws, low, high, axis)
    notes += _outside(posterior, found["params"], found["tokens"], reached)
    return Reach(draws.reshape(n, *losses.shape), notes)


def _losses(loss: Any) -> np.ndarray:
    try:
        x = np.asarray(loss, float)
    except (TypeError, ValueError):
        raise InputError(f"loss must be a number, got {loss!r}") from None
    bad = ~(np.isfinite(x) & (x > 0))
    if bad.any():
        raise InputError(f"loss must be positive and finite, got {x[bad].ravel()[0]:g}")
    return x


def _notes(draws: np.ndarray, low: float, high: float, axis: str) -> list[str]:
    """draws: [n, query]; low, high: where the search ended."""
    out = []
    never, already = np.mean(np.isinf(draws), axis=0), np.mean(draws <= low * 1.0001, axis=0)
    if never.max(initial=0) > SHARE:
        out.append(
            f"in {never.max():.0%} of the draws the loss asked for is out of reach of any {axis} up to {high:.3g}"
        )
    if already.max(initial=0) > SHARE:
        out.append(f"the loss is reached at {low:.3g} {axis} already, where the search begins: that is an upper bound")
    return out


def _outside(posterior: Posterior, params: np.ndarray, tokens: np.ndarray, reached: np.ndarray) -> list[str]:
    """Decades outside the fitted range, at the median of each query that some draws reach."""
    queries = [i for i in range(reached.shape[1]) if reached[:, i].any()]
    if not queries:
        return []
    N, D = (np.array([_middle(x[:, i], reached[:, i]) for i in queries]) for x in (params, tokens))
    return posterior._outside("params", N) + posterior._outside("tokens", D)


def _middle(x: np.ndarray, reached: np.ndarray) -> float:
    """The median, of all draws or, where most don't reach the loss, of those that do."""
    whole = np.median(np.where(reached, x, np.inf))
    return float(whole if np.isfinite(whole) else np.median(x[reached]))
