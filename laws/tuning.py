"""Under-tuned runs: losses as they would be at the best learning rate and batch size, by a Step Law posterior.

A law of the loss L(N, D) is about well-tuned runs. Where the learning rate or the batch size were not the best, a run
ended higher, and where that is more so at some sizes and budgets than at others, a fit takes it for N and D.

Each cell's optimum is inferred from all its runs together. Given a draw of Step Law's surface every run says what the
optimum is, ln L less the run's excess there; their weighted mean is the draw's answer, and draws count by how well they
explain the differences among the runs (importance sampling; where few draws would decide, the likelihood is tempered).
So a cell of one run is lowered by what Step Law expects of its settings, and a cell with a sweep mostly by what the
sweep shows. To correct run by run and then take the lowest would be biased low, by the noise of the best of many and by
the error of the correction, which is largest far from the optimum; to take the lowest and then correct it keeps the
first bias, and forgets what the others say.

The standard error of the correction goes into the column `loss_se`: cells that Step Law knows little of count for
little.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax
from scipy.stats import t as student

from laws import forms
from laws.errors import InputError
from laws.forms.grid import MAX_CELLS, over_seeds, relative_error
from laws.forms.steplaw_cells import KEEP_AT_LEAST, MAX_EXCESS, MIN_LRS, MOST, WINDOW
from laws.posterior import Posterior
from laws.runs import load_runs
from laws.saved import load_posterior
from laws.schema import hint, meaning

CELL = ("params", "tokens", "params_active", "params_total", "n_experts", "top_k", "unique_tokens", "recipe")
FEWEST = 50.0  # effective draws that must decide
SHAPE = 0.3  # share of a run's excess over its cell's best by which Step Law's bowl may be wrong for another recipe
ROW = "row of the table"
ALREADY = "these losses are already tuned, by "
NOTED = 100  # draws that do to say what was asked out of range
BLOCK = 500  # runs whose surfaces are evaluated at once
FINISHED = 0.99  # portion from which a checkpoint is the end of its run
# When the packaged Step Law speaks up unasked: it is at most NEAR decades from its own runs at half of these or more;
# the middle 80% of (at most LOOKED_AT) cells differ by UNEVEN in how far their best runs are off, CLEARLY beyond error.
NEAR, LOOKED_AT, UNEVEN, CLEARLY = 1.0, 50, 0.005, 2.0


def tuned(
    runs: Any, by: str | os.PathLike[str] | Posterior = "steplaw", target: str = "loss", *, recipe: str | None = None
) -> pd.DataFrame:
    """The run table with one row a cell: its best run, whose `target` is what Step Law expects of the cell's best
    learning rate and batch size, and the column `{target}_se` the standard error of that (and what was known before).

    runs, recipe: as `laws.load_runs` takes them. by: a packaged posterior of steplaw, a file, or one at hand. A cell is
    of one params, tokens, recipe and, where there are such columns, params_active, unique_tokens and the like. The
    column `tuned_by` names the posterior; a table that has it is returned as it is. Finished rows that lack lr or
    batch_tokens, checkpoints before the end of their schedule, and cells further from their optimum than Step Law knows
    (10% of the loss) are left out: how far off they are nobody knows. `attrs["notes"]` counts them all.
    Raises InputError for a bad table, a posterior of another law, and a table of which no row can be corrected.
    """
    table = load_runs(runs, recipe=recipe)
    if "tuned_by" in table:
        return table
    posterior, name = _posterior(by)
    found = cells(table, posterior, target)
    known = (found.excess < MAX_EXCESS) & (found.error < MAX_EXCESS)
    if not known.any():
        raise InputError(
            f"{table.attrs['source']}: every run is expected to end more than {MAX_EXCESS:.0%} above the best setting "
            f"(the least is {found.excess.min():.0%}); so far off Step Law knows no regrets: check lr and batch_tokens"
        )
    best = found.runs[known]
    optimum = best[target] * np.exp(-found.excess[known])
    # Rounded, so that the same runs have the same digest on every machine.
    columns = {target: np.round(optimum, 6), f"{target}_se": np.round(optimum * found.error[known], 6)}
    best = best.assign(**columns, tuned_by=name)
    rest = found.others[~_finished(found.others, target)]
    out = pd.concat([best, rest.assign(tuned_by="")]) if len(rest) else best
    if "seed" in out:  # runs that differ only in it are one row by now
        out = out.drop(columns="seed").fillna({"seeds": 1})
    out = out.sort_index().reset_index(drop=True)
    out.attrs = {"source": table.attrs["source"], "notes": _notes(table, found, known, posterior, name, target)}
    return out


def read(runs: Any, target: str, recipe: str | None, by: Any) -> pd.DataFrame:
    """`laws.load_runs`, and `tuned` where `by` names a posterior."""
    table = load_runs(runs, recipe=recipe)
    if name := name_of(table):
        again = "; they are not tuned again (tuned_by, --tuned-by)" if by is not None else ""
        table.attrs["notes"] = [f"{ALREADY}{name}{again}"]
        return table
    return table if by is None else tuned(table, by, target)


def refuse(law: str, by: Any) -> None:
    """Raises InputError where a law that is not of the loss is to be fitted to losses tuned by `by`."""
    if by is not None and "loss" not in forms.get(law).QUANTITIES:
        raise InputError(f"{law} learns from runs that are badly tuned; tuned_by (--tuned-by) is for laws of the loss")


def name_of(table: pd.DataFrame) -> str:
    """The posterior by which a table was tuned, or nothing."""
    return next((name for name in table.get("tuned_by", []) if isinstance(name, str) and name), "")


@dataclass(frozen=True)
class Cells:
    """The cells of a run table that Step Law can judge.

    runs: each one's best run, with the table's columns; excess: how far it is above the cell's optimum, of ln loss, and
    error: the standard error of that, [cell] each. others: the rows that cannot be judged. used: how many runs the
    cells have together."""

    runs: pd.DataFrame
    excess: np.ndarray
    error: np.ndarray
    others: pd.DataFrame
    used: int


def cells(table: pd.DataFrame, posterior: Posterior, target: str, most: int | None = None) -> Cells:
    """The cells of a validated run table, judged by a posterior of steplaw; most: of more, so many, evenly spread.
    Raises InputError where there are none."""
    keys = [c for c in CELL if c in table]
    runs, others = _judgeable(table, target, keys)
    query = _query(runs, posterior)
    y, draws = np.log(runs[target].to_numpy(float)), posterior.draws
    seeds = runs["seeds"].to_numpy(float) if "seeds" in runs else np.ones(len(runs))
    known = relative_error(runs, target)
    known = np.zeros(len(runs)) if known is None else known
    cell = runs.groupby(keys, dropna=False, sort=False).ngroup().to_numpy()
    members = np.split(np.lexsort((y, cell)), np.cumsum(np.bincount(cell))[:-1])  # best first
    if len(members) > MAX_CELLS:
        raise InputError(f"{len(members)} cells, and at most {MAX_CELLS} are corrected in reasonable time: give fewer")
    if most is not None and len(members) > most:
        members = [members[k] for k in np.linspace(0, len(members) - 1, most).round().astype(int)]
    found = []
    for block in _blocks([_near(rows, y) for rows in members]):
        rows = np.concatenate(block)
        above = excess(posterior, {c: x[rows] for c, x in query.items()})
        parts = np.split(above, np.cumsum([len(cell) for cell in block])[:-1], axis=1)
        found += [_optimum(part, y[cell], known[cell], seeds[cell], draws) for cell, part in zip(block, parts)]
    optimum, error = np.array(found).T
    best = np.array([rows[0] for rows in members])
    return Cells(runs.iloc[best], y[best] - optimum, error, others, len(runs))


def _query(runs: pd.DataFrame, posterior: Posterior) -> dict[str, np.ndarray]:
    """What is asked of each run, column -> [run]."""
    query = {c: runs[c].to_numpy(float) for c in ("params", "tokens", "lr", "batch_tokens")}
    if "params_active" in posterior.meta.get("optional", {}) and "params_active" in runs:
        query["params_active"] = runs["params_active"].fillna(runs["params"]).to_numpy(float)
    return query


def _judgeable(table: pd.DataFrame, target: str, keys: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(the rows that Step Law can judge, those that differ only in their seed as one; the others)."""
    source = table.attrs.get("source", "table")
    lacking = [c for c in ("lr", "batch_tokens", target) if c not in table or table[c].isna().all()]
    if lacking:
        raise InputError(
            f"{source}: to correct for how runs were tuned takes a column {lacking[0]!r} ({meaning(lacking[0])})"
            f"{hint(table, lacking[0], listing=False) or '; add it, or fit the runs as they are'}"
        )
    done = _finished(table, target)
    runs = over_seeds(table[done].rename_axis(ROW).reset_index(), target, keys).set_index(ROW)
    able = runs[["lr", "batch_tokens"]].notna().all(axis=1)
    if "portion" in runs:
        able &= ~(runs["portion"] < FINISHED)
    if not able.any():
        raise InputError(
            f"{source}: no row has lr, batch_tokens and a finished {target} together; there is nothing to correct"
        )
    return runs[able], pd.concat([table[~done], runs[~able]])


def _finished(table: pd.DataFrame, target: str) -> pd.Series:
    return (table["status"] == "ok") & table[target].notna()


def _near(rows: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of a cell's `rows`, best first, those that Step Law would model (see `steplaw_cells.Cell.modelled`)."""
    off, rank = y[rows] - y[rows[0]], np.arange(len(rows))
    return rows[((off < WINDOW) | (rank < KEEP_AT_LEAST)) & ((off < MAX_EXCESS) | (rank < MIN_LRS))][:MOST]


def _blocks(members: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Cells after each other, some BLOCK runs at once."""
    block: list[np.ndarray] = []
    for cell in members:
        block.append(cell)
        if sum(map(len, block)) >= BLOCK:
            yield block
            block = []
    if block:
        yield block


def excess(posterior: Posterior, query: dict[str, np.ndarray]) -> np.ndarray:
    """ln of 1 + regret, [draw, run]."""
    return np.log1p(posterior.regret(**query, n_draws=len(posterior.draws["noise"])).draws)


def _optimum(
    above: np.ndarray, y: np.ndarray, known: np.ndarray, seeds: np.ndarray, draws: dict[str, np.ndarray]
) -> tuple[float, float]:
    """(mean, standard deviation) of a cell's lowest ln loss.

    above: what each draw says of the runs' excess, [draw, run]; y: their ln loss, known: its known error, seeds: of how
    many runs it is the mean, [run] each.

    The deviation leaves out the runs' own noise, which a law's fit learns by itself."""
    own = (draws["form_error"][:, None] * above) ** 2 + known**2
    variance = draws["noise"][:, None] ** 2 / seeds + own + (SHAPE * (y - y.min())) ** 2
    total = (1 / variance).sum(axis=1)
    optimum = ((y - above) / variance).sum(axis=1) / total
    scaled = (y - above - optimum[:, None]) / np.sqrt(variance)
    fits = (student.logpdf(scaled, draws["df"][:, None]) - np.log(variance) / 2).sum(axis=1) - np.log(total) / 2
    weights = _tempered(fits if len(y) > 1 else np.zeros(len(above)))
    mean = float(weights @ optimum)
    spread = weights @ (optimum - mean) ** 2 + weights @ ((own / variance**2).sum(axis=1) / total**2)
    return mean, float(np.sqrt(spread))


def _tempered(fits: np.ndarray) -> np.ndarray:
    """Weights of draws from their log likelihoods, to a power at which FEWEST of them or more decide."""
    power = 1.0
    while 1 / np.sum((weights := softmax(power * fits)) ** 2) < min(FEWEST, len(fits) / 2):
        power *= 0.8
    return weights


def _posterior(by: Any) -> tuple[Posterior, str]:
    """(a posterior of steplaw, the name by which it can be found again)."""
    if isinstance(by, Posterior):
        posterior, name = by, f"a posterior of {by.meta.get('source', 'a table')}"
    else:
        if not isinstance(by, (str, os.PathLike)):
            raise InputError(f"runs are tuned by a posterior of steplaw, its file or its name, got by={by!r}")
        if not str(by).strip():
            raise InputError("tuned_by (--tuned-by) is empty; give steplaw, or the file of a fit of it")
        posterior, name = load_posterior(by), str(by)
    if posterior.law != "steplaw":
        raise InputError(
            f"runs are tuned by a posterior of steplaw, which knows learning rates; {name} is of {posterior.law}"
        )
    return posterior, name


# --- in words --------------------------------------------------------------------------------------------------------


def doubt(runs: pd.DataFrame, target: str) -> str:
    """A sentence where the packaged Step Law says that the best runs of cells are off by clearly different amounts, or
    nothing. runs: a validated table."""
    if "tuned_by" in runs or any(c not in runs or runs[c].isna().all() for c in ("lr", "batch_tokens", target)):
        return ""
    posterior = _packaged()
    near = np.ones(len(runs), bool)
    for column, (low, high) in posterior.meta["ranges"].items():
        near &= runs[column].between(low / 10**NEAR, high * 10**NEAR).to_numpy()
    if near.mean() < 0.5:
        return ""
    try:
        found = cells(runs[near].reset_index(drop=True), posterior, target, most=LOOKED_AT)
    except InputError:
        return ""
    low, high = np.quantile(found.excess, [0.1, 0.9])
    if high - low < max(UNEVEN, CLEARLY * np.median(found.error)):
        return ""
    return (
        f"by Step Law the best runs of the middle 80% of these cells lie {_share(low)} to {_share(high)} above their "
        "best lr and batch_tokens, which a law of the loss takes for N and D: if the recipe is like Step Law's, "
        "correct for it by tuned_by='steplaw' (on the command line --tuned-by steplaw), else by a steplaw fit of your "
        "own sweeps"
    )


@lru_cache(maxsize=1)
def _packaged() -> Posterior:
    return load_posterior("steplaw")


def _notes(
    table: pd.DataFrame, found: Cells, known: np.ndarray, posterior: Posterior, name: str, target: str
) -> list[str]:
    excess = found.excess[known]
    notes = [
        f"{target} is taken as Step Law ({name}) expects it of each cell's best lr and batch_tokens: {found.used} runs "
        f"in {len(known)} cells, {_moved(np.median(excess))} at the median, at the extremes {_moved(excess.min())} and "
        f"{_moved(excess.max())}"
    ]
    if not known.all():
        notes.append(
            f"{int((~known).sum())} of {len(known)} cells left out: by Step Law their runs lie over "
            f"{MAX_EXCESS:.0%} above the best setting, or it can't say how far"
        )
    left = int(_finished(found.others, target).sum())
    if left:
        notes.append(
            f"{left} of {len(table)} rows left out: they lack lr or batch_tokens, or are checkpoints before the end of "
            "their schedule, and how far off they are can't be said"
        )
    asked = _query(found.runs[known], posterior)
    return notes + [f"asked of Step Law: {note}" for note in posterior.regret(**asked, n_draws=NOTED).warnings]


def _moved(excess: float) -> str:
    return f"{'lowered' if excess >= 0 else 'raised'} by {_share(abs(excess))}"


def _share(x: float) -> str:
    return f"{100 * x:.2g}%"
