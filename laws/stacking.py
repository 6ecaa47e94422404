"""The default answer: several laws at once, each weighted by how well it extrapolates on the runs themselves.

No one form is right, and which is best beyond the data can't be read off the fit to them. The largest sizes and the
cells of most compute among the runs are held out in turn and each law is fitted to the rest; a law's weight is its
prior's times its predictive density there, tempered (the points of a hold-out err together: they count as EVIDENCE of
one). That is stacking (Yao et al. 2018, Bayesian Analysis 13:917) by rolling hold-outs in place of leave-one-out, as
what is asked lies far from the data. A draw of the stack is a draw of one law with its form error, so every answer
carries the uncertainty about the law itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp, softmax

from laws import checks, forms
from laws.errors import FitError
from laws.forms.grid import best_per_cell, relative_error
from laws.posterior import Posterior
from laws.runs import finished
from laws.splits import held_out

# Prior weights. They, LEAST and EVIDENCE were chosen with the hold-outs of benchmarks/extrapolation.md in view.
MEMBERS = {"nested": 0.75, "farseer": 0.15, "chinchilla": 0.1}
LEAST = {"farseer": 36}  # cells: four for each of its coefficients; with fewer it goes astray
FOLDS = (("params", 0.2), ("compute", 0.25), ("compute", 0.5))  # what is held out, share of sizes or cells
EVIDENCE = 0.5


def fit(
    table: pd.DataFrame,
    target: str,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Posterior:
    """The stack fitted to a run table; options: of `laws.fit`. Laws that the runs are too few for are left out, and
    said so in the warnings. Raises FitError where no law can be fitted."""
    from laws.fitting import fit

    cells = best_per_cell(finished(table).dropna(subset=[target]), target)
    posteriors, refused = {}, {}
    for k, member in enumerate(MEMBERS):
        if len(cells) < LEAST.get(member, 0):
            refused[member] = (
                f"it goes astray on fewer than {LEAST[member]} (params, tokens) cells; these are {len(cells)}"
            )
            continue
        moved = partial(_moved, progress, k) if progress else False
        try:
            posteriors[member] = fit(member, table, target=target, seed=seed, progress=moved, **options)
        except FitError as error:
            refused[member] = str(error)
    if not posteriors:
        raise FitError(f"stack: no law can be fitted to these runs; {refused['chinchilla']}")
    stack = combine(posteriors, weights(cells, target, list(posteriors), seed))
    stack.warnings.extend(f"{member} is not in the stack: {reason}" for member, reason in refused.items())
    return stack


def _moved(progress: Callable[[int, int], None], member: int, done: int, total: int) -> None:
    progress(done + member * total, total * len(MEMBERS))


def weights(cells: pd.DataFrame, target: str, members: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Member -> weight, from hold-outs within `cells` (params, tokens, `target`; one row a cell). A law that cannot be
    fitted to what a fold leaves is scored as the others' mean there."""
    from laws.fitting import fit

    log = np.log([MEMBERS[member] for member in members])
    for heldout, share in FOLDS:
        scores = np.full(len(members), np.nan)
        for k, member in enumerate(members):
            try:
                kept, out, _ = held_out(cells, heldout, share, "stack")
                scores[k] = log_density(fit(member, kept, target=target, seed=seed, laplace=True), out, target)
            except FitError:
                continue
        if np.isfinite(scores).any():
            log += EVIDENCE * np.where(np.isfinite(scores), scores, np.nanmean(scores))
    return dict(zip(members, softmax(log).tolist()))


def log_density(posterior: Posterior, cells: pd.DataFrame, target: str) -> float:
    """Mean over cells of the log predictive density of the measured ln loss."""
    y, error = np.log(cells[target].to_numpy(float)), relative_error(cells, target)
    log_lik, _ = checks.log_likelihood(posterior, checks.query(posterior, cells), y, error)
    return float(np.mean(logsumexp(log_lik, axis=0) - np.log(len(log_lik))))


def combine(posteriors: Mapping[str, Posterior], weights: Mapping[str, float]) -> Posterior:
    """One posterior, of law "stack", with each member's draws in proportion to its weight, evenly mixed.

    The posteriors are of the same runs. Sites are named `member.site`, NaN in draws of other members; `member` is the
    index of a draw's law in meta["members"].
    """
    names = list(posteriors)
    first = posteriors[names[0]]
    shape = first.samples["noise"].shape
    n = shape[0] * shape[1]
    # Draw i belongs to the member in whose stretch of cumulated weight (i + 1/2) / n lies; then shuffled.
    bounds = np.cumsum([weights[name] for name in names])
    bounds /= bounds[-1]
    member = np.searchsorted(bounds, (np.arange(n) + 0.5) / n)
    member = np.random.default_rng(0).permutation(member)
    samples: dict[str, np.ndarray] = {"member": member.astype(float)}
    for k, name in enumerate(names):
        mine = member == k
        for site, values in posteriors[name].draws.items():
            shared = site in forms.get("stack").SHARED
            out = samples.setdefault(site if shared else f"{name}.{site}", np.full((n, *values.shape[1:]), np.nan))
            out[mine] = values[:n][mine]
    diagnostics = [posteriors[name].meta["diagnostics"] for name in names]
    worst: dict[str, Callable[..., float]] = {"max_rhat": max, "min_ess": min, "seconds": sum}
    # Of the member of which the largest share diverged, both: its note says so many of so many.
    diverged = max(diagnostics, key=lambda d: d["divergences"] / d.get("draws", 1.0))
    meta = first.meta | {
        "law": "stack",
        "citation": "; ".join(posteriors[name].meta["citation"] for name in names),
        "members": names,
        "weights": {name: float(weights[name]) for name in names},
        "tails": [posteriors[name].meta["tails"] for name in names],
        "scatter": [posteriors[name].meta["scatter"] for name in names],
        "diagnostics": {
            key: pick(d[key] for d in diagnostics) for key, pick in worst.items() if all(key in d for d in diagnostics)
        }
        | {key: diverged[key] for key in ("divergences", "draws") if key in diverged},
        "warnings": _warnings(posteriors),
        "command": first.meta["command"].replace(names[0], "stack"),
    }
    return Posterior(
        "stack", {site: values.reshape(*shape, *values.shape[1:]) for site, values in samples.items()}, meta
    )


def _warnings(posteriors: Mapping[str, Posterior]) -> list[str]:
    """What all members say of their runs once, then what some say, each by name."""
    each = [posterior.warnings for posterior in posteriors.values()]
    common = [note for note in each[0] if all(note in notes for notes in each)] if len(each) > 1 else []
    own = [f"{name}: {note}" for name, p in posteriors.items() for note in p.warnings if note not in common]
    return common + own
