"""The results folder: atomic, exclusive, and refusing what is not ours."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pyarrow.parquet as pq
import pytest

import laws
from engine.config import replace
from experiments import store
from experiments.errors import InputError
from experiments.plan import make_plan

from . import fakes


@pytest.fixture
def plan():
    return fakes.plan()


def write_all(folder, plan):
    for chunk in plan.chunks:
        folder.write_part(chunk.id, [fakes.row(t) for t in chunk.trials])


def refusal(call, *args):
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def test_rows_come_back_in_the_grids_order(tmp_path, plan):
    folder = store.create(tmp_path / "out", plan)
    write_all(folder, plan)
    rows = store.load(tmp_path / "out").read()
    assert rows["run_id"].tolist() == list(plan.run_ids)
    assert rows.to_dict("records") == [fakes.row(t) for t in plan.trials]


def test_laws_read_the_same_folder(tmp_path, plan):
    folder = store.create(tmp_path, plan)
    write_all(folder, plan)
    runs = laws.load_runs(tmp_path)
    assert sorted(runs["run_id"]) == sorted(plan.run_ids)
    assert runs.set_index("run_id")["loss"].to_dict() == folder.read().set_index("run_id")["loss"].to_dict()


def test_failed_rows_too_are_a_run_table(tmp_path, plan):
    from experiments.runner import failed_row

    folder = store.create(tmp_path, plan)
    first, second = plan.chunks[:2]
    folder.write_part(first.id, [failed_row(t, "out of memory") for t in first.trials])
    folder.write_part(second.id, [fakes.row(t) for t in second.trials])
    runs = laws.load_runs(tmp_path)
    assert sorted(runs["status"]) == ["failed"] * len(first.trials) + ["ok"] * len(second.trials)


def test_checkpoints_go_when_the_rows_are_safe(tmp_path, plan):
    folder = store.create(tmp_path, plan)
    chunk = plan.chunks[0]
    folder.checkpoints(chunk.id).mkdir(parents=True)
    (folder.checkpoints(chunk.id) / "state").write_text("x")
    folder.write_part(chunk.id, [fakes.row(t) for t in chunk.trials])
    assert not folder.checkpoints(chunk.id).exists()


def test_tidy_removes_leftovers_and_nothing_else(tmp_path, plan):
    folder = store.create(tmp_path, plan)
    done, open_ = plan.chunks[:2]
    folder.write_part(done.id, [fakes.row(t) for t in done.trials])
    for chunk in (done, open_):
        folder.checkpoints(chunk.id).mkdir(parents=True)
    (tmp_path / "parts" / ".half.parquet.host.1.tmp").write_text("half")
    folder.tidy()
    assert files(tmp_path) == [
        "checkpoints", f"checkpoints/{open_.id}", "grid.json", "parts", f"parts/{done.id}.parquet",
    ]  # fmt: skip


def test_a_killed_writer_leaves_whole_parts_only(tmp_path, plan):
    """SIGKILL a process that rewrites parts as fast as it can; every part there must be whole at any moment."""
    store.create(tmp_path, plan)
    script = """
        import sys
        from tests.experiments import fakes
        from experiments import store
        plan = fakes.plan()
        folder = store.load(sys.argv[1])
        while True:
            for chunk in plan.chunks:
                print("writing", flush=True)
                folder.write_part(chunk.id, [fakes.row(t) for t in chunk.trials])
    """
    for delay in (0.0, 0.013, 0.037, 0.09):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        assert [writer.stdout.readline() for _ in range(2)] == [b"writing\n"] * 2  # the first is on disk
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        rows = store.load(tmp_path).read()  # raises on a torn part
        assert len(rows) % 2 == 0
    assert len(rows) > 0


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
def test_a_damaged_part_is_named(tmp_path, plan, damage):
    folder = store.create(tmp_path, plan)
    write_all(folder, plan)
    part = sorted(tmp_path.glob("parts/*.parquet"))[1]
    data = bytearray(part.read_bytes())
    if damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "flip":
        # in a data page, where Parquet's own reader would hand on a wrong number without its page checksums
        meta = pq.ParquetFile(part).metadata.row_group(0)
        column = meta.column([c.name for c in pq.ParquetFile(part).schema].index("lr"))
        data[column.data_page_offset + column.total_compressed_size - 3] ^= 0x10
    elif damage == "empty":
        data = bytearray()
    else:
        data = bytearray(b"run_id,loss\n1,2\n")
    part.write_bytes(data)
    said = refusal(folder.read)
    assert part.name in said and "delete it" in said


def test_a_repeated_trial_is_refused(tmp_path, plan):
    folder = store.create(tmp_path, plan)
    rows = [fakes.row(t) for t in plan.chunks[0].trials]
    folder.write_part("a", rows)
    folder.write_part("b", rows)
    said = refusal(folder.read)
    assert "b.parquet" in said and "a.parquet" in said and rows[0]["run_id"] in said


def test_a_trial_of_another_grid_is_refused(tmp_path, plan):
    folder = store.create(tmp_path, plan)
    folder.write_part("a", [fakes.row(replace(plan.trials[0], {"seed": 99}))])
    assert "not of this grid" in refusal(folder.read)


def test_going_on_needs_the_same_grid(tmp_path, plan):
    store.create(tmp_path, plan)
    assert store.create(tmp_path, plan).run_ids == plan.run_ids
    assert store.create(tmp_path, fakes.plan(max_trials=5)).max_trials == 2  # cut otherwise, still the same grid
    before = files(tmp_path)
    said = refusal(store.create, tmp_path, fakes.plan(n_lr=5))
    assert str(tmp_path) in said and "24 trials" in said and "another --out" in said
    assert files(tmp_path) == before


def test_of_one_trial_it_is_said_in_what_another_differs(tmp_path, plan):
    one, other = (make_plan("one", [replace(plan.trials[0], {"seed": seed})]) for seed in (4, 5))
    folder = store.create(tmp_path, one)
    assert "holds another trial than this; name another --out" in refusal(store.create, tmp_path, other)
    folder.write_part("a", [fakes.row(one.trials[0])])
    assert "another trial than this (seed: 4 there, 5 here); name" in refusal(store.create, tmp_path, other)


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path, plan):
    (tmp_path / "thesis.tex").write_text("dear reader")
    assert "thesis.tex" in refusal(store.create, tmp_path, plan)
    assert "thesis.tex" in refusal(store.load, tmp_path)
    assert files(tmp_path) == ["thesis.tex"]


def test_paths_that_cannot_be_written(tmp_path, plan):
    file = tmp_path / "file"
    file.write_text("x")
    assert "is a file" in refusal(store.create, file, plan)
    assert str(file / "out") in refusal(store.create, file / "out", plan)
    assert "/proc/out" in refusal(store.create, "/proc/out", plan)
    assert files(tmp_path) == ["file"]


def test_an_empty_folder_and_one_left_by_a_killed_start_are_fine(tmp_path, plan):
    (tmp_path / ".grid.json.host.12.tmp").write_text("{")
    store.create(tmp_path, plan)


def test_damaged_and_newer_grid_files_are_refused(tmp_path, plan):
    store.create(tmp_path, plan)
    file = tmp_path / "grid.json"
    text = file.read_text()
    file.write_text(text[:40])
    assert "damaged" in refusal(store.load, tmp_path)
    file.write_text(text.replace('"format": 1', '"format": 9'))
    assert "format 9" in refusal(store.load, tmp_path)


def test_no_results_folder_says_how_to_make_one(tmp_path):
    assert "stepseer sweep run" in refusal(store.load, tmp_path / "none")


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path, plan):
    folder = store.create(tmp_path, plan)
    script = """
        import sys, time
        from experiments import store
        with store.load(sys.argv[1]).lock():
            print("held", flush=True)
            time.sleep(60)
    """
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    said = refusal(lambda: folder.lock().__enter__())
    assert str(holder.pid) in said
    assert str(holder.pid) in (folder.running() or "")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with folder.lock():
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert folder.running() is None


def test_discarding_failures_makes_them_pending(tmp_path, plan):
    from experiments.runner import failed_row

    folder = store.create(tmp_path, plan)
    good, bad = plan.chunks[:2]
    folder.write_part(good.id, [fakes.row(t) for t in good.trials])
    folder.write_part(bad.id, [failed_row(t, "boom") for t in bad.trials])
    assert folder.discard_failed() == 2
    assert set(folder.read()["run_id"]) == {t.run_id for t in good.trials}
