"""Runs chunks as tasks of a Ray cluster: one that is there, or one started on this machine for the run.

Ray finds each chunk a node that has what it asks for. A chunk whose process or node is lost is given to Ray again. This
process writes the parts, so it alone needs the results folder; where the nodes see it too, a lost chunk goes on from
its last checkpoint, else from its beginning, with the same rows in the end. Killed and started again, it asks for what
the store lacks.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from experiments import options, runner
from experiments.backends import ray_task
from experiments.backends.ray_task import Job, Outcome
from experiments.errors import InputError
from experiments.plan import Chunk
from experiments.runner import Backend, Stop, Watcher
from experiments.store import Row, Store

CPUS = 4  # of a chunk, where there are no accelerators and the nodes have so many
TRIES = 4  # of a chunk that is lost without having come further,
FURTHER = 0.05  # by this share of its steps
POLL_S = 0.25
STOP_S = 240.0  # for running chunks to save
WAITING_S = 60.0  # without a node for any chunk, after which that is said
RAY_NAMES = {"cpu": "CPU", "gpu": "GPU", "tpu": "TPU"}

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what it warns about is what we want: chunks on CPUs see no GPUs
}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # its name for: a cluster of this machine alone, on 127.0.0.1


def per_chunk(text: str) -> dict[str, int]:
    """'cpu=2,gpu=1' by Ray's names of resources. Raises InputError for what can't be read."""
    found = {}
    for part in text.split(","):
        name, equals, amount = part.strip().partition("=")
        if not (name and equals):
            raise InputError(f"--per-chunk is {text!r}; write resources of a chunk, such as cpu=2,gpu=1 or tpu=8")
        found[RAY_NAMES.get(name.lower(), name)] = options.whole(amount, f"--per-chunk {name}")
    return found


@contextlib.contextmanager
def cluster(
    address: str | None,
    wanted: Mapping[str, int] | None = None,
    *,
    trainer: Callable[..., Sequence[Row]] = runner.train_chunk,
    **how: Any,
) -> Iterator[Backend]:
    """A backend for `runner.run`, connected to the cluster at `address` ("auto": the one of this machine), by default
    what RAY_ADDRESS names, else one that is started here and ends with the block.

    wanted: what a chunk takes, as `per_chunk` reads it, by default `share`. trainer: takes a chunk, the folder of its
    checkpoints, on_progress, and by name `logs`, a folder, and `how`; must be importable on the nodes.
    Raises InputError: no Ray installed, no cluster there, no node that has what is wanted.
    """
    ray = _connect(address or os.environ.get("RAY_ADDRESS") or "local")
    try:
        import jax

        jax.config.update("jax_platforms", "cpu")  # the accelerators are the tasks'
        demand = dict(wanted) if wanted else share(_nodes(ray))
        _check(demand, _nodes(ray))
        yield _backend(ray, demand, trainer, how)
    finally:
        ray.shutdown()


def share(nodes: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """What a chunk takes of nodes with these resources: all TPUs or GPUs of one, else some CPUs."""
    for kind in ("TPU", "GPU"):
        amounts = [int(node[kind]) for node in nodes if node.get(kind, 0) >= 1]
        if amounts:
            return {kind: min(amounts), "CPU": 1}
    return {"CPU": min([CPUS, *(int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1)])}


# --- the cluster -----------------------------------------------------------------------------------------------------


def _connect(address: str) -> Any:
    for name, value in (_QUIET | (_LOOPBACK if address == "local" else {})).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise InputError("ray is not installed; pip install 'stepseer[ray]'") from None
    if address.startswith("ray://"):
        raise InputError(
            f"--ray-address {address}: the sweep runs on a node of the cluster, not from outside; give this command to "
            "ray job submit, or name HOST:PORT on a node"
        )
    host, _, port = address.rpartition(":")
    if not (address in ("local", "auto") or (host and port.isdigit())):
        raise InputError(f"--ray-address is {address!r}; write auto, or HOST:PORT")
    if port.isdigit() and not _answers(host, int(port)):
        raise InputError(f"no Ray cluster at {address}; start one with: ray start --head")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        quiet |= {"include_dashboard": False, "object_store_memory": 2**28}
    try:
        ray.init(address=address, **quiet)
    except ConnectionError:
        raise InputError(
            f"no Ray cluster {'on this machine' if address == 'auto' else f'at {address}'} that lets us in; start one "
            "with: ray start --head; for one that asks for a token set RAY_AUTH_MODE=token"
        ) from None
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"can't join the Ray cluster {address}: {reason:.300}") from None
    # What a raylet says of a lost process would go to standard output, and has no setting; `Watcher.lost` says it.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    return ray


def _answers(host: str, port: int) -> bool:
    """Whether what listens there may be Ray, which would be waited for long: gRPC greets with a frame of settings."""
    try:
        with socket.create_connection((host, port), timeout=10) as connection:
            return os.environ.get("RAY_USE_TLS", "0") != "0" or connection.recv(9)[3:4] == b"\x04"
    except OSError:
        return False


def _nodes(ray: Any) -> list[dict[str, float]]:
    """Resources of the nodes that are there, with the TPU slice of each, if Ray knows it, as "slice"."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [node["Resources"] | {"slice": node.get("Labels", {}).get("ray.io/tpu-slice-name")} for node in alive]


def _fits(demand: Mapping[str, int], node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0) >= amount for name, amount in demand.items())


def _check(demand: Mapping[str, int], nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raises InputError where no node has what a chunk takes, or a chunk would take one host of a larger TPU slice."""
    fitting = [node for node in nodes if _fits(demand, node)]
    if not fitting:
        kinds = [name for name in ("CPU", "GPU", "TPU", *demand) if any(node.get(name) for node in nodes)]
        most = [_said({name: max(int(node.get(name, 0)) for node in nodes)}) for name in dict.fromkeys(kinds)]
        raise InputError(
            f"a chunk takes {_said(demand)}, and no node of the cluster has that; the most that one has: "
            f"{', '.join(most) or 'nothing'}; change --per-chunk, or add nodes"
        )
    if "TPU" in demand:
        slices = [node["slice"] for node in nodes if node["slice"]]
        large = next((node["slice"] for node in fitting if slices.count(node["slice"]) > 1), None)
        if large is not None:
            raise InputError(
                f"TPU slice {large} has {slices.count(large)} hosts, and a chunk runs on one; "
                "make a cluster of single-host slices, such as v5e-4"
            )


def _said(demand: Mapping[str, int]) -> str:
    names = {ray: ours for ours, ray in RAY_NAMES.items()}
    return ",".join(f"{names.get(name, name)}={amount}" for name, amount in demand.items())


# --- the chunks ------------------------------------------------------------------------------------------------------


def _backend(
    ray: Any, demand: Mapping[str, int], trainer: Callable[..., Sequence[Row]], how: dict[str, Any]
) -> Backend:
    def run_chunks(
        left: Sequence[Chunk], store: Store, watcher: Watcher, stop: Stop
    ) -> Generator[tuple[Chunk, Sequence[Row]], None, None]:
        mark = store.path / f".ray-{uuid.uuid4().hex}.tmp"  # `Store.tidy` removes one that was left
        mark.touch()
        tasks = _Tasks(ray, demand, watcher)

        def job(chunk: Chunk) -> Job:
            threads = 0 if demand.keys() & {"GPU", "TPU"} else demand.get("CPU", 0)
            return Job(chunk, str(store.path.absolute()), mark.name, threads, trainer, how)

        error = ""  # that ends the run, once those that train have saved
        try:
            for chunk in left:
                tasks.submit(chunk, job(chunk))
            while tasks.running:
                ending = stop.is_set() or bool(error)
                if ending:
                    tasks.stop()
                for chunk, outcome in tasks.finished():
                    if outcome.rows is not None:
                        _write_logs(store, outcome)
                        yield chunk, outcome.rows
                        if not outcome.rows:  # out of memory
                            tasks.drop(chunk)
                    elif outcome.error or ending:
                        error = error or outcome.error
                    elif tasks.try_again(chunk):
                        watcher.lost(chunk, outcome.lost)
                        tasks.submit(chunk, job(chunk))
                    else:
                        reason = f"lost {TRIES} times: {outcome.lost}"
                        yield chunk, [runner.failed_row(trial, reason) for trial in chunk.trials]
            runner.raise_if(stop)
            if error:
                raise InputError(error)
        finally:
            tasks.end()
            mark.unlink(missing_ok=True)

    return run_chunks


def _write_logs(store: Store, outcome: Outcome) -> None:
    for name, content in outcome.logs.items():
        file = store.path / runner.LOGS / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


class _Tasks:
    """The tasks that Ray has been given and that haven't ended."""

    def __init__(self, ray: Any, demand: Mapping[str, int], watcher: Watcher):
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._demand, self._watcher = ray, demand, watcher
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(ray_task.Board)
        self._board = actor.remote()
        others = {name: amount for name, amount in demand.items() if name not in ("CPU", "GPU")}
        self._task = ray.remote(
            num_cpus=demand.get("CPU", 0),
            num_gpus=demand.get("GPU", 0),
            resources=others,
            max_retries=0,  # `lost` counts: Ray's own retries have no bound where memory is short
            max_calls=1 if demand.keys() & {"GPU", "TPU"} else 0,  # a process keeps its accelerators until it ends
        )(ray_task.train)
        self.running: dict[Any, Chunk] = {}
        self._begun: set[str] = set()  # ids of chunks that have a node
        self._share: dict[str, float] = {}  # of a chunk's steps that are done, as far as was reported
        self._losses: dict[str, tuple[int, float]] = {}  # how many, since which share
        self._active = time.monotonic()
        self._stopped_at = 0.0

    def submit(self, chunk: Chunk, job: Job) -> None:
        self._begun.discard(chunk.id)
        self.running[self._task.remote(job, self._board)] = chunk

    def finished(self) -> list[tuple[Chunk, Outcome]]:
        """Those that ended within POLL_S, and how; tells the watcher how the others go."""
        done, _ = self._ray.wait(list(self.running), num_returns=len(self.running), timeout=POLL_S)
        self._tell()
        return [(self.running.pop(ref), self._outcome(ref)) for ref in done]

    def try_again(self, chunk: Chunk) -> bool:
        """Whether to, after a loss: not if it was lost TRIES times without coming further in between."""
        share = self._share.get(chunk.id, 0.0)
        count, at = self._losses.get(chunk.id, (0, 0.0))
        count, at = (1, share) if share >= at + FURTHER else (count + 1, at)
        self._losses[chunk.id] = count, at
        return count < TRIES

    def drop(self, large: Chunk) -> None:
        """Takes back those of its cohort that have no node yet and are as large; they come again, in halves."""
        for ref, chunk in list(self.running.items()):
            if chunk.cohort == large.cohort and len(chunk.trials) >= len(large.trials) and chunk.id not in self._begun:
                self._take_back(ref)

    def stop(self) -> None:
        """Asks those that train to save and stop, and ends the others; may be called again. What hasn't stopped after
        STOP_S is ended, too."""
        self._stopped_at = self._stopped_at or time.monotonic()
        self._board.stop.remote()
        late = time.monotonic() - self._stopped_at > STOP_S
        for ref, chunk in list(self.running.items()):
            if late or chunk.id not in self._begun or chunk.id not in self._share:
                self._take_back(ref)  # waits for a node, or compiles: there is nothing to save

    def end(self) -> None:
        """When nothing is wanted of them any more: lets those that train save, and ends all."""
        while self.running:
            self.stop()
            self.finished()
        self._ray.kill(self._board)

    def _take_back(self, ref: Any) -> None:
        self._ray.cancel(ref, force=True)
        del self.running[ref]

    def _outcome(self, ref: Any) -> Outcome:
        from ray.exceptions import RayError, RayTaskError

        try:
            return self._ray.get(ref)
        except RayTaskError as error:  # our own code did not get to run, or is wrong
            reason = str(error.cause or error).strip().splitlines()[-1]
            return Outcome(error=f"a node can't run a chunk ({reason:.200}); does it have this version of stepseer?")
        except RayError as error:
            first = next(iter(str(error).strip().splitlines()), "")
            return Outcome(lost=f"{type(error).__name__}: {first}")

    def _tell(self) -> None:
        from ray.exceptions import GetTimeoutError, RayActorError

        try:
            begun, latest = self._ray.get(self._board.news.remote(), timeout=10)
        except (RayActorError, GetTimeoutError):
            return
        chunks = {chunk.id: chunk for chunk in self.running.values()}
        for chunk_id in begun:
            if chunk_id in chunks:
                self._begun.add(chunk_id)
                self._watcher.chunk_started(chunks[chunk_id])
        for chunk_id, progress in latest.items():
            if chunk_id in chunks:
                share = progress.step / progress.total_steps
                self._share[chunk_id] = max(share, self._share.get(chunk_id, 0.0))
                self._watcher.progress(chunks[chunk_id], progress)
        if self._begun & chunks.keys():
            self._active = time.monotonic()
        elif time.monotonic() - self._active > WAITING_S:
            self._active = time.monotonic()
            self._watcher.waiting(f"a node with {_said(self._demand)} free")
