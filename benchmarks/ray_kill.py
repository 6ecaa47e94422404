"""A grid of 200 real models on a Ray cluster of two nodes, of which one is killed, and the driver too: is the table
that of an undisturbed run in one process?

    python -m benchmarks.ray_kill            # prints benchmarks/ray_kill.md; needs pip install 'stepseer[ray]'
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

from experiments.backends import ray as backend

os.environ.update(backend._QUIET | backend._LOOPBACK)  # everything on 127.0.0.1; read when ray is imported

GRID = """
base: {model.n_layers: 1, model.n_heads: 1, data.corpus: synthetic, data.seq_len: 16, optim.warmup_steps: 10,
       batch_size: 4, eval_sequences: 16}
grid:
  prod:
    - {model.d_model: [16, 32]}
    - {tokens: [5e4, 1e5]}
    - {optim.lr: {ladder: [1e-3, 0.5120001, 2]}}
    - {seed: [0, 1, 2, 3, 4]}
"""
TRIALS, CHUNK, LIMIT_S = 200, 10, 1800.0


def main() -> None:
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "grid.yaml").write_text(GRID)
        began = time.monotonic()
        finish(start(folder, "alone"))
        alone_s = time.monotonic() - began

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        began, lost = time.monotonic(), 0
        first = start(folder, "ray", cluster.address)
        wait_for(folder, 4)
        cluster.remove_node(nodes[0], allow_graceful=False)  # SIGKILL
        cluster.add_node(num_cpus=2)
        wait_for(folder, 10)
        first.kill()
        lost += first.communicate()[0].count("lost, and runs again")
        before = parts(folder)
        lost += finish(start(folder, "ray", cluster.address)).count("lost, and runs again")
        ray_s = time.monotonic() - began
        cluster.shutdown()
        print(report(folder, alone_s, ray_s, before, lost))


def start(folder: Path, out: str, address: str = "") -> subprocess.Popen[str]:
    words = ["sweep", "run", str(folder / "grid.yaml"), "--out", str(folder / out), "--max-trials", str(CHUNK)]
    how = ["--backend", "ray", "--ray-address", address] if address else []
    return subprocess.Popen([sys.executable, "-m", "experiments", *words, *how], stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said
    return said


def parts(folder: Path) -> int:
    return len(list((folder / "ray").glob("parts/*.parquet")))


def wait_for(folder: Path, count: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while parts(folder) < count:
        assert time.monotonic() < deadline, f"{parts(folder)} chunks after {LIMIT_S} s"
        time.sleep(0.05)


def report(folder: Path, alone_s: float, ray_s: float, before: int, lost: int) -> str:
    from experiments import store

    tables: list[Any] = [
        store.load(folder / name).read().drop(columns=["wall_s", "device"]) for name in ("alone", "ray")
    ]
    same = tables[0].equals(tables[1])
    counts = tables[1]["status"].value_counts()
    about = (
        f"`python -m benchmarks.ray_kill`, on {os.cpu_count()} CPU cores ({platform.machine()}): {len(tables[1])} "
        f"models in chunks of {CHUNK}, on two Ray nodes on loopback of 2 CPUs each. A node was killed (SIGKILL) when 4 "
        f"of {TRIALS // CHUNK} chunks were done, and replaced; the driver was killed when {before} were, and started "
        "again."
    )
    return f"""# A sweep through the loss of a node and of its driver

{textwrap.fill(about, 120)}

| | |
|---|---|
| rows, of which diverged | {len(tables[1])}, {counts.get("diverged", 0)} |
| chunks that were lost and ran again, as said | {lost} |
| every column but wall_s and device equals that of one process, bit for bit | {"yes" if same else "NO"} |
| seconds: one process; Ray, losses and starting again included | {alone_s:.0f}; {ray_s:.0f} |

Both nodes share the cores, so the seconds say nothing of speed.
"""


if __name__ == "__main__":
    main()
