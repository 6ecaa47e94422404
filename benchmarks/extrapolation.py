"""How far off are laws of the loss beyond their data, and do their intervals cover?

    python -m benchmarks.extrapolation [--laplace] [--tables NAME,...]

For each published table the largest sizes (a fifth) or the cells of most compute (a quarter) are held out; every law is
fitted to the rest and predicts the best loss of each held-out cell. Laws: the stack (the default answer), its members
with their form error, and as the points of comparison the nested law without it and the literature's practice:
Chinchilla by Huber loss on log L, delta 1e-3. Prints the tables of benchmarks/extrapolation.md.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd

from experiments import compile_cache
from laws import datasets, stacking
from laws.errors import FitError
from laws.fitting import fit
from laws.forms import chinchilla, grid
from laws.forms.grid import best_per_cell
from laws.posterior import Posterior
from laws.runs import finished
from laws.splits import FRACTION, held_out

LEVELS = (0.5, 0.8, 0.9, 0.95)
HUBER = "chinchilla, Huber"
TRUE = "nested, taken for true"
MUCH = 1.3  # times the error of the best of the others


def judge(posterior: Posterior, out: pd.DataFrame, target: str) -> dict[str, np.ndarray]:
    """Per held-out cell: relative error of the median, width of the 90% interval, inside each interval."""
    loss = posterior.predict(params=out["params"].to_numpy(), tokens=out["tokens"].to_numpy()).loss
    measured = out[target].to_numpy()
    low, high = loss.interval(0.9)
    rows = {"error": np.abs(loss.median / measured - 1), "width": (high - low) / measured}
    rows["params"] = out["params"].to_numpy()
    for level in LEVELS:
        low, high = loss.interval(level)
        rows[f"{level:g}"] = (low <= measured) & (measured <= high)
    return rows


def huber(kept: pd.DataFrame, out: pd.DataFrame, target: str) -> dict[str, np.ndarray]:
    data, facts = chinchilla.prepare(kept, target)
    e, a, b, alpha, beta = chinchilla.point_fit(data)
    x = grid.coordinates({c: out[c].to_numpy() for c in ("params", "tokens")}, facts["center"])
    curve = np.exp(np.logaddexp(e, np.logaddexp(a - alpha * x["n"], b - beta * x["d"])))
    return {"error": np.abs(curve / out[target].to_numpy() - 1)}


def hold_out(cells: pd.DataFrame, target: str, heldout: str, laplace: bool) -> dict[str, dict[str, np.ndarray]]:
    """Law -> what `judge` says."""
    kept, out, _ = held_out(cells, heldout, FRACTION[heldout], "hold-out")
    posteriors = {}
    for member in stacking.MEMBERS:
        try:
            posteriors[member] = fit(member, kept, target=target, laplace=laplace)
        except FitError as error:
            print(f"  {error}", flush=True)
    members = {law: p for law, p in posteriors.items() if len(kept) >= stacking.LEAST.get(law, 0)}
    weights = stacking.weights(kept, target, list(members))
    print("  weights", {k: round(w, 2) for k, w in weights.items()}, flush=True)
    posteriors["stack"] = stacking.combine(members, weights)
    posteriors[TRUE] = fit("nested", kept, target=target, laplace=laplace, form_error=False)
    return {law: judge(p, out, target) for law, p in posteriors.items()} | {HUBER: huber(kept, out, target)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--laplace", action="store_true", help="normal approximations in place of NUTS: a quick look")
    parser.add_argument("--tables", default="", help="only tables whose label holds one of these words")
    args = parser.parse_args()
    compile_cache.use()
    began = time.perf_counter()
    words = [word for word in args.tables.split(",") if word]
    results = {}
    for table in datasets.loss_tables():
        if words and not any(word in table.label for word in words):
            continue
        runs = finished(datasets.load_loss_table(table))
        cells = best_per_cell(runs.dropna(subset=[table.target]), table.target)
        for heldout in ("compute", "params"):
            results[table, heldout] = hold_out(cells, table.target, heldout, args.laplace)
            errors = {law: f"{100 * r['error'].mean():.2f}" for law, r in results[table, heldout].items()}
            print(f"{table.label}, {heldout}, {time.perf_counter() - began:.0f} s: {errors}", flush=True)
    print(report(results))


def report(results: dict) -> str:
    """Markdown: medians over tables, coverage pooled over tables, every table's errors."""
    laws = ["stack", *stacking.MEMBERS, TRUE, HUBER]
    lines = [
        "| law | held out | error %: median over tables | mean | worst | "
        + " | ".join(f"{x:.0%}" for x in LEVELS)
        + " | width of 90% |",
        "|---|---|---|---|---|" + "---|" * (len(LEVELS) + 1),
    ]
    for heldout in ("compute", "params", "either"):
        for law in laws:
            judged = [r[law] for (_, h), r in results.items() if heldout in (h, "either") and law in r]
            errors = np.array([100 * r["error"].mean() for r in judged])
            line = f"| {law} | {heldout} | {np.median(errors):.2f} | {errors.mean():.2f} | {errors.max():.2f} |"
            if law == HUBER:
                lines.append(line + " |" * (len(LEVELS) + 1))
                continue
            for level in LEVELS:  # every table counts alike, however many cells it holds out
                line += f" {np.mean([r[f'{level:g}'].mean() for r in judged]):.0%} |"
            lines.append(line + f" {100 * np.median([r['width'].mean() for r in judged]):.2f} |")
    lines += [
        "",
        "| table | held out | cells | " + " | ".join(laws) + " | stack / best of the others | inside 90% |",
        "|---|---|---|" + "---|" * (len(laws) + 2),
    ]
    for (table, heldout), r in results.items():
        errors = {law: 100 * r[law]["error"].mean() if law in r else np.nan for law in laws}
        ratio = errors["stack"] / np.nanmin([errors[law] for law in laws[1:]])
        shown = " | ".join("" if np.isnan(e) else f"{e:.2f}" for e in errors.values())
        inside = r["stack"]["0.9"]
        lines.append(f"| {table.label} | {heldout} | {len(inside)} | {shown} | {ratio:.2f} | {inside.mean():.0%} |")
    return "\n".join([*lines, *doubtful(results)])


def doubtful(results: dict) -> list[str]:
    """How sure it is that the stack is worse than the best of the others where it errs by a MUCH larger factor: the
    factor's 90% interval, held-out cells drawn anew; sizes drawn anew with all their cells, which err together; and how
    often the named law then still is the best of the others."""
    lines = ["", "| table | held out | best law | factor | 90%, cells anew | 90%, sizes anew | still best |"]
    lines.append("|---|---|---|---|---|---|---|")
    for (table, heldout), r in results.items():
        errors = np.array([r[law]["error"] for law in r if law not in ("stack", TRUE)])
        names, stack = [law for law in r if law not in ("stack", TRUE)], r["stack"]["error"]
        best = int(np.argmin(errors.mean(axis=1)))
        factor = stack.mean() / errors[best].mean()
        if factor < MUCH:
            continue
        rng, sizes = np.random.default_rng(0), r["stack"]["params"]
        own = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
        cells = [rng.integers(len(stack), size=len(stack)) for _ in range(2000)]
        groups = [np.concatenate([own[k] for k in rng.integers(len(own), size=len(own))]) for _ in range(2000)]
        spans = []
        for drawn in (cells, groups):
            factors = [stack[i].mean() / errors[best][i].mean() for i in drawn]
            spans.append("{:.2f} to {:.2f}".format(*np.quantile(factors, [0.05, 0.95])))
        still = np.mean([np.argmin(errors[:, i].mean(axis=1)) == best for i in groups])
        spans[1] = f"{spans[1]} ({len(own)} sizes)"
        row = [table.label, heldout, names[best], f"{factor:.2f}", *spans, f"{still:.0%}"]
        lines.append(f"| {' | '.join(row)} |")
    return lines


if __name__ == "__main__":
    main()
