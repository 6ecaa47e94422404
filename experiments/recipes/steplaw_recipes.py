"""Step Law's grids on other data: four mixes at N of 429M and 8B tokens, 9 learning rates by 5 batches; for clusters.

Of each of three mixes beside its own the paper trained 45 runs, and found the law's setting within 0.125 to 0.25% of
the best. Which N and D these had is not in what we read; ours are those of its study of shapes. The shares are those of
its table, in percent (of code_math and more_code_math as recalled: unverified). A part is named as the folder of its
texts: put `web-data-en` and the others where you run it, or `replace` data.corpus.
"""

from __future__ import annotations

import dataclasses

from engine import sizes
from engine.config import TrainConfig, replace
from experiments.grid import axis, prod, trials
from experiments.recipes.steplaw_dense import base

SAME = {
    "book-non-novel-en": 4.35,
    "paper": 3.38,
    "wikipedia-mtlg": 3.24,
    "stackexchange": 2.21,
    "wikipedia-en": 1.69,
    "book-novel-en": 0.83,
    "wikipedia-cn": 0.13,
}
MIXES = {
    "baseline": {"web-data-en": 79.53, "code-the-stack": 4.62},
    "code_math": {"web-data-en": 44.75, "code-the-stack": 32.36, "web-data-math": 7.07},
    "more_code_math": {"web-data-en": 20.00, "code-the-stack": 57.05, "web-data-math": 7.07},
    "en_cn": {"web-data-en": 44.99, "web-data-cn": 34.52, "code-the-stack": 4.63},
}
RATES = [2.0 ** (k / 2) for k in range(-22, -13)]  # 2^-11 to 2^-7
BATCHES = [64, 128, 192, 256, 352]  # sequences of 2048: 2^17 to 0.7M tokens


def corpus(mix: dict[str, float]) -> str:
    return ",".join(f"{name}:{share}" for name, share in {**mix, **SAME}.items())


def grid() -> list[TrainConfig]:
    cell = dataclasses.replace(base("steplaw_recipes"), model=sizes.steplaw_shapes()["429M"], tokens=8e9)
    settings = prod(axis("batch_size", BATCHES), axis("optim.lr", RATES))
    found: list[TrainConfig] = []
    for name, mix in MIXES.items():
        found += trials(replace(cell, {"recipe": f"steplaw_recipes_{name}", "data.corpus": corpus(mix)}), settings)
    return found
