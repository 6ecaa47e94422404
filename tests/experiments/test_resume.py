"""A real sweep, killed at random moments, ends with the table of an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd

from experiments import store

from . import fakes, real


def sweep(out):
    # all starts share compiled programs: the test is of resuming, not of the compiler
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(out.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.experiments.real", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **cache},
    )


def wait_for_checkpoint(process, out):
    """Until the second chunk that this process runs has a checkpoint."""
    for _ in range(2):
        chunk = process.stdout.readline().decode().strip()
    while not list(out.glob(f"checkpoints/{chunk}/[0-9]*")) and process.poll() is None:
        time.sleep(0.002)


def test_a_real_sweep_killed_at_random_ends_with_the_same_table(tmp_path):
    undisturbed = sweep(tmp_path / "reference")
    _, said = undisturbed.communicate()
    assert undisturbed.returncode == 0, said.decode()
    clock = random.Random(3)
    in_chunk = 0
    for how in (signal.SIGKILL, signal.SIGINT):
        process = sweep(tmp_path / "out")
        wait_for_checkpoint(process, tmp_path / "out")
        time.sleep(clock.uniform(0, 0.2))
        process.send_signal(how)
        process.communicate()
        assert process.returncode == (130 if how == signal.SIGINT else -how)
        in_chunk += bool(list((tmp_path / "out").glob("checkpoints/*/[0-9]*")))
    assert in_chunk  # at least one left a checkpoint to go on from
    last = sweep(tmp_path / "out")
    _, said = last.communicate()
    assert last.returncode == 0, said.decode()
    reference, table = (store.load(tmp_path / name).read() for name in ("reference", "out"))
    assert sorted(table["status"].unique()) == ["diverged", "ok"]
    assert table["run_id"].tolist() == list(real.plan().run_ids)
    pd.testing.assert_frame_equal(fakes.without_clock(table), fakes.without_clock(reference), check_exact=True)
    assert not list((tmp_path / "out").glob("checkpoints/*"))
    logs = [{p.parent.name: p.read_text() for p in (tmp_path / x).glob("logs/*/*.jsonl")} for x in ("reference", "out")]
    assert logs[0] == logs[1] and set(logs[0]) == set(real.plan().run_ids)
    assert len(list((tmp_path / "compiled").glob("jit_train_steps-*-cache"))) == 1  # for all chunks of all four starts
