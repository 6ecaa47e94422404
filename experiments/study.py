"""All that the laws say about a run table: fits, hold-outs of the largest models, and the report with pictures."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import laws
from laws import tuning
from laws.runs import require

LAWS = ("steplaw", "stack", "chinchilla", "farseer")
TOLD = ("steplaw", "chinchilla")  # whose refusals say what is missing where all refuse: the others need more
Stage = Callable[[str], AbstractContextManager[Any]]


@dataclass
class Findings:
    """Posteriors and hold-outs by law; a law that refused the runs is in neither, and in `refusals`, in words. notes:
    what was done to the losses."""

    runs: pd.DataFrame
    posteriors: dict[str, laws.Posterior] = field(default_factory=dict)
    backtests: dict[str, Any] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    report: Path | None = None


def study(
    source: Any,
    report_path: Path,
    *,
    target: str,
    title: str,
    stage: Stage,
    recipe: str | None = None,
    tuned_by: str | None = None,
) -> Findings:
    """Fits every law that the runs allow, holds out the largest models, and writes the report.

    source: anything `laws.load_runs` takes. target: the loss column. recipe: only its runs. tuned_by: for the laws of
    the loss, see `laws.tuned`. stage: a context manager for each piece of work, given its description; yields what
    `laws.fit` takes as progress.
    Raises InputError for a bad table, FitError where no law can be fitted.
    """
    from laws import report

    found = Findings(laws.load_runs(source, recipe=recipe))
    require(found.runs, (target,), "the report")
    tuned = None if tuned_by is None else laws.tuned(found.runs, tuned_by, target)
    found.notes = [] if tuned is None else tuned.attrs["notes"]
    for law in LAWS:
        runs = found.runs if tuned is None or law == "steplaw" else tuned
        try:
            with stage(f"fitting {law}") as progress:
                posterior = found.posteriors[law] = laws.fit(law, runs, target=target, progress=progress)
            if tuned is not None:  # `notes` says it, and of what
                posterior.warnings[:] = [note for note in posterior.warnings if not note.startswith(tuning.ALREADY)]
            with stage(f"{law}, the largest models held out") as progress:
                found.backtests[law] = laws.backtest(law, runs, target=target, progress=progress)
        except laws.InputError as error:  # too few runs for this law, or no learning rates among its columns
            done = "held out" if law in found.posteriors else "fitted"
            found.refusals.append(f"{law} was not {done}: {str(error).removeprefix(f'{law}: ')}")
    if not found.posteriors:
        told = [refusal for refusal in found.refusals if refusal.startswith(TOLD)]
        raise laws.FitError(f"no law can be fitted to these runs: {'; '.join(told)}")
    with stage("drawing the report"):
        found.report = report.write(
            report_path,
            found.runs,
            posteriors=found.posteriors,
            backtests=found.backtests,
            notes=[*found.refusals, *found.notes],
            tuned=tuned,
            target=target,
            title=title,
        )
    return found
