"""Watching a sweep: bars with time left on a terminal, a line per finished chunk elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from experiments import show
from experiments.plan import Chunk, Plan
from experiments.runner import Watcher
from experiments.store import Row

if TYPE_CHECKING:
    from engine import Progress as EngineProgress


@contextmanager
def watcher(*, quiet: bool) -> Iterator[Watcher]:
    """The watcher for where the output goes. quiet: none, for --json."""
    if quiet:
        yield Watcher()
    elif sys.stderr.isatty():
        with Bars() as bars:
            yield bars
    else:
        yield Lines()


@contextmanager
def bar(description: str, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error, moved by calling it with (done, total); None where nobody watches."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def stages(*, quiet: bool) -> Callable[[str], AbstractContextManager[Callable[[int, int], None] | bool]]:
    """For work of several stages: called with a stage's description, a context with its bar, or a line printed."""

    @contextmanager
    def stage(description: str) -> Iterator[Callable[[int, int], None] | bool]:
        with bar(f"   {description}", quiet=quiet) as moved:
            if moved is None and not quiet:
                print(f"   {description}", flush=True)
            yield moved or False

    return stage


def label(chunk: Chunk) -> str:
    """A chunk in a few words: width x depth, tokens, batch in tokens."""
    config = chunk.base
    shape = f"{config.model.d_model}x{config.model.n_layers}"
    return f"{shape}, D {show.count(config.tokens)}, B {show.count(config.batch_tokens)}, x{len(chunk.trials)}"


SAY_EVERY_S = 60.0
_IN_HALVES = "out of memory; goes on with half as many trials at a time"


class _Share(Watcher):
    """How much of the work is done, weighted by FLOPs, and how long the rest takes: compiling is timed apart."""

    def __init__(self) -> None:
        self.total = self.done = 0.0
        self.now: dict[str, float] = {}  # FLOPs done of the chunks that run, by id
        self.began = self.said = time.monotonic()
        self.chunk_began: dict[str, float] = {}
        self.compiling_s: dict[object, float] = {}  # by program, once its first chunk has reported
        self.programs: set[object] = set()  # that the run needs

    def started(self, plan: Plan, left: Sequence[Chunk]) -> None:
        self.began = time.monotonic()
        self.total = sum(chunk.flops for chunk in left)
        self.programs = {chunk.program for chunk in left}

    def chunk_started(self, chunk: Chunk) -> None:
        self.chunk_began[chunk.id] = time.monotonic()
        self.now[chunk.id] = 0.0

    def progress(self, chunk: Chunk, progress: EngineProgress) -> None:
        self.compiling_s.setdefault(chunk.program, time.monotonic() - self.chunk_began.get(chunk.id, self.began))
        own = progress.step - chunk.shared_steps, progress.total_steps - chunk.shared_steps
        self.now[chunk.id] = chunk.flops * max(0, own[0]) / max(1, own[1])

    def lost(self, chunk: Chunk, reason: str) -> None:
        self.now.pop(chunk.id, None)

    def chunk_finished(self, chunk: Chunk, rows: Sequence[Row]) -> None:
        self.now.pop(chunk.id, None)
        self.done += chunk.flops

    def share(self) -> float:
        return (self.done + sum(self.now.values())) / self.total if self.total else 1.0

    def left_s(self) -> float:
        """Seconds left at the pace so far; NaN at the start."""
        done, at_once = self.done + sum(self.now.values()), max(1, len(self.now))
        if not (self.compiling_s and done):
            return math.nan
        compiling, compiled = sum(self.compiling_s.values()), len(self.compiling_s)
        training = max(0.0, time.monotonic() - self.began - compiling / min(at_once, compiled))
        to_compile = len(self.programs - self.compiling_s.keys())
        return training * (self.total - done) / done + to_compile * compiling / compiled / at_once


class Lines(_Share):
    """One line a finished chunk, and one a minute of a long one, on standard output: for logs and pipes."""

    def progress(self, chunk: Chunk, progress: EngineProgress) -> None:
        super().progress(chunk, progress)
        if time.monotonic() - self.said > SAY_EVERY_S:
            self.said = time.monotonic()
            left = f", {show.seconds(progress.eta_s)} left of it" if math.isfinite(progress.eta_s) else ""
            step = f"step {progress.step} of {progress.total_steps}"
            print(f"{self.share():4.0%}  {label(chunk)}: {step}, {_pace(progress)}{left}", flush=True)

    def chunk_started(self, chunk: Chunk) -> None:
        super().chunk_started(chunk)
        self.said = time.monotonic()

    def chunk_finished(self, chunk: Chunk, rows: Sequence[Row]) -> None:
        super().chunk_finished(chunk, rows)
        share = self.share()
        left_s = self.left_s()
        left = f", about {show.seconds(left_s)} left" if share < 1 and math.isfinite(left_s) else ""
        print(f"{share:4.0%}  {label(chunk)}: {_outcome(rows)}{left}", flush=True)

    def out_of_memory(self, chunk: Chunk) -> None:
        self.now.pop(chunk.id, None)
        print(f"{self.share():4.0%}  {label(chunk)}: {_IN_HALVES}", flush=True)

    def lost(self, chunk: Chunk, reason: str) -> None:
        super().lost(chunk, reason)
        print(f"{label(chunk)}: {_lost(reason)}", flush=True)

    def waiting(self, what: str) -> None:
        print(f"waiting for {what}", flush=True)

    def stopping(self) -> None:
        print("stopping; once more to stop at once", file=sys.stderr, flush=True)


class Bars(_Share):
    """A bar for the sweep and one for the chunk, on standard error. A context manager."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=14),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[note]}"),
            console=console or Console(stderr=True, highlight=False),
            transient=True,
        )
        self._sweep = self._bars.add_task("sweep", total=1.0, note="")
        self._chunk = self._bars.add_task("", total=1.0, note="", visible=False)
        self._trials = self._of = 0
        self._pace: dict[str, float] = {}  # tokens a second, by chunk
        self._flops: dict[str, float] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def started(self, plan: Plan, left: Sequence[Chunk]) -> None:
        super().started(plan, left)
        self._of = len(plan.trials)
        self._trials = self._of - sum(len(chunk.trials) for chunk in left)
        self._update()

    def preparing(self, stage: str, done: int, total: int) -> None:
        self._bars.update(self._chunk, description=stage, completed=done / total, note="", visible=True)

    def chunk_started(self, chunk: Chunk) -> None:
        super().chunk_started(chunk)
        self._flops[chunk.id] = chunk.flops
        self._show(chunk, 0.0, "compiling")

    def progress(self, chunk: Chunk, progress: EngineProgress) -> None:
        super().progress(chunk, progress)
        self._pace[chunk.id] = progress.tokens_per_s
        self._show(chunk, progress.step / progress.total_steps, _pace(progress))
        self._update()

    def lost(self, chunk: Chunk, reason: str) -> None:
        super().lost(chunk, reason)
        self._bars.console.print(f"{label(chunk)}: {_lost(reason)}")

    def waiting(self, what: str) -> None:
        self._bars.console.print(f"waiting for {what}")

    def chunk_finished(self, chunk: Chunk, rows: Sequence[Row]) -> None:
        super().chunk_finished(chunk, rows)
        self._trials += len(rows)
        self._bars.update(self._chunk, visible=bool(self.now))
        if any(row["status"] != "ok" for row in rows):
            self._bars.console.print(f"{label(chunk)}: {_outcome(rows)}")
        self._update()

    def out_of_memory(self, chunk: Chunk) -> None:
        self.now.pop(chunk.id, None)
        self._bars.console.print(f"{label(chunk)}: {_IN_HALVES}")

    def stopping(self) -> None:
        self._bars.update(self._chunk, note="stopping; again: at once")

    def _show(self, chunk: Chunk, share: float, note: str) -> None:
        """The bar of the chunk that runs; of several at once, of all."""
        description = label(chunk)
        if len(self.now) > 1:
            description = f"{len(self.now)} chunks at once"
            share = sum(self.now.values()) / sum(self._flops[chunk_id] for chunk_id in self.now)
            paces = [self._pace.get(chunk_id, math.nan) for chunk_id in self.now]
            tokens = sum(pace for pace in paces if math.isfinite(pace))
            note = f"{show.count(tokens)} tok/s" if tokens else "compiling"
        self._bars.update(self._chunk, description=description, completed=share, total=1.0, note=note, visible=True)

    def _update(self) -> None:
        left = self.left_s()
        eta = f", {show.seconds(left)} left" if math.isfinite(left) else ""
        self._bars.update(self._sweep, completed=self.share(), note=f"{self._trials} of {self._of} trials{eta}")


def _pace(progress: EngineProgress) -> str:
    """Tokens per second, loss, and the share of the accelerators' peak where that is known."""
    tokens = f"{show.count(progress.tokens_per_s)} tok/s, " if math.isfinite(progress.tokens_per_s) else ""
    mfu = f", MFU {progress.mfu:.0%}" if math.isfinite(progress.mfu) else ""
    return f"{tokens}loss {show.loss(progress.loss)}{mfu}"


def _lost(reason: str) -> str:
    return f"lost, and runs again ({reason.rstrip('.'):.100})"


def _outcome(rows: Sequence[Row]) -> str:
    losses = [row["loss"] for row in rows if row["status"] == "ok"]
    bad = [row for row in rows if row["status"] != "ok"]
    parts = [f"loss {show.span(losses, show.loss)}"] if losses else []
    for status in ("diverged", "stopped", "failed"):
        reasons = [row["reason"] for row in bad if row["status"] == status]
        why = f" ({reasons[0]:.100})" if reasons and status != "stopped" else ""
        parts += [f"{len(reasons)} {status}{why}"] if reasons else []
    return ", ".join(parts)
