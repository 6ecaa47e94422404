"""Start-up of a run over several hosts: finds out who this process is among how many, and where they meet.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID   by hand, and in our GPU manifests
    TPU_WORKER_HOSTNAMES, TPU_WORKER_ID (MEGASCALE_...)          GKE's TPU pods, also of several slices
    SLURM_..., OMPI_...                                          srun, mpirun
    the metadata server                                          Cloud TPU's virtual machines

`stepseer train` and `sweep run` enter `group` before anything touches a device.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine import processes
from engine.errors import InputError, require
from tpu import absent

PORT = 8482  # where process 0 listens unless it is said; JAX's on TPUs
START_S = 300.0  # for all to come; of the environment STEPSEER_START_S
_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclass(frozen=True)
class Place:
    """This process among those of a run."""

    address: str  # of process 0: host:port
    count: int
    index: int
    local_ids: tuple[int, ...] | None = None  # of the host's GPUs, those that are this process's; None: all


def find(environment: Mapping[str, str]) -> Place | None:
    """What the environment says; None: this process is alone, or is on a Cloud TPU machine, which JAX asks.

    Raises InputError for variables that are missing or contradict each other.
    """
    place = _by_hand(environment) or _by_tpu(environment) or _by_slurm(environment) or _by_open_mpi(environment)
    if place is None or place.count == 1:
        return None
    require(
        0 <= place.index < place.count,
        f"this is process {place.index} of {place.count}, but they count from 0 to {place.count - 1}; "
        "correct JAX_PROCESS_ID or JAX_NUM_PROCESSES",
    )
    host, colon, port = place.address.rpartition(":")
    require(
        bool(host and colon and port.isdigit() and 0 < int(port) < 65536),
        f"the coordinator's address is {place.address!r}; write host:port, such as node0:{PORT}, in "
        "JAX_COORDINATOR_ADDRESS, the same on all hosts",
    )
    return place


def _by_hand(env: Mapping[str, str]) -> Place | None:
    """Slurm's and Open MPI's count and number do where only an address is given."""
    given = [name for name in _BY_HAND if env.get(name)]
    if not given:
        return None
    count = env.get("JAX_NUM_PROCESSES") or env.get("SLURM_NTASKS") or env.get("OMPI_COMM_WORLD_SIZE")
    index = env.get("JAX_PROCESS_ID") or env.get("SLURM_PROCID") or env.get("OMPI_COMM_WORLD_RANK")
    if count == "1":
        return None
    found = dict(zip(_BY_HAND, (env.get("JAX_COORDINATOR_ADDRESS"), count, index)))
    missing = [name for name, value in found.items() if not value]
    require(not missing, f"{given[0]} is set, but not {' and '.join(missing)}; set all three of {', '.join(_BY_HAND)}")
    local = _local(env, "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_STEP_NUM_NODES")
    return Place(env["JAX_COORDINATOR_ADDRESS"], _number(found, _BY_HAND[1], 1), _number(found, _BY_HAND[2], 0), local)


def _by_tpu(env: Mapping[str, str]) -> Place | None:
    hosts = [name for name in (env.get("TPU_WORKER_HOSTNAMES") or "").split(",") if name]
    slices = _number(env, "MEGASCALE_NUM_SLICES", 1) if env.get("MEGASCALE_NUM_SLICES") else 1
    if len(hosts) * slices < 2:
        return None
    first = env.get("MEGASCALE_COORDINATOR_ADDRESS", hosts[0]).partition(":")[0] if slices > 1 else hosts[0]
    index = _number(env, "TPU_WORKER_ID", 0)
    if slices > 1:
        index += _number(env, "MEGASCALE_SLICE_ID", 0) * len(hosts)
    return Place(f"{first}:{PORT}", len(hosts) * slices, index)


def _by_slurm(env: Mapping[str, str]) -> Place | None:
    """Within srun. The port is made of the job's number, so that two jobs on a node don't meet."""
    nodes = env.get("SLURM_STEP_NODELIST")
    if not nodes or "SLURM_PROCID" not in env:
        return None
    prefix, several, rest = re.split(r"[,\[]", nodes, maxsplit=1)[0], "[" in nodes.split(",")[0], ""
    if several:
        rest = re.split(r"[,\-\]]", nodes[len(prefix) + 1 :], maxsplit=1)[0]
    port = 61440 + _number(env, "SLURM_JOB_ID", 0) % 4096
    local = _local(env, "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_STEP_NUM_NODES")
    return Place(f"{prefix}{rest}:{port}", _number(env, "SLURM_NTASKS", 1), _number(env, "SLURM_PROCID", 0), local)


def _by_open_mpi(env: Mapping[str, str]) -> Place | None:
    if "OMPI_COMM_WORLD_RANK" not in env or env.get("OMPI_COMM_WORLD_SIZE") == "1":
        return None
    uri = env.get("OMPI_MCA_orte_hnp_uri", "")  # Open MPI 4: 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911
    found = re.match(r"(\d+)\..*?tcp://([\d.]+)", uri)
    if found is None:
        raise InputError("mpirun does not say where its processes meet; set JAX_COORDINATOR_ADDRESS to host:port")
    several = _number(env, "OMPI_COMM_WORLD_LOCAL_SIZE", 1) > 1
    local = (_number(env, "OMPI_COMM_WORLD_LOCAL_RANK", 0),) if several else None
    port = 61440 + int(found[1]) // 4096 % 4096
    return Place(
        f"{found[2]}:{port}", _number(env, "OMPI_COMM_WORLD_SIZE", 1), _number(env, "OMPI_COMM_WORLD_RANK", 0), local
    )


def _local(env: Mapping[str, str], rank: str, tasks: str, nodes: str) -> tuple[int, ...] | None:
    """One GPU a process where a node has several of them; else all of the node's."""
    if rank in env and env.get(tasks) != env.get(nodes):
        return (_number(env, rank, 0),)
    return None


def _number(env: Mapping[str, str | None], name: str, least: int) -> int:
    text = env.get(name) or ""
    require(text.isdigit() and int(text) >= least, f"{name} is {text!r}; it must be a whole number from {least} on")
    return int(text)


@contextlib.contextmanager
def group() -> Iterator[processes.Group]:
    """The processes of this run, joined; within it they watch each other (`engine.processes`).

    Only process 0 prints. One that ends by an exception takes the others with it, which say so and end with its exit
    code. Raises InputError for a start that can't be; where the others don't come in time, the process ends with
    `processes.EXIT_CODE`, since trying again may help.
    """
    _join()
    found = processes.current()
    if found.count == 1:
        yield found
        return
    with contextlib.ExitStack() as stack:
        if not found.lead:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        stack.enter_context(found.watch())
        stack.enter_context(_sigterm_as_exception())
        try:
            yield found
            found.at("the end")
            found.gather("end")
        except BaseException as error:
            code, line = _ending(error)
            found.leave(code, line)
            atexit.register(_exit, code)  # before JAX, which would wait for the others at its own exit
            raise
    import jax

    jax.distributed.shutdown()


@contextlib.contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    """Until the runner listens: so that the others hear of it."""

    def handle(signum: int, _: object) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ending(error: BaseException) -> tuple[int, str]:
    """Exit code and line of a process that ends so."""
    line = " ".join(f"{error}".split()) or type(error).__name__
    if isinstance(error, SystemExit):
        return (error.code if isinstance(error.code, int) else 1), line
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted"
    if isinstance(error, InputError | OSError | ValueError):
        return 2, line
    return 1, f"{type(error).__name__}: {line}"


def _exit(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _join() -> None:
    import jax
    from jax._src import distributed

    if distributed.global_state.client is not None:  # the caller's own doing
        return
    place = find(os.environ)
    on_cloud_tpu = absent.has_tpu() and not {"TPU_WORKER_HOSTNAMES", "TPU_SKIP_MDS_QUERY"} & os.environ.keys()
    if place is None and not on_cloud_tpu:
        return
    seconds = _start_s()
    limits = processes.Limits.of_environment()
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours: `engine.stop`
    how = {
        "initialization_timeout": int(seconds),
        "heartbeat_timeout_seconds": int(2 * limits.lost_s) + 10,  # behind our own watch, which says more
        "shutdown_timeout_seconds": int(limits.lost_s),
    }
    if place is None:
        jax.distributed.initialize(**how)  # type: ignore[arg-type]
        return
    if place.index > 0:
        _await(place, seconds)
    missed = (
        f"not all of the {place.count} processes came to {place.address} within {seconds:.0f} s; start as many, each "
        "with a number of its own; STEPSEER_START_S is the time"
    )
    with processes.last_words(lambda: missed):
        try:
            jax.distributed.initialize(
                place.address, place.count, place.index, place.local_ids, "deactivate", **how  # type: ignore[arg-type]
            )  # fmt: skip
        except RuntimeError as error:  # most of its failures end the process instead
            processes.end_now(processes.EXIT_CODE, f"{missed} ({' '.join(str(error).split()):.200})")


def _start_s() -> float:
    text = os.environ.get("STEPSEER_START_S") or str(START_S)
    require(text.replace(".", "", 1).isdigit() and float(text) >= 1, f"STEPSEER_START_S is {text!r}; give seconds")
    return float(text)


def _await(place: Place, seconds: float) -> None:
    """Returns when process 0 listens."""
    host, _, port = place.address.rpartition(":")
    deadline, reason = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=min(5.0, seconds)).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.2)
    processes.end_now(
        processes.EXIT_CODE,
        f"process {place.index} of {place.count} finds nobody at the coordinator's address {place.address} within "
        f"{seconds:.0f} s ({reason}); is process 0 running, and the address right?",
    )
