"""What a watcher shows."""

import io

import pytest
from rich.console import Console

import engine
from experiments import progress, show, store
from experiments.runner import failed_row, run

from . import fakes


def reporting(chunk, folder, on_progress):
    for step in (5, 10):
        on_progress(engine.Progress(step, 10, 123_456.0, 2.5, 1.0))
    if chunk.base.tokens > 2000 and chunk.base.model.d_model == 32:
        return [failed_row(t, "too hot") for t in chunk.trials]
    return fakes.trainer(chunk, folder, on_progress)


def test_bars_fit_a_terminal_of_80_columns_and_say_what_is_left(tmp_path):
    plan = fakes.plan()
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80, highlight=False, legacy_windows=False)
    with progress.Bars(console) as bars:
        run(plan, store.create(tmp_path, plan), trainer=reporting, watcher=bars)
        bars._bars.refresh()
        sweep, chunk = bars._bars.tasks
        assert sweep.completed == pytest.approx(1) and sweep.fields["note"].startswith("24 of 24 trials")
        assert chunk.fields["note"] == "123k tok/s, loss 2.5000"
        lines = shown.getvalue().splitlines()
    assert not any("…" in line for line in lines)
    assert any("failed (too hot)" in line for line in lines)


def test_lines_elsewhere_one_a_chunk_with_the_share_of_the_work(tmp_path, capsys):
    plan = fakes.plan()
    run(plan, store.create(tmp_path, plan), trainer=reporting, watcher=progress.Lines())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(plan.chunks)
    shares = [int(line.split("%")[0]) for line in lines]
    done = [sum(c.flops for c in plan.chunks[: i + 1]) / plan.flops for i in range(len(plan.chunks))]
    assert shares == [pytest.approx(100 * share, abs=0.51) for share in done]
    assert "about" in lines[0] and "left" in lines[0] and "left" not in lines[-1]


def test_a_line_a_minute_of_a_long_chunk(monkeypatch, capsys):
    """And what it says: step, pace, share of the accelerator's peak if known, time left."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    plan = fakes.plan()
    lines = progress.Lines()
    lines.started(plan, plan.chunks)
    lines.chunk_started(plan.chunks[0])
    for clock[0], mfu in ((50.0, 0.41), (70.0, 0.41), (100.0, 0.41), (140.0, float("nan"))):
        lines.progress(plan.chunks[0], engine.Progress(5, 10, 123_456.0, 2.5, 65.0, mfu))
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(": step 5 of 10, 123k tok/s, loss 2.5000, MFU 41%, 1 min 05 s left of it")
    assert second.endswith(": step 5 of 10, 123k tok/s, loss 2.5000, 1 min 05 s left of it")


def test_several_chunks_at_once_share_a_bar_and_losses_are_said(capsys):
    plan, shown = fakes.plan(), io.StringIO()
    one, other = plan.chunks[:2]
    with progress.Bars(Console(file=shown, force_terminal=True, width=100, highlight=False)) as bars:
        bars.started(plan, plan.chunks)
        for chunk in (one, other):
            bars.chunk_started(chunk)
            bars.progress(chunk, engine.Progress(5, 10, 1000.0, 2.5, 1.0))
        task = bars._bars.tasks[1]
        assert (task.description, task.fields["note"], task.completed) == ("2 chunks at once", "2k tok/s", 0.5)
        assert bars.share() == pytest.approx((one.flops + other.flops) / 2 / plan.flops)
        bars.lost(other, "NodeDiedError: gone.")
        bars.progress(one, engine.Progress(6, 10, 1000.0, 2.5, 1.0))
        assert task.description == progress.label(one)
        assert bars.share() == pytest.approx(0.6 * one.flops / plan.flops)
    assert f"{progress.label(other)}: lost, and runs again (NodeDiedError: gone)" in shown.getvalue()
    lines = progress.Lines()
    lines.waiting("a node with gpu=8 free")
    assert capsys.readouterr().out == "waiting for a node with gpu=8 free\n"


def test_compiling_side_by_side_is_not_taken_for_training(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    plan = fakes.plan()
    half = plan.chunks[: len(plan.chunks) // 2]  # of one program
    lines = progress.Lines()
    lines.started(plan, half)
    for chunk in half[:2]:
        lines.chunk_started(chunk)
    clock[0] = 100.0
    lines.progress(half[0], engine.Progress(1, 100, 1.0, 2.5, 1.0))
    assert lines.left_s() == 0  # as far as is known yet
    clock[0] = 101.0
    for chunk in half[:2]:
        lines.progress(chunk, engine.Progress(50, 100, 1.0, 2.5, 1.0))
    share = sum(chunk.flops for chunk in half[:2]) / 2 / sum(chunk.flops for chunk in half)
    assert lines.left_s() == pytest.approx((1 - share) / share)


def test_nothing_with_json(capsys):
    with progress.watcher(quiet=True) as watcher:
        watcher.started(fakes.plan(), fakes.plan().chunks)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "value, said",
    [
        (7e9, "7B"), (1.4e12, "1.4T"), (214_663_680, "215M"), (960, "960"), (999_999, "1M"), (25_088, "25.1k"),
        (1e15, "1000T"), (0, "0"), (float("nan"), "-"),
    ],
)  # fmt: skip
def test_counts(value, said):
    assert show.count(value) == said


@pytest.mark.parametrize("value, said", [(3.1e-4, "3.1e-4"), (0.0099, "9.9e-3"), (0.00999, "1.0e-2"), (1.0, "1.0e0")])
def test_rates(value, said):
    assert show.rate(value) == said


@pytest.mark.parametrize(
    "value, said",
    [(8.4, "8 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (1e6, "11 days 13 h")],
)
def test_durations(value, said):
    assert show.seconds(value) == said


def test_json_is_strict():
    import json

    import numpy as np

    value = {"a": float("nan"), "b": np.float64(2), "c": (np.inf, np.int64(3)), "d": np.array([1.0, np.nan])}
    assert json.loads(show.as_json(value)) == {"a": None, "b": 2.0, "c": [None, 3], "d": [1.0, None]}


def test_time_left_counts_compiling_apart(monkeypatch):
    """Two programs of equal compile time, a steady pace: the time left is right from the first report on."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    plan = fakes.plan()
    share = progress._Share()
    pace, compiling = plan.flops / 100, 40.0
    share.started(plan, plan.chunks)
    share.chunk_started(plan.chunks[0])
    assert share.left_s() != share.left_s()  # NaN: nothing known yet
    seen = set()
    for chunk in plan.chunks:
        share.chunk_started(chunk)
        clock[0] += 0 if chunk.program in seen else compiling
        seen.add(chunk.program)
        for step in range(11):
            clock[0] += chunk.flops / 10 / pace * (step > 0)
            share.progress(chunk, engine.Progress(step, 10, 1.0, 2.5, 1.0))
            if step > 0:
                assert share.left_s() == pytest.approx(100 + 2 * compiling - clock[0], rel=1e-6, abs=1e-6)
        share.chunk_finished(chunk, [])
    assert share.left_s() == 0 and share.share() == pytest.approx(1)
