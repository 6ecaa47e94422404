"""Is the form of score against BPC found, and as surely as it is said? Tables made up with either form.

python benchmarks/compression_forms.py [--tables 40]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd

from laws import compression
from laws.errors import FitError

MODELS, ITEMS = 16, 400


def table(form: str, rng: np.random.Generator) -> tuple[pd.DataFrame, float, float]:
    """A task's scores of models of 0.2 to 0.9 bits, falling from 0.7 to 0.9 down to 0.1 to 0.3 over that range, each
    model off by 2%; and a and b."""
    bpc = np.sort(np.exp(rng.uniform(np.log(0.2), np.log(0.9), MODELS)))
    x, ends = compression.FORMS[form](bpc), compression.FORMS[form](np.array([0.2, 0.9]))
    high, low = rng.uniform(0.7, 0.9), rng.uniform(0.1, 0.3)
    b = (low - high) / (ends[1] - ends[0])
    a = high - b * ends[0]
    score = np.clip(a + b * x + rng.normal(0, 0.02, MODELS), 0.001, 0.999)
    rows = {"model": np.arange(MODELS), "bpc": bpc, "correct": rng.binomial(ITEMS, score), "total": ITEMS}
    return pd.DataFrame(rows), a, b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=40)
    count = parser.parse_args().tables
    rng, begun = np.random.default_rng(0), time.perf_counter()
    of_truth, inside, refused = [], [], 0
    for k in range(count):
        form = ("linear", "log")[k % 2]
        made, a, b = table(form, rng)
        try:
            found = compression.compare(made)
        except FitError:
            refused += 1
            continue
        of_truth.append(found.probability if form == "log" else 1 - found.probability)
        low, high = found.fits[form].bpc_for(0.5).interval(0.9)
        x = (0.5 - a) / b
        inside.append(low <= (np.exp(x) if form == "log" else x) <= high)
    p = np.array(of_truth)
    print(f"{len(p)} tables of {MODELS} models, {ITEMS} items ({refused} refused by the sampler's diagnostics)")
    print(f"form preferred is the true one: {np.mean(p > 0.5):.0%}; said to be so with mean probability "
          f"{np.mean(np.maximum(p, 1 - p)):.2f}")  # fmt: skip
    for least in (0.9, 0.99):
        sure = np.maximum(p, 1 - p) >= least
        print(f"said with {least:.0%} or more: {sure.sum()} tables, {np.sum(p[sure] > 0.5)} of them right")
    print(f"90% intervals of the BPC that a score of 0.5 takes hold it in {np.mean(inside):.0%}")
    print(f"{(time.perf_counter() - begun) / count:.1f} s a table")


if __name__ == "__main__":
    main()
