"""A recipe of few runs beside recipes of many: what does a fit with partial pooling make of it?

    python -m benchmarks.pooling [--laplace] [--few 6,12] [--no-differences]

Of each table with several recipes, one recipe in turn keeps only its few cells of least compute, the others keep all
their runs; its other cells are predicted. Fits: `pooled` of all; nested of the few alone, where that can be fitted;
nested of all the runs as if they were one recipe's; and nested of the others, times the one factor that fits the few
best. Differences: `pooled` of the cells of all recipes up to 60% of the sizes, or of compute; at every larger cell
that two recipes have, one's loss over the other's, less 1. Prints the tables of benchmarks/pooling.md.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time

import numpy as np
import pandas as pd

import laws
from benchmarks.extrapolation import judge
from experiments import compile_cache
from laws.errors import FitError
from laws.forms.grid import best_per_cell

TABLES = ("gadre", "marin-comma,marin-dclm,marin-nemotron")
KEPT = 0.6  # of sizes, or of cells by compute, in the fits of differences
FITS = ("pooled", "few alone", "recipes ignored", "others, times a factor")


def cells_of(name: str) -> pd.DataFrame:
    """The best loss of each cell of each recipe."""
    return best_per_cell(laws.load_runs(name), "eval_loss", ["recipe"]).rename(columns={"eval_loss": "loss"})


def hold_out(cells: pd.DataFrame, recipe: str, few: int, laplace: bool) -> dict[str, dict[str, np.ndarray]]:
    """Fit -> what `judge` says of the cells of `recipe` beyond its `few` of least compute."""
    own = cells[cells["recipe"] == recipe]
    own = own.iloc[np.argsort(own["params"] * own["tokens"], kind="stable")].reset_index(drop=True)
    kept, out, others = own[:few], own[few:], cells[cells["recipe"] != recipe]
    both = pd.concat([others, kept], ignore_index=True)
    found = {}
    pooled = laws.fit("pooled", both, laplace=laplace).of(recipe)
    found["pooled"] = judge(pooled, out, "loss")
    with contextlib.suppress(FitError):
        found["few alone"] = judge(laws.fit("nested", kept, laplace=laplace), out, "loss")
    found["recipes ignored"] = judge(laws.fit("nested", both.drop(columns="recipe"), laplace=laplace), out, "loss")
    rest = laws.fit("nested", others.drop(columns="recipe"), laplace=laplace)
    here = rest.predict(params=kept["params"].to_numpy(), tokens=kept["tokens"].to_numpy()).loss.median
    factor = float(np.exp(np.mean(np.log(kept["loss"] / here))))
    found["others, times a factor"] = judge(rest, out.assign(loss=out["loss"] / factor), "loss")
    return found


def differences(name: str, held_out: str, laplace: bool) -> list[str]:
    """A row a pair of recipes: do intervals of the difference hold what was seen? Two runs' noise is added to them."""
    cells = cells_of(name)
    scale = cells["params"] if held_out == "params" else cells["params"] * cells["tokens"]
    kept = scale <= np.quantile(scale.unique(), KEPT)
    fit, out = laws.fit("pooled", cells[kept], laplace=laplace), cells[~kept]
    lines = []
    for a, b in itertools.combinations(sorted(set(out["recipe"])), 2):
        of = {r: out[out["recipe"] == r] for r in (a, b)}
        both = of[a].merge(of[b], on=["params", "tokens"], suffixes=("_a", "_b"))
        if len(both) < 5:
            continue
        at = {"params": both["params"].to_numpy(), "tokens": both["tokens"].to_numpy()}
        loss = [fit.of(r).predict(**at) for r in (a, b)]
        mean = loss[0].mean_loss.draws / loss[1].mean_loss.draws
        noise = fit.draws["noise"][:, None] * np.random.default_rng(0).standard_t(fit.meta["tails"], (2, *mean.shape))
        low, high = np.quantile(mean * np.exp(noise[0] - noise[1]), (0.05, 0.95), axis=0)
        seen = (both["loss_a"] / both["loss_b"]).to_numpy()
        error, inside = np.abs(np.median(mean, axis=0) - seen).mean(), np.mean((low <= seen) & (seen <= high))
        width = np.mean(high - low)
        lines.append(f"| {held_out} | {a} / {b} | {len(both)} | {100 * error:.2f} | {inside:.0%} | {100 * width:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--laplace", action="store_true", help="normal approximations in place of NUTS: a quick look")
    parser.add_argument("--few", default="6,12", help="cells that the recipe keeps")
    parser.add_argument("--no-differences", action="store_true")
    parser.add_argument("--tables", default=";".join(TABLES), help="with semicolons")
    args = parser.parse_args()
    compile_cache.use()
    began, results = time.perf_counter(), {}
    for name in args.tables.split(";"):
        cells = cells_of(name)
        for few in map(int, args.few.split(",")):
            for recipe in sorted(set(cells["recipe"])):
                found = hold_out(cells, recipe, few, args.laplace)
                results[name, few, recipe] = found
                errors = {fit: f"{100 * r['error'].mean():.2f}" for fit, r in found.items()}
                print(f"{recipe}, {few}, {time.perf_counter() - began:.0f} s: {errors}", flush=True)
    print(report(results))
    if not args.no_differences:
        print("\n| held out, larger | recipes | cells | error % | inside 90% | width of 90% % |\n" + "|---" * 6 + "|")
        for name in args.tables.split(";"):
            for held_out in ("params", "compute"):
                for line in differences(name, held_out, args.laplace):
                    print(line, flush=True)


def report(results: dict) -> str:
    """Markdown: a row a table and number of cells kept, means over its recipes; then a row a recipe."""
    lines = [
        "| recipes of | cells kept | fit | recipes | error % | worst | inside 90% | width of 90% % |",
        "|---" * 8 + "|",
    ]
    for name, few in dict.fromkeys((name, few) for name, few, _ in results):
        for fit in FITS:
            rows = [r[fit] for (n, f, _), r in results.items() if (n, f) == (name, few) and fit in r]
            if rows:
                errors, inside, width = ([r[k].mean() for r in rows] for k in ("error", "0.9", "width"))
                lines.append(
                    f"| {name} | {few} | {fit} | {len(rows)} | {100 * np.mean(errors):.2f} | {100 * max(errors):.2f} "
                    f"| {np.mean(inside):.0%} | {100 * np.mean(width):.1f} |"
                )
    head = " | ".join(FITS)
    lines += [
        "",
        f"| recipe | cells kept | predicted | error %: {head} | pooled inside 90% |",
        "|---" * (len(FITS) + 4) + "|",
    ]
    for (_, few, recipe), r in results.items():
        errors = " | ".join(f"{100 * r[fit]['error'].mean():.2f}" if fit in r else "" for fit in FITS)
        inside = r["pooled"]["0.9"]
        lines.append(f"| {recipe} | {few} | {len(inside)} | {errors} | {inside.mean():.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
