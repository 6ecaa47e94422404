"""Fitting a law of the loss: robust weights at the mode and then on average over the posterior about it, the law's
parameters with the form error integrated out, then the form error given the parameters.

Noise is as `laws.noise` has it; a run's precision is found here by expectation-maximisation. At the joint mode of all
parameters the form error is too small, and noise takes its place: so a last round is over draws of a normal
approximation of the posterior.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from laws import nodes, normal, sampler, threads
from laws.forms import discrepancy, grid
from laws.rows import Rows

ROUNDS = 20  # of expectation and maximisation at the mode, at most
POINTS = 100  # draws of the posterior in the round over it
TOLERANCE = 0.05  # of precisions, between rounds
DROP = 1e-3  # share of the noise below which a coordinate of the form error is left to it while sampling
MANY = 128  # cells from which on nodes stand for them
OUTLIER = 0.15  # share of an ordinary run's precision below which a run is named as an outlier: about 5 deviations


@threads.one()
def sample(
    form: ModuleType,
    data: dict[str, Any],
    *,
    name: str,
    seed: int,
    form_error: bool = True,
    laplace: bool = False,
    **options: Any,
) -> normal.Samples:
    """Draws of the law's sites and of `discrepancy` [chain, draw, feature] (each recipe's, where there are
    several: [chain, draw, recipe, feature]); `facts` for the posterior's meta: domain,
    tails, scatter, outliers.

    form_error: False takes the form for true, with no `discrepancy` and `form_error` 0. laplace: by `normal.sample`,
    not `sampler.sample`. options: of either."""
    through = nodes.of(data) if len(data["log_loss"]) > MANY else None
    found = _sample(form, data, through, name, seed, form_error, laplace, **options)
    if through is not None and not through.close(form.log_curve, found.draws, data):
        found = _sample(form, data, None, name, seed, form_error, laplace, **options)
    return found


def _sample(
    form: ModuleType,
    data: dict[str, Any],
    through: nodes.Nodes | None,
    name: str,
    seed: int,
    form_error: bool,
    laplace: bool,
    **options: Any,
) -> normal.Samples:
    domain = discrepancy.domain(data)
    phi = discrepancy.features(domain, data)
    if "recipes" in data:
        phi = discrepancy.by_recipe(phi, data["recipe"], len(data["recipes"]))
    rows = Rows.of(data, phi * form_error, through)
    data = rows.data
    values, others = form.start(data), form.others(data) if hasattr(form, "others") else ()
    of = {"name": name, "hold": form.HELD}

    def off(draws: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(residual [draw, row], noise [draw], form error [draw]) of draws [chain, draw, ...] of the sites."""
        p = {site: np.reshape(draws[site], (-1, *(np.shape(draws[site])[2:] or (1,)))) for site in form.SITES}
        return data["log_loss"] - form.log_curve(np, p, data), p["noise"][:, 0], p["form_error"][:, 0]

    least = 3.0 if form_error else 1.0
    cells = rows.at_first(float(values["noise"]))
    for k in range(ROUNDS):
        seen = cells.observed() | {"shares": grid.SOME}
        values = normal.mode(form.model, seen, values, others=() if k else others, **of)
        before, cells = cells, cells.again(*off({site: x[None, None] for site, x in values.items()}), least)
        if np.abs(cells.precision - before.precision).max() < TOLERANCE * before.precision.max():
            break
    of["others"] = others
    if form_error:
        seen = cells.observed(cells.how.power)
        found = normal.sample(form.model, seen, values, over="form_error", draws=POINTS, seed=1, **of)
        cells = cells.again(*off(found.draws), least)

    how = cells.how
    seen = cells.observed(how.power, DROP * float(values["noise"] / values["form_error"]) ** 2)
    over = "form_error" if form_error else ""
    draw = normal.sample if laplace else sampler.sample
    result = draw(form.model, seen, values, over=over, seed=seed, **of, **options)

    draws = {site: result.draws[site] for site in form.SITES}
    if form_error:
        weights = cells.discrepancies(*off(draws), np.random.default_rng(seed))
        if "recipes" in data:
            weights = discrepancy.of_each(weights, len(data["recipes"]))
        draws["discrepancy"] = weights.reshape(*draws["noise"].shape, *weights.shape[1:])
    else:
        draws["form_error"] = np.zeros_like(draws["form_error"])
    bounds = [float(rows.compute.min()), float(rows.compute.max())]
    scatter = {"trend": how.trend, "bounds": bounds, "shared": how.shared}
    facts = {"domain": domain, "tails": how.tails, "scatter": scatter, "outliers": _outliers(data, how.weight, form)}
    return normal.Samples(draws, result.diagnostics, facts)


def _outliers(data: dict[str, Any], weight: np.ndarray, form: Any) -> list[dict[str, float]]:
    """The runs that count for little, farthest off first."""
    size, budget = getattr(form, "AXES", ("params", "tokens"))
    far = [i for i in np.argsort(weight) if weight[i] < OUTLIER]
    return [
        {
            size: float(np.exp(data["n"][i] + data["ln_N"])),
            budget: float(np.exp(data["d"][i] + data["ln_D"])),
            "loss": float(np.exp(data["log_loss"][i])),
            "precision": float(weight[i]),
        }
        for i in far
    ]
