"""Trials that step a few at a time are the same trials; how many is measured once, and kept."""

import jax
import numpy as np
import pytest

import engine
from engine import MeshConfig, lanes, population
from engine import config as config_lib
from engine import mesh as mesh_lib
from tests.engine.test_mesh import collectives, lower, mixture  # noqa: F401

N_TRIALS = 4


def with_lanes(config, n):
    return config_lib.replace(config, {"compute.lanes": n})


def run(config, layout):
    _, run_steps, args = lower(config, layout)
    return jax.device_get(run_steps(*args))


@pytest.mark.parametrize("layout, n", [(MeshConfig(trial=1, data=1), 1), (MeshConfig(trial=2, data=2), 2)])
def test_a_few_at_a_time_is_the_same(layout, n, tiny):
    state, metrics = run(tiny, MeshConfig(trial=1, data=1))
    few, few_metrics = run(with_lanes(tiny, n), layout)
    np.testing.assert_allclose(few_metrics.loss, metrics.loss, rtol=1e-5)
    np.testing.assert_array_equal(few_metrics.lr, metrics.lr)  # each trial its own numbers, in order
    assert few.step == state.step
    assert jax.tree.map(np.shape, few) == jax.tree.map(np.shape, state)


def test_experts_a_trial_at_a_time(mixture):  # noqa: F811
    together, alone = run(mixture, MeshConfig(trial=1, data=1))[1], run(with_lanes(mixture, 1), MeshConfig(trial=1))[1]
    np.testing.assert_allclose(alone.loss, together.loss, rtol=1e-5)
    np.testing.assert_allclose(alone.expert_load, together.expert_load, rtol=1e-6)


def test_groups_of_trials_over_devices_have_no_collectives(tiny):
    assert not any(collectives(with_lanes(tiny, 2), MeshConfig(trial=2, data=1)).values())


def choose(config, n_trials=N_TRIALS, layout=None):
    trials = population.trial_configs(config, [{"seed": g} for g in range(n_trials)])
    mesh = mesh_lib.make_mesh(layout or MeshConfig(trial=1, data=1), n_trials=n_trials, batch_size=config.batch_size)
    return lanes.choose(config, trials, mesh, 4)


def test_what_is_asked_for_is_rounded_to_what_divides(tiny):
    assert choose(with_lanes(tiny, 3)) == 2
    assert choose(with_lanes(tiny, 99)) == N_TRIALS
    assert choose(with_lanes(tiny, 1), layout=MeshConfig(trial=2, data=1)) == 2  # a device each at the least
    assert choose(tiny) == N_TRIALS  # too short to measure


def test_the_fastest_is_measured_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("STEPSEER_CACHE", str(tmp_path))
    monkeypatch.setattr(lanes, "WORTH", 0.0)
    asked = []

    def seconds(config, trials, mesh, n, call_steps):
        asked.append(n)
        return {1: 3.0, 4: 2.0, 8: 5.0}[n]

    monkeypatch.setattr(lanes, "_seconds", seconds)
    assert choose(tiny, 8) == 4 and asked == [1, 4, 8]
    assert choose(tiny, 8) == 4 and asked == [1, 4, 8]
    (tmp_path / "lanes.json").write_text("{damaged")
    assert choose(tiny, 8) == 4 and len(asked) == 6
    monkeypatch.setattr(lanes, "_seconds", lambda *_: 1.0)
    assert choose(config_lib.replace(tiny, {"model.n_layers": 1}), 8) == 1  # another program


def test_a_measured_run_trains_and_resumes_with_its_choice(tiny, tmp_path, monkeypatch):
    """With a real measurement; then the choice would be another, but the checkpoint says which it was."""
    monkeypatch.setenv("STEPSEER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lanes, "WORTH", 0.0)
    hypers = [{"optim.lr": 1e-3}, {"optim.lr": 2e-3}]
    whole = engine.train_population(tiny, hypers)
    assert (tmp_path / "cache" / "lanes.json").exists()

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.step >= tiny.steps // 2:
            raise Stop

    with pytest.raises(Stop):
        engine.train_population(tiny, hypers, folder=tmp_path / "run", on_progress=stop)
    (tmp_path / "cache" / "lanes.json").unlink()
    monkeypatch.setattr(lanes, "_seconds", lambda *_: pytest.fail("measured again"))
    for result, expected in zip(engine.train_population(tiny, hypers, folder=tmp_path / "run"), whole):
        np.testing.assert_array_equal(result.metrics["loss"], expected.metrics["loss"])
