"""Scaling laws fitted to run tables as Bayesian models: load runs, fit, predict, hold out, report.

Names are resolved on first use, so that importing `laws` pulls in neither jax nor the plotting libraries. No submodule
may bear the name of a function below: importing it would take the function's place.
"""

from importlib import import_module
from typing import Any

from laws.errors import InputError

_HOMES = {
    "load_runs": "laws.runs",
    "fit": "laws.fitting",
    "FitError": "laws.errors",
    "Posterior": "laws.posterior",
    "load_posterior": "laws.saved",
    "backtest": "laws.holdout",
    "allocate": "laws.allocation",
    "overtrain": "laws.allocation",
    "cheapest": "laws.inverse",
    "params_for": "laws.inverse",
    "tokens_for": "laws.inverse",
    "compare": "laws.comparison",
    "check": "laws.checks",
    "tuned": "laws.tuning",
    "from_arviz": "laws.exchange",
    "to_arviz": "laws.exchange",
}
_MODULES = ("compression", "datasets", "published")
__all__ = [
    "FitError",
    "InputError",
    "Posterior",
    "allocate",
    "backtest",
    "cheapest",
    "check",
    "compare",
    "fit",
    "from_arviz",
    "load_posterior",
    "load_runs",
    "overtrain",
    "params_for",
    "to_arviz",
    "tokens_for",
    "tuned",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"laws.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'laws' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
