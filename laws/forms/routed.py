"""Routed models: log L = a log N + b log E^ + c log N log E^ + d  (Clark et al. 2022, arXiv 2202.01169, eq. 1).

N are the parameters a token sees (`params_active`), E the experts of a routed layer (`n_experts`, 1 for a dense model),
which saturate at both ends:

    1 / E^ = 1 / (E - 1 + 1 / (1 / E_start - 1 / E_max)) + 1 / E_max,   so E^ = E_start at E = 1, E_max at infinity.

A law at one token budget: neither tokens nor `params` enter. Logarithms are to base 10 as in the paper. Sampled as the
log loss at the centre of the data and its slopes there in ln N and ln E^.

To `laws.forms.grid`, whose axes are params and tokens, N and E are these: the form's error is one over N and E.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from laws.errors import FitError
from laws.forms import grid

CITATION = "Clark et al. 2022, Unified Scaling Laws for Routed Language Models, arXiv 2202.01169"
COLUMNS = ("params_active", "n_experts")
COVARIATES = ("params_active", "n_experts")
AXES = ("params_active", "n_experts")  # what `grid` has in place of params and tokens
QUANTITIES = ("loss", "mean_loss")
SITES = ("a", "b", "c", "d", "E_start", "E_max", *grid.SITES)
HELD = ()
ONE_BUDGET = True  # tokens do not enter
SAME_BUDGET = 1.05  # tokens within this factor are one budget
LN_10 = np.log(10.0)


def prepare(runs: pd.DataFrame, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """See `laws.forms.grid.prepare`; needs 8 cells of one token budget, 3 active sizes and 3 numbers of experts."""
    low, high = runs["tokens"].min(), runs["tokens"].max()
    if high > SAME_BUDGET * low:
        raise FitError(
            f"routed is a law of one token budget; these runs have {low:.3g} to {high:.3g} tokens: keep one, or fit moe"
        )
    data, facts = grid.prepare(_axes(runs), target, law="routed", parameters=6, sizes=1, budgets=1)
    sizes, experts = (len(np.unique(data[axis])) for axis in ("n", "d"))
    if sizes < 3 or experts < 3:
        raise FitError(
            "routed needs at least 3 active sizes (params_active) and 3 numbers of experts (n_experts); these runs "
            f"have {sizes} and {experts}: train more of what is short"
        )
    return data, facts


def _axes(columns: Any) -> Any:
    """N and E in the columns that `grid` looks at; of a table or a query."""
    swapped = {"params": columns["params_active"], "tokens": columns["n_experts"]}
    return columns.assign(**swapped) if isinstance(columns, pd.DataFrame) else swapped


def log_experts(xp: Any, p: dict[str, Any], x: dict[str, Any]) -> Any:
    """ln E^."""
    experts = xp.exp(x["d"] + x["ln_D"])
    open_end = 1 / (1 / p["E_start"] - 1 / p["E_max"])
    return -xp.log(1 / (experts - 1 + open_end) + 1 / p["E_max"])


def log_curve(xp: Any, p: dict[str, Any], x: dict[str, Any]) -> Any:
    """ln L; p: a, b, c, d, E_start, E_max; x: as `grid.coordinates` gives them, of `_axes`."""
    size, experts = x["n"] + x["ln_N"], log_experts(xp, p, x)
    return p["a"] * size + p["b"] * experts + p["c"] * size * experts / LN_10 + p["d"] * LN_10


def priors(data: dict[str, Any]) -> dict[str, Any]:
    """a, b, c, d, E_start, E_max. Priors: slopes at the centre -0.08 in ln N and -0.04 in ln E^ give or take a factor
    2, c 0 give or take 0.02, E_start 2 give or take a factor 2, E_max 150 times that give or take a factor 3."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    center = numpyro.sample("center", dist.Normal(data["ln_L"], 0.2))
    slope_N = -jnp.exp(numpyro.sample("log_slope_N", dist.Normal(jnp.log(0.08), 0.6)))
    slope_E = -jnp.exp(numpyro.sample("log_slope_E", dist.Normal(jnp.log(0.04), 0.6)))
    c = numpyro.sample("bend", dist.Normal(0.0, 0.02))
    E_start = jnp.exp(numpyro.sample("log_E_start", dist.Normal(jnp.log(2.0), 0.7)))
    E_max = E_start * (1 + jnp.exp(numpyro.sample("log_range", dist.Normal(jnp.log(150.0), 1.0))))
    ends = {"E_start": E_start, "E_max": E_max}
    size, experts = data["ln_N"], log_experts(jnp, ends, data | {"d": 0.0})
    a, b = slope_N - c * experts / LN_10, slope_E - c * size / LN_10
    p = ends | {"a": a, "b": b, "c": c}
    p["d"] = (center - a * size - b * experts - c * size * experts / LN_10) / LN_10
    return {site: numpyro.deterministic(site, value) for site, value in p.items()}


def model(data: dict[str, Any]) -> None:
    """The numpyro model."""
    import jax.numpy as jnp

    grid.observe(log_curve(jnp, priors(data), data), data)


def start(data: dict[str, Any]) -> dict[str, Any]:
    """Least squares at E_start = 2 and E_max = 300: the law is linear given those."""
    ends = {"E_start": 2.0, "E_max": 300.0}
    experts = log_experts(np, ends, data)
    middle = log_experts(np, ends, data | {"d": 0.0})
    size = data["n"]
    design = np.stack([np.ones_like(size), size, experts - middle, size * (experts - middle)], axis=1)
    level, slope_N, slope_E, bend = np.linalg.lstsq(design, data["log_loss"])[0]
    return {
        "center": level,
        "log_slope_N": np.log(np.clip(-slope_N, 0.02, 0.3)),
        "log_slope_E": np.log(np.clip(-slope_E, 0.005, 0.2)),
        "bend": np.clip(bend * LN_10, -0.04, 0.04),
        "log_E_start": np.log(2.0),
        "log_range": np.log(149.0),
    } | grid.START


def predict(
    draws: dict[str, np.ndarray], meta: dict[str, Any], query: dict[str, np.ndarray], noise: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """See `laws.forms.grid.predict`."""
    return grid.predict(log_curve, draws, meta, _axes(query), noise)
