"""ArviZ in and out: a posterior as an InferenceData and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from laws import forms
from laws.errors import InputError
from laws.posterior import Posterior


def to_arviz(posterior: Posterior, runs: Any = None, *, recipe: str | None = None) -> Any:
    """An arviz.InferenceData with the kept draws (thinned: diagnostics of all draws are in its `meta`).

    runs: the run table it was fitted to, or another; with it also log_likelihood, posterior_predictive, observed_data
    and constant_data of the log of each cell's best loss, dimension `cell`, under the name log_loss (so that arviz.loo,
    plot_loo_pit and plot_ppc work). Laws of the loss only. Raises InputError for a bad table.
    """
    import arviz

    attrs = {"law": posterior.law, "meta": json.dumps(posterior.meta)}
    groups: dict[str, Any] = {"posterior": dict(posterior.samples)}
    if runs is not None:
        from laws import checks
        from laws.forms import grid

        _, cells, _ = checks.fitted_cells(posterior, runs, recipe)
        where = checks.query(posterior, cells)
        y = np.log(cells[posterior.meta["target"]].to_numpy(float))
        error = grid.relative_error(cells, posterior.meta["target"])
        log_lik, residual = checks.log_likelihood(posterior, where, y, error)
        sd = checks.spread(posterior, where, error)
        mean = y - residual * sd
        made = np.random.default_rng(0).standard_t(checks.tails(posterior), size=mean.shape)
        shape = (*posterior.samples["noise"].shape, len(y))
        groups |= {
            "log_likelihood": {"log_loss": log_lik.reshape(shape)},
            "posterior_predictive": {"log_loss": (mean + sd * made).reshape(shape)},
            "observed_data": {"log_loss": y},
            "constant_data": where,
            "coords": {"cell": np.arange(len(y))},
            "dims": {"log_loss": ["cell"]} | {name: ["cell"] for name in where},
        }
    return arviz.from_dict(**groups, attrs=attrs)


def from_arviz(data: Any) -> Posterior:
    """The posterior that `to_arviz` gave as an InferenceData, also after it went through a file.

    Raises InputError for one that is not ours or lacks a site."""
    attrs = getattr(data, "attrs", {})
    if "law" not in attrs or "meta" not in attrs or "posterior" not in data:
        raise InputError("this InferenceData is not of a law: it lacks what to_arviz writes; fit the law instead")
    law = str(attrs["law"])
    samples = {name: np.asarray(values) for name, values in data["posterior"].data_vars.items()}
    missing = [site for site in getattr(forms.get(law), "SITES", ()) if site not in samples]
    if missing:
        raise InputError(f"this InferenceData of {law} lacks {', '.join(missing)}; hand over all that to_arviz wrote")
    return Posterior(law, samples, json.loads(attrs["meta"]))
