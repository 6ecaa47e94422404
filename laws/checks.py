"""Is this fit to be trusted? Checks of a loss law's posterior against runs, each ending in one sentence.

Leave-one-out by Pareto-smoothed importance sampling (Vehtari, Gelman and Gabry 2017, Stat. Comput. 27:1413; Vehtari et
al. 2024, J. Mach. Learn. Res. 25:72): coverage, Pareto k and the influence of every cell are of the fit without that
cell. Residuals are compared with those of data made by the model itself (posterior predictive checks, Gelman, Meng and
Stern 1996). What the prior says, and how much it decides, is `laws.prior_checks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp, ndtri
from scipy.stats import binom
from scipy.stats import t as student

from laws import forms, noise, tuning
from laws.errors import InputError
from laws.forms import grid
from laws.plots import count
from laws.posterior import Posterior, refuse_other
from laws.runs import counted, finished, require

LEVELS = (0.5, 0.8, 0.9, 0.95)
FAR = 4.0  # noise deviations from which a cell is named as an outlier
BAD_K = 0.7  # Pareto k from which importance sampling is not to be trusted
RARE = 0.005  # chance of as few, or as many, inside their intervals from which these are called too narrow, or too wide
PATTERN = 0.01  # posterior predictive p below which a pattern in the residuals is reported
NEIGHBOUR = "the next budget's residual"
BEYOND = 10.0  # the answer watched: this many times the largest size and budget
MAX_RHAT, MIN_ESS, MAX_DIVERGENCES = 1.01, 400.0, 10
NAMED = 3  # cells in a sentence
FEW = 0.05  # of the cells: up to so many may be outliers, or hold the fit, without worry


@dataclass(frozen=True)
class Check:
    """What the checks found. `sentences`: one a check, for people; `worries`: those that say something is wrong.

    table: one row a cell: params, tokens, measured, predicted (median), deviation (of the log loss, in standard
    deviations of noise and known error), pit (where the measurement lies in the prediction made without it, 0 to 1),
    pareto_k, elpd, influence (how far leaving the cell out moves the loss predicted BEYOND the data, in posterior
    standard deviations; the last three nan for runs the law was not fitted to), known_error (of ln loss, where there
    are standard errors). coverage: level -> share of measurements inside. residuals: columns pattern, correlation, p.
    prior, sensitivity: of `laws.prior_checks`, None where they were not asked for.
    """

    law: str
    fitted_to_these: bool
    table: pd.DataFrame
    coverage: dict[float, float]
    residuals: pd.DataFrame
    sentences: list[str]
    worries: list[str]
    prior: dict[str, float] | None = None
    sensitivity: pd.DataFrame | None = None
    warnings: list[str] = field(default_factory=list)


def check(posterior: Posterior, runs: Any, *, recipe: str | None = None, prior: bool = True) -> Check:
    """Checks of `posterior` against `runs`, its own or others, which then are a test of it.

    runs: anything `laws.load_runs` takes. prior: also draw from the prior and refit with more and less of it, which
    takes half a minute (only where the runs are its own).
    Raises InputError for a bad table, runs without the fit's loss column, and laws that predict no loss.
    """
    used, cells, own = fitted_cells(posterior, runs, recipe)
    where, y = query(posterior, cells), np.log(cells[posterior.meta["target"]].to_numpy(float))
    error = grid.relative_error(cells, posterior.meta["target"])
    log_lik, residual = log_likelihood(posterior, where, y, error)
    far = np.log(mean_loss(posterior, beyond({c: x.max() for c, x in where.items()}, BEYOND)))
    weights, k = _left_out(log_lik) if own else (np.full(log_lik.shape, 1 / len(log_lik)), np.full(len(y), np.nan))
    below = student.cdf(residual, tails(posterior))
    pit = (weights * below).sum(axis=0)
    influence = (weights.T @ far - far.mean()) / far.std() if own else np.full(len(y), np.nan)
    table = cells[[*where]].assign(
        measured=np.exp(y),
        predicted=np.exp(np.median(y - residual * spread(posterior, where, error), axis=0)),
        deviation=np.median(residual, axis=0),
        pit=pit,
        pareto_k=k,
        elpd=logsumexp(log_lik, axis=0, b=weights) if own else np.nan,
        influence=influence,
    )
    if error is not None:
        table["known_error"] = error
    coverage = {level: float(np.mean(np.abs(pit - 0.5) <= level / 2)) for level in LEVELS}
    residuals = _patterns(below, cells)
    said = [_diagnostics(posterior), _coverage(pit, own, error is not None), _residuals(residuals), _outliers(table)]
    said += [_error_of_form(posterior, where, error), *([_dominant(table)] if own else [])]
    found: dict[str, Any] = {}
    if prior and own and hasattr(forms.get(posterior.law), "priors"):
        from laws import prior_checks

        found = {
            "prior": prior_checks.predictive(posterior.law, used, posterior.meta["target"]),
            "sensitivity": prior_checks.sensitivity(posterior.law, used, posterior.meta["target"]),
        }
        said += [
            prior_checks.predictive_sentence(found["prior"]),
            prior_checks.sensitivity_sentence(found["sensitivity"]),
        ]
    return Check(
        law=posterior.law,
        fitted_to_these=own,
        table=table,
        coverage=coverage,
        residuals=residuals,
        sentences=[text for _, text in said],
        worries=[text for fine, text in said if not fine],
        **found,
    )


def fitted_cells(posterior: Posterior, runs: Any, recipe: str | None = None) -> tuple[pd.DataFrame, pd.DataFrame, bool]:
    """(the finished runs, their best loss in each cell, whether they are what `posterior` was fitted to)."""
    from laws.fitting import digest

    refuse_other(posterior)
    form, target = forms.get(posterior.law), posterior.meta["target"]
    if "loss" not in form.QUANTITIES:
        raise InputError(f"{posterior.law} says nothing of the loss; check a law of it, such as chinchilla or farseer")
    by = posterior.meta.get("tuned_by")
    try:
        table = tuning.read(runs, target, recipe, by)
    except InputError as error:
        raise InputError(f"the fit's losses were tuned by {by}: {error}" if by else str(error)) from None
    table = counted(table, posterior.meta.get("size", "params"))
    table = require(table, ("params", "tokens", target, *form.COLUMNS), posterior.law)
    used = finished(table)
    used = used[np.isfinite(used[target].to_numpy(float))].reset_index(drop=True)
    if used.empty:
        raise InputError(f"none of the {len(table)} runs has status ok and a finite {target}; give runs that finished")
    own = digest(used, target, form) == posterior.meta.get("data_digest")
    cells = grid.best_per_cell(used, target, form.COVARIATES)
    if own and hasattr(form, "prepare"):  # a law may leave cells out
        kept = np.round(form.prepare(used, target)[0]["log_loss"], 12)
        cells = cells[np.isin(np.round(np.log(cells[target]), 12), kept)].reset_index(drop=True)
    return used, cells, own


def log_likelihood(
    posterior: Posterior, where: dict[str, np.ndarray], y: np.ndarray, error: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(log density of ln loss y [cell] given each draw, residual in noise standard deviations), both [draw, cell].

    where: column -> [cell]. error: what is known of the error of y, [cell]. The one place that knows how losses scatter
    about the mean loss: Student-t, independent given a draw, with the fit's tails.
    """
    sd = spread(posterior, where, error)
    residual = (y - np.log(mean_loss(posterior, where))) / sd
    return student.logpdf(residual, tails(posterior)) - np.log(sd), residual


def spread(posterior: Posterior, where: dict[str, np.ndarray], error: np.ndarray | None = None) -> np.ndarray:
    """Scale of the noise of a run of its own, of ln loss, and of its known `error` [cell]: [draw, cell or 1]."""
    sd = _own_spread(posterior, where)
    return sd if error is None else np.hypot(sd, error)


def _own_spread(posterior: Posterior, where: dict[str, np.ndarray]) -> np.ndarray:
    sd = posterior.draws["noise"][:, None]
    if "scatter" not in posterior.meta:
        return sd
    x = grid.coordinates({c: where[c] for c in ("params", "tokens")}, posterior.meta["center"])
    scatters = posterior.meta["scatter"]
    scatters = scatters if isinstance(scatters, list) else [scatters]
    return sd * np.stack([noise.scale({"scatter": scatter}, x) for scatter in scatters])[_member(posterior)]


def tails(posterior: Posterior) -> np.ndarray:
    """Degrees of freedom of the noise, [draw, 1]: of each draw's own law in a stack."""
    return np.atleast_1d(np.asarray(posterior.meta["tails"], float))[_member(posterior)][:, None]


def _member(posterior: Posterior) -> np.ndarray:
    """Which law of a stack each draw is of; 0 in others."""
    return posterior.draws.get("member", np.zeros(len(posterior.draws["noise"]))).astype(int)


def mean_loss(posterior: Posterior, where: dict[str, Any]) -> np.ndarray:
    """All draws [draw, *query]."""
    return posterior.predict(n_draws=len(posterior.draws["noise"]), **where).mean_loss.draws


def query(posterior: Posterior, cells: pd.DataFrame) -> dict[str, np.ndarray]:
    """What `posterior` predicts from at `cells`: column -> [cell]."""
    return {c: cells[c].to_numpy() for c in ("params", "tokens", *forms.get(posterior.law).COVARIATES)}


def beyond(largest: dict[str, float], times: float) -> dict[str, float]:
    """`times` the size (all of it, and the active part) and budget; other covariates as they are."""
    return {c: x * (times if c in ("params", "params_active", "tokens") else 1) for c, x in largest.items()}


def _left_out(log_lik: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(weights that turn the draws [draw] into those of the fit without each cell, [draw, cell], Pareto k [cell])."""
    import arviz

    log_weights, k = arviz.psislw(-log_lik.T)
    return np.exp(log_weights).T, np.asarray(k)


def _patterns(below: np.ndarray, cells: pd.DataFrame) -> pd.DataFrame:
    """Correlation of residuals (as normal scores of `below` [draw, cell]) with what a wrong curve would leave behind,
    and the share of data made by the model that show as much."""
    z = ndtri(np.clip(below, 1e-12, 1 - 1e-12))
    made = np.random.default_rng(0).standard_normal(z.shape)
    n, d = (np.log(cells[c].to_numpy(float)) for c in ("params", "tokens"))
    n, d = n - n.mean(), d - d.mean()
    candidates = {"ln N": n, "ln D": d, "ln N squared": n**2, "ln D squared": d**2, "ln N times ln D": n * d}
    rows = []
    for name, x in candidates.items():
        x = x - x.mean()
        if x.std() < 1e-9:
            continue
        seen, chance = (_correlation(values, x) for values in (z, made))
        p = float(np.mean(np.abs(chance) >= np.abs(seen)))
        rows.append({"pattern": name, "correlation": float(np.median(seen)), "p": p})
    order = np.lexsort((cells["tokens"], cells["params"]))
    same = np.diff(cells["params"].to_numpy()[order]) == 0
    if same.sum() >= 5:
        seen, chance = (_neighbours(values[:, order], same) for values in (z, made))
        p = float(np.mean(np.abs(chance) >= np.abs(seen)))
        rows.append({"pattern": NEIGHBOUR, "correlation": float(np.median(seen)), "p": p})
    return pd.DataFrame(rows, columns=["pattern", "correlation", "p"])


def _correlation(z: np.ndarray, x: np.ndarray) -> np.ndarray:
    z = z - z.mean(axis=1, keepdims=True)
    return z @ x / np.sqrt((z**2).sum(axis=1) * (x**2).sum() + 1e-300)


def _neighbours(z: np.ndarray, same: np.ndarray) -> np.ndarray:
    a, b = z[:, :-1][:, same], z[:, 1:][:, same]
    return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1) + 1e-300)


# --- in words: (whether it is fine, the sentence) --------------------------------------------------------------------

Said = tuple[bool, str]


def _diagnostics(posterior: Posterior) -> Said:
    d = posterior.meta["diagnostics"]
    if "max_rhat" not in d:
        return False, "The posterior is a normal approximation at its mode, which no chains vouch for; NUTS has chains."
    fine = d["max_rhat"] <= MAX_RHAT and d["min_ess"] >= MIN_ESS and d["divergences"] <= MAX_DIVERGENCES
    text = f"R-hat {d['max_rhat']:.3f}, {d['min_ess']:,.0f} effective draws, {d['divergences']:.0f} divergences"
    return fine, f"The chains {'agree' if fine else 'do not vouch for this fit'} ({text})."


def _coverage(pit: np.ndarray, own: bool, known: bool) -> Said:
    """Off where the share inside an interval is further from its level than chance allows in 99 of 100 tables. pit:
    [cell]; known: whether the losses have standard errors."""
    off = np.abs(pit - 0.5)
    inside = {level: int((off <= level / 2).sum()) for level in (0.9, 0.5)}
    how = "predicted from all the others" if own else "taken as new to the law"
    text = f"Of the {len(pit)} cells, {how}, {inside[0.9] / len(pit):.0%} lie inside their 90% interval and "
    text += f"{inside[0.5] / len(pit):.0%} inside 50%"
    if any(binom.cdf(count, len(pit), level) < RARE for level, count in inside.items()):
        return False, f"{text}: the intervals are too narrow."
    if any(binom.sf(count - 1, len(pit), level) < RARE for level, count in inside.items()):
        why = ", as where standard errors are too large or shared by the cells" if known else ""
        return True, f"{text}: the intervals are wider than they need be{why}."
    return True, f"{text}: as they should."


def _residuals(residuals: pd.DataFrame) -> Said:
    bad = residuals[residuals["p"] < PATTERN]
    if bad.empty:
        least = f" (least p {residuals['p'].min():.2f})" if len(residuals) else ""
        return True, f"What the law leaves over shows no pattern in N or D{least}."
    worst = bad.sort_values("p").iloc[0]
    if worst["pattern"] == NEIGHBOUR:
        return False, (
            f"Runs of one size and neighbouring budgets err together (correlation {worst['correlation']:+.2f}, p "
            f"{worst['p']:.3f}): their number says more than there is to know, and intervals may be too narrow."
        )
    return False, (
        f"What the law leaves over still goes with {worst['pattern']} (correlation {worst['correlation']:+.2f}, "
        f"p {worst['p']:.3f}): its curve bends wrongly there, and that grows beyond the data."
    )


def _outliers(table: pd.DataFrame) -> Said:
    far = table[table["deviation"].abs() > FAR].sort_values("deviation", key=abs, ascending=False)
    if far.empty:
        return True, f"No cell lies more than {FAR:g} noise deviations from the law."
    off = far["measured"] / far["predicted"] - 1
    shown = ", ".join(f"{name} {x:+.1%}" for name, x in zip(_names(far), off[:NAMED]))
    more = f" and {len(far) - NAMED} more" if len(far) > NAMED else ""
    return len(far) <= max(1, FEW * len(table)), (
        f"{len(far)} of {len(table)} cells lie over {FAR:g} noise deviations from the law: {shown}{more}. They count "
        "for little in the fit, but look at those runs."
    )


def _error_of_form(posterior: Posterior, where: dict[str, np.ndarray], error: np.ndarray | None) -> Said:
    noise = float(np.median(posterior.draws["noise"]))
    known = "" if error is None else f", the known error of its loss {_shares(error)}"
    if "discrepancy" not in posterior.draws:
        text = f"A run scatters by {noise:.2%}{known} and the form is taken for true"
        return False, f"{text}: trust no interval beyond the data."
    law = {site: x for site, x in posterior.samples.items() if site != "discrepancy"}
    curve = mean_loss(Posterior(posterior.law, law, posterior.meta), where)
    off = float(np.sqrt(np.mean(np.mean(np.log(mean_loss(posterior, where) / curve), axis=0) ** 2)))
    sizes = {"the form": off, "noise": noise, "the known error": 0.0 if error is None else float(np.median(error))}
    largest = max(sizes, key=lambda name: sizes[name])
    text = f"On these cells the law's form is off by {off:.2%}, a run's noise is {noise:.2%}{known}"
    return True, f"{text}: {largest} is the {'larger' if error is None else 'largest'} error."


def _shares(error: np.ndarray) -> str:
    low, high = error.min(), error.max()
    return f"{low:.2%}" if f"{low:.2%}" == f"{high:.2%}" else f"{low:.2%} to {high:.2%}"


def _dominant(table: pd.DataFrame) -> Said:
    bad = table[table["pareto_k"] > BAD_K].sort_values("pareto_k", ascending=False)
    top = table.loc[[table["influence"].abs().idxmax()]]
    sway = (
        f"the one with most sway over the loss at {BEYOND:g} times the scale, {_names(top)[0]}, moves it by "
        f"{top['influence'].abs().iloc[0]:.1f} posterior deviations"
    )
    if bad.empty:
        return True, f"No single cell decides the fit (Pareto k at most {table['pareto_k'].max():.2f}); {sway}."
    return len(bad) <= max(1, FEW * len(table)), (
        f"{len(bad)} of {len(table)} cells hold the fit by themselves (Pareto k above {BAD_K:g}), foremost "
        f"{', '.join(_names(bad))}: their own score is not to be trusted; {sway}."
    )


def _names(cells: pd.DataFrame) -> list[str]:
    """The first few cells."""
    return [f"({count(N)}, {count(D)} tokens)" for N, D in zip(cells["params"][:NAMED], cells["tokens"][:NAMED])]
