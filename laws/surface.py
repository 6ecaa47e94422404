"""Fitting a law of the loss: robust weights at the mode, then its parameters with the form error integrated out, then
the form error given the parameters.

Noise is as `laws.noise` has it; a run's precision is found here by expectation-maximisation at the mode. Many cells are
seen through a few nodes (`laws.nodes`), fewer are padded to powers of two: tables of like size share programs. Where
losses have known errors, the noise's share of a run's variance changes with the noise, so that no rotation of the cells
does for all of its values: up to FACTORED cells their covariance is factored anew at each, beyond that the share stays
as it is at the mode.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from laws import nodes, noise, normal, sampler, threads
from laws.forms import discrepancy

ROUNDS = 20  # of expectation and maximisation, at most
TOLERANCE = 0.05  # of precisions, between rounds
DROP = 1e-3  # share of the noise below which a coordinate of the form error is left to it while sampling
MANY = 128  # cells from which on nodes stand for them
FACTORED = 64  # cells up to which known errors have their covariance factored at every step
HIDDEN = 0.3  # of the smallest known errors, of more cells: noise below it is not looked for
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
    cells = nodes.of(data) if len(data["log_loss"]) > MANY else None
    found = _sample(form, data, cells, name, seed, form_error, laplace, **options)
    if cells is not None and not cells.close(form.log_curve, found.draws, data):
        found = _sample(form, data, None, name, seed, form_error, laplace, **options)
    return found


def _sample(
    form: ModuleType,
    data: dict[str, Any],
    cells: nodes.Nodes | None,
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
    felt, run = phi * form_error, data.get("run")
    one = 1 / np.sqrt(data.get("seeds", np.ones(len(phi))))  # size of the noise of a mean over seeds
    known_error = data.get("error", np.zeros(len(phi)))
    dense = bool(known_error.any()) and len(phi) <= FACTORED
    hidden = 0.0 if dense else HIDDEN * np.quantile(known_error, 0.1)
    data = {key: value for key, value in data.items() if key not in ("run", "seeds", "error")}
    compute = data["n"] + data["d"]
    trend, shared = 0.0, 0.0
    weight, df = np.ones(len(phi)), 4.0  # of each run, for its own precision: small far off the curve
    values, others = form.start(data), form.others(data) if hasattr(form, "others") else ()
    sizes = np.hypot(one, known_error / max(float(values["noise"]), hidden))
    for k in range(ROUNDS):
        precision = weight / sizes**2
        grouped = None if run is None else noise.groups(precision, run, shared)
        if dense:
            parts = _parts(felt, one * np.exp(trend * compute), known_error, weight, run, shared)
            seen = _factored(data, *parts)
        else:
            turned = discrepancy.rotate(noise.whiten(felt, precision, grouped))
            seen = observed(data, turned, precision, weight.sum(), grouped, cells=cells)
        values = normal.mode(form.model, seen, values, name=name, hold=form.HELD, others=others if k == 0 else ())
        residual = data["log_loss"] - form.log_curve(np, values, data)
        sd, error_sd = float(values["noise"]), float(values["form_error"])
        if run is not None:
            shared = noise.likeliest_shared(residual, felt, precision, run, sd, error_sd)
        explained = _explained(felt * error_sd, run, sd * np.sqrt(shared))
        turned = discrepancy.rotate(np.sqrt(precision)[:, None] * explained)
        error, variance = discrepancy.conditional_noise(turned, residual, precision, sd, 1.0)
        scaled = (error**2 + variance) / sd**2
        other = known_error / max(sd, hidden)
        df, trend = noise.tails_and_trend(scaled / one**2, compute, 3.0 if form_error else 1.0, (other / one) ** 2)
        sizes = np.hypot(one * np.exp(trend * compute), other)
        weight = (df + 1) / (df + scaled / sizes**2)
        if np.abs(weight / sizes**2 - precision).max() < TOLERANCE * precision.max():
            break
    # Known precisions would tell more of the law than Student-t noise does: less, by this factor (Fisher information).
    known = (df + 1) / (df + 3)
    precision = known * weight / sizes**2
    grouped = None if run is None else noise.groups(precision, run, shared)
    whitened = noise.whiten(phi, precision, grouped)
    turned = discrepancy.rotate(whitened * form_error)
    draw, options = (normal.sample if laplace else sampler.sample), options | {"hold": form.HELD, "others": others}
    if form_error and (laplace or not form.HELD):
        options["over"] = "form_error"
    if dense:
        parts = _parts(felt, one * np.exp(trend * compute), known_error, weight, run, shared)
        seen = _factored(data, *parts, known)
    else:
        ratio = (values["noise"] / values["form_error"]) ** 2
        seen = observed(data, turned, precision, weight.sum(), grouped, DROP * ratio, known, cells)
    result = draw(form.model, seen, values, name=name, seed=seed, **options)

    draws = {site: result.draws[site] for site in form.SITES}
    if form_error:
        p = {site: x.reshape(-1, *(x.shape[2:] or (1,))) for site, x in draws.items()}
        residual, sds = data["log_loss"] - form.log_curve(np, p, data), (p["noise"][:, 0], p["form_error"][:, 0])
        rng = np.random.default_rng(seed)
        if dense:
            weights = discrepancy.draw_factored(phi, *parts[:2], residual, *sds, rng)
        else:
            weights = discrepancy.draw(turned, whitened, noise.whiten(residual.T, precision, grouped).T, *sds, rng)
        if "recipes" in data:
            weights = discrepancy.of_each(weights, len(data["recipes"]))
        draws["discrepancy"] = weights.reshape(*draws["noise"].shape, *weights.shape[1:])
    else:
        draws["form_error"] = np.zeros_like(draws["form_error"])
    scatter = {"trend": trend, "bounds": [float(compute.min()), float(compute.max())], "shared": shared}
    facts = {"domain": domain, "tails": df, "scatter": scatter, "outliers": _outliers(data, weight, form)}
    return normal.Samples(draws, result.diagnostics, facts)


def _explained(felt: np.ndarray, run: np.ndarray | None, sd: float) -> np.ndarray:
    """Features of all that is not a run's own noise: form error, and what the checkpoints of a run share."""
    if run is None or sd == 0:
        return felt
    return np.concatenate([felt, sd * (run[:, None] == np.arange(run.max() + 1))], axis=1)


def _parts(
    felt: np.ndarray, own: np.ndarray, known: np.ndarray, weight: np.ndarray, run: np.ndarray | None, shared: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The covariance of the rows, in parts: what noise^2 multiplies [row, row], the known one [row, row], and what
    form_error^2 multiplies [row, row]. own: size of a row's own noise; known: of its known error; [row] each."""
    together = 0.0 if run is None else shared * (run[:, None] == run)
    return np.diag(own**2 / weight) + together, np.diag(known**2 / weight), felt @ felt.T


def _factored(
    data: dict[str, Any], own: np.ndarray, known: np.ndarray, form: np.ndarray, power: float = 1.0
) -> dict[str, Any]:
    """`data` with its rows padded, and what `grid.observe` needs where losses have known errors: `_parts`, which rows
    are `there`, and the `power` to which their likelihood counts."""
    rows = len(own)
    more = _power_of_two(rows) - rows
    pad = {key: np.pad(x, (0, more)) for key, x in {"own": own, "known": known, "form": form}.items()}
    pad["known"] += np.diag(np.arange(rows + more) >= rows).astype(float)
    return _padded(data, rows, rows + more) | pad | {"there": np.arange(rows + more) < rows, "power": power}


def _padded(data: dict[str, Any], rows: int, size: int) -> dict[str, Any]:
    return {
        key: np.concatenate([value, np.repeat(value[:1], size - rows)]) if np.shape(value) == (rows,) else value
        for key, value in data.items()
    }


def observed(
    data: dict[str, Any],
    turned: discrepancy.Rotated,
    precision: np.ndarray,
    count: float,
    grouped: noise.Groups | None = None,
    least: float = 0.0,
    known: float = 1.0,
    cells: nodes.Nodes | None = None,
) -> dict[str, Any]:
    """`data` with its rows padded, or with the nodes of `cells` in their place, and what `grid.observe` needs:
    `root_precision` [row], or what `nodes.reduce` gives; `project` [row, k] and `spread` [k] of `discrepancy.rotate`;
    `rest`: how many more coordinates `count` rows, by weight, have; `known`; `run` and `share` [row] of `noise.groups`
    where there are checkpoints. Coordinates of spread below `least` are left to the noise.

    known: factor by which `precision` is smaller than what the runs scatter with."""
    Q, s = turned
    Q, s = Q[:, s**2 >= least], s[s**2 >= least]
    rows = len(precision)
    if cells is not None:
        k = _power_of_two(max(len(s), 32))
        W, log_loss = (noise.whiten(x, precision, grouped) for x in (cells.interpolate, data["log_loss"]))
        plain = {key: value for key, value in data.items() if np.shape(value) != (rows,)}
        out = plain | cells.x | nodes.reduce(W, log_loss, np.pad(Q, ((0, 0), (0, k - len(s)))))
        out["spread"] = np.pad(s**2, (0, k - len(s)))
        return out | {"known": known, "rest": known * (count - len(s)) - (k - len(s))}
    size = _power_of_two(rows)
    k = min(size, _power_of_two(max(len(s), 32)))
    out = _padded(data, rows, size)
    out["root_precision"] = np.pad(np.sqrt(precision), (0, size - rows))
    out["project"] = np.pad(Q, ((0, size - rows), (0, k - len(s))))
    out["spread"] = np.pad(s**2, (0, k - len(s)))
    if grouped is not None:
        out["run"], out["share"] = (np.pad(x, (0, size - rows)) for x in grouped)
    return out | {"known": known, "rest": known * (count - len(s)) - (k - len(s))}


def _power_of_two(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << (n - 1).bit_length()


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
