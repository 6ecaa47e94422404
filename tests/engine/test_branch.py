"""A run that branches from a trunk is, bit for bit, the run that did all its steps itself."""

import numpy as np
import pytest

import engine
from engine import InputError, branch
from engine import config as config_lib
from tests.engine.test_checkpoint import Stop, same, steps_in, stop_at

HYPERS = [{}, {"optim.lr": 3e-3, "seed": 5}]


@pytest.fixture(autouse=True, scope="module")
def short_calls():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.loop, "MAX_CALL_STEPS", 4)
        yield


def lasting(tiny, steps, schedule, **changes):
    return config_lib.replace(
        tiny, {"tokens": steps * tiny.batch_tokens, "optim.schedule": schedule, "optim.final_lr": 0.0,
               "optim.final_fraction": 0.1, **changes},
    )  # fmt: skip


@pytest.fixture(scope="module")
def trunk(tiny, tmp_path_factory):
    """16 steps at a constant rate."""
    folder = tmp_path_factory.mktemp("trunk")
    engine.train_population(lasting(tiny, 16, "constant"), HYPERS, folder=folder)
    return folder


def wsd(tiny, steps, **changes):
    return lasting(tiny, steps, "wsd", **{"optim.decay_fraction": 0.2, **changes})


def test_branches_of_two_lengths_equal_runs_of_their_own(tiny, trunk, tmp_path):
    """20 steps, which decay from the trunk's end on; and 30, from a longer trunk that itself branched from this one."""
    whole = engine.train_population(wsd(tiny, 20), HYPERS)
    assert whole[0].metrics["lr"][15] == pytest.approx(1e-2) and whole[0].metrics["lr"][-1] == pytest.approx(1e-3)
    same(engine.train_population(wsd(tiny, 20), HYPERS, branch_from=trunk), whole)

    longer = lasting(tiny, 24, "constant")
    engine.train_population(longer, HYPERS, folder=tmp_path / "longer", branch_from=trunk)
    branch = engine.train_population(wsd(tiny, 30), HYPERS, branch_from=tmp_path / "longer")
    same(branch, engine.train_population(wsd(tiny, 30), HYPERS))
    assert steps_in(trunk)[-1] == 16  # the trunk's folder is as it was


def test_a_branch_that_was_cut_off_goes_on_from_its_own_checkpoint(tiny, trunk, tmp_path):
    with pytest.raises(Stop):
        engine.train_population(wsd(tiny, 20), HYPERS, folder=tmp_path, branch_from=trunk, on_progress=stop_at(17))
    assert 16 < steps_in(tmp_path)[-1] <= 20
    resumed = engine.train_population(wsd(tiny, 20), HYPERS, folder=tmp_path, branch_from="gone")
    same(resumed, engine.train_population(wsd(tiny, 20), HYPERS))


def test_a_wsd_run_is_a_trunk_until_it_decays(tiny, tmp_path):
    with pytest.raises(Stop):
        engine.train_population(wsd(tiny, 30), HYPERS, folder=tmp_path, on_progress=stop_at(10))
    assert steps_in(tmp_path)[-1] <= 16
    branch = engine.train_population(wsd(tiny, 20), HYPERS, branch_from=tmp_path)
    same(branch, engine.train_population(wsd(tiny, 20), HYPERS))


def test_the_longest_run_is_the_trunk_of_shorter_ones(tiny, tmp_path):
    """It has its own last checkpoint then, and those that the others want."""
    longest = wsd(tiny, 30)
    at = tuple(branch.constant_steps(wsd(tiny, steps)) for steps in (10, 20))
    assert at == (7, 15)
    engine.train_population(longest, HYPERS, folder=tmp_path, keep=engine.Keep(at=at, newest=1))
    assert steps_in(tmp_path) == [7, 15, 30]
    for steps in (20, 10):
        seen: list[int] = []
        how = {"branch_from": tmp_path, "on_progress": lambda p, seen=seen: seen.append(p.step)}
        same(
            engine.train_population(wsd(tiny, steps), HYPERS, **how), engine.train_population(wsd(tiny, steps), HYPERS)
        )
        assert seen[0] >= branch.constant_steps(wsd(tiny, steps))  # the first steps were not trained again
    assert steps_in(tmp_path) == [7, 15, 30]


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 333, 1024, 99_999])
@pytest.mark.parametrize("decay_fraction", [0.1, 0.2, 1 / 3, 1.0])
def test_where_the_decay_begins_is_where_the_compiled_rates_say(steps, decay_fraction, tiny):
    for warmup in {0, min(1, steps - 1), steps // 2}:
        config = wsd(tiny, steps, **{"optim.decay_fraction": decay_fraction, "optim.warmup_steps": warmup})
        steady = branch._rates(config, steps) == branch._rates(lasting(config, steps, "constant"), steps)
        exact = steps if steady.all() else int(np.argmin(steady))
        assert exact - 1 <= branch.constant_steps(config) <= exact


@pytest.mark.parametrize(
    "steps, schedule, changes, message",
    [
        (19, "wsd", {}, r"is at step 16, but from step 16 on its learning rate is not this run's \(0.01, here 0.0081"),
        (20, "wsd", {"optim.decay_fraction": 0.5}, "lower optim.decay_fraction, or branch from an earlier checkpoint"),
        (32, "cosine", {}, "is at step 16, but from step 4 on its learning rate is not"),
        (12, "wsd", {}, "is at step 16, past the 12 steps of a run of 768 tokens; raise tokens"),
        (20, "wsd", {"seed": 1}, "seed is 1, but 0 in .* a branch may differ from its trunk only in tokens, optim.sch"),
        (20, "wsd", {"optim.optimizer": "lion"}, "optim.optimizer is lion, but adamw in"),
        (20, "wsd", {"batch_size": 8, "tokens": 10240}, "batch_size is 8, but 4 in"),
    ],
)
def test_what_is_not_a_branch_is_refused(steps, schedule, changes, message, tiny, trunk):
    config = lasting(tiny, steps, schedule, **{"optim.decay_fraction": 0.2, **changes})
    with pytest.raises(InputError, match=message) as error:
        engine.train_population(config, [{}, {"optim.lr": 3e-3, "seed": 5}], branch_from=trunk)
    assert str(trunk) in str(error.value) and "\n" not in str(error.value)


def test_another_number_of_trials_or_nothing_there_is_refused(tiny, trunk, tmp_path):
    with pytest.raises(InputError, match="holds 2 trials, so 1 cannot branch from it"):
        engine.train(wsd(tiny, 20), branch_from=trunk)
    with pytest.raises(InputError, match=r"there is no checkpoint in .*gone"):
        engine.train(wsd(tiny, 20), branch_from=tmp_path / "gone")
    with pytest.raises(InputError, match="there is no checkpoint in"):
        engine.train(wsd(tiny, 20), branch_from=tmp_path)
