"""The results folder: what was planned, one Parquet part per finished chunk, checkpoints of unfinished ones.

    DIR/grid.json              the grid's name, its run ids, how it was cut into chunks; format version
    DIR/forecast*.json         seconds that each trial was thought to take, by its run id; of a shard its own file
    DIR/parts/<chunk>.parquet  run-table rows; a part appears whole or not at all, and is never changed
    DIR/checkpoints/<chunk>/   of chunks without a part
    DIR/fits/<cohort>-N        empty: of that cohort more than N trials at a time ran out of memory; the least counts
    DIR/.lock                  held (flock) by the process that writes, or shared by shards; dies with it
    DIR/.lock-I-of-N           held by shard I

`laws.load_runs(DIR)` reads the same parts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from engine import config as config_lib
from engine import processes
from experiments.errors import InputError
from experiments.plan import Chunk, Plan
from laws.runs import METADATA_KEY, SCHEMA_VERSION

FORMAT = 1  # of grid.json and the layout
SHARED_WAIT_S = 60.0  # until what process 0 wrote is to be seen on all hosts: NFS remembers for long what was not there
LOCK_WAIT_S = 1.0  # `status` holds the lock for an instant; a run waits that out

Row = Mapping[str, Any]

_TEXT = ("run_id", "recipe", "status", "reason", "device", "versions", "config")
_FLOAT = ("lr", "loss", "eval_loss", "bpc", "flops", "wall_s")


@dataclass(frozen=True)
class Store:
    """A results folder that exists and is ours."""

    path: Path
    grid: str  # as named on the command line
    run_ids: tuple[str, ...]
    flops: float  # of the whole grid
    max_trials: int  # of one program
    cut: Mapping[str, int]  # other numbers, by cohort
    trunks: bool  # shared

    def checkpoints(self, chunk_id: str) -> Path:
        """Folder of a chunk's checkpoints; need not exist."""
        return self.path / "checkpoints" / chunk_id

    def write_part(self, chunk_id: str, rows: Sequence[Row], *, keep_checkpoints: bool = False) -> None:
        """Rows of a finished chunk, durably: on disk when this returns, whole or not at all if killed.

        Its checkpoints go after that, if none goes on from them. Raises OSError when the disk refuses.
        """
        part = self._part(chunk_id)
        part.parent.mkdir(exist_ok=True)
        write_atomic(part, lambda file: pq.write_table(_table(rows), file, write_page_checksum=True))
        if not keep_checkpoints:
            self.drop_checkpoints(chunk_id)

    def drop_checkpoints(self, chunk_id: str) -> None:
        shutil.rmtree(self.checkpoints(chunk_id), ignore_errors=True)

    def read(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """All rows so far, in the grid's order, one a run id; empty (no columns) when there are none. columns: these
        beside run id and status, by default all.

        Raises InputError naming the part file when one is damaged, foreign, or repeats a trial.
        """
        place = {run_id: i for i, run_id in enumerate(self.run_ids)}
        source: dict[str, Path] = {}
        parts = sorted(self.path.glob("parts/*.parquet"))
        with ThreadPoolExecutor() as readers:
            wanted = None if columns is None else ["run_id", "status", *columns]
            tables = list(readers.map(partial(_read_part, columns=wanted), parts))
        for part, table in zip(parts, tables):
            for run_id in table.column("run_id").to_pylist():
                if run_id not in place:
                    raise InputError(f"{part}: trial {run_id} is not of this grid; move that file elsewhere")
                if run_id in source:
                    raise InputError(f"{part}: trial {run_id} is also in {source[run_id].name}; delete one of the two")
                source[run_id] = part
        if not tables:
            return pd.DataFrame()
        rows = pa.concat_tables(tables, promote_options="permissive").to_pandas()
        return rows.sort_values("run_id", key=lambda ids: ids.map(place), ignore_index=True)

    def together(self, run_id: str) -> list[dict[str, Any]]:
        """The rows of the program that trained the trial whose id begins so. Raises InputError if there is none."""
        found: list[list[dict[str, Any]]] = []
        for part in sorted(self.path.glob("parts/*.parquet")):
            rows = _read_part(part).to_pylist()
            found += [rows for row in rows if row["run_id"].startswith(run_id)]
        if len(found) != 1:
            many = f"{len(found)} trials begin" if found else "no trial that has finished begins"
            raise InputError(f"{many} with {run_id!r} in {self.path}; see: stepseer sweep table --out {self.path}")
        return found[0]

    def discard_failed(self, run_ids: Collection[str] | None = None) -> int:
        """Deletes the parts of chunks that failed, so that they are pending again; returns how many trials. run_ids:
        only chunks of these."""
        count = 0
        for part in sorted(self.path.glob("parts/*.parquet")):
            if run_ids is not None and not set(_read_part(part).column("run_id").to_pylist()) <= set(run_ids):
                continue
            statuses = _read_part(part).column("status").to_pylist()
            if "failed" in statuses:
                part.unlink()
                count += len(statuses)
        return count

    def fits(self) -> dict[str, int]:
        """Trials at a time that fit into memory, by cohort, as far as some did not."""
        found: dict[str, int] = {}
        for file in self.path.glob("fits/*-*"):
            cohort, _, n = file.name.partition("-")
            found[cohort] = min(int(n), found.get(cohort, int(n)))
        return found

    def does_not_fit(self, chunk: Chunk) -> None:
        """Notes, durably, that a chunk ran out of memory: half as many trials of its cohort are tried from now on."""
        file = self.path / "fits" / f"{chunk.cohort}-{-(-len(chunk.trials) // 2)}"
        file.parent.mkdir(exist_ok=True)
        write_atomic(file, lambda _: None)
        self.drop_checkpoints(chunk.id)

    def forecast(self) -> dict[str, float]:
        """Seconds that trials were thought to take, by run id."""
        found: dict[str, float] = {}
        for file in sorted(self.path.glob("forecast*.json")):
            with contextlib.suppress(ValueError, OSError):  # it is no more than a forecast
                found |= json.loads(file.read_bytes())
        return found

    def write_forecast(self, seconds: Mapping[str, float], shard: tuple[int, int] | None = None) -> None:
        """Beside what is there already."""
        name = "forecast.json" if shard is None else f"forecast-{shard[0]}-of-{shard[1]}.json"
        text = json.dumps({**self.forecast(), **{run_id: float(f"{s:.4g}") for run_id, s in seconds.items()}})
        write_atomic(self.path / name, lambda file: file.write(text.encode()))

    def tidy(self, needed: Collection[str] = ()) -> None:
        """Removes what a killed writer left: temporary files, checkpoints of chunks that have their part, but for those
        that others go on from."""
        for temporary in [*self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp")]:
            temporary.unlink(missing_ok=True)
        for folder in self.path.glob("checkpoints/*"):
            if self._part(folder.name).exists() and folder.name not in needed:
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self, shard: tuple[int, int] | None = None) -> Iterator[None]:
        """Held while writing: by one process, or by one for every shard (index, of). Raises InputError when another
        holds it. The kernel frees it if we die."""
        with contextlib.ExitStack() as stack:
            if shard is not None:
                stack.enter_context(self._locked(".lock", fcntl.LOCK_SH))
                stack.enter_context(self._locked(f".lock-{shard[0]}-of-{shard[1]}", fcntl.LOCK_EX))
            else:
                stack.enter_context(self._locked(".lock", fcntl.LOCK_EX))
            yield

    @contextlib.contextmanager
    def _locked(self, name: str, mode: int) -> Iterator[None]:
        try:
            file = open(self.path / name, "a+")  # noqa: SIM115 - closed below, which unlocks
        except OSError as error:
            raise _unwritable(self.path, error) from None
        with file:
            deadline = time.monotonic() + LOCK_WAIT_S
            while not _try_lock(file, mode):
                if time.monotonic() > deadline:
                    raise InputError(
                        f"{self.path} is in use by another run ({_holder(file)}); wait for it, or stop it first"
                    )
                time.sleep(0.05)
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    def running(self) -> str | None:
        """Who is writing here now, or None; of shards the one that started last."""
        try:
            with open(self.path / ".lock") as file:
                return None if _try_lock(file, fcntl.LOCK_EX) else _holder(file)
        except OSError:
            return None

    def _part(self, chunk_id: str) -> Path:
        return self.path / "parts" / f"{chunk_id}.parquet"


def create(path: str | Path, plan: Plan) -> Store:
    """The results folder for `plan`: made, or gone on with when it holds the same grid.

    Of several processes process 0 makes it, once all have the same plan. Raises InputError when they have not, or it
    cannot be written, is not empty and not ours, holds another grid, or is not seen by all.
    """
    group = processes.current()
    processes.same({"trials": plan.run_ids})
    made = _create(path, plan) if group.lead else None
    group.gather("the results folder is there")
    deadline = time.monotonic() + SHARED_WAIT_S
    while made is None:
        made = existing(path)
        if made is None and time.monotonic() > deadline:
            raise InputError(
                f"{path} has nothing of what process 0 wrote there; name a folder for --out on a file system that all "
                "hosts share"
            )
        if made is None:
            time.sleep(0.2)
    return made


def _create(path: str | Path, plan: Plan) -> Store:
    found = existing(path)
    if found is not None:
        check_same(found, plan)
        return found
    path = Path(path).expanduser()
    store = Store(path, plan.name, plan.run_ids, plan.flops, plan.max_trials, plan.cut, plan.trunks)
    meta = {
        "format": FORMAT,
        "grid": plan.name,
        "trials": len(plan.run_ids),
        "flops": plan.flops,
        "max_trials": plan.max_trials,
        "cut": dict(plan.cut),
        "trunks": plan.trunks,
        "run_ids": plan.run_ids,
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / "grid.json", lambda file: file.write(json.dumps(meta, indent=1).encode()))
        (path / "parts").mkdir(exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from None
    return store


def check_same(store: Store, plan: Plan) -> None:
    """Raises InputError when the folder holds another grid than `plan`."""
    new = set(plan.run_ids) - set(store.run_ids)
    if new or len(store.run_ids) != len(plan.run_ids):
        if len(store.run_ids) == len(plan.run_ids) == 1:
            raise InputError(
                f"{store.path} holds another trial than this{_difference(store, plan)}; name another --out"
            )
        raise InputError(
            f"{store.path} holds another grid ({store.grid}: {len(store.run_ids)} trials; {plan.name} has "
            f"{len(plan.run_ids)}, of which {len(new)} are not among them); name another --out"
        )


def _difference(store: Store, plan: Plan) -> str:
    """In which fields the plan's trial is not that of the folder, whose row says its config, if there is one."""
    from experiments import differing

    rows = store.read(("config",))
    if not len(rows):
        return ""
    then, now = config_lib.from_dict(json.loads(rows["config"][0])), plan.trials[0]
    names = differing.fields([then, now])
    shown = [f"{n}: {config_lib.get(then, n)} there, {config_lib.get(now, n)} here" for n in names[:4]]
    return f" ({'; '.join(shown)}{f'; and {len(names) - 4} more' if len(names) > 4 else ''})"


def existing(path: str | Path) -> Store | None:
    """The results folder at `path`; None when nothing is there yet. Raises InputError when something else is."""
    path = Path(path).expanduser()
    _refuse_foreign(path)
    return load(path) if (path / "grid.json").exists() else None


def load(path: str | Path) -> Store:
    """An existing results folder. Raises InputError when there is none at `path`, or it cannot be read."""
    path = Path(path).expanduser()
    file = path / "grid.json"
    if not file.is_file():
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; name a results folder for --out")
        if path.is_dir() and (other := _foreign(path)) is not None:
            raise InputError(
                f"{path} is not a results folder ({other} is there, but no grid.json); name one that sweep run has made"
            )
        raise InputError(f"no results folder at {path}; make one with: stepseer sweep run GRID --out {path}")
    try:
        meta = json.loads(file.read_bytes())
        version = meta["format"]
        cut, trunks = meta.get("cut", {}), meta.get("trunks", False)
        store = Store(path, meta["grid"], tuple(meta["run_ids"]), meta["flops"], meta["max_trials"], cut, trunks)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}); restore it, or name another --out") from None
    if version != FORMAT:
        raise InputError(f"{file} is of format {version}, this stepseer reads {FORMAT}; update stepseer")
    return store


# --- files ---------------------------------------------------------------------------------------------------------


def _refuse_foreign(path: Path) -> None:
    """Raises InputError when `path` is a file, or a folder with something in it that is not ours."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; name a folder for --out")
    if path.is_dir() and not (path / "grid.json").exists() and (other := _foreign(path)) is not None:
        raise InputError(
            f"{path} is not a results folder (no grid.json) and not empty ({other} is there); "
            "name a new or an empty folder for --out"
        )


def _foreign(path: Path) -> str | None:
    """What is in a folder without grid.json: a name, if there is any."""
    return min((p.name for p in path.iterdir() if not _is_temporary(p.name)), default=None)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def write_atomic(path: Path, write: Any) -> None:
    """`write(file)` to a temporary file beside `path`, synced, then renamed over it."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def _table(rows: Sequence[Row]) -> pa.Table:
    """Rows as a table with the run table's types, so that parts agree even where a column is empty."""
    columns = {}
    for name in rows[0]:
        kind = pa.string() if name in _TEXT else pa.float64() if name in _FLOAT else pa.int64()
        columns[name] = pa.array([row[name] for row in rows], type=kind)
    return pa.table(columns).replace_schema_metadata({METADATA_KEY: json.dumps({"version": SCHEMA_VERSION})})


def _read_part(part: Path, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        table = pq.ParquetFile(part, page_checksum_verification=True).read(columns, use_threads=False)
        table.column("run_id"), table.column("status")
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(
            f"{part} is damaged ({str(error).partition(chr(10))[0]:.80}); delete it and run the sweep again: "
            "only its trials are trained anew"
        ) from None
    return table


def _try_lock(file: Any, mode: int) -> bool:
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: Any) -> str:
    file.seek(0)
    return file.read() or "unknown process"


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot write to {path} ({error.strerror}); name a writable folder for --out")
