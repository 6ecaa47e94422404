"""A chunk that does not fit into memory is trained in halves."""

import jax.numpy as jnp
import pandas as pd
import pytest

from engine.config import replace
from experiments import grid, store
from experiments.errors import InputError
from experiments.plan import make_plan
from experiments.runner import run, train_chunk

from . import fakes


class Small:
    """A trainer on a device with room for so many trials of a width; it writes down what it was given."""

    def __init__(self, room):
        self.room, self.sizes = room, []

    def __call__(self, chunk, folder, on_progress):
        self.sizes.append((chunk.base.model.d_model, len(chunk.trials)))
        if len(chunk.trials) > self.room[chunk.base.model.d_model]:
            raise MemoryError("cannot allocate 3 GiB")
        return fakes.trainer(chunk, folder, on_progress)


def test_halves_of_halves_and_what_follows_begins_at_the_size_that_fitted(tmp_path):
    plan = fakes.plan(max_trials=6)  # of both widths two chunks of 6
    folder, trainer = store.create(tmp_path, plan), Small({16: 6, 32: 2})
    summary = run(plan, folder, trainer=trainer)
    assert (summary.ok, summary.failed) == (24, 0)
    assert trainer.sizes == [(16, 6)] * 2 + [(32, 6), (32, 3)] + [(32, 2)] * 6
    assert folder.read()["run_id"].tolist() == list(plan.run_ids)


def test_a_trial_that_does_not_fit_alone_is_a_row_that_says_what_to_change(tmp_path):
    plan = fakes.plan(max_trials=2)
    folder = store.create(tmp_path, plan)
    summary = run(plan, folder, trainer=Small({16: 1, 32: 0}))
    assert (summary.ok, summary.failed) == (12, 12)
    rows = folder.read()
    reasons = set(rows.loc[rows["status"] == "failed", "reason"])
    assert reasons == {
        "out of memory, alone; set compute.remat=full in the grid, and --retry-failed. "
        "MemoryError: cannot allocate 3 GiB"
    }
    # what the line says works: the same trials, by a program that needs less
    less = fakes.plan(max_trials=2, base=replace(fakes.BASE, {"compute.remat": "full"}))
    assert run(less, folder, trainer=Small({16: 2, 32: 2}), retry_failed=True).ok == 12
    assert folder.read()["run_id"].tolist() == list(plan.run_ids)


def test_a_run_that_was_cut_off_in_a_half_goes_on_in_it(tmp_path):
    plan = fakes.plan(max_trials=6)
    folder, trained = store.create(tmp_path, plan), []

    def cut_off(chunk, checkpoints, on_progress):
        checkpoints.mkdir(parents=True, exist_ok=True)
        (checkpoints / "state").write_text(chunk.id)
        trained.append(chunk.id)
        if len(trained) == 5:  # the second half of the first chunk; the other cohort is done
            raise InputError("power cut")
        return Small({16: 3, 32: 6})(chunk, checkpoints, on_progress)

    with pytest.raises(InputError, match="power cut"):
        run(plan, folder, trainer=cut_off)
    assert [p.name for p in tmp_path.glob("checkpoints/*")] == [trained[4]]  # of the whole chunk nothing is left

    def go_on(chunk, checkpoints, on_progress):
        assert len(trained) > 5 or (checkpoints / "state").read_text() == chunk.id == trained[4]
        trained.append(chunk.id)
        return Small({16: 3, 32: 6})(chunk, checkpoints, on_progress)

    assert run(plan, folder, trainer=go_on).ok == 9
    assert folder.read()["run_id"].tolist() == list(plan.run_ids)


def test_what_xla_says_is_understood_and_the_halves_are_as_if_planned_so(tmp_path):
    trials = grid.trials(fakes.BASE, grid.axis("optim.lr", [1e-3, 1e-2]))

    def on_a_small_device(chunk, folder, on_progress):
        if len(chunk.trials) > 1:
            jnp.zeros(2**46, "int8")  # 64 TiB
        return train_chunk(chunk, folder, on_progress)

    plan, planned = make_plan("g", trials, max_trials=2), make_plan("g", trials, max_trials=1)
    run(plan, store.create(tmp_path / "halved", plan), trainer=on_a_small_device)
    run(planned, store.create(tmp_path / "planned", planned))
    halved, expected = (store.load(tmp_path / name).read() for name in ("halved", "planned"))
    assert len(list(tmp_path.glob("halved/fits/*-1"))) == 1 and set(halved["status"]) == {"ok"}
    pd.testing.assert_frame_equal(fakes.without_clock(halved), fakes.without_clock(expected), check_exact=True)
