"""SIGTERM, which schedulers send some seconds before they kill: training saves at its next step and ends."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

log = logging.getLogger("stepseer.engine")

EXIT_CODE = 128 + signal.SIGTERM  # 143; not 0, which schedulers take for finished: what isn't is queued again


class Asked(threading.Event):
    """Set once the process was asked to stop."""

    listens = False  # True: to SIGTERM


class Stopped(KeyboardInterrupt):
    """Somebody asked a process of this run to stop."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@contextlib.contextmanager
def on_sigterm(folder: str | Path | None) -> Iterator[Asked]:
    """An event that the first SIGTERM sets; the second ends the process there and then. folder: of the checkpoints.

    Never set without a folder, where somebody else listens, or outside the main thread. Leaving the block after a
    SIGTERM ends the process with `EXIT_CODE` and a line that says how to go on.
    """
    asked = Asked()
    heard = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    if folder is None or heard or threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        asked.set()

    signal.signal(signal.SIGTERM, handle)
    asked.listens = True
    try:
        yield asked
        if asked.is_set():  # too late for a step to look
            raise SystemExit(EXIT_CODE)
    except SystemExit:
        if asked.is_set():
            log.warning("stopped by SIGTERM; saved in %s, from which the same call goes on", folder)
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
