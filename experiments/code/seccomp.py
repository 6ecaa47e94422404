"""The sandbox's system-call filter, as the classic BPF that bubblewrap loads (seccomp(2), linux/seccomp.h).

It forbids what a small program does not need and what would reach past the namespaces or past the memory that is
counted: new namespaces, mounts, other processes' memory, kernel keyrings, BPF, io_uring; every socket family but the
local one (AF_VSOCK, for one, is not held by a network namespace); and memory that no limit sees (memfd, System V and
POSIX queues, anonymous shared maps). A forbidden call fails with EPERM: the program goes on and sees the error.
"""

from __future__ import annotations

import platform
import struct

# name -> (x86-64, arm64), from asm/unistd_64.h and asm-generic/unistd.h
_FORBIDDEN = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "request_key": (249, 218),
    "semget": (64, 190),
    "setns": (308, 268),
    "shmget": (29, 194),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_CLONE, _CLONE3, _SOCKET, _MMAP, _IOCTL = (56, 220), (435, 435), (41, 198), (9, 222), (16, 29)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
_AF_UNIX = 1
_SHARED_ANONYMOUS = 0x21  # MAP_SHARED | MAP_ANONYMOUS
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NR, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data


def program(machine: str | None = None) -> bytes | None:
    """The filter for `machine` (default: this one's `platform.machine()`); None for one whose calls are not known."""
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        return None
    column, audit = _ARCHITECTURES[machine]
    code = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NR)]
    if machine == "x86_64":  # the x32 calls, which have numbers of their own
        code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    for numbers in _FORBIDDEN.values():
        code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    # Its flags are in memory, where a filter cannot look; told that it is missing, the C library uses clone.
    code += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    code += _call(_CLONE[column], 0, [(_AND, 0, 0, _NEW_NAMESPACES), (_EQUAL, 1, 0, 0), _refuse(_EPERM)])
    code += _call(_SOCKET[column], 0, [(_EQUAL, 1, 0, _AF_UNIX), _refuse(_EAFNOSUPPORT)])
    shared = [(_AND, 0, 0, _SHARED_ANONYMOUS), (_EQUAL, 0, 1, _SHARED_ANONYMOUS), _refuse(_EPERM)]
    code += _call(_MMAP[column], 3, shared)
    code += _call(_IOCTL[column], 1, [line for k in _TERMINAL_INPUT for line in ((_EQUAL, 0, 1, k), _refuse(_EPERM))])
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *line) for line in code)


def _refuse(errno: int) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, _ERRNO | errno)


def _call(number: int, argument: int, checks: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """If the call is `number`: `checks` on the low half of an argument; where none refuses, the call is allowed."""
    body = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), *checks, (_RETURN, 0, 0, _ALLOW)]
    return [(_EQUAL, 0, len(body), number), *body]
