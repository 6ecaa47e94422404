"""One function fits every law: run table in, posterior out, or a sentence that says what is missing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from laws import forms, threads, tuning
from laws.errors import FitError, InputError
from laws.posterior import Posterior
from laws.runs import counted, diverged, finished, require
from laws.schema import listed, unread_error

DRAWS = 1000  # kept for prediction, evenly thinned; diagnostics are of all draws
Progress = Callable[[int, int], None]


@threads.in_turn
def fit(
    law: str,
    runs: Any,
    *,
    target: str = "loss",
    recipe: str | None = None,
    size: str = "params",
    tuned_by: str | os.PathLike[str] | Posterior | None = None,
    seed: int = 0,
    num_warmup: int = 400,
    num_samples: int = 500,
    chains: int = 4,
    form_error: bool = True,
    laplace: bool = False,
    progress: bool | Progress = False,
) -> Posterior:
    """The posterior of `law` (`laws.forms.NAMES`; "stack": several laws of the loss, weighted by how well they
    extrapolate) given a run table, by NUTS in float64.

    runs: anything `laws.load_runs` takes. target: the loss column ("loss", "eval_loss" in nats per token, "bpc").
    size: what N counts, "params" (without embeddings), "params_total" (with them) or "params_active"; predictions then
    take `params` in the same convention, which `meta["size"]` names. A column with the target's standard error
    (`loss_se`) adds to the noise of its rows. tuned_by: a posterior of steplaw, packaged or in a file, by which losses
    are first brought to those of the best learning rate and batch size (`laws.tuned`); `meta["tuned_by"]` names it.
    steplaw uses every (lr, batch) run of a cell; the loss laws use the best run of each (params, tokens) cell.
    Runs that did not end well, or without a target loss, are left out and counted in `meta["excluded"]`; but in steplaw
    a run that diverged counts as a loss above its cell's best one (`meta["censored"]` says how many do).
    num_warmup, num_samples: a chain; more are drawn (up to ten times as many) where chains have not mixed. The same
    seed gives the same posterior on the same versions.
    form_error: laws of the loss allow for the error of their own form, which widens their coefficients and makes their
    predictions true; False takes the form for true, as the literature does. laplace: by the normal approximation at the
    mode, which takes a tenth of the time and has no diagnostics. progress: True for a bar, or a function of (done,
    total).
    Raises InputError for a bad table, FitError where the data are too few for the law or the diagnostics refuse the fit
    (R-hat over 1.01, fewer than 400 effective draws, more than 1% divergences).

    "compression" is a law of scores, not of runs: `runs` is a table of scores, or a CSV of one, and the result the
    `laws.compression.Comparison` of its two forms.
    """
    if law == "compression":
        from laws import compression

        scores = runs if isinstance(runs, pd.DataFrame) else compression.read(runs)
        settings: dict[str, Any] = {
            "seed": seed,
            "num_warmup": num_warmup,
            "num_samples": num_samples,
            "chains": chains,
        }
        return compression.compare(scores, **settings)  # type: ignore[return-value]
    form = forms.get(law)
    if not (isinstance(seed, (int, np.integer)) and 0 <= seed < 2**32):
        raise InputError(f"seed must be a whole number from 0 to 2^32 - 1, got {seed!r}")
    tuning.refuse(law, tuned_by)
    table = tuning.read(runs, target, recipe, tuned_by)
    doubt = tuning.doubt(table, target) if size == "params" and "loss" in form.QUANTITIES else ""
    unread = unread_error(table, target) if "loss" in form.QUANTITIES else ""
    if unread:
        table.attrs["notes"] = [*table.attrs.get("notes", []), unread]
    table = counted(table, size)
    source = str(table.attrs.get("source", "table"))
    table = require(table, ("params", "tokens", target, *form.COLUMNS), law)
    used = finished(table)
    used = used[np.isfinite(used[target].to_numpy(float))].reset_index(drop=True)
    for name, value, least in (
        ("chains", chains, 2),
        ("num_samples", num_samples, 100),
        ("num_warmup", num_warmup, 100),
    ):
        if not (isinstance(value, (int, np.integer)) and value >= least):
            raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if used.empty:
        raise FitError(f"{law}: none of the {len(table)} runs of {source} has status ok and a finite {target}")

    from laws import normal, programs, sampler, stacking, surface  # import jax: only when something is fitted

    programs.make_room()
    options: dict[str, Any] = {"num_warmup": num_warmup, "num_samples": num_samples, "chains": chains}
    if law == "stack":
        with _bar(law, progress) as on_progress:
            how = options | {"form_error": form_error, "laplace": laplace, "size": size}
            stack = stacking.fit(table, target, seed=seed, progress=on_progress, **how)
            stack.warnings.extend(note for note in table.attrs["notes"] if note not in stack.warnings)
            return stack
    lost = {"diverged": diverged(table, form.COLUMNS)} if hasattr(form, "CENSORED") else {}
    data, facts = form.prepare(used, target, **lost)
    if hasattr(form, "simplest"):
        data = form.simplest(data)
    with _bar(law, progress) as on_progress:
        if "loss" in form.QUANTITIES:
            how = {"laplace": True} if laplace else options | {"on_progress": on_progress}
            result = surface.sample(form, data, name=law, seed=seed, form_error=form_error, **how)
        elif laplace:
            result = normal.sample(form.model, data, form.start(data), name=law, hold=form.HELD, seed=seed)
        else:
            how = options | {"hold": form.HELD, "on_progress": on_progress}
            result = sampler.sample(form.model, data, form.start(data), name=law, seed=seed, **how)
    n_chains, n = next(iter(result.draws.values())).shape[:2]
    keep = np.unique(np.linspace(0, n - 1, min(n, -(-DRAWS // n_chains))).round().astype(int))
    kept = (*form.SITES, "discrepancy")
    samples = {site: np.asarray(result.draws[site][:, keep]) for site in kept if site in result.draws}
    warnings = [*table.attrs["notes"], *facts.pop("notes")]
    if doubt:
        warnings.append(doubt)
    recipes = sorted(set(used["recipe"]))
    if len(recipes) > 1 and "loss" in form.QUANTITIES and "recipe" not in form.COVARIATES:
        pooled = "" if form.COVARIATES else "law pooled, which tells them apart, or "
        warnings.append(
            f"{len(recipes)} recipes ({listed(recipes, 4)}) in one law: where their losses differ, fit {pooled}one by "
            "one (recipe=, --recipe)"
        )
    if result.diagnostics["divergences"]:
        warnings.append(
            f"{result.diagnostics['divergences']:.0f} of {result.diagnostics['draws']:.0f} draws diverged: "
            "the intervals may be a little narrow"
        )
    excluded = len(table) - len(used) - facts.get("censored", 0)
    numbers = [c for c in ("params", "tokens", *form.COVARIATES) if c != "recipe"]
    given = {"target": "" if target == "loss" else target, "recipe": recipe}
    given["size"] = "" if size == "params" else size
    name = tuning.name_of(table)
    given["tuned-by"] = name
    options_given = "".join(f" --{option} {value}" for option, value in given.items() if value)
    meta = (
        facts
        | result.facts
        | {
            "law": law,
            "citation": form.CITATION,
            "source": source,
            "command": f"stepseer fit {law} {source}{options_given} --out {law}.nc",
            "target": target,
            "size": size,
            **({"tuned_by": name} if name else {}),
            "rows": len(table),
            "excluded": excluded,
            "ranges": {c: [float(used[c].min()), float(used[c].max())] for c in numbers},
            "data_digest": digest(used, target, form, **lost),
            "seed": seed,
            "settings": options | {"form_error": form_error, "laplace": laplace},
            "diagnostics": result.diagnostics,
            "versions": {p: importlib.metadata.version(p) for p in ("jax", "numpyro", "numpy", "scipy")},
            "warnings": warnings,
        }
    )
    posterior = Posterior(law, samples, meta)
    if law == "steplaw":
        from laws.forms.steplaw_surface import reach

        meta["reach"] = reach(posterior, used, target)
    return posterior


def digest(runs: pd.DataFrame, target: str, form: ModuleType, diverged: pd.DataFrame | None = None) -> str:
    """SHA-256 of the numbers a fit reads, whatever file they came from; of recipes' names, which rows share one."""
    optional = (*getattr(form, "OPTIONAL", ()), *([f"{target}_se"] if "loss" in form.QUANTITIES else []))
    columns = ["params", "tokens", target, *form.COLUMNS, *(c for c in optional if c in runs)]
    if diverged is not None and len(diverged):
        runs = pd.concat([runs[columns], diverged[columns].assign(**{target: np.nan})], ignore_index=True)
    values = [pd.factorize(runs[c])[0] if c == "recipe" else runs[c] for c in columns]
    return hashlib.sha256(np.column_stack(values).astype(float).tobytes()).hexdigest()


class _bar:
    """A context: the callback for the sampler's progress, drawing a rich bar if asked."""

    def __init__(self, law: str, progress: bool | Progress):
        self.law, self.progress = law, progress

    def __enter__(self) -> Progress | None:
        if self.progress is False:
            return None
        if callable(self.progress):
            return self.progress
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f}%"),
            TimeRemainingColumn(),
        )
        self.display = Progress(*columns, transient=True)
        self.display.start()
        task = self.display.add_task(f"fitting {self.law}", total=None)
        return lambda done, total: self.display.update(task, completed=done, total=total)

    def __exit__(self, *exc: object) -> None:
        if self.progress is True:
            self.display.stop()
