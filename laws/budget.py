"""What a model costs to train and to serve, and which sizes and token counts a compute budget pays for.

C = 6 N D, and 2 N T more for T inference tokens (Sardana et al. 2024, Beyond Chinchilla-Optimal, arXiv 2401.00448), or
rules of the user's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from laws.asked import counts
from laws.errors import InputError

POINTS = 193  # on the grid of one budget: 24 a decade of tokens per parameter
RATIOS = (0.01, 1e6)  # tokens per parameter between which an optimum is sought
PerToken = float | Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Budget:
    """What a model costs: FLOPs per token in training and at inference, as multiples of N or functions of N."""

    inference_tokens: float = 0.0
    flops_per_token: PerToken = 6.0
    inference_flops_per_token: PerToken = 2.0

    def tokens(self, flops: Any, params: np.ndarray) -> np.ndarray:
        """Training tokens that `flops` leaves a model of `params`; negative where inference costs more."""
        served = self.inference_tokens * _rate(self.inference_flops_per_token, params)
        return (flops - served) / _rate(self.flops_per_token, params)

    def flops(self, params: Any, tokens: Any) -> Any:
        """The cost of training on `tokens`, without inference."""
        return _rate(self.flops_per_token, params) * tokens

    def total(self, params: Any, tokens: Any) -> Any:
        """The cost of training on `tokens` and of inference."""
        return self.flops(params, tokens) + self.inference_tokens * _rate(self.inference_flops_per_token, params)

    def params(self, flops: float, ratio: np.ndarray) -> np.ndarray:
        """The size that `flops` pays for with `ratio` tokens a parameter, by bisection."""
        low, high = np.full(np.shape(ratio), np.log(1.0)), np.full(np.shape(ratio), np.log(1e20))
        for _ in range(60):
            middle = (low + high) / 2
            size = np.exp(middle)
            dear = self.total(size, ratio * size) > flops
            low, high = np.where(dear, low, middle), np.where(dear, middle, high)
        return np.exp((low + high) / 2)

    def ratios(self, flops: float) -> np.ndarray:
        """The grid of tokens a parameter: RATIOS, as far as they leave a thousand parameters and tokens at least."""
        every = np.geomspace(*RATIOS, 1601)
        params = self.params(flops, every)
        fits = (params >= 1e3) & (every * params >= 1e3) & (every * params <= 1e20)
        if fits.sum() < 3:
            served = f" and {self.inference_tokens:.3g} tokens of inference" if self.inference_tokens else ""
            raise InputError(
                f"flops {flops:.3g} does not pay for a model of a thousand parameters, a thousand tokens{served}; "
                "give the whole budget in FLOP, such as 1e21"
            )
        at = np.flatnonzero(fits)
        return np.geomspace(every[at[0]], every[at[-1]], POINTS)


def budgeted(served_tokens: Any, training: PerToken | None, inference: PerToken | None, covariates: dict) -> Budget:
    """The Budget of what a user gave; without rules 6 and 2 FLOPs a token times N, or times params_active if given."""
    active = covariates.get("params_active")

    def times(k: float) -> PerToken:
        if active is None:
            return k
        return lambda params: k * (active(params) if callable(active) else np.full(np.shape(params), active))

    given = (("flops_per_token", training, 6.0), ("inference_flops_per_token", inference, 2.0))
    rules = (times(k) if rule is None else _per_token(name, rule) for name, rule, k in given)
    return Budget(served(served_tokens), *rules)


def _per_token(name: str, rule: PerToken) -> PerToken:
    """`rule`, if it is positive: as a number, as a function at some sizes."""
    sizes = np.geomspace(1e6, 1e12, 7)
    try:
        if isinstance(rule, str):
            raise TypeError
        values = np.broadcast_to(np.asarray(rule(sizes) if callable(rule) else rule, float), sizes.shape)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {rule!r}; give FLOPs a token over N, or a function of an array of N") from None
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        raise InputError(f"{name} must be positive and finite, got {values[bad][0]:g}")
    return rule


def _rate(rule: PerToken, params: np.ndarray) -> np.ndarray:
    return rule(params) if callable(rule) else rule * params


def served(inference_tokens: Any) -> float:
    if np.ndim(inference_tokens):
        raise InputError("inference_tokens must be one number; call once for each")
    if isinstance(inference_tokens, (int, float)) and inference_tokens == 0:
        return 0.0
    return float(counts("inference_tokens", inference_tokens))
