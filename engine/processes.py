"""Several processes as one run: what they agree on, who lags, and how all end when one is lost.

Every process runs the same program on its part of the devices. So whatever a clock, a signal or a disk decides, process
0 decides for all (`Group.agree`), through the coordination service of `jax.distributed`, never by a collective: one
that a process does not join hangs the others for good. `watch` is the timeout of every wait here: a thread that tells
the others where its process is, reads where they are, names who lags, and ends the process when one is lost.

In a run of one process all of this does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine import memory
from engine.errors import require

log = logging.getLogger("stepseer.engine")

EXIT_CODE = 75  # EX_TEMPFAIL: a process of the run was lost; the same command goes on
BEAT_S = 1.0
STAY_S = 10.0  # that process 0, which ends, waits for the others to hear why: they can't once it is gone
REMEMBERED = 1000  # agreements that stay readable for processes that are behind
GO_ON = "the same command, on all hosts, goes on from the last checkpoint"


@dataclass(frozen=True)
class Limits:
    """Seconds until something is done about a process; of the environment STEPSEER_SLOW_S and so on."""

    slow_s: float = 30.0  # without a sign of life, or behind the others: it is named
    lost_s: float = 120.0  # without a sign of life: all end
    hang_s: float = 1800.0  # of nobody getting on, or of one that is behind: all end

    @classmethod
    def of_environment(cls) -> Limits:
        found = {}
        for name in ("slow_s", "lost_s", "hang_s"):
            text = os.environ.get(f"STEPSEER_{name.upper()}")
            if text:
                require(
                    text.replace(".", "", 1).isdigit() and float(text) > 0,
                    f"STEPSEER_{name.upper()} is {text!r}; give seconds, above 0",
                )
                found[name] = float(text)
        return cls(**found)


@dataclass
class Seen:
    """What is known of a process, and for how long nothing of it has changed."""

    host: str = "a host unknown"
    beat: int = -1
    count: int = 0  # of places that it has come to: the same places in the same order on all
    place: str = "the start"
    wish: int = 0  # a signal number: it was asked to stop
    end: tuple[int, str] | None = None  # exit code and last line of one that ended
    silent_s: float = 0.0
    still_s: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What to do: warn of `slow` processes; or end, with a line and an exit code."""

    slow: Mapping[int, str] = field(default_factory=dict)
    end: str = ""
    code: int = EXIT_CODE


def judge(seen: Mapping[int, Seen], me: int, limits: Limits) -> Verdict:
    """What `me` makes of the processes that it sees, itself among them. A pure function."""
    for p, one in seen.items():
        if p != me and one.end is not None and one.end[0]:
            return Verdict(end=f"{_name(p, one)} ended: {one.end[1]}", code=one.end[0])
    running = {p: one for p, one in seen.items() if one.end is None}
    for p, one in running.items():
        if p != me and one.silent_s > limits.lost_s:
            return Verdict(end=f"{_name(p, one)} has not answered for {one.silent_s:.0f} s; {GO_ON}")
    ahead = max((one.count for one in running.values()), default=0)
    front = next((one.place for one in running.values() if one.count == ahead), "")
    slow = {}
    for p, one in running.items():
        silent = f"has not answered for {one.silent_s:.0f} s"
        if one.count < ahead and one.still_s > limits.slow_s:
            also = f" and {silent}" if one.silent_s > 3 * BEAT_S else ""
            slow[p] = (
                f"{_name(p, one)} has been at {one.place} for {one.still_s:.0f} s{also}; the others wait at {front}"
            )
        elif one.silent_s > limits.slow_s:
            slow[p] = f"{_name(p, one)} {silent} (it was at {one.place})"
        if slow.get(p) and one.still_s > limits.hang_s:
            return Verdict(end=f"{slow[p]}; {GO_ON}")
    if running and min(one.still_s for one in running.values()) > limits.hang_s:
        return Verdict(end=f"nothing has moved for {limits.hang_s:.0f} s: all are at {front}; {GO_ON}")
    return Verdict(slow)


def _name(p: int, one: Seen) -> str:
    return f"process {p} on {one.host}"


class Group:
    """The processes of a run. `current` makes it."""

    def __init__(self, client: Any, index: int, count: int):
        self._client, self.index, self.count = client, index, count
        self._agreed = self._gathered = 0
        self._mine = Seen(host=socket.gethostname())
        self._others: dict[int, Seen] = {}
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._over = False
        self._told = False  # the own end has reached process 0
        self._limits = Limits.of_environment()

    @property
    def lead(self) -> bool:
        """True on the one that writes and prints."""
        return self.index == 0

    def agree(self, value: Any) -> Any:
        """Process 0's value (JSON) on all. Called by all, as often as each other."""
        if self.count == 1:
            return value
        self._agreed += 1
        key = f"stepseer/agreed/{self._agreed}"
        if not self.lead:
            return json.loads(self._wait_for(key))
        self._client.key_value_set(key, json.dumps(value))
        if self._agreed > REMEMBERED:
            self._client.key_value_delete(f"stepseer/agreed/{self._agreed - REMEMBERED}")
        return json.loads(json.dumps(value))

    def gather(self, value: Any) -> list[Any]:
        """The values (JSON) of all processes, in order, on all."""
        if self.count == 1:
            return [value]
        self._gathered += 1
        folder = f"stepseer/gathered/{self._gathered}"
        self._client.key_value_set(f"{folder}/{self.index}", json.dumps([value, self._mine.count]))
        found = [json.loads(self._wait_for(f"{folder}/{p}")) for p in range(self.count)]
        if self.lead:  # whoever has come here has read those before
            self._client.key_value_delete(f"stepseer/gathered/{self._gathered - 1}")
        self._mine.count = max(count for _, count in found)  # one that failed had left places out
        return [value for value, _ in found]

    def _wait_for(self, key: str) -> str:
        """As long as it takes: the watch ends the process when whom it waits for is lost."""
        while True:
            try:
                return self._client.blocking_key_value_get(key, 5000)
            except Exception as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    def at(self, place: str) -> None:
        """Says where this process is: the next of the places that all come to."""
        self._mine.count += 1
        self._mine.place = place
        self._mine.still_s = 0.0

    def told_to_stop(self, request: BaseException | None) -> int:
        """The number of the signal by which a process was asked to stop, as far as this one knows; 0: none was.
        request: what this process wants to end with."""
        wish = 0 if request is None else getattr(request, "signum", signal.SIGTERM)
        if self.count == 1:
            return wish
        if wish and not self._mine.wish:
            self._mine.wish = wish
            self._wake.set()
        return next((one.wish for one in (self._mine, *self._others.values()) if one.wish), 0)

    def suspect(self) -> None:
        """Called where training failed: a lost process breaks the others' collectives. Waits until it is named, which
        ends this process; returns if nobody is missing: the error is the program's own."""
        self._limits = Limits(slow_s=1e9, lost_s=5 * BEAT_S, hang_s=1e9)
        time.sleep(8 * BEAT_S)
        self._limits = Limits.of_environment()

    def leave(self, code: int, line: str) -> None:
        """Last words of a process that ends before its time; the others end with them, and with its exit code."""
        if self.count == 1:
            return
        self._over = True
        self._mine.end = (code, line)
        self._wake.set()
        deadline = time.monotonic() + STAY_S
        while time.monotonic() < deadline and self._thread is not None and self._thread.is_alive():
            if self._others_gone() if self.lead else self._told:
                break
            time.sleep(0.1)

    def _others_gone(self) -> bool:
        """Whether no other process beats any more. JAX aborts those that are left when process 0 goes."""
        return bool(self._others) and all(one.silent_s > 3 * BEAT_S for one in self._others.values())

    # --- the watch ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """While this lasts, the process shows signs of life and looks after the others'. May be nested."""
        if self.count == 1 or self._thread is not None:
            yield
            return
        self._over = False
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()
        try:
            with last_words(self._why_aborted):
                yield
        finally:
            self._over, thread = True, self._thread
            self._wake.set()
            if self._mine.end is None:
                thread.join()
                self._thread = None

    def _why_aborted(self) -> str:
        """What JAX aborts the others for is that process 0 is gone; process 0 itself, that messages broke off."""
        if self.lead:
            self.suspect()
            return f"messages between the processes broke off (above); {GO_ON}"
        return f"{_name(0, self._others.get(0, Seen()))}, where all meet, was lost, or has given up (above); {GO_ON}"

    def _look(self) -> None:
        self._others = {p: Seen() for p in range(self.count) if p != self.index}
        named: set[int] = set()
        last = time.monotonic()
        while not (self._over and self._mine.end is None):
            self._wake.wait(BEAT_S)
            self._wake.clear()
            now = time.monotonic()
            try:
                self._exchange(now - last)
            except Exception as error:  # whatever the service's client raises
                if not self._over:
                    end_now(EXIT_CODE, f"process 0, where all meet, does not answer ({error!s:.100}); {GO_ON}")
                return
            last = now
            verdict = judge({self.index: self._mine, **self._others}, self.index, self._limits)
            if verdict.end and not self._over:
                self._end(verdict, now)
            if self.index == min({self.index, *self._others} - set(verdict.slow), default=0):
                for p in verdict.slow.keys() - named:
                    log.warning("%s", verdict.slow[p])
                for p in named - verdict.slow.keys():
                    log.warning("%s goes on", _name(p, self._others.get(p, self._mine)))
            named = set(verdict.slow)

    def _end(self, verdict: Verdict, last: float) -> None:
        """Ends this process; process 0 after the others, which read and judge for themselves."""
        deadline = last + STAY_S
        while self.lead and not self._others_gone() and time.monotonic() < deadline:
            time.sleep(BEAT_S)
            now = time.monotonic()
            with contextlib.suppress(Exception):  # it ends anyway
                self._exchange(now - last)
            last = now
        end_now(verdict.code, verdict.end)

    def _exchange(self, passed_s: float) -> None:
        """Own beat out, the others' in."""
        mine = self._mine
        mine.beat += 1
        for one in (mine, *self._others.values()):
            one.silent_s += passed_s if one is not mine else 0.0
            one.still_s += passed_s
        beat = [mine.host, mine.beat, mine.count, mine.place, mine.wish, mine.end]
        self._client.key_value_set(f"stepseer/beat/{self.index}", json.dumps(beat), True)
        self._told = beat[-1] is not None
        for key, text in self._client.key_value_dir_get("stepseer/beat/"):
            p = int(key.rpartition("/")[2])
            if p != self.index:
                host, number, count, place, wish, end = json.loads(text)
                old = self._others[p]
                silent_s = 0.0 if number != old.beat else old.silent_s
                still_s = 0.0 if count != old.count else old.still_s
                self._others[p] = Seen(host, number, count, place, wish, end and tuple(end), silent_s, still_s)


def end_now(code: int, line: str) -> None:
    """Ends the process from any thread: the main one may hang in a collective, for good."""
    print(f"stepseer: {' '.join(line.split())}", file=sys.stderr, flush=True)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(code)


@contextlib.contextmanager
def last_words(line: Callable[[], str]) -> Iterator[None]:
    """JAX ends a process by abort() as soon as process 0 is gone, before Python hears of it: one clear line then, and
    the exit code of a lost process, from a handler below Python's own, which would wait for the main thread."""

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handle(_: int) -> None:
        end_now(EXIT_CODE, line())

    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    before = libc.signal(signal.SIGABRT, ctypes.cast(handle, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)


@functools.cache
def _group(client: Any, index: int, count: int) -> Group:
    return Group(client, index, count)


def current() -> Group:
    """The group that this process is in: of itself alone, unless `jax.distributed` was initialized before."""
    from jax._src import distributed  # its client has no public name; Orbax and multihost_utils take it so

    state = distributed.global_state
    return _group(state.client, state.process_id, state.num_processes if state.client is not None else 1)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Watched."""
    with current().watch():
        yield


@contextlib.contextmanager
def suspecting() -> Iterator[None]:
    """Finds out whether what fails within is another process; devices or their messages that fail end all, too."""
    import jax

    group = current()
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if group.count > 1 and not memory.ran_out(error):
            group.suspect()
            line = f"training failed: {' '.join(str(error).split()):.300}; {GO_ON}"
            group.leave(EXIT_CODE, line)
            end_now(EXIT_CODE, line)
        raise


def same(values: Mapping[str, Any]) -> None:
    """Raises InputError where a process has other values (JSON) than process 0."""
    group = current()
    if group.count == 1:
        return
    digests = {name: hashlib.blake2b(json.dumps(v).encode(), digest_size=8).hexdigest() for name, v in values.items()}
    first, *others = group.gather(digests)
    for p, other in enumerate(others, start=1):
        for name in values:
            require(
                other[name] == first[name],
                f"process {p} has other {name} than process 0; run the same command with the same files on all hosts",
            )
