"""The laws, one file each: data preparation, numpyro model, starting point and numpy prediction.

A law's module has CITATION, QUANTITIES (what `predict` gives), SITES (the draws that are kept), HELD (hierarchical
scales, see laws.sampler), COLUMNS (run-table columns it needs besides params, tokens and the target), COVARIATES (those
of them that a prediction needs too), where there are any OPTIONAL (columns it reads if the table has them) and
ONE_BUDGET (True: its loss does not depend on tokens), and the functions prepare(runs, target) -> (data, facts),
model(data), start(data), predict(draws, meta, query, noise) with query: column -> [query]. A law of the loss is
`priors(data) -> p` and `log_curve(xp, p, x)`, the rest is `laws.forms.grid`'s; `chinchilla` is the example to copy,
`pooled` the one whose priors are a hierarchy.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from types import ModuleType

from laws.errors import InputError

NAMES = ("steplaw", "farseer", "chinchilla", "nested", "kaplan", "data_constrained", "moe", "routed", "pooled", "stack")


def get(law: str) -> ModuleType:
    """The module of the law `law`. Raises InputError if there is none of that name."""
    if law not in NAMES:
        if law == "compression":
            raise InputError("compression is a law of scores, not of runs: laws.fit, or stepseer code law SCORES.csv")
        near = difflib.get_close_matches(str(law), NAMES, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(f"unknown law {law!r}{hint}; known: {', '.join(sorted(NAMES))}")
    return import_module(f"laws.forms.{law}")
