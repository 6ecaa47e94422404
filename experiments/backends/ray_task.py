"""What happens to a chunk on a node of a Ray cluster: trained in a worker process of Ray's.

The results folder may be shared by the nodes or not; a task looks for itself. Where it is, checkpoints and logs go
there, so that a chunk whose node is lost goes on elsewhere. Where it isn't, they stay on the node, and the logs travel
back with the rows.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import cache
from engine.errors import InputError as EngineInputError
from experiments import compile_cache, runner
from experiments.errors import InputError
from experiments.plan import Chunk
from experiments.store import Row

if TYPE_CHECKING:
    from engine import Progress

SAY_EVERY_S = 0.25  # how often a task reports, at most
SILENCE_S = 60.0  # without an answer from the driver after which a task gives up: it may have been given up itself
LOCK_WAIT_S = 60.0  # for a process that was given up to be gone from the checkpoints


@dataclass(frozen=True)
class Job:
    """A chunk, and how to train it."""

    chunk: Chunk
    out: str  # results folder on the driver
    mark: str  # a file in it that only its own has
    threads: int  # of a CPU that trains; 0: on accelerators
    trainer: Callable[..., Sequence[Row]]  # as `runner.train_chunk`
    how: dict[str, Any]  # more arguments for it


@dataclass(frozen=True)
class Outcome:
    """How a task ended."""

    rows: Sequence[Row] | None = None  # with none where fewer trials may fit into memory
    logs: dict[str, bytes] = field(default_factory=dict)  # files below LOGS, where the results folder isn't shared
    error: str = ""  # else: what is not the trials' own fault and ends the run, in one line
    lost: str = ""  # or why it has to run again, if it was not asked to stop


class Board:
    """Where tasks say how far they are, and hear whether to stop. An actor on the driver's node."""

    def __init__(self) -> None:
        self._begun: list[str] = []
        self._latest: dict[str, Progress] = {}
        self._stopped = False

    def begin(self, chunk_id: str) -> bool:
        """A task has started; returns whether it should stop."""
        self._begun.append(chunk_id)
        return self._stopped

    def say(self, chunk_id: str, progress: Progress) -> bool:
        self._latest[chunk_id] = progress
        return self._stopped

    def news(self) -> tuple[list[str], dict[str, Progress]]:
        """Ids of the chunks that have started since the last call, and the progress of those that reported."""
        begun, latest = self._begun, self._latest
        self._begun, self._latest = [], {}
        return begun, latest

    def stop(self) -> None:
        self._stopped = True


def train(job: Job, board: Any) -> Outcome:
    """The task. board: handle of the actor."""
    import ray

    if job.threads:
        import jax

        os.environ["NPROC"] = str(job.threads)  # XLA's; read when JAX meets its devices, which it hasn't yet
        jax.config.update("jax_platforms", "cpu")  # the node may have accelerators, which are others'
    compile_cache.use()
    chunk = job.chunk
    link = _Link(board, chunk.id)
    shared = (Path(job.out) / job.mark).exists()
    folder = Path(job.out) / "checkpoints" / chunk.id if shared else cache.root() / "ray" / chunk.id
    logs = Path(job.out) / runner.LOGS if shared else folder / "logs"
    try:
        link.ask(board.begin.remote(chunk.id))
        with _alone_in(folder):
            trainer = partial(job.trainer, logs=logs, **job.how)
            rows = runner.rows_of(chunk, folder, trainer, link.on_progress)
            if shared:
                return Outcome(rows)
            files = {str(file.relative_to(logs)): file.read_bytes() for file in logs.rglob("*") if file.is_file()}
            shutil.rmtree(folder, ignore_errors=True)
            return Outcome(rows, files)
    except KeyboardInterrupt:
        return Outcome(lost="it was stopped, or did not hear from the command any more")
    except _Busy as error:
        return Outcome(lost=str(error))
    except (InputError, EngineInputError) as error:
        return Outcome(error=str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return Outcome(error=f"{where}{error.strerror or error} (on {ray.util.get_node_ip_address()})")


class _Link:
    """A task's line to the driver."""

    def __init__(self, board: Any, chunk_id: str):
        self._board, self._chunk_id = board, chunk_id
        self._said = 0.0
        self._heard = time.monotonic()

    def on_progress(self, progress: Progress) -> None:
        if time.monotonic() - self._said >= SAY_EVERY_S:
            self._said = time.monotonic()
            self.ask(self._board.say.remote(self._chunk_id, progress))

    def ask(self, answer: Any) -> None:
        """Raises KeyboardInterrupt if the answer is to stop, or the driver is gone: what asked for this chunk then runs
        it elsewhere, or will."""
        import ray
        from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError

        try:
            stop = ray.get(answer, timeout=5)
            self._heard = time.monotonic()
        except ActorDiedError:
            stop = True
        except (RayActorError, GetTimeoutError):
            stop = time.monotonic() - self._heard > SILENCE_S
        if stop:
            raise KeyboardInterrupt


class _Busy(Exception):
    """Another process is in the folder."""


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No two processes train the same chunk in the same folder, be it that Ray took one for lost which was not.

    A lock of the kernel's (flock): it goes with the process that has it, and holds across the nodes of a file system
    that keeps such locks for all of them, as NFS does. Raises _Busy when it can't be had.
    """
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise _Busy(f"its checkpoints are still in use by {file.read() or 'another process'}") from None
            else:
                if _is_there(file):  # not removed by the one who had it before
                    import ray

                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {ray.util.get_node_ip_address()}")
                    file.flush()
                    yield
                    return
        time.sleep(0.1)


def _is_there(file: Any) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except FileNotFoundError:
        return False
