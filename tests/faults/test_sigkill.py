"""Twenty times SIGKILL: what is trained in the end is what would have been trained, bit for bit."""

import json
import os
import subprocess
import sys

import numpy as np

from . import killed


def test_training_killed_twenty_times_ends_with_the_same_bits(tmp_path):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    script = subprocess.run(
        [sys.executable, "-m", "tests.faults.killed", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, **cache, "JAX_PLATFORMS": "cpu"},
    )
    assert script.returncode == 0, script.stderr[-2000:]
    told = json.loads(script.stdout.splitlines()[-1])
    assert told["kills"] == killed.KILLS and told["in_saves"] >= killed.KILLS // 4, told
    assert told["reached"] == sorted(told["reached"]) and 0 < told["reached"][-1] < killed.CONFIG.steps, told
    assert told["exit"] == 0
    programs = sorted(p.name.split("-")[0] for p in (tmp_path / "compiled").glob("*-cache"))
    assert programs == ["jit_eval_step", "jit_init_state", "jit_train_steps"]  # compiled once for all 22 starts
    assert told["left"][-1] == "logs" and not any("tmp" in name for name in told["left"])  # nothing half written stays

    undisturbed, survivor = (np.load(tmp_path / f"{name}.npz") for name in ("undisturbed", "killed"))
    assert set(survivor.files) == set(undisturbed.files) and "1/params/layers/down" in survivor.files
    assert len(survivor["0/loss"]) == killed.CONFIG.steps
    for name in undisturbed.files:
        assert survivor[name].tobytes() == undisturbed[name].tobytes(), name
    logs = [sorted((tmp_path / name).glob("logs/*/metrics.jsonl")) for name in ("undisturbed", "killed")]
    assert [p.read_bytes() for p in logs[0]] == [p.read_bytes() for p in logs[1]]
    assert [p.parent.name for p in logs[0]] == [p.parent.name for p in logs[1]] and len(logs[0]) == 2
