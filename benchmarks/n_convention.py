"""Which count of N extrapolates better: without embeddings (params) or with them (params_total)?

    python -m benchmarks.n_convention

Of each published table that has both counts, the two hold-outs of benchmarks/extrapolation.py: the cells of most
compute (a quarter, C = 6 N D by each count), and the largest sizes (a fifth). Normal approximations (`laplace=True`).
Prints the table of benchmarks/n_convention.md.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

import laws
from experiments import compile_cache
from laws import datasets
from laws.runs import SIZES
from laws.splits import FRACTION

LAWS = ("nested", "chinchilla")
COUNTS = SIZES[:2]


def tables() -> list[datasets.LossTable]:
    """Independent published tables whose two counts differ."""
    every = [table for table in datasets.loss_tables() if not table.repeats]
    return [table for table in every if _both(laws.load_runs(table.name, recipe=table.recipe))]


def _both(runs: pd.DataFrame) -> bool:
    return set(COUNTS) <= set(runs) and bool((runs["params"] < 0.999 * runs["params_total"]).any())


def main() -> None:
    compile_cache.use()
    print("| table | smallest N, share of embeddings | held out | " + " | ".join(
        f"{law}: {count}" for law in LAWS for count in COUNTS) + " |")  # fmt: skip
    print("|---" * (3 + len(LAWS) * len(COUNTS)) + "|")
    rows = []
    for table in tables():
        runs = laws.load_runs(table.name, recipe=table.recipe)
        share = 1 - float((runs["params"] / runs["params_total"]).min())
        for heldout in FRACTION:
            found = [
                laws.backtest(law, runs, target=table.target, size=count, heldout=heldout, laplace=True)
                for law in LAWS
                for count in COUNTS
            ]
            rows.append([100 * test.error for test in found])
            shown = " | ".join(f"{100 * t.error:.2f} ({t.coverage['0.9']:.0%})" for t in found)
            print(f"| {table.label} | {share:.0%} | {heldout} | {shown} |", flush=True)
    print("| median | | | " + " | ".join(f"{error:.2f}" for error in np.median(rows, axis=0)) + " |")


if __name__ == "__main__":
    main()
