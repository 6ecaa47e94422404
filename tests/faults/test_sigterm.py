"""SIGTERM: saved at the next step, a line that says how to go on, exit code 143; going on gives the same bits."""

import os
import signal
import threading

import numpy as np
import pytest

import engine
from engine import config as config_lib
from experiments import cli, recipes, runner, store
from tests.engine.conftest import tiny  # noqa: F401 - a fixture
from tests.experiments import fakes

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="only the main thread hears signals"
)


@pytest.fixture(autouse=True)
def short_calls(monkeypatch):
    monkeypatch.setattr(engine.loop, "MAX_CALL_STEPS", 4)


@pytest.fixture(autouse=True)
def nobody_elses_handler():
    """Ray, which other tests start in this process, leaves its own."""
    left = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, left)


def terminate_at(step):
    def on_progress(progress):
        if progress.step >= step and not terminated:
            terminated.append(progress.step)
            os.kill(os.getpid(), signal.SIGTERM)

    terminated = []
    return on_progress


def test_train_saves_says_so_and_exits_with_143(tiny, tmp_path, caplog):  # noqa: F811
    with pytest.raises(SystemExit) as ended:
        engine.train(tiny, folder=tmp_path, on_progress=terminate_at(8))
    assert ended.value.code == 143
    assert f"stopped by SIGTERM; saved in {tmp_path}, from which the same call goes on" in caplog.text
    assert 8 <= max(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) < tiny.steps
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    resumed, undisturbed = engine.train(tiny, folder=tmp_path), engine.train(tiny)
    np.testing.assert_array_equal(resumed.metrics["loss"], undisturbed.metrics["loss"])
    np.testing.assert_array_equal(resumed.params["head"], undisturbed.params["head"])


def test_a_callers_own_handler_stays(tiny, tmp_path):  # noqa: F811
    heard = []
    previous = signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    try:
        result = engine.train(tiny, folder=tmp_path, on_progress=terminate_at(8))
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert heard == [True] and len(result.metrics["loss"]) == tiny.steps


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_sweep_stops_between_two_chunks_or_in_one(signum, code, tmp_path):
    def trainer(chunk, folder, on_progress):
        os.kill(os.getpid(), signum)
        on_progress(None)
        raise AssertionError("on_progress did not stop it")

    plan = fakes.plan()
    summary = runner.run(plan, store.create(tmp_path, plan), trainer=trainer)
    assert summary.interrupted and summary.signum == signum and summary.left == len(plan.trials)
    assert 128 + summary.signum == code


def test_the_command_goes_on_from_there(tiny, tmp_path, monkeypatch, capsys):  # noqa: F811
    """`stepseer train --out`, stopped by SIGTERM in the middle; the same command again."""
    config = config_lib.replace(tiny, {"recipe": "tiny"})
    monkeypatch.setattr(recipes, "load_one", lambda _: config)
    train_chunk = runner.train_chunk

    def terminated(chunk, folder, on_progress, **how):
        kill = terminate_at(8)

        def both(progress):
            kill(progress)
            on_progress(progress)

        return train_chunk(chunk, folder, both, **how)

    argv = ["train", "tiny", "--out", str(tmp_path / "out"), "--keep-every", "5,100h", "--keep", "1", "--json"]
    monkeypatch.setattr(runner, "train_chunk", terminated)
    assert cli.main(argv) == 143
    assert capsys.readouterr().err == "stepseer: stopped by SIGTERM; run the same command again to go on\n"
    monkeypatch.setattr(runner, "train_chunk", train_chunk)
    assert cli.main(argv) == 0
    model = tmp_path / "out" / "model"
    steps = sorted(int(p.name) for p in model.iterdir() if p.name.isdigit())
    assert {5, 10, 15, 20, 24} <= set(steps) and len(steps) <= 6  # and the first, of the 100 hours
    assert len(list((tmp_path / "out" / "logs").glob("*/metrics.jsonl"))) == 1
