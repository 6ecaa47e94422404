"""The runner with a trainer that trains nothing: what is run, what is kept, how it stops."""

import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from engine import InputError as EngineInputError
from experiments import store
from experiments.errors import InputError
from experiments.runner import Watcher, run

from . import fakes


@pytest.fixture
def plan():
    return fakes.plan()


@pytest.fixture
def folder(tmp_path, plan):
    return store.create(tmp_path / "out", plan)


class Recording(Watcher):
    def __init__(self):
        self.heard = []

    def started(self, plan, left):
        self.heard.append(("started", len(left)))

    def chunk_finished(self, chunk, rows):
        self.heard.append(("finished", chunk.id))


def test_everything_is_trained_once_and_then_nothing(plan, folder):
    calls = []

    def trainer(chunk, checkpoints, on_progress):
        calls.append(chunk.id)
        return fakes.trainer(chunk, checkpoints, on_progress)

    summary = run(plan, folder, trainer=trainer)
    assert (summary.ok, summary.already, summary.left, summary.interrupted) == (24, 0, 0, False)
    assert calls == [c.id for c in plan.chunks]
    again = run(plan, folder, trainer=trainer)
    assert (again.ok, again.already) == (0, 24)
    assert len(calls) == len(plan.chunks)
    assert folder.read()["run_id"].tolist() == list(plan.run_ids)


def test_a_chunk_that_raises_is_rows_with_the_reason_and_the_others_go_on(plan, folder):
    unlucky = plan.chunks[1]

    def trainer(chunk, *rest):
        if chunk.id == unlucky.id:
            raise RuntimeError("INTERNAL: no kernel\nfor this shape")
        return fakes.trainer(chunk, *rest)

    summary = run(plan, folder, trainer=trainer)
    assert (summary.ok, summary.failed, summary.left) == (22, 2, 0)
    rows = folder.read().set_index("run_id").loc[[t.run_id for t in unlucky.trials]]
    assert set(rows["status"]) == {"failed"}
    assert set(rows["reason"]) == {"RuntimeError: INTERNAL: no kernel for this shape"}
    assert rows["loss"].isna().all()
    assert rows["lr"].tolist() == [t.optim.lr for t in unlucky.trials]
    # they are not tried again unless asked for
    assert run(plan, folder, trainer=fakes.trainer).already == 24
    retried = run(plan, folder, trainer=fakes.trainer, retry_failed=True)
    assert (retried.ok, retried.already) == (2, 22)
    assert set(folder.read()["status"]) == {"ok"}


@pytest.mark.parametrize("error", [InputError("x"), EngineInputError("x"), OSError(28, "No space left on device")])
def test_what_is_not_a_trials_own_fault_ends_the_run(plan, folder, error):
    def trainer(chunk, *rest):
        if chunk.id == plan.chunks[3].id:
            raise error
        return fakes.trainer(chunk, *rest)

    with pytest.raises(type(error)):
        run(plan, folder, trainer=trainer)
    assert len(folder.read()) == 6  # three chunks are safe
    assert run(plan, folder, trainer=fakes.trainer).ok == 18


def test_rows_of_other_trials_are_not_written(plan, folder):
    with pytest.raises(AssertionError):
        run(plan, folder, trainer=lambda chunk, *_: [fakes.row(t) for t in reversed(chunk.trials)])
    assert folder.read().empty


def test_the_first_ctrl_c_stops_at_the_next_report(plan, folder):
    handler = signal.getsignal(signal.SIGINT)

    def trainer(chunk, checkpoints, on_progress):
        if chunk.id == plan.chunks[2].id:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            on_progress(None)
            raise AssertionError("went on after Ctrl-C")
        return fakes.trainer(chunk, checkpoints, on_progress)

    summary = run(plan, folder, trainer=trainer)
    assert summary.interrupted and summary.ok == 4 and summary.left == 20
    assert len(folder.read()) == 4
    assert signal.getsignal(signal.SIGINT) is handler
    assert folder.running() is None


def test_ctrl_c_in_the_last_chunks_last_moment_is_not_an_interruption(plan, folder):
    def trainer(chunk, *rest):
        if chunk.id == plan.chunks[-1].id:
            os.kill(os.getpid(), signal.SIGTERM)
        return fakes.trainer(chunk, *rest)

    summary = run(plan, folder, trainer=trainer)
    assert not summary.interrupted and summary.left == 0


def test_the_watcher_hears_of_a_chunk_only_when_its_rows_are_safe(plan, folder):
    class Checking(Recording):
        def chunk_finished(self, chunk, rows):
            super().chunk_finished(chunk, rows)
            assert (folder.path / "parts" / f"{chunk.id}.parquet").exists()

    watcher = Checking()
    run(plan, folder, trainer=fakes.trainer, watcher=watcher)
    assert watcher.heard == [("started", 12)] + [("finished", c.id) for c in plan.chunks]


def test_other_chunk_sizes_train_only_what_is_missing(plan, folder):
    seen, enough = [], [True]

    def trainer(chunk, *rest):
        seen.extend(t.run_id for t in chunk.trials)
        if enough[-1] and len(seen) > 9:
            raise InputError("enough")
        return fakes.trainer(chunk, *rest)

    with pytest.raises(InputError):
        run(plan, folder, trainer=trainer)
    done = set(folder.read()["run_id"])
    seen.clear()
    enough.append(False)
    run(fakes.plan(max_trials=5), folder, trainer=trainer)
    assert not done & set(seen)
    assert len(seen) == 24 - len(done)
    assert folder.read()["run_id"].tolist() == list(plan.run_ids)


def sweep(out, report_s=0.01):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.experiments.fakes", str(out), str(report_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_second_run_is_refused_and_a_second_ctrl_c_ends_at_once(tmp_path, plan):
    first = sweep(tmp_path / "out", report_s=30)
    while not (tmp_path / "out.log").exists():
        time.sleep(0.005)
    with pytest.raises(InputError, match=f"process {first.pid}"):
        run(plan, store.create(tmp_path / "out", plan), trainer=fakes.trainer)
    first.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert first.poll() is None  # waits for the next report
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=5) == 130
    first.communicate()


def test_killed_at_random_it_ends_with_the_same_table(tmp_path, plan):
    reference = store.create(tmp_path / "reference", plan)
    run(plan, reference, trainer=fakes.trainer)
    out = tmp_path / "out"
    clock = random.Random(7)
    kills = 0
    for attempt in range(40):
        process = sweep(out)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        try:
            process.wait(timeout=clock.uniform(0.05, 0.35) if attempt < 4 else 60)
        except subprocess.TimeoutExpired:
            process.send_signal(clock.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT]))
            process.wait()
            kills += 1
        process.communicate()
        if process.returncode == 0:
            break
    assert kills >= 2
    pd.testing.assert_frame_equal(
        fakes.without_clock(store.load(out).read()), fakes.without_clock(reference.read()), check_exact=True
    )
    assert not list(out.glob("checkpoints/*")) and not list(out.glob("parts/.*"))
    # a chunk is started again only if it was cut off: at most once a kill
    started = (tmp_path / "out.log").read_text().split()
    assert set(started) == {c.id for c in plan.chunks}
    assert len(started) <= len(plan.chunks) + kills
