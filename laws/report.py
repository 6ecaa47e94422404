"""A report in one HTML file: what was run, what the laws say, how far they can be trusted, with pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from laws import forms, page, plots, tuning, whole
from laws.cells import best_of_cells, cells
from laws.holdout import Backtest
from laws.posterior import Posterior, refuse_other
from laws.runs import load_runs, require
from laws.schema import COLUMNS

LEVEL = 0.9
REACH = 10  # the extrapolation shown: this many times the largest size and budget
FORMULAS = {
    "stack": "draws of several laws, each in proportion to how well it extrapolates on these runs",
    "steplaw": "lr* = e^lr_const · N^lr_N · D^lr_D,   B* = e^batch_const · N^batch_N · D^batch_D   (B in tokens)",
    "chinchilla": "L = E + A / N^alpha + B / D^beta",
    "nested": "L = E + (A / N^alpha + B / D^beta)^k",
    "pooled": "L = E + (A / N^alpha + B / D^beta)^k for each recipe, its level and slopes near a common law's",
    "kaplan": "L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D",
    "data_constrained": "L = E + A / N'^alpha + B / D'^beta,   D' = U (1 + R_D (1 - exp((1 - D / U) / R_D))), N' alike",
    "moe": "L = E + A / N'^alpha + B / D^beta,   N' = N_active^(1 - eta) N^eta",
    "routed": "log L = a log N + b log E' + c log N log E' + d,   E' the number of experts, saturating",
    "farseer": "L = exp(a3 N^gamma + b3) + exp(a2 N^beta + b2) · D^(-exp(a1 N^alpha + b1)), "
    "written here by its values and slopes at the centre of the data",
}
UNIT = "{unit of the loss}"
# site -> (what it is, its unit, as it is shown)
Sites = dict[str, tuple[str, str, Any]]
_NOISE: Sites = {
    "noise": ("noise of a run's loss", "%", lambda x: 100 * x),
    "form_error": ("error of the law's form, among the data", "%", lambda x: 100 * x),
}
_TERMS: Sites = {
    "E": ("irreducible loss, E", UNIT, None),
    "A": ("size term, A", f"{UNIT} at N = 1", None),
    "alpha": ("exponent of N, alpha", "", None),
    "B": ("data term, B", f"{UNIT} at D = 1", None),
    "beta": ("exponent of D, beta", "", None),
}
SITES: dict[str, Sites] = {
    "steplaw": {
        "lr_const": ("learning rate, constant", "ln", None),
        "lr_N": ("learning rate, exponent of N", "", None),
        "lr_D": ("learning rate, exponent of D", "", None),
        "batch_const": ("batch size, constant", "ln tokens", None),
        "batch_N": ("batch size, exponent of N", "", None),
        "batch_D": ("batch size, exponent of D", "", None),
        "lr_sd": ("scatter of a cell's best learning rate", "ln", None),
        "batch_sd": ("scatter of a cell's best batch size", "ln", None),
        "noise": ("noise of a run's loss", "%", lambda x: 100 * x),
    },
    "chinchilla": _TERMS | _NOISE,
    "nested": _TERMS | {"k": ("outer exponent, k", "", None)} | _NOISE,
    "kaplan": {
        "alpha_N": ("exponent of N, alpha_N", "", None),
        "alpha_D": ("exponent of D, alpha_D", "", None),
        "ln_N_c": ("scale of N, N_c", "ln", None),
        "ln_D_c": ("scale of D, D_c", "ln tokens", None),
    }
    | _NOISE,
    "data_constrained": _TERMS
    | {
        "R_N": ("excess parameters worth having, R_N", "times the size for the data", None),
        "R_D": ("repeats worth having, R_D", "epochs after the first", None),
    }
    | _NOISE,
    "moe": _TERMS | {"eta": ("worth of inactive parameters, eta", "0 none, 1 as active ones", None)} | _NOISE,
    "routed": {
        "a": ("exponent of N, a", "", None),
        "b": ("exponent of the experts, b", "", None),
        "c": ("their product, c", "", None),
        "d": ("constant, d", "log10", None),
        "E_start": ("experts that a dense model counts as", "", None),
        "E_max": ("experts at most", "", None),
    }
    | _NOISE,
    "farseer": {
        "floor": ("loss at infinite data, at the centre", UNIT, np.exp),
        "floor_slope": ("its slope, d ln / d ln N", "", None),
        "gap": ("loss still to gain from data, at the centre", UNIT, np.exp),
        "gap_slope": ("its slope, d ln / d ln N", "", None),
        "decay": ("exponent of D, at the centre", "", np.exp),
        "decay_slope": ("its slope, d ln / d ln N", "", None),
    }
    | _NOISE,
    "pooled": {
        "spread_center": ("by how much recipes' losses differ, at the centre", "%", lambda x: 100 * x),
        "spread_log_slope_N": ("by how much their slopes in N do", "%", lambda x: 100 * x),
        "spread_log_slope_D": ("by how much their slopes in D do", "%", lambda x: 100 * x),
    }
    | _NOISE,
    "stack": _NOISE,
}


def write(
    path: str | os.PathLike[str],
    runs: Any,
    *,
    posteriors: Mapping[str, Posterior],
    backtests: Mapping[str, Backtest],
    notes: Sequence[str] = (),
    tuned: pd.DataFrame | None = None,
    target: str = "loss",
    title: str = "Scaling laws of these runs",
) -> Path:
    """Writes the report, whole or not at all; returns its path. It needs no other file or address.

    runs: anything `laws.load_runs` takes. posteriors, backtests: by law, whatever there is. notes: sentences shown on
    top, such as why a law was not fitted. tuned: the runs as `laws.tuned` has them, where the laws of the loss are of
    those. target: the loss column that is drawn.
    Raises InputError for a bad table or an unwritable path.
    """
    for posterior in posteriors.values():
        refuse_other(posterior)
    runs = load_runs(runs)
    require(runs, ("params", "tokens", target), "the report")
    losses = runs if tuned is None else tuned
    # A law that asks for more than N and D has no curve to draw over them: its coefficients only.
    plain = {law: p for law, p in posteriors.items() if not (law in forms.NAMES and forms.get(law).COVARIATES)}
    body = [
        f"<h1>{escape(title)}</h1>",
        _lead(runs, target),
        _notes([*notes, *(f"{law}: {text}" for law, p in posteriors.items() for text in p.warnings)]),
        _answers(runs, plain, target, tuning.name_of(losses)),
        _optimum(runs, posteriors.get("steplaw"), target),
        _losses(losses, {law: p for law, p in plain.items() if law != "steplaw"}, target),
        _heldout(backtests, tuning.name_of(losses)),
        _fits(posteriors, target),
        _runs(runs, target),
    ]
    text = page.page(title, "\n".join(part for part in body if part))
    return whole.write(Path(path).expanduser(), text.encode())


# --- sections ------------------------------------------------------------------------------------------------------


def _lead(runs: pd.DataFrame, target: str) -> str:
    done, lost = runs[runs["status"] == "ok"], int((runs["status"] != "ok").sum())
    sizes, budgets = done["params"], done["tokens"]
    best = done.iloc[int(np.nanargmin(done[target]))]
    words = (
        f"{len(runs):,} runs of {_kinds(sizes, 'model size')} ({_span(sizes, plots.count)}) on "
        f"{_kinds(budgets, 'token budget')} ({_span(budgets, plots.count)})"
        + (f", {lost} of which diverged, were stopped or failed" if lost else "")
        + f". The lowest {plots.unit(target)} is {best[target]:.4f}, at N = {plots.count(best['params'])} and "
        f"D = {plots.count(best['tokens'])}."
    )
    return f'<p class="lead">{escape(words)}</p>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return '<ul class="notes">' + "".join(f"<li>{escape(_sentence(note))}</li>" for note in notes) + "</ul>"


def _answers(runs: pd.DataFrame, posteriors: Mapping[str, Posterior], target: str, by: str) -> str:
    """What each law says at the largest scale of the table and REACH times beyond it."""
    largest = float(runs["params"].max()), float(runs["tokens"].max())
    rows = []
    for law, posterior in posteriors.items():
        for params, tokens in (largest, (largest[0] * REACH, largest[1] * REACH)):
            answer = posterior.predict(params=params, tokens=tokens)
            where = [_law(law), plots.count(params), plots.count(tokens)]
            if law == "steplaw":
                rows.append([*where, "best learning rate", *_interval(answer.lr, _rate)])
                rows.append([*where, "best batch size (tokens)", *_interval(answer.batch_tokens, plots.count)])
            else:
                rows.append([*where, plots.unit(target), *_interval(answer.loss, lambda x: f"{x:.3f}")])
    if not rows:
        return ""
    head = ["law", "N", "D", "quantity", "median", f"{LEVEL:.0%} interval"]
    text = f"At the largest size and budget of the table, and {REACH} times both."
    if by:
        text += f" Losses are those of the best settings, as {by} expects them."
    return page.section("What the laws say", page.paragraph(text) + page.table(head, rows, words=(0, 3)))


def _optimum(runs: pd.DataFrame, posterior: Posterior | None, target: str) -> str:
    parts = []
    figure = plots.landscape(runs, posterior, target=target)
    if figure is not None:
        text = "Every tile is a setting that was tried, coloured by how much worse it ended than the cell's best."
        parts += [page.paragraph(text), page.picture(figure, "loss over learning rate and batch size, a panel a cell")]
    few = "batch_tokens" not in runs or np.median([c.runs["batch_tokens"].nunique() for c in cells(runs)]) <= 3
    figure = plots.lr_curves(runs, posterior, target=target) if few else None
    if figure is not None:
        parts += [page.picture(figure, "loss against learning rate, a panel a cell")]
    if posterior is not None:
        text = (
            "The law across scale, with 50% and 90% bands for the optimum of a cell nobody has swept. Points are the "
            "best settings tried, coloured like the nearest line."
        )
        parts += [
            page.paragraph(text),
            page.picture(plots.lr_law(runs, posterior, target=target), "best settings across scale"),
        ]
    return page.section("Learning rate and batch size", "".join(parts)) if parts else ""


def _losses(runs: pd.DataFrame, posteriors: Mapping[str, Posterior], target: str) -> str:
    by = tuning.name_of(runs)
    points = f"each cell's loss at its best settings, as {by} expects it" if by else "the best run of each cell"
    text = (
        f"Points are {points}. Lines are each law's median, bands its 50% and 90% intervals for a new "
        "run. They hold the noise, what the data leave open about the law, and the error of its form, which grows "
        "with the distance from the data."
    )
    picture = page.picture(
        plots.loss_curves(runs, posteriors, target=target), "loss against tokens and against parameters"
    )
    return page.section("Loss across scale", (page.paragraph(text) if posteriors else "") + picture)


def _heldout(backtests: Mapping[str, Backtest], by: str) -> str:
    if not backtests:
        return ""
    rows, details = [], []
    for law, test in backtests.items():
        cells = len(test.table[["params", "tokens"]].drop_duplicates())
        what = "regret" if law == "steplaw" else "error"
        covered = [f"{test.coverage[key]:.0%}" for key in test.coverage]
        rows.append(
            [_law(law), _WORDS[test.heldout], str(cells), f"{test.error:.2%} {what}", *covered, f"{test.width:.1%}"]
        )
        details += [_measurement(law, row) for _, row in test.table.iterrows()]
    levels = [f"in {float(key):.0%}" for key in next(iter(backtests.values())).coverage]
    head = ["law", "held out", "cells", "off by", *levels, f"width of {LEVEL:.0%}"]
    text = (
        "Each law was fitted again without the largest runs and asked for them. Its error is the mean distance of its "
        "median from the measurement. Step Law's regret is how much worse than the cell's best the tried setting "
        "nearest to its answer ended; what is measured of it is the best setting tried, what it predicts is which of "
        "those would end best. The columns in 50% to 95% say how many measurements those intervals held."
    )
    if by:
        text += f" Losses that count as measured here are those of the best settings, as {by} expects them."
    figure = plots.heldout(backtests)
    picture = page.picture(figure, "held-out losses and their predictions") if figure is not None else ""
    columns = ["law", "N", "D", "quantity", "measured", "median", f"{LEVEL:.0%} interval", ""]
    more = page.details("Every held-out measurement", page.table(columns, details, words=(0, 3, 7)))
    return page.section("Held out", page.paragraph(text) + page.table(head, rows, words=(0, 1)) + picture + more)


def _measurement(law: str, row: pd.Series) -> list[str]:
    """A row of the table of held-out measurements."""
    quantity = row["quantity"]
    where = [_law(law), plots.count(row["params"]), plots.count(row["tokens"]), _QUANTITIES.get(quantity, quantity)]
    measured, median, low, high = (_show(quantity, row[c]) for c in ("measured", "median", "low", "high"))
    return [*where, measured, median, f"{low} to {high}", "inside" if row["inside"] else "outside"]


def _fits(posteriors: Mapping[str, Posterior], target: str) -> str:
    parts = []
    for law, posterior in posteriors.items():
        rows = []
        for member, weight in posterior.meta.get("weights", {}).items():
            rows.append([f"weight of {_law(member)}", f"{weight:.2f}", "", "", ""])
        for site, (name, unit, show) in SITES.get(law, {}).items():
            if site not in posterior.draws:  # Step Law has no form error; nor has a form taken for true
                continue
            draws = posterior.draws[site] if show is None else show(posterior.draws[site])
            low, mid, high = np.quantile(draws, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
            unit = unit.replace(UNIT, COLUMNS[target][0]) if target in COLUMNS else unit
            rows.append([name, *(f"{x:,.4g}" for x in (mid, low, high)), unit])
        parts.append(f"<h3>{escape(_law(law))}</h3>" + f'<p class="formula">{escape(FORMULAS.get(law, ""))}</p>')
        parts.append(page.table(["coefficient", "median", "5%", "95%", "unit"], rows, words=(0, 4)))
        parts.append(page.paragraph(f"{_diagnosis(posterior)} {posterior.meta['citation']}."))
    return page.section("The fits", "".join(parts)) if parts else ""


def _diagnosis(posterior: Posterior) -> str:
    """What was fitted to and the sampler's diagnostics in a sentence or two."""
    d, meta = posterior.meta["diagnostics"], posterior.meta
    left = f", {meta['excluded']} left out" if meta["excluded"] else ""
    near = " (those near their cell's best)" if posterior.law == "steplaw" else ""
    fitted = f"Fitted to {meta['rows_used']:,} of {meta['rows']:,} rows{near} in {meta['cells']} cells{left}. "
    if meta.get("censored"):
        fitted += f"{meta['censored']:,} that diverged or were stopped count too, as losses above their cell's best. "
    if "max_rhat" not in d:
        return fitted + f"By the normal approximation at the mode, in {d['seconds']:.0f} s."
    diverged = f"{d['divergences']:.0f} draws diverged" if d["divergences"] else "no draw diverged"
    return fitted + (
        f"The chains agree: R-hat is {d['max_rhat']:.3f} at worst, at least {d['min_ess']:,.0f} effective draws "
        f"of {d['draws']:,.0f}, and {diverged}; {d['seconds']:.0f} s."
    )


def _runs(runs: pd.DataFrame, target: str) -> str:
    facts = [("source", str(runs.attrs.get("source", "table"))), ("recipes", ", ".join(sorted(set(runs["recipe"]))))]
    facts += [("runs", ", ".join(f"{n:,} {status}" for status, n in runs["status"].value_counts().items()))]
    shown = {
        "params": plots.count,
        "tokens": plots.count,
        "lr": _rate,
        "batch_tokens": plots.count,
        "seq_len": plots.count,
    }
    for column, form in shown.items():
        if column in runs and runs[column].notna().any():
            distinct = runs[column].nunique()
            facts.append((COLUMNS[column][1], f"{_span(runs[column], form)}, {distinct} value{'s' * (distinct > 1)}"))
    if "flops" in runs:
        facts.append(("training compute in all", f"{runs['flops'].sum():.3g} FLOP"))
    if "wall_s" in runs:
        facts.append(("training time in all", f"{runs['wall_s'].sum() / 60:.1f} minutes"))
    best = best_of_cells(runs, target, every=True)
    several = [c for c in ("params_active", "recipe") if c in runs and runs[c].nunique() > 1]
    have = [c for c in ("params", "tokens", *several, target, "lr", "batch_tokens") if c in best]
    rows = [[_show(column, row[column]) for column in have] for _, row in best.iterrows()]
    table = page.table(
        [_QUANTITIES.get(c, c) for c in have], rows, words=[have.index(c) for c in have if c == "recipe"]
    )
    out = page.table(["", ""], [list(fact) for fact in facts], words=(0, 1)) + page.details(
        "The best run of every cell", table
    )
    lost = runs[runs["status"] != "ok"]
    if len(lost):
        have = [c for c in ("params", "tokens", "lr", "batch_tokens", "status", "reason") if c in lost]
        rows = [[_show(c, row[c]) for c in have] for _, row in lost.head(200).iterrows()]
        out += page.details(
            f"The {len(lost)} runs that diverged, were stopped or failed",
            page.table(have, rows, words=(len(have) - 1,)),
        )
    return page.section("The runs", out)


# --- parts ---------------------------------------------------------------------------------------------------------

_WORDS = {"params": "largest sizes", "compute": "most compute"}
_QUANTITIES = {
    "lr": "learning rate",
    "batch_tokens": "batch size",
    "params": "N",
    "params_active": "N, active",
    "tokens": "D",
    "eval_loss": "held-out loss",
}


def _law(law: str) -> str:
    return {"steplaw": "Step Law", "moe": "MoE"}.get(law, law.replace("_", " ").capitalize())


def _show(column: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if not np.isfinite(value):
        return "–"
    return _rate(value) if column == "lr" else plots.count(value) if value >= 1000 else f"{value:.4f}"


def _rate(value: float) -> str:
    return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e+")


def _interval(quantity: Any, form: Any) -> list[str]:
    low, high = quantity.interval(LEVEL)
    return [form(quantity.median), f"{form(low)} to {form(high)}"]


def _span(values: pd.Series, form: Any) -> str:
    low, high = values.min(), values.max()
    return form(low) if low == high else f"{form(low)} to {form(high)}"


def _kinds(values: pd.Series, word: str) -> str:
    n = values.nunique()
    return f"{n} {word}{'s' if n > 1 else ''}"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."
