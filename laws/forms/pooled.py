"""Several recipes in one hierarchical fit: each recipe's nested law lies about a common one, by spreads that it learns.

    site_r ~ Normal(site, spread_site)

for the log loss at the centre of the data and its slopes in ln N and ln D there; the shares of the terms, ln k, form
error and noise are common to all. So a recipe of few runs has its own level and what slopes its runs show, and borrows
the rest from the others (partial pooling: Gelman and Hill 2007, Data Analysis Using Regression and
Multilevel/Hierarchical Models, chapter 12). One recipe more than there are, "new", has no runs: it is drawn from the
population. Shares that differ by recipe made predictions wider, not better.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from laws.errors import FitError
from laws.forms import chinchilla, grid, nested

CITATION = f"{nested.CITATION}; recipes partially pooled"
COLUMNS = ("recipe",)
COVARIATES = ("recipe",)
QUANTITIES = ("loss", "mean_loss")
LAW = ("E", "A", "B", "alpha", "beta", "k")  # [recipe] each
# Medians of the spreads, a priori give or take a factor 2: by how much levels, and slopes relatively, differ.
SCALES = {"center": 0.1, "log_slope_N": 0.1, "log_slope_D": 0.1}
HELD = tuple(f"spread_{site}" for site in SCALES)
SITES = (*LAW, *HELD, *grid.SITES)
NEW = "new"


def prepare(runs: pd.DataFrame, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """See `laws.forms.grid.prepare`; needs two recipes, and 7 cells besides one a recipe, 3 sizes, 3 budgets."""
    names = sorted(set(runs["recipe"]))
    if len(names) < 2:
        raise FitError(f"pooled needs runs of two recipes or more; these are all of {names[0]!r}: fit nested or stack")
    if NEW in names:
        raise FitError(f"pooled: {NEW!r} stands for a recipe without runs; rename that recipe")
    coded = runs.assign(recipe=runs["recipe"].map({name: k for k, name in enumerate(names)}))
    data, facts = grid.prepare(
        coded, target, law="pooled", parameters=5 + len(names), sizes=3, budgets=3, covariates=COVARIATES
    )
    data["recipes"] = np.zeros(len(names) + 1)
    ranges = {
        name: {c: [float(own[c].min()), float(own[c].max())] for c in ("params", "tokens")}
        for name, own in runs.groupby("recipe")
    }
    return data, facts | {"recipes": [*names, NEW], "recipe_ranges": ranges}


def log_curve(xp: Any, p: dict[str, Any], x: dict[str, Any]) -> Any:
    """ln L; p: those of the nested law [..., recipe]; x: as `grid.coordinates` gives them, `recipe` an index."""
    recipe = x["recipe"].astype(int)
    return nested.log_curve(xp, {site: p[site][..., recipe] for site in LAW}, x)


def priors(data: dict[str, Any]) -> dict[str, Any]:
    """The nested law's coefficients, [recipe] each. Priors: the nested law's for the common one; spreads log-normal."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    recipes = len(data["recipes"])
    site = {name: jnp.full(recipes, value) for name, value in nested.sampled(data).items()}
    for name, median in SCALES.items():
        spread = numpyro.sample(f"spread_{name}", dist.LogNormal(np.log(median), 0.7))
        with numpyro.plate(f"recipes_{name}", recipes - 1):
            own = numpyro.sample(f"own_{name}", dist.Normal(site[name][0], spread))
        new = site[name][0] + spread * numpyro.sample(f"new_{name}", dist.Normal(0.0, 1.0))
        site[name] = jnp.append(own, new)
    return {name: numpyro.deterministic(name, value) for name, value in nested.coefficients(site, data).items()}


def model(data: dict[str, Any]) -> None:
    """The numpyro model."""
    import jax.numpy as jnp

    grid.observe(log_curve(jnp, priors(data), data), data)


def start(data: dict[str, Any]) -> dict[str, Any]:
    """The nested law's for losses less their recipe's level, and the levels."""
    recipe = data["recipe"].astype(int)
    e, a, b, alpha, beta = chinchilla.point_fit(data)
    curve = np.logaddexp(e, np.logaddexp(a - alpha * data["n"], b - beta * data["d"]))
    off = data["log_loss"] - curve
    level = np.array([np.median(off[recipe == k]) for k in range(len(data["recipes"]) - 1)])
    common = nested.start(data | {"log_loss": data["log_loss"] - level[recipe]})
    own = {f"own_{site}": np.full(len(level), common[site]) for site in SCALES}
    own["own_center"] += level
    spreads = dict(SCALES) | {"center": np.clip(np.sqrt(np.mean(level**2)), 0.01, 0.5)}
    return common | own | {f"spread_{site}": value for site, value in spreads.items()}


def one(draws: dict[str, np.ndarray], k: int) -> dict[str, np.ndarray]:
    """Draws of the nested law of recipe `k`."""
    own = {site: values[..., k] if site in LAW else values for site, values in draws.items() if site not in HELD}
    if "discrepancy" in own:
        own["discrepancy"] = own["discrepancy"][..., k, :]
    return own


def predict(
    draws: dict[str, np.ndarray], meta: dict[str, Any], query: dict[str, np.ndarray], noise: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`mean_loss` and `loss`, each query by its own recipe's law: [draw, query]."""
    out = {quantity: np.empty((len(draws["noise"]), len(query["params"]))) for quantity in QUANTITIES}
    for k in np.unique(query["recipe"]):
        mine = query["recipe"] == k
        asked = {c: query[c][mine] for c in ("params", "tokens")}
        for quantity, values in nested.predict(one(draws, int(k)), meta, asked, noise).items():
            out[quantity][:, mine] = values
    return out
