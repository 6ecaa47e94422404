"""Farseer on its own data: what the runs of smaller models say of larger ones, by law, with intervals.

    python -m benchmarks.farseer_own [--laplace] [--more FILE.csv]

The paper's table (sizes above 2e8 parameters, best loss a cell). First its validation loss, bits per character: fits to
the sizes up to 1.9e9 and up to 5.35e9 predict every run of the largest model, 6.37e9 parameters, and those beyond 6e9
tokens, where the paper's code looks. Then the training loss: with --more (columns params, tokens, loss: runs that are
not in the table), a fit to all sizes predicts those runs. Prints the tables of benchmarks/farseer_own.md.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd

from benchmarks.extrapolation import HUBER, huber, judge
from experiments import compile_cache
from laws import load_runs, stacking
from laws.fitting import fit
from laws.forms import farseer_staged
from laws.forms.grid import best_per_cell
from laws.runs import finished

SMALLEST = 2e8  # of the paper's fit
LARGEST = 6.3e9  # the sizes above are predicted
FROM = 6e9  # tokens, as the paper's code has it
TRUE, STAGED = "farseer, form taken for true", "farseer, authors' staged fit"
LAWS = ("stack", *stacking.MEMBERS, TRUE, STAGED, HUBER)
LEVELS = ("0.5", "0.9")
Judged = dict[str, dict[str, np.ndarray]]


def judged(kept: pd.DataFrame, out: pd.DataFrame, target: str, laplace: bool) -> Judged:
    """Law -> what `judge` says of the cells `out` after a fit to the cells `kept`."""
    posteriors = {law: fit(law, kept, target=target, laplace=laplace) for law in stacking.MEMBERS}
    weights = stacking.weights(kept, target, list(posteriors))
    print("weights", {law: round(w, 2) for law, w in weights.items()}, flush=True)
    posteriors["stack"] = stacking.combine(posteriors, weights)
    posteriors[TRUE] = fit("farseer", kept, target=target, laplace=laplace, form_error=False)
    results = {law: judge(posterior, out, target) for law, posterior in posteriors.items()}
    curve = farseer_staged.loss(farseer_staged.fit(kept, target), out["params"].to_numpy(), out["tokens"].to_numpy())
    results[STAGED] = {"error": np.abs(curve / out[target].to_numpy() - 1)}
    return results | {HUBER: huber(kept, out, target)}


def line(law: str, result: dict[str, np.ndarray], chosen: np.ndarray) -> str:
    """A row of markdown: mean and largest error, coverage, mean width, of the `chosen` cells."""
    error = 100 * result["error"][chosen]
    shown = [f"{error.mean():.3f}", f"{error.max():.3f}"]
    if "width" in result:
        shown += [f"{result[level][chosen].mean():.0%}" for level in LEVELS]
        shown += [f"{100 * result['width'][chosen].mean():.2f}"]
    return " | ".join(["", law, *shown, *[""] * (5 - len(shown)), ""]).strip()


def table(results: Judged, chosen: np.ndarray) -> str:
    head = "| law | mean error % | largest % | inside 50% | inside 90% | width of 90%, % |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(line(law, results[law], chosen) for law in LAWS)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--laplace", action="store_true", help="normal approximations in place of NUTS: a quick look")
    parser.add_argument("--more", help="a CSV of further runs: params, tokens, loss (training loss)")
    args = parser.parse_args()
    compile_cache.use()
    began = time.perf_counter()
    runs = finished(load_runs("farseer"))
    runs = runs[runs["params"] > SMALLEST]
    cells = best_per_cell(runs, "bpc")
    out = cells[cells["params"] > LARGEST]
    late = out["tokens"].to_numpy() > FROM
    sections = []
    for largest in (2e9, 5.5e9):
        kept = cells[cells["params"] < largest]
        results = judged(kept, out, "bpc", args.laplace)
        words = f"{len(kept)} cells up to {kept['params'].max() / 1e9:.2f}e9 parameters"
        for chosen, which in ((late >= 0, "all tokens"), (late, "beyond 6e9 tokens")):
            title = f"### From {words} to {out['params'].max() / 1e9:.2f}e9: {which}, {chosen.sum()} runs"
            sections.append(title + "\n\n" + table(results, chosen))
        print(f"{words}, {time.perf_counter() - began:.0f} s", flush=True)
    if args.more:
        more = load_runs(args.more)
        kept = best_per_cell(runs, "loss")
        results = judged(kept, more, "loss", args.laplace)
        for chosen, which in (
            (more["params"].to_numpy() > 0, f"{len(more)} further runs"),
            (np.arange(len(more)) == more["params"].to_numpy().argmax(), f"{more['params'].max() / 1e9:.1f}e9 alone"),
        ):
            sections.append(f"### Training loss, from all {len(kept)} cells: {which}\n\n" + table(results, chosen))
        print(f"further runs, {time.perf_counter() - began:.0f} s", flush=True)
    print("\n" + "\n\n".join(sections))


if __name__ == "__main__":
    main()
