"""Which (params, tokens) cells a hold-out leaves out: the largest sizes, or the cells of most compute."""

from __future__ import annotations

import numpy as np
import pandas as pd

from laws.errors import FitError

SAME_SIZE = 0.01  # of ln N: sizes read off a figure differ by rounding
FRACTION = {"params": 0.2, "compute": 0.25}  # of the sizes, of the cells


def held_out(cells: pd.DataFrame, heldout: str, share: float, law: str) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """(cells kept, cells held out, words for the latter). cells: params, tokens and more, one row a cell.

    heldout: "params", the largest `share` of the sizes, at least one; "compute", the `share` of the cells with most
    6 N D. Raises FitError, starting with `law`, where nothing would be left."""
    if heldout == "params":
        sizes = np.sort(cells["params"].unique())
        sizes = sizes[np.diff(np.log(sizes), prepend=-np.inf) > SAME_SIZE]
        if len(sizes) < 2:
            raise FitError(f"{law}: one model size only, none can be held out: train at least one more")
        n = min(max(1, round(share * len(sizes))), len(sizes) - 1)
        words = f"the largest {n} of {len(sizes)} sizes" if n > 1 else f"the largest of {len(sizes)} sizes"
        out = (cells["params"] >= sizes[-n]).to_numpy()
    else:
        if len(cells) < 2:
            raise FitError(f"{law}: one (params, tokens) cell only, none can be held out: train more sizes and budgets")
        n = min(max(1, round(share * len(cells))), len(cells) - 1)
        words = f"the {n} of {len(cells)} cells with most compute"
        out = np.zeros(len(cells), bool)
        out[np.argsort(6.0 * cells["params"] * cells["tokens"], kind="stable")[-n:]] = True
    return cells[~out].reset_index(drop=True), cells[out].reset_index(drop=True), words
