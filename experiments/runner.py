"""Runs a plan: each chunk to completion, its rows into the results folder; goes on if cut off.

On this machine chunk after chunk; elsewhere by a backend (`experiments.backends`). A chunk without its rows is run
(from its checkpoint if it has one); a chunk with rows is left alone. So it does not matter when a run is interrupted
or killed: running it again ends with the same table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from engine import memory, processes
from engine.config import TrainConfig
from engine.errors import InputError as EngineInputError
from engine.stop import Stopped
from experiments import plan as plan_lib
from experiments.errors import InputError
from experiments.plan import Chunk, Plan
from experiments.store import Row, Store
from laws.programs import make_room

if TYPE_CHECKING:
    from engine import Progress

LOGS = "logs"  # in the results folder: every trial's metrics

# (chunk, folder of its checkpoints, on_progress) -> its rows, in order
Trainer = Callable[[Chunk, Path, Callable[["Progress"], None]], Sequence[Row]]
# (chunks, results folder, watcher, stop) -> each chunk with its rows, as it is finished; with none where it ran out of
# memory. Tells the watcher of starts and progress; raises KeyboardInterrupt soon after `stop` is set.
Backend = Callable[[Sequence[Chunk], Store, "Watcher", "Stop"], Generator[tuple[Chunk, Sequence[Row]], None, None]]


class Watcher:
    """Hears how a run goes; this one says nothing."""

    def preparing(self, stage: str, done: int, total: int) -> None:
        """While a corpus is read, tokenized, ... ."""

    def started(self, plan: Plan, left: Sequence[Chunk]) -> None:
        """Before the first chunk."""

    def chunk_started(self, chunk: Chunk) -> None:
        """Before each chunk."""

    def progress(self, chunk: Chunk, progress: Progress) -> None:
        """About every half second of a chunk."""

    def chunk_finished(self, chunk: Chunk, rows: Sequence[Row]) -> None:
        """When a chunk's rows are safe."""

    def out_of_memory(self, chunk: Chunk) -> None:
        """When a chunk did not fit; it is trained in halves."""

    def lost(self, chunk: Chunk, reason: str) -> None:
        """When a cluster lost the process or the node that trained it, and it will run again."""

    def waiting(self, what: str) -> None:
        """While a cluster has no place for any chunk."""

    def stopping(self) -> None:
        """At the first Ctrl-C. Called from a signal handler."""


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    trials: int  # in the grid
    already: int  # had rows before
    ok: int  # trained now, by status
    diverged: int
    stopped: int  # as hopeless
    failed: int
    interrupted: bool
    wall_s: float
    signum: int = 0  # the signal that interrupted it

    @property
    def left(self) -> int:
        return self.trials - self.already - self.ok - self.diverged - self.stopped - self.failed


def train_chunk(chunk: Chunk, folder: Path, on_progress: Callable[[Progress], None], **how: Any) -> list[Row]:
    """The real trainer: the chunk as one population, from its trunk on if it has one. how: arguments of
    `engine.train_population`."""
    import engine

    if chunk.keep_at:
        how["keep"] = engine.Keep(at=chunk.keep_at)
    if chunk.trunk:
        with contextlib.suppress(EngineInputError):  # its checkpoints are gone: it trains all steps itself
            engine.branch.check(folder.parent / chunk.trunk, chunk.trials)
            how["branch_from"] = folder.parent / chunk.trunk
    results = engine.train_population(chunk.base, chunk.hypers, folder=folder, on_progress=on_progress, **how)
    return [result.row for result in results]


def run(
    plan: Plan,
    store: Store,
    *,
    trainer: Trainer | None = None,
    backend: Backend | None = None,
    watcher: Watcher | None = None,
    retry_failed: bool = False,
    shard: tuple[int, int] | None = None,
) -> Summary:
    """Trains what `store` lacks of `plan`. Returns early, with `interrupted`, at Ctrl-C or SIGTERM.

    shard: (index from 0, of): only that part of the chunks (`plan.shard`); processes with different indices, on this or
    other machines, share the folder.

    trainer: by default `train_chunk`, with logs in the results folder. backend: what runs the chunks, by default
    this process, one after another, with `trainer`.
    A chunk whose training raises becomes rows of status failed; the others go on. One that runs out of memory is
    trained in halves, and so are those of its cohort that follow. What is not a trial's own fault ends the run instead:
    InputError (bad config or data) and OSError (disk full). Rows so far are safe then too.
    Of several processes (`engine.processes`) all call this, and process 0 alone reads and writes the folder.
    """
    one_by_one = backend is None
    backend = backend or in_turn(trainer or partial(train_chunk, logs=store.path / LOGS))
    watcher = watcher or Watcher()
    started = time.monotonic()
    group = processes.current()
    counts = {"ok": 0, "diverged": 0, "stopped": 0, "failed": 0}
    if shard is not None:
        plan = dataclasses.replace(plan, chunks=tuple(plan_lib.shard(plan.chunks, *shard)))
        ours = {t.run_id for chunk in plan.chunks for t in chunk.trials}
        plan = dataclasses.replace(plan, trials=tuple(t for t in plan.trials if t.run_id in ours))
    with store.lock(shard) if group.lead else contextlib.nullcontext(), _stop_on_signal(watcher) as stop:
        if retry_failed and group.lead:
            store.discard_failed(plan.run_ids)
        done = set(group.agree(_trained(store) if group.lead else None))
        left = plan_lib.pending(plan, done, group.agree(store.fits() if group.lead else None))
        if shard is None and group.lead:
            store.tidy({chunk.trunk for chunk in left if chunk.trunk})  # no other writes
        already = len(plan.trials) - sum(len(chunk.trials) for chunk in left)
        watcher.started(plan, left)
        try:

            def run_chunks(chunks: Sequence[Chunk]) -> Any:
                return backend(chunks, store, watcher, stop)

            for chunk, trained in _safe(plan, left, done, store, watcher, run_chunks, one_by_one=one_by_one):
                watcher.chunk_finished(chunk, trained)
                for row in trained:
                    counts[row["status"]] += 1
        except KeyboardInterrupt as interrupt:
            stop.signum = getattr(interrupt, "signum", stop.signum)
            stop.set()
        interrupted = stop.is_set() and already + sum(counts.values()) < len(plan.trials)
    wall_s = time.monotonic() - started
    signum = stop.signum if interrupted else 0
    return Summary(len(plan.trials), already, **counts, interrupted=interrupted, wall_s=wall_s, signum=signum)


def _safe(
    plan: Plan,
    left: Sequence[Chunk],
    done: set[str],
    store: Store,
    watcher: Watcher,
    run_chunks: Callable[[Sequence[Chunk]], Generator[tuple[Chunk, Sequence[Row]], None, None]],
    *,
    one_by_one: bool,
) -> Iterator[tuple[Chunk, Sequence[Row]]]:
    """Each chunk of `left` with its rows, once they are in the store. done: run ids with rows; they become more.

    What did not fit into memory comes again, in halves. A trunk's checkpoints stay until its branches are done, which
    wait for it unless chunks are run one by one, in order.
    """
    group = processes.current()
    while left:
        branches = Counter(chunk.trunk for chunk in left)  # left of each trunk
        trunks = {chunk.id for chunk in left if chunk.keep_at}
        now = left if one_by_one else [chunk for chunk in left if chunk.trunk not in trunks]
        with contextlib.closing(run_chunks(now)) as finished:
            for chunk, rows in finished:
                if not rows:
                    if group.lead:
                        store.does_not_fit(chunk)
                    watcher.out_of_memory(chunk)
                    continue
                if group.lead:
                    store.write_part(chunk.id, rows, keep_checkpoints=branches[chunk.id] > 0)
                branches[chunk.trunk] -= 1
                if chunk.trunk and not branches[chunk.trunk] and group.lead:
                    store.drop_checkpoints(chunk.trunk)
                done |= {row["run_id"] for row in rows}
                yield chunk, rows
        left = plan_lib.pending(plan, done, group.agree(store.fits() if group.lead else None))


def _trained(store: Store) -> list[str]:
    """Run ids that have rows."""
    rows = store.read(())
    return list(rows["run_id"]) if len(rows) else []


def check_data(trials: Sequence[TrainConfig], watcher: Watcher) -> None:
    """Builds or finds the corpora that the trials need; raises InputError for data or a mesh that can't be had."""
    import engine
    from engine import config as config_lib
    from engine import data

    for corpus in {t.data for t in trials}:
        data.load(corpus, watcher.preparing)
    for trial in {config_lib.structure(t): t for t in trials}.values():
        engine.check(trial)


def in_turn(trainer: Trainer) -> Backend:
    """The backend that is this process."""

    def run_chunks(
        left: Sequence[Chunk], store: Store, watcher: Watcher, stop: Stop
    ) -> Generator[tuple[Chunk, Sequence[Row]], None, None]:
        too_many: dict[str, int] = {}  # trials, by cohort
        for chunk in left:
            if len(chunk.trials) >= too_many.get(chunk.cohort, sys.maxsize):
                continue  # it comes again, in halves
            _raise_if_anybody(stop)
            watcher.chunk_started(chunk)

            def on_progress(progress: Progress, chunk: Chunk = chunk) -> None:
                watcher.progress(chunk, progress)
                raise_if(stop)

            rows = _as_on_all(rows_of(chunk, store.checkpoints(chunk.id), trainer, on_progress))
            if not rows:
                too_many[chunk.cohort] = len(chunk.trials)
            yield chunk, rows

    return run_chunks


def rows_of(chunk: Chunk, folder: Path, trainer: Trainer, on_progress: Callable[[Progress], None]) -> Sequence[Row]:
    """Trains a chunk, wherever that is: its rows, of status failed where training raised; none where fewer trials may
    fit into memory. folder: of its checkpoints.

    Raises what is not a trial's own fault: InputError, OSError.
    """
    make_room()  # a plan of many model sizes compiles many programs
    try:
        rows = trainer(chunk, folder, on_progress)
    except (InputError, EngineInputError, OSError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if memory.ran_out(error) and len(chunk.trials) == 1:
            reason = f"out of memory, alone; set {memory.advice(chunk.base)} in the grid, and --retry-failed. {reason}"
        elif memory.ran_out(error):
            error.__traceback__ = None  # its frames hold arrays
            gc.collect()
            return []
        return [failed_row(trial, " ".join(reason.split())[:500]) for trial in chunk.trials]
    assert [row["run_id"] for row in rows] == [t.run_id for t in chunk.trials], "rows are not of the chunk's trials"
    return rows


def _as_on_all(rows: Sequence[Row]) -> Sequence[Row]:
    """These rows, or those of another process on which the chunk failed or did not fit."""
    bad = None if rows and all(row["status"] != "failed" for row in rows) else list(rows)
    return next((one for one in processes.current().gather(bad) if one is not None), rows)


def failed_row(config: TrainConfig, reason: str) -> dict[str, Any]:
    """The row of a trial that could not be trained."""
    import numpy as np

    from engine.row import make_row

    row = make_row(
        config,
        losses=np.full(1, math.nan),
        eval_loss=math.nan,
        chars_per_token=1.0,
        diverged_at=0,
        wall_s=math.nan,
    )
    return {**row, "status": "failed", "reason": reason}


class Stop(threading.Event):
    """Set by a request to stop."""

    signum: int = signal.SIGINT


def raise_if(stop: Stop) -> None:
    """Raises KeyboardInterrupt once `stop` is set."""
    if stop.is_set():
        raise Stopped(stop.signum)


def _raise_if_anybody(stop: Stop) -> None:
    """The same, on all processes, once it is set on one of them."""
    signum = next((s for s in processes.current().gather(stop.signum if stop.is_set() else 0) if s), 0)
    if signum:
        raise Stopped(signum)


@contextlib.contextmanager
def _stop_on_signal(watcher: Watcher) -> Iterator[Stop]:
    """An event that the first Ctrl-C or SIGTERM sets; the second ends the process there and then.

    That is safe: a part appears whole or not at all, and a checkpoint is verified when it is read. Only the main
    thread can listen to signals; elsewhere the event is never set.
    """
    stop = Stop()

    def handle(signum: int, _: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + signum)
        stop.signum = signum
        stop.set()
        watcher.stopping()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
