"""Metrics on disk as they become known: JSON lines and TensorBoard events of every trial, Weights & Biases if wanted.

    LOGS/RUN_ID/metrics.jsonl                 {"step": 0, "tokens": 1024, "loss": 5.5, ...} a step, the evaluation last;
                                              eval_loss, eval_bpc where evaluated
    LOGS/RUN_ID/events.out.tfevents...        the same for `tensorboard --logdir LOGS`, with the pace

The lines are a function of the training alone: no clock. Resuming writes them anew from the checkpoint's history, so a
run that was killed ends with the file of one that was not.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from engine import config as config_lib
from engine.config import TrainConfig
from engine.errors import InputError, require
from engine.history import Progress

SCALARS = ("loss", "lr", "grad_norm")  # of `step.Metrics`
EVALUATED = ("eval_loss", "eval_bpc")  # after some steps, else NaN
EVENTS = 1000  # steps of a run that TensorBoard and Weights & Biases get, about


class Logs:
    """The logs of a population. A context manager; closing it flushes."""

    def __init__(self, folder: str | Path | None, trials: Sequence[TrainConfig], *, wandb: str | None = None):
        """folder: LOGS; None: no logs. wandb: a Weights & Biases project to log to as well, WANDB_MODE=offline works.

        Raises InputError when the folder can't be written, wandb has no folder, or is not installed.
        """
        require(wandb is None or folder is not None, f"wandb project {wandb!r} needs a folder for its logs; name one")
        if wandb is not None:
            _import_wandb()  # before any file is opened
        self._runs: dict[str, _Run] = {}
        for g, trial in enumerate(trials if folder is not None else ()):
            assert folder is not None
            if trial.run_id not in self._runs:  # equal configs are the same run
                self._runs[trial.run_id] = _Run(Path(folder) / trial.run_id, trial, g, wandb)

    def end(self, over: Mapping[int, tuple[int, str]]) -> None:
        """Of these trials nothing comes after so many steps."""
        for run in self._runs.values():
            if run.g in over:
                run.steps = over[run.g][0]

    def start(self, history: Mapping[str, np.ndarray]) -> None:
        """Begins with the metrics of the steps done before, [steps, G]; {} when there are none."""
        for run in self._runs.values():
            with run.named():
                run.start(history)

    def write(self, first: int, rows: Mapping[str, np.ndarray], progress: Progress) -> None:
        """Metrics [n, G] of steps `first` to first + n - 1, and the pace then. Raises InputError on a full disk."""
        for run in self._runs.values():
            with run.named():
                run.write(first, rows, progress)

    def finish(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The trials' run-table rows: final smoothed loss, held-out loss in nats per token and bits per character."""
        for run in self._runs.values():
            with run.named():
                run.finish(rows[run.g])

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *exception: object) -> None:
        for run in self._runs.values():
            with contextlib.suppress(OSError):  # all was flushed, or the disk is full, as was said then
                run.close()


NONE = Logs(None, ())


class _Run:
    """The logs of one trial, `g` of its population."""

    def __init__(self, folder: Path, config: TrainConfig, g: int, wandb: str | None):
        self.g = g
        self.steps = config.steps  # that it does
        self._config = config
        self._every = max(1, config.steps // EVENTS)
        self._folder = folder
        with self.named():
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = open(folder / "metrics.jsonl", "w")  # noqa: SIM115 - closed by close
            self._sinks: list[_TensorBoard | _WandB] = [_TensorBoard(folder)] if find_spec("tensorboardX") else []
        if wandb is not None:
            self._sinks.append(_WandB(folder, config, wandb))

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot write logs to {self._folder} ({error.strerror}); make room there, or name another folder"
            ) from error

    def start(self, history: Mapping[str, np.ndarray]) -> None:
        self._write_lines(0, history)
        for sink in self._sinks:
            sink.start(min(len(history["loss"]) if history else 0, self.steps))

    def write(self, first: int, rows: Mapping[str, np.ndarray], progress: Progress) -> None:
        found = self._write_lines(first, rows)
        chosen = [(step, values) for step, values in found if step % self._every == 0 or "eval_loss" in values]
        if found:
            pace = {"tokens_per_s": progress.tokens_per_s, "mfu": progress.mfu}
            chosen.append((found[-1][0], {f"pace/{k}": v for k, v in pace.items() if math.isfinite(v)}))
        for sink in self._sinks:
            for step, values in chosen:
                sink.write(step, values)
            sink.flush()

    def finish(self, row: Mapping[str, Any]) -> None:
        values = {"eval_loss": row["eval_loss"], "eval_bpc": row["bpc"], "smooth_loss": row["loss"]}
        line = {"step": self.steps, "tokens": self.steps * self._config.batch_tokens, "status": row["status"]}
        self._lines.write(_line({**line, **values}))
        self._lines.flush()
        for sink in self._sinks:
            sink.write(self.steps, values)
            sink.flush()

    def close(self) -> None:
        self._lines.close()
        for sink in self._sinks:
            sink.close()

    def _write_lines(self, first: int, rows: Mapping[str, np.ndarray]) -> list[tuple[int, dict[str, float]]]:
        """Of this trial's own steps; returns them, with their values."""
        last = max(0, self.steps - first)
        columns = {name: rows[name][:last, self.g].tolist() for name in (*SCALARS, *EVALUATED) if name in rows}
        steps = [
            {k: v for k, v in zip(columns, values) if not (k in EVALUATED and math.isnan(v))}
            for values in zip(*columns.values())
        ]
        found = list(enumerate(steps, start=first))
        tokens = self._config.batch_tokens
        self._lines.writelines(_line({"step": k, "tokens": (k + 1) * tokens, **values}) for k, values in found)
        self._lines.flush()
        return found


def _line(values: Mapping[str, Any]) -> str:
    """JSON has no NaN: null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite) + "\n"


class _TensorBoard:
    """An event file. A file of its own for every start: TensorBoard drops the steps that an earlier one got further."""

    def __init__(self, folder: Path):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary, self._log = event_pb2.Event, summary_pb2.Summary, event_pb2.SessionLog
        self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns() % 10**9:09}")

    def start(self, step: int) -> None:
        log = self._log(status=self._log.START)
        self._file.write_event(self._event(wall_time=time.time(), step=step, session_log=log))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        summary = self._summary(value=[self._summary.Value(tag=k, simple_value=v) for k, v in values.items()])
        self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _WandB:
    """A run of Weights & Biases, under the run's own id."""

    def __init__(self, folder: Path, config: TrainConfig, project: str):
        wandb = _import_wandb()
        self._run = wandb.init(
            project=project,
            id=config.run_id,
            name=config.run_id,
            group=config.recipe,
            config=config_lib.to_dict(config),
            dir=str(folder),
            resume="allow",
            reinit="create_new",  # a population has many at once
            settings=wandb.Settings(quiet=True),
        )

    def start(self, step: int) -> None:
        """Steps that it has already it ignores by itself."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """It flushes by itself."""

    def close(self) -> None:
        self._run.finish()


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise InputError("wandb is not installed; pip install 'stepseer[wandb]'") from None
    return wandb
