"""Choosing (N, D) cells by `laws.design_loss`, replayed on published tables.

    python -m benchmarks.loss_design [--seeds 3]

The largest sizes (a fifth) of a table are held out. Each way begins with the same cheapest cells, as many as the nested
law needs, and buys others until a share of the FLOPs of all that may be trained is spent; the law is then fitted to
what was bought (normal approximation), and its error is the mean relative error of its median loss at the held-out
cells. The design goes from share to share, on what it bought before; at once: from the first cells straight to the
share. Prints the tables of benchmarks/loss_design.md.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from experiments import compile_cache
from laws import datasets, design_loss
from laws.errors import FitError
from laws.forms import nested
from laws.forms.grid import best_per_cell
from laws.runs import finished
from laws.splits import FRACTION, held_out

LAW, TABLES, SHARES, BATCH = "nested", ("steplaw-dense", "farseer", "misfitting"), (0.01, 0.03, 0.1, 0.3), 8


def begin(cells: pd.DataFrame, target: str) -> list[int]:
    """The cheapest cells that the law can be fitted to."""
    for count in range(8, len(cells) + 1):
        try:
            nested.prepare(cells.iloc[:count].assign(status="ok"), target)
            return list(range(count))
        except FitError:
            continue
    raise FitError(f"{LAW}: too few cells")


def fill(order: np.ndarray, cost: np.ndarray, bought: list[int], limit: float) -> list[int]:
    """`bought` and what of `order` fits into the limit, one after the other."""
    bought, spent = list(bought), cost[bought].sum()
    for i in order:
        if i not in bought and spent + cost[i] <= limit:
            bought.append(int(i))
            spent += cost[i]
    return bought


def designed(cells: pd.DataFrame, out: pd.DataFrame, target: str, bought: list[int], limit: float) -> list[int]:
    """`bought` and what the design buys, in at most 8 batches, each after a fit to what is bought."""
    bought, cost = list(bought), cells["flops"].to_numpy()
    for _ in range(8):
        budget = limit - cost[bought].sum()
        rest = np.setdiff1d(np.arange(len(cells)), bought)
        if not np.any(cost[rest] <= budget):
            break
        posterior = design_loss.fit(LAW, cells.iloc[bought], target=target)
        how = {"batch": BATCH, "flops": budget, "slot": budget / BATCH}
        chosen = design_loss.choose(posterior, cells.iloc[rest], out, **how)[0]
        if not len(chosen):
            break
        bought += rest[chosen].tolist()
    return bought


def error(cells: pd.DataFrame, bought: list[int], out: pd.DataFrame, target: str) -> float:
    posterior = design_loss.fit(LAW, cells.iloc[bought], target=target)
    loss = posterior.predict(params=out["params"].to_numpy(), tokens=out["tokens"].to_numpy()).mean_loss
    return 100 * float(np.mean(np.abs(loss.median / out[target].to_numpy() - 1)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3, help="of the random choice")
    parser.add_argument("--tables", default=",".join(TABLES))
    args = parser.parse_args()
    compile_cache.use()
    for table in datasets.loss_tables():
        if table.label not in args.tables.split(","):
            continue
        runs = finished(datasets.load_loss_table(table))
        cells, out, words = held_out(
            best_per_cell(runs.dropna(subset=[table.target]), table.target), "params", FRACTION["params"], LAW
        )
        cells["flops"] = 6 * cells["params"] * cells["tokens"]
        cells = cells.sort_values("flops", kind="stable").drop(columns="run_id", errors="ignore").reset_index(drop=True)
        cost, first = cells["flops"].to_numpy(), begin(cells, table.target)
        start, total = error(cells, first, out, table.target), cost.sum()
        every = error(cells, list(range(len(cells))), out, table.target)
        held = f"{words} ({len(out)} cells) held out, {len(cells)} may be trained"
        print(f"\n{table.label}: {held}; the first {len(first)} take {cost[first].sum() / total:.2%} of their FLOPs")
        print(f"and have an error of {start:.2f}%, all {every:.2f}%.\n", flush=True)
        print("| FLOPs | design | cells | design, at once | cells | random | cells | cheapest first | cells |")
        print("|---|---|---|---|---|---|---|---|---|")
        staged = first
        for share in SHARES:
            limit = share * total
            if cost[first].sum() > limit:
                continue
            orders = [np.random.default_rng(seed).permutation(len(cells)) for seed in range(args.seeds)]
            random = [fill(order, cost, first, limit) for order in orders]
            errors = [error(cells, bought, out, table.target) for bought in random]
            cheap = fill(np.arange(len(cells)), cost, first, limit)
            staged, once = (designed(cells, out, table.target, begun, limit) for begun in (staged, first))
            print(
                f"| {share:.0%} | {error(cells, staged, out, table.target):.2f} | {len(staged)} "
                f"| {error(cells, once, out, table.target):.2f} | {len(once)} | {np.mean(errors):.2f} "
                f"({min(errors):.2f} to {max(errors):.2f}) | {np.mean([len(b) for b in random]):.0f} "
                f"| {error(cells, cheap, out, table.target):.2f} | {len(cheap)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
