"""Fitting a law of the loss: robust weights at the mode, then its parameters with the form error integrated out, then
the form error given the parameters.

Noise is Student-t with tails that are learnt: a run's precision is a mixture over scales, found here by
expectation-maximisation at the mode, so that a run that lies far off counts for little. Rows are padded to powers of
two: tables of like size share programs.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from scipy.stats import gamma
from scipy.stats import t as student

from laws import sampler
from laws.forms import discrepancy

ROUNDS = 20  # of expectation and maximisation, at most
TOLERANCE = 0.05  # of precisions, between rounds
TAILS = np.geomspace(1.2, 40.0, 40)  # degrees of freedom tried; from 3 on where form error takes its share
DROP = 1e-3  # share of the noise below which a coordinate of the form error is left to it while sampling
OUTLIER = 0.15  # share of an ordinary run's precision below which a run is named as an outlier: about 5 deviations


def sample(
    form: ModuleType,
    data: dict[str, Any],
    *,
    name: str,
    seed: int,
    form_error: bool = True,
    laplace: bool = False,
    **options: Any,
) -> sampler.Samples:
    """Draws of the law's sites and of `discrepancy` [chain, draw, feature]; `facts` for the posterior's meta: domain,
    tails, outliers.

    form_error: False takes the form for true, with no `discrepancy` and `form_error` 0. laplace: by `sampler.laplace`,
    not `sampler.sample`. options: of either."""
    domain = discrepancy.domain(data)
    phi = discrepancy.features(domain, data)
    felt = phi * form_error
    precision, df = np.ones(len(phi)), 4.0
    values = form.start(data)
    for _ in range(ROUNDS):
        turned = discrepancy.rotate(felt, precision)
        values = sampler.mode(form.model, observed(data, turned, precision), values, name=name, hold=form.HELD)
        residual = data["log_loss"] - form.log_curve(np, values, data)
        error, variance = discrepancy.conditional_noise(
            turned, residual, precision, values["noise"], values["form_error"]
        )
        scaled = (error**2 + variance) / values["noise"] ** 2
        df = _tails(scaled, 3.0 if form_error else 1.0)
        before, precision = precision, (df + 1) / (df + scaled)
        if np.abs(precision - before).max() < TOLERANCE:
            break
    # Known precisions would tell more of the law than Student-t noise does, by this factor (Fisher information).
    known = precision * (df + 1) / (df + 3)
    turned = discrepancy.rotate(felt, known)
    draw, options = (sampler.laplace if laplace else sampler.sample), options | {"hold": form.HELD}
    ratio = (values["noise"] / values["form_error"]) ** 2
    result = draw(form.model, observed(data, turned, known, DROP * ratio), values, name=name, seed=seed, **options)

    draws = {site: result.draws[site] for site in form.SITES}
    if form_error:
        draws["discrepancy"] = _discrepancy(form, data, draws, turned, np.sqrt(known)[:, None] * phi, known, seed)
    else:
        draws["form_error"] = np.zeros_like(draws["form_error"])
    facts = {"domain": domain, "tails": df, "outliers": _outliers(data, precision)}
    return sampler.Samples(draws, result.diagnostics, facts)


def _discrepancy(
    form: ModuleType,
    data: dict[str, Any],
    draws: dict[str, np.ndarray],
    turned: discrepancy.Rotated,
    phi: np.ndarray,
    precision: np.ndarray,
    seed: int,
) -> np.ndarray:
    """A draw of the form error's weights for each draw of the law: [chain, draw, feature]."""
    p = {site: x.reshape(-1, *(x.shape[2:] or (1,))) for site, x in draws.items()}
    residual = data["log_loss"] - form.log_curve(np, p, data)
    whitened, rng = np.sqrt(precision) * residual, np.random.default_rng(seed)
    weights = discrepancy.draw(turned, phi, whitened, p["noise"][:, 0], p["form_error"][:, 0], rng)
    return weights.reshape(*draws["noise"].shape, -1)


def observed(
    data: dict[str, Any], turned: discrepancy.Rotated, precision: np.ndarray, least: float = 0.0
) -> dict[str, Any]:
    """`data` with its rows padded and what `grid.observe` needs: `root_precision` [row], `project` [row, k] and
    `spread` [k] of `discrepancy.rotate`, `count` of the rows that are there, each by its precision. Coordinates of
    spread below `least` are left to the noise."""
    Q, s = turned
    Q, s = Q[:, s**2 >= least], s[s**2 >= least]
    rows = len(precision)
    size = _power_of_two(rows)
    k = min(size, _power_of_two(max(len(s), 32)))
    out = {
        key: np.concatenate([value, np.repeat(value[:1], size - rows)]) if np.shape(value) == (rows,) else value
        for key, value in data.items()
    }
    out["root_precision"] = np.pad(np.sqrt(precision), (0, size - rows))
    out["project"] = np.pad(Q, ((0, size - rows), (0, k - len(s))))
    out["spread"] = np.pad(s**2, (0, k - len(s)))
    return out | {"count": precision.sum()}


def _power_of_two(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << (n - 1).bit_length()


def _tails(scaled: np.ndarray, least: float) -> float:
    """The likeliest degrees of freedom of squared noise in units of its scale; a priori around 20, rarely below 2."""
    tried = TAILS[least <= TAILS]
    fits = [student.logpdf(np.sqrt(scaled), df).sum() + gamma.logpdf(df - 1, 2.0, scale=10.0) for df in tried]
    return float(tried[int(np.argmax(fits))])


def _outliers(data: dict[str, Any], precision: np.ndarray) -> list[dict[str, float]]:
    """The runs that count for little, farthest off first."""
    far = [i for i in np.argsort(precision) if precision[i] < OUTLIER]
    return [
        {
            "params": float(np.exp(data["n"][i] + data["ln_N"])),
            "tokens": float(np.exp(data["d"][i] + data["ln_D"])),
            "loss": float(np.exp(data["log_loss"][i])),
            "precision": float(precision[i]),
        }
        for i in far
    ]
