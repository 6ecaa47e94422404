"""Published run tables by name, mapped to the run table's columns.

A table's file is looked for in the folder that STEPSEER_DATA names, then in the cache (STEPSEER_CACHE, else
~/.cache/stepseer), then at its public home; wherever it comes from, its SHA-256 must match. Most of these repositories
name no licence, which is why the tables are fetched and not shipped.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd

from laws.errors import InputError
from laws.published_tables import LOSS_TABLES, TABLES, LossTable
from laws.whole import whole

TIMEOUT_S = 30


def names() -> list[str]:
    """The names that `laws.load_runs` knows."""
    return sorted(TABLES)


def tables() -> pd.DataFrame:
    """One row a published table: name, recipes, citation, licence, notes, home (None: collected from many files)."""
    columns = ("name", "recipes", "citation", "licence", "notes", "home")
    rows = [(n, ", ".join(t.recipes), t.citation, t.licence, t.notes, t.url) for n, t in sorted(TABLES.items())]
    return pd.DataFrame(rows, columns=columns)


def loss_tables() -> list[LossTable]:
    """Every published table, recipe and target that a law of the loss can be fitted to: at least 12 (N, D) cells of 3
    sizes and 3 budgets. Entries that hold another's runs again, or count their parameters otherwise, name it in
    `repeats`: leave them out where tables are to be independent."""
    return list(LOSS_TABLES)


def load_loss_table(table: LossTable) -> pd.DataFrame:
    """The run table of an entry of `loss_tables`, validated; `params` is the count that the entry names."""
    from laws.runs import load_runs

    runs = load_runs(table.name, recipe=table.recipe)
    return runs.assign(params=runs[table.params])


def load(name: str) -> pd.DataFrame:
    """The table `name` with run-table columns, not yet validated. Raises InputError where it cannot be had."""
    table = TABLES[name]
    return table.convert(pd.read_csv(locate(name))).assign(status="ok")


def locate(name: str) -> Path:
    """The verified local file of the table `name`, downloaded to the cache if need be."""
    table = TABLES[name]
    given = os.environ.get("STEPSEER_DATA")
    if given and (path := Path(given).expanduser() / table.file).is_file():
        if _sha256(path) != table.sha256:
            raise InputError(
                f"{name}: {path} is not the published file (its SHA-256 differs); restore it or unset STEPSEER_DATA"
            )
        return path
    cached = cache_folder() / "tables" / table.file
    if cached.is_file() and _sha256(cached) == table.sha256:
        return cached
    return _download(name, cached)


def cache_folder() -> Path:
    """STEPSEER_CACHE, else ~/.cache/stepseer."""
    return Path(os.environ.get("STEPSEER_CACHE") or "~/.cache/stepseer").expanduser()


def _download(name: str, target: Path) -> Path:
    table = TABLES[name]
    remedy = f"put it at {table.file} in a folder and name that folder in STEPSEER_DATA"
    if table.url is None:
        raise InputError(
            f"{name}: collected from many files of {table.repository}, so it cannot be downloaded as one; {remedy}"
        )
    try:
        with urllib.request.urlopen(table.url, timeout=TIMEOUT_S) as response:
            content = response.read()
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f"{name}: cannot download {table.url} ({error}); {remedy}") from error
    except OSError as error:
        raise InputError(
            f"{name}: cannot download {table.url} ({getattr(error, 'reason', error)}); {remedy}"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != table.sha256:
        raise InputError(
            f"{name}: {table.url} no longer holds the published file (SHA-256 {digest[:12]}…, "
            f"expected {table.sha256[:12]}…); {remedy}"
        )
    try:
        with whole(target) as part:
            part.write_bytes(content)
    except OSError as error:
        raise InputError(f"{name}: cannot write {target} ({error.strerror}); set STEPSEER_CACHE to a folder") from error
    return target


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
