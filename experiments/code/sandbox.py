"""Runs programs that a model or a dataset brought: isolated, limited, and ended.

    outcome = run("print(6 * 7)")                    # Outcome(status="ok", stdout="42\\n", ...)
    outcomes = run_many([Program("print(1)"), Program("puts 2", "ruby")])

Where programs cannot be isolated nothing runs (`isolation.probe` says why), unless the caller passes
`throwaway_vm=True`: then limits hold, but the program can read and delete what its user can, and reach the network.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from experiments.code import isolation, languages
from experiments.code.follow import Seen, follow
from experiments.errors import InputError


@dataclass(frozen=True)
class Limits:
    """wall_s, cpu_s: seconds, of the whole and of each process. memory: bytes, of the whole. file_bytes, disk_bytes:
    of each file and of all. files: how many. output_bytes: of stdout and of stderr each. open_files: a process."""

    wall_s: float = 10.0
    cpu_s: int = 10
    memory: int = 512 << 20
    processes: int = 32
    file_bytes: int = 16 << 20
    disk_bytes: int = 64 << 20
    files: int = 4096
    open_files: int = 128
    output_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0 or (name != "wall_s" and value != int(value)):
                raise InputError(f"limit {name} is {value}; it must be a {'' if name == 'wall_s' else 'whole '}number"
                                 " above 0")  # fmt: skip


@dataclass(frozen=True)
class Program:
    source: str
    language: str = "python"
    stdin: str = ""


@dataclass(frozen=True)
class Outcome:
    """status: ok (exit status 0), failed (another), killed (by a signal), timeout, cpu, memory, output, files, or error
    (it could not be started: no fault of the program). reason: one line, empty for ok. seconds: of the wall clock."""

    status: str
    stdout: str
    stderr: str
    seconds: float
    reason: str = ""


def run(
    program: str,
    *,
    language: str = "python",
    stdin: str = "",
    limits: Limits = Limits(),
    throwaway_vm: bool = False,
) -> Outcome:
    """What became of `program`, given `stdin`. Raises InputError for a language that is not there, and where programs
    cannot be isolated."""
    isolated = require(throwaway_vm)
    language = languages.named(language)
    command = languages.start(language)
    source = program.encode("utf-8", "replace")
    file = languages.LANGUAGES[language].file
    with ExitStack() as stack:
        given = _held(stack, stdin.encode("utf-8", "replace"), "stdin")
        start = _walled if isolated else _bare
        process, status = start(stack, command, file, source, given, limits)
        return outcome(follow(process, status, limits, isolation.FOLDER), limits)


def run_many(
    programs: Sequence[Program],
    *,
    limits: Limits = Limits(),
    workers: int | None = None,
    throwaway_vm: bool = False,
) -> list[Outcome]:
    """What became of each program, in order; `workers` at once (default: one a core). Raises as `run` does, before the
    first is started."""
    require(throwaway_vm)
    for language in sorted({program.language for program in programs}):
        languages.start(languages.named(language))
    one = partial(_one, limits=limits, throwaway_vm=throwaway_vm)
    pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)))
    try:
        return list(pool.map(one, programs))
    finally:
        pool.shutdown(cancel_futures=True)


def _one(program: Program, limits: Limits, throwaway_vm: bool) -> Outcome:
    return run(program.source, language=program.language, stdin=program.stdin, limits=limits, throwaway_vm=throwaway_vm)


def require(throwaway_vm: bool = False) -> bool:
    """Whether programs will be isolated. Raises InputError where they cannot be and the caller does not do without."""
    reason = isolation.probe().reason
    if reason and not throwaway_vm:
        raise InputError(
            f"programs of unknown origin run only in isolation, and there is none here: {reason}. In a virtual machine "
            "that you will throw away, run without it: --throwaway-vm (in Python throwaway_vm=True)"
        )
    return reason is None


def outcome(seen: Seen, limits: Limits) -> Outcome:
    """What was seen of a program, judged."""
    status, reason = _verdict(seen, limits)
    if seen.crowded and status != "ok":
        reason += f"; it was at its limit of {limits.processes} processes"
    return Outcome(status, _text(seen.stdout), _text(seen.stderr), seen.seconds, reason)


def _verdict(seen: Seen, limits: Limits) -> tuple[str, str]:
    if seen.ended:
        return seen.ended
    last = (_text(seen.stderr).strip().splitlines() or [""])[-1][:200]
    if not seen.started and seen.code != 128 + signal.SIGKILL:
        return "error", f"the sandbox did not start: {last or f'exit status {seen.code}'}"
    if seen.code == 0:
        return "ok", ""
    number = -seen.code if seen.code < 0 else seen.code - 128
    if number == signal.SIGXCPU or (number == signal.SIGKILL and seen.seconds >= limits.cpu_s):
        return "cpu", f"a process used more than {limits.cpu_s} s of processor time"
    if number == signal.SIGXFSZ:
        return "files", f"a file grew over {limits.file_bytes:,} bytes"
    if number in set(signal.Signals):
        return "killed", f"ended by {signal.Signals(number).name}" + (f": {last}" if last else "")
    return "failed", f"exit status {seen.code}" + (f": {last}" if last else "")


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _held(stack: ExitStack, content: bytes, name: str) -> int:
    fd = isolation.in_memory(content, name)
    stack.callback(os.close, fd)
    return fd


def _walled(
    stack: ExitStack, command: Sequence[str], file: str, source: bytes, stdin: int, limits: Limits
) -> tuple[subprocess.Popen[bytes], int | None]:
    """The program behind the walls, and the fd where bubblewrap reports."""
    program = _held(stack, source, "program")
    filtered = None
    if isolation.probe().seccomp:
        filtered = isolation.filter_fd()
        stack.callback(os.close, filtered)
    status, report = os.pipe()
    stack.callback(os.close, status)
    words = [*isolation.lowered(), *isolation.walls(limits.disk_bytes, filtered)]
    words += ["--json-status-fd", str(report), "--perms", "0444", "--file", str(program), f"{isolation.FOLDER}/{file}"]
    words += ["--", *_limited(command, limits, limits.processes)]
    fds = (program, report) if filtered is None else (program, report, filtered)
    try:
        return _popen(words, stdin, pass_fds=fds), status
    finally:
        os.close(report)


def _bare(
    stack: ExitStack, command: Sequence[str], file: str, source: bytes, stdin: int, limits: Limits
) -> tuple[subprocess.Popen[bytes], int | None]:
    """The program without walls, in a folder of its own: only for machines to be thrown away. Its user's processes
    count together, so it has no limit on them."""
    folder = tempfile.mkdtemp(prefix="program-")
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    Path(folder, file).write_bytes(source)
    if isolation.becomes_nobody():
        os.chown(folder, isolation.NOBODY, isolation.NOBODY)
    words = [*isolation.lowered(), *_limited(command, limits, None)]
    return _popen(words, stdin, cwd=folder, env={**isolation.ENVIRONMENT, "HOME": folder, "TMPDIR": folder}), None


def _limited(command: Sequence[str], limits: Limits, processes: int | None) -> list[str]:
    return isolation.limited(
        command,
        processes=processes,
        cpu=int(limits.cpu_s),
        memory=int(limits.memory),
        file=int(limits.file_bytes),
        files=int(limits.open_files),
    )


def _popen(words: Sequence[str], stdin: int, **options: object) -> subprocess.Popen[bytes]:
    """Started in a session of its own, with nothing of this process's environment."""
    options = {"env": {}, **options}
    return subprocess.Popen(  # type: ignore[call-overload]
        list(words), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **options
    )
