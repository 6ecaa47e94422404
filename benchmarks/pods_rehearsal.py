"""The files of `stepseer tpu launch`, run on two hosts that are network namespaces of this machine.

    sudo python -m benchmarks.pods_rehearsal            # every place; or name some: jobset-gpu slurm ...

Each host has an address and a name of its own on a bridge; what a platform does (variables of a pod, srun's, docker's)
is done here by a few lines, the rest is what the file says: its command line, its environment, its shell. A place
passes when the run ends with exit code 0, its checkpoint is of the last step, and its run table is whole. CPU devices
stand for the accelerators. Needs root and iproute2 on Linux. Writes benchmarks/pods_rehearsal.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from experiments import store
from tests.multiprocess import recipe
from tpu import description, launch

ROOT = Path(__file__).resolve().parents[1]
HOSTS = ("stepseer-a", "stepseer-b")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
PATIENCE_S = 600
JOB = """
name = "rehearsal"
command = "{command}"
topology = "{topology}"
image = "registry.example/stepseer:0.1.0"
out = "{out}"
volume = "results"
bucket = "gs://results"
project = "my-project"
zone = "us-west4-a"
[env]
JAX_PLATFORMS = "cpu"
JAX_NUM_CPU_DEVICES = "2"
TPU_SKIP_MDS_QUERY = "1"
"""
TRAIN = "train tests/multiprocess/recipe.py:model --keep-every 40"
SWEEP = "sweep run tests/multiprocess/recipe.py:grid"


@contextlib.contextmanager
def network(names: dict[str, str]) -> Iterator[None]:
    """Two namespaces on a bridge. names: of hosts, to addresses, that both know."""
    run = lambda *words: subprocess.run(words, check=True)  # noqa: E731
    try:
        run("ip", "link", "add", "stepseer-br", "type", "bridge")
        run("ip", "link", "set", "stepseer-br", "up")
        for i, (host, address) in enumerate(zip(HOSTS, ADDRESSES)):
            run("ip", "netns", "add", host)
            run("ip", "link", "add", f"stepseer-{i}", "type", "veth", "peer", "name", "eth0", "netns", host)
            run("ip", "link", "set", f"stepseer-{i}", "master", "stepseer-br", "up")
            run("ip", "-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", host, "link", "set", "eth0", "up")
            run("ip", "-n", host, "link", "set", "lo", "up")
            known = {host: address, **names, "localhost": "127.0.0.1"}
            folder = Path("/etc/netns") / host
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text("".join(f"{a} {name}\n" for name, a in known.items()))
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], stderr=subprocess.DEVNULL)
            shutil.rmtree(Path("/etc/netns") / host, ignore_errors=True)
        subprocess.run(["ip", "link", "del", "stepseer-br"], stderr=subprocess.DEVNULL)


class Hosts:
    """Starts command lines on the two hosts and waits for them."""

    def __init__(self, folder: Path, cache: Path):
        """cache: of each host its own in it, for all places."""
        self.folder, self.cache = folder, cache
        self.bin = folder / "bin"
        self.bin.mkdir()
        # On a host: its network and its name, by which CPU devices find each other.
        enter = 'exec ip netns exec "${nodes[$1]}" unshare --uts bash -c'
        self.program(
            "on-host",
            f"""nodes=({" ".join(HOSTS)})\n{enter} 'hostname "$0"; shift; exec "$@"' "${{nodes[$1]}}" "$@" """,
        )
        self.program("stepseer", f'exec {sys.executable} -m experiments "$@"')
        self.started: list[subprocess.Popen[bytes]] = []

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!/bin/bash\n{text}\n")
        (self.bin / name).chmod(0o755)

    def start(self, host: int, argv: list[str], environment: dict[str, str], name: str) -> None:
        keep = {k: os.environ[k] for k in ("HOME", "LANG") if k in os.environ}
        env = keep | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "STEPSEER_CACHE": str(self.cache / str(host)),
            **environment,
        }
        log = open(self.folder / f"{name}.log", "w")  # noqa: SIM115 - the process's
        words = [str(self.bin / "on-host"), str(host), *argv]
        self.started.append(subprocess.Popen(words, env=env, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT))

    def wait(self) -> list[int | None]:
        """Exit codes; None of one that did not end."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and any(p.poll() is None for p in self.started):
            time.sleep(0.2)
        codes = [p.poll() for p in self.started]
        for p in self.started:
            p.kill()
        return codes


def jobset(hosts: Hosts, made: dict[str, str], on_tpu: bool) -> None:
    """As Kubernetes reads it: $(NAME) from variables before, annotations of the pod; on GKE's TPU nodes, their two."""
    job = yaml.safe_load(made["jobset.yaml"])["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert job["completions"] == job["parallelism"] == len(HOSTS)
    for host in range(len(HOSTS)):
        annotations = {
            "jobset.sigs.k8s.io/job-index": "0",
            "batch.kubernetes.io/job-completion-index": str(host),
        }
        env: dict[str, str] = {}
        for one in container["env"]:
            if "valueFrom" in one:
                path = one["valueFrom"]["fieldRef"]["fieldPath"]
                env[one["name"]] = annotations[re.fullmatch(r"metadata.annotations\['(.*)'\]", path)[1]]  # type: ignore[index]
            else:
                env[one["name"]] = expanded(one["value"], env)
        if on_tpu:
            env |= {"TPU_WORKER_HOSTNAMES": ",".join(f"{PODS[i]}" for i in range(2)), "TPU_WORKER_ID": str(host)}
        hosts.start(host, [expanded(word, env) for word in container["command"]], env, f"pod-{host}")


def expanded(text: str, env: dict[str, str]) -> str:
    return re.sub(r"(?<!\$)\$\((\w+)\)", lambda m: env.get(m[1], m[0]), text).replace("$$(", "$(")


PODS = ("rehearsal-group-0-0.rehearsal", "rehearsal-group-0-1.rehearsal")


def slurm(hosts: Hosts, made: dict[str, str]) -> None:
    """The batch script on the first host; srun starts a task on each."""
    hosts.program(
        "srun",
        f"""while [[ "$1" == --* ]]; do shift; done
pids=()
for i in 0 1; do
  SLURM_STEP_NODELIST='stepseer-[a-b]' SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=0 SLURM_STEP_NUM_NODES=2 \\
    STEPSEER_CACHE={hosts.cache}/$i on-host $i "$@" >{hosts.folder}/task-$i.log 2>&1 &
  pids+=($!)
done
code=0
for pid in "${{pids[@]}}"; do wait "$pid" || code=$?; done
exit "$code" """,
    )
    hosts.program("scontrol", "exit 1")
    script = hosts.folder / "slurm.sh"
    script.write_text(made["slurm.sh"])
    hosts.start(0, ["bash", str(script)], {"SLURM_JOB_ID": "12345"}, "slurm")


def skypilot(hosts: Hosts, made: dict[str, str]) -> None:
    """The task's `run`, as SkyPilot starts it on every node."""
    task = yaml.safe_load(made["skypilot.yaml"])
    assert task["num_nodes"] == len(HOSTS)
    for host in range(len(HOSTS)):
        env = task["envs"] | {
            "SKYPILOT_NODE_IPS": "\n".join(ADDRESSES),
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": str(host),
        }
        hosts.start(host, ["bash", "-c", task["run"]], env, f"node-{host}")


def queued_resources(hosts: Hosts, made: dict[str, str]) -> None:
    """`run`: gcloud hands its command to every worker, where docker runs it. The metadata server's answer, who the
    workers are, is set by the stand-in of docker: there is none here."""
    hosts.program("sudo", 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"')
    hosts.program("mountpoint", "exit 0")
    hosts.program(
        "docker",
        """[ "$1" = run ] && shift
while [[ "$1" == --* ]]; do
  if [ "$1" = --env ]; then export "$2"; shift; fi
  shift
done
shift
exec "$@" """,
    )
    hosts.program(
        "gcloud",
        f"""for word in "$@"; do [[ "$word" == --command=* ]] && command="${{word#--command=}}"; done
[[ "$*" == *--worker=all* ]] || exit 1
pids=()
for i in 0 1; do
  TPU_WORKER_HOSTNAMES={",".join(ADDRESSES)} TPU_WORKER_ID=$i STEPSEER_CACHE={hosts.cache}/$i \\
    on-host $i bash -c "$command" >{hosts.folder}/worker-$i.log 2>&1 &
  pids+=($!)
done
code=0
for pid in "${{pids[@]}}"; do wait "$pid" || code=$?; done
exit "$code" """,
    )
    script = hosts.folder / "queued-resources.sh"
    script.write_text(made["queued-resources.sh"])
    hosts.start(0, ["bash", str(script), "run"], {}, "gcloud")


PLACES: dict[str, tuple[str, str, Any]] = {  # name -> topology of two hosts, command, how it is started
    "jobset.yaml, GPU nodes": ("h100-16", TRAIN, lambda hosts, made: jobset(hosts, made, on_tpu=False)),
    "jobset.yaml, TPU slice": ("v5e-8", TRAIN, lambda hosts, made: jobset(hosts, made, on_tpu=True)),
    "slurm.sh": ("h100-16", SWEEP, slurm),
    "skypilot.yaml": ("h100-16", TRAIN, skypilot),
    "queued-resources.sh": ("v5e-8", TRAIN, queued_resources),
}


def rehearse(name: str, cache: Path) -> list[str]:
    """A row of the table. Raises where the run does not end well."""
    topology, command, start = PLACES[name]
    with tempfile.TemporaryDirectory(prefix="stepseer-rehearsal-") as scratch:
        folder = Path(scratch)
        out = folder / "results" / "out"
        (folder / "job.toml").write_text(JOB.format(command=command, topology=topology, out=out))
        made, _ = launch.render(description.read(folder / "job.toml"))
        hosts = Hosts(folder, cache)
        with network(dict(zip(PODS, ADDRESSES)) | dict(zip(HOSTS, ADDRESSES))):
            began = time.monotonic()
            start(hosts, made)
            codes = hosts.wait()
        spent = time.monotonic() - began
        said = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(folder.glob("*.log")))
        assert codes and set(codes) == {0}, f"{name}: exit codes {codes}\n{said}"
        rows = store.load(out).read()
        statuses = ", ".join(f"{n} {status}" for status, n in rows["status"].value_counts().items())
        saved = "(a finished chunk's goes)"
        if command == TRAIN:
            steps = [int(p.name) for p in (out / "model").iterdir() if p.name.isdigit()]
            assert max(steps) == recipe.STEPS and len(rows) == 1, said
            saved = f"step {max(steps)} of {recipe.STEPS}"
        else:
            assert len(rows) == len(recipe.grid()), said
        assert set(rows["device"]) == {"4 x cpu"}, said  # two of each host, in one run
        return [name, topology, f"`{command}`", statuses, saved, f"{spent:.0f}"]


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory(prefix="stepseer-rehearsal-") as cache:
        for name in PLACES:
            if len(sys.argv) < 2 or any(word in name for word in sys.argv[1:]):
                rows.append(rehearse(name, Path(cache)))
                print(" | ".join(rows[-1]), flush=True)
    if len(rows) == len(PLACES):
        head = ["file", "topology", "command", "rows", "checkpoint", "seconds"]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))
        (ROOT / "benchmarks" / "pods_rehearsal.md").write_text(
            "# The launch files, rehearsed\n\n"
            "Each file that `stepseer tpu launch` renders for two hosts, run on two hosts that are network namespaces "
            "of one machine, CPU devices in the place of accelerators, until the checkpoint was that of the last step "
            "and the run table whole. What the platforms themselves do (Kubernetes, GKE, Slurm, SkyPilot, gcloud, "
            "docker) is stood in for by a few lines; no pod, TPU or GPU was at hand. "
            "`sudo python -m benchmarks.pods_rehearsal`\n\n"
            f"{table}\n\nSeconds include starting Python and compiling, on a machine that did other work.\n"
        )


if __name__ == "__main__":
    main()
