"""Programs that try to get out of the sandbox, to bring its host down, or to go on for ever.

Each prints ESCAPED where its attempt succeeds, and otherwise ends with what stopped it. Names in capitals are put in by
the test: SECRET (the path of a file of the user's), HOME (its folder), PORT and SOCKET (a TCP port and an abstract
socket that the host listens on), PID (a process of the host), PARENT (the one that runs the tests), FD (a file open
there), MARK (a number that marks what is left running).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hostile:
    """ends: the statuses that are right. bare: what limits alone do without isolation: "held", "escapes", or "not run"
    for what would harm the machine that runs the tests."""

    name: str
    source: str
    ends: tuple[str, ...] = ("failed",)
    language: str = "python"
    bare: str = "not run"


_SYSCALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    if libc.syscall(*args) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
"""

ENDLESS = ("timeout", "cpu")
PROGRAMS = [
    # --- never done ---------------------------------------------------------------------------------------------------
    Hostile("spins", "while True: pass", ENDLESS, bare="held"),
    Hostile("sleeps", "import time; time.sleep(1e6)", ("timeout",), bare="held"),
    Hostile("waits for input that never comes", "import os; os.read(os.pipe()[0], 1)", ("timeout",), bare="held"),
    Hostile(
        "ignores every signal",
        "import signal, time\nfor s in signal.valid_signals() - {9, 19}: signal.signal(s, signal.SIG_IGN)\n"
        "while True: time.sleep(1)",
        ("timeout",),
        bare="held",
    ),
    Hostile(
        "spins and ignores the processor limit",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        (*ENDLESS, "killed"),
        bare="held",
    ),
    Hostile("closes its outputs and sleeps", "import os, time; os.closerange(0, 9); time.sleep(1e6)", ("timeout",),
            bare="held"),
    Hostile("stops itself", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", ("timeout",), bare="held"),
    Hostile("spins, in bash", "while :; do :; done", ENDLESS, "bash", bare="held"),
    Hostile(
        "a chain of processes, each within the processor limit",
        "import os, time\nwhile True:\n    if os.fork(): time.sleep(0.2); os._exit(0)\n    time.sleep(0.1)",
        ("ok", "timeout"),
    ),
    Hostile(
        "leaves a process behind",
        "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        os.closerange(0, 9); os.execvp('sleep', ['sleep', 'MARK'])\n    os._exit(0)\nprint('done')",
        ("ok",),
    ),
    Hostile(
        "leaves a process behind that holds its output",
        "import os\nif os.fork() == 0:\n    os.setsid(); os.execvp('sleep', ['sleep', 'MARK'])\nprint('done')",
        ("ok",),
    ),
    # --- processes ----------------------------------------------------------------------------------------------------
    Hostile("fork bomb", "import os\nwhile True: os.fork()", ("failed", *ENDLESS, "killed")),
    Hostile(
        "fork bomb that goes on after errors",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        ENDLESS,
    ),
    Hostile("fork bomb, in bash", ":(){ :|:& };:; wait", ("failed", "ok", *ENDLESS, "killed"), "bash"),
    Hostile(
        "thread bomb",
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()",
        ("failed", "killed"),
    ),
    Hostile("kills all it can", "import os; os.kill(-1, 9); print('alone'); raise SystemExit(1)"),
    Hostile("kills its parents", "import os, signal, time\nfor pid in {os.getppid(), 1}: os.kill(pid, signal.SIGKILL)\n"
            "time.sleep(0.2); raise SystemExit('my parent lives')"),
    Hostile("kills the process that runs it", "import os; os.kill(PARENT, 9); print('ESCAPED')"),
    Hostile("kills a process of the host", "import os; os.kill(PID, 9); print('ESCAPED')"),
    Hostile("traces its parent", _SYSCALL + "call(101, 16, 1, 0, 0); print('ESCAPED')"),
    Hostile("reads another process's memory", _SYSCALL + "call(310, 1, 0, 0, 0, 0, 0); print('ESCAPED')"),
    # --- memory -------------------------------------------------------------------------------------------------------
    Hostile("memory, in one process", "held = []\nwhile True: held.append(bytearray(1 << 24))", ("failed", "memory"),
            bare="held"),
    Hostile("memory, at once", "bytearray(1 << 40)", ("failed",), bare="held"),
    Hostile(
        "memory, in many processes",
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0: break\n"
        "held = bytearray(b'x') * (60 << 20)\ntime.sleep(1e6)",
        ("memory",),
        bare="held",
    ),
    Hostile("memory, shared and anonymous", "import mmap\nheld = mmap.mmap(-1, 1 << 33)\nprint('ESCAPED')"),
    Hostile("memory, in a file without a name", "import os; os.memfd_create('held'); print('ESCAPED')"),
    Hostile("memory, of System V", _SYSCALL + "call(29, 0, 1 << 33, 0o1600); print('ESCAPED')"),
    Hostile(
        "endless recursion",
        "import sys; sys.setrecursionlimit(10**9)\ndef f(n): return [f(n + 1)] + [n]\nf(0)",
        ("failed", "killed", "memory", *ENDLESS),
        bare="held",
    ),
    Hostile("a number with a billion digits", "x = 7\nwhile True: x *= x", (*ENDLESS, "failed", "memory"), bare="held"),
    # --- disk ---------------------------------------------------------------------------------------------------------
    Hostile("one large file", "f = open('f', 'wb')\nwhile True: f.write(bytes(1 << 20))", ("failed", "files"),
            bare="held"),
    Hostile(
        "many large files",
        "import itertools\nfor k in itertools.count():\n    open(f'f{k}', 'wb').write(bytes(1 << 20))",
    ),
    Hostile(
        "many empty files", "import itertools\nfor k in itertools.count(): open(f'f{k}', 'w').close()", ("files",)
    ),
    Hostile("many links", "import os, itertools\nfor k in itertools.count(): os.symlink('x', f'l{k}')", ("files",)),
    Hostile("a file of a tebibyte, sparse", "open('f', 'wb').truncate(1 << 40); print('ESCAPED')", ("failed", "files"),
            bare="held"),
    Hostile("fills shared memory",
            "while True:\n    for k in '1234567': open('/dev/shm/' + k, 'ab').write(bytes(1 << 20))"),
    Hostile("many files open", "held = [open('/dev/null') for _ in range(10**5)]; print('ESCAPED')", bare="held"),
    Hostile("folders within folders", "import os\nwhile True: os.mkdir('d'); os.chdir('d')", ("files", "failed")),
    Hostile("writes beside the system", "open('/file', 'w'); print('ESCAPED')"),
    Hostile("writes to the system", "open('/usr/bin/file-of-mine', 'w'); print('ESCAPED')"),
    Hostile("deletes everything", "rm -rf /usr/local /dev/* SECRET HOME 2>/dev/null; ls /usr/bin >/dev/null && exit 1",
            ("failed",), "bash"),
    # --- output -------------------------------------------------------------------------------------------------------
    Hostile("floods its output", "while True: print('x' * 999)", ("output",), bare="held"),
    Hostile("floods its errors", "import sys\nwhile True: print('x' * 999, file=sys.stderr)", ("output",), bare="held"),
    Hostile("floods in one line", "import os\nwhile True: os.write(1, bytes(1 << 20))", ("output",), bare="held"),
    Hostile("floods, in bash", "yes", ("output",), "bash", bare="held"),
    Hostile(
        "floods from a process left behind",
        "import os\nif os.fork() == 0:\n    while True: os.write(1, b'x' * 4096)\nos._exit(0)",
        ("ok", "output"),
    ),
    # --- the host's files ---------------------------------------------------------------------------------------------
    Hostile("reads the user's file", "print(open('SECRET').read()); print('ESCAPED')", bare="escapes"),
    Hostile("reads it, in bash", "cat SECRET && echo ESCAPED", ("failed",), "bash", bare="escapes"),
    Hostile("writes to the user's folder", "open('HOME/new', 'w'); print('ESCAPED')"),
    Hostile("follows a link to it", "import os; os.symlink('SECRET', 'l'); open('l').read(); print('ESCAPED')",
            bare="escapes"),
    Hostile("links to it", "import os; os.link('SECRET', 'l'); print('ESCAPED')"),
    Hostile("climbs up to it", "open('../' * 40 + 'SECRET'.lstrip('/')).read(); print('ESCAPED')", bare="escapes"),
    Hostile(
        "looks for homes",
        "import os\nfound = [d for d in ('/root', '/home', '/etc/shadow', '/var', '/mnt', '/srv', '/run', '/sys')\n"
        "         if os.path.exists(d)]\nprint('ESCAPED' if found else ''); raise SystemExit('no homes')",
        bare="escapes",
    ),
    Hostile("through another process's root", "open('/proc/1/root' + 'SECRET').read(); print('ESCAPED')"),
    Hostile("through another process's folder", "open('/proc/1/cwd' + 'SECRET').read(); print('ESCAPED')"),
    Hostile(
        "through files left open",
        "import os\nfor fd in range(3, 1024):\n    try: os.fstat(fd); print('ESCAPED')\n    except OSError: pass\n"
        "raise SystemExit('no file was open')",
        bare="held",
    ),
    Hostile("through the number of an open file", "import os; os.read(FD, 9); print('ESCAPED')", bare="held"),
    Hostile("writes to its input", "open('/proc/self/fd/0', 'r+b', 0).write(b'x' * 9); print('ESCAPED')", bare="held"),
    Hostile(
        "reads other processes' environment",
        "import glob\nseen = b''\nfor f in glob.glob('/proc/[0-9]*/environ'):\n    try: seen += open(f, 'rb').read()\n"
        "    except OSError: pass\nif b'STEPSEER_SECRET' in seen: print('ESCAPED')\nraise SystemExit('no secret')",
    ),
    Hostile("opens by handle", _SYSCALL + "call(303, -100, b'/usr', ctypes.create_string_buffer(200),"
            " ctypes.create_string_buffer(8), 0); print('ESCAPED')"),
    Hostile("reads the disk", "import glob\nif glob.glob('/dev/[svn][dv]*'): print('ESCAPED')\nopen('/dev/vda')"),
    Hostile("makes a device", "import os; os.mknod('d', 0o60600, os.makedev(8, 0)); print('ESCAPED')", bare="held"),
    # --- privilege ----------------------------------------------------------------------------------------------------
    Hostile("makes a namespace of its own", _SYSCALL + "call(272, 0x10000000); print('ESCAPED')"),
    Hostile("makes one by cloning", _SYSCALL + "call(56, 0x10020011, 0, 0, 0, 0); print('ESCAPED')"),
    Hostile("mounts", _SYSCALL + "call(165, b'none', b'/tmp', b'tmpfs', 0, 0); print('ESCAPED')"),
    Hostile("changes its root", "import os; os.chroot('/usr'); print('ESCAPED')", bare="held"),
    Hostile("becomes root", "import os; os.setuid(0); print('ESCAPED')", bare="held"),
    Hostile(
        "through a program that root lends",
        "import subprocess\nfor line in ('su -c id', 'sudo -n id', 'mount -t tmpfs x /tmp'):\n"
        "    try: found = subprocess.run(line.split(), capture_output=True, stdin=-3)\n"
        "    except OSError: continue\n    if found.returncode == 0: print('ESCAPED')\nraise SystemExit('none helped')",
    ),
    Hostile("raises its limits", "import resource as r; r.setrlimit(r.RLIMIT_DATA, (-1, -1)); print('ESCAPED')",
            bare="held"),
    Hostile("escapes the end of memory", "open('/proc/self/oom_score_adj', 'wb', 0).write(b'-1000'); print('ESCAPED')",
            bare="held"),
    Hostile("names the host's crash handler", "open('/proc/sys/kernel/core_pattern', 'wb', 0).write(b'|/tmp/x')\n"
            "print('ESCAPED')", bare="held"),
    Hostile("presses the host's emergency key", "open('/proc/sysrq-trigger', 'wb', 0).write(b'h'); print('ESCAPED')",
            bare="held"),
    Hostile("types into the terminal", "import fcntl, os; fcntl.ioctl(os.open('/dev/tty', 2), 0x5412, b'x')\n"
            "print('ESCAPED')"),
    Hostile("loads a program into the kernel", _SYSCALL + "call(321, 0, 0, 0); print('ESCAPED')"),
    Hostile("uses the ring of calls", _SYSCALL + "call(425, 8, ctypes.create_string_buffer(200)); print('ESCAPED')"),
    Hostile(
        "by the calls of another architecture",
        'int main() { long r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(20)); puts("ESCAPED"); return 0; }',
        ("killed",),
        "c",
    ),
    # --- network ------------------------------------------------------------------------------------------------------
    Hostile("calls the host", "import socket; socket.create_connection(('127.0.0.1', PORT), 2); print('ESCAPED')",
            bare="escapes"),
    Hostile("calls the world", "import socket; socket.create_connection(('1.1.1.1', 53), 2); print('ESCAPED')"),
    Hostile("sends a datagram", "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', PORT))\n"
            "print('ESCAPED')", bare="escapes"),
    Hostile("asks for a name", "import socket; socket.getaddrinfo('example.org', 80); print('ESCAPED')"),
    Hostile("calls the machine's host", "import socket; socket.socket(40, 1).connect((2, 1024)); print('ESCAPED')"),
    Hostile("asks the kernel about the network", "import socket; socket.socket(16, 3, 0); print('ESCAPED')"),
    Hostile("listens to every packet", "import socket; socket.socket(17, 3, 3); print('ESCAPED')", bare="held"),
    Hostile("a local socket of the host", "import socket; socket.socket(1, 1).connect('\\0SOCKET'); print('ESCAPED')",
            bare="escapes"),
    Hostile("calls the host, in bash", "exec 3<>/dev/tcp/127.0.0.1/PORT && echo ESCAPED", ("failed",), "bash",
            bare="escapes"),
]  # fmt: skip
