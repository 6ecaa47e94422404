"""Resume is exact; damage is named and never returned."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import engine
from engine import InputError
from engine import config as config_lib
from engine.checkpoint import Checkpoints, Saved

HYPERS = [{}, {"optim.lr": 3e-3, "seed": 5}]


@pytest.fixture(autouse=True, scope="module")
def short_calls():
    """Four steps a call at most, so that tiny runs have several places to save and to stop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.loop, "MAX_CALL_STEPS", 4)
        yield


class Stop(Exception):
    pass


def stop_at(step):
    def on_progress(progress):
        if progress.step >= step:
            raise Stop

    return on_progress


def interrupt(config, folder, at=12):
    """Leaves checkpoints of the first steps in folder, as an interrupted run does."""
    with pytest.raises(Stop):
        engine.train_population(config, HYPERS, folder=folder, on_progress=stop_at(at), save_every_s=0)


def same(a, b):
    for x, y in zip(a, b):
        for name in x.metrics:
            np.testing.assert_array_equal(x.metrics[name], y.metrics[name])
        assert x.row["eval_loss"] == y.row["eval_loss"] and x.row["loss"] == y.row["loss"]
        np.testing.assert_array_equal(x.params["layers"]["down"], y.params["layers"]["down"])


@pytest.fixture(scope="module")
def undisturbed(tiny):
    return engine.train_population(tiny, HYPERS)


def steps_in(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def test_interrupted_and_resumed_equals_undisturbed(tiny, undisturbed, tmp_path):
    interrupt(tiny, tmp_path)
    assert 0 < steps_in(tmp_path)[-1] < 24
    resumed = engine.train_population(tiny, HYPERS, folder=tmp_path)
    same(resumed, undisturbed)
    assert resumed[0].checkpoint == tmp_path and steps_in(tmp_path)[-1] == 24
    same(engine.train_population(tiny, HYPERS, folder=tmp_path), undisturbed)  # finished: nothing left to train


def test_a_request_to_stop_saves_first(tiny, undisturbed, tmp_path):
    with pytest.raises(Stop):
        engine.train_population(tiny, HYPERS, folder=tmp_path, on_progress=stop_at(10))
    assert steps_in(tmp_path)[0] >= 10
    same(engine.train_population(tiny, HYPERS, folder=tmp_path), undisturbed)


def test_resumes_on_another_mesh(tiny, undisturbed, tmp_path):
    interrupt(tiny, tmp_path)
    elsewhere = config_lib.replace(tiny, {"mesh.trial": 2, "mesh.fsdp": 2})
    resumed = engine.train_population(elsewhere, HYPERS, folder=tmp_path)
    np.testing.assert_allclose(resumed[1].metrics["loss"], undisturbed[1].metrics["loss"], rtol=1e-5)


LAYOUTS = [(1, 1), (8, 1), (1, 8), (2, 4)]


@pytest.mark.parametrize("saved_on", LAYOUTS)
def test_a_state_is_restored_bit_for_bit_on_any_layout(saved_on, tmp_path):
    """Of 1 to 8 devices; what is sharded how is up to the reader."""

    def sharding(shape):
        devices = np.asarray(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
        return NamedSharding(Mesh(devices, ("a", "b")), PartitionSpec("a", "b"))

    values = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    with Checkpoints(tmp_path) as store:
        state = {"w": jax.device_put(values, sharding(saved_on))}
        store.save(Saved(3, state, {"loss": np.ones((3, 1), np.float32)}, {"trials": ["x"]}))
    for shape in LAYOUTS:
        with Checkpoints(tmp_path) as store:
            target = {"w": jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=sharding(shape))}
            found = store.restore(target, check=store.of_trials(["x"]))
        assert found.state["w"].sharding == sharding(shape) and found.step == 3
        np.testing.assert_array_equal(found.state["w"], values)


def largest_file(step_folder):
    return max((p for p in step_folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(folder):
    path = largest_file(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(folder):
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


def lie(folder):
    """A changed number in the meta data."""
    path = next(p for p in (folder / "meta").rglob("metadata"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "elapsed_s": 1e9}))


DAMAGE = [flip, truncate, empty, lie]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_step_is_refused_and_the_one_before_used(damage, tiny, undisturbed, tmp_path, caplog):
    interrupt(tiny, tmp_path)
    steps = steps_in(tmp_path)
    assert len(steps) == 2
    damage(tmp_path / str(steps[-1]))
    same(engine.train_population(tiny, HYPERS, folder=tmp_path), undisturbed)
    assert f"step {steps[-1]}" in caplog.text


@pytest.mark.parametrize("damage", DAMAGE)
def test_nothing_good_left_is_a_named_error(damage, tiny, tmp_path):
    interrupt(tiny, tmp_path)
    for step in steps_in(tmp_path):
        damage(tmp_path / str(step))
    with pytest.raises(InputError, match="no good checkpoint") as error:
        engine.train_population(tiny, HYPERS, folder=tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_another_runs_folder_is_refused(tiny, tmp_path):
    interrupt(tiny, tmp_path)
    with pytest.raises(InputError, match="other trials"):
        engine.train_population(tiny, [{}, {"optim.lr": 1e-4}], folder=tmp_path)


def test_unwritable_folder_is_one_line(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="name a writable folder"):
        engine.train(tiny, folder=tmp_path / "file" / "run")
