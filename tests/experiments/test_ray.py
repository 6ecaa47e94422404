"""A Ray cluster of several nodes on loopback: the table is that of this process alone, whatever is lost on the way."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pandas as pd
import pytest

from experiments import runner, store
from experiments.cli import main
from experiments.errors import InputError
from experiments.runner import Watcher, run

from . import fakes, on_ray

if importlib.util.find_spec("ray") is None:
    pytest.skip("ray is not installed", allow_module_level=True)

from experiments.backends import ray as backend
from experiments.backends import ray_task

os.environ.update(backend._QUIET | backend._LOOPBACK)  # read when ray is imported
WAIT_S = 120.0  # for anything, on a machine that does other things, too
OURS = f"STEPSEER_TEST_RAY={uuid.uuid4().hex}"  # in the environment of every process that these tests start
GRID = """
base: {model.d_model: 16, model.n_layers: 1, data.corpus: synthetic, data.seq_len: 16, batch_size: 4, tokens: 1e5}
grid: {optim.lr: [1e-3, 4e-3]}
"""


def processes():
    """Ids of living processes that these tests started, however they came to be."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if OURS.encode() in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def until(what, seconds=WAIT_S):
    """Waits for `what()` to be true and returns it; bounded."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    """Everything on 127.0.0.1, a cache that all tests share; and nothing is left running."""
    name, _, value = OURS.partition("=")
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        patch.setenv("STEPSEER_CACHE", str(cache))
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_gcs_server_request_timeout_seconds", "5")  # else agents of a dead node live for a minute
        yield
    until(lambda: not processes())


@pytest.fixture(scope="module")
def cluster(surroundings):
    """A head that trains nothing and two nodes, each with room for one chunk."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=2)
    yield made
    made.shutdown()


@pytest.fixture
def plan():
    return fakes.plan(n_lr=2)  # 8 trials, 4 chunks


@pytest.fixture
def stage(tmp_path):
    (tmp_path / "stage").mkdir()
    return tmp_path / "stage"


class Recording(Watcher):
    def __init__(self):
        self.losses, self.large = [], []

    def lost(self, chunk, reason):
        self.losses.append((chunk.id, reason))

    def out_of_memory(self, chunk):
        self.large.append(chunk.id)


def sweep(cluster, plan, folder, stage, **how):
    with backend.cluster(cluster.address, {"CPU": 2}, trainer=on_ray.scripted, stage=str(stage)) as run_chunks:
        return run(plan, folder, backend=run_chunks, **how)


def began(stage, chunk):
    file = stage / f"{chunk.id}.began"
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def start(*words):
    return subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def alive(pid):
    return Path(f"/proc/{pid}").exists()


def test_real_models_through_every_loss(cluster, tmp_path):
    """A worker killed, the driver killed and started again, a node removed: the table and the logs of a run alone."""
    out, script = tmp_path / "out", "tests.experiments.on_ray"

    def trains(but=()):
        """The process of a chunk that has a checkpoint."""
        for lock in out.glob("checkpoints/*/.lock"):
            words = lock.read_text().split() if lock.exists() else []
            if len(words) == 4 and list(lock.parent.glob("[0-9]*")):
                pid = int(words[1])
                if pid not in but and alive(pid):
                    return pid
        return None

    first = start(script, str(out), cluster.address)
    killed = until(trains)
    os.kill(killed, signal.SIGKILL)
    until(lambda: trains([killed]))
    old = processes()
    first.kill()
    assert first.communicate(timeout=30)[1] == ""

    second = start(script, str(out), cluster.address)
    pid = until(lambda: trains(old))
    (node,) = [n for n in cluster.worker_nodes if _raylet(n) == _parent(pid)]
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=2)
    said, complaints = second.communicate(timeout=WAIT_S)
    assert (second.returncode, complaints) == (0, ""), said
    assert "lost, and runs again (NodeDiedError" in said or "lost, and runs again (WorkerCrashedError" in said
    assert not any("ray" in line.lower() and "lost" not in line for line in said.splitlines())

    alone = tmp_path / "alone"
    # In a process of its own: this one may have several devices.
    subprocess.run([sys.executable, "-m", "tests.experiments.real", str(alone)], check=True, stdout=subprocess.DEVNULL)
    assert store.load(alone).read()["status"].value_counts().to_dict() == {"ok": 9, "diverged": 3}
    tables = [fakes.without_clock(store.load(folder).read()) for folder in (out, alone)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    logs = [{p.parent.name: p.read_text() for p in folder.glob("logs/*/*.jsonl")} for folder in (out, alone)]
    assert logs[0] == logs[1] and len(logs[0]) == 12
    assert not list(out.glob("checkpoints/*")) and not list(out.glob(".ray-*"))


def _raylet(node):
    return node.all_processes["raylet"][0].process.pid


def _parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_chunk_that_kills_its_process_fails_and_the_others_do_not(cluster, tmp_path, plan, stage):
    folder, watcher = store.create(tmp_path / "out", plan), Recording()
    bad, wrong, large, _ = plan.chunks
    for chunk, doing in ((bad, "die"), (wrong, "raise"), (large, "large")):
        (stage / chunk.id).write_text(doing)
    summary = sweep(cluster, plan, folder, stage, watcher=watcher)
    assert (summary.ok, summary.failed, summary.left) == (4, 4, 0)
    assert len(began(stage, bad)) == backend.TRIES and len(set(began(stage, bad))) == backend.TRIES
    assert [chunk for chunk, _ in watcher.losses] == [bad.id] * (backend.TRIES - 1)
    reasons = folder.read().set_index("run_id")["reason"]
    assert reasons[bad.trials[0].run_id].startswith(f"lost {backend.TRIES} times: WorkerCrashedError")
    assert reasons[wrong.trials[0].run_id] == "RuntimeError: bad luck"
    for chunk in (bad, wrong):
        (stage / chunk.id).unlink()
    again = sweep(cluster, plan, folder, stage, retry_failed=True)
    assert (again.ok, again.already) == (4, 4)
    assert watcher.large == [large.id] and len(began(stage, large)) == 1  # and then in halves
    alone = store.create(tmp_path / "alone", plan)
    run(plan, alone, trainer=fakes.trainer)
    pd.testing.assert_frame_equal(fakes.without_clock(folder.read()), fakes.without_clock(alone.read()))


@pytest.mark.parametrize("doing, said", [("full", "/data: No space left on device"), ("input", "no corpus 'x' here")])
def test_what_is_not_a_trials_own_fault_ends_the_run(cluster, tmp_path, plan, stage, doing, said):
    folder = store.create(tmp_path / "out", plan)
    for chunk in plan.chunks[2:]:
        (stage / chunk.id).write_text(doing)
    with pytest.raises(InputError, match=said):
        sweep(cluster, plan, folder, stage)
    assert 0 < len(folder.read()) <= 4 and folder.running() is None


def test_a_signal_stops_every_node(cluster, tmp_path, plan, stage, how=signal.SIGTERM):
    folder = store.create(tmp_path / "out", plan)
    waiting = plan.chunks[1:3]
    for chunk in waiting:
        (stage / chunk.id).write_text("wait")

    def interrupt():
        until(lambda: all((folder.checkpoints(chunk.id) / "step").exists() for chunk in waiting))
        time.sleep(2 * ray_task.SAY_EVERY_S)  # all have reported
        os.kill(os.getpid(), how)

    threading.Thread(target=interrupt).start()
    summary = sweep(cluster, plan, folder, stage)
    assert summary.interrupted and summary.signum == how and summary.ok >= 2 and summary.left >= 4
    steps = [int((folder.checkpoints(chunk.id) / "step").read_text()) for chunk in waiting]
    assert not any(alive(pid) and _trains(pid, folder) for chunk in waiting for pid in began(stage, chunk))
    for chunk in waiting:
        (stage / chunk.id).unlink()
    assert sweep(cluster, plan, folder, stage).left == 0
    assert all(step > 1 for step in steps) and folder.read()["run_id"].tolist() == list(plan.run_ids)


def _trains(pid, folder):
    """Whether the process has a file of the checkpoints open."""
    try:
        return any(str(folder.path) in os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def test_a_folder_that_only_the_driver_sees(cluster, tmp_path, plan, stage):
    (tmp_path / "mine").mkdir()
    handle = os.open(tmp_path / "mine", os.O_RDONLY)
    try:
        folder = store.create(f"/proc/self/fd/{handle}/out", plan)
        summary = sweep(cluster, plan, folder, stage)
    finally:
        os.close(handle)
    assert summary.ok == 8
    out = tmp_path / "mine" / "out"
    logs = {p.parent.name: float(p.read_text()) for p in out.glob("logs/*/metrics.jsonl")}
    assert logs == {t.run_id: t.optim.lr for t in plan.trials}
    assert not (out / "checkpoints").exists()
    assert not list((Path(os.environ["STEPSEER_CACHE"]) / "ray").glob("*"))


def test_a_process_that_was_given_up_is_waited_for(cluster, tmp_path, plan, stage, monkeypatch):
    """While the lock of a chunk's checkpoints is held, nobody else trains there."""
    folder = store.create(tmp_path / "out", plan)
    chunk, done = plan.chunks[0], []
    with contextlib.ExitStack() as held:
        held.enter_context(ray_task._alone_in(folder.checkpoints(chunk.id)))
        monkeypatch.setattr(ray_task, "LOCK_WAIT_S", 0.1)
        with (
            pytest.raises(ray_task._Busy, match=f"in use by process {os.getpid()} on "),
            ray_task._alone_in(folder.checkpoints(chunk.id)),
        ):
            pass
        with backend.cluster(cluster.address, {"CPU": 2}, trainer=on_ray.scripted, stage=str(stage)) as run_chunks:
            running = threading.Thread(target=lambda: done.append(run(plan, folder, backend=run_chunks)))
            running.start()
            until(lambda: len(folder.read()) == 6)
            assert not began(stage, chunk)
            held.close()
            running.join(60)
    assert done[0].ok == 8 and len(began(stage, chunk)) == 1


def test_a_cluster_of_its_own_dies_with_the_command(tmp_path):
    (tmp_path / "grid.yaml").write_text(GRID)
    out = tmp_path / "out"
    before = set(processes())
    command = ["experiments", "sweep", "run", str(tmp_path / "grid.yaml"), "--out", str(out), "--backend", "ray"]
    killed = start(*command)
    until(lambda: list(out.glob("checkpoints/*/.lock")))  # it has begun
    status = start("experiments", "sweep", "status", "--out", str(out), "--json").communicate(timeout=WAIT_S)[0]
    assert json.loads(status)["running"].startswith(f"process {killed.pid} on ")
    killed.kill()
    killed.communicate(timeout=30)
    until(lambda: set(processes()) <= before)
    again = start(*command, "--json")
    said, complaints = again.communicate(timeout=WAIT_S)
    assert (again.returncode, complaints) == (0, "")
    assert json.loads(said)["ok"] == 2
    until(lambda: set(processes()) <= before)


def test_mistakes_are_one_line(cluster, tmp_path, capsys, monkeypatch):
    def says(*words):
        assert main(["sweep", "run", "tiny", "--out", str(tmp_path / "out"), *words]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and not (tmp_path / "out").exists()
        return said

    on_it = ["--backend", "ray", "--ray-address", cluster.address]
    assert "no node of the cluster has that; the most that one has: cpu=2" in says(*on_it, "--per-chunk", "cpu=3")
    assert "a chunk takes gpu=1" in says(*on_it, "--per-chunk", "gpu=1")
    assert "no Ray cluster at 127.0.0.1:9" in says("--backend", "ray", "--ray-address", "127.0.0.1:9")
    with socket.create_server(("127.0.0.1", 0)) as other:  # listens, but is no Ray
        other.settimeout(10)

        def greet():
            with other.accept()[0] as connection:
                connection.sendall(b"SSH-2.0-x")

        threading.Thread(target=greet).start()
        there = f"127.0.0.1:{other.getsockname()[1]}"
        assert f"no Ray cluster at {there}" in says("--backend", "ray", "--ray-address", there)
    assert "write auto, or HOST:PORT" in says("--backend", "ray", "--ray-address", "here")
    assert "ray job submit" in says("--backend", "ray", "--ray-address", "ray://127.0.0.1:10001")
    assert "such as cpu=2,gpu=1" in says("--backend", "ray", "--per-chunk", "2")
    assert "must be a whole number" in says("--backend", "ray", "--per-chunk", "cpu=0.5")
    assert "did you mean ray" in says("--backend", "rai")
    assert "--per-chunk is for --backend ray" in says("--per-chunk", "cpu=1")
    assert "leave --shard out" in says("--backend", "ray", "--shard", "0/2")
    assert "leave it or --backend ray out" in says("--backend", "ray", "--stop-hopeless", "2%")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'stepseer[ray]'" in says("--backend", "ray")


def test_what_a_chunk_takes():
    assert backend.share([{"CPU": 64}, {"CPU": 8}]) == {"CPU": 4}
    assert backend.share([{"CPU": 0}, {"CPU": 2}]) == {"CPU": 2}
    assert backend.share([{"CPU": 0}, {"CPU": 64, "GPU": 8}, {"CPU": 32, "GPU": 4}]) == {"GPU": 4, "CPU": 1}
    assert backend.share([{"CPU": 100, "TPU": 8}]) == {"TPU": 8, "CPU": 1}
    assert backend.per_chunk("cpu=2,gpu=1,TPU-v5litepod-8-head=1") == {"CPU": 2, "GPU": 1, "TPU-v5litepod-8-head": 1}


def test_a_host_of_a_larger_slice_is_refused():
    host = {"CPU": 100, "TPU": 4, "slice": "mine"}
    backend._check({"TPU": 4}, [host, {"CPU": 100, "TPU": 4, "slice": "other"}][1:])
    with pytest.raises(InputError, match="TPU slice mine has 2 hosts"):
        backend._check({"TPU": 4}, [host, host])
    assert runner.LOGS == "logs"
