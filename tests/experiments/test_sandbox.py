"""Programs are held, ended and reported; nothing runs where nothing holds it."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.code import isolation, languages, seccomp
from experiments.code.follow import Seen
from experiments.code.sandbox import Limits, Program, outcome, run, run_many
from experiments.errors import InputError
from tests.experiments.hostile import PROGRAMS

REASON = isolation.probe().reason
isolated = pytest.mark.skipif(REASON is not None, reason=f"no isolation: {REASON}")
linux = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not all(map(shutil.which, ("prlimit", "choom", "setpriv"))),
    reason="the limits are those of Linux, set by util-linux",
)
LIMITS = Limits(
    wall_s=1.5, cpu_s=1, memory=128 << 20, processes=16, file_bytes=4 << 20, disk_bytes=16 << 20, files=500,
    output_bytes=1 << 16,
)  # fmt: skip
PATIENT = replace(LIMITS, wall_s=15.0, cpu_s=10)  # for what ends by itself, however slow the machine
MARK = f"86399.{os.getpid():07}"  # of this process: others may be running the same tests
NO_WALLS = isolation.Isolation("there are no user namespaces")


@pytest.fixture(scope="module")
def host():
    """What hostile programs look for: a user's file, a process, a port, a socket, an open file. Yields name -> text."""
    home = Path(tempfile.mkdtemp(prefix="home-"))
    home.chmod(0o755)
    secret = home / "secret"
    secret.write_text("the user's own words")
    os.environ["STEPSEER_SECRET"] = "secret"
    victim = subprocess.Popen(["sleep", "1000"])
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as server,
        closing(socket.socket(socket.AF_UNIX)) as local,
        secret.open() as file,
    ):
        os.set_inheritable(file.fileno(), True)
        local.bind(f"\0stepseer-{os.getpid()}")
        local.listen()
        yield {
            "SECRET": str(secret),
            "HOME": str(home),
            "PORT": str(server.getsockname()[1]),
            "SOCKET": f"stepseer-{os.getpid()}",
            "PID": str(victim.pid),
            "PARENT": str(os.getpid()),
            "FD": str(file.fileno()),
            "MARK": MARK,
        }
        alive = victim.poll() is None
    victim.kill()
    victim.wait()
    del os.environ["STEPSEER_SECRET"]
    shutil.rmtree(home)
    assert alive


def _source(hostile, host):
    source = hostile.source
    for name, value in host.items():
        source = source.replace(name, value)
    return "#include <stdio.h>\n" + source if hostile.language == "c" else source


def _limits(hostile):
    return LIMITS if "timeout" in hostile.ends else PATIENT


def _digest(folder):
    files = sorted(Path(folder).rglob("*"))
    return hashlib.sha256(repr([(str(f), f.lstat().st_mtime_ns, f.read_bytes()) for f in files]).encode()).hexdigest()


def _left_running():
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if MARK.encode() in (folder / "cmdline").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


def _only_on(hostile):
    if languages.tool(hostile.language) is None:
        pytest.skip(f"{hostile.language} is not installed")
    if "call(" in hostile.source or hostile.language == "c":
        if seccomp.program() is None or os.uname().machine != "x86_64":
            pytest.skip("its system calls are those of x86-64")
        if not isolation.probe().seccomp:
            pytest.skip("no system-call filter here")


@isolated
@pytest.mark.parametrize("hostile", PROGRAMS, ids=lambda hostile: hostile.name)
def test_hostile_programs_are_held_and_the_reason_is_told(hostile, host):
    _only_on(hostile)
    before = _digest(host["HOME"])
    found = run(_source(hostile, host), language=hostile.language, limits=_limits(hostile))
    assert "ESCAPED" not in found.stdout
    assert found.status in hostile.ends, found.reason
    assert (found.reason == "") == (found.status == "ok")
    assert "\n" not in found.reason
    assert len(found.stdout) <= LIMITS.output_bytes and len(found.stderr) <= LIMITS.output_bytes
    assert found.seconds < _limits(hostile).wall_s + 10
    assert _digest(host["HOME"]) == before
    assert not _left_running()


@linux
@pytest.mark.skipif(
    not os.environ.get("STEPSEER_THROWAWAY_VM"),
    reason="runs hostile programs without walls: set STEPSEER_THROWAWAY_VM=1 where nothing can be lost",
)
@pytest.mark.skipif(
    sys.platform.startswith("linux") and os.geteuid() == 0 and not isolation.becomes_nobody(),
    reason="root that cannot become nobody may do all",
)
@pytest.mark.parametrize("hostile", [p for p in PROGRAMS if p.bare != "not run"], ids=lambda hostile: hostile.name)
def test_without_isolation_limits_hold_and_nothing_else_does(hostile, host, monkeypatch):
    """What a person who passes throwaway_vm is left with: this is why nothing runs without it."""
    if languages.tool(hostile.language) is None:
        pytest.skip(f"{hostile.language} is not installed")
    monkeypatch.setattr(isolation, "probe", lambda: NO_WALLS)
    found = run(_source(hostile, host), language=hostile.language, limits=_limits(hostile), throwaway_vm=True)
    assert ("ESCAPED" in found.stdout) == (hostile.bare == "escapes")
    if hostile.bare == "held":
        assert found.status in hostile.ends, found.reason


def test_the_suite_is_large():
    assert len(PROGRAMS) >= 40
    assert len({p.name for p in PROGRAMS}) == len(PROGRAMS)


def test_nothing_runs_without_isolation(monkeypatch, tmp_path):
    monkeypatch.setattr(isolation, "probe", lambda: NO_WALLS)
    touched = tmp_path / "touched"
    program = f"open({str(touched)!r}, 'w')"
    for call in (lambda: run(program), lambda: run_many([Program(program)])):
        with pytest.raises(InputError, match=r"no user namespaces.*--throwaway-vm") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not touched.exists()


@pytest.mark.parametrize(
    "lacking, said", [("bwrap", "bwrap is not installed"), ("prlimit", "prlimit is not installed")]
)
def test_the_probe_names_what_is_missing(monkeypatch, lacking, said):
    if not sys.platform.startswith("linux"):
        pytest.skip("Linux")
    monkeypatch.setattr(isolation.shutil, "which", lambda name: None if name == lacking else f"/usr/bin/{name}")
    assert said in isolation.probe.__wrapped__().reason


@linux
def test_the_probe_tells_why_namespaces_fail(monkeypatch):
    words = ["/bin/sh", "-c", "echo 'bwrap: No permissions to create new namespace' >&2; exit 1"]
    monkeypatch.setattr(isolation.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(isolation, "lowered", lambda: words)
    reason = isolation.probe.__wrapped__().reason
    assert "No permissions to create new namespace" in reason and "\n" not in reason


@linux
def test_the_probe_refuses_where_processes_are_not_limited(monkeypatch):
    monkeypatch.setattr(isolation.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(isolation, "_tried", lambda command, filtered: (0, ""))
    assert "no limit on processes" in isolation.probe.__wrapped__().reason


@isolated
def test_programs_end_with_the_process_that_runs_them():
    command = f"from experiments.code.sandbox import *; run('exec sleep {MARK}', language='bash')"
    runner = subprocess.Popen([sys.executable, "-c", command])
    _until(lambda: len(_left_running()) > 1)  # the runner names it, too
    runner.kill()
    runner.wait()
    _until(lambda: not _left_running())


def _until(true):
    for _ in range(100):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come to pass in 10 s")


@isolated
def test_output_input_and_status_are_reported():
    assert run("print(input() + '!')", stdin="häй\n").stdout == "häй!\n"
    found = run("import sys; print('out'); sys.exit('wrong')")
    assert (found.status, found.stdout, found.stderr) == ("failed", "out\n", "wrong\n")
    assert found.reason == "exit status 1: wrong"
    assert run("import os; os.kill(os.getpid(), 11)").reason == "ended by SIGSEGV"
    large = "x" * (1 << 18)
    assert run("import sys; sys.stdout.write(sys.stdin.read())", stdin=large).stdout == large
    assert run("").status == "ok"


@isolated
@pytest.mark.parametrize("language", languages.installed())
def test_every_installed_language_runs(language):
    source = {
        "python": "print(6 * 7)",
        "javascript": "console.log(6 * 7)",
        "bash": "echo $((6 * 7))",
        "perl": "print 6 * 7, qq(\\n)",
        "ruby": "puts 6 * 7",
        "lua": "print(6 * 7)",
        "c": '#include <stdio.h>\nint main() { printf("%d\\n", 6 * 7); }',
        "c++": "#include <iostream>\nint main() { std::cout << 6 * 7 << std::endl; }",
    }[language]
    assert run(source, language=language).stdout == "42\n"


@isolated
def test_many_run_at_once_in_order():
    found = run_many([Program("print(input())", stdin=str(k)) for k in range(24)], workers=4)
    assert [o.stdout for o in found] == [f"{k}\n" for k in range(24)]


@isolated
def test_nothing_is_left_of_a_run(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # others use the machine's
    before = (set(os.listdir("/proc/self/fd")), set(os.listdir(tmp_path)))
    run("open('f', 'w').write('x')")
    run("import time; time.sleep(99)", limits=Limits(wall_s=0.3))
    assert (set(os.listdir("/proc/self/fd")), set(os.listdir(tmp_path))) == before


def test_bad_input_is_named():
    with pytest.raises(InputError, match="memory is 0"):
        Limits(memory=0)
    with pytest.raises(InputError, match=r"cpu_s is 1\.5"):
        Limits(cpu_s=1.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="language is 'cobol'"):
        languages.named("cobol")


@pytest.mark.parametrize(
    "seen, status, reason",
    [
        (Seen(0, b"", b"", 1.0, None, True, False), "ok", ""),
        (Seen(3, b"", b"a\nb\n", 1.0, None, True, False), "failed", "exit status 3: b"),
        (Seen(137, b"", b"", 1.0, None, True, False), "killed", "ended by SIGKILL"),
        (Seen(-9, b"", b"", 1.0, None, True, False), "killed", "ended by SIGKILL"),
        (Seen(152, b"", b"", 1.0, None, True, False), "cpu", "a process used more than 10 s of processor time"),
        (Seen(1, b"", b"bwrap: x\n", 1.0, None, False, False), "error", "the sandbox did not start: bwrap: x"),
        (Seen(137, b"", b"", 1.0, ("timeout", "t"), True, False), "timeout", "t"),
        (Seen(1, b"", b"", 1.0, None, True, True), "failed", "exit status 1; it was at its limit of 32 processes"),
    ],
)
def test_verdicts(seen, status, reason):
    found = outcome(seen, Limits())
    assert (found.status, found.reason) == (status, reason)


def test_the_filter_is_whole_instructions_and_every_jump_lands():
    import struct

    for machine in ("x86_64", "aarch64"):
        code = list(struct.iter_unpack("<HBBI", seccomp.program(machine)))
        for k, (kind, yes, no, _) in enumerate(code):
            assert kind != 0x15 or (k + 1 + yes < len(code) and k + 1 + no < len(code))
        assert code[-1] == (0x06, 0, 0, 0x7FFF0000)
    assert seccomp.program("m68k") is None
