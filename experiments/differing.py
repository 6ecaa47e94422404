"""What the trials of a grid differ in, for tables: config fields, but for those that come with others."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import Any

import pandas as pd

from engine import config as config_lib
from engine.architecture import DERIVED
from engine.config import TrainConfig

COME_WITH = {name: ("d_model", "n_heads", "n_experts", "top_k") for name in DERIVED} | {"n_heads": ("d_model",)}
IN_ROWS = {  # fields that are columns of the run table, by other names
    "optim.lr": "lr",
    "batch_size": "batch_tokens",
    "data.seq_len": "seq_len",
    **{f"model.{name}": name for name in ("d_model", "n_layers", "n_heads", "d_ff", "n_experts", "top_k")},
    **{name: name for name in ("tokens", "recipe", "seed")},
}


def fields(configs: Sequence[TrainConfig], *, known: Collection[str] = ()) -> list[str]:
    """Dotted fields in which they differ, but for `known` ones."""
    shared: dict[str, list[Any]] = {"": list(configs)}  # group -> its values, which many configs of a grid share
    found = []
    for name in config_lib.field_names():
        group, _, leaf = name.rpartition(".")
        if group not in shared:
            shared[group] = list({id(part): part for part in map(attrgetter(group), configs)}.values())
        parts = shared[group]
        if name in known or len({getattr(part, leaf) for part in parts}) < 2:
            continue
        others = COME_WITH.get(leaf, ()) if group == "model" else ()
        with_others = {tuple(getattr(part, other) for other in (*others, leaf)) for part in parts}
        if not others or len(with_others) > len({of[:-1] for of in with_others}):
            found.append(name)
    return found


def with_columns(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Rows with a column for every field in which their configs differ and that is no column yet; and their names."""
    configs = [config_lib.from_dict(json.loads(text)) for text in rows["config"]]
    names = fields(configs, known=IN_ROWS)
    return rows.assign(**{name: [config_lib.get(c, name) for c in configs] for name in names}), names
