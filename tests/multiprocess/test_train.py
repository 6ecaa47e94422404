"""One training over several processes: the same losses; saved on four, gone on with on two and one; and what happens
when a process is asked to stop, hangs or dies. Everything on loopback, by the command line itself."""

import json
import re
import signal

import numpy as np
import pytest

from engine import checkpoint
from engine.processes import EXIT_CODE
from experiments import store
from tests.multiprocess import recipe
from tests.multiprocess.group import group, lines

TRAIN = ["-m", "experiments", "train", "tests/multiprocess/recipe.py:model", "--keep-every", "20", "--out"]
SLOW_S, LOST_S = 4, 60
LIMITS = {"STEPSEER_SLOW_S": str(SLOW_S), "STEPSEER_LOST_S": str(LOST_S)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache):
    """One process with four devices."""
    folder = tmp_path_factory.mktemp("alone")
    with group([*TRAIN, str(folder / "out")], 1, folder / "log", devices=4, cache=cache) as started:
        assert started.wait() == [0], started.everything()
    return folder / "out"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, cache):
    """Four processes with a device each, of which the third heard SIGTERM."""
    folder = tmp_path_factory.mktemp("stopped")
    with group([*TRAIN, str(folder / "out")], 4, folder / "log", devices=1, cache=cache) as started:
        started.until(lambda: lines(folder / "out") >= 10)
        started.signal(2, signal.SIGTERM)
        assert started.wait() == [143] * 4, started.everything()
        for p in range(4):
            assert "stopped by SIGTERM; run the same command again to go on" in started.said(p)
    assert newest(folder / "out") < recipe.STEPS
    return folder / "out"


def newest(out):
    return max(int(p.name) for p in (out / "model").iterdir() if p.name.isdigit())


def metrics(out):
    (file,) = out.glob("logs/*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def assert_same_losses(out, other):
    """Processes add up gradients in another order than one does."""
    mine, theirs = metrics(out), metrics(other)
    assert [m["step"] for m in mine] == list(range(recipe.STEPS + 1)) == [m["step"] for m in theirs]
    assert [m["lr"] for m in mine[:-1]] == [m["lr"] for m in theirs[:-1]]
    found, wanted = ([m["loss"] for m in ms[:-1]] for ms in (mine, theirs))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert mine[-1]["eval_loss"] == pytest.approx(theirs[-1]["eval_loss"], rel=1e-5)


def test_two_processes_train_as_one_and_one_that_hangs_is_named(alone, tmp_path, cache):
    out, limits = tmp_path / "out", LIMITS | {"STEPSEER_LOST_S": "200"}
    with group([*TRAIN, str(out)], 2, tmp_path / "log", devices=2, cache=cache, environment=limits) as started:
        started.until(lambda: lines(out) >= 10)
        started.signal(1, signal.SIGSTOP)
        said = r"process 1 on \S+ has (been at|not answered for) .*\d+ s"
        started.until(lambda: re.search(said, started.said(0)), SLOW_S + 20)
        started.signal(1, signal.SIGCONT)
        assert started.wait() == [0, 0], started.everything()
        assert re.search(r"process 1 on \S+ goes on", started.said(0))
        assert "held-out loss" in started.said(0) and "held-out loss" not in started.said(1)  # process 0 prints
    assert_same_losses(out, alone)
    assert len(list(out.glob("parts/*.parquet"))) == 1 and len(list(out.glob("logs/*"))) == 1


def test_saved_on_four_a_state_is_restored_bit_for_bit_on_two_and_on_one(stopped, tmp_path, cache):
    with checkpoint.Checkpoints(stopped / "model", read_only=True) as saved:
        whole = saved.read()  # on one: this process
    wanted = checkpoint._leaves({"state": whole.state})
    argv = ["-m", "tests.multiprocess.restore", str(stopped / "model"), str(tmp_path)]
    with group(argv, 2, tmp_path / "log", devices=2, cache=cache) as started:
        assert started.wait() == [0, 0], started.everything()
    seen = {name: np.zeros(leaf.shape, bool) for name, leaf in wanted.items()}
    for p in range(2):
        with np.load(tmp_path / f"{p}.npz") as found:
            assert int(found["step"]) == whole.step == newest(stopped) and int(found["devices"]) == 4
            for key in found.files:
                name, bar, bounds = key.partition("|")
                if bar:
                    at = tuple(slice(*pair) for pair in json.loads(bounds))
                    assert found[key].tobytes() == wanted[name][at].tobytes(), key
                    seen[name][at] = True
            assert found["state/0_params/layers/down|[[0, 2], [0, 1], [0, 24], [0, 8]]"].any()  # half of it
    assert all(mask.all() for mask in seen.values())


@pytest.mark.parametrize("victim", [1, 0])
def test_one_is_killed_the_other_ends_and_the_run_goes_on(victim, stopped, alone, tmp_path, cache):
    other, before = 1 - victim, lines(stopped)
    with group([*TRAIN, str(stopped)], 2, tmp_path / "log", devices=2, cache=cache, environment=LIMITS) as started:
        started.until(lambda: lines(stopped) >= before + 5)
        started.signal(victim, signal.SIGKILL)
        codes = started.wait(LOST_S + 60)
        assert codes[victim] == -signal.SIGKILL and codes[other] == EXIT_CODE, started.everything()
        last = started.said(other).splitlines()[-1]
        assert f"process {victim} on " in last and "the same command, on all hosts, goes on" in last
    if victim == 0:  # that was the second time; now to the end, on one
        with group([*TRAIN, str(stopped)], 1, tmp_path / "end", devices=4, cache=cache) as started:
            assert started.wait() == [0], started.everything()
        assert_same_losses(stopped, alone)


def test_process_0_aborted_for_another_that_is_lost_names_it(tmp_path):
    """Messages to a process that is gone may abort the one that sends them: process 0, too."""
    watch = (
        "import sys, time; from tpu import start\n"
        "with start.group() as g: g.gather(0); print('together', file=sys.stderr, flush=True); time.sleep(60)"
    )
    with group(["-c", watch], 2, tmp_path / "log", devices=1, cache=tmp_path) as started:
        started.until(lambda: all("together" in started.said(p) for p in range(2)))
        started.signal(1, signal.SIGKILL)
        started.signal(0, signal.SIGABRT)
        assert started.wait(60) == [EXIT_CODE, -signal.SIGKILL], started.everything()
        assert "process 1 on " in started.said(0).splitlines()[-1], started.everything()


def test_a_sweep_ends_with_the_table_of_one_process(tmp_path, cache):
    argv = ["-m", "experiments", "sweep", "run", "tests/multiprocess/recipe.py:grid", "--out"]
    tables = []
    for count, devices in ((1, 4), (2, 2)):
        out = tmp_path / f"of-{count}"
        with group([*argv, str(out)], count, tmp_path / f"log-{count}", devices=devices, cache=cache) as started:
            assert started.wait() == [0] * count, started.everything()
            assert "4 trials: 3 trained, 1 diverged" in started.said(0), started.everything()
        tables.append(store.load(out).read())
    one, two = tables
    exact = ["run_id", "status", "reason", "params", "tokens", "lr", "batch_tokens", "flops", "device", "config"]
    assert one[exact].equals(two[exact]) and len(one) == 4
    for name in ("loss", "eval_loss", "bpc"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5)


def test_a_mistake_on_one_ends_all_with_its_reason_and_leaves_no_folder(tmp_path, cache):
    argv = ["-m", "experiments", "train", "--out", str(tmp_path / "out")]
    recipe_of = "tests/multiprocess/recipe.py:{}".format
    with (
        group([*argv, recipe_of("of_each_its_own")], 3, tmp_path / "differ", devices=1, cache=cache) as differing,
        group([*argv, recipe_of("missing_on_one")], 3, tmp_path / "lack", devices=1, cache=cache) as lacking,
    ):
        for started, why in ((differing, "process 2 has other trials than process 0"), (lacking, "no such corpus")):
            assert started.wait(60) == [2, 2, 2], started.everything()
            for p in range(3):
                assert why in started.said(p) and "stack trace" not in started.said(p), started.everything()
    assert not (tmp_path / "out").exists()


def test_what_keeps_a_run_from_starting_is_said(tmp_path, cache):
    """A process that finds nobody at the address, and a process 0 that waits for another in vain."""
    environment = {"JAX_NUM_PROCESSES": "2", "STEPSEER_START_S": "4"}
    with group(
        [*TRAIN, str(tmp_path / "out")], 2, tmp_path / "log", devices=1, cache=cache, environment=environment
    ) as g:
        g.processes[1].kill()
        codes = g.wait(60)
    assert codes[0] == EXIT_CODE and "not all of the 2 processes came to 127.0.0.1:" in g.said(0), g.everything()
    environment |= {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:9", "JAX_PROCESS_ID": "1"}
    with group(
        [*TRAIN, str(tmp_path / "out")], 1, tmp_path / "log1", devices=1, cache=cache, environment=environment
    ) as g:
        assert g.wait(60) == [EXIT_CODE], g.everything()
        assert "process 1 of 2 finds nobody at the coordinator's address 127.0.0.1:9 within 4 s" in g.said(0)
