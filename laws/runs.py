"""The run table: one row a training run, checked at the door.

`load_runs` reads a published table by name, a CSV, a Parquet file, a results folder (every Parquet file under
`DIR/parts`) or a DataFrame, and refuses what cannot be right with one line that names row, column, value and remedy.
Rows count from 1; the header is not counted.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from laws.errors import InputError
from laws.schema import LOSSES, hint, listed, meaning, nearest, validate
from laws.whole import whole

SCHEMA_VERSION = 2  # 2: status may be stopped
SIZES = ("params", "params_total", "params_active")  # what N may count
METADATA_KEY = b"stepseer.run_table"


def load_runs(source: Any, *, recipe: str | None = None) -> pd.DataFrame:
    """The run table at `source`, validated, with `status` and `recipe` filled in where absent.

    source: a published table's name (`laws.datasets.names()`), several of them joined by commas, a path (CSV, Parquet,
    or a results folder holding parts/*.parquet) or a DataFrame (not modified). recipe: keep the rows of this
    recipe only.
    Returns a new DataFrame with a fresh index and `attrs["source"]`. Raises InputError on anything a user can fix.
    """
    if isinstance(source, pd.DataFrame):
        runs, name, lines = source.reset_index(drop=True), str(source.attrs.get("source", "table")), False
    elif isinstance(source, (str, os.PathLike)):
        runs, name, lines = _read(source)
    else:
        raise InputError(f"runs: cannot read a {type(source).__name__}; give a name, a path or a DataFrame")
    runs = validate(runs, name, lines)
    if recipe is not None:
        known = sorted(set(runs["recipe"]))
        if recipe not in known:
            raise InputError(f"{name}: no recipe {recipe!r}{nearest(recipe, known)}; known: {listed(known)}")
        runs = runs[runs["recipe"] == recipe].reset_index(drop=True)
    runs.attrs = {"source": name}
    return runs


def require(runs: pd.DataFrame, columns: Iterable[str], law: str) -> pd.DataFrame:
    """`runs` with what dense models leave empty filled in, as `attrs["notes"]` says. Raises InputError naming what
    `law` lacks: a missing column, or one that is empty in a run that finished."""
    runs = _dense(runs, columns)
    name = runs.attrs.get("source", "table")
    for column in columns:
        if column not in runs:
            others = [c for c in LOSSES if column in LOSSES and c in runs]
            remedy = f"; choose {others[0]}: --target {others[0]}, target={others[0]!r}" if others else ""
            remedy = hint(runs, column, listing=not others) + remedy
            raise InputError(f"{name}: {law} needs a column {column!r} ({meaning(column)}){remedy}")
        bad = runs[column].isna() & (runs["status"] == "ok")
        if bad.any():
            raise InputError(
                f"{name}: {law} needs {column!r} in every finished run; {int(bad.sum())} of {len(runs)} rows lack it, "
                f"the first is row {int(np.flatnonzero(bad)[0]) + 1}"
            )
    return runs


def _dense(runs: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """`runs` where rows of dense models that lack params_active or n_experts, of those columns, have them if others do:
    all their parameters are active, and they have one expert."""
    asked = [c for c in ("params_active", "n_experts") if c in columns and c in runs and runs[c].notna().any()]
    blank = pd.Series(np.nan, index=runs.index)
    active, experts = (runs.get(c, blank) for c in ("params_active", "n_experts"))
    dense = (active.isna() | (active == runs["params"])) & (experts.isna() | (experts == 1))
    values = {"params_active": runs["params"], "n_experts": pd.Series(1.0, index=runs.index)}
    lacking = {c: dense & runs[c].isna() for c in asked}
    filled = runs.assign(**{c: runs[c].where(~rows, values[c]) for c, rows in lacking.items()})
    filled.attrs = runs.attrs | {
        "notes": runs.attrs.get("notes", [])
        + [
            f"{int(rows.sum())} rows without {c} are taken for dense models: "
            + ("all their params are active" if c == "params_active" else "one expert")
            for c, rows in lacking.items()
            if rows.any()
        ]
    }
    return filled


def counted(runs: pd.DataFrame, size: str) -> pd.DataFrame:
    """`runs` with N counted by the column `size`: in `params` stands what that column holds.

    Raises InputError if `size` counts no parameters, or the runs lack it."""
    if size not in SIZES:
        raise InputError(f"size {size!r} is no count of parameters{nearest(size, SIZES)}; one of: {listed(SIZES)}")
    if size == "params":
        return runs
    runs = require(runs, (size,), f"N as {size}")
    # The shape says what `params` should be, not what this count should.
    return runs.assign(params=runs[size]).drop(columns="vocab_size", errors="ignore")


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that ended well (status ok), with a fresh index."""
    kept = runs[runs["status"] == "ok"].reset_index(drop=True)
    kept.attrs = dict(runs.attrs)
    return kept


def diverged(runs: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """The runs that diverged or were stopped as hopeless, which would have ended above their cell's best, of those that
    have all of `columns`, with a fresh index."""
    return runs[runs["status"].isin(("diverged", "stopped"))].dropna(subset=list(columns)).reset_index(drop=True)


def write_parquet(runs: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Writes a run table as Parquet with the schema version in its metadata; the file appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    table = pa.Table.from_pandas(runs, preserve_index=False)
    meta = {**(table.schema.metadata or {}), METADATA_KEY: json.dumps({"version": SCHEMA_VERSION}).encode()}
    with whole(path) as part:
        pq.write_table(table.replace_schema_metadata(meta), part)
    return path


# --- reading -------------------------------------------------------------------------------------------------------


def _read(source: str | os.PathLike[str]) -> tuple[pd.DataFrame, str, bool]:
    """The table, its name for messages, and whether its index counts a file's lines."""
    from laws import datasets

    text = os.fspath(source)
    if text in datasets.TABLES:
        return datasets.load(text), text, False
    path = Path(text).expanduser()
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 1 and not path.exists():
        return pd.concat([_read(part)[0] for part in parts], ignore_index=True), text, False
    if path.is_dir():
        return _read_folder(path), str(path), False
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(4)
        if not head:
            raise InputError(f"{path}: the file is empty; give a CSV with a header and one row a run")
        parquet = head == b"PAR1"
        return (_read_parquet(path) if parquet else _read_csv(path)), path.name, not parquet
    if path.suffix or os.sep in text:
        raise InputError(
            f"runs: no file or folder {text!r}; give a path that exists, or the name of a published table: "
            "`stepseer datasets` lists them"
        )
    raise InputError(
        f"runs: no table named {text!r}{nearest(text, datasets.names())}; `stepseer datasets` lists them; "
        "or give the path of a CSV, a Parquet file or a results folder"
    )


def _read_folder(folder: Path) -> pd.DataFrame:
    parts = sorted(folder.glob("parts/*.parquet"))
    if not parts:
        raise InputError(f"{folder}: no results there (no parts/*.parquet); give a folder that `sweep run` wrote")
    return pd.concat([_read_parquet(part) for part in parts], ignore_index=True)


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({_first_line(error)})") from error
    stamp = (table.schema.metadata or {}).get(METADATA_KEY)
    version = json.loads(stamp)["version"] if stamp else SCHEMA_VERSION
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{path}: run-table version {version}, this stepseer reads up to {SCHEMA_VERSION}; update stepseer"
        )
    return table.to_pandas()


def _read_csv(path: Path) -> pd.DataFrame:
    with path.open("rb") as file:
        begins = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if begins.startswith(b"\x89HDF"):
        raise InputError(f"{path}: a posterior that `stepseer fit` wrote, and no run table; give the runs themselves")
    if begins[:1] in (b"{", b"["):
        raise InputError(f"{path}: JSON, and no run table; give a CSV, a Parquet file or a results folder")
    try:
        # Blank lines are kept until the index has counted them, so that messages give true line numbers.
        runs = pd.read_csv(path, skip_blank_lines=False, low_memory=False, encoding="utf-8-sig")
    except pd.errors.EmptyDataError as error:
        raise InputError(f"{path}: the file is empty; give a CSV with a header and one row a run") from error
    except (pd.errors.ParserError, UnicodeDecodeError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable CSV ({_first_line(error)}); save it as comma-separated UTF-8 text"
        ) from error
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next((row for row in csv.reader(file) if row), [])
    twice = [name for name in dict.fromkeys(header) if name and header.count(name) > 1]
    if twice:
        raise InputError(f"{path}: column {twice[0]!r} is there twice; keep one, or rename the other")
    runs = runs.dropna(how="all")
    if len(runs.columns) == 1 and any(mark in runs.columns[0] for mark in ";\t|"):
        raise InputError(f"{path}: columns are not separated by commas ({runs.columns[0][:60]!r}); use commas")
    return runs


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
