"""How long a grid takes and in what sizes it is cut, from what pilots find."""

import math
import os
import time

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from engine import pilot
from engine.config import replace
from engine.pilot import Cost
from experiments import forecast as forecast_lib
from experiments import grid, store
from experiments.cli import main
from experiments.commands import sweep_plan, sweep_status
from experiments.forecast import forecast, measure, sizes_that_pay
from experiments.plan import make_plan
from tests.experiments.test_cli import say, say_json

from . import fakes


def cost(n, step_s, bytes=1000):
    return Cost(n, bytes, True, compile_s=7.0, start_s=2.0, fixed_s=0.5, step_s=step_s)


def test_seconds_of_measured_cohorts():
    """Two cohorts of chunks of 6: two budgets of 20 and 40 steps."""
    plan = fakes.plan(max_trials=6)
    small, large = plan.cohorts
    found = forecast(plan, plan.chunks, {small[0].cohort: cost(6, 0.1), large[0].cohort: cost(6, 0.3)})
    assert [found.by_chunk[c.id] for c in plan.chunks] == pytest.approx(
        [2 + 0.5 + 2, 0.5 + 4, 2 + 0.5 + 6, 0.5 + 12]  # a program begins once
    )
    assert (found.training, found.compiling, found.beside) == pytest.approx((24, 4, 2))
    assert found.seconds == pytest.approx(30) and (found.pilots, found.cohorts) == (2, 2)
    begun = forecast(plan, plan.chunks, {c[0].cohort: cost(6, 0.1) for c in plan.cohorts}, ready={small[0].cohort})
    assert begun.compiling == pytest.approx(2)


def test_others_by_their_flops():
    """Of three widths the outer ones are known, at FLOP/s that grow with width; the middle one lies between."""
    entries = grid.prod(grid.axis("model.d_model", [16, 32, 64]), grid.axis("optim.lr", [1e-3, 2e-3]))
    plan = make_plan("g", grid.trials(fakes.BASE, entries))
    small, middle, large = plan.chunks
    pace = {small.id: 1e9, large.id: 4e9}
    costs = {c.cohort: cost(2, c.flops / c.base.steps / pace[c.id]) for c in (small, large)}
    found = forecast(plan, plan.chunks, costs)
    at = math.log(middle.flops / small.flops) / math.log(large.flops / small.flops)
    expected = middle.flops / (1e9 + 3e9 * at)
    assert found.by_chunk[middle.id] == pytest.approx(expected + 7 + 2 + 0.5)  # and its program is to be compiled
    assert found.pilots == 2 and found.share == pytest.approx(1 - middle.flops / plan.flops)
    assert f"2 cohorts measured, which carry {found.share:.0%} of the FLOPs; 1 by" in sweep_plan.describe(found)
    assert forecast(plan, plan.chunks, {}) is None
    assert forecast(plan, plan.chunks, {small.cohort: Cost(2, 9, False)}) is None


@pytest.fixture
def piloted(monkeypatch):
    """Devices with room for `room` trials; a step takes as long as `seconds` says. What was asked is kept."""

    def devices(room, seconds=lambda n: 0.1 * n, backend="cpu"):
        asked = []

        def fake(trials):
            asked.append(len(trials))
            n = len(trials)
            return cost(n, seconds(n)) if n <= room else Cost(n, 10**9, False)

        monkeypatch.setattr(pilot, "measure", fake)
        monkeypatch.setattr(pilot, "known", lambda trials: None)
        monkeypatch.setattr("jax.default_backend", lambda: backend)
        return asked

    return devices


def trials(n):
    return grid.trials(fakes.BASE, grid.axis("seed", range(n)))


def test_chunks_are_halved_until_they_fit(piloted):
    plan = make_plan("g", trials(40))
    asked = piloted(room=5)
    cut = sizes_that_pay(plan, measure(plan))
    assert asked == [14, 7, 4] and list(cut.values()) == [4]
    again = make_plan("g", trials(40), cut=cut)
    assert [len(c.trials) for c in again.chunks] == [4] * 10
    assert make_plan("g", trials(40), max_trials=4).chunks == again.chunks


def test_on_accelerators_chunks_grow_while_that_is_faster(piloted):
    plan = make_plan("g", trials(400))
    asked = piloted(room=300, seconds=lambda n: max(n, 100) * 0.01, backend="gpu")
    cut = sizes_that_pay(plan, measure(plan))
    assert asked == [16, 64, 256, 400] and list(cut.values()) == [256]  # 400 do not fit
    asked = piloted(room=300, backend="gpu")
    assert sizes_that_pay(plan, measure(plan)) == {} and asked == [16, 64]


def test_only_the_cohorts_that_cost_most_are_measured(piloted):
    entries = grid.axis("model.d_model", [16 * k for k in range(1, 31)])
    plan = make_plan("g", grid.trials(fakes.BASE, entries))
    asked = piloted(room=9)
    costs = measure(plan)
    assert len(asked) == len(costs) == forecast_lib.MOST
    assert set(costs) == {chunks[0].cohort for chunks in plan.cohorts[-forecast_lib.MOST :]}


def test_what_would_take_too_long_is_not_tried(piloted):
    huge = replace(fakes.BASE, {"model.d_model": 16384, "batch_size": 4096, "tokens": 1e9, "optim.warmup_steps": 0})
    asked = piloted(room=9)
    assert measure(make_plan("g", [huge])) == {} and asked == []


def test_what_is_compiled_once_is_told_from_what_every_process_does(tmp_path):
    """Compiled it is `spent`, read from the disk it is not, and what that saved is known."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}

    def compiled():
        with pilot._compiler() as seen:
            jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda i, y: jax.numpy.linalg.qr(x @ y)[0], x))(x)
        return seen

    try:
        for name, value in zip(names, (str(tmp_path), 0.0)):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        x = jax.numpy.eye(64)
        first, second = compiled(), compiled()
        assert first["spent"] > 0 == first["saved"] and second["spent"] == 0
        with pilot._compiler() as seen:
            jax.monitoring.record_event_duration_secs("/jax/compilation_cache/compile_time_saved_sec", 7.0)
        assert seen == {"spent": 0.0, "saved": 7.0}
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_a_real_pilot_and_what_status_says_of_its_forecast(tmp_path, monkeypatch, capsys):
    """Measured once, known from then on; noted when the run begins, held against what was measured in the end."""
    monkeypatch.setenv("STEPSEER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pilot, "LASTING", 0.0)
    (tmp_path / "mine.py").write_text(
        "from tests.experiments.fakes import BASE\nfrom experiments.grid import axis, trials\n\n"
        "def lrs():\n    return trials(BASE, axis('optim.lr', [1e-3, 1e-2]))\n"
    )
    mine, out = f"{tmp_path}/mine.py:lrs", tmp_path / "out"
    before = say_json(capsys, "sweep", "plan", mine)
    assert before["seconds_left"] is None and "forecast" not in before
    planned = say_json(capsys, "sweep", "plan", mine, "--measure")
    assert "measuring" not in say(capsys, "sweep", "plan", mine, "--measure")  # known by now
    assert planned["seconds_left"] == planned["forecast"]["seconds"] > 0
    here = 2 // min(2, jax.device_count())  # trials of a device
    assert planned["cohorts"][0]["bytes_per_device"] > 12 * here * 20_000  # at the least their state
    monkeypatch.setattr(pilot, "measure", lambda trials: pytest.fail("measured again"))
    known = say_json(capsys, "sweep", "plan", mine, "--measure")
    assert known["forecast"] == planned["forecast"]
    assert "1 cohort measured" in say(capsys, "sweep", "plan", mine)
    shown = say(capsys, "sweep", "run", mine, "--out", out)
    assert "about" in shown.splitlines()[0] and "1 cohort measured" in shown.splitlines()[0]
    status = say_json(capsys, "sweep", "status", "--out", out)
    assert status["forecast_s"] == pytest.approx(planned["forecast"]["seconds"], rel=1e-3)
    rows = store.load(out).read()
    assert status["measured_s_of_done"] == pytest.approx(rows["wall_s"].sum())
    assert "was thought to take" in say(capsys, "sweep", "status", "--out", out)


def test_status_before_anything_has_finished_has_the_forecast(tmp_path, capsys):
    plan = fakes.plan()
    folder = store.create(tmp_path / "out", plan)
    assert "unknown until a chunk has finished" in say(capsys, "sweep", "status", "--out", folder.path)
    folder.write_forecast(dict.fromkeys(plan.run_ids, 10.0))
    assert "time left: about 4 min 00 s (forecast)" in say(capsys, "sweep", "status", "--out", folder.path)
    with folder.lock():  # it runs, since 60 s
        os.utime(folder.path / ".lock", (time.time() - 60,) * 2)
        assert say_json(capsys, "sweep", "status", "--out", folder.path)["seconds_left"] == pytest.approx(180, abs=5)


@pytest.mark.parametrize(
    "thought, said",
    [(100.1, "right"), (120, "20% too high"), (80, "20% too low"), (10, "90% too low"), (543, "5.4 times too high")],
)
def test_how_wrong_a_forecast_was(thought, said):
    assert sweep_status._error(thought, 100.0) == said


def test_the_least_time_on_devices_that_are_not_here(capsys):
    small, large = (say_json(capsys, "sweep", "plan", "steplaw_dense", "--on", on) for on in ("h100-8", "h100-64"))
    assert large["seconds_at_least"] > small["flops"] / (64 * 989.5e12)  # no faster than all chips at their peak
    assert 6 < small["seconds_at_least"] / large["seconds_at_least"] < 8.1
    assert all(cohort["bytes_per_device"] > 0 for cohort in small["cohorts"])
    assert "less than a second at best" in say(capsys, "sweep", "plan", "tiny", "--on", "v5e-8")
    assert main(["sweep", "plan", "tiny", "--on", "v5e-8", "--measure"]) == 2
    assert "leave one of them out" in capsys.readouterr().err
    assert main(["sweep", "plan", "tiny", "--on", "h1000-8"]) == 2
    assert "no topology 'h1000-8'" in capsys.readouterr().err
