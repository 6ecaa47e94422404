"""Groups of processes on loopback: started, waited for in bounded time, and killed at the end whatever happens."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 600  # of a test, for a group: on a machine that others use too


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Group:
    """`count` processes of one command line; their output in files."""

    def __init__(self, argv, count, folder, *, devices, cache, environment=None):
        folder.mkdir(parents=True)
        port = free_port()
        self.logs = [folder / f"{p}.log" for p in range(count)]
        self.processes = []
        for p in range(count):
            env = {
                **{k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "STEPSEER_S", "XLA_FLAGS"))},
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(devices),
                "JAX_COMPILATION_CACHE_DIR": str(cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "STEPSEER_CACHE": str(cache / "stepseer"),
                "STEPSEER_START_S": "120",
                "OMP_NUM_THREADS": "1",
                **(environment or {}),
            }
            if count > 1:
                env |= {
                    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(p),
                }
            with open(self.logs[p], "w") as log:
                self.processes.append(
                    subprocess.Popen([sys.executable, *argv], stdout=log, stderr=subprocess.STDOUT, env=env, cwd=ROOT)
                )

    def signal(self, p, signum):
        self.processes[p].send_signal(signum)

    def wait(self, patience_s=PATIENCE_S):
        """Exit codes, all of them."""
        deadline = time.monotonic() + patience_s
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]

    def said(self, p):
        return self.logs[p].read_text(errors="replace")

    def until(self, condition, patience_s=PATIENCE_S):
        """Returns when condition() is true."""
        deadline = time.monotonic() + patience_s
        while not condition():
            codes = [process.poll() for process in self.processes]
            assert None in codes, self.everything()
            assert time.monotonic() < deadline, self.everything()
            time.sleep(0.1)

    def everything(self):
        return "\n".join(f"--- process {p}\n{self.said(p)[-3000:]}" for p in range(len(self.processes)))


@contextlib.contextmanager
def group(argv, count, folder, **how):
    started = Group(argv, count, folder, **how)
    try:
        yield started
    finally:
        for process in started.processes:
            if process.poll() is None:
                process.kill()
        for process in started.processes:
            process.wait(30)


def lines(out):
    """How many steps the run in `out` has logged."""
    files = list(Path(out).glob("logs/*/metrics.jsonl"))
    return sum(len(file.read_bytes().splitlines()) for file in files)
