"""What walls this machine can put around a program: bubblewrap's namespaces, and a system-call filter where it can.

Inside there is no network, no other process, no file but /usr (read-only), a /tmp of its own in memory that ends with
it, and no privilege to gain. Started by root, the program runs as `nobody`: no limit on processes holds root.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from experiments.code import languages, seccomp

FOLDER = "/tmp"  # where the program is and runs
NOBODY = 65534
ENVIRONMENT = {
    "PATH": languages.PATH,
    "HOME": FOLDER,
    "TMPDIR": FOLDER,
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUTF8": "1",
}
_SHARED_MEMORY = 16 << 20  # bytes of /dev/shm


@dataclass(frozen=True)
class Isolation:
    """reason: in one line why programs cannot be isolated here, None where they can; seccomp: with the filter, too."""

    reason: str | None
    seccomp: bool = False


@lru_cache(maxsize=1)
def probe() -> Isolation:
    """Runs `true` behind the walls, once a process, and says what held."""
    if not sys.platform.startswith("linux"):
        return Isolation(f"programs are isolated by Linux namespaces, and this is {platform.system()}")
    tools = ["bwrap", "prlimit", "choom", *(["setpriv"] if becomes_nobody() else [])]
    if missing := [name for name in tools if shutil.which(name) is None]:
        package = "bubblewrap" if "bwrap" in missing else "util-linux"
        return Isolation(f"{missing[0]} is not installed here (install the package {package})")
    failure = ""
    for filtered in [True, False] if seccomp.program() else [False]:
        code, failure = _tried(["/bin/sh", "-c", ":"], filtered)
        if code == 0:
            # A second process, where only one may be: the kernel holds its own root to no such limit.
            forks = [*languages.start("python")[:1], "-c", "import os; os.fork()"]
            if _tried(["prlimit", "--nproc=1", "--", *forks], filtered)[0] == 0:
                return Isolation("no limit on processes holds here; run as a user who is not root")
            return Isolation(None, filtered)
    return Isolation(f"bubblewrap cannot make its namespaces here ({failure}); user namespaces may be forbidden")


def _tried(command: Sequence[str], filtered: bool) -> tuple[int, str]:
    """(exit status, last line of its errors) of a command behind the walls."""
    fds = (filter_fd(),) if filtered else ()
    words = [*lowered(), *walls(1 << 20, fds[0] if fds else None), "--", *command]
    try:
        tried = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, pass_fds=fds
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, " ".join(str(error).split())
    finally:
        for fd in fds:
            os.close(fd)
    return tried.returncode, (tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"])[-1]


def filter_fd() -> int:
    """The system-call filter in a new file descriptor, for the caller to close."""
    return in_memory(seccomp.program() or b"", "filter")


def in_memory(content: bytes, name: str) -> int:
    """A file descriptor of `content` in memory, at its start, which nobody can write to any more."""
    import fcntl

    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def lowered() -> list[str]:
    """Words before a command: first to die where memory runs out, and not root."""
    words = [_path("choom"), "-n", "1000", "--"]
    if becomes_nobody():
        words += [_path("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return words


def becomes_nobody() -> bool:
    """Whether programs run as NOBODY: this process is root and can (the root of some containers knows no one else)."""
    if os.geteuid() != 0:
        return False
    with open("/proc/self/uid_map") as file:
        spans = [[int(word) for word in line.split()] for line in file]
    return any(first <= NOBODY < first + count for first, _, count in spans)


def walls(disk: int, filter: int | None) -> list[str]:
    """bubblewrap's words up to `--`. disk: bytes of FOLDER; filter: the fd of the system-call filter, None without."""
    words = [
        _path("bwrap"),
        "--unshare-all",
        "--unshare-user",
        "--uid",
        "1000",
        "--gid",
        "1000",
        "--hostname",
        "sandbox",
    ]
    words += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    for name, value in ENVIRONMENT.items():
        words += ["--setenv", name, value]
    words += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if os.path.islink(f"/{name}"):
            words += ["--symlink", f"usr/{name}", f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            words += ["--ro-bind", f"/{name}", f"/{name}"]
    for name in ("/etc/alternatives", "/etc/ld.so.cache"):
        words += ["--ro-bind-try", name, name]
    if not (languages.tool("python") or "").startswith("/usr/"):
        words += ["--ro-bind", str(languages.own_python()), str(languages.own_python())]
    words += ["--proc", "/proc", "--dev", "/dev", "--size", str(_SHARED_MEMORY), "--tmpfs", "/dev/shm"]
    words += ["--size", str(disk), "--tmpfs", FOLDER, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", FOLDER]
    return words if filter is None else [*words, "--seccomp", str(filter)]


@lru_cache(maxsize=8)
def _path(tool: str) -> str:
    return shutil.which(tool) or tool


def limited(
    command: Sequence[str], *, processes: int | None, cpu: int, memory: int, file: int, files: int
) -> list[str]:
    """The words that run `command` under the kernel's limits (setrlimit(2)); processes: None for no such limit."""
    limits = [f"--cpu={cpu}", f"--data={memory}", f"--fsize={file}", f"--nofile={files}"]
    limits += ["--core=0", f"--stack={8 << 20}:{64 << 20}", "--memlock=0", "--rtprio=0"]
    if processes is not None:
        limits.append(f"--nproc={processes}")
    return ["prlimit", *limits, "--", *command]
