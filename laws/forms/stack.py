"""The stack of laws as a posterior of its own: see `laws.stacking`, which fits it."""

from __future__ import annotations

from typing import Any

import numpy as np

from laws import forms

COLUMNS = ()
COVARIATES = ()
QUANTITIES = ("loss", "mean_loss")
SHARED = ("noise", "form_error", "discrepancy")  # sites that every member has


def predict(
    draws: dict[str, np.ndarray], meta: dict[str, Any], query: dict[str, np.ndarray], noise: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`mean_loss` and `loss`, each draw by its own member: [draw, query]."""
    out = {quantity: np.empty((len(draws["member"]), len(query["params"]))) for quantity in QUANTITIES}
    for k, member in enumerate(meta["members"]):
        mine = draws["member"] == k
        if mine.any():
            own = {
                site.removeprefix(f"{member}."): values[mine]
                for site, values in draws.items()
                if site in SHARED or site.startswith(f"{member}.")
            }
            about = meta | {key: meta[key][k] for key in ("tails", "scatter") if key in meta}
            answers = forms.get(member).predict(own, about, query, {"loss": noise["loss"][mine]})
            for quantity in QUANTITIES:
                out[quantity][mine] = answers[quantity]
    return out
