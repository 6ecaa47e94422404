"""Rows of a results folder chosen by their values (--where), and their lowest losses by two columns (--pivot)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from engine import config as config_lib
from experiments import differing, show
from experiments.errors import InputError
from experiments.options import nearest, number

AS_SHOWN = {"N": "params", "batch": "batch_tokens", "held-out": "eval_loss", "bits/char": "bpc", "id": "run_id"}
FORMS = {**dict.fromkeys(("params", "tokens", "batch_tokens"), show.count), "lr": show.rate, "optim.lr": show.rate}
LISTED = 12  # values that a message has


@dataclass(frozen=True)
class Pivot:
    """Lowest losses of the trials that ended well, down by across; of those that differ only in their seed the mean."""

    loss: pd.DataFrame
    error: pd.DataFrame  # standard error of the mean over seeds; NaN of one
    lowest_over: Mapping[str, tuple[int, int]]  # field -> how many of its values a cell has, at least and at most
    seeds: tuple[int, int]  # of a mean, at least and at most
    lost: int  # trials without a loss


def chosen(rows: pd.DataFrame, pairs: Sequence[str]) -> pd.DataFrame:
    """Rows of which every 'column=value' is true: the value itself, or as the table shows it where none is equal.

    Raises InputError for a column or field that there is not, and for a value that no row has."""
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals and text):
            raise InputError(f"--where is {pair!r}; write column=value, such as d_model=64")
        values = column(rows, name, "--where")
        form = FORMS.get(str(values.name), show.value)
        same = values.map(lambda value, text=text: _is(value, text))
        if not same.any():
            same = values.map(form) == text
        if not same.any():
            there = dict.fromkeys(map(form, values.sort_values()))
            known = ", ".join(list(there)[:LISTED]) + (", ..." if len(there) > LISTED else "")
            others = " that the others leave" if len(pairs) > 1 else ""
            raise InputError(f"--where {pair}: no row{others} has that; {name} is {known}")
        rows = rows[same.astype(bool)]
    return rows


def pivot(rows: pd.DataFrame, by: str) -> Pivot:
    """By two columns or config fields, 'weight_decay,lr'. Raises InputError for others, and where there is no loss."""
    names = by.split(",")
    if len(names) != 2:
        raise InputError(f"--pivot is {by!r}; name two columns or fields, such as weight_decay,lr")
    ended = rows[rows["status"] == "ok"]
    if ended.empty:
        raise InputError(f"--pivot {by}: no trial has a loss yet")
    down, across = (column(ended, name, "--pivot") for name in names)
    configs = _configs(ended)
    settings = [config_lib.to_json(config_lib.replace(config, {"seed": 0})) for config in configs]
    runs = pd.DataFrame({"down": down, "across": across, "settings": settings, "loss": ended["loss"]})
    means = runs.groupby(["settings", "down", "across"], as_index=False)["loss"].agg(["mean", "sem", "count"])
    best = means.loc[means.groupby(["down", "across"])["mean"].idxmin()]
    fields = [name for name in differing.fields(configs) if name != "seed"]
    values = pd.DataFrame({name: [config_lib.get(c, name) for c in configs] for name in fields}, index=ended.index)
    tried = values.groupby([down.to_numpy(), across.to_numpy()]).nunique(dropna=False)
    lowest_over = {name: (int(n.min()), int(n.max())) for name, n in tried.items() if n.max() > 1}

    def table(what: str) -> pd.DataFrame:
        return best.pivot(index="down", columns="across", values=what).rename_axis(index=down.name, columns=across.name)

    seeds = int(best["count"].min()), int(best["count"].max())
    return Pivot(table("mean"), table("sem"), lowest_over, seeds, len(rows) - len(ended))


def described(found: Pivot) -> str:
    """One line: what the losses are the lowest of, and means of."""

    def span(low: int, high: int) -> str:
        return f"{high}" if low == high else f"{low} to {high}"

    over = [f"{_short(name, found.lowest_over)} ({span(*n)})" for name, n in found.lowest_over.items()]
    parts = [f"lowest over {', '.join(over)}"] if over else ["nothing else varies"]
    parts += [f"means of {span(*found.seeds)} seeds ± standard error"] if found.seeds[1] > 1 else []
    parts += [f"{show.plural(found.lost, 'trial')} without a loss left out"] if found.lost else []
    return "; ".join(parts)


def column(rows: pd.DataFrame, name: str, option: str) -> pd.Series:
    """A column of the table by its name there, its header or its last part, or else a field of the configs."""
    name = AS_SHOWN.get(name, name)
    if name in rows:
        return rows[name]
    fields = config_lib.field_names()
    found = [field for field in fields if name in (field, _leaf(field))]
    if not found:
        known = [*AS_SHOWN, *map(_leaf, fields), *fields, *rows.columns]
        raise InputError(f"{option}: no column or field {name!r}{nearest(name, known)}")
    if len(found) > 1:
        raise InputError(f"{option}: {name} is the end of {' and '.join(found)}; give one of them whole")
    return pd.Series([config_lib.get(c, found[0]) for c in _configs(rows)], rows.index, name=found[0])


def _configs(rows: pd.DataFrame) -> list[Any]:
    return [config_lib.from_dict(json.loads(text)) for text in rows["config"]]


def _is(value: Any, text: str) -> bool:
    if isinstance(value, bool) or str(value) in ("True", "False"):
        return text.lower() in (("yes", "true") if value else ("no", "false"))
    return str(value) == text or (isinstance(value, (int, float)) and value == number(text))


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _short(name: str, among: Mapping[str, Any]) -> str:
    """Its last part, where that is of no other."""
    return _leaf(name) if [_leaf(other) for other in among].count(_leaf(name)) == 1 else name
