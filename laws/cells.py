"""Which runs differ in nothing but their settings: the cells of a run table, for the report and its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Cell:
    """The runs of one size, budget, sparsity and recipe. differ: which of params_active and recipe tell the table's
    cells apart."""

    params: float
    tokens: float
    active: float
    recipe: str
    differ: tuple[str, ...]
    runs: pd.DataFrame

    def ask(self, posterior: Any) -> Any:
        """What a Step Law posterior predicts here; as of a dense model, where it knows no others."""
        sparse = {"params_active": self.active} if "params_active" in posterior.meta.get("optional", {}) else {}
        return posterior.predict(params=self.params, tokens=self.tokens, **sparse)


def cells(runs: pd.DataFrame) -> list[Cell]:
    """Every cell, by size and then by budget."""
    runs, keys = _keyed(runs)
    differ = []
    if "params_active" in keys and (runs["params_active"] != runs["params"]).any():
        differ.append("params_active")
    if "recipe" in keys and runs["recipe"].nunique() > 1:
        differ.append("recipe")
    found = []
    for _, group in runs.groupby(keys, sort=True):
        first = group.iloc[0]
        active, recipe = first.get("params_active", first["params"]), first.get("recipe", "")
        found.append(Cell(first["params"], first["tokens"], active, recipe, tuple(differ), group))
    return found


def best_of_cells(runs: pd.DataFrame, target: str, *, every: bool = False) -> pd.DataFrame:
    """The row with the lowest `target` of every (N, D); every: of each sparsity and recipe there."""
    runs, keys = _keyed(runs)
    done = runs[(runs["status"] == "ok") & runs[target].notna()]
    return done.loc[done.groupby(keys if every else keys[:2])[target].idxmin()].reset_index(drop=True)


def _keyed(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """(`runs`, dense models with all their params active, the columns whose values make a cell)."""
    if "params_active" in runs:
        runs = runs.assign(params_active=runs["params_active"].fillna(runs["params"]))
    return runs, ["params", "tokens", *(c for c in ("params_active", "recipe") if c in runs)]
