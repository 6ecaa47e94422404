"""Follows a program that was started: reads what it writes, holds it to limits, and ends it and all that it started."""

from __future__ import annotations

import json
import os
import select
import selectors
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from experiments.code import watch

LOOK = 0.05  # seconds between looks at memory, files and processes
_CHUNK = 1 << 16
_ENDING = 5.0  # seconds that the end of a killed program may take


@dataclass(frozen=True)
class Seen:
    """code: the exit status, negative or 128 more for a signal's number. ended: (status, reason) where it was ended
    from here. started: whether the program itself began. crowded: whether it was at its limit of processes."""

    code: int
    stdout: bytes
    stderr: bytes
    seconds: float
    ended: tuple[str, str] | None
    started: bool
    crowded: bool


def follow(process: subprocess.Popen[bytes], status: int | None, limits: Any, folder: str) -> Seen:
    """Reads and watches `process` until it ends or is over a limit; when this returns nothing of it runs any more.

    status: the fd where bubblewrap reports on its namespace; None for a program without walls. limits: a
    `sandbox.Limits`. folder: where the namespace has its files.
    """
    begun = time.monotonic()
    one = _Followed(process, status)
    try:
        ended = _until_the_end(one, limits, folder, begun)
    except BaseException:
        one.end()
        raise
    seconds = time.monotonic() - begun
    one.end()
    over = one.drain(limits.output_bytes)
    one.close()
    return Seen(process.returncode, *one.output(limits.output_bytes), seconds, ended or over, one.started, one.crowded)


def _until_the_end(one: _Followed, limits: Any, folder: str, begun: float) -> tuple[str, str] | None:
    """Why the program is to be ended, None where it ended by itself."""
    look = begun + LOOK
    while True:
        now = time.monotonic()
        if now - begun >= limits.wall_s:
            return "timeout", f"not done after {limits.wall_s:g} s"
        if one.read(max(0.0, min(look, begun + limits.wall_s) - now)):
            return None
        if over := one.flood(limits.output_bytes):
            return over
        if time.monotonic() >= look:
            look = time.monotonic() + LOOK
            if over := one.over(limits, folder):
                return over


class _Followed:
    """The open ends of one process."""

    def __init__(self, process: subprocess.Popen[bytes], status: int | None):
        self.process, self.status = process, status
        self.started, self.crowded = status is None, False
        self.init: int | None = None if status is not None else process.pid
        self.namespace: int | None = None  # pidfd of the namespace's first process
        self.exit = os.pidfd_open(process.pid)
        assert process.stdout and process.stderr
        self.ends = [process.stdout.fileno(), process.stderr.fileno(), *([] if status is None else [status])]
        self.read_bytes = {fd: bytearray() for fd in self.ends}
        self.selector = selectors.DefaultSelector()
        for fd in self.ends:
            os.set_blocking(fd, False)
            self.selector.register(fd, selectors.EVENT_READ)
        self.selector.register(self.exit, selectors.EVENT_READ)

    def read(self, timeout: float) -> bool:
        """Reads a chunk of whatever is there, waiting at most `timeout` s; whether the process has ended."""
        ready = {key.fd for key, _ in self.selector.select(timeout)}
        for fd in ready - {self.exit}:
            self._chunk(fd)
        return self.exit in ready

    def _chunk(self, fd: int) -> bool:
        """Whether there was something to read."""
        try:
            chunk = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            with suppress(KeyError):
                self.selector.unregister(fd)
            return False
        self.read_bytes[fd] += chunk
        if fd == self.status:
            self._report()
        return True

    def _report(self) -> None:
        """The first line that bubblewrap writes names the namespace's first process; a later one its exit code."""
        assert self.status is not None
        for line in bytes(self.read_bytes[self.status]).split(b"\n")[:-1]:
            with suppress(ValueError, TypeError, AttributeError):
                said = json.loads(line)
                self.started |= "exit-code" in said
                if self.init is None and "child-pid" in said:
                    self.init = int(said["child-pid"])
                    with suppress(ProcessLookupError):
                        self.namespace = os.pidfd_open(self.init)

    def flood(self, most: int) -> tuple[str, str] | None:
        for name, fd in zip(("stdout", "stderr"), self.ends):
            if len(self.read_bytes[fd]) > most:
                return "output", f"wrote more than {most:,} bytes to {name}"
        return None

    def over(self, limits: Any, folder: str) -> tuple[str, str] | None:
        """The limit that the program's processes are over together, as (status, reason)."""
        if self.init is None:
            return None
        pids = watch.processes(self.init)
        self.crowded |= len(pids) >= limits.processes
        if watch.memory(pids, limits.memory) > limits.memory:
            return "memory", f"held more than {limits.memory:,} bytes of memory"
        if self.namespace is not None and watch.files(self.init, folder, limits.disk_bytes) > limits.files:
            return "files", f"made more than {limits.files:,} files"
        return None

    def end(self) -> None:
        """Kills what still runs and waits until it is gone."""
        if self.namespace is not None:
            with suppress(ProcessLookupError):  # with its first process the whole namespace ends
                signal.pidfd_send_signal(self.namespace, signal.SIGKILL)
        else:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        try:
            self.process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.namespace is not None:
            select.select([self.namespace], [], [], _ENDING)

    def drain(self, most: int) -> tuple[str, str] | None:
        """Reads what is left in the pipes; what `flood` says then."""
        for fd in self.ends:
            while len(self.read_bytes[fd]) <= most and self._chunk(fd):
                pass
        return self.flood(most)

    def output(self, most: int) -> tuple[bytes, bytes]:
        stdout, stderr = (bytes(self.read_bytes[fd][:most]) for fd in self.ends[:2])
        return stdout, stderr

    def close(self) -> None:
        self.selector.close()
        for fd in (self.exit, self.namespace):
            if fd is not None:
                os.close(fd)
        assert self.process.stdout and self.process.stderr
        self.process.stdout.close()
        self.process.stderr.close()
