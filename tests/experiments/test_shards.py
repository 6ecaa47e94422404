"""A grid in parts: jobs that share a results folder."""

import os
import subprocess
import sys
import textwrap

import pytest

from experiments import plan as plan_lib
from experiments import runner, store
from experiments.cli import main
from experiments.errors import InputError
from tests.experiments import fakes


@pytest.fixture
def plan():
    return fakes.plan()


@pytest.mark.parametrize("of", [1, 2, 3, 50])
def test_every_chunk_is_in_one_part_and_parts_are_alike(plan, of):
    parts = [plan_lib.shard(plan.chunks, i, of) for i in range(of)]
    assert sorted(c.id for part in parts for c in part) == sorted(c.id for c in plan.chunks)
    loads = [sum(c.flops for c in part) for part in parts]
    assert max(loads) - min(loads) <= max(c.flops for c in plan.chunks)
    assert all([c.id for c in part] == [c.id for c in plan.chunks if c in part] for part in parts)  # in their order


def test_processes_at_once_make_one_table(tmp_path, plan):
    """Each in a process of its own, all on one folder; nothing twice, nothing missing."""
    store.create(tmp_path, plan)
    script = """
        import sys
        from experiments import runner, store
        from tests.experiments import fakes
        whole = fakes.plan()
        folder = store.create(sys.argv[1], whole)
        done = runner.run(whole, folder, trainer=fakes.trainer, shard=(int(sys.argv[2]), 3))
        print(done.ok + done.diverged, done.already)
    """
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(i)], stdout=subprocess.PIPE, text=True
        )
        for i in range(3)
    ]
    counts = [tuple(map(int, job.communicate(timeout=120)[0].split())) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert sum(done for done, _ in counts) == len(plan.trials) and not any(already for _, already in counts)
    rows = store.load(tmp_path).read()
    assert list(rows["run_id"]) == list(plan.run_ids)
    alone = store.create(tmp_path / "alone", plan)
    runner.run(plan, alone, trainer=fakes.trainer)
    assert rows["loss"].equals(alone.read()["loss"])


def test_locks(tmp_path, plan):
    folder = store.create(tmp_path, plan)
    with folder.lock((0, 2)), folder.lock((1, 2)):
        assert str(os.getpid()) in (folder.running() or "")
        for other in (None, (0, 2)):
            with pytest.raises(InputError, match="in use by another run"), folder.lock(other):
                pass
    with folder.lock(), pytest.raises(InputError, match="in use by another run"), folder.lock((0, 2)):
        pass
    assert folder.running() is None


def test_a_shard_leaves_what_others_write(tmp_path, plan):
    folder = store.create(tmp_path, plan)
    other = tmp_path / "parts" / ".half.parquet.host.1.tmp"
    other.write_bytes(b"half")
    runner.run(plan, folder, trainer=fakes.trainer, shard=(0, 2))
    assert other.exists()
    runner.run(plan, folder, trainer=fakes.trainer)
    assert not other.exists()


@pytest.mark.parametrize("shard", ["2/2", "-1/2", "1", "a/b", "1/0"])
def test_mistakes(shard, tmp_path, capsys):
    assert main(["sweep", "run", "tiny", "--out", str(tmp_path / "out"), f"--shard={shard}"]) == 2
    assert repr(shard) in capsys.readouterr().err and not (tmp_path / "out").exists()
