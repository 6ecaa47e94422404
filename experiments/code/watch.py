"""Looks at a running namespace from outside: its processes, the memory they hold, the files they made."""

from __future__ import annotations

import os


def processes(init: int) -> list[int]:
    """`init`, the first process of a namespace, and all below it; orphans come back to it, so none is missed."""
    found, todo = [], [init]
    while todo:
        pid = todo.pop()
        found.append(pid)
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for thread in threads:
            todo += [int(word) for word in _read(f"/proc/{pid}/task/{thread}/children").split()]
    return found


def memory(pids: list[int], enough: int) -> int:
    """Bytes of memory that processes hold. Below `enough` a page counts once for each that shares it; above, once."""
    resident = sum(_resident(pid) for pid in pids)
    return resident if resident < enough else sum(_proportional(pid) for pid in pids)


def files(init: int, folder: str, disk: int) -> int:
    """Files that are in `folder` of the namespace, a file system of its own of `disk` bytes; 0 where it cannot be seen,
    or is not there yet."""
    try:
        found = os.statvfs(f"/proc/{init}/root{folder}")
    except OSError:
        return 0
    if found.f_blocks * found.f_frsize > disk + os.sysconf("SC_PAGE_SIZE"):
        return 0
    return found.f_files - found.f_ffree


def _resident(pid: int) -> int:
    words = _read(f"/proc/{pid}/statm").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if words else 0


def _proportional(pid: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return _resident(pid)


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
