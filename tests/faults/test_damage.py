"""Every file of a checkpoint damaged in every way: the right values, or the step before; never wrong ones."""

import logging
import random
import resource
import shutil

import jax
import numpy as np
import pytest

import engine
from engine import InputError
from engine.checkpoint import Checkpoints, Keep, Saved
from tests.engine.conftest import tiny  # noqa: F401 - a fixture

TRIALS = ["a", "b"]


def state(step):
    rng = np.random.default_rng(step)
    return {"w": jax.numpy.asarray(rng.normal(size=(2, 40, 30)), "float32"), "step": jax.numpy.int32(step)}


def saved(step):
    loss = np.random.default_rng(step).normal(size=(step, 2)).astype(np.float32)
    return Saved(step, state(step), {"loss": loss}, {"trials": TRIALS, "elapsed_s": 1.5})


def restore(folder):
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(1))
    with Checkpoints(folder) as store:
        return store.restore(target, check=store.of_trials(TRIALS))


def is_right(found):
    want = saved(found.step)
    jax.tree.map(np.testing.assert_array_equal, found.state, want.state)
    np.testing.assert_array_equal(found.history["loss"], want.history["loss"])
    assert found.meta["elapsed_s"] == 1.5


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "run"
    with Checkpoints(folder) as store:
        for step in (1, 2):
            store.save(saved(step))
    return folder


def flip(path, chance):
    data = bytearray(path.read_bytes())
    for _ in range(1 + len(data) // 500):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def halve(path, chance):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def clear(path, chance):
    path.write_bytes(b"")


def delete(path, chance):
    path.unlink()


@pytest.mark.parametrize("damage", [flip, halve, clear, delete])
def test_any_file_damaged(damage, two_steps, tmp_path, caplog):
    files = [p.relative_to(two_steps) for p in sorted((two_steps / "2").rglob("*")) if p.is_file()]
    assert {"manifest.ocdbt", "_METADATA", "metadata"} <= {p.name for p in files}
    chance, steps = random.Random(0), {}
    for i, name in enumerate(f for f in files if (two_steps / f).stat().st_size):
        folder = tmp_path / str(i)
        shutil.copytree(two_steps, folder)
        damage(folder / name, chance)
        with caplog.at_level(logging.ERROR):  # not all of Orbax's own warnings
            found = restore(folder)
        is_right(found)
        steps[str(name)] = found.step
    assert steps["2/meta/metadata"] == 1 and steps["2/arrays/manifest.ocdbt"] == 1
    assert 1 in [found for name, found in steps.items() if "/d/" in name]  # the arrays themselves


@pytest.mark.parametrize("inside", [(), ("arrays", "meta"), ("arrays/d", "meta")])
def test_an_empty_step_folder_is_not_a_step(inside, two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "run")
    for name in ("", *inside):
        (tmp_path / "run" / "7" / name).mkdir(parents=True, exist_ok=True)
    found = restore(tmp_path / "run")
    assert found.step == 2 and not (tmp_path / "run" / "7").exists()
    is_right(found)


def test_only_an_empty_step_folder_is_a_named_error(tmp_path):
    (tmp_path / "7").mkdir()
    with pytest.raises(InputError, match=r"no good checkpoint in .*step 7: .*delete that folder"):
        restore(tmp_path)


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(tiny, tmp_path):  # noqa: F811
    """No file may grow beyond 20 kB from step 8 on: what a full disk does to the writers of arrays, in C++ too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress):
        if progress.step >= 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    try:
        with pytest.raises(InputError, match=r"cannot save to .*\(File too large\); make room") as error:
            engine.train(tiny, folder=tmp_path, on_progress=fill, save_every_s=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    resumed, undisturbed = engine.train(tiny, folder=tmp_path), engine.train(tiny)
    np.testing.assert_array_equal(resumed.metrics["loss"], undisturbed.metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, resumed.params, undisturbed.params)
    assert not list(tmp_path.glob("*tmp*"))


def test_a_full_disk_under_the_logs_is_named(tiny, tmp_path, monkeypatch):  # noqa: F811
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.loop.logs_lib._Run, "write", full)
    with pytest.raises(InputError, match=r"cannot write logs to .* \(No space left on device\)"):
        engine.train(tiny, logs=tmp_path)


@pytest.mark.parametrize(
    "keep, kept",
    [
        (Keep(), [11, 12]),
        (Keep(newest=1), [12]),
        (Keep(newest=3), [10, 11, 12]),
        (Keep(every_steps=5), [5, 10, 11, 12]),
        (Keep(newest=1, every_hours=1000), [1, 12]),
        (Keep(newest=1, every_steps=4, every_hours=1000), [1, 4, 8, 12]),
    ],
)
def test_what_is_kept(keep, kept, tmp_path):
    with Checkpoints(tmp_path, keep) as store:
        for step in range(1, 13):
            store.save(saved(step))
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == kept
    is_right(restore(tmp_path))
