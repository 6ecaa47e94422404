"""What a posterior is asked, checked: numbers that can't be meant are refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from laws.errors import InputError


def numbers(name: str, value: Any) -> np.ndarray:
    """Positive and finite ones, a number or an array. Raises InputError."""
    try:
        x = np.asarray(value, dtype=float)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} must be a number, got {value!r}") from None
    bad = ~(np.isfinite(x) & (x > 0))
    if bad.any():
        raise InputError(f"{name} must be positive and finite, got {x[bad].ravel()[0]:g}")
    if name == "lr" and x.size and x.max() > 100:
        raise InputError(f"lr {x.max():g} is no peak learning rate; give the rate itself, such as 3e-4")
    return x


def counts(name: str, value: Any) -> np.ndarray:
    """Parameters or tokens, a number or an array. Raises InputError for what is no count of them."""
    x = numbers(name, value)
    if name == "n_experts":  # a count, but small
        return x
    if x.size and x.min() < 1000:
        raise InputError(
            f"{name} {x.min():g} is a count, not thousands, millions or billions: write {x.min():g}e9 for billions"
        )
    if x.size and x.max() > 1e20:
        raise InputError(f"{name} {x.max():g} is beyond any model; give the count itself, not FLOPs")
    return x


def refuse_impossible(query: dict[str, np.ndarray]) -> None:
    """Raises InputError for more active parameters than there are, and less than one expert."""
    active = query.get("params_active", query["params"])
    if np.any(active > query["params"] * (1 + 1e-9)):
        worst = int(np.argmax(active / query["params"]))
        raise InputError(f"params_active {active[worst]:g} is above params {query['params'][worst]:g}, the total")
    experts = query.get("n_experts", np.ones(1))
    if experts.size and experts.min() < 1:
        raise InputError(f"n_experts {experts.min():g} is below 1; a dense model has 1")
